/*
 * The console of a machine on this process's terminal, or standard input and output. The machine is
 * another process, so leaving it, however it happens, does it no harm.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum attach_end {
    ATTACH_ENDED,    /* the machine has ended: status and text say how */
    ATTACH_DETACHED, /* Ctrl-a d, or the terminal is gone */
    ATTACH_LOST,     /* the machine's process died without a word */
};

struct attachment {
    enum attach_end end;
    int status;
    char text[256];
};

/*
 * `child` (0: none) is the machine's process if this one has started it, to wait: it is let go when
 * its console is seen, and SIGTERM and SIGINT are passed on to it.
 */
int attach(const char *name, pid_t child, struct attachment *ret_attachment)
    __attribute__((warn_unused_result));
