/*
 * System instructions: descriptor table registers, MSRs, time, CPUID, interrupt flag, HLT, XCR0,
 * segment bases, random numbers.
 */
#include "engine/interp/interp_internal.h"
#include "x86/cpuid.h"
#include "x86/msr.h"

static bool is_privileged(const struct vcpu *vcpu)
{
    return !is_protected(vcpu) || cpl_of(vcpu) == 0;
}

/* SGDT, SIDT, SLDT, STR and SMSW outside CPL 0 are faults with UMIP. */
static bool is_hidden(const struct vcpu *vcpu)
{
    return (vcpu->state.cr4 & CR4_UMIP) && cpl_of(vcpu) > 0;
}

static enum step table_load(struct vcpu *vcpu, const struct insn *insn,
                            struct descriptor_table *table)
{
    unsigned size = is_64bit(vcpu) ? 8 : 4;
    struct place place;
    uint64_t limit, base;

    if (!is_privileged(vcpu)) {
        return raise_gp(vcpu);
    }
    TRY(operand_locate(vcpu, insn, 0, false, &place));
    TRY(linear_read(vcpu, place.gva, &limit, 2));
    TRY(linear_read(vcpu, place.gva + 2, &base, size));
    if (size == 8 && !is_canonical(base)) {
        return raise_gp(vcpu);
    }
    if (size == 4 && operand_width(insn) == 2) {
        base &= 0xffffff;
    }
    *table = (struct descriptor_table){.base = base, .limit = (uint16_t)limit};
    return STEP_NEXT;
}

enum step execute_lgdt(struct vcpu *vcpu, const struct insn *insn)
{
    return table_load(vcpu, insn, &vcpu->state.gdtr);
}

enum step execute_lidt(struct vcpu *vcpu, const struct insn *insn)
{
    return table_load(vcpu, insn, &vcpu->state.idtr);
}

static enum step table_store(struct vcpu *vcpu, const struct insn *insn,
                             const struct descriptor_table *table)
{
    unsigned size = is_64bit(vcpu) ? 8 : 4;
    struct place place;

    if (is_hidden(vcpu)) {
        return raise_gp(vcpu);
    }
    TRY(operand_locate(vcpu, insn, 0, true, &place));
    TRY(mmu_check_write(vcpu, place.gva, 2 + size, user_access(vcpu)));
    TRY(linear_write(vcpu, place.gva, table->limit, 2));
    return linear_write(vcpu, place.gva + 2, table->base, size);
}

enum step execute_sgdt(struct vcpu *vcpu, const struct insn *insn)
{
    return table_store(vcpu, insn, &vcpu->state.gdtr);
}

enum step execute_sidt(struct vcpu *vcpu, const struct insn *insn)
{
    return table_store(vcpu, insn, &vcpu->state.idtr);
}

/* LLDT and LTR: a system descriptor from the GDT, 16 bytes long in IA-32e mode. */
static enum step system_segment(struct vcpu *vcpu, uint16_t selector, uint16_t types,
                                struct segment *ret_segment)
{
    uint32_t error_code = selector & ~SELECTOR_RPL;
    uint64_t low, high;
    bool valid = true;

    if (selector & SELECTOR_TI) {
        return raise_error(vcpu, EXCEPTION_GP, error_code);
    }
    TRY(descriptor_read(vcpu, selector, EXCEPTION_GP, 0, &low));
    *ret_segment = descriptor_unpack(low, selector);
    if (is_long(vcpu)) {
        TRY(descriptor_read_high(vcpu, selector, EXCEPTION_GP, 0, &high));
        valid = descriptor_unpack_system64(low, high, selector, ret_segment);
    }
    uint16_t attributes = ret_segment->attributes;
    if (!valid || (attributes & SEGMENT_S) || !(types >> (attributes & SEGMENT_TYPE) & 1)) {
        return raise_error(vcpu, EXCEPTION_GP, error_code);
    }
    if (!(attributes & SEGMENT_P)) {
        return raise_error(vcpu, EXCEPTION_NP, error_code);
    }
    return STEP_NEXT;
}

static enum step load_system_selector(struct vcpu *vcpu, const struct insn *insn,
                                      uint16_t *ret_selector)
{
    uint64_t selector;

    if (!has_selectors(vcpu)) {
        return raise_ud(vcpu);
    }
    if (cpl_of(vcpu) != 0) {
        return raise_gp(vcpu);
    }
    TRY(operand_load(vcpu, insn, 0, &selector));
    *ret_selector = (uint16_t)selector;
    return STEP_NEXT;
}

enum step execute_lldt(struct vcpu *vcpu, const struct insn *insn)
{
    struct segment segment;
    uint16_t selector;

    TRY(load_system_selector(vcpu, insn, &selector));
    if (selector_is_null(selector)) {
        vcpu->state.ldtr = segment_null(selector, 0);
        return STEP_NEXT;
    }
    TRY(system_segment(vcpu, selector, 1u << SYSTEM_LDT, &segment));
    vcpu->state.ldtr = segment;
    return STEP_NEXT;
}

enum step execute_ltr(struct vcpu *vcpu, const struct insn *insn)
{
    uint16_t types = 1u << SYSTEM_TSS_AVAILABLE;
    struct segment segment;
    uint16_t selector;

    TRY(load_system_selector(vcpu, insn, &selector));
    if (selector_is_null(selector)) {
        return raise_gp(vcpu);
    }
    if (!is_long(vcpu)) {
        types |= 1u << SYSTEM_TSS16_AVAILABLE;
    }
    TRY(system_segment(vcpu, selector, types, &segment));
    TRY(descriptor_set(vcpu, selector, DESCRIPTOR_BUSY));
    segment.attributes |= 2; /* busy */
    vcpu->state.tr = segment;
    return STEP_NEXT;
}

static enum step store_system_selector(struct vcpu *vcpu, const struct insn *insn,
                                       uint16_t selector)
{
    struct place place;

    if (!has_selectors(vcpu)) {
        return raise_ud(vcpu);
    }
    if (is_hidden(vcpu)) {
        return raise_gp(vcpu);
    }
    TRY(operand_locate(vcpu, insn, 0, true, &place));
    if (place.is_memory) {
        place.size = 2;
    }
    return place_store(vcpu, &place, selector);
}

enum step execute_sldt(struct vcpu *vcpu, const struct insn *insn)
{
    return store_system_selector(vcpu, insn, vcpu->state.ldtr.selector);
}

enum step execute_str(struct vcpu *vcpu, const struct insn *insn)
{
    return store_system_selector(vcpu, insn, vcpu->state.tr.selector);
}

static void store_pair(struct vcpu *vcpu, uint64_t value)
{
    vcpu->state.gpr[RAX] = (uint32_t)value;
    vcpu->state.gpr[RDX] = value >> 32;
}

static uint64_t load_pair(const struct vcpu *vcpu)
{
    return (uint32_t)vcpu->state.gpr[RAX] | vcpu->state.gpr[RDX] << 32;
}

enum step execute_rdmsr(struct vcpu *vcpu, const struct insn *insn)
{
    uint32_t index = (uint32_t)vcpu->state.gpr[RCX];
    uint64_t value = 0;
    enum msr_result result;

    if (!is_privileged(vcpu)) {
        return raise_gp(vcpu);
    }
    if (index == MSR_TSC) {
        store_pair(vcpu, vcpu_tsc(vcpu));
        return STEP_NEXT;
    }
    result = msr_read(&vcpu->state, vcpu->cpuid, index, &value);
    if (result == MSR_FAULT ||
        (result == MSR_OTHER &&
         !vcpu->host->msr_read(vcpu->host->owner, vcpu->index, index, &value))) {
        return raise_gp(vcpu);
    }
    store_pair(vcpu, value);
    return STEP_NEXT;
}

/* The machine's timers count guest time too. */
static enum step tsc_changed(struct vcpu *vcpu)
{
    vcpu->host->tsc_changed(vcpu->host->owner, vcpu->index, vcpu->state.tsc_offset);
    return STEP_NEXT;
}

enum step execute_wrmsr(struct vcpu *vcpu, const struct insn *insn)
{
    uint32_t index = (uint32_t)vcpu->state.gpr[RCX];
    uint64_t value = load_pair(vcpu), efer = vcpu->state.efer;
    enum msr_result result;

    if (!is_privileged(vcpu)) {
        return raise_gp(vcpu);
    }
    if (index == MSR_TSC) {
        msr_write_tsc(&vcpu->state, vcpu_tsc(vcpu), value);
        return tsc_changed(vcpu);
    }
    result = msr_write(&vcpu->state, vcpu->cpuid, index, value);
    if (result == MSR_FAULT ||
        (result == MSR_OTHER &&
         !vcpu->host->msr_write(vcpu->host->owner, vcpu->index, index, value))) {
        return raise_gp(vcpu);
    }
    if (index == MSR_TSC_ADJUST) {
        return tsc_changed(vcpu);
    }
    if (index == MSR_EFER && vcpu->state.efer != efer) {
        vcpu_mode_changed(vcpu);
        change_flush(vcpu, FLUSH_ALL, 0);
    }
    return STEP_NEXT;
}

static bool may_read_time(const struct vcpu *vcpu)
{
    return !(vcpu->state.cr4 & CR4_TSD) || is_privileged(vcpu);
}

enum step execute_rdtsc(struct vcpu *vcpu, const struct insn *insn)
{
    if (!may_read_time(vcpu)) {
        return raise_gp(vcpu);
    }
    store_pair(vcpu, vcpu_tsc(vcpu));
    return STEP_NEXT;
}

enum step execute_rdtscp(struct vcpu *vcpu, const struct insn *insn)
{
    TRY(execute_rdtsc(vcpu, insn));
    vcpu->state.gpr[RCX] = (uint32_t)vcpu->state.tsc_aux;
    return STEP_NEXT;
}

enum step execute_rdpid(struct vcpu *vcpu, const struct insn *insn)
{
    return operand_store(vcpu, insn, 0, vcpu->state.tsc_aux);
}

/* No model has performance counters: every index is out of range. */
enum step execute_rdpmc(struct vcpu *vcpu, const struct insn *insn)
{
    return raise_gp(vcpu);
}

enum step execute_cpuid(struct vcpu *vcpu, const struct insn *insn)
{
    uint64_t *gpr = vcpu->state.gpr;
    struct cpuid_result result;

    cpuid_query(vcpu->cpuid, vcpu->index, (uint32_t)gpr[RAX], (uint32_t)gpr[RCX], vcpu->state.cr4,
                vcpu->state.xcr0, &result);
    gpr[RAX] = result.eax;
    gpr[RBX] = result.ebx;
    gpr[RCX] = result.ecx;
    gpr[RDX] = result.edx;
    return STEP_NEXT;
}

enum step execute_hlt(struct vcpu *vcpu, const struct insn *insn)
{
    if (!is_privileged(vcpu)) {
        return raise_gp(vcpu);
    }
    if (vcpu->state.unhalted) {
        vcpu->state.unhalted = false;
        return STEP_NEXT;
    }
    vcpu->state.activity = ACTIVITY_HALTED;
    return STEP_HALT;
}

static bool may_change_if(const struct vcpu *vcpu)
{
    return !is_protected(vcpu) ||
           (is_v86(vcpu) ? iopl_of(vcpu) == 3 : cpl_of(vcpu) <= iopl_of(vcpu));
}

enum step execute_cli(struct vcpu *vcpu, const struct insn *insn)
{
    if (!may_change_if(vcpu)) {
        return raise_gp(vcpu);
    }
    set_flag(vcpu, FLAG_IF, false);
    return STEP_NEXT;
}

enum step execute_sti(struct vcpu *vcpu, const struct insn *insn)
{
    if (!may_change_if(vcpu)) {
        return raise_gp(vcpu);
    }
    if (!(vcpu->state.rflags & FLAG_IF)) {
        vcpu->state.interrupt_shadow = true;
        vcpu->state.shadow_is_mov_ss = false;
    }
    set_flag(vcpu, FLAG_IF, true);
    return STEP_NEXT;
}

/* CLAC and STAC */
enum step execute_ac(struct vcpu *vcpu, const struct insn *insn)
{
    if (!is_privileged(vcpu)) {
        return raise_ud(vcpu);
    }
    rflags_write(vcpu, insn->info.mnemonic == ZYDIS_MNEMONIC_STAC ? FLAG_AC : 0, FLAG_AC);
    return STEP_NEXT;
}

/* INVD, WBINVD: caches are coherent here. */
enum step execute_invd(struct vcpu *vcpu, const struct insn *insn)
{
    return is_privileged(vcpu) ? STEP_NEXT : raise_gp(vcpu);
}

/* LFENCE, SFENCE, MFENCE, SERIALIZE */
enum step execute_fence(struct vcpu *vcpu, const struct insn *insn)
{
    __asm__ volatile("mfence" ::: "memory");
    return STEP_NEXT;
}

enum step execute_xgetbv(struct vcpu *vcpu, const struct insn *insn)
{
    enum { XSAVE_BV = 512 };
    uint32_t index = (uint32_t)vcpu->state.gpr[RCX];
    struct cpuid_result features;

    if (!(vcpu->state.cr4 & CR4_OSXSAVE)) {
        return raise_ud(vcpu);
    }
    cpuid_query(vcpu->cpuid, vcpu->index, 0xd, 1, vcpu->state.cr4, vcpu->state.xcr0, &features);
    if (index == 1 && (features.eax & 4)) { /* which components are in use */
        store_pair(vcpu, load_le64(vcpu->state.xsave + XSAVE_BV) & vcpu->state.xcr0);
        return STEP_NEXT;
    }
    if (index != 0) {
        return raise_gp(vcpu);
    }
    store_pair(vcpu, vcpu->state.xcr0);
    return STEP_NEXT;
}

/* SDM volume 1, 13.3. */
static bool is_valid_xcr0(const struct vcpu *vcpu, uint64_t value)
{
    uint64_t avx512 = value & XCR0_AVX512;

    return !(value & ~cpuid_xcr0_allowed(vcpu->cpuid)) && (value & XCR0_X87) &&
           (!(value & XCR0_AVX) || (value & XCR0_SSE)) &&
           (!avx512 || (avx512 == XCR0_AVX512 && (value & XCR0_AVX)));
}

enum step execute_xsetbv(struct vcpu *vcpu, const struct insn *insn)
{
    if (!(vcpu->state.cr4 & CR4_OSXSAVE)) {
        return raise_ud(vcpu);
    }
    uint64_t value = load_pair(vcpu);
    if (!is_privileged(vcpu) || (uint32_t)vcpu->state.gpr[RCX] != 0 ||
        !is_valid_xcr0(vcpu, value)) {
        return raise_gp(vcpu);
    }
    vcpu->state.xcr0 = value;
    return STEP_NEXT;
}

/* RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE */
enum step execute_segment_base(struct vcpu *vcpu, const struct insn *insn)
{
    ZydisMnemonic mnemonic = insn->info.mnemonic;
    bool is_fs = mnemonic == ZYDIS_MNEMONIC_RDFSBASE || mnemonic == ZYDIS_MNEMONIC_WRFSBASE;
    uint64_t *base = &vcpu->state.segment[is_fs ? FS : GS].base;
    uint64_t value;

    if (!(vcpu->state.cr4 & CR4_FSGSBASE) || !is_64bit(vcpu)) {
        return raise_ud(vcpu);
    }
    if (mnemonic == ZYDIS_MNEMONIC_RDFSBASE || mnemonic == ZYDIS_MNEMONIC_RDGSBASE) {
        return operand_store(vcpu, insn, 0, *base);
    }
    TRY(operand_load(vcpu, insn, 0, &value));
    if (!is_canonical(value)) {
        return raise_gp(vcpu);
    }
    *base = value;
    return STEP_NEXT;
}

enum step execute_swapgs(struct vcpu *vcpu, const struct insn *insn)
{
    uint64_t *base = &vcpu->state.segment[GS].base, old = *base;

    if (!is_64bit(vcpu)) {
        return raise_ud(vcpu);
    }
    if (cpl_of(vcpu) != 0) {
        return raise_gp(vcpu);
    }
    *base = vcpu->state.kernel_gs_base;
    vcpu->state.kernel_gs_base = old;
    return STEP_NEXT;
}

/* CF says whether there was a number; the other arithmetic flags are cleared. */
static enum step store_random(struct vcpu *vcpu, const struct insn *insn, uint64_t value,
                              bool valid)
{
    set_flag(vcpu, FLAGS_ARITHMETIC, false);
    set_flag(vcpu, FLAG_CF, valid);
    return operand_store(vcpu, insn, 0, valid ? value : 0);
}

enum step execute_rdrand(struct vcpu *vcpu, const struct insn *insn)
{
    uint64_t value;
    bool valid;

    __asm__ volatile("rdrand %0" : "=r"(value), "=@ccc"(valid));
    return store_random(vcpu, insn, value, valid);
}

enum step execute_rdseed(struct vcpu *vcpu, const struct insn *insn)
{
    uint64_t value;
    bool valid;

    __asm__ volatile("rdseed %0" : "=r"(value), "=@ccc"(valid));
    return store_random(vcpu, insn, value, valid);
}
