/*
 * RESET, INIT and the one list of fields that saves, loads, compares and prints a CPU's state.
 */
#include "x86/cpu_state.h"

#include "base/bytes.h"
#include "base/error.h"
#include "persist/visitor.h"
#include "x86/cpuid.h"
#include "x86/descriptor.h"

enum {
    DR6_RESET = 0xffff0ff0u,
    DR7_RESET = 0x400,
    /* XSAVE area: SDM volume 1, table 13-1 and 13.4.2 */
    XSAVE_FCW = 0,
    XSAVE_MXCSR = 24,
    XSAVE_XSTATE_BV = 512,
    XSAVE_XCOMP_BV = 520,
    XSAVE_HEADER_END = 576,
    FCW_RESET = 0x37f, /* by FNINIT; after RESET it is 0040H, which nobody reads before FNINIT */
    MXCSR_RESET = 0x1f80,
    /* the bits that are zero whatever the model */
    SEGMENT_RESERVED = 0x0700,
    FLAGS_RESERVED = ~0x3f7fd7,
    CR0_RESERVED = 0x1ffaffc0,
    /* fast strings on; branch trace and event sampling unavailable (SDM volume 4, 1A0H) */
    MISC_ENABLE_RESET = 1 << 0 | 1 << 11 | 1 << 12,
};

static const uint32_t cr4_reserved =
    ~(uint32_t)(CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE |
                CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_UMIP | CR4_FSGSBASE | CR4_PCIDE |
                CR4_OSXSAVE | CR4_SMEP | CR4_SMAP);
static const uint32_t efer_reserved =
    ~(uint32_t)(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | EFER_FFXSR | EFER_AIBRSE);

/* Table 9-1 gives write-back, write-through, UC-, UC twice (SDM volume 3, 12.12.4). */
static const uint64_t pat_reset = 0x0007040600070406;

/* Segments, control registers and flags are the same after RESET and INIT. */
static void reset_common(struct cpu_state *state)
{
    bytes_fill(state->gpr, 0, sizeof state->gpr);
    state->gpr[RDX] = 0x600;
    state->rip = 0xfff0;
    state->rflags = FLAG_FIXED;
    for (int i = 0; i < SEGMENT_COUNT; i++) {
        state->segment[i] = segment_real(0, false);
    }
    state->segment[CS] = segment_real(0xf000, false);
    state->segment[CS].base = 0xffff0000;
    state->segment[CS].attributes |= SEGMENT_CODE;
    state->ldtr = (struct segment){.limit = 0xffff, .attributes = SEGMENT_P | SYSTEM_LDT};
    state->tr = (struct segment){.limit = 0xffff, .attributes = SEGMENT_P | SYSTEM_TSS_BUSY};
    state->gdtr = (struct descriptor_table){.limit = 0xffff};
    state->idtr = (struct descriptor_table){.limit = 0xffff};
    state->cr2 = state->cr3 = state->cr4 = state->cr8 = 0;
    bytes_fill(state->pdpte, 0, sizeof state->pdpte);
    bytes_fill(state->dr, 0, sizeof state->dr);
    state->dr6 = DR6_RESET;
    state->dr7 = DR7_RESET;
    state->efer = 0;
    state->interrupt_shadow = state->shadow_is_mov_ss = false;
    state->nmi_blocked = state->nmi_pending = false;
    state->init_pending = state->sipi_pending = false;
    state->sipi_vector = 0;
    state->unhalted = false;
}

void cpu_state_reset(struct cpu_state *state, bool is_bsp)
{
    bytes_fill(state, 0, sizeof *state);
    reset_common(state);
    state->cr0 = CR0_CD | CR0_NW | CR0_ET;
    state->xcr0 = XCR0_X87;
    state->pat = pat_reset;
    state->misc_enable = MISC_ENABLE_RESET;
    store_le16(state->xsave + XSAVE_FCW, FCW_RESET);
    store_le32(state->xsave + XSAVE_MXCSR, MXCSR_RESET);
    /* XSTATE_BV stays 0: every component is in its initial configuration. */
    state->activity = is_bsp ? ACTIVITY_RUNNING : ACTIVITY_WAIT_SIPI;
}

void cpu_state_init_ipi(struct cpu_state *state, bool is_bsp)
{
    uint64_t cache_control = state->cr0 & (CR0_CD | CR0_NW);
    reset_common(state);
    state->cr0 = cache_control | CR0_ET;
    state->activity = is_bsp ? ACTIVITY_RUNNING : ACTIVITY_WAIT_SIPI;
}

/* What was read could not be in any CPU. What we write ourselves needs no check. */
static void refuse_if(struct visitor *v, bool is_impossible, const char *sentence)
{
    if (is_impossible && visitor_mode(v) == VISITOR_READ && !visitor_error(v)) {
        visitor_fail(v, -EINVAL, sentence);
    }
}

static void visit_segment(struct visitor *v, const char *name, struct segment *segment)
{
    visit_begin(v, name, 1);
    visit_u64(v, "base", &segment->base);
    visit_u32(v, "limit", &segment->limit);
    visit_u16(v, "selector", &segment->selector);
    visit_u16(v, "attributes", &segment->attributes);
    refuse_if(v, !is_canonical(segment->base) || segment->attributes & SEGMENT_RESERVED,
              "a segment register that no CPU could hold");
    visit_end(v);
}

static void visit_table(struct visitor *v, const char *name, struct descriptor_table *table)
{
    visit_begin(v, name, 1);
    visit_u64(v, "base", &table->base);
    visit_u16(v, "limit", &table->limit);
    refuse_if(v, !is_canonical(table->base), "a descriptor table at a non-canonical address");
    visit_end(v);
}

/* Elements are named by their number, in a section that has the array's name. */
static void visit_array(struct visitor *v, const char *name, uint64_t *values, unsigned count)
{
    visit_begin(v, name, 1);
    for (unsigned i = 0; i < count; i++) {
        char field[] = {i / 10 + '0', i % 10 + '0', 0};
        visit_u64(v, field, &values[i]);
    }
    visit_end(v);
}

static void visit_general(struct cpu_state *state, struct visitor *v)
{
    static const char names[GPR_COUNT][4] = {
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
        "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15",
    };
    for (int i = 0; i < GPR_COUNT; i++) {
        visit_u64(v, names[i], &state->gpr[i]);
    }
    visit_u64(v, "rip", &state->rip);
    visit_u64(v, "rflags", &state->rflags);
}

static void visit_system(struct cpu_state *state, struct visitor *v)
{
    static const char names[SEGMENT_COUNT][3] = {"es", "cs", "ss", "ds", "fs", "gs"};
    for (int i = 0; i < SEGMENT_COUNT; i++) {
        visit_segment(v, names[i], &state->segment[i]);
    }
    visit_segment(v, "ldtr", &state->ldtr);
    visit_segment(v, "tr", &state->tr);
    visit_table(v, "gdtr", &state->gdtr);
    visit_table(v, "idtr", &state->idtr);
    visit_u64_max(v, "cr0", &state->cr0, UINT32_MAX);
    visit_u64(v, "cr2", &state->cr2);
    visit_u64(v, "cr3", &state->cr3);
    visit_u64_max(v, "cr4", &state->cr4, UINT32_MAX);
    visit_u64_max(v, "cr8", &state->cr8, 15);
    visit_u64(v, "xcr0", &state->xcr0);
    visit_array(v, "pdpte", state->pdpte, ARRAY_SIZE(state->pdpte));
    visit_array(v, "dr", state->dr, ARRAY_SIZE(state->dr));
    visit_u64_max(v, "dr6", &state->dr6, UINT32_MAX);
    visit_u64_max(v, "dr7", &state->dr7, UINT32_MAX);
}

static void visit_msrs(struct cpu_state *state, struct visitor *v)
{
    visit_u64_max(v, "efer", &state->efer, UINT32_MAX);
    visit_u64(v, "star", &state->star);
    visit_u64(v, "lstar", &state->lstar);
    visit_u64(v, "cstar", &state->cstar);
    visit_u64_max(v, "sfmask", &state->sfmask, UINT32_MAX);
    visit_u64(v, "kernel_gs_base", &state->kernel_gs_base);
    visit_u64(v, "sysenter_cs", &state->sysenter_cs);
    visit_u64(v, "sysenter_esp", &state->sysenter_esp);
    visit_u64(v, "sysenter_eip", &state->sysenter_eip);
    visit_u64_max(v, "tsc_aux", &state->tsc_aux, UINT32_MAX);
    visit_u64(v, "tsc_adjust", &state->tsc_adjust);
    visit_u64(v, "tsc_offset", &state->tsc_offset);
    visit_u64(v, "pat", &state->pat);
    visit_u64(v, "misc_enable", &state->misc_enable);
    visit_u64(v, "mtrr_def_type", &state->mtrr_def_type);
    visit_array(v, "mtrr_fixed", state->mtrr_fixed, ARRAY_SIZE(state->mtrr_fixed));
    visit_array(v, "mtrr_base", state->mtrr_base, ARRAY_SIZE(state->mtrr_base));
    visit_array(v, "mtrr_mask", state->mtrr_mask, ARRAY_SIZE(state->mtrr_mask));
    visit_u64(v, "mcg_status", &state->mcg_status);
    visit_u64(v, "spec_ctrl", &state->spec_ctrl);
}

/* What several fields say together. Ranges of single fields are declared where they are visited. */
static bool is_consistent(const struct cpu_state *state)
{
    bool bases = is_canonical(state->lstar) && is_canonical(state->cstar) &&
                 is_canonical(state->kernel_gs_base) && is_canonical(state->sysenter_esp) &&
                 is_canonical(state->sysenter_eip) && is_canonical(state->cr2);
    bool is_paging = state->cr0 & CR0_PG;
    bool is_long = state->efer & EFER_LMA;
    return bases && (state->rflags & FLAG_FIXED) && !(state->rflags & FLAGS_RESERVED) &&
           !(state->cr0 & CR0_RESERVED) && !(is_paging && !(state->cr0 & CR0_PE)) &&
           !(state->cr4 & cr4_reserved) && !(state->efer & efer_reserved) &&
           is_long == (is_paging && (state->efer & EFER_LME)) &&
           !(is_long && !(state->cr4 & CR4_PAE)) && !(state->rflags & FLAG_VM && is_long) &&
           !(state->cr3 >> 52) && xcr0_is_valid(state->xcr0, XCR0_KNOWN);
}

/* XRSTOR faults on reserved header bits and MXCSR bits: refuse them here, where it is an error. */
static bool xsave_is_loadable(const uint8_t *xsave)
{
    for (unsigned i = XSAVE_XCOMP_BV; i < XSAVE_HEADER_END; i++) {
        if (xsave[i]) {
            return false;
        }
    }
    return !(load_le64(xsave + XSAVE_XSTATE_BV) & ~XCR0_KNOWN) &&
           !(load_le32(xsave + XSAVE_MXCSR) & ~(uint32_t)MXCSR_WRITABLE);
}

void cpu_state_visit(struct cpu_state *state, struct visitor *v)
{
    visit_begin(v, "cpu", 2);
    visit_general(state, v);
    visit_system(state, v);
    visit_msrs(state, v);
    visit_u8_max(v, "activity", &state->activity, ACTIVITY_SHUTDOWN);
    visit_bool(v, "interrupt_shadow", &state->interrupt_shadow);
    visit_bool(v, "shadow_is_mov_ss", &state->shadow_is_mov_ss);
    visit_bool(v, "nmi_blocked", &state->nmi_blocked);
    visit_bool(v, "nmi_pending", &state->nmi_pending);
    visit_bool(v, "init_pending", &state->init_pending);
    visit_bool(v, "sipi_pending", &state->sipi_pending);
    visit_u8(v, "sipi_vector", &state->sipi_vector);
    visit_bool(v, "unhalted", &state->unhalted);
    visit_bytes(v, "xsave", state->xsave, sizeof state->xsave);
    refuse_if(v, !(is_consistent(state) && xsave_is_loadable(state->xsave)),
              "a CPU state that no CPU could be in");
    visit_end(v);
}

int cpu_state_check(const struct cpu_state *state, const struct cpuid_table *cpuid)
{
    uint64_t xcr0_allowed = cpuid_xcr0_allowed(cpuid) | XCR0_X87;
    uint64_t components = xcr0_allowed | XCR0_SSE; /* FXSAVE state exists without XSAVE */
    const struct {
        bool is_wrong;
        const char *name;
    } checks[] = {
        {state->cr4 & ~cpuid_cr4_allowed(cpuid), "CR4"},
        {state->efer & ~cpuid_efer_allowed(cpuid), "EFER"},
        {state->cr3 >> cpuid_physical_bits(cpuid), "CR3"},
        {!xcr0_is_valid(state->xcr0, xcr0_allowed), "XCR0"},
        {load_le64(state->xsave + XSAVE_XSTATE_BV) & ~components, "the vector state"},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(checks); i++) {
        if (checks[i].is_wrong) {
            return fail(-EINVAL, "the saved CPU state does not fit the CPU model: %s",
                        checks[i].name);
        }
    }
    return 0;
}
