/*
 * Machines that are kept: a folder for each, $XDG_DATA_HOME/doppel/machines/NAME (or below
 * ~/.local/share). In it:
 *
 *     machine.json   what it is made of (machine_file.h)
 *     lock           held by the process that runs it, and by each command that changes the folder
 *     console.0.log, console.1.log   what the guest wrote (backend/console/log.h)
 *     doppel.log     what Doppel said while it ran in the background
 *     ssh-user, known_hosts   for 'doppel ssh'
 *     drop           it is not kept when it has ended
 *     disks, keys    whatever machine_plan.fill puts there
 *
 * Promises: a folder appears whole under its name or not at all, and goes the same way; what killed
 *           commands leave (names with a dot before them) is removed by the next one that looks.
 *           Two commands at once on one machine: the second waits two seconds, then says so.
 * Threads:  any, before the jail.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "control/folders.h"
#include "control/machine_file.h"
#include "control/registry.h"

enum { MACHINE_PATH = FOLDER_PATH + REGISTRY_NAME + 1 };

struct machine {
    int base;   /* the folder of all machines */
    int folder; /* the machine's own */
    int lock;   /* -1: it was only looked at */
    char name[REGISTRY_NAME];
    char path[MACHINE_PATH];
};

struct machine_plan {
    const char *name; /* NULL: one is invented */
    /*
     * The options. Their relative paths are made absolute, by the current folder, in what is saved
     * (vm_config_anchor()).
     */
    struct vm_config *config;
    bool removes;      /* drop it when it has ended (--rm) */
    const char *image; /* what it is cloned from, for 'show' and 'image prune'; NULL: nothing */
    /*
     * Makes files of the machine's own in `folder` (a copy-on-write disk, a seed, host keys), and
     * vm_config_set()s the options that use them, by their plain names: {"disk",
     * "disk.qcow2,format=qcow2"}. A failure, also a kill in the middle, leaves nothing. NULL:
     * nothing to make.
     */
    int (*fill)(void *owner, int folder, struct vm_config *config);
    void *owner;
};

/*
 * Make a machine. It is returned open and locked, and does not run. -EEXIST: a machine of that name
 * is kept or runs.
 */
int machine_create(const struct machine_plan *plan, struct machine **ret_machine)
    __attribute__((warn_unused_result));

/*
 * Open and lock one, to start or change it. -ENOENT, with the names that there are; -EBUSY: it
 * runs, or another command is at work on it.
 */
int machine_open(const char *name, struct machine **ret_machine)
    __attribute__((warn_unused_result));
/* Open it without the lock, to read what is there. */
int machine_look(const char *name, struct machine **ret_machine)
    __attribute__((warn_unused_result));
/* Is this folder still the machine of its name? Without the lock it may be removed meanwhile. */
bool machine_is_current(const struct machine *machine);
/* Gives the lock back, unless a child holds it, too. NULL is fine. */
void machine_close(struct machine *machine);

/* What it is made of. `config` is fresh from vm_config_init(), and gets the machine's name. */
int machine_load(const struct machine *machine, struct vm_config *config,
                 struct machine_facts *ret_facts) __attribute__((warn_unused_result));
/* With the lock: write what it is made of anew; paths as they are in config->settings. */
int machine_save(const struct machine *machine, const struct vm_config *config,
                 const struct machine_facts *facts) __attribute__((warn_unused_result));

/* With the lock. */
int machine_rename(struct machine *machine, const char *name) __attribute__((warn_unused_result));
int machine_remove(struct machine *machine) __attribute__((warn_unused_result));

/*
 * Who logs in by ssh: what the file `ssh-user` in its folder says (machine_plan.fill writes it, if
 * it sets up another one), otherwise "debian".
 */
enum { MACHINE_USER = 33 };
void machine_ssh_user(const struct machine *machine, char ret_user[MACHINE_USER]);

/* Is a machine of that name kept? */
bool machine_exists(const char *name);
/* Is its lock held by a process? */
bool machine_is_busy(const struct machine *machine);

/* The kept machines, sorted by name; what killed commands have left is removed. */
struct machine_names {
    char (*names)[REGISTRY_NAME];
    size_t count;
};
int machine_list(struct machine_names *ret_names) __attribute__((warn_unused_result));
void machine_names_fini(struct machine_names *names);
