/*
 * The jail of a VM process: what is left when a hostile guest has taken over the monitor. After
 * jail_enter() the process has no new privileges, no descriptor that it was not given, and a
 * system call allow-list whose default is to kill. It cannot start programs, open files or sockets,
 * trace processes, or make memory executable.
 *
 * Threads: once, when every thread has been started; it covers all of them.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* Which of the walls the host lets us build. */
struct jail_report {
    bool landlock; /* no file system access by path, on top of the allow-list */
};

/*
 * Close the jail around this process. On failure nothing may be run: walls may be half built.
 */
int jail_enter(struct jail_report *ret_report) __attribute__((warn_unused_result));

/*
 * Close all descriptors above 2. Called first of all in main(): what the shell or a supervisor
 * left open by mistake is not the guest's business.
 */
int jail_close_inherited(void) __attribute__((warn_unused_result));
