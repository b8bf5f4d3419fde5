/*
 * The process of a virtual machine: takes its name, builds it, closes the jail around it, and runs
 * it to its end. Everything that can be refused is refused before the first instruction of the
 * guest.
 */
#pragma once

#include <stdbool.h>

#include "machine/config.h"

struct monitor {
    struct vm_config config;
    const char *gdb; /* what --gdb says; NULL: no debugger */
    bool jail;
    bool verbose;
    bool is_named;      /* by the user */
    bool waits;         /* the guest runs when whoever looks at its console says so */
    bool is_background; /* it is kept, and has neither terminal nor parent that matter */
    /*
     * -1, or a pipe that is closed when it is decided whether the guest runs: after the byte
     * MONITOR_RUNS if it does, otherwise after a sentence that says why not.
     */
    int news;
};
enum { MONITOR_RUNS = 'R' };

/* The exit status of the program. Dies by the signal that ended the machine, if one did. */
int monitor_run(struct monitor *monitor);
