/*
 * Refcounts: how many references each cluster of the file has, which of them are free, and the two
 * tables that hold that. Counts in memory are the truth; qcow2_commit.c says when they are written.
 */
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_internal.h"
#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"

/* Clusters that one call looks at below the end before it takes some behind the end. */
enum { SCAN_MAX = 1 << 16, SKIP_MAX = 1 << 20 };

uint64_t qcow2_refcount_load(const uint8_t *bytes, uint64_t index, unsigned order)
{
    switch (order) {
    case 3:
        return bytes[index];
    case 4:
        return load_be16(bytes + index * 2);
    case 5:
        return load_be32(bytes + index * 4);
    case 6:
        return load_be64(bytes + index * 8);
    }
    unsigned width = 1u << order, shift = (unsigned)(index << order) % 8;
    return bytes[index << order >> 3] >> shift & ((1u << width) - 1);
}

void qcow2_refcount_store(uint8_t *bytes, uint64_t index, unsigned order, uint64_t value)
{
    unsigned width = 1u << order, shift = (unsigned)(index << order) % 8;
    uint8_t *byte = bytes + (index << order >> 3);
    switch (order) {
    case 3:
        bytes[index] = (uint8_t)value;
        return;
    case 4:
        store_be16(bytes + index * 2, (uint16_t)value);
        return;
    case 5:
        store_be32(bytes + index * 4, (uint32_t)value);
        return;
    case 6:
        store_be64(bytes + index * 8, value);
        return;
    }
    unsigned mask = ((1u << width) - 1) << shift;
    *byte = (uint8_t)((*byte & ~mask) | (unsigned)value << shift);
}

/* The slice that counts `cluster`, and where in it. NULL: there is no block, all counts are 0. */
static int find(struct qcow2 *q, uint64_t cluster, struct qcow2_slice **ret_slice,
                uint64_t *ret_index)
{
    uint64_t block = cluster >> q->block_bits;
    *ret_slice = NULL;
    if (block >= q->reftable_count || !q->reftable[block]) {
        return 0;
    }
    uint64_t offset = q->reftable[block];
    if (offset % q->cluster_size || offset >> 56) {
        return qcow2_corrupt(q, "a refcount block at an impossible place", offset);
    }
    uint64_t within = cluster & ((UINT64_C(1) << q->block_bits) - 1);
    uint64_t byte = within << q->header.refcount_order >> 3;
    int error = qcow2_cache_get(q, &q->refcounts, offset + byte, ret_slice);
    if (error) {
        return error;
    }
    uint64_t in_slice =
        (uint64_t)q->refcounts.slice_size * 8 >> q->header.refcount_order; /* a power of two */
    *ret_index = within & (in_slice - 1);
    return 0;
}

int qcow2_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *ret_count)
{
    struct qcow2_slice *slice;
    uint64_t index;
    int error = find(q, cluster, &slice, &index);
    *ret_count = 0;
    if (!error && slice) {
        *ret_count = qcow2_refcount_load(slice->bytes, index, q->header.refcount_order);
    }
    return error;
}

static int set_count(struct qcow2 *q, uint64_t cluster, uint64_t value)
{
    struct qcow2_slice *slice;
    uint64_t index;
    int error = find(q, cluster, &slice, &index);
    if (error) {
        return error;
    }
    ASSERT(slice); /* who sets a count has seen to it that there is a place for it */
    qcow2_refcount_store(slice->bytes, index, q->header.refcount_order, value);
    qcow2_cache_dirty(&q->refcounts, slice);
    return 0;
}

static int write_zeros(struct qcow2 *q, uint64_t offset)
{
    CLEANUP_BUFFER void *zeros = qcow2_buffer(q->cluster_size);
    memset(zeros, 0, q->cluster_size);
    return disk_write(q->file, offset, zeros, q->cluster_size);
}

void qcow2_note_used(struct qcow2 *q, uint64_t end)
{
    pthread_mutex_lock(&q->map);
    q->end = q->end < end ? end : q->end;
    q->fresh = q->fresh < end << q->cluster_bits ? end << q->cluster_bits : q->fresh;
    pthread_mutex_unlock(&q->map);
}

static void note_used(struct qcow2 *q, uint64_t first, uint64_t count)
{
    qcow2_note_used(q, first + count);
}

static int add_table(struct qcow2 *q, uint64_t cluster)
{
    pthread_mutex_lock(&q->map);
    bool is_new = qcow2_set_add(&q->tables, cluster);
    pthread_mutex_unlock(&q->map);
    return is_new ? 0
                  : qcow2_corrupt(q, "a table lies in a cluster that counts as free",
                                  cluster << q->cluster_bits);
}

/* `cluster`, the first without a block that counts it, becomes that block: it counts itself. */
static int make_block(struct qcow2 *q, uint64_t cluster)
{
    uint64_t offset = cluster << q->cluster_bits, block = cluster >> q->block_bits;
    int error = add_table(q, cluster);
    if (error) {
        return error;
    }
    qcow2_cache_drop(q, &q->refcounts, offset, q->cluster_size);
    error = write_zeros(q, offset);
    if (error) {
        pthread_mutex_lock(&q->map);
        qcow2_set_remove(&q->tables, cluster);
        pthread_mutex_unlock(&q->map);
        return error;
    }
    q->reftable[block] = offset;
    if (q->reftable_dirty_first >= q->reftable_dirty_end) {
        q->reftable_dirty_first = (uint32_t)block;
        q->reftable_dirty_end = (uint32_t)block + 1;
    } else {
        q->reftable_dirty_first =
            block < q->reftable_dirty_first ? (uint32_t)block : q->reftable_dirty_first;
        q->reftable_dirty_end =
            block >= q->reftable_dirty_end ? (uint32_t)block + 1 : q->reftable_dirty_end;
    }
    note_used(q, cluster, 1);
    return set_count(q, cluster, 1);
}

/*
 * The refcount table is full. A larger one goes to the first clusters that the old one does not
 * count, behind the blocks that count these clusters: blocks and table are in the file before the
 * header leads to them, and until then nothing refers to them.
 */
struct larger_table {
    uint64_t first;    /* cluster: here are the new blocks, then the table */
    uint64_t blocks;   /* how many */
    uint64_t clusters; /* of the table */
    uint64_t entries;
};

static void plan_larger_table(const struct qcow2 *q, struct larger_table *ret_plan)
{
    uint64_t per_block = UINT64_C(1) << q->block_bits;
    uint64_t first = (uint64_t)q->reftable_count << q->block_bits;
    struct larger_table plan = {.first = align_up(q->end > first ? q->end : first, per_block)};
    uint64_t before = plan.first >> q->block_bits;
    plan.blocks = 1;
    for (;;) {
        uint64_t want = (before + plan.blocks) * 3 / 2 + 1;
        plan.clusters = (want * 8 + q->cluster_size - 1) >> q->cluster_bits;
        plan.entries = plan.clusters << q->cluster_bits >> 3;
        uint64_t blocks = (plan.blocks + plan.clusters + per_block - 1) >> q->block_bits;
        if (blocks <= plan.blocks) {
            break;
        }
        plan.blocks = blocks;
    }
    *ret_plan = plan;
}

static int write_larger_table(struct qcow2 *q, const struct larger_table *plan, uint64_t *table)
{
    CLEANUP_BUFFER uint8_t *bytes = qcow2_buffer(q->cluster_size);
    uint64_t used = plan->blocks + plan->clusters, per_block = UINT64_C(1) << q->block_bits;
    int error = 0;
    for (uint64_t i = 0; i < plan->blocks && !error; i++) {
        memset(bytes, 0, q->cluster_size);
        for (uint64_t k = 0; k < per_block && i * per_block + k < used; k++) {
            qcow2_refcount_store(bytes, k, q->header.refcount_order, 1);
        }
        uint64_t offset = (plan->first + i) << q->cluster_bits;
        table[(plan->first >> q->block_bits) + i] = offset;
        qcow2_cache_drop(q, &q->refcounts, offset, q->cluster_size);
        error = disk_write(q->file, offset, bytes, q->cluster_size);
    }
    for (uint64_t i = 0; i < plan->clusters && !error; i++) {
        uint64_t in_cluster = q->cluster_size / 8;
        for (uint64_t k = 0; k < in_cluster; k++) {
            store_be64(bytes + k * 8, table[i * in_cluster + k]);
        }
        error = disk_write(q->file, (plan->first + plan->blocks + i) << q->cluster_bits, bytes,
                           q->cluster_size);
    }
    return error ? error : disk_flush(q->file);
}

static int switch_table(struct qcow2 *q, const struct larger_table *plan)
{
    uint8_t before[QCOW2_SECTOR];
    memcpy(before, q->sector, sizeof before);
    uint64_t offset = (plan->first + plan->blocks) << q->cluster_bits;
    store_be64(q->sector + QCOW2_AT_REFTABLE_OFFSET, offset);
    store_be32(q->sector + QCOW2_AT_REFTABLE_CLUSTERS, (uint32_t)plan->clusters);
    int error = qcow2_header_write(q);
    if (error) {
        memcpy(q->sector, before, sizeof before);
        return error;
    }
    q->header.reftable_offset = offset;
    q->header.reftable_clusters = (uint32_t)plan->clusters;
    return 0;
}

static int grow_table(struct qcow2 *q)
{
    struct larger_table plan;
    plan_larger_table(q, &plan);
    if (plan.clusters << q->cluster_bits > QCOW2_REFTABLE_BYTES_MAX) {
        return -EFBIG;
    }
    CLEANUP_BUFFER void *owned = calloc(plan.entries, sizeof(uint64_t));
    uint64_t *table = owned;
    ASSERT(table);
    memcpy(table, q->reftable, (size_t)q->reftable_count * sizeof *table);
    /* what the old table does not lead to yet the new one does: it has to be in the file */
    int error = qcow2_cache_write(q, &q->refcounts);
    if (!error) {
        error = write_larger_table(q, &plan, table);
    }
    const struct qcow2_free old = {.offset = q->header.reftable_offset,
                                   .length = (uint64_t)q->header.reftable_clusters
                                             << q->cluster_bits,
                                   .is_table = true};
    if (!error) {
        error = switch_table(q, &plan);
    }
    if (error) {
        return error;
    }
    free(q->reftable);
    q->reftable = TAKE(owned);
    q->reftable_count = (uint32_t)plan.entries;
    q->reftable_dirty_first = q->reftable_dirty_end = 0;
    note_used(q, plan.first, plan.blocks + plan.clusters);
    for (uint64_t i = 0; i < plan.blocks + plan.clusters && !error; i++) {
        error = add_table(q, plan.first + i);
    }
    return error ? error : qcow2_free_now(q, &old);
}

/*
 * Is `cluster` free? Makes the block that counts it if there is none: then `*cluster` is used by
 * that block itself afterwards.
 */
static int is_free(struct qcow2 *q, uint64_t cluster, bool *ret_free)
{
    uint64_t block = cluster >> q->block_bits, count = 1;
    int error = 0;
    *ret_free = false;
    if (cluster >> (56 - q->cluster_bits)) {
        return -EFBIG;
    }
    if (block >= q->reftable_count) {
        return grow_table(q);
    }
    if (!q->reftable[block]) {
        return make_block(q, cluster);
    }
    error = qcow2_refcount_get(q, cluster, &count);
    *ret_free = count == 0;
    return error;
}

/* The first free cluster: below the end if it is found soon, otherwise behind it. */
static int find_free(struct qcow2 *q, uint64_t *ret_cluster)
{
    bool found = false;
    uint64_t limit = q->scan + SCAN_MAX;
    for (; q->scan < q->end && q->scan < limit; q->scan++) {
        /* below the end a range without a block is left alone: it is behind a hole of the file */
        uint64_t block = q->scan >> q->block_bits, count;
        if (block >= q->reftable_count || !q->reftable[block]) {
            q->scan |= (UINT64_C(1) << q->block_bits) - 1;
            continue;
        }
        int error = qcow2_refcount_get(q, q->scan, &count);
        if (error || count == 0) {
            *ret_cluster = q->scan;
            return error;
        }
    }
    for (unsigned i = 0; i < SKIP_MAX; i++) {
        uint64_t cluster = q->end;
        int error = is_free(q, cluster, &found);
        if (error || found) {
            *ret_cluster = cluster;
            return error;
        }
        if (q->end == cluster) { /* counted as used, though nothing was there: a leak */
            uint64_t count;
            error = qcow2_refcount_get(q, cluster, &count);
            q->end += !error && count != 0;
        }
        if (error) {
            return error;
        }
    }
    return qcow2_corrupt(q, "too many clusters are counted behind the end of the file",
                         q->end << q->cluster_bits);
}

int qcow2_allocate(struct qcow2 *q, uint64_t wanted, bool is_table, uint64_t *ret_offset,
                   uint64_t *ret_got, bool *ret_fresh)
{
    uint64_t first = 0, got = 0;
    int error = find_free(q, &first);
    if (error) {
        return error;
    }
    for (bool is_next = true; is_next && got < wanted && !error;) {
        uint64_t cluster = first + got, count;
        if (qcow2_set_has(&q->tables, cluster)) {
            return qcow2_corrupt(q, "a table lies in a cluster that counts as free",
                                 cluster << q->cluster_bits);
        }
        error = set_count(q, cluster, 1);
        if (error) {
            break;
        }
        got++;
        cluster++;
        uint64_t block = cluster >> q->block_bits;
        is_next = block < q->reftable_count && q->reftable[block] && got < wanted;
        if (is_next) {
            error = qcow2_refcount_get(q, cluster, &count);
            is_next = count == 0;
        }
    }
    if (got == 0) {
        return error;
    }
    *ret_offset = first << q->cluster_bits;
    *ret_got = got;
    *ret_fresh = *ret_offset >= q->fresh;
    if (q->scan == first) {
        q->scan = first + got;
    }
    note_used(q, first, got);
    for (uint64_t i = 0; i < got && is_table; i++) {
        error = add_table(q, first + i);
        if (error) {
            return error;
        }
    }
    if (is_table) {
        qcow2_cache_drop(q, &q->l2, *ret_offset, got << q->cluster_bits);
    }
    return 0;
}

/* One reference of a cluster less. */
static int drop_reference(struct qcow2 *q, uint64_t cluster, bool is_table, bool *ret_last)
{
    uint64_t count;
    int error = qcow2_refcount_get(q, cluster, &count);
    if (!error && count == 0) {
        error = qcow2_corrupt(q, "a cluster in use counts as free", cluster << q->cluster_bits);
    }
    if (!error) {
        error = set_count(q, cluster, count - 1);
    }
    *ret_last = !error && count == 1;
    if (*ret_last) {
        q->scan = cluster < q->scan ? cluster : q->scan;
    }
    if (*ret_last && is_table) {
        pthread_mutex_lock(&q->map);
        qcow2_set_remove(&q->tables, cluster);
        pthread_mutex_unlock(&q->map);
        qcow2_cache_drop(q, &q->l2, cluster << q->cluster_bits, q->cluster_size);
        qcow2_cache_drop(q, &q->refcounts, cluster << q->cluster_bits, q->cluster_size);
    }
    return error;
}

/* The host's space of clusters that are free now. Where it is not given back nothing is lost. */
static void give_back(struct qcow2 *q, uint64_t first, uint64_t end)
{
    const struct disk_request discard = {.operation = DISK_DISCARD,
                                         .offset = first << q->cluster_bits,
                                         .length = (end - first) << q->cluster_bits};
    if (first < end && disk_perform(q->file, &discard)) {
        trail_clear();
    }
}

int qcow2_free_now(struct qcow2 *q, const struct qcow2_free *what)
{
    uint64_t first = what->offset >> q->cluster_bits;
    uint64_t last = (what->offset + what->length - 1) >> q->cluster_bits;
    uint64_t unused = first; /* the first of those that became free and are not given back yet */
    for (uint64_t cluster = first; cluster <= last; cluster++) {
        bool is_last;
        int error = drop_reference(q, cluster, what->is_table, &is_last);
        if (!is_last) {
            give_back(q, unused, cluster);
            unused = cluster + 1;
        }
        if (error) {
            return error;
        }
    }
    give_back(q, unused, last + 1);
    return 0;
}

void qcow2_free_later(struct qcow2 *q, uint64_t offset, uint64_t length, bool is_table)
{
    struct qcow2_free *last = q->free_count ? &q->frees[q->free_count - 1] : NULL;
    if (last && !is_table && !last->is_table && last->offset + last->length == offset &&
        offset % q->cluster_size == 0) {
        last->length += length;
        return;
    }
    if (q->free_count == q->free_room) {
        q->free_room = q->free_room ? q->free_room * 2 : 64;
        q->frees = realloc(q->frees, q->free_room * sizeof *q->frees);
        ASSERT(q->frees);
    }
    q->frees[q->free_count++] =
        (struct qcow2_free){.offset = offset, .length = length, .is_table = is_table};
}
