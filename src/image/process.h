/*
 * Other programs: started with the descriptors that they are given and no others, ended with us,
 * and waited for.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

struct process_plan {
    const char *const *arguments; /* ends with NULL; the first is looked for in $PATH */
    int input, output, error;     /* -1: /dev/null */
    int third;                    /* becomes descriptor 3; -1: none */
};

int process_start(const struct process_plan *plan, pid_t *ret_pid)
    __attribute__((warn_unused_result));
/* Wait for its end. -ECHILD, with its name and how it ended, unless its status is 0. */
int process_wait(pid_t pid, const char *name) __attribute__((warn_unused_result));
/* Is there a program of that name in $PATH, or where system programs are? */
bool process_finds(const char *name);
