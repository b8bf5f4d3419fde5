/*
 * Loops whose memory operands move in step, as arrays do that are walked side by side: a copy of
 * the loop's body without checks, for the rounds in which every operand stays on its page.
 *
 *     begin   check each group of operands once; how far may all of them move?
 *     round   the instructions as they are, on host addresses; they end as the guest's loop does,
 *             or when the register that moves has come to the limit
 *
 * The rounds are bounded by the size of a page: they need no poll, so the host addresses stay
 * valid. Whatever does not fit goes on in the loop with checks.
 */
#include "engine/translate/compiler.h"

enum { LONGEST = UNIT_MAX_INSTRUCTIONS / 2, STEP_MAX = 1024, SPAN_MAX = 2048, FAR = 1 << 30 };
_Static_assert(ARRAY_SIZE(((struct block *)0)->group_slots) >= GROUPS, "a slot for each group");

/* Operands off the same registers. Their addresses begin at `first` beyond them. */
struct stride_group {
    int base, index; /* -1: none */
    unsigned scale;
    int moving; /* the one of the two that the loop moves; -1: neither */
    int64_t first, end;
    bool writes;
};

struct stride {
    struct stride_group groups[GROUPS];
    unsigned count;
    uint8_t group_of[LONGEST]; /* of each instruction's operand */
    int32_t bytes;             /* that operands move in a round, those that do */
    int limited;               /* a register that moves: rounds end at its limit */
    unsigned limited_shift;    /* of `bytes` to its step */
    int32_t steps[GPR_COUNT];
    uint16_t stepped, changed; /* registers that the loop moves, or changes in any other way */
};

/* ---- what the loop does ---- */

static uint16_t written_by(const struct insn *insn)
{
    return insn->registers.written | insn->registers.implicit_written;
}

/* Does it add a constant to a 64-bit register, and nothing else? */
static bool step_of(const struct insn *insn, int *ret_gpr, int64_t *ret_step)
{
    const struct insn_operand *first = &insn->operands[0], *second = &insn->operands[1];
    if (insn->info.operand_width != 64 || first->type != ZYDIS_OPERAND_TYPE_REGISTER ||
        (insn->info.attributes & ZYDIS_ATTRIB_HAS_LOCK)) {
        return false;
    }
    *ret_gpr = rewrite_gpr(first->reg.value);
    bool has_immediate = second->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_ADD:
        *ret_step = second->imm.value.s;
        return has_immediate;
    case ZYDIS_MNEMONIC_SUB:
        *ret_step = -second->imm.value.s;
        return has_immediate;
    case ZYDIS_MNEMONIC_INC:
        *ret_step = 1;
        return true;
    case ZYDIS_MNEMONIC_DEC:
        *ret_step = -1;
        return true;
    case ZYDIS_MNEMONIC_LEA:
        *ret_step = second->mem.displacement;
        return second->mem.base == first->reg.value && second->mem.index == ZYDIS_REGISTER_NONE &&
               insn->info.address_width == 64;
    default:
        return false;
    }
}

static void note_registers(struct stride *stride, const struct insn *insn)
{
    int gpr;
    int64_t step;
    uint16_t written = written_by(insn);
    bool is_step = step_of(insn, &gpr, &step) && gpr != RSP && step != 0 && step <= STEP_MAX &&
                   step >= -STEP_MAX && !((stride->stepped | stride->changed) & written);
    if (is_step) {
        stride->steps[gpr] = (int32_t)step;
        stride->stepped |= written;
    } else {
        stride->changed |= written;
        stride->stepped &= ~written;
    }
}

/* Only what needs neither a scratch register nor a check beside that of its operand. */
static bool fits(const struct compiler *c, const struct insn *insn, bool has_flags)
{
    uint16_t named = insn->registers.read | insn->registers.written |
                     insn->registers.implicit_read | insn->registers.implicit_written;
    if (is_nothing(insn)) {
        return true;
    }
    if (insn->info.mnemonic == ZYDIS_MNEMONIC_LEA) {
        return is_direct_lea(c, insn);
    }
    if ((c->mode & MODE_ANYWHERE) && moves_x87_pointer(insn)) {
        return false; /* block->x87_page is to be noted */
    }
    return !(named & c->unit->displaced) && is_copied_here(c, insn) && is_plain_copy(insn) &&
           (has_flags || !flag_effects(insn).reads) &&
           !((insn->registers.implicit_read | insn->registers.implicit_written) & 1u << RSP);
}

/* The registers of an address: no displaced ones, none that change otherwise than in step. */
static bool is_walked(const struct compiler *c, const struct stride *stride, int gpr)
{
    return gpr < 0 || (!is_displaced(c, gpr) && !(stride->changed & 1u << gpr));
}

static bool is_moved(const struct stride *stride, int gpr)
{
    return gpr >= 0 && (stride->stepped & 1u << gpr);
}

/* The number of the group that takes an operand, maybe a new one; GROUPS if there are too many. */
static unsigned group_for(struct stride *stride, const struct stride_group *operand)
{
    for (unsigned i = 0; i < stride->count; i++) {
        struct stride_group *group = &stride->groups[i];
        int64_t first = operand->first < group->first ? operand->first : group->first;
        int64_t end = operand->end > group->end ? operand->end : group->end;
        if (group->base == operand->base && group->index == operand->index &&
            group->scale == operand->scale && end - first <= SPAN_MAX) {
            group->first = first;
            group->end = end;
            group->writes |= operand->writes;
            return i;
        }
    }
    if (stride->count < GROUPS) {
        stride->groups[stride->count++] = *operand;
        return stride->count - 1;
    }
    return GROUPS;
}

/* What an operand's address is made of, at the current instruction. */
static bool operand_of(const struct compiler *c, const struct insn *insn,
                       const struct insn_operand *operand, struct stride_group *ret_group)
{
    const struct insn_memory *memory = &operand->mem;
    bool is_relative = memory->base == ZYDIS_REGISTER_RIP;
    if (insn->info.address_width != 64 || operand->size == 0 || operand->size > 8 * 64 ||
        memory->displacement > FAR || memory->displacement < -FAR ||
        (is_relative && (c->mode & MODE_ANYWHERE)) || memory->segment == ZYDIS_REGISTER_FS ||
        memory->segment == ZYDIS_REGISTER_GS) {
        return false;
    }
    *ret_group = (struct stride_group){
        .base = is_relative ? -1 : rewrite_gpr(memory->base),
        .index = rewrite_gpr(memory->index),
        .scale = memory->scale ? memory->scale : 1,
        .moving = -1,
        .first = memory->displacement + (is_relative ? (int64_t)compiler_next_pc(c) : 0),
        .writes = operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE,
    };
    ret_group->end = ret_group->first + operand->size / 8;
    return true;
}

/* Take the operand of the current instruction in; `moved`: registers that were moved before it. */
static bool add_operand(struct compiler *c, struct stride *stride, uint16_t moved)
{
    const struct insn *insn = compiler_insn(c);
    struct stride_group operand;
    if (!operand_of(c, insn, rewrite_memory_operand(insn), &operand) ||
        !is_walked(c, stride, operand.base) || !is_walked(c, stride, operand.index)) {
        return false;
    }
    bool base_moves = is_moved(stride, operand.base), index_moves = is_moved(stride, operand.index);
    if (base_moves && index_moves) {
        return false;
    }
    if (base_moves || index_moves) {
        unsigned factor = index_moves ? operand.scale : 1;
        operand.moving = index_moves ? operand.index : operand.base;
        int32_t bytes = stride->steps[operand.moving] * (int32_t)factor;
        if (stride->bytes == 0) {
            stride->bytes = bytes;
            stride->limited = operand.moving;
            stride->limited_shift = (unsigned)__builtin_ctz(factor);
        }
        if (bytes != stride->bytes) {
            return false;
        }
        /* As seen at the start of the round. */
        int32_t ahead = moved & 1u << operand.moving ? bytes : 0;
        operand.first += ahead;
        operand.end += ahead;
    }
    unsigned number = group_for(stride, &operand);
    stride->group_of[c->current] = (uint8_t)number;
    return number < GROUPS;
}

static bool plan(struct compiler *c, unsigned end, struct stride *stride)
{
    bool has_flags = false;
    uint16_t moved = 0;
    if (!is_conditional_jump(&c->insns[end - 1])) {
        return false;
    }
    *stride = (struct stride){.limited = -1};
    for (unsigned i = 0; i + 1 < end; i++) {
        const struct insn *insn = &c->insns[i];
        if (!fits(c, insn, has_flags) || is_variable(c, i)) {
            return false;
        }
        has_flags |= flag_effects(insn).writes;
        note_registers(stride, insn);
    }
    for (c->current = 0; c->current + 1 < end; c->current++) {
        const struct insn *insn = compiler_insn(c);
        bool has_operand =
            rewrite_memory_operand(insn) && insn->info.mnemonic != ZYDIS_MNEMONIC_LEA;
        if (has_operand && !is_nothing(insn) && !add_operand(c, stride, moved)) {
            return false;
        }
        moved |= written_by(insn) & stride->stepped;
    }
    return has_flags && stride->bytes != 0;
}

/* ---- begin ---- */

static size_t slot_of(unsigned group)
{
    return offsetof(struct block, group_slots) + 8 * group;
}

/* SCRATCH = address of the group's first byte */
static void emit_group_address(struct compiler *c, const struct stride_group *group)
{
    struct emitter *e = &c->e;
    if (group->base < 0 && group->index < 0) {
        emit_constant(e, SCRATCH, (uint64_t)group->first);
        return;
    }
    emit_lea_full(e, true, SCRATCH, group->base < 0 ? -1 : (int)home_of(c, group->base),
                  group->index < 0 ? -1 : (int)home_of(c, group->index), group->scale,
                  (int32_t)group->first);
}

/* SCRATCH = bytes that the group may move; keep it in stride_limit, if it is the least so far. */
static void emit_room(struct emitter *e, const struct stride *stride, unsigned size, bool is_first)
{
    uint8_t *more = NULL;
    if (stride->bytes > 0) {
        emit_registers(e, true, 0xf7, 3, SCRATCH); /* neg */
        emit_lea(e, SCRATCH, SCRATCH, PAGE_SIZE - (int32_t)size);
    }
    if (!is_first) {
        emit_gs(e, true, OP_CMP, SCRATCH, offsetof(struct block, stride_limit));
        more = emit_branch_forward(e, CONDITION_AE);
    }
    emit_store(e, SCRATCH, offsetof(struct block, stride_limit));
    if (more) {
        emit_set_target(e, more);
    }
}

/* What added to the register that moves gives the host address goes to the group's slot. */
static uint8_t *emit_begin_group(struct compiler *c, const struct stride *stride, unsigned number,
                                 bool is_first)
{
    const struct stride_group *group = &stride->groups[number];
    struct emitter *e = &c->e;
    unsigned size = (unsigned)(group->end - group->first);
    size_t entry = tlb_entry_offset(mode_privilege(c->mode), group->writes ? TLB_WRITE : TLB_READ);
    bool is_absolute = group->base < 0 && group->index < 0;
    emit_group_address(c, group);
    emit_check_index(e);
    emit_gs_scratch2(e, true, OP_SUB, SCRATCH, entry + offsetof(struct tlb_entry, tag));
    uint8_t *misses = emit_distance_check(e, size);
    emit_gs_scratch2(e, true, OP_LOAD, SCRATCH2, entry + offsetof(struct tlb_entry, host));
    emit_lea_full(e, true, SCRATCH2, SCRATCH2, SCRATCH, 1,
                  is_absolute ? 0 : (int32_t)-group->first);
    if (group->moving >= 0) {
        emit_room(e, stride, size, is_first);
        emit_move(e, SCRATCH, home_of(c, group->moving));
        if (group->moving == group->index && group->scale > 1) {
            emit_registers(e, true, 0xc1, 4, SCRATCH); /* shl */
            emit8(e, (uint8_t)__builtin_ctz(group->scale));
        }
        emit_registers(e, true, OP_SUB, SCRATCH2, SCRATCH);
    }
    emit_store(e, SCRATCH2, slot_of(number));
    return misses;
}

/*
 * stride_limit = the value of the register that moves up to which rounds begin. It must not come
 * near the end of its range, for the comparison is signed.
 */
static void emit_limit(struct compiler *c, const struct stride *stride, uint8_t *ret_branches[2])
{
    struct emitter *e = &c->e;
    const uint8_t opcode = stride->bytes > 0 ? OP_ADD : OP_SUB;
    emit_load(e, SCRATCH, offsetof(struct block, stride_limit));
    if (stride->limited_shift) {
        emit_registers(e, true, 0xc1, 5, SCRATCH); /* shr */
        emit8(e, (uint8_t)stride->limited_shift);
    }
    emit_move(e, SCRATCH2, home_of(c, stride->limited));
    emit_registers(e, true, opcode, SCRATCH2, SCRATCH);
    ret_branches[0] = emit_branch_forward(e, CONDITION_O);
    emit_store(e, SCRATCH2, offsetof(struct block, stride_limit));
    emit_registers(e, true, 0x81, stride->bytes > 0 ? 0 : 5, SCRATCH2); /* add, sub */
    emit32(e, STEP_MAX);
    ret_branches[1] = emit_branch_forward(e, CONDITION_O);
}

/* ---- rounds ---- */

/*
 * Where the operand of the current instruction is: beyond the value of its group's slot and the
 * register that moves. The first group's is in SCRATCH; `held` is the one that SCRATCH2 has.
 */
static void place_operand(struct compiler *c, const struct stride *stride, unsigned *held,
                          struct rewrite_map *map)
{
    const struct insn *insn = compiler_insn(c);
    unsigned number = stride->group_of[c->current];
    const struct stride_group *group = &stride->groups[number];
    struct stride_group operand;
    operand_of(c, insn, rewrite_memory_operand(insn), &operand);
    if (number > 0 && *held != number) {
        emit_load(&c->e, SCRATCH2, slot_of(number));
        *held = number;
    }
    bool is_absolute = group->base < 0 && group->index < 0;
    map->memory_base = number > 0 ? SCRATCH2 : SCRATCH;
    map->memory_offset = (int32_t)(operand.first - (is_absolute ? group->first : 0));
    map->has_index = group->moving >= 0;
    map->memory_index = map->has_index ? (uint8_t)home_of(c, group->moving) : 0;
    map->memory_scale = (uint8_t)(group->moving == group->index ? group->scale : 1);
}

/* The current instruction on host addresses. False: it cannot be expressed so. */
static bool emit_round_step(struct compiler *c, const struct stride *stride, unsigned *held)
{
    const struct insn *insn = compiler_insn(c);
    struct rewrite_map map = {.memory_scale = 1};
    if (is_nothing(insn)) {
        return true;
    }
    if (is_direct_lea(c, insn)) {
        compile_direct_lea(c);
        return true;
    }
    for (unsigned gpr = 0; gpr < GPR_COUNT; gpr++) {
        map.host[gpr] = (uint8_t)home_of(c, (int)gpr);
    }
    if (rewrite_memory_operand(insn)) {
        place_operand(c, stride, held, &map);
    }
    return compile_plain_copy(c, &map);
}

/* All instructions but the last, which goes back to the first. */
static bool emit_round(struct compiler *c, const struct stride *stride, unsigned end)
{
    unsigned held = stride->count > 1 ? 1 : 0;
    for (c->current = 0; c->current + 1 < end; c->current++) {
        const struct insn *insn = compiler_insn(c);
        if (c->marks) {
            trace_mark(c->marks, emit_offset(&c->e), c->offsets[c->current], false);
        }
        flags_before(c, insn);
        if (!emit_round_step(c, stride, &held)) {
            return false;
        }
        recipe_after(c, insn);
    }
    if (stride->count > 2 && held != 1) {
        emit_load(&c->e, SCRATCH2, slot_of(1));
    }
    return true;
}

/* The limit of the rounds, behind the guest's own condition for one more. */
static void emit_again(struct compiler *c, const struct stride *stride, uint32_t top)
{
    struct emitter *e = &c->e;
    emit_gs(e, true, OP_CMP, home_of(c, stride->limited), offsetof(struct block, stride_limit));
    uint8_t *branch = emit_branch_forward(e, stride->bytes > 0 ? CONDITION_LE : CONDITION_GE);
    store_le32(branch, top - (emit_offset(e)));
}

bool compile_stride(struct compiler *c, unsigned end, const struct recipe *recipe)
{
    struct emitter *e = &c->e;
    struct stride stride;
    uint8_t *branches[GROUPS + 2];
    unsigned count = 0, sites = c->vm->site_count, outlines = c->outline_count;
    if (!plan(c, end, &stride)) {
        return false;
    }
    uint8_t *start = e->at;
    bool is_first = true;
    for (unsigned i = 0; i < stride.count; i++) {
        branches[count++] = emit_begin_group(c, &stride, i, is_first);
        is_first &= stride.groups[i].moving < 0;
    }
    emit_limit(c, &stride, &branches[count]);
    count += 2;
    emit_load(e, SCRATCH, slot_of(0));
    if (stride.count > 1) {
        emit_load(e, SCRATCH2, slot_of(1));
    }
    emit_alignment(e, 32);
    uint32_t top = emit_offset(e);
    c->flags = FLAGS_RECIPE;
    c->recipe = *recipe;
    /* The recipe may want an operand in memory, which rounds do not keep. */
    if (!emit_round(c, &stride, end) || !is_same_recipe(&c->recipe, recipe)) {
        e->at = start;
        c->vm->site_count = sites;
        c->outline_count = outlines;
        return false;
    }
    compile_exit(c, (compiler_insn(c)->info.opcode & 15) ^ 1, compiler_next_pc(c));
    emit_again(c, &stride, top);
    for (unsigned i = 0; i < count; i++) {
        emit_set_target(e, branches[i]);
    }
    return true;
}
