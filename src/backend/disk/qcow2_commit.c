/*
 * What makes a qcow2 image safe against a crash at any moment: the order of writes.
 *
 * The file is consistent when every reference in a table leads to what it is meant to, and no
 * cluster has more references than its refcount says. (A refcount that is too large is a leak:
 * space is lost until a repair, nothing else.) Changes are kept in memory, and a commit brings them
 * into the file in steps, each of which leaves it consistent, in whatever order the writes of one
 * step reach the disk and wherever a crash cuts them off:
 *
 *   1. Data was written to its new cluster before its L2 entry changed in memory, and so was the
 *      rest of a cluster that is copied. New tables are written whole. Refcounts that grew, and new
 *      refcount blocks, are written. Nothing in the file refers to any of that yet.    -- flush
 *   2. Entries of the refcount table that lead to new blocks are written.              -- flush
 *   3. Changed slices of L2 tables are written: these may be written by halves, because each entry
 *      is 8 aligned bytes and right by itself: old or new.                             -- flush
 *   4. Entries of the L1 table that lead to new tables are written.                    -- flush
 *   5. Now nothing in the file leads to what was replaced or discarded. When nobody reads or writes
 *      there any more, its refcounts are lowered, it may be used anew, and the host's space is
 * given back. The lower refcounts are written, without a flush: they are a leak until then.
 *
 * Steps without changes are left out, flush included. A cluster that became free in step 5 and is
 * taken again has a count of 1 in memory before its new reference is written, and step 1 comes
 * before that. So refcounts may be written at any time, and L2 slices only here.
 *
 * A commit happens when the guest flushes, when the cache is full of changed slices, and at the
 * end. What the guest wrote and did not flush may be lost by a crash, sector by sector, as on a
 * disk with a cache; what it flushed is there.
 *
 * With lazy refcounts, step 1 writes none, and the dirty bit is in the file before the first step
 * 3: whoever opens the image next counts all references anew. At the end counts are written and
 * flushed before the bit is cleared.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_internal.h"
#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"

unsigned qcow2_enter(struct qcow2 *q)
{
    pthread_mutex_lock(&q->map);
    unsigned epoch = q->epoch;
    q->in_flight[epoch]++;
    pthread_mutex_unlock(&q->map);
    return epoch;
}

void qcow2_leave(struct qcow2 *q, unsigned epoch)
{
    pthread_mutex_lock(&q->map);
    ASSERT(q->in_flight[epoch]);
    if (--q->in_flight[epoch] == 0) {
        pthread_cond_broadcast(&q->idle);
    }
    pthread_mutex_unlock(&q->map);
}

/* Until nobody uses what tables in memory led to when this began. */
static void wait_for_users(struct qcow2 *q)
{
    pthread_mutex_lock(&q->map);
    unsigned before = q->epoch;
    ASSERT(!q->in_flight[!before]);
    q->epoch = !before;
    while (q->in_flight[before]) {
        pthread_cond_wait(&q->idle, &q->map);
    }
    pthread_mutex_unlock(&q->map);
}

/* Whole sectors of a table of 64-bit entries. */
static int write_entries(struct qcow2 *q, const uint64_t *entries, uint32_t count,
                         uint64_t table_offset, uint32_t first, uint32_t end)
{
    enum { PER_SECTOR = QCOW2_SECTOR / 8, CHUNK = 8192 };
    CLEANUP_BUFFER uint8_t *bytes = qcow2_buffer(CHUNK * 8);
    first = (uint32_t)align_down(first, PER_SECTOR);
    end = (uint32_t)align_up(end, PER_SECTOR);
    for (uint32_t at = first; at < end; at += CHUNK) {
        uint32_t now = end - at < CHUNK ? end - at : CHUNK;
        for (uint32_t i = 0; i < now; i++) {
            store_be64(bytes + i * 8, at + i < count ? entries[at + i] : 0);
        }
        int error = disk_write(q->file, table_offset + (uint64_t)at * 8, bytes, (size_t)now * 8);
        if (error) {
            return error;
        }
    }
    return 0;
}

static int release_frees(struct qcow2 *q)
{
    wait_for_users(q);
    pthread_mutex_lock(&q->inflate_lock);
    q->inflated_entry = 0; /* its cluster may be among them */
    pthread_mutex_unlock(&q->inflate_lock);
    int error = 0;
    size_t done = 0;
    while (done < q->free_count && !error) {
        error = qcow2_free_now(q, &q->frees[done]);
        done++; /* after an error it stays a leak */
    }
    memmove(q->frees, q->frees + done, (q->free_count - done) * sizeof *q->frees);
    q->free_count -= done;
    return error;
}

static int write_blocks(struct qcow2 *q)
{
    bool has_new_blocks = q->reftable_dirty_first < q->reftable_dirty_end;
    bool is_lazy = q->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY;
    int error = is_lazy && !has_new_blocks ? 0 : qcow2_cache_write(q, &q->refcounts);
    if (!error) {
        error = disk_flush(q->file);
    }
    if (!error && has_new_blocks) {
        error = write_entries(q, q->reftable, q->reftable_count, q->header.reftable_offset,
                              q->reftable_dirty_first, q->reftable_dirty_end);
        if (!error) {
            error = disk_flush(q->file);
        }
        if (!error) {
            q->reftable_dirty_first = q->reftable_dirty_end = 0;
        }
    }
    return error;
}

static int write_mapping(struct qcow2 *q)
{
    if (!q->l2.dirty && q->l1_dirty_first >= q->l1_dirty_end) {
        return 0;
    }
    int error = qcow2_cache_write(q, &q->l2);
    if (!error) {
        error = disk_flush(q->file);
    }
    if (error || q->l1_dirty_first >= q->l1_dirty_end) {
        return error;
    }
    error = write_entries(q, q->l1, q->l1_count, q->header.l1_offset, q->l1_dirty_first,
                          q->l1_dirty_end);
    if (!error) {
        error = disk_flush(q->file);
    }
    if (!error) {
        q->l1_dirty_first = q->l1_dirty_end = 0;
    }
    return error;
}

int qcow2_commit(struct qcow2 *q)
{
    if (q->broken) { /* what was there before stays there; what is in memory only never will be */
        bool is_lost = q->l2.dirty || q->l1_dirty_first < q->l1_dirty_end;
        int error = disk_flush(q->file);
        return error || !is_lost ? error : -EIO;
    }
    int error = write_blocks(q);
    if (!error) {
        error = write_mapping(q);
    }
    if (!error && q->free_count) {
        error = release_frees(q);
        bool is_lazy = q->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY;
        if (!error && !is_lazy) {
            error = qcow2_cache_write(q, &q->refcounts);
        }
    }
    if (!error) {
        pthread_mutex_lock(&q->map);
        q->clean = true;
        pthread_mutex_unlock(&q->map);
    }
    return error;
}

int qcow2_start_changes(struct qcow2 *q)
{
    if (q->broken) {
        return -EIO;
    }
    pthread_mutex_lock(&q->map);
    q->clean = false;
    pthread_mutex_unlock(&q->map);
    if (q->started) {
        return 0;
    }
    if (q->header.version >= 3) {
        /* autoclear features that we do not know are not true any more */
        uint64_t set = q->header.compatible & QCOW2_COMPATIBLE_LAZY ? QCOW2_INCOMPATIBLE_DIRTY : 0;
        if (q->header.autoclear || set) {
            store_be64(q->sector + QCOW2_AT_AUTOCLEAR, 0);
            store_be64(q->sector + QCOW2_AT_INCOMPATIBLE, q->header.incompatible | set);
            int error = qcow2_header_write(q);
            if (error) {
                return error;
            }
            q->header.incompatible |= set;
            q->header.autoclear = 0;
        }
    }
    pthread_mutex_lock(&q->map);
    q->started = true;
    pthread_mutex_unlock(&q->map);
    return 0;
}

int qcow2_corrupt(struct qcow2 *q, const char *what, uint64_t where)
{
    pthread_mutex_lock(&q->map);
    bool was_broken = q->broken;
    q->broken = !q->disk.readonly;
    pthread_mutex_unlock(&q->map);
    if (!was_broken && !q->disk.readonly && !q->check_only) {
        if (qcow2_header_set_incompatible(q, QCOW2_INCOMPATIBLE_CORRUPT, 0)) {
            trail_clear();
        }
    }
    return fail(-EIO,
                "disk '%s' is corrupt: %s (at byte %llu); 'doppel disk check --repair' may help",
                q->name, what, (unsigned long long)where);
}
