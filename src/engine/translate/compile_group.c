/*
 * Groups of memory operands: neighbours off the same registers are checked once.
 *
 * A group is made at its first access from what follows in the unit: operands with the same base
 * and index, unchanged, no further apart than GROUP_SPAN. One check covers them all, and its host
 * address stays in SCRATCH or, where another check comes between, in a slot of the block. What the
 * check may refuse though the access itself would be right (a page border inside the group, a
 * page that only a later member writes) goes on in a variant of the unit without groups: at a page
 * border by a jump of its own, since a stack frame that lies there meets it at each call; else by
 * C.
 *
 * Host addresses live only inside a unit, and never across a place that may come back from C into
 * the middle of the unit after mappings changed: see groups_forget() and place_is_current().
 */
#include "engine/translate/compiler.h"

enum { GROUP_SPAN = 240, GROUP_REACH = 16 };

/* What makes two operands neighbours. */
struct operand_key {
    int base, index;
    unsigned scale;
    int32_t displacement;
    unsigned size;
};

static bool operand_key(const struct insn *insn, const struct insn_operand *operand,
                        struct operand_key *ret_key)
{
    const struct insn_memory *memory = &operand->mem;
    int base = rewrite_gpr(memory->base);
    if (base < 0 || insn->info.address_width != 64 || memory->segment == ZYDIS_REGISTER_FS ||
        memory->segment == ZYDIS_REGISTER_GS || operand->size == 0 || operand->size > 8 * 64) {
        return false;
    }
    *ret_key = (struct operand_key){
        .base = base,
        .index = rewrite_gpr(memory->index),
        .scale = memory->scale,
        .displacement = (int32_t)memory->displacement,
        .size = operand->size / 8,
    };
    return true;
}

static bool same_registers(const struct group *group, const struct operand_key *key)
{
    return group->base == key->base && group->index == key->index &&
           (key->index < 0 || group->scale == key->scale);
}

static bool writes_memory(const struct insn_operand *operand)
{
    return operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
}

static uint16_t written_registers(const struct insn *insn)
{
    return insn->registers.written | insn->registers.implicit_written;
}

static uint16_t key_registers(int base, int index)
{
    return (uint16_t)(1u << base | (index >= 0 ? 1u << index : 0));
}

/* Does emitting this instruction leave SCRATCH alone? (Members of the group do.) */
static bool keeps_scratch(const struct compiler *c, const struct insn *insn)
{
    if (insn->info.meta.category == ZYDIS_CATEGORY_COND_BR || is_direct_lea(c, insn)) {
        return true;
    }
    if (insn->info.mnemonic == ZYDIS_MNEMONIC_LEA || rewrite_memory_operand(insn)) {
        return false;
    }
    uint16_t displaced = (insn->registers.read | insn->registers.written) & c->unit->displaced;
    return (displaced & (displaced - 1)) == 0;
}

/* Widen `group` by a later operand if it stays near; false if it is too far away. */
static bool widen(struct group *group, const struct operand_key *key)
{
    int32_t first = key->displacement < group->first ? key->displacement : group->first;
    int64_t end = (int64_t)key->displacement + key->size;
    end = end > group->end ? end : group->end;
    if (end - first > GROUP_SPAN) {
        return false;
    }
    group->first = first;
    group->end = (int32_t)end;
    return true;
}

/* Look ahead from the current instruction: what can one check cover? Returns the members. */
static unsigned plan_group(const struct compiler *c, const struct operand_key *key, bool writes,
                           struct group *ret_group)
{
    struct group group = {.is_active = true,
                          .base = key->base,
                          .index = key->index,
                          .scale = key->scale,
                          .first = key->displacement,
                          .end = key->displacement + (int32_t)key->size,
                          .may_write = writes};
    bool behind_branch = false, scratch_lost = false;
    unsigned members = 1;
    uint16_t watched = key_registers(key->base, key->index);
    if (written_registers(compiler_insn(c)) & watched) {
        *ret_group = group;
        return 1;
    }
    for (unsigned i = c->current + 1; i < c->count && i <= c->current + GROUP_REACH; i++) {
        const struct insn *insn = &c->insns[i];
        const struct insn_operand *operand = rewrite_memory_operand(insn);
        struct operand_key other;
        if (!is_transparent(insn)) {
            break;
        }
        behind_branch |= insn->info.meta.category == ZYDIS_CATEGORY_COND_BR;
        /* What a branch may skip must not ask for the right to write. */
        bool is_member = operand && operand->type == ZYDIS_OPERAND_TYPE_MEMORY &&
                         insn->info.mnemonic != ZYDIS_MNEMONIC_LEA &&
                         operand_key(insn, operand, &other) && same_registers(&group, &other) &&
                         !(behind_branch && writes_memory(operand) && !group.may_write) &&
                         widen(&group, &other);
        if (is_member) {
            group.may_write |= writes_memory(operand);
            group.is_kept |= scratch_lost;
            members++;
        } else {
            scratch_lost |= !keeps_scratch(c, insn);
        }
        if (written_registers(insn) & watched) {
            break;
        }
    }
    *ret_group = group;
    return members;
}

static size_t group_slot(unsigned number)
{
    return offsetof(struct block, group_slots) + 8 * number;
}

/* The active group that covers an access and whose host address is at hand, or -1. */
static int find_group(const struct compiler *c, const struct operand_key *key, bool writes)
{
    for (int i = 0; i < GROUPS; i++) {
        const struct group *group = &c->groups[i];
        if (group->is_active && same_registers(group, key) && key->displacement >= group->first &&
            (int64_t)key->displacement + key->size <= group->end && (!writes || group->may_write) &&
            (group->is_kept || c->scratch_group == i)) {
            return i;
        }
    }
    return -1;
}

static void check_group(struct compiler *c, const struct insn_operand *operand,
                        const struct group *group)
{
    struct insn_operand first = *operand;
    uint64_t unused;
    first.mem.displacement = group->first;
    flags_for_check(c);
    compile_address(c, &first, &unused);
    uint32_t site = c->vm->site_count;
    compile_check(c, (unsigned)(group->end - group->first), group->may_write);
    c->vm->sites[site].is_group = true;
}

struct host_place compile_group_access(struct compiler *c, const struct insn_operand *operand,
                                       bool writes, bool may_pair)
{
    struct operand_key key;
    struct group plan;
    if (!operand_key(compiler_insn(c), operand, &key)) {
        c->scratch_group = -1;
        return compile_operand_check(c, operand, writes, may_pair);
    }
    int number = find_group(c, &key, writes);
    if (number >= 0) {
        if (c->scratch_group != number) {
            emit_load(&c->e, SCRATCH, group_slot((unsigned)number));
            c->scratch_group = number;
        }
        return (struct host_place){.offset = key.displacement - c->groups[number].first};
    }
    if (!has_groups(c) || plan_group(c, &key, writes, &plan) == 1) {
        c->scratch_group = -1;
        return compile_operand_check(c, operand, writes, may_pair);
    }
    number = (int)(c->next_group++ % GROUPS);
    check_group(c, operand, &plan);
    c->groups[number] = plan;
    c->scratch_group = number;
    if (plan.is_kept) {
        emit_store(&c->e, SCRATCH, group_slot((unsigned)number));
    }
    return (struct host_place){.offset = key.displacement - plan.first};
}

uint32_t emit_border_exit(struct compiler *c, uint32_t number, enum flags_home flags)
{
    struct emitter *e = &c->e;
    const struct site *check = &c->vm->sites[number];
    uint8_t *other = emit_distance_check(e, 1);
    uint32_t start = emit_offset(e);
    c->flags = flags;
    c->recipe = check->recipe;
    flags_to_block(c);
    c->uncounted = check->uncounted;
    count_instructions(c, 0);
    registers_leave(c);
    align_patch(c, 1);
    uint32_t exit = site_new(c, SITE_PLAIN);
    struct site *site = &c->vm->sites[exit];
    site->offset = check->offset;
    site->target = c->virtual_page + check->offset;
    emit8(e, 0xe9);
    site->patch = emit_offset(e);
    emit32(e, 0); /* not linked: goes on behind itself */
    site->resume = emit_offset(e);
    emit_constant(e, SCRATCH2, exit);
    emit_jump(e, c->vm->stubs.link);
    emit_set_target(e, other);
    return start;
}

void groups_forget(struct compiler *c)
{
    for (unsigned i = 0; i < GROUPS; i++) {
        c->groups[i].is_active = false;
    }
    c->scratch_group = -1;
}

void groups_after(struct compiler *c, const struct insn *insn)
{
    uint16_t written = written_registers(insn);
    for (unsigned i = 0; i < GROUPS; i++) {
        struct group *group = &c->groups[i];
        if (group->is_active && (written & key_registers(group->base, group->index))) {
            group->is_active = false;
        }
    }
}
