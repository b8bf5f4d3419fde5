/*
 * A virtual machine: its life from building to its end.
 *
 * Purpose: joins config, memory, engine, bus and devices (board_pc.c lists them), and runs them.
 * Life:    BUILT -> RUNNING <-> PAUSED -> DEAD. vm_new() opens every host resource, vm_start()
 *          starts every thread, idle; so the caller can lock the process down in between and
 *          after, before the first guest instruction runs in vm_run().
 * Threads: vm_run() makes its caller the loop thread; there is one thread for each vCPU.
 *          vm_pause, vm_resume, vm_reset and vm_visit belong to the loop thread (or to any thread
 *          while vm_run() is not in progress); the vm_request_* calls may come from any thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "machine/config.h"

struct console_hub;
struct loop;
struct vm;
struct visitor;

enum vm_life { VM_BUILT, VM_RUNNING, VM_PAUSED, VM_DEAD };

/* Why a virtual machine ended. */
enum vm_end_kind {
    VM_END_NONE,
    VM_END_POWER_OFF,
    VM_END_RESET,        /* the guest asked for a reset, and config says not to */
    VM_END_TRIPLE_FAULT, /* the same for a triple fault */
    VM_END_DEBUG_EXIT,   /* a write to the debug-exit port; `value` is what was written */
    VM_END_QUIT,         /* the user asked for it: on the terminal, or by the signal `value` */
    VM_END_ERROR,        /* we could not go on; `message` says why */
};

struct vm_end {
    enum vm_end_kind kind;
    uint32_t value;
    char message[1024];
};

/* Build the machine and load the kernel. `config` is borrowed until vm_free(). */
int vm_new(const struct vm_config *config, struct vm **ret_vm) __attribute__((warn_unused_result));
/* Stops and joins the threads. NULL is fine. */
void vm_free(struct vm *vm);
/*
 * The sockets on which helper processes pass others to the machine: the jail lets it receive there.
 * Returns how many are in `fds`, at most VM_CHANNELS_MAX.
 */
enum { VM_CHANNELS_MAX = 2 };
size_t vm_channels(const struct vm *vm, int *fds);
/* The socket at which programs connect to the guest (--vsock); -1: none. */
int vm_listener(const struct vm *vm);

/* Start the threads and let the engine set up its vCPUs. No path is opened from here on. */
int vm_start(struct vm *vm) __attribute__((warn_unused_result));

/*
 * Whom to tell, instead of waiting for ever, that a vCPU does not stop; `message` says which one
 * and where it is. The process has to be ended there, without taking the machine apart: `stuck`
 * does not return. Without one the process aborts. Before vm_start().
 */
void vm_on_stuck(struct vm *vm, void (*stuck)(void *owner, const char *message), void *owner);

/*
 * Nobody will reset this machine: the files of kernel, initrd and modules need not be kept. Not
 * while vm_run() is in progress.
 */
void vm_never_resets(struct vm *vm);

/* Let vm_run() begin PAUSED, before the first instruction, until vm_resume(). Before vm_run(). */
void vm_start_paused(struct vm *vm);

/* Run until the machine ends. */
void vm_run(struct vm *vm, struct vm_end *ret_end);

/* Stop all vCPUs at an instruction boundary and all device work, and go on again. */
void vm_pause(struct vm *vm);
void vm_resume(struct vm *vm);
/* What the reset button does: devices and vCPUs at power-on state, kernel loaded again. */
int vm_reset(struct vm *vm) __attribute__((warn_unused_result));

/* Ask for a pause. True: the first to do so since the machine went on. Any thread. */
bool vm_request_pause(struct vm *vm);
/* Ask for a reset (or, with no_reboot, the end). Any thread. */
void vm_request_reset(struct vm *vm);
/*
 * Press the power button. Returns whether the guest listens to it, so that it may be expected to
 * switch itself off; a guest that starts to listen later forgets the press. Any thread.
 */
bool vm_press_power_button(struct vm *vm);
/* Does the guest listen to the power button? Any thread. */
bool vm_power_button_enabled(struct vm *vm);
/* End the machine; the first end counts. Any thread. */
void vm_request_end(struct vm *vm, enum vm_end_kind kind, uint32_t value);

/*
 * Save, load, compare or print the whole machine: vCPUs, devices in board order, memory. While
 * BUILT (load) or PAUSED.
 */
int vm_visit(struct vm *vm, struct visitor *v) __attribute__((warn_unused_result));

enum vm_life vm_life(const struct vm *vm);
struct loop *vm_loop(struct vm *vm);
/* The console, for viewers. */
struct console_hub *vm_console(struct vm *vm);
/* Text to where --trace writes. */
void vm_write_trace(struct vm *vm, const char *text);
const char *vm_name(const struct vm *vm);
/* The name of the engine that was picked. */
const char *vm_engine_name(const struct vm *vm);
