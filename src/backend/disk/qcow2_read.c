/*
 * Reading: from the clusters of the file, compressed ones, the backing chain, or nothing but zeros.
 */
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_internal.h"
#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"

enum { ENTRIES_MAX = 512 }; /* looked at together: those of one slice */

unsigned qcow2_cut_vectors(const struct disk_request *request, uint64_t skip, uint64_t length,
                           struct iovec *ret_vectors)
{
    unsigned count = 0;
    for (unsigned i = 0; i < request->vector_count && length; i++) {
        struct iovec vector = request->vectors[i];
        if (skip >= vector.iov_len) {
            skip -= vector.iov_len;
            continue;
        }
        vector.iov_base = (uint8_t *)vector.iov_base + skip;
        vector.iov_len -= skip;
        skip = 0;
        vector.iov_len = vector.iov_len < length ? vector.iov_len : length;
        length -= vector.iov_len;
        ret_vectors[count++] = vector;
    }
    return count;
}

static void copy_to_vectors(const struct iovec *vectors, unsigned count, const uint8_t *from)
{
    for (unsigned i = 0; i < count; i++) {
        if (from) {
            memcpy(vectors[i].iov_base, from, vectors[i].iov_len);
            from += vectors[i].iov_len;
        } else {
            memset(vectors[i].iov_base, 0, vectors[i].iov_len);
        }
    }
}

static uint64_t length_of(const struct iovec *vectors, unsigned count)
{
    uint64_t length = 0;
    for (unsigned i = 0; i < count; i++) {
        length += vectors[i].iov_len;
    }
    return length;
}

static int read_vectors(struct disk *disk, uint64_t offset, struct iovec *vectors, unsigned count,
                        uint64_t length)
{
    const struct disk_request request = {.operation = DISK_READ,
                                         .offset = offset,
                                         .length = length,
                                         .vectors = vectors,
                                         .vector_count = count};
    return disk_perform(disk, &request);
}

/* What is behind the end of the backing file reads as zeros. Uses up the vectors. */
static int read_backing(struct qcow2 *q, uint64_t offset, struct iovec *vectors, unsigned count)
{
    uint64_t size = q->backing ? q->backing->size : 0;
    uint64_t length = length_of(vectors, count);
    uint64_t there = offset < size ? size - offset : 0;
    there = there < length ? there : length;
    if (there == length) {
        return read_vectors(q->backing, offset, vectors, count, length);
    }
    CLEANUP_BUFFER void *owned = calloc(count, sizeof(struct iovec));
    ASSERT(owned || !count);
    const struct disk_request whole = {.vectors = vectors, .vector_count = count};
    unsigned rest = qcow2_cut_vectors(&whole, there, length - there, owned);
    copy_to_vectors(owned, rest, NULL);
    if (!there) {
        return 0;
    }
    unsigned front = qcow2_cut_vectors(&whole, 0, there, owned);
    return read_vectors(q->backing, offset, owned, front, there);
}

/* A piece of a compressed cluster; the last one that was inflated is kept. */
static int read_compressed(struct qcow2 *q, const struct qcow2_entry *entry, uint64_t within,
                           const struct iovec *vectors, unsigned count)
{
    pthread_mutex_lock(&q->inflate_lock);
    if (q->inflated_entry == entry->raw) {
        copy_to_vectors(vectors, count, q->inflated + within);
        pthread_mutex_unlock(&q->inflate_lock);
        return 0;
    }
    pthread_mutex_unlock(&q->inflate_lock);
    /* whole sectors: the file may be read past the page cache */
    uint64_t start = align_down(entry->host, QCOW2_SECTOR);
    CLEANUP_BUFFER uint8_t *from = qcow2_buffer(entry->host - start + entry->length);
    CLEANUP_BUFFER uint8_t *cluster = qcow2_buffer(q->cluster_size);
    int error = disk_read(q->file, start, from, entry->host - start + entry->length);
    if (!error) {
        error = qcow2_inflate(q, from + (entry->host - start), entry->length, cluster);
    }
    if (error) {
        return error == -EIO ? fail(error,
                                    "disk '%s': a compressed cluster at byte %llu cannot be "
                                    "decompressed",
                                    q->name, (unsigned long long)entry->host)
                             : error;
    }
    copy_to_vectors(vectors, count, cluster + within);
    pthread_mutex_lock(&q->inflate_lock);
    uint8_t *before = q->inflated;
    q->inflated = TAKE(cluster);
    q->inflated_entry = entry->raw;
    pthread_mutex_unlock(&q->inflate_lock);
    free(before);
    return 0;
}

/* `vectors` of one cluster, or of several whose data follow each other. */
static int read_from(struct qcow2 *q, const struct qcow2_entry *entry, uint64_t offset,
                     struct iovec *vectors, unsigned count)
{
    uint64_t within = offset & (q->cluster_size - 1);
    switch (entry->kind) {
    case QCOW2_IS_UNALLOCATED:
        return read_backing(q, offset, vectors, count);
    case QCOW2_IS_ZERO:
        copy_to_vectors(vectors, count, NULL);
        return 0;
    case QCOW2_IS_DATA:
        return read_vectors(q->file, entry->host + within, vectors, count,
                            length_of(vectors, count));
    case QCOW2_IS_COMPRESSED:
        return read_compressed(q, entry, within, vectors, count);
    case QCOW2_IS_BAD:
        break;
    }
    return fail(-EIO,
                "disk '%s' is corrupt: the entry of the cluster at byte %llu of the disk "
                "cannot be",
                q->name, (unsigned long long)offset);
}

int qcow2_read_entry(struct qcow2 *q, const struct qcow2_entry *entry, uint64_t offset,
                     uint8_t *bytes, uint64_t length)
{
    struct iovec vector = {.iov_base = bytes, .iov_len = length};
    return read_from(q, entry, offset, &vector, 1);
}

/* How many of `count` entries can be read together with the first. */
static unsigned run_of(const struct qcow2 *q, const uint64_t *entries, unsigned count)
{
    struct qcow2_entry first = qcow2_entry_decode(q, entries[0]);
    unsigned run = 1;
    if (first.kind == QCOW2_IS_COMPRESSED || first.kind == QCOW2_IS_BAD) {
        return 1;
    }
    for (; run < count; run++) {
        struct qcow2_entry entry = qcow2_entry_decode(q, entries[run]);
        if (entry.kind != first.kind ||
            (entry.kind == QCOW2_IS_DATA && entry.host != first.host + run * q->cluster_size)) {
            break;
        }
    }
    return run;
}

/* One run from `offset` on: at most `length` bytes, whose number is returned. */
static int read_run(struct qcow2 *q, const struct disk_request *request, uint64_t done,
                    struct iovec *vectors, uint64_t *ret_length)
{
    uint64_t offset = request->offset + done, left = request->length - done;
    uint64_t within = offset & (q->cluster_size - 1), entries[ENTRIES_MAX];
    uint64_t clusters = (within + left + q->cluster_size - 1) >> q->cluster_bits;
    unsigned count;
    pthread_mutex_lock(&q->meta);
    int error = qcow2_entries_get(
        q, offset, clusters < ENTRIES_MAX ? (unsigned)clusters : ENTRIES_MAX, entries, &count);
    unsigned epoch = qcow2_enter(q);
    pthread_mutex_unlock(&q->meta);
    if (!error) {
        uint64_t run = ((uint64_t)run_of(q, entries, count) << q->cluster_bits) - within;
        *ret_length = run < left ? run : left;
        struct qcow2_entry entry = qcow2_entry_decode(q, entries[0]);
        unsigned used = qcow2_cut_vectors(request, done, *ret_length, vectors);
        error = read_from(q, &entry, offset, vectors, used);
    }
    qcow2_leave(q, epoch);
    return error;
}

int qcow2_read(struct qcow2 *q, const struct disk_request *request)
{
    CLEANUP_BUFFER void *vectors = calloc(request->vector_count + 1, sizeof(struct iovec));
    ASSERT(vectors);
    for (uint64_t done = 0; done < request->length;) {
        uint64_t now;
        int error = read_run(q, request, done, vectors, &now);
        if (error) {
            return error;
        }
        done += now;
    }
    return 0;
}
