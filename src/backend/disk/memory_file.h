/*
 * The file of an image in memory, for tests: grows like one, up to a limit, and can note all that
 * is done to it, so that what a power cut might leave can be made again. Synchronous; one thread.
 */
#pragma once

#include "backend/disk/disk.h"

/* A write, a range that became zeros, or a flush. */
struct memory_file_note {
    enum disk_operation operation;
    uint64_t offset, length;
    uint8_t *bytes; /* of a write */
};

struct memory_file {
    struct disk disk;
    uint8_t *bytes;
    uint64_t end, limit; /* bytes that there are, and that there may be */
    bool takes_notes;
    struct memory_file_note *notes;
    size_t note_count, note_room;
};

/* With a copy of `bytes`. */
struct memory_file *memory_file_new(const void *bytes, uint64_t size, uint64_t limit,
                                    bool readonly);
/*
 * What a power cut may leave of `before` (what was there when taking notes began) after the first
 * `count` notes: everything up to the last flush among them, and of what came later each sector of
 * 512 bytes as chance() (0 or 1) says.
 */
struct memory_file *memory_file_after_cut(const struct memory_file *file, const void *before,
                                          uint64_t size, size_t count,
                                          unsigned (*chance)(void *owner, unsigned below),
                                          void *owner);
