/*
 * The mapping: which host cluster, if any, holds each guest cluster. Entries come from the file, so
 * each is looked at before it is believed.
 */
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_internal.h"
#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"

struct qcow2_entry qcow2_entry_decode(const struct qcow2 *q, uint64_t raw)
{
    struct qcow2_entry entry = {.raw = raw, .copied = raw & QCOW2_COPIED};
    if (raw & QCOW2_COMPRESSED) {
        unsigned offset_bits = 62 - (q->cluster_bits - 8);
        uint64_t sectors = (raw & ~(QCOW2_COPIED | QCOW2_COMPRESSED)) >> offset_bits;
        entry.host = raw & ((UINT64_C(1) << offset_bits) - 1);
        entry.length = (sectors + 1) * QCOW2_SECTOR - entry.host % QCOW2_SECTOR;
        bool is_good = !entry.copied && entry.host >> 56 == 0 && entry.host >= q->cluster_size;
        entry.kind = is_good ? QCOW2_IS_COMPRESSED : QCOW2_IS_BAD;
        return entry;
    }
    bool is_zero = raw & QCOW2_ZERO;
    entry.host = raw & QCOW2_OFFSET_MASK;
    if (raw & ~(QCOW2_COPIED | QCOW2_OFFSET_MASK | QCOW2_ZERO) || entry.host % q->cluster_size ||
        (is_zero && q->header.version < 3) || (entry.copied && !entry.host)) {
        entry.kind = QCOW2_IS_BAD;
    } else if (is_zero) {
        entry.kind = QCOW2_IS_ZERO;
    } else {
        entry.kind = entry.host ? QCOW2_IS_DATA : QCOW2_IS_UNALLOCATED;
    }
    return entry;
}

/* The offset of an L2 table by its L1 entry; 0: there is none. */
static int table_offset(struct qcow2 *q, uint64_t index, uint64_t *ret_offset, bool *ret_copied)
{
    uint64_t raw = q->l1[index];
    *ret_offset = raw & QCOW2_OFFSET_MASK;
    *ret_copied = raw & QCOW2_COPIED;
    if (raw & ~(QCOW2_COPIED | QCOW2_OFFSET_MASK) || *ret_offset % q->cluster_size) {
        return qcow2_corrupt(q, "an L1 entry that cannot be", q->header.l1_offset + index * 8);
    }
    return 0;
}

/* How many entries from `index` on are in the same slice, at most `count`. */
static unsigned in_one_slice(const struct qcow2 *q, uint64_t index, unsigned count)
{
    unsigned per_slice = q->l2.slice_size / 8;
    unsigned left = per_slice - (unsigned)(index & (per_slice - 1));
    return count < left ? count : left;
}

/* A slice of an L2 table; if all are changed they are written first. */
static int get_slice(struct qcow2 *q, uint64_t offset, struct qcow2_slice **ret_slice)
{
    int error = qcow2_cache_get(q, &q->l2, offset, ret_slice);
    if (error == -EBUSY) {
        error = qcow2_commit(q);
        if (!error) {
            error = qcow2_cache_get(q, &q->l2, offset, ret_slice);
        }
    }
    return error;
}

int qcow2_entries_get(struct qcow2 *q, uint64_t offset, unsigned count, uint64_t *ret_entries,
                      unsigned *ret_count)
{
    uint64_t table, index = qcow2_l2_index(q, offset);
    bool copied;
    struct qcow2_slice *slice;
    *ret_count = in_one_slice(q, index, count);
    int error = table_offset(q, qcow2_l1_index(q, offset), &table, &copied);
    if (error) {
        return error;
    }
    if (!table) {
        memset(ret_entries, 0, *ret_count * sizeof *ret_entries);
        return 0;
    }
    error = get_slice(q, table + index * 8, &slice);
    if (error) {
        return error;
    }
    const uint8_t *bytes = slice->bytes + (index * 8 & (q->l2.slice_size - 1));
    for (unsigned i = 0; i < *ret_count; i++) {
        ret_entries[i] = load_be64(bytes + i * 8);
    }
    return 0;
}

static void set_l1(struct qcow2 *q, uint32_t index, uint64_t raw)
{
    pthread_mutex_lock(&q->map);
    bool is_none = q->l1_dirty_first >= q->l1_dirty_end;
    q->l1[index] = raw;
    q->clean = false;
    q->l1_dirty_first = is_none || index < q->l1_dirty_first ? index : q->l1_dirty_first;
    q->l1_dirty_end = is_none || index >= q->l1_dirty_end ? index + 1 : q->l1_dirty_end;
    pthread_mutex_unlock(&q->map);
}

/*
 * A table of its own for an L1 entry that has none, or shares it with a snapshot. Its contents are
 * in the file at once, and the L1 entry that leads there is written by a commit.
 */
static int make_table(struct qcow2 *q, uint64_t l1_index, uint64_t old, uint64_t *ret_offset)
{
    uint64_t got;
    bool fresh;
    int error = qcow2_allocate(q, 1, true, ret_offset, &got, &fresh);
    if (error) {
        return error;
    }
    CLEANUP_BUFFER uint8_t *bytes = qcow2_buffer(q->cluster_size);
    memset(bytes, 0, q->cluster_size);
    if (old) {
        error = disk_read(q->file, old, bytes, q->cluster_size);
    }
    if (!error) {
        error = disk_write(q->file, *ret_offset, bytes, q->cluster_size);
    }
    if (error) {
        const struct qcow2_free taken = {
            .offset = *ret_offset, .length = q->cluster_size, .is_table = true};
        return qcow2_free_now(q, &taken) ? -EIO : error;
    }
    set_l1(q, (uint32_t)l1_index, *ret_offset | QCOW2_COPIED);
    if (old) {
        qcow2_free_later(q, old, q->cluster_size, true);
    }
    return 0;
}

int qcow2_entries_set(struct qcow2 *q, uint64_t offset, unsigned count, const uint64_t *entries)
{
    uint64_t table, index = qcow2_l2_index(q, offset), l1_index = qcow2_l1_index(q, offset);
    bool copied;
    struct qcow2_slice *slice;
    ASSERT(in_one_slice(q, index, count) == count);
    int error = table_offset(q, l1_index, &table, &copied);
    if (!error && (!table || !copied)) {
        error = make_table(q, l1_index, table, &table);
    }
    if (!error) {
        error = get_slice(q, table + index * 8, &slice);
    }
    if (error) {
        return error;
    }
    uint8_t *bytes = slice->bytes + (index * 8 & (q->l2.slice_size - 1));
    pthread_mutex_lock(&q->map);
    for (unsigned i = 0; i < count; i++) {
        store_be64(bytes + i * 8, entries[i]);
    }
    qcow2_cache_dirty(&q->l2, slice);
    q->clean = false;
    pthread_mutex_unlock(&q->map);
    return 0;
}

bool qcow2_entry_peek(struct qcow2 *q, uint64_t offset, uint64_t *ret_raw)
{
    uint64_t l1 = q->l1[qcow2_l1_index(q, offset)], table = l1 & QCOW2_OFFSET_MASK;
    *ret_raw = 0;
    if (!l1) {
        return true;
    }
    if (l1 & ~(QCOW2_COPIED | QCOW2_OFFSET_MASK) || table % q->cluster_size) {
        return false;
    }
    uint64_t at = table + qcow2_l2_index(q, offset) * 8;
    const struct qcow2_slice *slice = qcow2_cache_find(&q->l2, at);
    if (!slice) {
        return false;
    }
    *ret_raw = load_be64(slice->bytes + (at & (q->l2.slice_size - 1)));
    return true;
}
