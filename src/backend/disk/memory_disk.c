/* A disk in memory for tests. */
#include "backend/disk/memory_disk.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"

static struct memory_disk *memory_disk_of(struct disk *disk)
{
    return CONTAINER_OF(disk, struct memory_disk, disk);
}

static void memory_disk_submit(struct disk *disk, struct disk_request *request)
{
    struct memory_disk *self = memory_disk_of(disk);
    request->next = NULL;
    *self->last = request;
    self->last = &request->next;
    self->waiting++;
}

static void transfer(struct memory_disk *self, const struct disk_request *request)
{
    uint8_t *at = self->bytes + request->offset;
    for (unsigned i = 0; i < request->vector_count; i++) {
        const struct iovec *vector = &request->vectors[i];
        if (request->operation == DISK_READ) {
            memcpy(vector->iov_base, at, vector->iov_len);
        } else {
            memcpy(at, vector->iov_base, vector->iov_len);
        }
        at += vector->iov_len;
    }
}

static void perform(struct memory_disk *self, const struct disk_request *request)
{
    switch (request->operation) {
    case DISK_READ:
    case DISK_WRITE:
        transfer(self, request);
        break;
    case DISK_DISCARD: /* what is discarded may read as anything: find those who rely on it */
        memset(self->bytes + request->offset, 0xdd, request->length);
        break;
    case DISK_WRITE_ZEROES:
        memset(self->bytes + request->offset, 0, request->length);
        self->unmapped = request->unmap;
        break;
    case DISK_FLUSH:
        break;
    }
}

bool memory_disk_step(struct memory_disk *self)
{
    struct disk_request *request = self->first;
    if (!request) {
        return false;
    }
    self->first = request->next;
    if (!self->first) {
        self->last = &self->first;
    }
    self->waiting--;
    self->completed[request->operation]++;
    int error = self->errors[request->operation];
    if (!error) {
        perform(self, request);
    }
    request->more = self->burst && self->first;
    request->done(request, error);
    return true;
}

static void memory_disk_drain(struct disk *disk)
{
    while (memory_disk_step(memory_disk_of(disk))) {
    }
}

static void memory_disk_free(struct disk *disk)
{
    struct memory_disk *self = memory_disk_of(disk);
    ASSERT(!self->waiting);
    free(self->bytes);
    free(self);
}

static void memory_disk_hold(struct disk *disk)
{
    memory_disk_of(disk)->holders++;
}

static void memory_disk_release(struct disk *disk)
{
    ASSERT(memory_disk_of(disk)->holders);
    memory_disk_of(disk)->holders--;
}

static const struct disk_ops memory_disk_ops = {
    .submit = memory_disk_submit,
    .hold = memory_disk_hold,
    .release = memory_disk_release,
    .drain = memory_disk_drain,
    .free = memory_disk_free,
};

struct memory_disk *memory_disk_new(uint64_t size, bool readonly)
{
    struct memory_disk *self = calloc(1, sizeof *self);
    ASSERT(self);
    self->disk = (struct disk){.ops = &memory_disk_ops, .size = size, .readonly = readonly};
    self->bytes = calloc(1, size);
    ASSERT(self->bytes);
    self->last = &self->first;
    return self;
}
