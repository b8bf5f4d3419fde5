/* What the files of machine/ share: the one struct that everything of a virtual machine hangs from.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "boot/acpi.h"
#include "boot/boot.h"
#include "bus/bus.h"
#include "device/irqchip/irqchip.h"
#include "engine/debug.h"
#include "machine/stats.h"
#include "machine/vm.h"
#include "machine/vm_debug.h"

struct console;
struct device;
struct host_clock;
struct pci_bus;
struct test_clock;

struct vm_vcpu {
    struct vm *vm; /* borrowed */
    unsigned index;
    pthread_t thread;
    bool has_thread;
    bool is_parked;                           /* stands still; guarded by vm->lock */
    _Atomic(struct engine_vcpu *) engine;     /* owned by the vCPU's thread */
    _Atomic uint64_t tsc_offset;              /* as the engine has it, for other threads */
    uint64_t accesses[MACHINE_COUNTER_COUNT]; /* counted as the engine's counters are */
    _Atomic bool init_pending;                /* an INIT was sent: the local APIC has to follow */
    /* While parked, under vm->lock: */
    struct cpu_state state;
    bool state_changed; /* the engine has to take it over before it runs */
    /* vm_debug.c */
    struct debug debug;
    bool is_held;    /* stays parked while others run */
    bool is_stopped; /* debug.stop says why, and nobody was told yet */
};

enum { BOARD_DEVICES_MAX = 32 };

/* The board: everything that the guest sees beside CPUs and memory. */
struct board {
    struct bus *bus;
    struct irqchip *irqchip; /* owned by its device */
    struct pci_bus *pci;
    struct device *kvmclock, *pm;   /* borrowed from the list */
    struct console *serial_console; /* serial ports borrow theirs */
    struct console_hub *hub;        /* the console that the configuration names; borrowed */
    struct device *devices[BOARD_DEVICES_MAX];
    size_t device_count;
    /* For the jail; -1: none. They belong to their backends. */
    int net_channel, vsock_channel; /* where helper processes pass us sockets */
    int vsock_listener;
};

struct vm {
    const struct vm_config *config; /* borrowed */
    struct loop *loop;
    struct host_clock *host_clock; /* TIME_HOST, else NULL */
    struct test_clock *step_clock; /* TIME_DETERMINISTIC, else NULL */
    struct clock clock;
    uint64_t tsc_hz;
    uint64_t made_tsc, made_ns; /* when the machine was made: the host's TSC and CLOCK_MONOTONIC */
    struct memory *memory;
    struct cpuid_table *cpuid;
    const struct engine_ops *engine_ops;
    struct engine_vm *engine;
    struct vm_trace *trace;
    struct board board;
    struct boot_file kernel, initrd, modules[VM_MODULES_MAX];

    struct vm_vcpu *vcpus;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum vm_life life;
    int start_error; /* the first failure of a vCPU thread at its start */
    char start_message[512];
    bool quitting;             /* vCPU threads shall return */
    _Atomic bool stop;         /* vCPU threads shall park */
    _Atomic bool reset_wanted; /* by the guest, and not done yet */
    _Atomic bool pause_wanted; /* by a device, since the machine went on last */
    struct vm_end end;
    void (*stuck)(void *owner, const char *message);
    void *stuck_owner;
    uint64_t last_report_ns; /* when a triple fault was last shown */
    /* Where time stood when the machine was last stopped. */
    uint64_t stopped_tsc, stopped_ns;
    uint64_t skipped_ns; /* step_clock: virtual time less executed instructions */
    struct vm_debugger debugger;
    struct debug_points debug_points;
    bool starts_paused;
    bool never_resets; /* kernel, initrd and modules are empty */
};

/* tsc.c: the rate of the host's TSC against CLOCK_MONOTONIC_RAW. Takes about 10 ms. */
uint64_t tsc_measure_hz(void);

/* vcpu_loop.c */
int vcpu_threads_start(struct vm *vm) __attribute__((warn_unused_result));
void vcpu_threads_join(struct vm *vm);
/* Let all vCPUs run; wait until all of them are parked. Loop thread. */
void vcpu_threads_go(struct vm *vm);
void vcpu_threads_stop(struct vm *vm);
/* Tell all vCPUs to park, without waiting. Any thread. */
void vcpu_threads_ask_stop(struct vm *vm);
/* Once nobody kicks them any more: put into their states what was still on its way to them. */
void vcpu_states_complete(struct vm *vm);

/* engine_host.c: what the engine may ask. */
struct engine_host engine_host_for(struct vm *vm);

/* irqchip_wire.c: what the interrupt controllers may ask. */
struct irqchip_wire irqchip_wire_for(struct vm *vm);
/* The guest's TSC of a vCPU now. Any thread. */
uint64_t vm_tsc_now(struct vm *vm, unsigned vcpu);

/* hypercall.c: engine_host.hypercall. */
uint64_t vm_hypercall(void *owner, unsigned vcpu, uint64_t number, const uint64_t argument[4]);

/*
 * step_time.c, for TIME_DETERMINISTIC (the first two do nothing otherwise): bring the clock up to
 * the executed instructions, which may expire alarms; let the engine come back for the next alarm.
 */
void step_time_advance(struct vm *vm);
void step_time_arm(struct vm *vm);
/* The CPU is halted: jump to the next alarm. False: there is none. */
bool step_time_skip(struct vm *vm, struct engine_vcpu *engine);
/* After a stop or a restore: time goes on from stopped_ns. */
void step_time_restart(struct vm *vm);

/* vm_debug.c: on the vCPU's thread, before it runs and when it came back with EXIT_DEBUG. */
void vm_debug_arm(struct vm_vcpu *vcpu, struct engine_vcpu *engine);
void vm_debug_came_back(struct vm_vcpu *vcpu);
/* stats.c: before anything is counted. */
void stats_begin(struct vm *vm);

/* vm.c */
void vm_request_error(struct vm *vm, const char *message);
void vm_triple_fault(struct vm *vm, unsigned vcpu, const struct cpu_state *state);

/* board_pc.c: the address map, then everything that stands on it. */
struct board_map {
    struct memory_range ram[4];
    size_t ram_count;
    struct e820_entry e820[E820_MAX];
    size_t e820_count;
    uint64_t ram_below_4g, ram_above_4g;
    uint64_t window64_base, window64_size;
};
void board_map_make(uint64_t memory_size, struct board_map *ret_map);
int board_new(struct vm *vm) __attribute__((warn_unused_result));
void board_free(struct board *board);
void board_pause(struct board *board);
void board_resume(struct board *board);
/* After power-on or reset: firmware's work (PCI addresses, ACPI tables), then the kernel. */
int board_boot(struct vm *vm, struct cpu_state *state) __attribute__((warn_unused_result));

/* triple_fault.c: what happened, on one screen. */
void triple_fault_report(struct vm *vm, unsigned vcpu, const struct cpu_state *state);
