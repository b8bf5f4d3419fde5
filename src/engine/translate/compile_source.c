/*
 * Units that check themselves: at each entry they compare their bytes in guest memory with those
 * that they were made from. They are for pages whose code keeps changing, where watching every
 * store costs more (unit.c decides); nothing has to be told to them.
 *
 * Promises: - The unit ends behind an instruction that may change code: a store, a call of C. So
 *             what a vCPU stores itself counts at its next instruction, and what another one
 *             stores counts at this one's next serializing event at the latest.
 *           - An immediate that differed from one version of the unit to the next is not compared
 *             but read (a *variable*), in one load with its opcode, which is compared: other CPUs
 *             may replace the instruction as a whole. SDM volume 3, 8.1.3.
 */
#include "engine/translate/compiler.h"

/* Longer units would compare more than they run where branches leave them early. */
enum { LONGEST = SOURCE_MAX - 2 * INSN_MAX_LENGTH };

static bool writes_memory(const struct insn *insn)
{
    const struct insn_operand *memory = rewrite_memory_operand(insn);
    return memory && (memory->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE);
}

bool source_ends(const struct compiler *c, const struct insn *insn, unsigned length)
{
    bool is_read = is_transparent(insn) ? !writes_memory(insn)
                                        : insn->info.mnemonic == ZYDIS_MNEMONIC_POP ||
                                              insn->info.mnemonic == ZYDIS_MNEMONIC_LEAVE;
    return c->checks && (!is_read || length > LONGEST);
}

/* ---- variables ---- */

/* A direct near jump or call. */
static bool is_direct(const struct insn *insn)
{
    return insn->info.mnemonic == ZYDIS_MNEMONIC_JMP || insn->info.mnemonic == ZYDIS_MNEMONIC_CALL;
}

/* The opcode of `op r, r/m` for an instruction with an immediate, or 0. */
static uint8_t register_form(const struct insn *insn)
{
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
        return OP_LOAD;
    case ZYDIS_MNEMONIC_ADD:
        return OP_ADD;
    case ZYDIS_MNEMONIC_OR:
        return OP_OR;
    case ZYDIS_MNEMONIC_ADC:
        return 0x13;
    case ZYDIS_MNEMONIC_SBB:
        return 0x1b;
    case ZYDIS_MNEMONIC_AND:
        return 0x23;
    case ZYDIS_MNEMONIC_SUB:
        return OP_SUB;
    case ZYDIS_MNEMONIC_XOR:
        return 0x33;
    case ZYDIS_MNEMONIC_CMP:
        return OP_CMP;
    case ZYDIS_MNEMONIC_TEST:
        return 0x85;
    default:
        return 0;
    }
}

/* Does it fill a register, immediate and all, so that the immediate can be read apart? */
static bool is_full_move(const struct insn *insn)
{
    return insn->info.raw.imm[0].size == 64;
}

/*
 * A variable instruction is read by one load of 8 bytes, so that no other CPU can come between its
 * opcode and its immediate, where a CPU would fetch both at once too. This is how many bytes before
 * it that load begins: some, where it would reach into the next line else.
 */
static unsigned variable_lead(const struct compiler *c, unsigned index)
{
    unsigned start = c->offsets[index] % 64, length = c->insns[index].info.length;
    return start > 56 && start + length <= 64 ? 8 - length : 0;
}

/* Can the immediate of this instruction be read when it runs? */
static bool can_vary(const struct compiler *c, unsigned index)
{
    const struct insn *insn = &c->insns[index];
    unsigned opcode_length = insn->info.raw.imm[0].offset;
    unsigned width = insn->info.operand_width;
    const struct insn_operand *operand = &insn->operands[0];
    if (opcode_length > 4 ||
        (!is_full_move(insn) && (insn->info.length > 8 || insn->info.raw.imm[0].size < 8))) {
        return false;
    }
    if (insn->info.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || insn->info.raw.imm[1].size ||
        rewrite_memory_operand(insn) || (width != 32 && width != 64)) {
        return false;
    }
    if (is_direct(insn)) {
        return insn->info.raw.imm[0].size == 32 && opcode_length == 1 && width == 64;
    }
    int gpr = operand->type == ZYDIS_OPERAND_TYPE_REGISTER ? rewrite_gpr(operand->reg.value) : -1;
    bool has_prefix = insn->info.raw.prefix_count > (insn->info.raw.rex ? 1 : 0);
    return register_form(insn) && gpr >= 0 && !is_displaced(c, gpr) && !has_prefix;
}

/* Which instruction's immediate a byte of the source belongs to, or -1. */
static int immediate_at(const struct compiler *c, unsigned byte)
{
    for (unsigned i = 0; i < c->count; i++) {
        unsigned first =
            c->offsets[i] - c->unit->offset + (unsigned)c->insns[i].info.raw.imm[0].offset;
        if (byte - first < c->insns[i].info.raw.imm[0].size / 8u) {
            return (int)i;
        }
    }
    return -1;
}

/* The number of an instruction's variable, or -1. */
static int variable_of(const struct compiler *c, unsigned index)
{
    for (unsigned v = 0; v < c->variable_count; v++) {
        if (c->variables[v] == index) {
            return (int)v;
        }
    }
    return -1;
}

bool is_variable(const struct compiler *c, unsigned index)
{
    return variable_of(c, index) >= 0;
}

/*
 * Does this unit differ from its last version in immediates only? Those become variables, and the
 * other version is not needed any more.
 */
static void find_variables(struct compiler *c)
{
    struct unit *last = unit_version(c->vm, c->unit);
    const struct source *old = last && last->source ? unit_source(c->vm, last) : NULL;
    if (!old || old->length != c->source.length || c->unit->second_page != NO_PAGE) {
        return;
    }
    for (unsigned byte = 0; byte < old->length; byte++) {
        if (old->mask[byte] && old->bytes[byte] == c->source.bytes[byte]) {
            continue;
        }
        int index = immediate_at(c, byte);
        if (index >= 0 && is_variable(c, (unsigned)index)) {
            continue;
        }
        if (index < 0 || c->variable_count == VARIABLES || !can_vary(c, (unsigned)index)) {
            c->variable_count = 0;
            return;
        }
        c->variables[c->variable_count++] = (uint8_t)index;
    }
    unit_retire(c->vm, last);
}

static void mask_variables(struct compiler *c)
{
    for (unsigned v = 0; v < c->variable_count; v++) {
        const struct insn *insn = &c->insns[c->variables[v]];
        unsigned first = c->offsets[c->variables[v]] - c->unit->offset;
        for (unsigned i = 0; i < insn->info.raw.imm[0].size / 8u; i++) {
            c->source.mask[first + insn->info.raw.imm[0].offset + i] = 0;
        }
    }
}

bool source_init(struct compiler *c)
{
    struct memory *memory = c->vm->config.memory;
    struct source *source = &c->source;
    const struct unit *unit = c->unit;
    unsigned end = c->offsets[c->count] + (c->end_result == DECODE_OK ? 0u : INSN_MAX_LENGTH);
    bool is_across = unit->second_page != NO_PAGE;
    unsigned limit = is_across ? unit->offset + INSN_MAX_LENGTH : PAGE_SIZE;
    uint8_t *first, *second = NULL;
    if (memory_frame(memory, unit->page, false, &first) != FRAME_OK ||
        (is_across && memory_frame(memory, unit->second_page, false, &second) != FRAME_OK)) {
        return false;
    }
    end = end < limit ? end : limit;
    source->first = first + unit->offset;
    source->second = second;
    source->length = (uint8_t)(end - unit->offset);
    source->first_length = (uint8_t)((end < PAGE_SIZE ? end : PAGE_SIZE) - unit->offset);
    ASSERT(source->length <= SOURCE_MAX);
    bytes_copy(source->bytes, c->work->page + unit->offset, source->length);
    bytes_fill(source->mask, 0xff, source->length);
    find_variables(c);
    mask_variables(c);
    return true;
}

/* ---- the comparison ---- */

static void branch_if_stale(struct compiler *c)
{
    emit8(&c->e, 0x0f); /* jne */
    emit8(&c->e, 0x85);
    emit_relative(&c->e, c->stale_exit);
}

/* Compare `size` bytes (a power of two) of the source from `byte` on; SCRATCH is at `base`. */
static void compare(struct compiler *c, unsigned byte, unsigned size, unsigned base)
{
    struct emitter *e = &c->e;
    const uint8_t *bytes = c->source.bytes + byte;
    int32_t at = (int32_t)(byte - base);
    switch (size) {
    case 8:
        emit_constant(e, SCRATCH2, load_le64(bytes));
        emit_memory(e, true, OP_CMP, SCRATCH2, SCRATCH, at);
        break;
    case 4:
        emit_memory(e, false, 0x81, 7, SCRATCH, at);
        emit32(e, load_le32(bytes));
        break;
    case 2:
        emit8(e, 0x66);
        emit_memory(e, false, 0x81, 7, SCRATCH, at);
        emit8(e, bytes[0]);
        emit8(e, bytes[1]);
        break;
    default:
        emit_memory(e, false, 0x80, 7, SCRATCH, at);
        emit8(e, bytes[0]);
        break;
    }
    branch_if_stale(c);
}

/* Compare bytes [first, end) of the source; the last piece may overlap the one before. */
static void compare_run(struct compiler *c, unsigned first, unsigned end, unsigned base)
{
    unsigned size = end - first >= 8 ? 8 : end - first >= 4 ? 4 : end - first >= 2 ? 2 : 1;
    for (unsigned byte = first; byte < end; byte += size) {
        compare(c, byte + size <= end ? byte : end - size, size, base);
    }
}

/* Compare what is not variable of bytes [first, end), which lie at `host`. */
static void compare_page(struct compiler *c, unsigned first, unsigned end, const uint8_t *host)
{
    if (first == end) {
        return;
    }
    emit_constant(&c->e, SCRATCH, (uint64_t)host);
    for (unsigned byte = first; byte < end;) {
        unsigned run = byte;
        while (run < end && c->source.mask[run]) {
            run++;
        }
        if (run > byte) {
            compare_run(c, byte, run, first);
        }
        byte = run > byte ? run : byte + 1;
    }
}

static size_t variable_slot(unsigned number)
{
    return offsetof(struct block, variables) + 8 * number;
}

/* Keep the bytes of a variable instruction in the block, and compare its opcode. */
static void read_variable(struct compiler *c, unsigned number)
{
    struct emitter *e = &c->e;
    unsigned index = c->variables[number];
    const struct insn *insn = &c->insns[index];
    unsigned byte = c->offsets[index] - c->unit->offset;
    unsigned opcode_length = insn->info.raw.imm[0].offset;
    unsigned shift = 32 - 8 * opcode_length, lead = variable_lead(c, index);
    uint8_t opcode[4] = {0};
    if (is_full_move(insn)) {
        emit_memory(e, true, OP_LOAD, SCRATCH2, SCRATCH, (int32_t)(byte + opcode_length));
        emit_store(e, SCRATCH2, variable_slot(number));
        return; /* its opcode is compared with the rest */
    }
    emit_memory(e, true, OP_LOAD, SCRATCH2, SCRATCH, (int32_t)byte - (int32_t)lead);
    emit_store(e, SCRATCH2, variable_slot(number));
    if (lead) {
        emit_gs(e, false, OP_LOAD, SCRATCH2, variable_slot(number) + lead);
    }
    if (shift) {
        emit_registers(e, false, 0xc1, 4, SCRATCH2); /* shl scratch2, shift */
        emit8(e, (uint8_t)shift);
    }
    for (unsigned i = 0; i < opcode_length; i++) {
        opcode[i] = c->source.bytes[byte + i];
    }
    emit_registers(e, false, 0x81, 7, SCRATCH2); /* cmp scratch2, opcode */
    emit32(e, load_le32(opcode) << shift);
    branch_if_stale(c);
}

/* The opcode that was compared with its immediate need not be compared again. */
static void opcodes_are_compared(struct compiler *c)
{
    for (unsigned v = 0; v < c->variable_count; v++) {
        const struct insn *insn = &c->insns[c->variables[v]];
        unsigned first = c->offsets[c->variables[v]] - c->unit->offset;
        for (unsigned i = 0; !is_full_move(insn) && i < insn->info.raw.imm[0].offset; i++) {
            c->source.mask[first + i] = 0;
        }
    }
}

void source_emit_exit(struct compiler *c)
{
    struct emitter *e = &c->e;
    c->flags = FLAGS_SAVED;
    align_patch(c, 1);
    c->stale_exit = emit_offset(e);
    uint32_t site = site_new(c, SITE_STALE);
    emit8(e, 0xe9);
    c->vm->sites[site].patch = emit_offset(e);
    emit32(e, 0);
    c->vm->sites[site].resume = emit_offset(e);
    emit_constant(e, SCRATCH2, site);
    emit_jump(e, c->vm->stubs.stale);
}

void source_emit_check(struct compiler *c)
{
    const struct source *source = &c->source;
    struct source whole = *source;
    if (c->variable_count) {
        emit_constant(&c->e, SCRATCH, (uint64_t)source->first);
        for (unsigned v = 0; v < c->variable_count; v++) {
            read_variable(c, v);
        }
        opcodes_are_compared(c);
    }
    compare_page(c, 0, source->first_length, source->first);
    compare_page(c, source->first_length, source->length, source->second);
    c->source = whole;
}

void source_emit_record(struct compiler *c)
{
    while (emit_offset(&c->e) % alignof(struct source)) {
        emit8(&c->e, 0xcc);
    }
    c->unit->source = emit_offset(&c->e);
    bytes_copy(c->e.at, &c->source, sizeof c->source);
    c->e.at += sizeof c->source;
}

/* ---- instructions with a variable ---- */

bool compile_variable(struct compiler *c)
{
    const struct insn *insn = compiler_insn(c);
    int number = variable_of(c, c->current);
    if (number < 0 || is_direct(insn)) {
        return false;
    }
    struct flag_effects effects = flag_effects(insn);
    int gpr = rewrite_gpr(insn->operands[0].reg.value);
    unsigned host = home_of(c, gpr);
    bool w = insn->info.operand_width == 64;
    unsigned size = insn->info.raw.imm[0].size;
    size_t slot = variable_slot((unsigned)number);
    size_t at = is_full_move(insn)
                    ? slot
                    : slot + variable_lead(c, c->current) + insn->info.raw.imm[0].offset;
    if (effects.reads) {
        flags_to_host(c);
    }
    if (size == 8) { /* movsx scratch2, byte gs:[at] */
        emit8(&c->e, 0x65);
        emit8(&c->e, 0x4c);
        emit8(&c->e, 0x0f);
        emit8(&c->e, 0xbe);
        emit8(&c->e, (SCRATCH2 & 7) << 3 | 4);
        emit8(&c->e, 0x25);
        emit32(&c->e, (uint32_t)at);
    } else if (size == 32 && w) {
        emit_gs(&c->e, true, OP_MOVSXD, SCRATCH2, at);
    }
    if (size == 8 || (size == 32 && w)) {
        emit_store(&c->e, SCRATCH2, slot);
        at = slot;
    }
    emit_gs(&c->e, w, register_form(insn), host, at);
    if (effects.writes) {
        c->flags = FLAGS_HOST;
        c->recipe.kind = RECIPE_NONE; /* which has the immediate */
    }
    return true;
}

bool compile_variable_target(struct compiler *c)
{
    int number = variable_of(c, c->current);
    if (number < 0 || !is_direct(compiler_insn(c))) {
        return false;
    }
    emit_constant(&c->e, SCRATCH, compiler_next_pc(c));
    emit_gs(&c->e, true, OP_MOVSXD, SCRATCH2,
            variable_slot((unsigned)number) + variable_lead(c, c->current) + 1);
    emit_registers(&c->e, true, OP_ADD, SCRATCH, SCRATCH2);
    return true;
}
