/*
 * Making a qcow2 disk larger or smaller. The order is such that a crash leaves the old size or the
 * new one: first a larger L1 table, then what is between the sizes, then the size.
 */
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_internal.h"
#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"

enum { ATTEMPTS = 4 };

/* Clusters that follow each other, at the end of the file. */
static int allocate_together(struct qcow2 *q, uint64_t clusters, uint64_t *ret_offset)
{
    for (unsigned i = 0; i < ATTEMPTS; i++) {
        uint64_t got;
        bool fresh;
        q->scan = q->end;
        int error = qcow2_allocate(q, clusters, true, ret_offset, &got, &fresh);
        if (error || got == clusters) {
            return error;
        }
        const struct qcow2_free taken = {
            .offset = *ret_offset, .length = got << q->cluster_bits, .is_table = true};
        error = qcow2_free_now(q, &taken);
        if (error) {
            return error;
        }
    }
    return fail(-EFBIG,
                "disk '%s': this size is too large for its clusters of %llu bytes: convert "
                "it to larger ones",
                q->name, (unsigned long long)q->cluster_size);
}

/* The header leads to a longer L1 table with the same entries. */
static int grow_l1(struct qcow2 *q, uint32_t count)
{
    uint64_t clusters = ((uint64_t)count * 8 + q->cluster_size - 1) >> q->cluster_bits, offset;
    const struct qcow2_free old = {
        .offset = q->header.l1_offset, .length = (uint64_t)q->l1_count * 8, .is_table = true};
    int error = allocate_together(q, clusters, &offset);
    if (error) {
        return error;
    }
    uint64_t *l1 = realloc(q->l1, (size_t)count * sizeof *l1);
    ASSERT(l1);
    memset(l1 + q->l1_count, 0, (count - q->l1_count) * sizeof *l1);
    q->l1 = l1;
    CLEANUP_BUFFER uint8_t *bytes = qcow2_buffer(clusters << q->cluster_bits);
    memset(bytes, 0, clusters << q->cluster_bits);
    for (uint32_t i = 0; i < count; i++) {
        store_be64(bytes + (size_t)i * 8, l1[i]);
    }
    error = disk_write(q->file, offset, bytes, clusters << q->cluster_bits);
    if (!error) {
        error = qcow2_commit(q); /* with the counts of the new clusters */
    }
    if (error) {
        return error;
    }
    q->l1_count = q->header.l1_size = count;
    q->header.l1_offset = offset;
    store_be32(q->sector + QCOW2_AT_L1_SIZE, count);
    store_be64(q->sector + QCOW2_AT_L1_OFFSET, offset);
    error = qcow2_header_write(q);
    return error || !old.length ? error : qcow2_free_now(q, &old);
}

static int set_size(struct qcow2 *q, uint64_t size)
{
    pthread_mutex_lock(&q->meta);
    int error = qcow2_commit(q);
    if (!error) {
        q->header.size = q->disk.size = size;
        store_be64(q->sector + QCOW2_AT_SIZE, size);
        error = qcow2_header_write(q);
    }
    pthread_mutex_unlock(&q->meta);
    return error;
}

static int grow(struct qcow2 *q, uint64_t size)
{
    unsigned bits = q->cluster_bits + q->l2_bits;
    uint64_t before = q->disk.size, count = (size + (UINT64_C(1) << bits) - 1) >> bits;
    int error = 0;
    if (count * 8 > QCOW2_L1_BYTES_MAX) {
        return fail(-EFBIG, "disk '%s': this size is too large for its clusters of %llu bytes",
                    q->name, (unsigned long long)q->cluster_size);
    }
    pthread_mutex_lock(&q->meta);
    error = qcow2_start_changes(q);
    if (!error && count > q->l1_count) {
        error = grow_l1(q, (uint32_t)count);
    }
    pthread_mutex_unlock(&q->meta);
    /* what the backing file has there was never part of this disk */
    uint64_t end = q->backing ? q->backing->size : 0;
    end = end < size ? end : size;
    if (!error && end > before) {
        q->disk.size = size;
        error = qcow2_write_zeroes(q, before, end - before);
    }
    return error ? error : set_size(q, size);
}

static int shrink(struct qcow2 *q, uint64_t size)
{
    uint64_t before = q->disk.size, edge = align_up(size, q->cluster_size);
    if (q->header.snapshot_count || (q->header.version < 3 && q->backing)) {
        return fail(-ENOTSUP, "disk '%s' cannot be made smaller: it has %s", q->name,
                    q->header.snapshot_count ? "internal snapshots"
                                             : "version 2 and a backing file");
    }
    edge = edge < before ? edge : before;
    int error = edge > size ? qcow2_write_zeroes(q, size, edge - size) : 0;
    if (!error && edge < before) {
        error = qcow2_discard(q, edge, before - edge);
    }
    return error ? error : set_size(q, size);
}

int qcow2_resize(struct disk *disk, uint64_t size)
{
    struct qcow2 *q = qcow2_of(disk);
    if (size == 0 || size % QCOW2_SECTOR) {
        return fail(-EINVAL, "the size of a disk is a multiple of %d bytes", QCOW2_SECTOR);
    }
    if (q->header.version < 3 && q->header.snapshot_count) {
        return fail(-ENOTSUP,
                    "disk '%s' has internal snapshots, which in version 2 do not know their "
                    "size: it cannot be resized",
                    q->name);
    }
    int error = size > disk->size ? grow(q, size) : size < disk->size ? shrink(q, size) : 0;
    return error && !*trail_text() ? fail(error, "resize disk '%s': %s", q->name, strerror(-error))
                                   : error;
}
