/* The value of --disk: FILE and how it is used. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "backend/disk/disk.h"

struct disk_config {
    char *path;
    bool readonly;
    bool is_nvme; /* an NVMe controller; otherwise virtio-blk */
    enum disk_format format;
    enum disk_cache cache;
    bool stops; /* a request that the host fails pauses the machine; otherwise the guest sees it */
    char *serial;                    /* what the guest sees; NULL: one of ours */
    char *backing[DISK_BACKING_MAX]; /* the files of the backing chain, from the image on */
    size_t backing_count;
};

/* -EINVAL with a sentence that says what would be right; then nothing is to be freed. */
int disk_config_parse(const char *value, struct disk_config *ret_disk)
    __attribute__((warn_unused_result));
void disk_config_fini(struct disk_config *disk);
/* Open it, with threads of its own, or `synchronous`, for disk_read() and the like. */
int disk_config_open(const struct disk_config *config, bool synchronous, struct disk **ret_disk)
    __attribute__((warn_unused_result));
/*
 * `value` with `directory` before each relative path of a backing file. The caller frees it.
 */
char *disk_config_anchor(const char *value, const char *directory);
