/*
 * A disk in memory for tests: requests wait until the test, or a drain, completes them, and fail
 * when told to. One thread.
 */
#pragma once

#include "backend/disk/disk.h"

struct memory_disk {
    struct disk disk;
    uint8_t *bytes;
    struct disk_request *first, **last; /* waiting, oldest first */
    unsigned waiting;
    int errors[DISK_WRITE_ZEROES + 1]; /* by operation: not 0 is the result of all such requests */
    unsigned completed[DISK_WRITE_ZEROES + 1];
    bool unmapped;    /* the last zeroes were to give space back */
    bool burst;       /* say of each request that those behind it follow at once */
    unsigned holders; /* who holds it now */
};

struct memory_disk *memory_disk_new(uint64_t size, bool readonly);
/* Complete the oldest waiting request; false if there is none. */
bool memory_disk_step(struct memory_disk *memory_disk);
