/*
 * Repairing a qcow2 image: entries that cannot be are dropped, flags are set by the counts, and all
 * refcounts are written anew behind the end of the file, with a table of their own; then one write
 * of the header's sector leads there. A crash before that leaves the old counts, and an image that
 * needs its repair as before.
 */
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_check.h"
#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"

static uint64_t drop_bad(struct qcow2_check *check, uint64_t raw, bool is_table, bool is_bad)
{
    if (!is_bad) {
        return raw;
    }
    /* over a backing file something else would show: zeros do not */
    return is_table || check->q->header.version < 3 ? 0 : QCOW2_ZERO;
}

static uint64_t set_flag(struct qcow2_check *check, uint64_t raw, bool is_table, bool is_bad)
{
    const struct qcow2 *q = check->q;
    uint64_t host = raw & QCOW2_OFFSET_MASK, cluster = host >> q->cluster_bits;
    bool is_inside = cluster >= check->first && cluster - check->first < check->window;
    if (is_bad || !host || !is_inside || (!is_table && raw & QCOW2_COMPRESSED)) {
        return raw;
    }
    return qcow2_counted(check, cluster) == 1 ? raw | QCOW2_COPIED : raw & ~QCOW2_COPIED;
}

static int write_l1(struct qcow2 *q)
{
    uint64_t bytes = align_up((uint64_t)q->l1_count * 8, QCOW2_SECTOR);
    CLEANUP_BUFFER void *owned = qcow2_buffer(bytes);
    uint8_t *table = owned;
    memset(table, 0, bytes);
    for (uint32_t i = 0; i < q->l1_count; i++) {
        store_be64(table + (size_t)i * 8, q->l1[i]);
    }
    return bytes ? disk_write(q->file, q->header.l1_offset, table, bytes) : 0;
}

/* What is being written behind the end of the file. */
struct rebuild {
    uint64_t *table;     /* by number of the block: its offset */
    uint64_t room;       /* entries of it */
    uint64_t next;       /* the next cluster to be used */
    uint16_t *last;      /* the counts of the block that has the end of the file */
    uint64_t last_block; /* its number */
    uint8_t *bytes;      /* one cluster */
};

static int write_block(struct qcow2_check *check, struct rebuild *rebuild, uint64_t block,
                       const uint16_t *counts)
{
    const struct qcow2 *q = check->q;
    uint64_t per_block = UINT64_C(1) << q->block_bits;
    uint64_t largest = q->header.refcount_order >= 4
                           ? QCOW2_COUNT_MAX
                           : (UINT64_C(1) << (1u << q->header.refcount_order)) - 1;
    memset(rebuild->bytes, 0, q->cluster_size);
    for (uint64_t i = 0; i < per_block; i++) {
        if (counts[i] > largest) {
            return fail(-EOVERFLOW,
                        "disk '%s': its refcounts of %u bits are too narrow for what "
                        "they have to count",
                        q->name, 1u << q->header.refcount_order);
        }
        qcow2_refcount_store(rebuild->bytes, i, q->header.refcount_order, counts[i]);
    }
    uint64_t offset = rebuild->next++ << q->cluster_bits;
    rebuild->table[block] = offset;
    return disk_write(q->file, offset, rebuild->bytes, q->cluster_size);
}

static bool is_any(const uint16_t *counts, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        if (counts[i]) {
            return true;
        }
    }
    return false;
}

/* The blocks of a window, but for the last one of the file, which waits for what is still to come.
 */
static int write_window(struct qcow2_check *check, struct rebuild *rebuild)
{
    const struct qcow2 *q = check->q;
    uint64_t per_block = UINT64_C(1) << q->block_bits;
    uint64_t end = check->first + check->window;
    end = end < check->clusters ? end : check->clusters;
    int error = 0;
    for (uint64_t at = check->first; at < end && !error; at += per_block) {
        const uint16_t *counts = check->counts + (at - check->first);
        if (at >> q->block_bits == rebuild->last_block) {
            memcpy(rebuild->last, counts, (size_t)(end - at) * sizeof *counts);
        } else if (is_any(counts, per_block)) {
            error = write_block(check, rebuild, at >> q->block_bits, counts);
        }
    }
    return error;
}

/* The last blocks count themselves and the table behind them. */
static int write_rest(struct qcow2_check *check, struct rebuild *rebuild, uint64_t *ret_clusters)
{
    const struct qcow2 *q = check->q;
    uint64_t per_block = UINT64_C(1) << q->block_bits, blocks = 1, clusters, end;
    uint64_t start = rebuild->last_block << q->block_bits;
    for (;;) {
        clusters = ((rebuild->last_block + blocks) * 8 + q->cluster_size - 1) >> q->cluster_bits;
        end = rebuild->next + blocks + clusters;
        uint64_t need = (end - start + per_block - 1) >> q->block_bits;
        if (need <= blocks) {
            break;
        }
        blocks = need;
    }
    ASSERT(rebuild->last_block + blocks <= rebuild->room);
    int error = 0;
    for (uint64_t i = 0; i < blocks && !error; i++) {
        for (uint64_t k = 0; k < per_block; k++) {
            uint64_t cluster = start + i * per_block + k;
            bool is_new = cluster >= check->clusters && cluster < end;
            rebuild->last[k] = is_new ? 1 : i == 0 ? rebuild->last[k] : 0;
        }
        error = write_block(check, rebuild, rebuild->last_block + i, rebuild->last);
    }
    for (uint64_t i = 0; i < clusters && !error; i++) {
        uint64_t per_cluster = q->cluster_size / 8;
        for (uint64_t k = 0; k < per_cluster; k++) {
            uint64_t at = i * per_cluster + k;
            store_be64(rebuild->bytes + k * 8,
                       at < rebuild->last_block + blocks ? rebuild->table[at] : 0);
        }
        error = disk_write(q->file, (rebuild->next + i) << q->cluster_bits, rebuild->bytes,
                           q->cluster_size);
    }
    *ret_clusters = clusters;
    return error ? error : disk_flush(q->file);
}

/* One write of the first sector: the new counts are those that count, and nothing is wrong. */
static int switch_to(struct qcow2_check *check, const struct rebuild *rebuild, uint64_t clusters)
{
    struct qcow2 *q = check->q;
    uint64_t offset = rebuild->next << q->cluster_bits;
    store_be64(q->sector + QCOW2_AT_REFTABLE_OFFSET, offset);
    store_be32(q->sector + QCOW2_AT_REFTABLE_CLUSTERS, (uint32_t)clusters);
    if (q->header.version >= 3) {
        q->header.incompatible &= ~(QCOW2_INCOMPATIBLE_DIRTY | QCOW2_INCOMPATIBLE_CORRUPT);
        q->header.autoclear = 0;
        store_be64(q->sector + QCOW2_AT_INCOMPATIBLE, q->header.incompatible);
        store_be64(q->sector + QCOW2_AT_AUTOCLEAR, 0);
    }
    int error = qcow2_header_write(q);
    if (error) {
        return error;
    }
    q->header.reftable_offset = offset;
    q->header.reftable_clusters = (uint32_t)clusters;
    q->reftable_count = (uint32_t)(clusters << q->cluster_bits >> 3);
    free(q->reftable);
    q->reftable = calloc(q->reftable_count, sizeof *q->reftable);
    ASSERT(q->reftable);
    uint64_t known = rebuild->room < q->reftable_count ? rebuild->room : q->reftable_count;
    memcpy(q->reftable, rebuild->table, known * sizeof *q->reftable);
    q->broken = false;
    qcow2_note_used(q, rebuild->next + clusters);
    return 0;
}

static int rebuild_counts(struct qcow2_check *check)
{
    struct qcow2 *q = check->q;
    struct rebuild rebuild = {.next = check->clusters,
                              .last_block = (check->clusters - 1) >> q->block_bits};
    /* the blocks of the file, and at most as many again for themselves and the table */
    rebuild.room = (rebuild.last_block + 2) * 2 + 64;
    if (rebuild.room * 8 > 2 * (uint64_t)QCOW2_REFTABLE_BYTES_MAX) {
        return fail(-EFBIG, "disk '%s': its file is too large for a refcount table", q->name);
    }
    CLEANUP_BUFFER void *table = calloc(rebuild.room, sizeof *rebuild.table);
    CLEANUP_BUFFER void *last = calloc(UINT64_C(1) << q->block_bits, sizeof *rebuild.last);
    CLEANUP_BUFFER void *bytes = qcow2_buffer(q->cluster_size);
    ASSERT(table && last);
    rebuild.table = table;
    rebuild.last = last;
    rebuild.bytes = bytes;
    int error = 0;
    for (uint64_t first = 0; first < check->clusters && !error; first += check->window) {
        const struct qcow2_visitor flags = {.entry = set_flag};
        error = qcow2_count(check, first, false);
        if (!error) {
            error = qcow2_walk(check, &flags);
        }
        if (!error) {
            error = write_window(check, &rebuild);
        }
    }
    uint64_t clusters = 0;
    if (!error) {
        error = write_l1(q);
    }
    if (!error) {
        error = write_rest(check, &rebuild, &clusters);
    }
    return error ? error : switch_to(check, &rebuild, clusters);
}

int qcow2_repair(struct qcow2_check *check)
{
    struct qcow2 *q = check->q;
    const struct qcow2_visitor dropping = {.entry = drop_bad};
    int error = qcow2_walk(check, &dropping);
    if (!error) {
        error = write_l1(q);
    }
    if (!error) {
        error = rebuild_counts(check);
    }
    /* whatever is in memory of tables is not what is in the file now */
    for (uint64_t i = 0; i < q->l2.count; i++) {
        qcow2_cache_drop(q, &q->l2, q->l2.slices[i].offset, q->l2.slice_size);
    }
    for (uint64_t i = 0; i < q->refcounts.count; i++) {
        qcow2_cache_drop(q, &q->refcounts, q->refcounts.slices[i].offset, q->refcounts.slice_size);
    }
    return error;
}
