/* What all disk backends share: a request is checked before the backend sees it. */
#include "backend/disk/disk.h"

#include <limits.h>

#include "base/bytes.h"
#include "base/error.h"

int disk_submit(struct disk *disk, struct disk_request *request)
{
    bool is_read = request->operation == DISK_READ;
    if (!range_fits(request->offset, request->length, disk->size) ||
        request->vector_count > IOV_MAX) {
        return fail(-EINVAL, "a request outside of the disk");
    }
    if (disk->readonly && !is_read && request->operation != DISK_FLUSH) {
        return fail(-EROFS, "a change of a read-only disk");
    }
    request->more = false;
    disk->ops->submit(disk, request);
    return 0;
}

void disk_hold(struct disk *disk)
{
    if (disk->ops->hold) {
        disk->ops->hold(disk);
    }
}

void disk_release(struct disk *disk)
{
    if (disk->ops->release) {
        disk->ops->release(disk);
    }
}

int disk_perform(struct disk *disk, const struct disk_request *request)
{
    bool is_change = request->operation != DISK_READ && request->operation != DISK_FLUSH;
    if (!range_fits(request->offset, request->length, disk->size)) {
        return fail(-EINVAL, "a request outside of the disk");
    }
    if (disk->readonly && is_change) {
        return fail(-EROFS, "a change of a read-only disk");
    }
    return disk->ops->perform(disk, request);
}

static int transfer(struct disk *disk, enum disk_operation operation, uint64_t offset, void *bytes,
                    size_t length)
{
    struct iovec vector = {.iov_base = bytes, .iov_len = length};
    const struct disk_request request = {.operation = operation,
                                         .offset = offset,
                                         .length = length,
                                         .vectors = &vector,
                                         .vector_count = length ? 1 : 0};
    return disk_perform(disk, &request);
}

int disk_read(struct disk *disk, uint64_t offset, void *bytes, size_t length)
{
    return transfer(disk, DISK_READ, offset, bytes, length);
}

int disk_write(struct disk *disk, uint64_t offset, const void *bytes, size_t length)
{
    return transfer(disk, DISK_WRITE, offset, (void *)bytes, length);
}

int disk_flush(struct disk *disk)
{
    return transfer(disk, DISK_FLUSH, 0, NULL, 0);
}

int disk_extent(struct disk *disk, uint64_t offset, uint64_t length, struct disk_extent *ret_extent)
{
    if (length == 0 || !range_fits(offset, length, disk->size)) {
        return fail(-EINVAL, "a question outside of the disk");
    }
    return disk->ops->extent(disk, offset, length, ret_extent);
}

int disk_truncate(struct disk *disk, uint64_t size)
{
    return disk->ops->truncate ? disk->ops->truncate(disk, size)
                               : fail(-EOPNOTSUPP, "this disk's size cannot be changed");
}

void disk_retry(struct disk *disk)
{
    if (disk->ops->retry) {
        disk->ops->retry(disk);
    }
}

void disk_cancel(struct disk *disk)
{
    if (disk->ops->cancel) {
        disk->ops->cancel(disk);
    }
}

void disk_drain(struct disk *disk)
{
    if (disk) {
        disk->ops->drain(disk);
    }
}

void disk_free(struct disk *disk)
{
    if (disk) {
        disk->ops->free(disk);
    }
}

const char *disk_operation_text(enum disk_operation operation)
{
    switch (operation) {
    case DISK_READ:
        return "reading from";
    case DISK_WRITE:
        return "writing to";
    case DISK_FLUSH:
        return "flushing";
    case DISK_DISCARD:
        return "discarding from";
    case DISK_WRITE_ZEROES:
        return "zeroing on";
    }
    return "using";
}
