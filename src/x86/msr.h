/*
 * The model-specific registers that belong to the CPU itself: which exist on a CPU model, and what
 * may be written to them. SDM volume 4; AMD APM volume 2, appendix A. General registers only.
 */
#pragma once

#include "x86/cpu_state.h"
#include "x86/cpuid.h"

enum msr_index {
    MSR_TSC = 0x10,
    MSR_PLATFORM_ID = 0x17,
    MSR_APIC_BASE = 0x1b,
    MSR_FEATURE_CONTROL = 0x3a,
    MSR_TSC_ADJUST = 0x3b,
    MSR_SPEC_CTRL = 0x48,
    MSR_PRED_CMD = 0x49,
    MSR_UPDATE_TRIGGER = 0x79,
    MSR_UPDATE_SIGNATURE = 0x8b,
    MSR_PLATFORM_INFO = 0xce,
    MSR_MTRR_CAP = 0xfe,
    MSR_ARCH_CAPABILITIES = 0x10a,
    MSR_SYSENTER_CS = 0x174,
    MSR_SYSENTER_ESP = 0x175,
    MSR_SYSENTER_EIP = 0x176,
    MSR_MCG_CAP = 0x179,
    MSR_MCG_STATUS = 0x17a,
    MSR_PERF_STATUS = 0x198,
    MSR_MISC_ENABLE = 0x1a0,
    MSR_DEBUG_CONTROL = 0x1d9,
    MSR_MTRR_BASE_0 = 0x200, /* base and mask alternate */
    MSR_MTRR_FIXED_64K = 0x250,
    MSR_MTRR_FIXED_16K = 0x258, /* two */
    MSR_MTRR_FIXED_4K = 0x268,  /* eight */
    MSR_PAT = 0x277,
    MSR_MTRR_DEF_TYPE = 0x2ff,
    MSR_TSC_DEADLINE = 0x6e0,
    MSR_EFER = 0xc0000080,
    MSR_STAR = 0xc0000081,
    MSR_LSTAR = 0xc0000082,
    MSR_CSTAR = 0xc0000083,
    MSR_SFMASK = 0xc0000084,
    MSR_FS_BASE = 0xc0000100,
    MSR_GS_BASE = 0xc0000101,
    MSR_KERNEL_GS_BASE = 0xc0000102,
    MSR_TSC_AUX = 0xc0000103,
    MSR_AMD_SYSTEM_CONFIG = 0xc0010010,
    MSR_AMD_HARDWARE_CONFIG = 0xc0010015,
    MSR_AMD_DECODE_CONFIG = 0xc0011029,
};

enum msr_result {
    MSR_OK,
    MSR_FAULT, /* #GP(0): not on this model, read-only, or a value that it cannot hold */
    MSR_OTHER, /* not the CPU's: ask the machine (local APIC, KVM clock); it may still be #GP(0) */
};

/*
 * RDMSR and WRMSR at privilege level 0. MSR_TSC is MSR_OTHER here, because only the engine knows
 * the time: it reads its own TSC and writes with msr_write_tsc().
 *
 * After a successful write the caller renews what it derives from the state: EFER and the FS and
 * GS bases take effect at once; TSC_ADJUST has moved tsc_offset.
 */
enum msr_result msr_read(const struct cpu_state *state, const struct cpuid_table *cpuid,
                         uint32_t index, uint64_t *ret_value);
enum msr_result msr_write(struct cpu_state *state, const struct cpuid_table *cpuid, uint32_t index,
                          uint64_t value);
/* WRMSR to IA32_TIME_STAMP_COUNTER while the guest's TSC stands at `now`. SDM volume 3, 17.17.3. */
void msr_write_tsc(struct cpu_state *state, uint64_t now, uint64_t value);
