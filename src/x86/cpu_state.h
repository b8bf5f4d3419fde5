/*
 * The architectural state of one virtual CPU: one plain struct, the same for every engine. It is
 * what is saved, moved and compared. Intel SDM volume 3, chapter 2 (system registers), and
 * volume 1, chapter 3 (basic execution environment).
 */
#pragma once

#include <stdalign.h>
#include <stdbool.h>
#include <stdint.h>

struct visitor;

/* clang-format off */
/* General registers in the order of the instruction encoding. */
enum gpr {
    RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15,
    GPR_COUNT,
};

/* Segment registers in the order of the instruction encoding. */
enum segment_register { ES, CS, SS, DS, FS, GS, SEGMENT_COUNT };
/* clang-format on */

/* RFLAGS */
enum {
    FLAG_CF = 1u << 0,
    FLAG_FIXED = 1u << 1, /* always one */
    FLAG_PF = 1u << 2,
    FLAG_AF = 1u << 4,
    FLAG_ZF = 1u << 6,
    FLAG_SF = 1u << 7,
    FLAG_TF = 1u << 8,
    FLAG_IF = 1u << 9,
    FLAG_DF = 1u << 10,
    FLAG_OF = 1u << 11,
    FLAG_IOPL = 3u << 12,
    FLAG_NT = 1u << 14,
    FLAG_RF = 1u << 16,
    FLAG_VM = 1u << 17,
    FLAG_AC = 1u << 18,
    FLAG_VIF = 1u << 19,
    FLAG_VIP = 1u << 20,
    FLAG_ID = 1u << 21,
    FLAGS_ARITHMETIC = FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF,
};

/* CR0 */
enum {
    CR0_PE = 1u << 0,
    CR0_MP = 1u << 1,
    CR0_EM = 1u << 2,
    CR0_TS = 1u << 3,
    CR0_ET = 1u << 4,
    CR0_NE = 1u << 5,
    CR0_WP = 1u << 16,
    CR0_AM = 1u << 18,
    CR0_NW = 1u << 29,
    CR0_CD = 1u << 30,
    CR0_PG = 1u << 31,
};

/* CR4 */
enum {
    CR4_VME = 1u << 0,
    CR4_PVI = 1u << 1,
    CR4_TSD = 1u << 2,
    CR4_DE = 1u << 3,
    CR4_PSE = 1u << 4,
    CR4_PAE = 1u << 5,
    CR4_MCE = 1u << 6,
    CR4_PGE = 1u << 7,
    CR4_PCE = 1u << 8,
    CR4_OSFXSR = 1u << 9,
    CR4_OSXMMEXCPT = 1u << 10,
    CR4_UMIP = 1u << 11,
    CR4_LA57 = 1u << 12,
    CR4_FSGSBASE = 1u << 16,
    CR4_PCIDE = 1u << 17,
    CR4_OSXSAVE = 1u << 18,
    CR4_SMEP = 1u << 20,
    CR4_SMAP = 1u << 21,
    CR4_PKE = 1u << 22,
};

/* IA32_EFER */
enum {
    EFER_SCE = 1u << 0,
    EFER_LME = 1u << 8,
    EFER_LMA = 1u << 10,
    EFER_NXE = 1u << 11,
    EFER_FFXSR = 1u << 14,
    EFER_AIBRSE = 1u << 21, /* AMD: automatic IBRS */
};

/* XCR0 state components. SDM volume 1, 13.1. */
enum {
    XCR0_X87 = 1u << 0,
    XCR0_SSE = 1u << 1,
    XCR0_AVX = 1u << 2,
    XCR0_OPMASK = 1u << 5,
    XCR0_ZMM_HI256 = 1u << 6,
    XCR0_HI16_ZMM = 1u << 7,
    XCR0_AVX512 = XCR0_OPMASK | XCR0_ZMM_HI256 | XCR0_HI16_ZMM,
};
/* All components that cpu_state has room for. */
#define XCR0_KNOWN ((uint64_t)(XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512))

/* May XSETBV write this value where `allowed` components are offered? SDM volume 1, 13.3. */
static inline bool xcr0_is_valid(uint64_t value, uint64_t allowed)
{
    uint64_t avx512 = value & XCR0_AVX512;
    return !(value & ~allowed) && (value & XCR0_X87) && (!(value & XCR0_AVX) || value & XCR0_SSE) &&
           (!avx512 || (avx512 == XCR0_AVX512 && value & XCR0_AVX));
}

/* Exception vectors. SDM volume 3, table 6-1. */
enum exception_vector {
    EXCEPTION_DE = 0,
    EXCEPTION_DB = 1,
    EXCEPTION_NMI = 2,
    EXCEPTION_BP = 3,
    EXCEPTION_OF = 4,
    EXCEPTION_BR = 5,
    EXCEPTION_UD = 6,
    EXCEPTION_NM = 7,
    EXCEPTION_DF = 8,
    EXCEPTION_TS = 10,
    EXCEPTION_NP = 11,
    EXCEPTION_SS = 12,
    EXCEPTION_GP = 13,
    EXCEPTION_PF = 14,
    EXCEPTION_MF = 16,
    EXCEPTION_AC = 17,
    EXCEPTION_MC = 18,
    EXCEPTION_XM = 19,
};

/*
 * The hidden part of a segment register. `attributes` holds bits 8..15 and 20..23 of the
 * descriptor's upper half, shifted down to bits 0..7 (type, S, DPL, P) and 12..15 (AVL, L, D/B,
 * G): the layout that VMX and KVM use. `limit` is in bytes, granularity already applied.
 */
struct segment {
    uint64_t base;
    uint32_t limit;
    uint16_t selector;
    uint16_t attributes;
};

enum {
    SEGMENT_TYPE = 0xf,
    SEGMENT_ACCESSED = 1u << 0,
    SEGMENT_WRITABLE = 1u << 1,    /* data; code: readable */
    SEGMENT_EXPAND_DOWN = 1u << 2, /* data; code: conforming */
    SEGMENT_CODE = 1u << 3,
    SEGMENT_S = 1u << 4, /* code or data, not a system segment */
    SEGMENT_DPL_SHIFT = 5,
    SEGMENT_DPL = 3u << 5,
    SEGMENT_P = 1u << 7,
    SEGMENT_AVL = 1u << 12,
    SEGMENT_L = 1u << 13,
    SEGMENT_DB = 1u << 14,
    SEGMENT_G = 1u << 15,
    /* not in the descriptor: a null selector was loaded, every use faults (as in VMX) */
    SEGMENT_UNUSABLE = 1u << 11,
};

struct descriptor_table {
    uint64_t base;
    uint16_t limit;
};

/* What the CPU is doing between instructions. */
enum activity {
    ACTIVITY_RUNNING,
    ACTIVITY_HALTED,    /* HLT: waits for an interrupt, NMI, INIT */
    ACTIVITY_WAIT_SIPI, /* after INIT on an application processor */
    ACTIVITY_SHUTDOWN,  /* triple fault */
};

/* Size of the standard-format XSAVE area up to PKRU (component 9) on every known CPU. */
enum { XSAVE_AREA_SIZE = 2752 };

struct cpu_state {
    uint64_t gpr[GPR_COUNT];
    uint64_t rip;
    uint64_t rflags;
    struct segment segment[SEGMENT_COUNT];
    struct segment ldtr;
    struct segment tr;
    struct descriptor_table gdtr;
    struct descriptor_table idtr;
    uint64_t cr0, cr2, cr3, cr4, cr8, xcr0;
    uint64_t
        pdpte[4]; /* PAE paging: loaded by MOV CR3, used until the next (SDM volume 3, 4.4.1) */
    uint64_t dr[4], dr6, dr7;

    /* model-specific registers that belong to the CPU itself */
    uint64_t efer, star, lstar, cstar, sfmask, kernel_gs_base;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t tsc_aux, tsc_adjust, tsc_offset; /* guest TSC = host TSC + tsc_offset */
    uint64_t pat, misc_enable;
    uint64_t mtrr_def_type, mtrr_fixed[11], mtrr_base[8], mtrr_mask[8];
    uint64_t mcg_status, spec_ctrl;

    /* pending work, in the order of SDM volume 3, table 6-2 */
    uint8_t activity; /* enum activity */
    bool
        interrupt_shadow; /* after STI or MOV SS/POP SS: no interrupt before the next instruction */
    bool shadow_is_mov_ss; /* the shadow also holds debug traps back */
    bool nmi_blocked;      /* between NMI delivery and IRET */
    bool nmi_pending;
    bool init_pending; /* in a state at rest: while it runs, the engine holds these two as kicks */
    bool sipi_pending; /* with sipi_vector */
    uint8_t sipi_vector;
    bool unhalted; /* a hypercall has said that the next HLT shall not wait */

    /* x87, SSE, AVX... in the standard format of XSAVE; XSTATE_BV tells what is not initial */
    alignas(64) uint8_t xsave[XSAVE_AREA_SIZE];
};

/*
 * The state after RESET. SDM volume 3, table 9-1. `is_bsp` decides the activity. Who knows the CPU
 * model puts its signature (CPUID.1:EAX) into RDX; here RDX only says family 6.
 */
void cpu_state_reset(struct cpu_state *state, bool is_bsp);
/*
 * INIT: like RESET, but keeps the x87/SSE state, CR0.CD/NW, XCR0, the time-stamp counter and the
 * MSRs of table 9-1. A processor that is not the BSP then waits for a SIPI.
 */
void cpu_state_init_ipi(struct cpu_state *state, bool is_bsp);

/*
 * Save, load, compare, print. A state that is read is hostile: what no CPU could hold (reserved
 * bits, non-canonical bases, an XSAVE header that XRSTOR refuses) is an error.
 */
void cpu_state_visit(struct cpu_state *state, struct visitor *v);

struct cpuid_table;
/*
 * Does a state that was loaded fit the CPU model: no bit of a control register, no state component
 * and no address that the model does not have? 0, or -EINVAL with what is wrong on the trail.
 */
int cpu_state_check(const struct cpu_state *state, const struct cpuid_table *cpuid)
    __attribute__((warn_unused_result));

/* The MXCSR bits of every model; others are #GP. AMD's MM (bit 17) is not offered. */
enum { MXCSR_WRITABLE = 0xffff };

/* Does a 64-bit address have copies of bit 47 above it? SDM volume 1, 3.3.7.1. */
static inline bool is_canonical(uint64_t address)
{
    return (uint64_t)((int64_t)(address << 16) >> 16) == address;
}

/* The current privilege level: DPL of SS (SDM volume 3, 5.5). */
static inline unsigned cpu_state_cpl(const struct cpu_state *state)
{
    return (state->segment[SS].attributes & SEGMENT_DPL) >> SEGMENT_DPL_SHIFT;
}

static inline bool cpu_state_is_long(const struct cpu_state *state)
{
    return state->efer & EFER_LMA;
}

/* 64-bit mode proper: IA-32e mode and CS.L. */
static inline bool cpu_state_is_64bit(const struct cpu_state *state)
{
    return (state->efer & EFER_LMA) && (state->segment[CS].attributes & SEGMENT_L);
}
