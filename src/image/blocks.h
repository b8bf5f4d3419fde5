/*
 * Where a file system's bytes come from, and libext2fs on top of it: read only, whatever the file
 * system says.
 */
#pragma once

#include <ext2fs/ext2fs.h>
#include <stdint.h>

struct blocks {
    /* 0 or a negative errno; inside the disk. */
    int (*read)(void *owner, uint64_t offset, void *to, size_t size);
    void *owner;
    uint64_t offset, size; /* of the file system in the disk, bytes */
};

/* `blocks` stays where it is as long as the file system is open. One at a time. */
int blocks_open(struct blocks *blocks, ext2_filsys *ret_file_system)
    __attribute__((warn_unused_result));
/* The same as blocks->read(), relative to the file system and checked. */
int blocks_read(const struct blocks *blocks, uint64_t offset, void *to, size_t size)
    __attribute__((warn_unused_result));
