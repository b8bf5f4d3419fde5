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
        effects.reads = true; /* a count of zero leaves all flags unchanged */
        break;
    default:
        break;
    }
    return effects;
}

/* ---- recipes ---- */

/* The host register of a guest register that a recipe may name, or -1. */
static int recipe_register(const struct insn_operand *operand)
{
    int gpr = operand->type == ZYDIS_OPERAND_TYPE_REGISTER ? rewrite_gpr(operand->reg.value) : -1;
    return is_displaced(gpr) ? -1 : gpr;
}

/* How to make the flags of `insn` again after it has completed, if its operands stay. */
static struct recipe recipe_of(const struct insn *insn)
{
    const struct insn_operand *first = &insn->operands[0], *second = &insn->operands[1];
    int gpr = recipe_register(first);
    struct recipe recipe = {.width = (uint8_t)insn->info.operand_width, .second = -1};
    if (gpr < 0 || insn->info.operand_width < 32 ||
        insn->info.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY) {
        return recipe;
    }
    recipe.first = (int8_t)gpr;
    bool has_immediate = second->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
    recipe.immediate = has_immediate ? (int32_t)second->imm.value.s : 0;
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_CMP:
    case ZYDIS_MNEMONIC_TEST:
        recipe.second = (int8_t)(has_immediate ? -1 : recipe_register(second));
        if (has_immediate || recipe.second >= 0) {
            recipe.kind = insn->info.mnemonic == ZYDIS_MNEMONIC_CMP ? RECIPE_COMPARE : RECIPE_TEST;
        }
        break;
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_XOR: /* CF = OF = 0, the others from the result */
        recipe.kind = RECIPE_TEST;
        recipe.second = recipe.first;
        break;
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_SUB:
        recipe.second = (int8_t)(has_immediate ? -1 : recipe_register(second));
        if (has_immediate ? recipe.immediate != INT32_MIN
                          : recipe.second >= 0 && recipe.second != recipe.first) {
            recipe.kind = insn->info.mnemonic == ZYDIS_MNEMONIC_ADD ? RECIPE_ADD : RECIPE_SUBTRACT;
        }
        break;
    default:
        break;
    }
    return recipe;
}

static unsigned recipe_host(int gpr)
{
    return gpr == RSP ? GUEST_RSP : (unsigned)gpr;
}

static size_t kept_slot(int name)
{
    return offsetof(struct block, recipe_kept) + 8 * (size_t)(name - RECIPE_KEPT);
}

/* The host register with the recipe's first value: SCRATCH2, if it was kept. */
static unsigned first_value(struct compiler *c)
{
    int name = c->recipe.first;
    if (name < RECIPE_KEPT) {
        return recipe_host(name);
    }
    emit_load(&c->e, SCRATCH2, kept_slot(name));
    return SCRATCH2;
}

/* op r/m, imm32: ADD /0, SUB /5, CMP /7 by 81H; TEST /0 by F7H */
static void emit_immediate(struct compiler *c, uint8_t opcode, unsigned extension, unsigned gpr)
{
    emit_registers(&c->e, c->recipe.width == 64, opcode, extension, gpr);
    emit32(&c->e, (uint32_t)c->recipe.immediate);
}

/* op gpr, the recipe's second register or kept value */
static void emit_second(struct compiler *c, bool w, uint8_t opcode, unsigned gpr)
{
    int name = c->recipe.second;
    if (name >= RECIPE_KEPT) {
        emit_gs(&c->e, w, opcode, gpr, kept_slot(name));
        return;
    }
    emit_registers(&c->e, w, opcode, gpr, recipe_host(name));
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
    emit_second(c, true, is_add ? OP_SUB : OP_ADD, SCRATCH2);
    emit_second(c, recipe->width == 64, is_add ? OP_ADD : OP_SUB, SCRATCH2);
}

/* Make the flags in the CPU. Uses SCRATCH2. */
static void emit_recipe(struct compiler *c)
{
    const struct recipe *recipe = &c->recipe;
    bool w = recipe->width == 64;
    switch (recipe->kind) {
    case RECIPE_COMPARE:
        if (recipe->second < 0) {
            emit_immediate(c, 0x81, 7, first_value(c));
        } else {
            emit_second(c, w, OP_CMP, first_value(c));
        }
        break;
    case RECIPE_TEST:
        if (recipe->second < 0) {
            emit_immediate(c, 0xf7, 0, first_value(c));
        } else {
            emit_second(c, w, 0x85, first_value(c));
        }
        break;
    case RECIPE_ADD:
    case RECIPE_SUBTRACT:
        emit_undone(c, recipe->kind == RECIPE_ADD);
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

/* The instruction is about to change registers of the recipe: keep their values. */
static void recipe_keep(struct compiler *c, const struct insn *insn)
{
    struct recipe *recipe = &c->recipe;
    uint16_t written = registers_written(insn);
    bool are_same = recipe->first == recipe->second;
    if (names(written, recipe->first)) {
        emit_store(&c->e, recipe_host(recipe->first), kept_slot(RECIPE_KEPT));
        recipe->first = RECIPE_KEPT;
        recipe->second = are_same ? RECIPE_KEPT : recipe->second;
    }
    if (names(written, recipe->second)) {
        emit_store(&c->e, recipe_host(recipe->second), kept_slot(RECIPE_KEPT + 1));
        recipe->second = RECIPE_KEPT + 1;
    }
}

void flags_before(struct compiler *c, const struct insn *insn)
{
    if (c->flags == FLAGS_RECIPE && breaks_recipe(c, insn) && !flag_effects(insn).writes) {
        recipe_keep(c, insn);
    }
}

void flags_after(struct compiler *c, const struct insn *insn)
{
    if (flag_effects(insn).writes) {
        c->flags = FLAGS_HOST;
        c->recipe = recipe_of(insn);
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
    if (c->flags == FLAGS_HOST && c->recipe.kind != RECIPE_NONE) {
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
