/*
 * What a debugger may do with a machine: look at and change registers and memory while it is
 * PAUSED, and let it go on with breakpoints, watchpoints and steps (engine/debug.h). All vCPUs stop
 * together, and guest time with them.
 *
 * Threads: the loop's thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/debug.h"

struct cpu_state;
struct vm;

/* Who wants to know that a vCPU has stopped by itself. */
struct vm_debugger {
    /* The others are on their way: vm_pause(), then vm_debug_stopped(). Loop thread. */
    void (*stopped)(void *owner);
    void *owner;
};
/* Before vm_run(); the struct is copied. */
void vm_debug_attach(struct vm *vm, const struct vm_debugger *debugger);

unsigned vm_debug_cpus(const struct vm *vm);
/* The XCR0 components that the CPU model offers. */
uint64_t vm_debug_xcr0(const struct vm *vm);

/* ---- while PAUSED ---- */

/*
 * A vCPU that has stopped by itself, which is told once. A breakpoint that is told is passed when
 * the machine goes on; one that is not is met again. False: there is none.
 */
bool vm_debug_stopped(struct vm *vm, unsigned *ret_vcpu, struct debug_stop *ret_stop);

void vm_debug_get_state(struct vm *vm, unsigned vcpu, struct cpu_state *ret_state);
/* -EINVAL, with a sentence, for a state that no CPU of the model could be in. */
int vm_debug_set_state(struct vm *vm, unsigned vcpu, const struct cpu_state *state)
    __attribute__((warn_unused_result));

/*
 * Guest memory as a vCPU maps it, whatever the rights say; no accessed or dirty bit of a page table
 * changes, and no device is touched. Returns how many bytes there were before the first that is
 * not RAM.
 */
size_t vm_debug_read(struct vm *vm, unsigned vcpu, gva_t gva, void *buffer, size_t size);
size_t vm_debug_write(struct vm *vm, unsigned vcpu, gva_t gva, const void *buffer, size_t size);

enum vm_debug_action { VM_DEBUG_HOLD, VM_DEBUG_CONTINUE, VM_DEBUG_STEP };
/* Go on with these points (copied), each vCPU by its action; not all may be held. */
void vm_debug_resume(struct vm *vm, const struct debug_points *points,
                     const enum vm_debug_action *actions);
