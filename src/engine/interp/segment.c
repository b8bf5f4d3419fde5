/*
 * Segments: descriptor tables, loading of segment registers, and the instructions that look at
 * descriptors (LAR, LSL, VERR, VERW, ARPL). SDM volume 3, chapters 3 and 5.
 */
#include "engine/interp/interp_internal.h"

/* Find the 8 bytes of a descriptor. */
static enum step descriptor_address(struct vcpu *vcpu, uint16_t selector, unsigned size,
                                    enum exception_vector vector, uint32_t external, gva_t *ret_gva)
{
    const struct cpu_state *state = &vcpu->state;
    uint64_t base = state->gdtr.base;
    uint32_t limit = state->gdtr.limit;
    uint32_t index = selector & SELECTOR_INDEX;

    *ret_gva = 0;
    if (selector & SELECTOR_TI) {
        base = state->ldtr.base;
        limit = state->ldtr.limit;
        if (state->ldtr.attributes & SEGMENT_UNUSABLE || !(state->ldtr.attributes & SEGMENT_P)) {
            limit = 0;
        }
    }
    if (index + size - 1 > limit) {
        return raise_error(vcpu, vector, (selector & ~SELECTOR_RPL) | external);
    }
    *ret_gva = base + index;
    if (!is_long(vcpu)) {
        *ret_gva = (uint32_t)*ret_gva;
    }
    return STEP_NEXT;
}

enum step descriptor_read(struct vcpu *vcpu, uint16_t selector, enum exception_vector vector,
                          uint32_t external, uint64_t *ret_descriptor)
{
    gva_t gva;

    TRY(descriptor_address(vcpu, selector, 8, vector, external, &gva));
    return mmu_read(vcpu, gva, ret_descriptor, 8, 0);
}

enum step descriptor_read_high(struct vcpu *vcpu, uint16_t selector, enum exception_vector vector,
                               uint32_t external, uint64_t *ret_high)
{
    gva_t gva;

    TRY(descriptor_address(vcpu, selector, 16, vector, external, &gva));
    return mmu_read(vcpu, gva + 8, ret_high, 8, 0);
}

static enum step descriptor_change(struct vcpu *vcpu, uint16_t selector, uint64_t set,
                                   uint64_t clear)
{
    uint64_t descriptor;
    gva_t gva;

    TRY(descriptor_address(vcpu, selector, 8, EXCEPTION_GP, 0, &gva));
    TRY(mmu_read(vcpu, gva, &descriptor, 8, 0));
    uint64_t changed = (descriptor | set) & ~clear;
    if (changed == descriptor) {
        return STEP_NEXT;
    }
    uint8_t type = (uint8_t)(changed >> 40);
    return mmu_write(vcpu, gva + 5, &type, 1, 0);
}

enum step descriptor_set(struct vcpu *vcpu, uint16_t selector, uint64_t bits)
{
    return descriptor_change(vcpu, selector, bits, 0);
}

enum step descriptor_clear(struct vcpu *vcpu, uint16_t selector, uint64_t bits)
{
    return descriptor_change(vcpu, selector, 0, bits);
}

static unsigned dpl_of(const struct segment *segment)
{
    return (segment->attributes & SEGMENT_DPL) >> SEGMENT_DPL_SHIFT;
}

enum step stack_segment_prepare(struct vcpu *vcpu, uint16_t selector, unsigned cpl,
                                enum exception_vector vector, uint32_t external,
                                struct segment *ret_segment)
{
    const uint16_t mask = SEGMENT_S | SEGMENT_CODE | SEGMENT_WRITABLE;
    uint32_t error_code = (selector & ~SELECTOR_RPL) | external;
    uint64_t descriptor;

    if (selector_is_null(selector)) {
        return raise_error(vcpu, vector, external);
    }
    TRY(descriptor_read(vcpu, selector, vector, external, &descriptor));
    struct segment segment = descriptor_unpack(descriptor, selector);
    if ((selector & SELECTOR_RPL) != cpl || dpl_of(&segment) != cpl ||
        (segment.attributes & mask) != (SEGMENT_S | SEGMENT_WRITABLE)) {
        return raise_error(vcpu, vector, error_code);
    }
    if (!(segment.attributes & SEGMENT_P)) {
        return raise_error(vcpu, EXCEPTION_SS, error_code);
    }
    if (!(segment.attributes & SEGMENT_ACCESSED)) {
        TRY(descriptor_set(vcpu, selector, DESCRIPTOR_ACCESSED));
        segment.attributes |= SEGMENT_ACCESSED;
    }
    *ret_segment = segment;
    return STEP_NEXT;
}

static enum step data_segment_prepare(struct vcpu *vcpu, uint16_t selector, unsigned cpl,
                                      struct segment *ret_segment)
{
    uint32_t error_code = selector & ~SELECTOR_RPL;
    uint64_t descriptor;

    if (selector_is_null(selector)) {
        *ret_segment = segment_null(selector, 0);
        return STEP_NEXT;
    }
    TRY(descriptor_read(vcpu, selector, EXCEPTION_GP, 0, &descriptor));
    struct segment segment = descriptor_unpack(descriptor, selector);
    uint16_t attributes = segment.attributes;
    bool is_code = attributes & SEGMENT_CODE;
    bool conforming = is_code && (attributes & SEGMENT_EXPAND_DOWN);
    unsigned rpl = selector & SELECTOR_RPL;
    if (!(attributes & SEGMENT_S) || (is_code && !(attributes & SEGMENT_WRITABLE)) ||
        (!conforming && (rpl > dpl_of(&segment) || cpl > dpl_of(&segment)))) {
        return raise_error(vcpu, EXCEPTION_GP, error_code);
    }
    if (!(attributes & SEGMENT_P)) {
        return raise_error(vcpu, EXCEPTION_NP, error_code);
    }
    if (!(attributes & SEGMENT_ACCESSED)) {
        TRY(descriptor_set(vcpu, selector, DESCRIPTOR_ACCESSED));
        segment.attributes |= SEGMENT_ACCESSED;
    }
    *ret_segment = segment;
    return STEP_NEXT;
}

enum step segment_prepare(struct vcpu *vcpu, enum segment_register which, uint16_t selector,
                          unsigned cpl, struct segment *ret_segment)
{
    if (which != SS) {
        return data_segment_prepare(vcpu, selector, cpl, ret_segment);
    }
    /* 64-bit code below CPL 3 may have no stack segment. */
    if (selector_is_null(selector) && is_64bit(vcpu) && cpl < 3 &&
        (selector & SELECTOR_RPL) == cpl) {
        *ret_segment = segment_null(selector, cpl);
        return STEP_NEXT;
    }
    return stack_segment_prepare(vcpu, selector, cpl, EXCEPTION_GP, 0, ret_segment);
}

/* In real-address mode a load sets selector and base only: limit and rights stay as they were. */
static void segment_load_real(struct vcpu *vcpu, enum segment_register which, uint16_t selector)
{
    struct segment *segment = &vcpu->state.segment[which];

    if (is_v86(vcpu) || (segment->attributes & SEGMENT_UNUSABLE)) {
        *segment = segment_real(selector, is_v86(vcpu));
    } else {
        segment->selector = selector;
        segment->base = (uint32_t)selector << 4;
    }
}

enum step segment_load(struct vcpu *vcpu, enum segment_register which, uint16_t selector)
{
    struct segment segment;

    if (!has_selectors(vcpu)) {
        segment_load_real(vcpu, which, selector);
        return STEP_NEXT;
    }
    TRY(segment_prepare(vcpu, which, selector, cpl_of(vcpu), &segment));
    vcpu->state.segment[which] = segment;
    return STEP_NEXT;
}

void segments_drop_privileged(struct vcpu *vcpu, unsigned cpl)
{
    static const uint8_t data[] = {ES, DS, FS, GS};

    for (unsigned n = 0; n < ARRAY_SIZE(data); n++) {
        struct segment *segment = &vcpu->state.segment[data[n]];
        bool conforming = (segment->attributes & (SEGMENT_CODE | SEGMENT_EXPAND_DOWN)) ==
                          (SEGMENT_CODE | SEGMENT_EXPAND_DOWN);
        if (!conforming && dpl_of(segment) < cpl && !(segment->attributes & SEGMENT_UNUSABLE)) {
            *segment = segment_null(0, 0);
        }
    }
}

/* LDS, LES, LFS, LGS, LSS: a far pointer in memory, offset first. */
enum step execute_load_far(struct vcpu *vcpu, const struct insn *insn)
{
    enum segment_register which = insn->info.mnemonic == ZYDIS_MNEMONIC_LDS   ? DS
                                  : insn->info.mnemonic == ZYDIS_MNEMONIC_LES ? ES
                                  : insn->info.mnemonic == ZYDIS_MNEMONIC_LFS ? FS
                                  : insn->info.mnemonic == ZYDIS_MNEMONIC_LGS ? GS
                                                                              : SS;
    unsigned size = operand_bytes(insn, 0);
    struct place place;
    uint64_t offset, selector;

    TRY(operand_locate(vcpu, insn, 1, false, &place));
    TRY(linear_read(vcpu, place.gva, &offset, size));
    TRY(linear_read(vcpu, place.gva + size, &selector, 2));
    TRY(segment_load(vcpu, which, (uint16_t)selector));
    return operand_store(vcpu, insn, 0, offset);
}

/* A descriptor for LAR and its kind: no exception, just not visible. Page faults do count. */
static enum step descriptor_look(struct vcpu *vcpu, uint16_t selector, uint64_t *ret_descriptor,
                                 bool *ret_found)
{
    *ret_found = false;
    if (selector_is_null(selector)) {
        return STEP_NEXT;
    }
    enum step step = descriptor_read(vcpu, selector, EXCEPTION_GP, 0, ret_descriptor);
    if (step == STEP_EXCEPTION && vcpu->exception.vector == EXCEPTION_GP) {
        return STEP_NEXT;
    }
    *ret_found = step == STEP_NEXT;
    return step;
}

/* May LAR (or LSL, where gates have no limit) look at this descriptor? SDM volume 2. */
static bool is_visible(const struct vcpu *vcpu, uint64_t descriptor, uint16_t selector,
                       bool for_limit)
{
    struct segment segment = descriptor_unpack(descriptor, selector);
    unsigned dpl = dpl_of(&segment), type = segment.attributes & SEGMENT_TYPE;
    bool permitted = cpl_of(vcpu) <= dpl && (unsigned)(selector & SELECTOR_RPL) <= dpl;

    if (segment.attributes & SEGMENT_S) {
        return permitted || (segment.attributes & (SEGMENT_CODE | SEGMENT_EXPAND_DOWN)) ==
                                (SEGMENT_CODE | SEGMENT_EXPAND_DOWN);
    }
    switch (type) {
    case SYSTEM_LDT:
    case SYSTEM_TSS_AVAILABLE:
    case SYSTEM_TSS_BUSY:
        return permitted;
    case SYSTEM_TSS16_AVAILABLE:
    case SYSTEM_TSS16_BUSY:
        return permitted && !is_long(vcpu);
    case SYSTEM_CALL_GATE:
        return permitted && !for_limit;
    case SYSTEM_CALL_GATE16:
    case SYSTEM_TASK_GATE:
        return permitted && !for_limit && !is_long(vcpu);
    default:
        return false;
    }
}

/* The selector operand of LAR, LSL, VERR, VERW, ARPL; #UD where there are no selectors. */
static enum step load_selector(struct vcpu *vcpu, const struct insn *insn, unsigned n,
                               uint16_t *ret_selector)
{
    uint64_t value;
    struct place place;

    if (!has_selectors(vcpu)) {
        return raise_ud(vcpu);
    }
    TRY(operand_locate(vcpu, insn, n, false, &place));
    place.size = 2;
    TRY(place_load(vcpu, &place, &value));
    *ret_selector = (uint16_t)value;
    return STEP_NEXT;
}

static enum step look_at_descriptor(struct vcpu *vcpu, const struct insn *insn, bool for_limit)
{
    uint64_t descriptor = 0;
    uint16_t selector;
    bool found;

    TRY(load_selector(vcpu, insn, 1, &selector));
    TRY(descriptor_look(vcpu, selector, &descriptor, &found));
    found = found && is_visible(vcpu, descriptor, selector, for_limit);
    set_flag(vcpu, FLAG_ZF, found);
    if (!found) {
        return STEP_NEXT;
    }
    return operand_store(vcpu, insn, 0,
                         for_limit ? descriptor_unpack(descriptor, selector).limit
                                   : descriptor >> 32 & 0xffff00);
}

enum step execute_lar(struct vcpu *vcpu, const struct insn *insn)
{
    return look_at_descriptor(vcpu, insn, false);
}

enum step execute_lsl(struct vcpu *vcpu, const struct insn *insn)
{
    return look_at_descriptor(vcpu, insn, true);
}

static enum step verify(struct vcpu *vcpu, const struct insn *insn, bool write)
{
    uint64_t descriptor = 0;
    uint16_t selector;
    bool found;

    TRY(load_selector(vcpu, insn, 0, &selector));
    TRY(descriptor_look(vcpu, selector, &descriptor, &found));
    uint16_t attributes = descriptor_attributes(descriptor);
    found = found && (attributes & SEGMENT_S) && is_visible(vcpu, descriptor, selector, false);
    if (attributes & SEGMENT_CODE) {
        found = found && !write && (attributes & SEGMENT_WRITABLE);
    } else {
        found = found && (!write || (attributes & SEGMENT_WRITABLE));
    }
    set_flag(vcpu, FLAG_ZF, found);
    return STEP_NEXT;
}

enum step execute_verr(struct vcpu *vcpu, const struct insn *insn)
{
    return verify(vcpu, insn, false);
}

enum step execute_verw(struct vcpu *vcpu, const struct insn *insn)
{
    return verify(vcpu, insn, true);
}

enum step execute_arpl(struct vcpu *vcpu, const struct insn *insn)
{
    struct place place;
    uint64_t target, source;

    if (!has_selectors(vcpu)) {
        return raise_ud(vcpu);
    }
    TRY(operand_locate(vcpu, insn, 0, true, &place));
    TRY(operand_load(vcpu, insn, 1, &source));
    TRY(place_load_for_update(vcpu, &place, &target));
    bool raise = (target & SELECTOR_RPL) < (source & SELECTOR_RPL);
    if (raise) {
        TRY(place_store(vcpu, &place, (target & ~3ull) | (source & SELECTOR_RPL)));
    }
    set_flag(vcpu, FLAG_ZF, raise);
    return STEP_NEXT;
}
