/*
 * The kernel that a disk boots, read at each start, so that the guest may install another. A
 * process in a jail looks at the disk; what it says is believed as far as its sizes go.
 *
 * Promises: bounded time and memory; nothing is written; a hostile disk ends in an error with a
 *           sentence.
 * Threads:  the caller has no others.
 */
#pragma once

#include "backend/disk/disk.h"
#include "image/kernel_find.h"

struct kernel {
    char name[KERNEL_VERSION + 16]; /* for messages */
    char version[KERNEL_VERSION];
    char command_line[KERNEL_COMMAND];
    uint8_t *kernel, *initrd; /* initrd NULL: none */
    size_t kernel_size, initrd_size;
};

/* `open` is called in the other process; it is for disk_read() alone. */
int kernel_read(int (*open)(void *owner, struct disk **ret_disk), void *owner,
                struct kernel *ret_kernel) __attribute__((warn_unused_result));
void kernel_fini(struct kernel *kernel);
