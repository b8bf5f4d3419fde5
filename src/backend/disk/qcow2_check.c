/*
 * Checking a qcow2 image: all tables are walked, the references to each cluster of the file are
 * counted, and compared with what the image says. Counts are held for a window of the file, so that
 * memory is bounded; a larger file takes several walks. Each table is visited once in each walk, so
 * no loop of tables is followed.
 */
#include "backend/disk/qcow2_check.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"

static void count_use(struct qcow2_check *check, uint64_t offset, uint64_t length)
{
    const struct qcow2 *q = check->q;
    uint64_t end = (offset + length + q->cluster_size - 1) >> q->cluster_bits;
    for (uint64_t cluster = offset >> q->cluster_bits; cluster < end; cluster++) {
        if (cluster >= check->first && cluster - check->first < check->window) {
            uint16_t *count = &check->counts[cluster - check->first];
            *count = (uint16_t)(*count + (*count < QCOW2_COUNT_MAX));
        }
    }
}

uint16_t qcow2_counted(const struct qcow2_check *check, uint64_t cluster)
{
    bool is_inside = cluster >= check->first && cluster - check->first < check->window;
    return is_inside ? check->counts[cluster - check->first] : 0;
}

/* May [offset, offset + length) be a table or data: in the file, and no table of another kind? */
static bool is_possible(const struct qcow2_check *check, uint64_t offset, uint64_t length)
{
    const struct qcow2 *q = check->q;
    uint64_t first = offset >> q->cluster_bits, last = (offset + length - 1) >> q->cluster_bits;
    if (first >= check->clusters) {
        return false;
    }
    for (uint64_t cluster = first; cluster <= last; cluster++) {
        if (qcow2_set_has(&check->fixed, cluster)) {
            return false;
        }
    }
    return true;
}

/* One L2 table. `tables` are those of this L1 table: no data is in there. */
static int walk_table(struct qcow2_check *check, const struct qcow2_visitor *visitor,
                      const struct qcow2_set *tables, uint64_t table, bool is_active)
{
    struct qcow2 *q = check->q;
    bool is_changed = false;
    int error = disk_read(q->file, table, check->table, q->cluster_size);
    for (uint64_t i = 0; i < q->cluster_size / 8 && !error; i++) {
        uint64_t raw = load_be64(check->table + i * 8);
        if (!raw) {
            continue;
        }
        struct qcow2_entry entry = qcow2_entry_decode(q, raw);
        uint64_t length = entry.kind == QCOW2_IS_COMPRESSED ? entry.length : q->cluster_size;
        bool is_bad = entry.kind == QCOW2_IS_BAD ||
                      (entry.host && (!is_possible(check, entry.host, length) ||
                                      qcow2_set_has(tables, entry.host >> q->cluster_bits)));
        if (!is_bad && entry.kind == QCOW2_IS_COMPRESSED) {
            is_bad = (entry.host + length - 1) >> q->cluster_bits >= check->clusters ||
                     qcow2_set_has(tables, (entry.host + length - 1) >> q->cluster_bits);
        }
        if (is_active && visitor->entry) {
            uint64_t after = visitor->entry(check, raw, false, is_bad);
            is_changed |= after != raw;
            store_be64(check->table + i * 8, after);
        } else if (is_bad && !is_active && visitor->bad) {
            visitor->bad(check);
        }
        if (!is_bad && entry.host && visitor->use) {
            visitor->use(check, entry.host, length);
        }
    }
    return !error && is_changed ? disk_write(q->file, table, check->table, q->cluster_size) : error;
}

static bool is_good_table(const struct qcow2_check *check, uint64_t raw)
{
    uint64_t offset = raw & QCOW2_OFFSET_MASK;
    return !(raw & ~(QCOW2_COPIED | QCOW2_OFFSET_MASK)) && offset % check->q->cluster_size == 0 &&
           is_possible(check, offset, check->q->cluster_size);
}

static int walk_l1(struct qcow2_check *check, const struct qcow2_visitor *visitor, uint64_t *l1,
                   uint32_t count, bool is_active)
{
    struct qcow2 *q = check->q;
    struct qcow2_set tables;
    int error = 0;
    qcow2_set_init(&tables, count);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t offset = l1[i] & QCOW2_OFFSET_MASK;
        bool is_bad = l1[i] && (!is_good_table(check, l1[i]) || !offset ||
                                !qcow2_set_add(&tables, offset >> q->cluster_bits));
        if (is_bad && !is_active && visitor->bad) {
            visitor->bad(check);
        }
        uint64_t after = l1[i];
        if (l1[i] && is_active && visitor->entry) {
            after = visitor->entry(check, l1[i], true, is_bad);
        }
        l1[i] = is_bad && after == l1[i] ? l1[i] | QCOW2_ZERO : after; /* bit 0: bad, see below */
    }
    for (uint32_t i = 0; i < count && !error; i++) {
        uint64_t offset = l1[i] & QCOW2_OFFSET_MASK;
        if (!offset || l1[i] & QCOW2_ZERO) {
            continue;
        }
        if (visitor->use) {
            visitor->use(check, offset, q->cluster_size);
        }
        error = walk_table(check, visitor, &tables, offset, is_active);
        if (check->progress && visitor->is_first && is_active) {
            check->progress(check->owner, i, count);
        }
    }
    qcow2_set_fini(&tables);
    return error;
}

/* A copy, because a walk marks what is bad in it. */
static int walk_snapshot(struct qcow2_check *check, const struct qcow2_visitor *visitor,
                         const struct qcow2_snapshot *snapshot)
{
    CLEANUP_BUFFER uint8_t *bytes = qcow2_buffer((size_t)snapshot->l1_size * 8);
    uint64_t *l1 = (uint64_t *)(void *)bytes;
    int error =
        disk_read(check->q->file, snapshot->l1_offset, bytes, (size_t)snapshot->l1_size * 8);
    for (uint32_t i = 0; i < snapshot->l1_size && !error; i++) {
        l1[i] = load_be64(&l1[i]);
    }
    return error ? error : walk_l1(check, visitor, l1, snapshot->l1_size, false);
}

int qcow2_walk(struct qcow2_check *check, const struct qcow2_visitor *visitor)
{
    struct qcow2 *q = check->q;
    if (visitor->use) {
        visitor->use(check, 0, q->cluster_size);
        visitor->use(check, q->header.l1_offset, (uint64_t)q->l1_count * 8);
        visitor->use(check, q->header.snapshots_offset, check->snapshot_table_size);
        for (uint32_t i = 0; i < q->header.snapshot_count; i++) {
            visitor->use(check, check->snapshots[i].l1_offset,
                         (uint64_t)check->snapshots[i].l1_size * 8);
        }
    }
    uint64_t *l1 = qcow2_buffer((size_t)q->l1_count * 8);
    memcpy(l1, q->l1, (size_t)q->l1_count * 8);
    int error = walk_l1(check, visitor, l1, q->l1_count, true);
    if (visitor->entry && !error) { /* what it made of the entries */
        for (uint32_t i = 0; i < q->l1_count; i++) {
            q->l1[i] = l1[i] & QCOW2_ZERO ? q->l1[i] : l1[i];
        }
    }
    free(l1);
    for (uint32_t i = 0; i < q->header.snapshot_count && !error; i++) {
        error = walk_snapshot(check, visitor, &check->snapshots[i]);
    }
    return error;
}

/* The refcount table and its blocks; the same block twice is not counted twice. */
static void use_refcounts(struct qcow2_check *check)
{
    struct qcow2 *q = check->q;
    count_use(check, q->header.reftable_offset,
              (uint64_t)q->header.reftable_clusters << q->cluster_bits);
    for (uint32_t i = 0; i < q->reftable_count; i++) {
        if (q->reftable[i] && q->reftable[i] % q->cluster_size == 0 &&
            q->reftable[i] >> q->cluster_bits < check->clusters) {
            count_use(check, q->reftable[i], q->cluster_size);
        }
    }
}

int qcow2_count(struct qcow2_check *check, uint64_t first, bool has_refcounts)
{
    const struct qcow2_visitor counting = {.use = count_use};
    check->first = first;
    memset(check->counts, 0, (size_t)check->window * sizeof *check->counts);
    if (has_refcounts) {
        use_refcounts(check);
    }
    return qcow2_walk(check, &counting);
}

/* Compare the counts of one refcount block with ours. */
static void compare_block(struct qcow2_check *check, uint64_t block, const uint8_t *bytes)
{
    const struct qcow2 *q = check->q;
    uint64_t start = block << q->block_bits;
    for (uint64_t i = 0; i < UINT64_C(1) << q->block_bits; i++) {
        uint64_t cluster = start + i;
        bool is_inside = cluster >= check->first && cluster - check->first < check->window &&
                         cluster < check->clusters;
        bool is_behind = cluster >= check->clusters && check->first == 0;
        if (!is_inside && !is_behind) {
            continue;
        }
        uint64_t counted = qcow2_counted(check, cluster);
        uint64_t said = bytes ? qcow2_refcount_load(bytes, i, q->header.refcount_order) : 0;
        if (counted == QCOW2_COUNT_MAX && said >= counted) {
            continue; /* more than we count to */
        }
        check->report->leaks += said > counted;
        check->report->errors += said < counted;
    }
}

static int compare(struct qcow2_check *check)
{
    struct qcow2 *q = check->q;
    struct qcow2_set blocks;
    int error = 0;
    uint64_t covered = (uint64_t)q->reftable_count;
    uint64_t needed = (check->clusters + (UINT64_C(1) << q->block_bits) - 1) >> q->block_bits;
    qcow2_set_init(&blocks, covered);
    for (uint64_t i = 0; (i < covered || i < needed) && !error; i++) {
        uint64_t offset = i < covered ? q->reftable[i] : 0;
        bool is_bad = offset % q->cluster_size || offset >> q->cluster_bits >= check->clusters ||
                      (offset && !qcow2_set_add(&blocks, offset >> q->cluster_bits));
        uint64_t start = i << q->block_bits, end = (i + 1) << q->block_bits;
        bool is_seen = (start < check->first + check->window && end > check->first) ||
                       (check->first == 0 && end > check->clusters);
        if (is_bad) {
            check->report->errors += check->first == 0;
        } else if (offset && is_seen) {
            error = disk_read(q->file, offset, check->table, q->cluster_size);
        }
        if (!error && is_seen && (offset || i < needed)) {
            compare_block(check, i, offset && !is_bad ? check->table : NULL);
        }
    }
    qcow2_set_fini(&blocks);
    return error;
}

/* Is the flag of an entry what the count says? */
static uint64_t look_at_entry(struct qcow2_check *check, uint64_t raw, bool is_table, bool is_bad)
{
    struct qcow2 *q = check->q;
    bool is_first = check->first == 0;
    struct qcow2_entry entry = qcow2_entry_decode(q, raw);
    if (is_bad) {
        check->report->bad += is_first;
        return raw;
    }
    if (!is_table && is_first) {
        check->report->allocated += entry.kind == QCOW2_IS_DATA;
        check->report->compressed += entry.kind == QCOW2_IS_COMPRESSED;
    }
    uint64_t host = raw & QCOW2_OFFSET_MASK, cluster = host >> q->cluster_bits;
    bool is_inside = cluster >= check->first && cluster - check->first < check->window;
    if (host && is_inside && (is_table || entry.kind != QCOW2_IS_COMPRESSED)) {
        bool is_alone = qcow2_counted(check, cluster) == 1;
        check->report->errors += is_alone != !!(raw & QCOW2_COPIED);
    }
    return raw;
}

static void note_bad(struct qcow2_check *check)
{
    check->report->bad += check->first == 0;
}

static int verify(struct qcow2_check *check)
{
    const struct qcow2_visitor looking = {
        .entry = look_at_entry, .bad = note_bad, .is_first = true};
    int error = 0;
    for (uint64_t first = 0; first < check->clusters && !error; first += check->window) {
        error = qcow2_count(check, first, true);
        if (!error) {
            error = compare(check);
        }
        if (!error) {
            error = qcow2_walk(check, &looking);
        }
    }
    return error;
}

static void add_fixed(struct qcow2_check *check, uint64_t offset, uint64_t length)
{
    const struct qcow2 *q = check->q;
    uint64_t end = (offset + length + q->cluster_size - 1) >> q->cluster_bits;
    for (uint64_t cluster = offset >> q->cluster_bits; cluster < end && length; cluster++) {
        qcow2_set_add(&check->fixed, cluster);
    }
}

static int prepare(struct qcow2_check *check)
{
    struct qcow2 *q = check->q;
    if (q->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS) {
        return fail(-ENOTSUP,
                    "disk '%s' has dirty bitmaps, whose clusters are not known here: "
                    "check it with 'qemu-img check'",
                    q->name);
    }
    uint64_t end = q->file->ops->end(q->file);
    if (end == UINT64_MAX) {
        return fail(-ENOTSUP, "disk '%s' is a block device: only files can be checked", q->name);
    }
    check->clusters = (end + q->cluster_size - 1) >> q->cluster_bits;
    if (check->clusters > (uint64_t)QCOW2_WINDOW * QCOW2_WINDOWS_MAX) {
        return fail(-EFBIG, "disk '%s': its file is too large for its clusters to be checked",
                    q->name);
    }
    check->window = check->clusters < QCOW2_WINDOW ? check->clusters : QCOW2_WINDOW;
    check->counts = calloc(check->window + 1, sizeof *check->counts);
    check->table = qcow2_buffer(q->cluster_size);
    ASSERT(check->counts);
    qcow2_set_init(&check->fixed, 64);
    int error = qcow2_snapshots_read(q, &check->snapshots, &check->snapshot_table_size);
    if (error) {
        return error;
    }
    add_fixed(check, 0, q->cluster_size);
    add_fixed(check, q->header.l1_offset, (uint64_t)q->l1_count * 8);
    add_fixed(check, q->header.snapshots_offset, check->snapshot_table_size);
    for (uint32_t i = 0; i < q->header.snapshot_count; i++) {
        add_fixed(check, check->snapshots[i].l1_offset, (uint64_t)check->snapshots[i].l1_size * 8);
    }
    return 0;
}

static int run(struct qcow2_check *check, bool repair)
{
    struct qcow2_report *report = check->report;
    int error = prepare(check);
    if (!error) {
        error = verify(check);
    }
    bool is_clean = !report->leaks && !report->errors && !report->bad && !report->was_dirty &&
                    !report->was_corrupt;
    if (!error && repair && !is_clean) {
        error = qcow2_repair(check);
        report->repaired = !error;
    }
    return error;
}

int qcow2_check(struct disk *disk, bool repair,
                void (*progress)(void *owner, uint64_t done, uint64_t total), void *owner,
                struct qcow2_report *ret_report)
{
    struct qcow2 *q = qcow2_of(disk);
    struct qcow2_report report = {
        .was_dirty = q->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY,
        .was_corrupt = q->header.incompatible & QCOW2_INCOMPATIBLE_CORRUPT,
    };
    struct qcow2_check check = {.q = q, .report = &report, .progress = progress, .owner = owner};
    if (repair && disk->readonly) {
        return fail(-EROFS, "disk '%s' is read-only and cannot be repaired", q->name);
    }
    int error = run(&check, repair);
    free(check.counts);
    free(check.table);
    free(check.snapshots);
    qcow2_set_fini(&check.fixed);
    *ret_report = report;
    return error && !*trail_text() ? fail(error, "check disk '%s': %s", q->name, strerror(-error))
                                   : error;
}
