/*
 * What outlives a process: this user's folders (XDG Base Directory Specification), and files in
 * them that are whole or not there, whenever the power fails.
 *
 * Threads: any, before the jail.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum { FOLDER_PATH = 512 };

enum folder_kind {
    FOLDER_DATA,  /* $XDG_DATA_HOME, otherwise ~/.local/share */
    FOLDER_CACHE, /* $XDG_CACHE_HOME, otherwise ~/.cache: what can be made again */
};

/*
 * Open the folder doppel/PART of that kind, and make what is missing of its path, for this user
 * alone. One that others may write to is refused.
 */
int folder_open(enum folder_kind kind, const char *part, char ret_path[FOLDER_PATH], int *ret_fd)
    __attribute__((warn_unused_result));

/*
 * Write a file, in the place of an older one if there is one: whoever reads sees the one or the
 * other, also after a crash or on a full disk.
 */
int file_replace(int folder, const char *name, const void *bytes, size_t size)
    __attribute__((warn_unused_result));
/*
 * A file of at most `limit` bytes, with a NUL behind it that does not count. -ENOENT without it;
 * links are not followed. free() it.
 */
int file_load(int folder, const char *name, size_t limit, char **ret_bytes, size_t *ret_size)
    __attribute__((warn_unused_result));

/*
 * Remove the folder `name` and what is in it, at most four levels deep; `last` (or NULL) is the
 * name of the file in it that goes last. Links are removed, not followed.
 */
int folder_remove(int parent, const char *name, const char *last)
    __attribute__((warn_unused_result));
