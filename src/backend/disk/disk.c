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
