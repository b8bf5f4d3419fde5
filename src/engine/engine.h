/*
 * Engines: how a virtual CPU runs. One interface for interp, translate (and later direct, kvm).
 *
 * Purpose: run() executes guest code of one vCPU until something happens that the machine has to
 *          decide. Device accesses do not end run(): the engine calls the machine through struct
 *          engine_host, because one instruction may make several (REP MOVS on a device,
 *          an I/O TSS check before an IN) and a call costs a fraction of an exit.
 * Knows:   cpu_state, memory. Knows no device, no interrupt controller.
 * Threads: each vCPU belongs to one thread, which calls run/get_state/set_state; kick() may be
 *          called from any thread and from signal handlers.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/counters.h"
#include "engine/trace.h"
#include "memory/memory.h"
#include "x86/cpu_state.h"

struct cpuid_table;
struct debug;
struct debug_points;

/* What an engine may ask of the machine. Given at vm_new; every call is on the vCPU's thread. */
struct engine_host {
    /* Port I/O; size 1, 2 or 4. A port nobody owns reads all ones. */
    uint32_t (*port_read)(void *owner, unsigned vcpu, uint16_t port, unsigned size);
    void (*port_write)(void *owner, unsigned vcpu, uint16_t port, unsigned size, uint32_t value);
    /* Physical addresses that are not RAM; size 1 to 8, never across a page. */
    uint64_t (*mmio_read)(void *owner, unsigned vcpu, gpa_t gpa, unsigned size);
    void (*mmio_write)(void *owner, unsigned vcpu, gpa_t gpa, unsigned size, uint64_t value);
    /* MSRs that the CPU itself does not own (APIC, KVM clock...); false means #GP(0). */
    bool (*msr_read)(void *owner, unsigned vcpu, uint32_t index, uint64_t *ret_value);
    bool (*msr_write)(void *owner, unsigned vcpu, uint32_t index, uint64_t value);
    /*
     * Do accesses to this MSR use general registers only, and wait for nobody for longer than a
     * moment? Then no safe point is needed around them. NULL: none does.
     */
    bool (*is_quick_msr)(void *owner, uint32_t index);
    /*
     * VMCALL or VMMCALL at privilege level 0: the answer for RAX. General registers only; waits for
     * nobody.
     */
    uint64_t (*hypercall)(void *owner, unsigned vcpu, uint64_t number, const uint64_t argument[4]);
    /* The vector to deliver now, or -1 if none is deliverable any more. Acknowledges it. */
    int (*interrupt_acknowledge)(void *owner, unsigned vcpu);
    /* CR8 is the task priority of the local APIC. */
    uint64_t (*cr8_read)(void *owner, unsigned vcpu);
    void (*cr8_write)(void *owner, unsigned vcpu, uint64_t value);
    /* The guest wrote its TSC (IA32_TIME_STAMP_COUNTER, IA32_TSC_ADJUST): the new offset. */
    void (*tsc_changed)(void *owner, unsigned vcpu, uint64_t tsc_offset);
    void *owner;
};

/* Why run() came back. */
enum exit_kind {
    EXIT_INTERRUPTED,  /* stop was asked for with KICK_STOP */
    EXIT_HALT,         /* HLT, or waiting for SIPI: wait for vcpu_has_work(), then run again */
    EXIT_TRIPLE_FAULT, /* shutdown: the machine resets or ends the VM */
    EXIT_DEBUG,        /* the stop of its struct debug says why */
    EXIT_ERROR,        /* we cannot go on; a sentence is on the trail of this thread */
};

/* Reasons for a kick; they gather in a mask until the vCPU has seen them. */
enum kick {
    KICK_INTERRUPT = 1u << 0, /* interrupt_acknowledge may have a vector */
    KICK_NMI = 1u << 1,
    KICK_INIT = 1u << 2,
    KICK_SIPI = 1u << 3,
    KICK_STOP = 1u << 4,   /* leave run() with EXIT_INTERRUPTED */
    KICK_DEBUG = 1u << 5,  /* of the engines: ask engine/debug.h between two instructions */
    KICK_UNHALT = 1u << 6, /* end HLT, or the next one if the vCPU is not halted yet */
    /* bits 8 and up belong to the engines */
};

/* How guest time advances. */
enum time_mode {
    TIME_HOST,          /* guest TSC = host TSC + tsc_offset */
    TIME_DETERMINISTIC, /* guest TSC = instructions executed */
};

/* translate: which code gets the units that cost more to make. */
enum hot_code {
    HOT_SAMPLED, /* user code that takes a good part of the time */
    HOT_ALL,
    HOT_NONE,
};

/* What translate does to be fast. Tests switch each of them off, or at random. */
enum optimization {
    OPTIMIZE_GROUPS,    /* one check for neighbouring operands, pushes and pops */
    OPTIMIZE_RECIPES,   /* flags made again instead of saved */
    OPTIMIZE_LOOPS,     /* a second body for the rounds of a loop */
    OPTIMIZE_STRIDES,   /* rounds without checks */
    OPTIMIZE_REGISTERS, /* a hot page's own choice of displaced registers */
    OPTIMIZE_ADDRESSES, /* units for any address */
    OPTIMIZE_CHAINS,    /* direct exits inside a page patched */
    OPTIMIZE_LINKS,     /* slots of direct exits to other pages filled */
    OPTIMIZE_RETURNS,   /* returns by the private stack */
    OPTIMIZE_STRINGS,   /* REP MOVS and STOS inline */
    OPTIMIZE_VERSIONS,  /* units that check themselves for code that keeps changing */
    OPTIMIZATIONS
};

struct code_policy {
    enum hot_code hot;
    uint32_t without; /* bits: 1 << enum optimization */
    uint32_t random;  /* a seed: each unit or page does without half of them; 0: does not */
};

struct engine_config {
    struct memory *memory;           /* borrowed */
    const struct cpuid_table *cpuid; /* borrowed */
    struct engine_host host;
    unsigned cpus;
    enum time_mode time_mode;
    uint64_t cache_size;     /* translate: bytes of code cache; 0 chooses */
    struct code_policy code; /* translate */
    struct engine_trace trace;
};

struct engine_vm;
struct engine_vcpu;

struct engine_ops {
    const char *name;
    /* Can this engine run here? 0, or a negative errno with the reason on the trail. */
    int (*probe)(void);
    int (*vm_new)(const struct engine_config *config, struct engine_vm **ret_vm);
    void (*vm_free)(struct engine_vm *vm);
    /* Call on the thread that will run it. The state is that of a RESET. */
    int (*vcpu_new)(struct engine_vm *vm, unsigned index, struct engine_vcpu **ret_vcpu);
    void (*vcpu_free)(struct engine_vcpu *vcpu);
    enum exit_kind (*run)(struct engine_vcpu *vcpu);
    /* Any thread, async-signal-safe. `sipi_vector` matters for KICK_SIPI only. */
    void (*kick)(struct engine_vcpu *vcpu, unsigned kicks, uint8_t sipi_vector);
    /*
     * Block the vCPU's thread until a kick arrives that its state can answer (an interrupt with
     * IF = 0 cannot) or until `deadline_ns` of CLOCK_MONOTONIC. After EXIT_HALT.
     */
    void (*wait)(struct engine_vcpu *vcpu, uint64_t deadline_ns);
    /*
     * While not running. Kicks are no part of the state until take_pending() puts them there;
     * set_state() adds what is pending in the state to the kicks and asks for interrupts anew.
     */
    void (*get_state)(struct engine_vcpu *vcpu, struct cpu_state *ret_state);
    void (*set_state)(struct engine_vcpu *vcpu, const struct cpu_state *state);
    /*
     * Move kicks that wait (NMI, INIT, SIPI, UNHALT) into the pending events of a state, in
     * addition to what is there. Any thread, while not running and once nobody kicks any more.
     */
    void (*take_pending)(struct engine_vcpu *vcpu, struct cpu_state *state);
    /* Instructions executed so far (TIME_DETERMINISTIC; otherwise a lower bound). Any thread. */
    uint64_t (*instructions)(const struct engine_vcpu *vcpu);
    /*
     * TIME_DETERMINISTIC: leave run() once, with EXIT_INTERRUPTED, between two instructions when
     * this many have been executed (UINT64_MAX: never). On the vCPU's thread, also from within
     * calls of engine_host.
     */
    void (*set_deadline)(struct engine_vcpu *vcpu, uint64_t instructions);
    /*
     * What a debugger wants of this vCPU (engine/debug.h), borrowed until the next call; NULL:
     * nothing. While not running, and before set_state(), which forgets mappings of before.
     */
    void (*set_debug)(struct engine_vcpu *vcpu, struct debug *debug);
    /*
     * New breakpoints: what was made of the code around them goes. While no vCPU runs. NULL for an
     * engine that makes nothing of code.
     */
    void (*breaks_changed)(struct engine_vm *vm, const struct debug_points *points);
    /* What the vCPU has counted, and what happened on threads that are no vCPU's. Any thread. */
    const struct engine_counters *(*counters)(const struct engine_vcpu *vcpu);
    const struct engine_counters *(*vm_counters)(const struct engine_vm *vm);
    /*
     * Where the vCPU was seen last, for a message about one that does not come back: what it did
     * (COUNT_SAMPLE_*) and a guest-virtual address that it had come to. Any thread, while it runs.
     */
    enum engine_counter (*where)(const struct engine_vcpu *vcpu, uint64_t *ret_rip);
};

extern const struct engine_ops interp_engine;
extern const struct engine_ops translate_engine;

/* The guest's TSC now, for a vCPU state, in TIME_HOST. General registers only. */
static inline uint64_t engine_host_tsc(void)
{
    return __builtin_ia32_rdtsc();
}
