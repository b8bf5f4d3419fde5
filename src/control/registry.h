/*
 * The machines that run here, by name: a folder for each, below $XDG_RUNTIME_DIR/doppel, or
 * /run/user/UID/doppel, or /tmp/doppel-UID where there is no such thing.
 *
 * A machine holds a lock on the file `lock` in its folder for as long as its process lives, so a
 * folder whose lock is free belongs to nobody: a killed process leaves nothing that could be
 * mistaken for a machine, and process numbers that come again do not matter. The jail cannot remove
 * files; what ended machines leave is removed by whoever looks next.
 *
 * Threads: any, before the jail. The folders belong to this user alone, or are refused.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum { REGISTRY_PATH = 256, REGISTRY_NAME = 65, REGISTRY_SOCKET = 512 };

struct registry_claim {
    int lock; /* closing it gives the name back; -1: none */
    char name[REGISTRY_NAME];
    char socket[REGISTRY_SOCKET]; /* where the control socket goes */
};

/* Take a name for this process: -EEXIST if a machine of that name runs. */
int registry_claim(const char *name, struct registry_claim *ret_claim)
    __attribute__((warn_unused_result));
/* Take a free name that nobody chose, and that is not `is_taken` otherwise (NULL: none is). */
int registry_claim_any(bool (*is_taken)(const char *name), struct registry_claim *ret_claim)
    __attribute__((warn_unused_result));
/* A name for a machine that nobody named: for each `attempt`, from 0 on, another. */
void registry_invent(unsigned attempt, char ret_name[REGISTRY_NAME]);
/* Does a machine of that name run? */
bool registry_is_running(const char *name);

/* The control socket of a running machine; -ENOENT, with the names that run, if there is none. */
int registry_find(const char *name, char ret_socket[REGISTRY_SOCKET])
    __attribute__((warn_unused_result));
/* The running machines, sorted by name. */
struct registry_names {
    char (*names)[REGISTRY_NAME];
    size_t count;
};
int registry_names(struct registry_names *ret_names) __attribute__((warn_unused_result));
void registry_names_fini(struct registry_names *names);
/* The same as a text, one after another with ", " between; "" if there are none. */
int registry_list(char *ret_names, size_t size) __attribute__((warn_unused_result));
