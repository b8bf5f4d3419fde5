/*
 * What the GDB stub needs of a machine, as calls, so that tests and the fuzzer can be one. All but
 * `stop` are called while the machine stands still.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/debug.h"
#include "machine/vm_debug.h"
#include "x86/cpu_state.h"

enum { GDB_CPUS_MAX = 8 };

struct gdb_target {
    unsigned cpus;
    uint64_t xcr0; /* what the CPU model offers */
    void (*get_state)(void *owner, unsigned cpu, struct cpu_state *ret_state);
    /* A negative errno for a state that no CPU of the model could be in. */
    int (*set_state)(void *owner, unsigned cpu, const struct cpu_state *state);
    /* How many bytes could be had. */
    size_t (*read)(void *owner, unsigned cpu, gva_t gva, void *buffer, size_t size);
    size_t (*write)(void *owner, unsigned cpu, gva_t gva, const void *buffer, size_t size);
    void (*resume)(void *owner, const struct debug_points *points,
                   const enum vm_debug_action *actions);
    /* Stop it, if it runs. True: a vCPU had stopped by itself, and why. */
    bool (*stop)(void *owner, unsigned *ret_cpu, struct debug_stop *ret_stop);
    int (*reset)(void *owner);
    /* End the machine, soon. */
    void (*quit)(void *owner);
    void *owner;
};
