/* The file of an image in memory, for tests. */
#include "backend/disk/memory_file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"

enum { SECTOR = 512 };

static struct memory_file *memory_file_of(struct disk *disk)
{
    return CONTAINER_OF(disk, struct memory_file, disk);
}

static void note(struct memory_file *file, const struct disk_request *request)
{
    if (!file->takes_notes) {
        return;
    }
    if (file->note_count == file->note_room) {
        file->note_room = file->note_room ? file->note_room * 2 : 256;
        file->notes = realloc(file->notes, file->note_room * sizeof *file->notes);
        ASSERT(file->notes);
    }
    struct memory_file_note *made = &file->notes[file->note_count++];
    *made = (struct memory_file_note){
        .operation = request->operation, .offset = request->offset, .length = request->length};
    if (request->operation == DISK_WRITE) {
        made->bytes = malloc(request->length + 1);
        ASSERT(made->bytes);
        memcpy(made->bytes, file->bytes + request->offset, request->length);
    }
}

static int write_bytes(struct memory_file *file, const struct disk_request *request)
{
    if (!range_fits(request->offset, request->length, file->limit)) {
        return -ENOSPC;
    }
    uint64_t end = request->offset + request->length;
    file->end = file->end < end ? end : file->end;
    uint8_t *to = file->bytes + request->offset;
    for (unsigned i = 0; i < request->vector_count; i++) {
        memcpy(to, request->vectors[i].iov_base, request->vectors[i].iov_len);
        to += request->vectors[i].iov_len;
    }
    return 0;
}

static void read_bytes(const struct memory_file *file, const struct disk_request *request)
{
    uint64_t at = request->offset;
    for (unsigned i = 0; i < request->vector_count; i++) {
        uint64_t length = request->vectors[i].iov_len, there = at < file->end ? file->end - at : 0;
        there = there < length ? there : length;
        memset(request->vectors[i].iov_base, 0, length);
        if (there) {
            memcpy(request->vectors[i].iov_base, file->bytes + at, there);
        }
        at += length;
    }
}

static void make_zeros(struct memory_file *file, uint64_t offset, uint64_t length)
{
    if (offset < file->end) {
        uint64_t there = file->end - offset;
        memset(file->bytes + offset, 0, length < there ? length : there);
    }
}

static int memory_file_perform(struct disk *disk, const struct disk_request *request)
{
    struct memory_file *file = memory_file_of(disk);
    int error = 0;
    switch (request->operation) {
    case DISK_READ:
        read_bytes(file, request);
        return 0;
    case DISK_WRITE:
        error = write_bytes(file, request);
        break;
    case DISK_DISCARD:
    case DISK_WRITE_ZEROES:
        make_zeros(file, request->offset, request->length);
        break;
    case DISK_FLUSH:
        break;
    }
    if (!error) {
        note(file, request);
    }
    return error;
}

static uint64_t memory_file_end(struct disk *disk)
{
    return memory_file_of(disk)->end;
}

static void memory_file_drain(struct disk *disk)
{
}

static void memory_file_free(struct disk *disk)
{
    struct memory_file *file = memory_file_of(disk);
    for (size_t i = 0; i < file->note_count; i++) {
        free(file->notes[i].bytes);
    }
    free(file->notes);
    free(file->bytes);
    free(file);
}

static const struct disk_ops memory_file_ops = {
    .perform = memory_file_perform,
    .end = memory_file_end,
    .drain = memory_file_drain,
    .free = memory_file_free,
};

struct memory_file *memory_file_new(const void *bytes, uint64_t size, uint64_t limit, bool readonly)
{
    struct memory_file *file = calloc(1, sizeof *file);
    ASSERT(file && size <= limit);
    file->disk = (struct disk){
        .ops = &memory_file_ops, .size = align_down(INT64_MAX, SECTOR), .readonly = readonly};
    file->bytes = calloc(1, limit + 1);
    ASSERT(file->bytes);
    if (size) {
        memcpy(file->bytes, bytes, size);
    }
    file->end = size;
    file->limit = limit;
    return file;
}

static void carry_out(struct memory_file *file, const struct memory_file_note *note, uint64_t at,
                      uint64_t length)
{
    if (note->operation == DISK_WRITE) {
        memcpy(file->bytes + note->offset + at, note->bytes + at, length);
        uint64_t end = note->offset + at + length;
        file->end = file->end < end ? end : file->end;
    } else {
        make_zeros(file, note->offset + at, length);
    }
}

struct memory_file *memory_file_after_cut(const struct memory_file *file, const void *before,
                                          uint64_t size, size_t count,
                                          unsigned (*chance)(void *owner, unsigned below),
                                          void *owner)
{
    struct memory_file *after = memory_file_new(before, size, file->limit, false);
    size_t durable = 0;
    for (size_t i = 0; i < count; i++) {
        durable = file->notes[i].operation == DISK_FLUSH ? i : durable;
    }
    for (size_t i = 0; i < count; i++) {
        const struct memory_file_note *note = &file->notes[i];
        /* whole, not at all, or torn */
        unsigned fate = i < durable ? 0 : chance(owner, 3);
        for (uint64_t at = 0; at < note->length && fate != 1; at += SECTOR) {
            uint64_t left = note->length - at;
            if (fate == 0 || chance(owner, 2)) {
                carry_out(after, note, at, left < SECTOR ? left : SECTOR);
            }
        }
    }
    return after;
}
