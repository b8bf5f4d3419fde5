/*
 * The part of a vCPU that the engines without hardware support share: its state, its soft TLB,
 * its pending kicks, and how an instruction reports what it did. interp executes on it; translate
 * embeds it at the start of its vCPU block.
 */
#pragma once

#include "engine/counters.h"
#include "engine/debug.h"
#include "engine/engine.h"
#include "engine/tlb.h"
#include "x86/cpu_state.h"
#include "x86/walk.h"

/* What executing one instruction (or delivering one event) led to. */
enum step {
    STEP_NEXT,      /* done: state.rip names the next instruction */
    STEP_EXCEPTION, /* nothing of the instruction is visible; vcpu->exception says what to deliver
                     */
    STEP_HALT,      /* HLT: done, state.activity is ACTIVITY_HALTED */
    STEP_SHUTDOWN,  /* triple fault */
    STEP_ERROR,     /* not possible here; a sentence is on the trail */
};

struct exception {
    uint8_t vector;
    bool has_error_code;
    bool is_software; /* INT n, INT3, INTO: rip of the frame is behind the instruction */
    uint8_t length;   /* of the instruction, if is_software */
    uint32_t error_code;
    uint64_t cr2; /* #PF */
    uint64_t dr6; /* #DB: bits to set */
};

struct vcpu {
    struct cpu_state state; /* first: translated code addresses it from the segment base */
    struct exception exception;
    struct tlb *tlb;                 /* the soft TLB of the current address space */
    struct memory *memory;           /* borrowed */
    const struct cpuid_table *cpuid; /* borrowed */
    const struct engine_host *host;  /* borrowed */
    unsigned index;
    enum time_mode time_mode;
    uint64_t instructions;
    uint64_t debug_hits;    /* DR6 bits of the traps that come behind the instruction */
    _Atomic uint32_t kicks; /* enum kick and engine bits */
    _Atomic uint8_t sipi_vector;
    uint32_t pauses;            /* PAUSEs of kernel code until hooks->yield() */
    struct walk_mode walk_mode; /* derived from state; vcpu_mode_changed() renews it */
    /*
     * Called by the executor when a system register changed in a way that an engine caches:
     * paging mode, address space, or single pages. NULL in plain interp.
     */
    const struct vcpu_hooks *hooks;
    struct debug *debug;              /* borrowed; NULL: no debugger wants anything */
    struct native *native;            /* owned: see interp_attach() */
    void *engine;                     /* borrowed: the engine's own vCPU */
    struct engine_counters *counters; /* borrowed: what this vCPU writes, away from what is hot */
};

/* A change of guest-virtual mappings that the guest has asked for. */
enum flush_kind {
    FLUSH_PAGE,       /* INVLPG: one page, also global ones */
    FLUSH_NON_GLOBAL, /* MOV CR3 without PCID or without NOFLUSH; INVPCID single context */
    FLUSH_ALL,        /* CR4.PGE/PAE/PSE, CR0.PG/WP, EFER.NXE changes; INVPCID all with global */
    FLUSH_SWITCH,     /* MOV CR3 with NOFLUSH: another address space, nothing stale */
};

struct vcpu_hooks {
    /*
     * The guest's mappings changed. `pcid` is meaningful for FLUSH_NON_GLOBAL of a context that is
     * not the current one (INVPCID) and equals the current PCID otherwise.
     */
    void (*flush)(struct vcpu *vcpu, enum flush_kind kind, gva_t gva, uint16_t pcid);
    /* Run `function` while every other vCPU stands at a safe point (locked access across lines). */
    void (*exclusive)(struct vcpu *vcpu, void (*function)(void *argument), void *argument);
    /* vcpu->pauses has come to zero: give the host CPU to other threads, and set it again. */
    void (*yield)(struct vcpu *vcpu);
};

static inline void vcpu_count(struct vcpu *vcpu, enum engine_counter counter)
{
    counter_add(&vcpu->counters->values[counter], 1);
}

/* Around a wait of the vCPU's thread: how long it was, also while it lasts. */
static inline void vcpu_wait_begins(struct vcpu *vcpu)
{
    __atomic_store_n(&vcpu->counters->halted_since, engine_host_tsc(), __ATOMIC_RELAXED);
}
static inline void vcpu_wait_ends(struct vcpu *vcpu)
{
    counter_add(&vcpu->counters->values[COUNT_HALTED_CYCLES],
                engine_host_tsc() - vcpu->counters->halted_since);
    __atomic_store_n(&vcpu->counters->halted_since, 0, __ATOMIC_RELAXED);
}

/* Recompute what is derived from state (walk_mode). After any change of CR0, CR3, CR4, EFER, AC. */
void vcpu_mode_changed(struct vcpu *vcpu);

/*
 * The kicks that a machine must not forget (NMI, INIT, SIPI, UNHALT) move between vcpu->kicks,
 * where they arrive, and the state that is saved: out of the kicks for engine_ops.take_pending, on
 * any thread; into them for a state that was just set, together with KICK_INTERRUPT, since only the
 * machine knows what its interrupt controllers hold.
 */
void vcpu_take_pending(struct vcpu *vcpu, struct cpu_state *state);
void vcpu_raise_pending(struct vcpu *vcpu);

/* The guest's TSC as RDTSC would give it now. */
uint64_t vcpu_tsc(const struct vcpu *vcpu);
