/*
 * All machines of this user, whether they run, are kept, or both: as JSON, whose keys are those
 * that `doppel list --json` and `doppel show --json` promise.
 *
 * Always "name", "state" (running, paused, stopped, starting, unresponsive, broken) and "kept". Of
 * a running one what its control socket tells (commands.c), of a kept one also "folder", "image"
 * (null: none), "created" and "remove"; of a stopped one "cpus", "memory", "kernel", "initrd",
 * "append", "disks", "network" and "forwards"; of a broken one "error".
 *
 * Threads: any, before the jail. Asking a machine that does not answer takes three seconds.
 */
#pragma once

#include <jansson.h>

/* A new reference. -ENOENT, with the names that there are, if there is none. */
int inventory_one(const char *name, json_t **ret_machine) __attribute__((warn_unused_result));
/* An array, sorted by name. */
int inventory_all(json_t **ret_machines) __attribute__((warn_unused_result));
