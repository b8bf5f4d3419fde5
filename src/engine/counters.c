/*
 * Forms of slow instructions: how they are packed, and where each is counted.
 */
#include "engine/counters.h"

#include "x86/decode.h"

static enum slow_operand operand_kind(const struct insn_operand *operand)
{
    switch (operand->type) {
    case ZYDIS_OPERAND_TYPE_MEMORY:
        return SLOW_OPERAND_MEMORY;
    case ZYDIS_OPERAND_TYPE_REGISTER:
        break;
    default:
        return SLOW_OPERAND_IMMEDIATE;
    }
    ZydisRegister reg = operand->reg.value;
    if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_R15) {
        return SLOW_OPERAND_REGISTER;
    }
    if (reg >= ZYDIS_REGISTER_ES && reg <= ZYDIS_REGISTER_GS) {
        return SLOW_OPERAND_SEGMENT;
    }
    if (reg >= ZYDIS_REGISTER_CR0 && reg <= ZYDIS_REGISTER_CR15) {
        return SLOW_OPERAND_CONTROL;
    }
    if (reg >= ZYDIS_REGISTER_DR0 && reg <= ZYDIS_REGISTER_DR15) {
        return SLOW_OPERAND_DEBUG;
    }
    return SLOW_OPERAND_VECTOR;
}

static uint64_t operand_form(const struct insn_operand *operand)
{
    unsigned bytes = operand->size / 8, log2 = 0;
    while (log2 < 7 && (1u << log2) < bytes) {
        log2++;
    }
    return (uint64_t)operand_kind(operand) | log2 << 3;
}

uint64_t slow_form_of(const struct insn *insn)
{
    uint64_t form = insn->info.mnemonic;
    for (unsigned i = 0; i < SLOW_FORM_OPERANDS && i < insn->info.operand_count_visible; i++) {
        form |= operand_form(&insn->operands[i]) << (SLOW_FORM_SHIFT + SLOW_FORM_BITS * i);
    }
    if (insn->info.attributes & ZYDIS_ATTRIB_HAS_LOCK) {
        form |= 1ull << SLOW_FORM_LOCK;
    }
    if (insn->info.attributes &
        (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) {
        form |= 1ull << SLOW_FORM_REPEAT;
    }
    return form;
}

unsigned slow_form_find(struct engine_counters *counters, uint64_t form)
{
    enum { LAST = SLOW_FORMS - 1, TRIES = 16 };
    struct slow_form *forms = counters->slow_forms;
    unsigned start = (unsigned)(form * 0x9e3779b97f4a7c15ull >> 32) % LAST;
    for (unsigned i = 0; i < TRIES; i++) {
        unsigned at = (start + i) % LAST;
        if (forms[at].form == 0) {
            __atomic_store_n(&forms[at].form, form, __ATOMIC_RELAXED);
        }
        if (forms[at].form == form) {
            return at;
        }
    }
    __atomic_store_n(&forms[LAST].form, 1ull << SLOW_FORM_OTHER, __ATOMIC_RELAXED);
    return LAST;
}
