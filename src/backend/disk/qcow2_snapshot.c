/*
 * Internal snapshots of a qcow2 image: they are kept, counted and never changed; making and using
 * them is not supported.
 */
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_internal.h"
#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"

/* All L1 tables of snapshots together are bounded, too. */
enum { ENTRY_SIZE = 40, EXTRA_MAX = 1024, L1_TOTAL_MAX = 1 << 24 };

static int read_one(struct qcow2 *q, uint64_t at, struct qcow2_snapshot *ret_snapshot,
                    uint64_t *ret_size)
{
    uint8_t bytes[ENTRY_SIZE];
    int error = disk_read(q->file, at, bytes, sizeof bytes);
    if (error) {
        return fail(error, "disk '%s': read its snapshot table: %s", q->name, strerror(-error));
    }
    uint64_t extra = load_be32(bytes + 36);
    uint64_t size = ENTRY_SIZE + extra + load_be16(bytes + 12) + load_be16(bytes + 14);
    *ret_snapshot =
        (struct qcow2_snapshot){.l1_offset = load_be64(bytes), .l1_size = load_be32(bytes + 8)};
    *ret_size = align_up(size, 8);
    uint64_t l1_bytes = (uint64_t)ret_snapshot->l1_size * 8;
    if (extra > EXTRA_MAX || l1_bytes > QCOW2_L1_BYTES_MAX ||
        ret_snapshot->l1_offset % q->cluster_size || !qcow2_is_in_file(q, at, *ret_size) ||
        !qcow2_is_in_file(q, ret_snapshot->l1_offset, l1_bytes)) {
        return fail(-EINVAL, "disk '%s' is corrupt: an entry of its snapshot table cannot be",
                    q->name);
    }
    return 0;
}

int qcow2_snapshots_read(struct qcow2 *q, struct qcow2_snapshot **ret_snapshots,
                         uint64_t *ret_table_size)
{
    uint32_t count = q->header.snapshot_count;
    uint64_t at = q->header.snapshots_offset, total = 0;
    CLEANUP_BUFFER void *owned = calloc((size_t)count + 1, sizeof **ret_snapshots);
    struct qcow2_snapshot *snapshots = owned;
    ASSERT(snapshots);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t size = 0;
        int error = read_one(q, at, &snapshots[i], &size);
        if (error) {
            return error;
        }
        at += size;
        total += snapshots[i].l1_size;
        if (total > L1_TOTAL_MAX) {
            return fail(-EFBIG, "disk '%s': its snapshots are too many and too large", q->name);
        }
    }
    *ret_table_size = at - q->header.snapshots_offset;
    *ret_snapshots = TAKE(owned);
    return 0;
}
