/*
 * Bit strings, bit scans, BMI, byte swaps, CRC32, and the decimal adjustments of old.
 */
#include "engine/interp/flags.h"
#include "engine/interp/interp_internal.h"
#include "x86/cpuid.h"

/* A register as bit index reaches beyond the operand in memory. SDM volume 2, BT. */
enum step bit_place(struct vcpu *vcpu, const struct insn *insn, bool write, struct place *ret_place,
                    unsigned *ret_bit)
{
    const struct insn_operand *operand = &insn->operands[0];
    unsigned size = operand_bytes(insn, 0);
    uint64_t index;

    TRY(operand_load(vcpu, insn, 1, &index));
    *ret_bit = (unsigned)index & (size * 8 - 1);
    if (!operand_is_memory(insn, 0) || insn->operands[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        return operand_locate(vcpu, insn, 0, write, ret_place);
    }
    int64_t elements = (int64_t)sign_extend(index, size) >> (size == 8 ? 6 : size == 4 ? 5 : 4);
    uint64_t offset = operand_offset(vcpu, insn, operand) + (uint64_t)elements * size;
    *ret_place = (struct place){.is_memory = true, .size = (uint8_t)size};
    return linear_address(vcpu, segment_of(operand->mem.segment),
                          offset & size_mask(address_width(insn)), size, write, &ret_place->gva);
}

enum step execute_bt(struct vcpu *vcpu, const struct insn *insn)
{
    struct place place;
    unsigned bit;
    uint64_t value;

    TRY(bit_place(vcpu, insn, false, &place, &bit));
    TRY(place_load(vcpu, &place, &value));
    set_flag(vcpu, FLAG_CF, value >> bit & 1);
    return STEP_NEXT;
}

enum bit_change { BIT_SET, BIT_RESET, BIT_COMPLEMENT };

static enum step bit_change(struct vcpu *vcpu, const struct insn *insn, enum bit_change change)
{
    struct place place;
    unsigned bit;
    uint64_t value;

    TRY(bit_place(vcpu, insn, true, &place, &bit));
    TRY(place_load_for_update(vcpu, &place, &value));
    uint64_t mask = 1ull << bit;
    uint64_t changed = change == BIT_SET     ? value | mask
                       : change == BIT_RESET ? value & ~mask
                                             : value ^ mask;
    TRY(place_store(vcpu, &place, changed));
    set_flag(vcpu, FLAG_CF, value & mask);
    return STEP_NEXT;
}

enum step execute_bts(struct vcpu *vcpu, const struct insn *insn)
{
    return bit_change(vcpu, insn, BIT_SET);
}

enum step execute_btr(struct vcpu *vcpu, const struct insn *insn)
{
    return bit_change(vcpu, insn, BIT_RESET);
}

enum step execute_btc(struct vcpu *vcpu, const struct insn *insn)
{
    return bit_change(vcpu, insn, BIT_COMPLEMENT);
}

/* Two-operand instructions whose result and flags the host computes from the source alone. */
#define SCAN(name)                                                                                 \
    static enum step scan_##name(struct vcpu *vcpu, const struct insn *insn)                       \
    {                                                                                              \
        uint64_t packed = flags_pack(vcpu->state.rflags);                                          \
        uint64_t a, b;                                                                             \
                                                                                                   \
        TRY(operand_load(vcpu, insn, 1, &b));                                                      \
        TRY(operand_load(vcpu, insn, 0, &a));                                                      \
        switch (operand_bytes(insn, 0)) {                                                          \
            FLAGS_WIDE_CASES(packed, #name, FLAGS_ON_A_B, [b] "r"(b))                              \
        }                                                                                          \
        vcpu->state.rflags = flags_unpack(vcpu->state.rflags, packed);                             \
        return operand_store(vcpu, insn, 0, a);                                                    \
    }

SCAN(bsf)
SCAN(bsr)
SCAN(popcnt)
SCAN(lzcnt)
SCAN(tzcnt)

/* A zero source leaves the destination alone, all 64 bits of it. */
static enum step bit_scan(struct vcpu *vcpu, const struct insn *insn, execute_fn *scan)
{
    uint64_t source;

    TRY(operand_load(vcpu, insn, 1, &source));
    if (source == 0) {
        uint64_t packed = flags_pack(vcpu->state.rflags);
        __asm__(FLAGS_IN "bsfq %[b], %[b]" FLAGS_OUT : "+a"(packed), [b] "+r"(source) : : "cc");
        vcpu->state.rflags = flags_unpack(vcpu->state.rflags, packed);
        return STEP_NEXT;
    }
    return scan(vcpu, insn);
}

enum step execute_bsf(struct vcpu *vcpu, const struct insn *insn)
{
    return bit_scan(vcpu, insn, scan_bsf);
}

enum step execute_bsr(struct vcpu *vcpu, const struct insn *insn)
{
    return bit_scan(vcpu, insn, scan_bsr);
}

enum step execute_popcnt(struct vcpu *vcpu, const struct insn *insn)
{
    return scan_popcnt(vcpu, insn);
}

/* Without the feature the prefix is ignored, and the bytes mean BSR and BSF. */
enum step execute_lzcnt(struct vcpu *vcpu, const struct insn *insn)
{
    return cpuid_has(vcpu->cpuid, FEATURE_LZCNT) ? scan_lzcnt(vcpu, insn)
                                                 : bit_scan(vcpu, insn, scan_bsr);
}

enum step execute_tzcnt(struct vcpu *vcpu, const struct insn *insn)
{
    return cpuid_has(vcpu->cpuid, FEATURE_BMI1) ? scan_tzcnt(vcpu, insn)
                                                : bit_scan(vcpu, insn, scan_bsf);
}

enum step execute_bswap(struct vcpu *vcpu, const struct insn *insn)
{
    uint64_t value;

    TRY(operand_load(vcpu, insn, 0, &value));
    switch (operand_bytes(insn, 0)) {
    case 8:
        return operand_store(vcpu, insn, 0, __builtin_bswap64(value));
    case 4:
        return operand_store(vcpu, insn, 0, __builtin_bswap32((uint32_t)value));
    default: /* undefined by the manual; CPUs clear the word */
        return operand_store(vcpu, insn, 0, 0);
    }
}

enum step execute_movbe(struct vcpu *vcpu, const struct insn *insn)
{
    uint64_t value;

    TRY(operand_load(vcpu, insn, 1, &value));
    switch (operand_bytes(insn, 0)) {
    case 2:
        return operand_store(vcpu, insn, 0, __builtin_bswap16((uint16_t)value));
    case 4:
        return operand_store(vcpu, insn, 0, __builtin_bswap32((uint32_t)value));
    default:
        return operand_store(vcpu, insn, 0, __builtin_bswap64(value));
    }
}

/* CRC32 with the polynomial 11EDC6F41H, bit-reflected: 82F63B78H. */
enum step execute_crc32(struct vcpu *vcpu, const struct insn *insn)
{
    unsigned size = operand_bytes(insn, 1);
    uint64_t crc, value;

    TRY(operand_load(vcpu, insn, 0, &crc));
    TRY(operand_load(vcpu, insn, 1, &value));
    uint32_t remainder = (uint32_t)crc;
    for (unsigned i = 0; i < size; i++) {
        remainder ^= (value >> (i * 8)) & 0xff;
        for (unsigned bit = 0; bit < 8; bit++) {
            remainder = remainder >> 1 ^ (remainder & 1 ? 0x82f63b78u : 0);
        }
    }
    return operand_store(vcpu, insn, 0, remainder);
}

/* SF and ZF of a result, CF as given, OF cleared (and AF, PF, as CPUs do): the BMI instructions. */
static void bmi_flags(struct vcpu *vcpu, uint64_t result, unsigned size, bool carry)
{
    set_flag(vcpu, FLAG_CF, carry);
    set_flag(vcpu, FLAG_OF | FLAG_AF | FLAG_PF, false);
    set_flag(vcpu, FLAG_SF, result >> (size * 8 - 1) & 1);
    set_flag(vcpu, FLAG_ZF, (result & size_mask(size)) == 0);
}

enum step execute_andn(struct vcpu *vcpu, const struct insn *insn)
{
    unsigned size = operand_bytes(insn, 0);
    uint64_t a, b;

    TRY(operand_load(vcpu, insn, 1, &a));
    TRY(operand_load(vcpu, insn, 2, &b));
    bmi_flags(vcpu, ~a & b, size, false);
    return operand_store(vcpu, insn, 0, ~a & b);
}

enum step execute_bls(struct vcpu *vcpu, const struct insn *insn)
{
    unsigned size = operand_bytes(insn, 0);
    uint64_t source, result;
    bool carry;

    TRY(operand_load(vcpu, insn, 1, &source));
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_BLSI:
        result = source & -source;
        carry = source != 0;
        break;
    case ZYDIS_MNEMONIC_BLSR:
        result = source & (source - 1);
        carry = source == 0;
        break;
    default: /* BLSMSK */
        result = source ^ (source - 1);
        carry = source == 0;
        break;
    }
    bmi_flags(vcpu, result, size, carry);
    return operand_store(vcpu, insn, 0, result);
}

enum step execute_bextr(struct vcpu *vcpu, const struct insn *insn)
{
    unsigned size = operand_bytes(insn, 0);
    uint64_t source, control;

    TRY(operand_load(vcpu, insn, 1, &source));
    TRY(operand_load(vcpu, insn, 2, &control));
    unsigned start = control & 0xff, length = control >> 8 & 0xff;
    uint64_t result = start < 64 ? source >> start : 0;
    if (length < 64) {
        result &= (1ull << length) - 1;
    }
    bmi_flags(vcpu, result, size, false);
    return operand_store(vcpu, insn, 0, result);
}

enum step execute_bzhi(struct vcpu *vcpu, const struct insn *insn)
{
    unsigned size = operand_bytes(insn, 0);
    uint64_t source, index;

    TRY(operand_load(vcpu, insn, 1, &source));
    TRY(operand_load(vcpu, insn, 2, &index));
    index &= 0xff;
    bool beyond = index > size * 8 - 1;
    uint64_t result = beyond ? source : source & ((1ull << index) - 1);
    bmi_flags(vcpu, result, size, beyond);
    return operand_store(vcpu, insn, 0, result);
}

/* PDEP: the low bits of the first source go to the places that the mask names; PEXT: back. */
enum step execute_pdep(struct vcpu *vcpu, const struct insn *insn)
{
    uint64_t source, mask, result = 0;

    TRY(operand_load(vcpu, insn, 1, &source));
    TRY(operand_load(vcpu, insn, 2, &mask));
    for (; mask; mask &= mask - 1, source >>= 1) {
        if (source & 1) {
            result |= mask & -mask;
        }
    }
    return operand_store(vcpu, insn, 0, result);
}

enum step execute_pext(struct vcpu *vcpu, const struct insn *insn)
{
    uint64_t source, mask, result = 0;

    TRY(operand_load(vcpu, insn, 1, &source));
    TRY(operand_load(vcpu, insn, 2, &mask));
    for (unsigned n = 0; mask; mask &= mask - 1, n++) {
        if (source & mask & -mask) {
            result |= 1ull << n;
        }
    }
    return operand_store(vcpu, insn, 0, result);
}
