/*
 * The jail of a VM process: what is left when a hostile guest has taken over the monitor. In the
 * jail the process has no capabilities, gains no privileges, holds no descriptor that it was not
 * given, and has a system call allow-list whose default is to kill. It cannot start programs, open
 * files or sockets, trace processes, or make memory executable.
 *
 * Order:   jail_close_inherited(), open everything, jail_drop_rights(), start the threads,
 *          jail_enter(), run the guest.
 * Threads: jail_drop_rights() counts for the calling thread and those that it starts later;
 *          jail_enter() for all threads.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* Close all descriptors above 2: what somebody left open by mistake is not the guest's business. */
int jail_close_inherited(void) __attribute__((warn_unused_result));

/*
 * No capabilities, no new privileges, and (with Landlock, where the host has it) no path of any
 * file system. `ret_landlock` tells whether the host has it.
 */
int jail_drop_rights(bool *ret_landlock) __attribute__((warn_unused_result));

/*
 * The system call allow-list, for every thread of the process. On failure nothing may be run:
 * walls may be half built. Connections are accepted at the sockets `listeners` only, and
 * descriptors are received at the sockets `channels` only.
 */
int jail_enter(const int *listeners, size_t listener_count, const int *channels,
               size_t channel_count) __attribute__((warn_unused_result));
