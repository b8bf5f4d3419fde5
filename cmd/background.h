/*
 * Kept machines in processes of their own, without a terminal: their console goes to the log in
 * their folder and to whoever attaches.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "control/machine.h"

/* What is said anew at each start. */
struct start_options {
    const char *gdb; /* NULL: no debugger */
    bool jail;
    bool waits; /* until background_attach() looks at its console: nothing is missed */
};

/*
 * Start a machine that is open and locked, and wait until its guest runs: 0, or why it does not.
 * The machine is closed in any case; its lock is the new process's then.
 */
int background_start(struct machine *machine, const struct start_options *options, pid_t *ret_pid)
    __attribute__((warn_unused_result));

/*
 * Look at a machine's console until it ends or is left, and tell how. `pid` is 0, or the machine's
 * process if this one has started it: to wait. Returns the exit status.
 */
int background_attach(const char *name, pid_t pid);
