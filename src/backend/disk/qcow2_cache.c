/*
 * Tables of a qcow2 image in memory: slices of at most 4 KiB, a bounded number of them, found by
 * their place in the file; and the set of clusters that hold tables.
 */
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_internal.h"
#include "base/assert.h"
#include "base/error.h"

static uint32_t bucket_of(const struct qcow2_cache *cache, uint64_t offset)
{
    return (uint32_t)(offset / cache->slice_size * UINT64_C(0x9e3779b97f4a7c15) >> 32) &
           cache->bucket_mask;
}

void qcow2_cache_init(struct qcow2_cache *cache, size_t bytes, unsigned slice_size)
{
    uint32_t buckets = 1;
    *cache =
        (struct qcow2_cache){.slice_size = slice_size, .limit = (uint32_t)(bytes / slice_size)};
    while (buckets < cache->limit) {
        buckets *= 2;
    }
    cache->bucket_mask = buckets - 1;
    cache->slices = calloc(cache->limit, sizeof *cache->slices);
    cache->buckets = calloc(buckets, sizeof *cache->buckets);
    ASSERT(cache->slices && cache->buckets);
}

void qcow2_cache_fini(struct qcow2_cache *cache)
{
    for (uint32_t i = 0; i < cache->count; i++) {
        free(cache->slices[i].bytes);
    }
    free(cache->slices);
    free(cache->buckets);
    *cache = (struct qcow2_cache){0};
}

struct qcow2_slice *qcow2_cache_find(struct qcow2_cache *cache, uint64_t offset)
{
    offset = align_down(offset, cache->slice_size);
    uint32_t at = cache->buckets[bucket_of(cache, offset)];
    while (at && cache->slices[at - 1].offset != offset) {
        at = cache->slices[at - 1].next;
    }
    if (!at) {
        return NULL;
    }
    __atomic_store_n(&cache->slices[at - 1].used, true, __ATOMIC_RELAXED); /* with either lock */
    return &cache->slices[at - 1];
}

static void unlink_slice(struct qcow2_cache *cache, struct qcow2_slice *slice)
{
    uint32_t self = (uint32_t)(slice - cache->slices) + 1;
    uint32_t *link = &cache->buckets[bucket_of(cache, slice->offset)];
    while (*link && *link != self) {
        link = &cache->slices[*link - 1].next;
    }
    if (*link) {
        *link = slice->next;
    }
    if (slice->dirty) {
        cache->dirty--;
    }
    slice->dirty = false;
    slice->offset = UINT64_MAX;
}

static int write_slice(struct qcow2 *q, struct qcow2_cache *cache, struct qcow2_slice *slice)
{
    int error = disk_write(q->file, slice->offset, slice->bytes, cache->slice_size);
    if (!error) {
        slice->dirty = false;
        cache->dirty--;
    }
    return error;
}

/*
 * A slice that may hold something else. Changed refcounts may be written at any time (see
 * qcow2_commit.c), changed L2 entries may not.
 */
static int find_victim(struct qcow2 *q, struct qcow2_cache *cache, struct qcow2_slice **ret_slice)
{
    if (cache->count < cache->limit) {
        struct qcow2_slice *slice = &cache->slices[cache->count];
        slice->bytes = qcow2_buffer(cache->slice_size);
        slice->offset = UINT64_MAX;
        cache->count++;
        *ret_slice = slice;
        return 0;
    }
    if (cache == &q->l2 && cache->dirty == cache->limit) {
        return -EBUSY;
    }
    for (;;) {
        struct qcow2_slice *slice = &cache->slices[cache->hand];
        cache->hand = (cache->hand + 1) % cache->limit;
        bool was_used = __atomic_exchange_n(&slice->used, false, __ATOMIC_RELAXED);
        if (was_used || (slice->dirty && cache == &q->l2)) {
            continue;
        }
        *ret_slice = slice;
        return slice->dirty ? write_slice(q, cache, slice) : 0;
    }
}

int qcow2_cache_get(struct qcow2 *q, struct qcow2_cache *cache, uint64_t offset,
                    struct qcow2_slice **ret_slice)
{
    offset = align_down(offset, cache->slice_size);
    struct qcow2_slice *slice = qcow2_cache_find(cache, offset);
    if (slice) {
        *ret_slice = slice;
        return 0;
    }
    bool is_peeked = cache == &q->l2; /* by submit() */
    if (is_peeked) {
        pthread_mutex_lock(&q->map);
    }
    int error = find_victim(q, cache, &slice);
    if (!error && slice->offset != UINT64_MAX) {
        unlink_slice(cache, slice);
    }
    if (is_peeked) {
        pthread_mutex_unlock(&q->map);
    }
    if (!error) { /* nobody finds it meanwhile */
        error = disk_read(q->file, offset, slice->bytes, cache->slice_size);
    }
    if (error) {
        return error;
    }
    pthread_mutex_lock(&q->map);
    uint32_t *bucket = &cache->buckets[bucket_of(cache, offset)];
    slice->offset = offset;
    slice->used = true;
    slice->next = *bucket;
    *bucket = (uint32_t)(slice - cache->slices) + 1;
    pthread_mutex_unlock(&q->map);
    *ret_slice = slice;
    return 0;
}

void qcow2_cache_dirty(struct qcow2_cache *cache, struct qcow2_slice *slice)
{
    if (!slice->dirty) {
        slice->dirty = true;
        cache->dirty++;
    }
}

int qcow2_cache_write(struct qcow2 *q, struct qcow2_cache *cache)
{
    for (uint32_t i = 0; i < cache->count && cache->dirty; i++) {
        if (cache->slices[i].dirty) {
            int error = write_slice(q, cache, &cache->slices[i]);
            if (error) {
                return error;
            }
        }
    }
    return 0;
}

void qcow2_cache_drop(struct qcow2 *q, struct qcow2_cache *cache, uint64_t offset, uint64_t length)
{
    pthread_mutex_lock(&q->map);
    for (uint64_t at = 0; at < length; at += cache->slice_size) {
        struct qcow2_slice *slice = qcow2_cache_find(cache, offset + at);
        if (slice) {
            unlink_slice(cache, slice);
            slice->used = false;
        }
    }
    pthread_mutex_unlock(&q->map);
}

static size_t slot_of(const struct qcow2_set *set, uint64_t cluster)
{
    size_t at = (size_t)((cluster + 1) * UINT64_C(0x9e3779b97f4a7c15) >> 20) & set->mask;
    while (set->keys[at] && set->keys[at] != cluster + 1) {
        at = (at + 1) & set->mask;
    }
    return at;
}

void qcow2_set_init(struct qcow2_set *set, size_t expected)
{
    size_t room = 64;
    while (room < expected * 3 / 2) {
        room *= 2;
    }
    *set = (struct qcow2_set){.keys = calloc(room, sizeof *set->keys), .mask = room - 1};
    ASSERT(set->keys);
}

void qcow2_set_fini(struct qcow2_set *set)
{
    free(set->keys);
    *set = (struct qcow2_set){0};
}

bool qcow2_set_has(const struct qcow2_set *set, uint64_t cluster)
{
    return set->keys && set->keys[slot_of(set, cluster)];
}

static void grow(struct qcow2_set *set)
{
    struct qcow2_set larger;
    qcow2_set_init(&larger, (set->mask + 1) * 4 / 3);
    for (size_t i = 0; i <= set->mask; i++) {
        if (set->keys[i]) {
            larger.keys[slot_of(&larger, set->keys[i] - 1)] = set->keys[i];
        }
    }
    larger.count = set->count;
    free(set->keys);
    *set = larger;
}

bool qcow2_set_add(struct qcow2_set *set, uint64_t cluster)
{
    if (set->count * 5 > set->mask * 4) {
        grow(set);
    }
    size_t at = slot_of(set, cluster);
    if (set->keys[at]) {
        return false;
    }
    set->keys[at] = cluster + 1;
    set->count++;
    return true;
}

/* Those behind it move up, so that none is cut off from its slot. */
void qcow2_set_remove(struct qcow2_set *set, uint64_t cluster)
{
    if (!set->keys || !set->keys[slot_of(set, cluster)]) {
        return;
    }
    size_t at = slot_of(set, cluster);
    set->keys[at] = 0;
    set->count--;
    for (at = (at + 1) & set->mask; set->keys[at]; at = (at + 1) & set->mask) {
        uint64_t key = set->keys[at];
        set->keys[at] = 0;
        set->keys[slot_of(set, key - 1)] = key;
    }
}
