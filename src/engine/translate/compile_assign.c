/*
 * Which guest registers live in the block. Usually R9, R10 and R11; hand-written code that uses
 * all registers would wait for their stores and loads in each chain of computation. Units of a hot
 * page displace those that the page uses least, and the guest's R9 to R11 take the host registers
 * that come free.
 *
 * Everything outside of a unit (stubs, C code, links, landing pads) knows the usual registers only:
 * the unit exchanges them where it is entered and left, with moves alone, so the flags stay. Chains
 * between units of a page that displace the same go to an inner entry, without an exchange.
 */
#include "engine/translate/compiler.h"

/*
 * What weighs how much, in uses of a displaced register: a way out and in again, for each register
 * that is exchanged (a store and a load, twice); more for a use in a chain of computation.
 */
enum { CROSSING = 4, CHAIN = 2 };
/* A choice by fewer uses is chance: other functions of the page may become hot later. */
enum { CLEAR = 32 };

/* ---- the choice ---- */

/* The registers of an operand's address. */
static uint16_t address_registers(const struct insn_operand *operand)
{
    int base = rewrite_gpr(operand->mem.base), index = rewrite_gpr(operand->mem.index);
    return (uint16_t)((base >= 0 ? 1u << base : 0) | (index >= 0 ? 1u << index : 0));
}

static void note_operand(struct register_use *use, const struct insn_operand *operand)
{
    if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER && is_high_byte(operand->reg.value)) {
        use->fixed |= 1u << rewrite_gpr(operand->reg.value);
    } else if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY) {
        uint16_t registers = address_registers(operand);
        bool is_encoded = operand->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM;
        use->fixed |= is_encoded ? 0 : registers;
        for (; registers; registers &= registers - 1) {
            use->count[__builtin_ctz(registers)]++;
        }
    }
}

/* Is the unit left here, or entered again behind it? */
static bool crosses(const struct insn *insn)
{
    if (is_end(insn) || insn->info.meta.category == ZYDIS_CATEGORY_CALL) {
        return insn->info.meta.category != ZYDIS_CATEGORY_UNCOND_BR ||
               insn->operands[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE;
    }
    return !is_transparent(insn) && !is_by_mnemonic(insn);
}

static void note_use(struct register_use *use, const struct insn *insn)
{
    const struct insn_registers *registers = &insn->registers;
    uint16_t changed = registers->read & registers->written;
    for (unsigned left = registers->read | registers->written; left; left &= left - 1) {
        unsigned gpr = (unsigned)__builtin_ctz(left);
        use->count[gpr] += changed & 1u << gpr ? 1 + CHAIN : 1;
    }
    for (unsigned i = 0; i < insn->info.operand_count; i++) {
        note_operand(use, &insn->operands[i]);
    }
    use->fixed |= registers->implicit_read | registers->implicit_written;
    use->crossings += crosses(insn);
}

/* RAX carries flags, and LAHF wants it. */
static uint16_t candidates(const struct register_use *use)
{
    return 0xffff & ~(DISPLACED | 1u << RSP | 1u << RAX | use->fixed);
}

/* The one of `from` that is used most (or least). */
static int extreme(const struct register_use *use, uint16_t from, bool most)
{
    int best = -1;
    for (unsigned left = from; left; left &= left - 1) {
        int gpr = __builtin_ctz(left);
        bool is_more = best >= 0 && use->count[gpr] > use->count[best];
        bool is_less = best >= 0 && use->count[gpr] < use->count[best];
        best = best < 0 || (most ? is_more : is_less) ? gpr : best;
    }
    return best;
}

uint16_t registers_choose(const struct register_use *use)
{
    uint16_t displaced = DISPLACED, left = DISPLACED, others = candidates(use);
    while (left && others) {
        int in = extreme(use, left, true), out = extreme(use, others, false);
        if (use->count[in] <= use->count[out] + CROSSING * use->crossings + CLEAR) {
            break;
        }
        displaced ^= (uint16_t)(1u << in | 1u << out);
        left &= ~(1u << in);
        others &= ~(1u << out);
    }
    return displaced;
}

uint16_t registers_choose_any(const struct register_use *use, uint32_t number)
{
    uint16_t displaced = DISPLACED, others = candidates(use);
    unsigned out = number % GPR_COUNT, step = number / GPR_COUNT % 5;
    for (unsigned left = DISPLACED; left && others; left &= left - 1) {
        while (!(others & 1u << out)) {
            out = (out + 1) % GPR_COUNT;
        }
        displaced ^= (uint16_t)(1u << out | 1u << __builtin_ctz(left));
        others &= ~(1u << out);
        out = (out + step) % GPR_COUNT;
    }
    return displaced;
}

/* ---- the unit ---- */

/* The guest register that has the place of a displaced one, other than usual, by their order. */
static unsigned tenant_of(uint16_t displaced, unsigned place)
{
    uint16_t away = displaced & ~DISPLACED, here = DISPLACED & ~displaced;
    while (__builtin_ctz(away) != (int)place) {
        away &= away - 1;
        here &= here - 1;
    }
    return (unsigned)__builtin_ctz(here);
}

static uint32_t cost_of(const struct register_use *use, uint16_t displaced, uint32_t crossings)
{
    uint32_t cost = 0;
    for (unsigned left = displaced; left; left &= left - 1) {
        unsigned gpr = (unsigned)__builtin_ctz(left);
        cost += use->count[gpr] + (DISPLACED & 1u << gpr ? 0 : CROSSING * crossings);
    }
    return cost;
}

/* Is the unit so different from the rest of its page that a way from there to it pays? */
static bool differs(const struct register_use *use, uint16_t displaced)
{
    return cost_of(use, displaced, use->crossings) > cost_of(use, DISPLACED, 0) + 3 * CROSSING;
}

void registers_assign(struct compiler *c)
{
    bool finds_all = c->vm->config.code.hot == HOT_ALL;
    struct unit *unit = c->unit;
    struct page_units *page = page_find(c->vm, unit->page);
    struct register_use use = {0};
    bool is_noted = unit->has_slots || (c->mode & MODE_USER);
    for (unsigned i = 0; i < c->count && is_noted; i++) {
        note_use(unit->has_slots ? &use : &page->use, &c->insns[i]);
    }
    if (finds_all && !page->first) {
        page->displaced = registers_choose_any(&use, c->vm->unit_count);
    }
    bool is_usual = !unit->has_slots || c->checks || (c->mode & MODE_PLAIN) ||
                    !compiler_optimizes(c, OPTIMIZE_REGISTERS);
    is_usual |= use.fixed & page->displaced & ~DISPLACED;
    is_usual |= !finds_all && differs(&use, page->displaced);
    unit->displaced = is_usual ? DISPLACED : page->displaced;
    for (unsigned gpr = 0; gpr < GPR_COUNT; gpr++) {
        c->home[gpr] = (uint8_t)(gpr == RSP ? GUEST_RSP : gpr);
    }
    for (unsigned left = unit->displaced & ~DISPLACED; left; left &= left - 1) {
        unsigned place = (unsigned)__builtin_ctz(left);
        c->home[tenant_of(unit->displaced, place)] = (uint8_t)place;
    }
}

/* ---- the exchange ---- */

static void exchange(struct compiler *c, bool enters)
{
    for (unsigned left = c->unit->displaced & ~DISPLACED; left; left &= left - 1) {
        unsigned place = (unsigned)__builtin_ctz(left);
        unsigned tenant = tenant_of(c->unit->displaced, place);
        emit_store(&c->e, place, gpr_slot(enters ? place : tenant));
        emit_load(&c->e, place, gpr_slot(enters ? tenant : place));
    }
}

void registers_enter(struct compiler *c)
{
    exchange(c, true);
}

void registers_leave(struct compiler *c)
{
    exchange(c, false);
}
