/*
 * Decimal adjustments (AAA, AAD, AAM, AAS, DAA, DAS): not in 64-bit mode. SDM volume 2.
 */
#include "engine/interp/interp_internal.h"

static void result_flags(struct vcpu *vcpu, uint8_t value)
{
    set_flag(vcpu, FLAG_SF, value & 0x80);
    set_flag(vcpu, FLAG_ZF, value == 0);
    set_flag(vcpu, FLAG_PF, !__builtin_parity(value));
}

static bool adjusts(const struct vcpu *vcpu, uint8_t al)
{
    return (al & 15) > 9 || (vcpu->state.rflags & FLAG_AF);
}

static enum step adjust_ascii(struct vcpu *vcpu, int direction)
{
    uint16_t ax = (uint16_t)vcpu->state.gpr[RAX];
    bool adjust = adjusts(vcpu, (uint8_t)ax);

    if (adjust) {
        ax = (uint16_t)(ax + direction * 0x106);
    }
    set_flag(vcpu, FLAG_AF | FLAG_CF, adjust);
    set_flag(vcpu, FLAG_OF, false);
    ax &= 0xff0f;
    result_flags(vcpu, (uint8_t)ax);
    gpr_store(vcpu, RAX, 2, ax);
    return STEP_NEXT;
}

enum step execute_aaa(struct vcpu *vcpu, const struct insn *insn)
{
    return adjust_ascii(vcpu, 1);
}

enum step execute_aas(struct vcpu *vcpu, const struct insn *insn)
{
    return adjust_ascii(vcpu, -1);
}

static void logic_flags(struct vcpu *vcpu, uint8_t value)
{
    set_flag(vcpu, FLAG_OF | FLAG_CF | FLAG_AF, false);
    result_flags(vcpu, value);
}

enum step execute_aam(struct vcpu *vcpu, const struct insn *insn)
{
    uint8_t base = (uint8_t)insn->operands[0].imm.value.u;
    uint8_t al = (uint8_t)vcpu->state.gpr[RAX];

    if (base == 0) {
        return raise_exception(vcpu, EXCEPTION_DE);
    }
    gpr_store(vcpu, RAX, 2, (uint64_t)(al / base) << 8 | al % base);
    logic_flags(vcpu, al % base);
    return STEP_NEXT;
}

enum step execute_aad(struct vcpu *vcpu, const struct insn *insn)
{
    uint8_t base = (uint8_t)insn->operands[0].imm.value.u;
    uint16_t ax = (uint16_t)vcpu->state.gpr[RAX];
    uint8_t al = (uint8_t)(ax + (ax >> 8) * base);

    gpr_store(vcpu, RAX, 2, al);
    logic_flags(vcpu, al);
    return STEP_NEXT;
}

static enum step adjust_packed(struct vcpu *vcpu, int direction)
{
    uint8_t old = (uint8_t)vcpu->state.gpr[RAX];
    bool carry = vcpu->state.rflags & FLAG_CF;
    bool low = adjusts(vcpu, old);
    bool high = old > 0x99 || carry;
    uint8_t al = old;

    if (low) {
        al = (uint8_t)(al + direction * 6);
    }
    if (high) {
        al = (uint8_t)(al + direction * 0x60);
    }
    /* DAS: a borrow of the low adjustment also counts. */
    bool borrow = direction < 0 && low && old < 6;
    set_flag(vcpu, FLAG_AF, low);
    set_flag(vcpu, FLAG_CF, high || borrow);
    set_flag(vcpu, FLAG_OF, false);
    gpr_store(vcpu, RAX, 1, al);
    result_flags(vcpu, al);
    return STEP_NEXT;
}

enum step execute_daa(struct vcpu *vcpu, const struct insn *insn)
{
    return adjust_packed(vcpu, 1);
}

enum step execute_das(struct vcpu *vcpu, const struct insn *insn)
{
    return adjust_packed(vcpu, -1);
}
