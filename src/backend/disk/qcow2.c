/*
 * qcow2 images, versions 2 and 3: opening and closing them, and requests as a whole. What is where:
 * qcow2_header.c the header, qcow2_map.c the mapping, qcow2_refcount.c free clusters, qcow2_read.c
 * and qcow2_write.c requests on one thread, qcow2_async.c requests in flight, qcow2_commit.c when
 * metadata is written and why a crash does no harm, qcow2_check.c counting and repair.
 *
 * The file is hostile: sizes are bounded before memory is taken, entries are looked at before they
 * are followed, and guest data is never written over tables. Beside the file no other is touched
 * but those that the caller named.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_internal.h"
#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"

/* Of L2 tables: 16 MiB map 128 GiB in clusters of 64 KiB. */
enum { L2_CACHE_BYTES = 16 << 20, REFCOUNT_CACHE_BYTES = 4 << 20, SLICE_MAX = 4096 };

int qcow2_perform(struct disk *disk, const struct disk_request *request)
{
    struct qcow2 *q = qcow2_of(disk);
    int error = 0;
    switch (request->operation) {
    case DISK_READ:
        return qcow2_read(q, request);
    case DISK_WRITE:
        error = qcow2_write(q, request);
        break;
    case DISK_WRITE_ZEROES:
        error = request->length ? qcow2_write_zeroes(q, request->offset, request->length) : 0;
        break;
    case DISK_DISCARD:
        error = request->length ? qcow2_discard(q, request->offset, request->length) : 0;
        break;
    case DISK_FLUSH:
        break;
    }
    bool is_durable = request->operation == DISK_FLUSH || q->write_through;
    if (!error && is_durable && !disk->readonly) {
        pthread_mutex_lock(&q->meta);
        error = qcow2_commit(q);
        pthread_mutex_unlock(&q->meta);
    }
    return error;
}

static enum disk_extent_kind extent_kind(const struct qcow2_entry *entry)
{
    switch (entry->kind) {
    case QCOW2_IS_COMPRESSED:
        return DISK_EXTENT_COMPRESSED;
    case QCOW2_IS_ZERO:
        return DISK_EXTENT_ZERO;
    case QCOW2_IS_UNALLOCATED:
        return DISK_EXTENT_HOLE;
    case QCOW2_IS_DATA:
    case QCOW2_IS_BAD:
        break;
    }
    return DISK_EXTENT_DATA;
}

/* What the backing chain says of an unallocated piece. */
static int backing_extent(struct qcow2 *q, uint64_t offset, uint64_t length,
                          struct disk_extent *ret_extent)
{
    if (!q->backing || offset >= q->backing->size) {
        *ret_extent = (struct disk_extent){.length = length, .kind = DISK_EXTENT_HOLE};
        return 0;
    }
    uint64_t there = q->backing->size - offset;
    int error = disk_extent(q->backing, offset, length < there ? length : there, ret_extent);
    ret_extent->depth += !error && ret_extent->kind != DISK_EXTENT_HOLE;
    return error;
}

int qcow2_extent(struct disk *disk, uint64_t offset, uint64_t length,
                 struct disk_extent *ret_extent)
{
    struct qcow2 *q = qcow2_of(disk);
    uint64_t within = offset & (q->cluster_size - 1), entries[512];
    uint64_t clusters = (within + length + q->cluster_size - 1) >> q->cluster_bits;
    unsigned count, run = 1;
    pthread_mutex_lock(&q->meta);
    int error =
        qcow2_entries_get(q, offset, clusters < 512 ? (unsigned)clusters : 512, entries, &count);
    pthread_mutex_unlock(&q->meta);
    if (error) {
        return error;
    }
    struct qcow2_entry first = qcow2_entry_decode(q, entries[0]);
    for (; run < count; run++) {
        struct qcow2_entry entry = qcow2_entry_decode(q, entries[run]);
        if (extent_kind(&entry) != extent_kind(&first) ||
            (entry.kind == QCOW2_IS_DATA && entry.host != first.host + run * q->cluster_size)) {
            break;
        }
    }
    uint64_t there = ((uint64_t)run << q->cluster_bits) - within;
    there = there < length ? there : length;
    if (first.kind == QCOW2_IS_BAD) {
        return fail(-EIO,
                    "disk '%s' is corrupt: the entry of the cluster at byte %llu of the disk "
                    "cannot be",
                    q->name, (unsigned long long)offset);
    }
    if (first.kind == QCOW2_IS_UNALLOCATED) {
        return backing_extent(q, offset, there, ret_extent);
    }
    *ret_extent = (struct disk_extent){
        .length = there, .kind = extent_kind(&first), .file_offset = first.host + within};
    return 0;
}

static void qcow2_hold(struct disk *disk)
{
    disk_hold(qcow2_of(disk)->file);
}

static void qcow2_release(struct disk *disk)
{
    disk_release(qcow2_of(disk)->file);
}

int qcow2_finish(struct qcow2 *q)
{
    int error = qcow2_commit(q);
    if (!error && !q->broken) {
        error = qcow2_cache_write(q, &q->refcounts);
        if (!error) {
            error = disk_flush(q->file);
        }
        if (!error) {
            error = qcow2_header_set_incompatible(q, 0, QCOW2_INCOMPATIBLE_DIRTY);
        }
        q->started = false;
    }
    return error;
}

static void destroy(struct qcow2 *q)
{
    if (!q) {
        return;
    }
    qcow2_cache_fini(&q->l2);
    qcow2_cache_fini(&q->refcounts);
    qcow2_set_fini(&q->tables);
    pthread_mutex_destroy(&q->meta);
    pthread_mutex_destroy(&q->map);
    pthread_mutex_destroy(&q->inflate_lock);
    pthread_cond_destroy(&q->changed);
    pthread_cond_destroy(&q->idle);
    pthread_cond_destroy(&q->work);
    disk_free(q->backing);
    disk_free(q->file);
    free(q->l1);
    free(q->reftable);
    free(q->frees);
    free(q->inflated);
    free(q->name);
    free(q);
}
CLEANUP_DEFINE(struct qcow2, destroy)

static void qcow2_free_disk(struct disk *disk)
{
    struct qcow2 *q = qcow2_of(disk);
    qcow2_drain(disk);
    qcow2_workers_close(q);
    if (q->started && qcow2_finish(q)) {
        trail_clear(); /* what was flushed is there; the rest is as after a crash */
    }
    destroy(q);
}

static const struct disk_ops qcow2_ops = {
    .submit = qcow2_submit,
    .hold = qcow2_hold,
    .release = qcow2_release,
    .perform = qcow2_perform,
    .place = qcow2_place,
    .extent = qcow2_extent,
    .drain = qcow2_drain,
    .free = qcow2_free_disk,
};

bool qcow2_facts(struct disk *disk, struct qcow2_facts *ret_facts)
{
    if (!disk || disk->ops != &qcow2_ops) {
        return false;
    }
    const struct qcow2 *q = qcow2_of(disk);
    *ret_facts = (struct qcow2_facts){
        .version = q->header.version,
        .cluster_size = q->cluster_size,
        .refcount_bits = 1u << q->header.refcount_order,
        .lazy_refcounts = q->header.compatible & QCOW2_COMPATIBLE_LAZY,
        .dirty = q->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY,
        .corrupt = q->header.incompatible & QCOW2_INCOMPATIBLE_CORRUPT,
        .compression = q->header.compression ? "zstd" : "zlib",
        .backing = *q->header.backing ? q->header.backing : NULL,
        .backing_format = *q->header.backing_format ? q->header.backing_format : NULL,
        .snapshots = q->header.snapshot_count,
    };
    return true;
}

bool qcow2_is_in_file(const struct qcow2 *q, uint64_t offset, uint64_t length)
{
    uint64_t end = q->file->ops->end(q->file);
    return end == UINT64_MAX || range_fits(offset, length, align_up(end, q->cluster_size));
}

/* A table of big-endian entries, whole, in host order. */
static int load_table(struct qcow2 *q, const char *what, uint64_t offset, uint64_t count,
                      uint64_t **ret_entries)
{
    if (count && !qcow2_is_in_file(q, offset, count * 8)) {
        return fail(-EINVAL, "disk '%s' is corrupt or cut off: its %s is behind its end", q->name,
                    what);
    }
    CLEANUP_BUFFER void *owned = qcow2_buffer(count * 8);
    uint64_t *entries = owned;
    int error = disk_read(q->file, offset, entries, align_up(count * 8, 8));
    if (error) {
        return fail(error, "disk '%s': read its %s: %s", q->name, what, strerror(-error));
    }
    for (uint64_t i = 0; i < count; i++) {
        entries[i] = load_be64(&entries[i]);
    }
    *ret_entries = TAKE(owned);
    return 0;
}

static int add_tables(struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
    uint64_t first = offset >> q->cluster_bits;
    uint64_t end = (offset + bytes + q->cluster_size - 1) >> q->cluster_bits;
    for (uint64_t cluster = first; cluster < end; cluster++) {
        if (!qcow2_set_add(&q->tables, cluster)) {
            return fail(-EINVAL,
                        "disk '%s' is corrupt: two of its tables are at byte %llu; 'doppel "
                        "disk check --repair' may help",
                        q->name, (unsigned long long)cluster << q->cluster_bits);
        }
    }
    return 0;
}

static int find_snapshot_tables(struct qcow2 *q)
{
    CLEANUP_BUFFER void *owned = NULL;
    struct qcow2_snapshot *snapshots;
    uint64_t size;
    int error = qcow2_snapshots_read(q, &snapshots, &size);
    if (error) {
        return error;
    }
    owned = snapshots;
    error = size ? add_tables(q, q->header.snapshots_offset, size) : 0;
    for (uint32_t i = 0; i < q->header.snapshot_count && !error; i++) {
        error = add_tables(q, snapshots[i].l1_offset, (uint64_t)snapshots[i].l1_size * 8);
    }
    return error;
}

int qcow2_find_tables(struct qcow2 *q)
{
    qcow2_set_fini(&q->tables);
    qcow2_set_init(&q->tables, (size_t)q->l1_count + q->reftable_count / 4);
    int error = add_tables(q, 0, 1);
    if (!error) {
        error = add_tables(q, q->header.l1_offset, (uint64_t)q->l1_count * 8);
    }
    if (!error) {
        error = add_tables(q, q->header.reftable_offset,
                           (uint64_t)q->header.reftable_clusters << q->cluster_bits);
    }
    if (!error) {
        error = find_snapshot_tables(q);
    }
    for (uint32_t i = 0; i < q->l1_count && !error; i++) {
        uint64_t raw = q->l1[i], offset = raw & QCOW2_OFFSET_MASK;
        if (raw & ~(QCOW2_OFFSET_MASK | QCOW2_COPIED) || offset % q->cluster_size) {
            error = fail(-EINVAL,
                         "disk '%s' is corrupt: entry %u of its L1 table cannot be; "
                         "'doppel disk check --repair' may help",
                         q->name, i);
        } else if (offset) {
            error = add_tables(q, offset, q->cluster_size);
        }
    }
    for (uint32_t i = 0; i < q->reftable_count && !error; i++) {
        uint64_t offset = q->reftable[i];
        if (offset % q->cluster_size || offset >> 56) {
            error = fail(-EINVAL,
                         "disk '%s' is corrupt: entry %u of its refcount table cannot be; "
                         "'doppel disk check --repair' may help",
                         q->name, i);
        } else if (offset) {
            error = add_tables(q, offset, q->cluster_size);
        }
    }
    return error;
}

static int check_state(const struct qcow2 *q)
{
    uint64_t marks = q->header.incompatible;
    if (q->disk.readonly || q->check_only) {
        return 0;
    }
    if (marks & QCOW2_INCOMPATIBLE_CORRUPT) {
        return fail(-EINVAL,
                    "disk '%s' is marked as corrupt: run 'doppel disk check --repair', or "
                    "use it readonly",
                    q->name);
    }
    if (q->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS) {
        return fail(-ENOTSUP,
                    "disk '%s' has dirty bitmaps, which writing would make wrong: remove "
                    "them with 'qemu-img bitmap --remove', or use it readonly",
                    q->name);
    }
    return 0;
}

/* After a crash with lazy refcounts: count anew. */
static int repair_dirty(struct qcow2 *q)
{
    struct qcow2_report report;
    if (q->disk.readonly || q->check_only || !(q->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY)) {
        return 0;
    }
    int error = qcow2_check(&q->disk, true, NULL, NULL, &report);
    return error
               ? fail(error, "disk '%s' was not closed properly, and repairing it failed", q->name)
               : 0;
}

static int load(struct qcow2 *q)
{
    int error = qcow2_header_read(q->file, q->name, &q->header, q->sector);
    if (!error) {
        error = check_state(q);
    }
    if (error) {
        return error;
    }
    uint64_t end = q->file->ops->end(q->file);
    q->cluster_bits = q->header.cluster_bits;
    q->cluster_size = UINT64_C(1) << q->cluster_bits;
    q->l2_bits = q->cluster_bits - 3;
    q->block_bits = q->cluster_bits + 3 - q->header.refcount_order;
    q->disk.size = align_down(q->header.size, QCOW2_SECTOR);
    q->l1_count = q->header.l1_size;
    q->reftable_count = q->header.reftable_clusters << (q->cluster_bits - 3);
    q->end = end == UINT64_MAX ? 0 : (end + q->cluster_size - 1) >> q->cluster_bits;
    q->fresh = end == UINT64_MAX ? end : q->end << q->cluster_bits;
    unsigned slice = q->cluster_size < SLICE_MAX ? (unsigned)q->cluster_size : SLICE_MAX;
    qcow2_cache_init(&q->l2, L2_CACHE_BYTES, slice);
    qcow2_cache_init(&q->refcounts, REFCOUNT_CACHE_BYTES, slice);
    error = load_table(q, "L1 table", q->header.l1_offset, q->l1_count, &q->l1);
    if (!error) {
        error = load_table(q, "refcount table", q->header.reftable_offset, q->reftable_count,
                           &q->reftable);
    }
    return error;
}

/* The file that the caller named for the one in the header. */
static int open_backing(struct qcow2 *q, const struct disk_options *options)
{
    const char *named = q->header.backing;
    if (!*named && options->backing_count == 0) {
        return 0;
    }
    if (!*named) {
        return fail(-EINVAL, "disk '%s' has no backing file, and '%s' is named as one", q->name,
                    options->backing[0]);
    }
    if (options->no_backing) {
        return 0;
    }
    if (options->backing_count == 0) {
        return fail(-EINVAL,
                    "disk '%s' is based on '%s', which is not opened unless you name it: "
                    "backing=FILE, with the file that you trust to be it",
                    q->name, named);
    }
    struct disk_options below = *options;
    const char *path = options->backing[0];
    below.readonly = true;
    below.repair = false;
    below.backing++;
    below.backing_count--;
    below.format = !strcmp(q->header.backing_format, "raw")     ? DISK_FORMAT_RAW
                   : !strcmp(q->header.backing_format, "qcow2") ? DISK_FORMAT_QCOW2
                                                                : DISK_FORMAT_UNKNOWN;
    if (!strncmp(path, "raw:", 4)) {
        below.format = DISK_FORMAT_RAW;
        path += 4;
    } else if (!strncmp(path, "qcow2:", 6)) {
        below.format = DISK_FORMAT_QCOW2;
        path += 6;
    } else if (*q->header.backing_format && below.format == DISK_FORMAT_UNKNOWN) {
        return fail(-ENOTSUP,
                    "disk '%s': its backing file is said to be a %s file, which is not "
                    "supported",
                    q->name, q->header.backing_format);
    }
    int error = disk_open(path, &below, &q->backing);
    return error == -EINVAL && below.format == DISK_FORMAT_UNKNOWN
               ? fail(error,
                      "the backing file of '%s' (its format is not recorded: write "
                      "backing=raw:%s or backing=qcow2:%s)",
                      q->name, path, path)
               : error;
}

int qcow2_open(struct disk *file, const char *name, const struct disk_options *options,
               struct disk **ret_disk)
{
    CLEANUP(destroy) struct qcow2 *q = calloc(1, sizeof *q);
    ASSERT(q);
    q->file = file;
    q->name = strdup(name);
    ASSERT(q->name);
    q->disk =
        (struct disk){.ops = &qcow2_ops, .readonly = options->readonly, .unlocked = file->unlocked};
    q->check_only = options->repair;
    q->write_through =
        options->cache == DISK_CACHE_WRITETHROUGH || options->cache == DISK_CACHE_DIRECTSYNC;
    q->clean = true;
    q->last = &q->first;
    pthread_mutex_init(&q->meta, NULL);
    pthread_mutex_init(&q->map, NULL);
    pthread_mutex_init(&q->inflate_lock, NULL);
    pthread_cond_init(&q->changed, NULL);
    pthread_cond_init(&q->idle, NULL);
    pthread_cond_init(&q->work, NULL);
    int error = load(q);
    if (!error) {
        error = open_backing(q, options);
    }
    if (!error) {
        error = repair_dirty(q);
    }
    if (!error && !q->disk.readonly && !q->check_only) {
        error = qcow2_find_tables(q);
    }
    if (!error && q->disk.size == 0 && !options->no_backing) {
        error = fail(-EINVAL, "disk '%s' has a size of less than one sector", q->name);
    }
    if (!error && !options->synchronous) {
        error = qcow2_workers_open(q);
    }
    if (error) {
        return error;
    }
    *ret_disk = &TAKE(q)->disk;
    return 0;
}
