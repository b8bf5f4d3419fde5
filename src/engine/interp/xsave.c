/*
 * FXSAVE, FXRSTOR and the XSAVE family, in C on the vCPU's own area, so that the guest sees the
 * components and the layout of its CPU model and never those of the host. SDM volume 1, chapter
 * 13, and volume 2.
 */
#include "engine/interp/interp_internal.h"
#include "engine/interp/vector_state.h"
#include "x86/cpuid.h"

#define XCOMP_COMPACTED (1ull << 63)

enum { FXSAVE_SIZE = 512, FXSAVE_WRITTEN = XSAVE_XMM_END, COMPONENT_LAST = 7 };

static enum step area_locate(struct vcpu *vcpu, const struct insn *insn, unsigned size,
                             unsigned alignment, bool write, gva_t *ret_gva)
{
    const struct insn_operand *operand = &insn->operands[0];

    TRY(linear_address(vcpu, segment_of(operand->mem.segment), operand_offset(vcpu, insn, operand),
                       size, write, ret_gva));
    if (*ret_gva & (alignment - 1)) {
        TRY(check_alignment(vcpu, *ret_gva, alignment));
        return raise_gp(vcpu);
    }
    return write ? mmu_check_write(vcpu, *ret_gva, size, user_access(vcpu)) : STEP_NEXT;
}

/* Without REX.W the instruction and data pointers are 32 bits wide, beside zero selectors. */
static bool has_wide_pointers(const struct insn *insn)
{
    return operand_width(insn) == 8;
}

static void narrow_pointers(uint8_t *area)
{
    store_le32(area + XSAVE_FIP + 4, 0);
    store_le32(area + XSAVE_FDP + 4, 0);
}

enum step execute_fxsave(struct vcpu *vcpu, const struct insn *insn)
{
    uint8_t area[FXSAVE_SIZE];
    gva_t gva;

    if (vcpu->state.cr0 & (CR0_EM | CR0_TS)) {
        return raise_exception(vcpu, EXCEPTION_NM);
    }
    TRY(area_locate(vcpu, insn, FXSAVE_SIZE, 16, true, &gva));
    xsave_materialize(&vcpu->state, XCR0_X87 | XCR0_SSE);
    bytes_copy(area, vcpu->state.xsave, sizeof area);
    store_le32(area + XSAVE_MXCSR_MASK, MXCSR_WRITABLE);
    if (!has_wide_pointers(insn)) {
        narrow_pointers(area);
    }
    unsigned size = is_64bit(vcpu) ? FXSAVE_WRITTEN : XSAVE_XMM + 8 * 16;
    return mmu_write(vcpu, gva, area, size, user_access(vcpu));
}

enum step execute_fxrstor(struct vcpu *vcpu, const struct insn *insn)
{
    uint8_t *xsave = vcpu->state.xsave;
    uint8_t area[FXSAVE_SIZE];
    gva_t gva;

    if (vcpu->state.cr0 & (CR0_EM | CR0_TS)) {
        return raise_exception(vcpu, EXCEPTION_NM);
    }
    TRY(area_locate(vcpu, insn, FXSAVE_SIZE, 16, false, &gva));
    TRY(mmu_read(vcpu, gva, area, sizeof area, user_access(vcpu)));
    if (load_le32(area + XSAVE_MXCSR) & ~(uint32_t)MXCSR_WRITABLE) {
        return raise_gp(vcpu);
    }
    if (!has_wide_pointers(insn)) {
        narrow_pointers(area);
    }
    xsave_materialize(&vcpu->state, XCR0_SSE);
    unsigned size = is_64bit(vcpu) ? FXSAVE_WRITTEN : XSAVE_XMM + 8 * 16;
    bytes_copy(xsave, area, size);
    store_le32(xsave + XSAVE_MXCSR_MASK, MXCSR_WRITABLE);
    store_le64(xsave + XSAVE_XSTATE_BV, xsave_in_use(&vcpu->state) | XCR0_X87 | XCR0_SSE);
    native_settle(vcpu);
    return STEP_NEXT;
}

static enum step check_xsave(struct vcpu *vcpu)
{
    if (!(vcpu->state.cr4 & CR4_OSXSAVE)) {
        return raise_ud(vcpu);
    }
    return vcpu->state.cr0 & CR0_TS ? raise_exception(vcpu, EXCEPTION_NM) : STEP_NEXT;
}

/* The components that the instruction names: EDX:EAX and XCR0. */
static uint64_t requested(const struct vcpu *vcpu)
{
    return ((uint32_t)vcpu->state.gpr[RAX] | vcpu->state.gpr[RDX] << 32) & vcpu->state.xcr0;
}

/* XSAVEC lays out the components in `mask` one behind the other; leaf 0DH says which on 64. */
static unsigned component_offset(const struct vcpu *vcpu, unsigned number, uint64_t mask,
                                 bool compacted)
{
    unsigned offset = XSAVE_HEADER_END;
    struct cpuid_result leaf;

    if (!compacted) {
        return xsave_component(number).offset;
    }
    for (unsigned n = 2; n <= number; n++) {
        if (!(mask >> n & 1)) {
            continue;
        }
        cpuid_query(vcpu->cpuid, vcpu->index, 0xd, n, vcpu->state.cr4, vcpu->state.xcr0, &leaf);
        if (leaf.ecx & 2) {
            offset = (unsigned)align_up(offset, 64);
        }
        if (n < number) {
            offset += xsave_component(n).size;
        }
    }
    return offset;
}

static unsigned area_size(const struct vcpu *vcpu, uint64_t mask, bool compacted)
{
    unsigned end = XSAVE_HEADER_END;

    for (unsigned n = 2; n <= COMPONENT_LAST; n++) {
        if (mask >> n & 1) {
            unsigned offset = component_offset(vcpu, n, mask, compacted);
            unsigned component_end = offset + xsave_component(n).size;
            end = component_end > end ? component_end : end;
        }
    }
    return end;
}

/* The parts of the legacy region: x87, MXCSR with its mask, XMM. All checks are done. */
static enum step save_legacy(struct vcpu *vcpu, const struct insn *insn, gva_t gva,
                             uint64_t components, bool with_mxcsr)
{
    uint32_t access = user_access(vcpu);
    uint8_t *xsave = vcpu->state.xsave;

    if (components & XCR0_X87) {
        uint8_t head[XSAVE_MXCSR];
        bytes_copy(head, xsave, sizeof head);
        if (!has_wide_pointers(insn)) {
            narrow_pointers(head);
        }
        TRY(mmu_write(vcpu, gva, head, sizeof head, access));
        TRY(mmu_write(vcpu, gva + XSAVE_ST, xsave + XSAVE_ST, XSAVE_XMM - XSAVE_ST, access));
    }
    if (with_mxcsr) {
        uint64_t mxcsr = load_le32(xsave + XSAVE_MXCSR) | (uint64_t)MXCSR_WRITABLE << 32;
        TRY(mmu_write(vcpu, gva + XSAVE_MXCSR, &mxcsr, 8, access));
    }
    if (components & XCR0_SSE) {
        unsigned size = is_64bit(vcpu) ? XSAVE_XMM_END - XSAVE_XMM : 8 * 16;
        TRY(mmu_write(vcpu, gva + XSAVE_XMM, xsave + XSAVE_XMM, size, access));
    }
    return STEP_NEXT;
}

static enum step save_extended(struct vcpu *vcpu, gva_t gva, uint64_t mask, uint64_t components,
                               bool compacted)
{
    for (unsigned n = 2; n <= COMPONENT_LAST; n++) {
        if (components >> n & 1) {
            struct xsave_component component = xsave_component(n);
            TRY(mmu_write(vcpu, gva + component_offset(vcpu, n, mask, compacted),
                          vcpu->state.xsave + component.offset, component.size, user_access(vcpu)));
        }
    }
    return STEP_NEXT;
}

/* XSAVE and XSAVEOPT; the latter leaves out what is in its initial state. */
enum step execute_xsave(struct vcpu *vcpu, const struct insn *insn)
{
    bool optimized = insn->info.mnemonic == ZYDIS_MNEMONIC_XSAVEOPT ||
                     insn->info.mnemonic == ZYDIS_MNEMONIC_XSAVEOPT64;
    uint64_t mask = requested(vcpu), in_use = xsave_in_use(&vcpu->state);
    uint64_t header;
    gva_t gva;

    TRY(check_xsave(vcpu));
    TRY(area_locate(vcpu, insn, area_size(vcpu, mask, false), 64, true, &gva));
    TRY(mmu_read(vcpu, gva + XSAVE_XSTATE_BV, &header, 8, user_access(vcpu)));
    xsave_materialize(&vcpu->state, mask);
    uint64_t components = optimized ? mask & in_use : mask;
    TRY(save_legacy(vcpu, insn, gva, components, mask & (XCR0_SSE | XCR0_AVX)));
    TRY(save_extended(vcpu, gva, mask, components, false));
    header = (header & ~mask) | (in_use & mask);
    return mmu_write(vcpu, gva + XSAVE_XSTATE_BV, &header, 8, user_access(vcpu));
}

enum step execute_xsavec(struct vcpu *vcpu, const struct insn *insn)
{
    uint64_t mask = requested(vcpu), in_use = xsave_in_use(&vcpu->state);
    uint64_t header[2];
    gva_t gva;

    TRY(check_xsave(vcpu));
    TRY(area_locate(vcpu, insn, area_size(vcpu, mask, true), 64, true, &gva));
    xsave_materialize(&vcpu->state, mask);
    if (load_le32(vcpu->state.xsave + XSAVE_MXCSR) != MXCSR_INITIAL) {
        in_use |= XCR0_SSE;
    }
    TRY(save_legacy(vcpu, insn, gva, mask & in_use, mask & in_use & XCR0_SSE));
    TRY(save_extended(vcpu, gva, mask, mask & in_use, true));
    header[0] = mask & in_use;
    header[1] = mask | XCOMP_COMPACTED;
    return mmu_write(vcpu, gva + XSAVE_XSTATE_BV, header, 16, user_access(vcpu));
}

/* The header of an area to restore. SDM volume 1, 13.8.1. */
static enum step check_header(struct vcpu *vcpu, const uint8_t *area)
{
    uint64_t in_use = load_le64(area + XSAVE_XSTATE_BV);
    uint64_t layout = load_le64(area + XSAVE_XCOMP_BV);
    struct cpuid_result leaf;
    bool valid = !(in_use & ~vcpu->state.xcr0);

    if (layout & XCOMP_COMPACTED) {
        uint64_t present = layout & ~XCOMP_COMPACTED;
        cpuid_query(vcpu->cpuid, vcpu->index, 0xd, 1, vcpu->state.cr4, vcpu->state.xcr0, &leaf);
        valid = valid && (leaf.eax & 2) && !(present & ~vcpu->state.xcr0) && !(in_use & ~present);
    } else {
        valid = valid && layout == 0 && load_le64(area + XSAVE_XCOMP_BV + 8) == 0;
    }
    for (unsigned n = XSAVE_XCOMP_BV + 16; layout & XCOMP_COMPACTED && n < XSAVE_HEADER_END;
         n += 8) {
        valid = valid && load_le64(area + n) == 0;
    }
    return valid ? STEP_NEXT : raise_gp(vcpu);
}

/* One component from the area, or its initial state. */
static void restore_component(struct vcpu *vcpu, const struct insn *insn, const uint8_t *area,
                              unsigned n, uint64_t layout)
{
    uint8_t *xsave = vcpu->state.xsave;
    struct xsave_component component;

    switch (n) {
    case 0:
        bytes_copy(xsave, area, XSAVE_MXCSR);
        bytes_copy(xsave + XSAVE_ST, area + XSAVE_ST, XSAVE_XMM - XSAVE_ST);
        if (!has_wide_pointers(insn)) {
            narrow_pointers(xsave);
        }
        break;
    case 1:
        bytes_copy(xsave + XSAVE_XMM, area + XSAVE_XMM,
                   is_64bit(vcpu) ? XSAVE_XMM_END - XSAVE_XMM : 8 * 16);
        break;
    default:
        component = xsave_component(n);
        bytes_copy(xsave + component.offset,
                   area + component_offset(vcpu, n, layout, layout & XCOMP_COMPACTED),
                   component.size);
        break;
    }
}

static void restore(struct vcpu *vcpu, const struct insn *insn, const uint8_t *area, uint64_t mask)
{
    uint64_t stored = load_le64(area + XSAVE_XSTATE_BV);
    uint64_t layout = load_le64(area + XSAVE_XCOMP_BV);
    uint64_t in_use = xsave_in_use(&vcpu->state);

    for (unsigned n = 0; n <= COMPONENT_LAST; n++) {
        if (!(mask >> n & 1)) {
            continue;
        }
        if (stored >> n & 1) {
            if (n == 1) {
                xsave_materialize(&vcpu->state, XCR0_SSE);
            }
            restore_component(vcpu, insn, area, n, layout);
            in_use |= 1ull << n;
        } else {
            in_use &= ~(1ull << n);
        }
        store_le64(vcpu->state.xsave + XSAVE_XSTATE_BV, in_use);
    }
}

enum step execute_xrstor(struct vcpu *vcpu, const struct insn *insn)
{
    uint64_t mask = requested(vcpu);
    uint8_t area[XSAVE_AREA_SIZE];
    gva_t gva;

    TRY(check_xsave(vcpu));
    TRY(area_locate(vcpu, insn, XSAVE_HEADER_END, 64, false, &gva));
    TRY(mmu_read(vcpu, gva, area, XSAVE_HEADER_END, user_access(vcpu)));
    TRY(check_header(vcpu, area));
    uint64_t layout = load_le64(area + XSAVE_XCOMP_BV), stored = load_le64(area + XSAVE_XSTATE_BV);
    bool compacted = layout & XCOMP_COMPACTED;
    unsigned size = area_size(vcpu, compacted ? layout : mask & stored, compacted);
    if (size > XSAVE_HEADER_END && (mask & stored) >> 2) {
        TRY(area_locate(vcpu, insn, size, 64, false, &gva));
        TRY(mmu_read(vcpu, gva + XSAVE_HEADER_END, area + XSAVE_HEADER_END, size - XSAVE_HEADER_END,
                     user_access(vcpu)));
    }
    bool loads_mxcsr = compacted ? mask & stored & XCR0_SSE : mask & (XCR0_SSE | XCR0_AVX);
    uint32_t mxcsr = load_le32(area + XSAVE_MXCSR);
    if (loads_mxcsr && (mxcsr & ~(uint32_t)MXCSR_WRITABLE)) {
        return raise_gp(vcpu);
    }
    restore(vcpu, insn, area, mask);
    if (loads_mxcsr) {
        store_le32(vcpu->state.xsave + XSAVE_MXCSR, mxcsr);
    } else if (compacted && (mask & XCR0_SSE)) {
        store_le32(vcpu->state.xsave + XSAVE_MXCSR, MXCSR_INITIAL);
    }
    native_settle(vcpu);
    return STEP_NEXT;
}
