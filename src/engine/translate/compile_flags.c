/*
 * Where the guest's arithmetic flags are, and how they get where they are needed.
 *
 * A soft TLB check destroys the flags in the CPU. They must survive even where the guest will
 * overwrite them unread, since a fault shows them in its exception frame. Saving costs five
 * instructions; often a *recipe* does as well: the flags came from an instruction whose operands
 * are still in their registers, so they can be made again, by the unit when it needs them or by
 * C code when the check fails.
 */
#include "engine/translate/compiler.h"
#include "engine/translate/helper.h"

/* Is it a shift by an immediate that is not zero? Such a one leaves no flag as it was. */
static bool is_fixed_shift(const struct insn *insn)
{
    const struct insn_operand *count = &insn->operands[1];
    uint64_t mask = insn->info.operand_width == 64 ? 63 : 31;
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHR:
    case ZYDIS_MNEMONIC_SAR:
        return count->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && (count->imm.value.u & mask);
    default:
        return false;
    }
}

struct flag_effects flag_effects(const struct insn *insn)
{
    const ZydisAccessedFlags *flags = insn->info.cpu_flags;
    struct flag_effects effects = {0};
    if (!flags) {
        return effects;
    }
    uint32_t written = flags->modified | flags->set_0 | flags->set_1 | flags->undefined;
    effects.writes = written & FLAGS_ARITHMETIC;
    effects.reads = (flags->tested & FLAGS_ARITHMETIC) ||
                    (effects.writes && (written & FLAGS_ARITHMETIC) != FLAGS_ARITHMETIC);
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHR:
    case ZYDIS_MNEMONIC_SAR:
    case ZYDIS_MNEMONIC_SHLD:
    case ZYDIS_MNEMONIC_SHRD:
    case ZYDIS_MNEMONIC_ROL:
    case ZYDIS_MNEMONIC_ROR:
    case ZYDIS_MNEMONIC_RCL:
    case ZYDIS_MNEMONIC_RCR:
        effects.reads |= !is_fixed_shift(insn); /* a count of zero leaves all flags unchanged */
        break;
    default:
        break;
    }
    return effects;
}

/* ---- recipes ---- */

/*
 * How a recipe names the value of an operand: the guest register that it is the low part of, the
 * place in the block where a memory operand was kept (if it was), or -1.
 */
static int recipe_name(const struct insn_operand *operand, int kept)
{
    if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY) {
        return kept;
    }
    bool is_low = operand->type == ZYDIS_OPERAND_TYPE_REGISTER && !is_high_byte(operand->reg.value);
    return is_low ? rewrite_gpr(operand->reg.value) : -1;
}

/* The kind of recipe that there is for an instruction if all its operands have names. */
static enum recipe_kind recipe_kind(const struct insn *insn)
{
    if (insn->info.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY) {
        return RECIPE_NONE;
    }
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_CMP:
        return RECIPE_COMPARE;
    case ZYDIS_MNEMONIC_TEST:
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_XOR:
        return RECIPE_TEST;
    case ZYDIS_MNEMONIC_ADD:
        return RECIPE_ADD;
    case ZYDIS_MNEMONIC_SUB:
        return RECIPE_SUBTRACT;
    default:
        return RECIPE_NONE;
    }
}

/* Logic leaves CF = OF = 0, and the others say what the result is. */
static bool is_told_by_result(const struct insn *insn)
{
    return recipe_kind(insn) == RECIPE_TEST && insn->info.mnemonic != ZYDIS_MNEMONIC_TEST;
}

/* XOR or SUB of a register with itself: what it leaves is known when the unit is made. */
static bool is_zeroing(const struct insn *insn)
{
    const struct insn_operand *first = &insn->operands[0], *second = &insn->operands[1];
    return (insn->info.mnemonic == ZYDIS_MNEMONIC_XOR ||
            insn->info.mnemonic == ZYDIS_MNEMONIC_SUB) &&
           first->type == ZYDIS_OPERAND_TYPE_REGISTER &&
           second->type == ZYDIS_OPERAND_TYPE_REGISTER && first->reg.value == second->reg.value;
}

/*
 * How to make the flags of `insn` again after it has completed, if its operands stay. A memory
 * operand's value is at RECIPE_KEPT or behind it, as it is the first or the second, if it is_kept.
 */
static struct recipe recipe_of(const struct insn *insn, bool is_kept)
{
    const struct insn_operand *second = &insn->operands[1];
    bool has_immediate = second->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
    if (is_zeroing(insn)) {
        return (struct recipe){.kind = RECIPE_ZERO, .first = -1, .second = -1};
    }
    struct recipe recipe = {
        .kind = (uint8_t)recipe_kind(insn),
        .width = (uint8_t)insn->info.operand_width,
        .first = (int8_t)recipe_name(&insn->operands[0], is_kept ? RECIPE_KEPT : -1),
        .second = (int8_t)recipe_name(second, is_kept ? RECIPE_KEPT + 1 : -1),
        .immediate = has_immediate ? (int32_t)second->imm.value.s : 0,
    };
    bool is_sum = recipe.kind == RECIPE_ADD || recipe.kind == RECIPE_SUBTRACT;
    if (is_told_by_result(insn)) {
        recipe.second = recipe.first;
    } else if (has_immediate ? is_sum && recipe.immediate == INT32_MIN
                             : recipe.second < 0 || (is_sum && recipe.second == recipe.first)) {
        recipe.kind = RECIPE_NONE;
    }
    if (recipe.first < 0) {
        recipe.kind = RECIPE_NONE;
    }
    return recipe;
}

/* Is the value in the block, and not in a register? */
static bool is_in_block(const struct compiler *c, int name)
{
    return name >= RECIPE_KEPT || is_displaced(c, name);
}

static size_t value_slot(int name)
{
    return name >= RECIPE_KEPT
               ? offsetof(struct block, recipe_kept) + 8 * (size_t)(name - RECIPE_KEPT)
               : gpr_slot((unsigned)name);
}

/* The host register with the recipe's first value: SCRATCH2, if the block has it. */
static unsigned first_value(struct compiler *c)
{
    int name = c->recipe.first;
    if (!is_in_block(c, name)) {
        return home_of(c, name);
    }
    emit_load(&c->e, SCRATCH2, value_slot(name));
    return SCRATCH2;
}

/* The prefixes and the opcode (given for more than 8 bits) of an operation of `width` bits. */
static void emit_start(struct emitter *e, unsigned width, bool is_gs, uint8_t opcode, unsigned reg,
                       unsigned rm)
{
    if (width == 16) {
        emit8(e, 0x66);
    }
    if (is_gs) {
        emit8(e, 0x65);
    }
    if (width == 8 && reg < 8 && rm < 8) {
        emit8(e, 0x40); /* the low bytes of RSP to RDI, not AH to BH */
    }
    emit_rex(e, width == 64, reg, 0, rm);
    emit8(e, width == 8 ? opcode - 1 : opcode);
}

/* op r/m, imm: ADD /0, SUB /5, CMP /7 by 81H; TEST /0 by F7H */
static void emit_immediate(struct compiler *c, uint8_t opcode, unsigned extension, unsigned gpr)
{
    unsigned width = c->recipe.width;
    uint32_t immediate = (uint32_t)c->recipe.immediate;
    emit_start(&c->e, width, false, opcode, 0, gpr);
    emit8(&c->e, (uint8_t)(0xc0 | extension << 3 | (gpr & 7)));
    for (unsigned i = 0; i < (width < 32 ? width : 32); i += 8) {
        emit8(&c->e, (uint8_t)(immediate >> i));
    }
}

/* op gpr, the recipe's second value */
static void emit_second(struct compiler *c, unsigned width, uint8_t opcode, unsigned gpr)
{
    int name = c->recipe.second;
    struct emitter *e = &c->e;
    if (is_in_block(c, name)) {
        emit_start(e, width, true, opcode, gpr, 0);
        emit8(e, (uint8_t)((gpr & 7) << 3 | 4));
        emit8(e, 0x25);
        emit32(e, (uint32_t)value_slot(name));
        return;
    }
    unsigned rm = home_of(c, name);
    emit_start(e, width, false, opcode, gpr, rm);
    emit8(e, (uint8_t)(0xc0 | (gpr & 7) << 3 | (rm & 7)));
}

/* ADD and SUB left the result: SCRATCH2 = the old value, and the operation again. */
static void emit_undone(struct compiler *c, bool is_add)
{
    const struct recipe *recipe = &c->recipe;
    unsigned first = first_value(c);
    if (recipe->second < 0) {
        emit_lea(&c->e, SCRATCH2, first, is_add ? -recipe->immediate : recipe->immediate);
        emit_immediate(c, 0x81, is_add ? 0 : 5, SCRATCH2);
        return;
    }
    if (first != SCRATCH2) {
        emit_move(&c->e, SCRATCH2, first);
    }
    emit_second(c, 64, is_add ? OP_SUB : OP_ADD, SCRATCH2);
    emit_second(c, recipe->width, is_add ? OP_ADD : OP_SUB, SCRATCH2);
}

/* Make the flags in the CPU. Uses SCRATCH2. */
static void emit_recipe(struct compiler *c)
{
    const struct recipe *recipe = &c->recipe;
    unsigned width = recipe->width;
    switch (recipe->kind) {
    case RECIPE_COMPARE:
        if (recipe->second < 0) {
            emit_immediate(c, 0x81, 7, first_value(c));
        } else {
            emit_second(c, width, OP_CMP, first_value(c));
        }
        break;
    case RECIPE_TEST:
        if (recipe->second < 0) {
            emit_immediate(c, 0xf7, 0, first_value(c));
        } else {
            emit_second(c, width, 0x85, first_value(c));
        }
        break;
    case RECIPE_ADD:
    case RECIPE_SUBTRACT:
        emit_undone(c, recipe->kind == RECIPE_ADD);
        break;
    case RECIPE_ZERO: /* xor scratch2, scratch2 */
        emit_registers(&c->e, false, 0x33, SCRATCH2, SCRATCH2);
        break;
    case RECIPE_NONE:
        ASSERT(!"there is a recipe");
    }
}

static uint16_t registers_written(const struct insn *insn)
{
    return insn->registers.written | insn->registers.implicit_written;
}

static bool names(uint16_t registers, int name)
{
    return name >= 0 && name < RECIPE_KEPT && (registers & 1u << name);
}

static bool breaks_recipe(const struct compiler *c, const struct insn *insn)
{
    uint16_t written = registers_written(insn);
    return c->recipe.kind != RECIPE_NONE &&
           (names(written, c->recipe.first) || names(written, c->recipe.second));
}

static void keep_value(struct compiler *c, int gpr, int name)
{
    unsigned host = home_of(c, gpr);
    if (is_displaced(c, gpr)) {
        emit_load(&c->e, SCRATCH2, gpr_slot((unsigned)gpr));
        host = SCRATCH2;
    }
    emit_store(&c->e, host, value_slot(name));
}

/* The instruction is about to change registers of the recipe: keep their values. */
static void recipe_keep(struct compiler *c, const struct insn *insn)
{
    struct recipe *recipe = &c->recipe;
    uint16_t written = registers_written(insn);
    bool are_same = recipe->first == recipe->second;
    if (names(written, recipe->first)) {
        keep_value(c, recipe->first, RECIPE_KEPT);
        recipe->first = RECIPE_KEPT;
        recipe->second = are_same ? RECIPE_KEPT : recipe->second;
    }
    if (names(written, recipe->second)) {
        keep_value(c, recipe->second, RECIPE_KEPT + 1);
        recipe->second = RECIPE_KEPT + 1;
    }
}

/* Does a check come behind the current instruction, before the flags are others? */
static bool is_check_ahead(const struct compiler *c)
{
    for (unsigned i = c->current + 1; i < c->count; i++) {
        const struct insn *insn = &c->insns[i];
        ZydisMnemonic mnemonic = insn->info.mnemonic;
        if (mnemonic == ZYDIS_MNEMONIC_PUSH || mnemonic == ZYDIS_MNEMONIC_POP) {
            return true;
        }
        if (!is_transparent(insn)) {
            return false;
        }
        if (mnemonic != ZYDIS_MNEMONIC_LEA && !is_nothing(insn) && rewrite_memory_operand(insn)) {
            return true;
        }
        if (flag_effects(insn).writes) {
            return false;
        }
    }
    return false;
}

/*
 * Are the flags of before instruction `next` those at the unit's end, or at an instruction that
 * wants them in the block? Then a recipe only puts off that they are saved.
 */
static bool outlive_unit(const struct compiler *c, unsigned next)
{
    for (unsigned i = next; i < c->count; i++) {
        const struct insn *insn = &c->insns[i];
        struct flag_effects effects = flag_effects(insn);
        ZydisMnemonic mnemonic = insn->info.mnemonic;
        if (effects.reads || effects.writes) {
            return false;
        }
        if (!is_transparent(insn) && mnemonic != ZYDIS_MNEMONIC_PUSH &&
            mnemonic != ZYDIS_MNEMONIC_POP) {
            return true;
        }
    }
    return true;
}

void flags_before(struct compiler *c, const struct insn *insn)
{
    bool is_kept = c->flags == FLAGS_RECIPE ||
                   (c->flags == FLAGS_HOST && is_check_ahead(c) && !outlive_unit(c, c->current));
    if (is_kept && breaks_recipe(c, insn) && !flag_effects(insn).writes) {
        recipe_keep(c, insn);
    }
}

bool flags_want_operand(const struct compiler *c, const struct insn *insn)
{
    unsigned other = insn->memory_operand == 0 ? 1 : 0;
    const struct insn_operand *register_or_immediate = &insn->operands[other];
    return compiler_optimizes(c, OPTIMIZE_RECIPES) && recipe_kind(insn) != RECIPE_NONE &&
           !(insn->info.attributes & ZYDIS_ATTRIB_HAS_LOCK) &&
           !(is_told_by_result(insn) && other == 0) &&
           (register_or_immediate->type == ZYDIS_OPERAND_TYPE_IMMEDIATE ||
            recipe_name(register_or_immediate, -1) >= 0) &&
           is_check_ahead(c) && !outlive_unit(c, c->current + 1);
}

size_t flags_operand_slot(const struct insn *insn)
{
    return value_slot(RECIPE_KEPT + insn->memory_operand);
}

void flags_after(struct compiler *c, const struct insn *insn, bool operand_is_kept)
{
    if (flag_effects(insn).writes) {
        c->flags = FLAGS_HOST;
        c->recipe = compiler_optimizes(c, OPTIMIZE_RECIPES) ? recipe_of(insn, operand_is_kept)
                                                            : (struct recipe){.kind = RECIPE_NONE};
    }
}

void recipe_after(struct compiler *c, const struct insn *insn)
{
    if (breaks_recipe(c, insn) && !flag_effects(insn).writes) {
        c->recipe.kind = RECIPE_NONE;
    }
}

/* ---- moving ---- */

void flags_to_block(struct compiler *c)
{
    bool is_recipe = c->flags == FLAGS_RECIPE || c->flags == FLAGS_HOST;
    if (is_recipe && c->recipe.kind == RECIPE_ZERO) {
        emit_constant(&c->e, SCRATCH2, recipe_flags(NULL, NULL, &c->recipe));
        emit8(&c->e, 0x66);
        emit_gs(&c->e, false, OP_STORE, SCRATCH2, offsetof(struct block, saved_flags));
        c->flags = FLAGS_SAVED;
        return;
    }
    if (c->flags == FLAGS_RECIPE) {
        emit_recipe(c);
        c->flags = FLAGS_HOST;
    }
    if (c->flags == FLAGS_HOST) {
        emit_save_flags(&c->e);
    }
    c->flags = FLAGS_SAVED;
}

void flags_to_host(struct compiler *c)
{
    if (c->flags == FLAGS_RECIPE) {
        emit_recipe(c);
        c->flags = FLAGS_HOST;
    }
    if (c->flags == FLAGS_SAVED) {
        struct emitter *e = &c->e;
        emit_move(e, SCRATCH2, RAX);
        emit8(e, 0x66);
        emit_gs(e, false, OP_LOAD, RAX, offsetof(struct block, saved_flags));
        emit8(e, 0x04); /* add al, 7fh: OF as saved */
        emit8(e, 0x7f);
        emit8(e, 0x9e); /* sahf: the others */
        emit_move(e, RAX, SCRATCH2);
        c->flags = FLAGS_BOTH;
    }
}

void flags_for_checks(struct compiler *c, unsigned count)
{
    if (c->flags == FLAGS_HOST && c->recipe.kind != RECIPE_NONE && !outlive_unit(c, c->current)) {
        c->flags = FLAGS_RECIPE;
    }
    if (c->flags != FLAGS_RECIPE) {
        flags_to_block(c);
        return;
    }
    for (unsigned i = 0; i < count; i++) {
        flags_before(c, &c->insns[c->current + i]);
    }
}

void flags_for_check(struct compiler *c)
{
    flags_for_checks(c, 1);
}
