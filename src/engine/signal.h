/*
 * Faults of code that an engine made: signals on a vCPU's thread go to the handlers that the
 * thread has registered, each of which knows its own code by the instruction pointer.
 */
#pragma once

#include <signal.h>
#include <stdbool.h>
#include <ucontext.h>

/*
 * Look at the context and, if the fault is in the handler's own code, change it so that returning
 * from the signal goes on somewhere else. Must be async-signal-safe; never longjmp: the vector
 * state of the interrupted code is in the frame.
 */
typedef bool fault_handler_fn(siginfo_t *info, ucontext_t *context, void *owner);

/*
 * Register on the calling thread (at most 4; gives the thread an alternate signal stack).
 * SIGFPE, SIGSEGV, SIGBUS, SIGILL and SIGTRAP that nobody wants act as they did before.
 */
int fault_handler_add(fault_handler_fn *handler, void *owner) __attribute__((warn_unused_result));
/* On the same thread. Not registered is fine. */
void fault_handler_remove(fault_handler_fn *handler, void *owner);
