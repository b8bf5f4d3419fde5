/*
 * Reading and writing of the CPU's own model-specific registers, with all architectural checks.
 * What is constant on our models is answered here; what is stored is in cpu_state.
 */
#include "x86/msr.h"

#include "base/bytes.h"

enum {
    FEATURE_CONTROL_LOCKED = 1 << 0, /* and neither VMX nor SGX */
    SPEC_CTRL_IBRS = 1 << 0,
    SPEC_CTRL_STIBP = 1 << 1, /* may be set where IBRS is, does nothing without sibling threads */
    PRED_CMD_IBPB = 1 << 0,
    MCG_STATUS_KNOWN = 7,
    MISC_ENABLE_WRITABLE = 1 << 0,                      /* fast strings */
    MISC_ENABLE_READ_ONLY = 1 << 7 | 1 << 11 | 1 << 12, /* monitoring, BTS, PEBS */
    MTRR_COUNT = ARRAY_SIZE(((struct cpu_state *)0)->mtrr_base),
    MTRR_CAP_VALUE = MTRR_COUNT | 1 << 8 | 1 << 10, /* fixed ranges, write-combining */
    MTRR_DEF_TYPE_ENABLES = 1 << 10 | 1 << 11,
    MTRR_MASK_VALID = 1 << 11,
    MTRR_BASE_END = MSR_MTRR_BASE_0 + 2 * MTRR_COUNT,
    BUS_HZ = 100000000,                /* what ratios in PLATFORM_INFO and PERF_STATUS count */
    AMD_HARDWARE_CONFIG_TSC = 1 << 24, /* the TSC counts at the rate of P-state 0 */
    AMD_DECODE_CONFIG_LFENCE = 1 << 1, /* LFENCE serializes */
};

/* Memory types: UC 0, WC 1, WT 4, WP 5, WB 6; UC- 7 in the PAT only. */
static bool is_memory_type(uint8_t type, bool in_pat)
{
    return type <= 1 || (type >= 4 && type <= (in_pat ? 7 : 6));
}

static bool are_memory_types(uint64_t value, bool in_pat)
{
    for (int i = 0; i < 8; i++) {
        if (!is_memory_type(value >> i * 8 & 0xff, in_pat)) {
            return false;
        }
    }
    return true;
}

/* The number of a fixed-range MTRR in the order of addresses, or -1. */
static int mtrr_fixed_number(uint32_t index)
{
    if (index == MSR_MTRR_FIXED_64K) {
        return 0;
    }
    if (index - MSR_MTRR_FIXED_16K < 2) {
        return 1 + index - MSR_MTRR_FIXED_16K;
    }
    return index - MSR_MTRR_FIXED_4K < 8 ? (int)(3 + index - MSR_MTRR_FIXED_4K) : -1;
}

/*
 * The field of a register that is stored as it is, or NULL. The segment bases are in the hidden
 * parts of FS and GS.
 */
static uint64_t *stored_field(struct cpu_state *state, uint32_t index)
{
    switch (index) {
    case MSR_TSC_ADJUST:
        return &state->tsc_adjust;
    case MSR_SPEC_CTRL:
        return &state->spec_ctrl;
    case MSR_SYSENTER_CS:
        return &state->sysenter_cs;
    case MSR_SYSENTER_ESP:
        return &state->sysenter_esp;
    case MSR_SYSENTER_EIP:
        return &state->sysenter_eip;
    case MSR_MCG_STATUS:
        return &state->mcg_status;
    case MSR_MISC_ENABLE:
        return &state->misc_enable;
    case MSR_PAT:
        return &state->pat;
    case MSR_MTRR_DEF_TYPE:
        return &state->mtrr_def_type;
    case MSR_EFER:
        return &state->efer;
    case MSR_STAR:
        return &state->star;
    case MSR_LSTAR:
        return &state->lstar;
    case MSR_CSTAR:
        return &state->cstar;
    case MSR_SFMASK:
        return &state->sfmask;
    case MSR_FS_BASE:
        return &state->segment[FS].base;
    case MSR_GS_BASE:
        return &state->segment[GS].base;
    case MSR_KERNEL_GS_BASE:
        return &state->kernel_gs_base;
    case MSR_TSC_AUX:
        return &state->tsc_aux;
    default:
        break;
    }
    if (index >= MSR_MTRR_BASE_0 && index < MTRR_BASE_END) {
        unsigned number = (index - MSR_MTRR_BASE_0) / 2;
        return index & 1 ? &state->mtrr_mask[number] : &state->mtrr_base[number];
    }
    int fixed = mtrr_fixed_number(index);
    return fixed >= 0 ? &state->mtrr_fixed[fixed] : NULL;
}

/* Does the model have this register? Asked for registers that not all models have. */
static bool model_has(const struct cpuid_table *cpuid, uint32_t index)
{
    switch (index) {
    case MSR_SPEC_CTRL:
    case MSR_PRED_CMD:
        return cpuid_has(cpuid, FEATURE_SPEC_CTRL);
    case MSR_PLATFORM_ID:
    case MSR_FEATURE_CONTROL:
    case MSR_UPDATE_TRIGGER:
    case MSR_PLATFORM_INFO:
    case MSR_ARCH_CAPABILITIES:
    case MSR_PERF_STATUS:
    case MSR_MISC_ENABLE:
        return cpuid_vendor(cpuid) == CPU_VENDOR_INTEL;
    case MSR_AMD_SYSTEM_CONFIG:
    case MSR_AMD_HARDWARE_CONFIG:
    case MSR_AMD_DECODE_CONFIG:
        return cpuid_vendor(cpuid) == CPU_VENDOR_AMD;
    case MSR_TSC_AUX:
        return cpuid_has(cpuid, FEATURE_RDTSCP) || cpuid_has(cpuid, FEATURE_RDPID);
    default:
        return true;
    }
}

/* Registers that hold a constant, and those whose writing does nothing. */
static bool constant_read(const struct cpuid_table *cpuid, uint32_t index, uint64_t *ret_value)
{
    uint64_t ratio = cpuid_tsc_hz(cpuid) / BUS_HZ & 0xff;
    switch (index) {
    case MSR_PLATFORM_ID:
    case MSR_MCG_CAP: /* no banks */
    case MSR_DEBUG_CONTROL:
    case MSR_AMD_SYSTEM_CONFIG:
        *ret_value = 0;
        return true;
    case MSR_FEATURE_CONTROL:
        *ret_value = FEATURE_CONTROL_LOCKED;
        return true;
    case MSR_UPDATE_SIGNATURE:
        *ret_value = 1ull << 32; /* revision 1 */
        return true;
    case MSR_PLATFORM_INFO:
    case MSR_PERF_STATUS:
        *ret_value = ratio << 8;
        return true;
    case MSR_MTRR_CAP:
        *ret_value = MTRR_CAP_VALUE;
        return true;
    case MSR_ARCH_CAPABILITIES:
        *ret_value = cpuid_arch_capabilities(cpuid);
        return true;
    case MSR_AMD_HARDWARE_CONFIG:
        *ret_value = AMD_HARDWARE_CONFIG_TSC;
        return true;
    case MSR_AMD_DECODE_CONFIG:
        *ret_value = AMD_DECODE_CONFIG_LFENCE;
        return true;
    default:
        return false;
    }
}

enum msr_result msr_read(const struct cpu_state *state, const struct cpuid_table *cpuid,
                         uint32_t index, uint64_t *ret_value)
{
    if (!model_has(cpuid, index)) {
        return MSR_FAULT;
    }
    const uint64_t *field = stored_field((struct cpu_state *)state, index);
    if (field) {
        *ret_value = *field;
        return MSR_OK;
    }
    if (constant_read(cpuid, index, ret_value)) {
        return MSR_OK;
    }
    bool is_write_only = index == MSR_PRED_CMD || index == MSR_UPDATE_TRIGGER;
    return is_write_only ? MSR_FAULT : MSR_OTHER;
}

/* A register without a field. The microcode and AMD's configuration take any value, unchanged. */
static enum msr_result constant_write(const struct cpuid_table *cpuid, uint32_t index,
                                      uint64_t value)
{
    uint64_t old;
    switch (index) {
    case MSR_PRED_CMD:
        return value & ~(uint64_t)PRED_CMD_IBPB ? MSR_FAULT : MSR_OK;
    case MSR_UPDATE_TRIGGER:
    case MSR_UPDATE_SIGNATURE:
    case MSR_AMD_SYSTEM_CONFIG:
    case MSR_AMD_HARDWARE_CONFIG:
    case MSR_AMD_DECODE_CONFIG:
        return MSR_OK;
    case MSR_DEBUG_CONTROL: /* no branch records, and no stepping by branches */
        return value ? MSR_FAULT : MSR_OK;
    default:
        return constant_read(cpuid, index, &old) ? MSR_FAULT : MSR_OTHER;
    }
}

/* EFER: LMA is the CPU's, LME is fixed while paging. SDM volume 3, 2.2.1 and 9.8.5. */
static bool efer_accept(const struct cpu_state *state, const struct cpuid_table *cpuid,
                        uint64_t *value)
{
    bool changes_mode = (*value ^ state->efer) & EFER_LME;
    if (*value & ~cpuid_efer_allowed(cpuid) || (changes_mode && state->cr0 & CR0_PG)) {
        return false;
    }
    *value = (*value & ~(uint64_t)EFER_LMA) | (state->efer & EFER_LMA);
    return true;
}

/* Variable-range MTRRs. SDM volume 3, 12.11.2.3. */
static bool mtrr_variable_accept(const struct cpuid_table *cpuid, uint32_t index, uint64_t value)
{
    uint64_t address = (UINT64_MAX >> (64 - cpuid_physical_bits(cpuid))) & ~0xfffull;
    if (index & 1) {
        return !(value & ~(address | MTRR_MASK_VALID));
    }
    return !(value & ~(address | 0xff)) && is_memory_type(value & 0xff, false);
}

static bool misc_enable_accept(const struct cpu_state *state, uint64_t *value)
{
    if (*value & ~(uint64_t)(MISC_ENABLE_WRITABLE | MISC_ENABLE_READ_ONLY)) {
        return false;
    }
    *value = (*value & MISC_ENABLE_WRITABLE) | (state->misc_enable & MISC_ENABLE_READ_ONLY);
    return true;
}

/* May `*value` be written to this stored register? It may change to what will be stored. */
static bool accept(const struct cpu_state *state, const struct cpuid_table *cpuid, uint32_t index,
                   uint64_t *value)
{
    switch (index) {
    case MSR_TSC_ADJUST:
    case MSR_STAR:
        return true;
    case MSR_SYSENTER_CS:
        *value &= UINT32_MAX;
        return true;
    case MSR_EFER:
        return efer_accept(state, cpuid, value);
    case MSR_SYSENTER_ESP:
    case MSR_SYSENTER_EIP:
    case MSR_LSTAR:
    case MSR_CSTAR:
    case MSR_FS_BASE:
    case MSR_GS_BASE:
    case MSR_KERNEL_GS_BASE:
        return is_canonical(*value);
    case MSR_SFMASK:
    case MSR_TSC_AUX:
        return *value <= UINT32_MAX;
    case MSR_SPEC_CTRL:
        return !(*value & ~(uint64_t)(SPEC_CTRL_IBRS | SPEC_CTRL_STIBP));
    case MSR_MCG_STATUS:
        return !(*value & ~(uint64_t)MCG_STATUS_KNOWN);
    case MSR_MISC_ENABLE:
        return misc_enable_accept(state, value);
    case MSR_PAT:
        return are_memory_types(*value, true);
    case MSR_MTRR_DEF_TYPE:
        return !(*value & ~(uint64_t)(MTRR_DEF_TYPE_ENABLES | 0xff)) &&
               is_memory_type(*value & 0xff, false);
    default:
        return mtrr_fixed_number(index) >= 0 ? are_memory_types(*value, false)
                                             : mtrr_variable_accept(cpuid, index, *value);
    }
}

enum msr_result msr_write(struct cpu_state *state, const struct cpuid_table *cpuid, uint32_t index,
                          uint64_t value)
{
    if (!model_has(cpuid, index)) {
        return MSR_FAULT;
    }
    uint64_t *field = stored_field(state, index);
    if (!field) {
        return constant_write(cpuid, index, value);
    }
    if (!accept(state, cpuid, index, &value)) {
        return MSR_FAULT;
    }
    if (index == MSR_TSC_ADJUST) {
        state->tsc_offset += value - state->tsc_adjust;
    }
    *field = value;
    return MSR_OK;
}

void msr_write_tsc(struct cpu_state *state, uint64_t now, uint64_t value)
{
    state->tsc_offset += value - now;
    state->tsc_adjust += value - now;
}
