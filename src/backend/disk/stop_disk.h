/*
 * A disk in front of another one that keeps what the host fails: the submitter hears nothing of it
 * until somebody has seen to the cause (freed space, say) and it is tried again. For machines that
 * are to stand still rather than to see an error.
 *
 * Threads: as for every disk. A kept request is not in flight: disk_drain() does not wait for it.
 */
#pragma once

#include "backend/disk/disk.h"

struct stop_disk_config {
    struct disk *lower; /* owned */
    /*
     * A request failed with a negative errno and is kept. On a thread of the lower disk, for each
     * one; it must not call back.
     */
    void (*stopped)(void *owner, const char *text);
    void *owner;
    const char *name; /* of the disk, for the text; copied */
};

struct disk *stop_disk_new(const struct stop_disk_config *config);
