/*
 * Inside qcow2: the open image and what its parts offer each other. The format is described in
 * QEMU's docs/interop/qcow2; names are taken from there.
 *
 * Locks: `meta` is held by whoever changes metadata, also while it reads or writes tables; it may
 * take long, so submit() never takes it. `map` guards what submit() looks at (the L1 table, the
 * cached slices and what counts requests), is held for moments, and is taken inside `meta`. What is
 * marked (map) below is changed with both held and read with either.
 */
#pragma once

#include <pthread.h>
#include <stdlib.h>

#include "backend/disk/qcow2.h"
#include "base/bytes.h"

enum {
    QCOW2_HEADER_SIZE_2 = 72,
    QCOW2_HEADER_SIZE_3 = 104,
    QCOW2_SECTOR = 512,
    QCOW2_CLUSTER_BITS_MIN = 9,
    QCOW2_CLUSTER_BITS_MAX = 21,
    QCOW2_L1_BYTES_MAX = 32 << 20,
    QCOW2_REFTABLE_BYTES_MAX = 8 << 20,
    QCOW2_NAME_MAX = 1023,
    QCOW2_SNAPSHOTS_MAX = 65536,
    QCOW2_WORKERS = 4,
    QCOW2_PARTS_MAX = 8, /* pieces of one request that go straight to the file */
};

#define QCOW2_COPIED      (UINT64_C(1) << 63) /* its refcount is exactly 1: may be changed in place */
#define QCOW2_COMPRESSED  (UINT64_C(1) << 62)
#define QCOW2_ZERO        UINT64_C(1)
#define QCOW2_OFFSET_MASK UINT64_C(0x00fffffffffffe00)

#define QCOW2_INCOMPATIBLE_DIRTY       (UINT64_C(1) << 0)
#define QCOW2_INCOMPATIBLE_CORRUPT     (UINT64_C(1) << 1)
#define QCOW2_INCOMPATIBLE_EXTERNAL    (UINT64_C(1) << 2)
#define QCOW2_INCOMPATIBLE_COMPRESSION (UINT64_C(1) << 3)
#define QCOW2_INCOMPATIBLE_EXTENDED_L2 (UINT64_C(1) << 4)
#define QCOW2_COMPATIBLE_LAZY          (UINT64_C(1) << 0)
#define QCOW2_AUTOCLEAR_BITMAPS        (UINT64_C(1) << 0)

/* Offsets of header fields that change. */
enum {
    QCOW2_AT_SIZE = 24,
    QCOW2_AT_L1_SIZE = 36,
    QCOW2_AT_L1_OFFSET = 40,
    QCOW2_AT_REFTABLE_OFFSET = 48,
    QCOW2_AT_REFTABLE_CLUSTERS = 56,
    QCOW2_AT_INCOMPATIBLE = 72,
    QCOW2_AT_AUTOCLEAR = 88,
};

static inline uint32_t load_be32(const void *from)
{
    return __builtin_bswap32(load_le32(from));
}
static inline uint64_t load_be64(const void *from)
{
    return __builtin_bswap64(load_le64(from));
}
static inline uint16_t load_be16(const void *from)
{
    return __builtin_bswap16(load_le16(from));
}
static inline void store_be32(void *to, uint32_t value)
{
    store_le32(to, __builtin_bswap32(value));
}
static inline void store_be64(void *to, uint64_t value)
{
    store_le64(to, __builtin_bswap64(value));
}
static inline void store_be16(void *to, uint16_t value)
{
    store_le16(to, __builtin_bswap16(value));
}

struct qcow2_header {
    unsigned version, cluster_bits, refcount_order;
    uint64_t size;
    uint64_t l1_offset, reftable_offset, snapshots_offset;
    uint32_t l1_size, reftable_clusters, snapshot_count;
    uint64_t incompatible, compatible, autoclear;
    uint8_t compression; /* 0: zlib, 1: zstd */
    char backing[QCOW2_NAME_MAX + 1];
    char backing_format[16];
};

/* A part of a table that is in memory: what of it is changed is written by a commit. */
struct qcow2_slice {
    uint64_t offset; /* in the file; the key */
    uint8_t *bytes;  /* as in the file */
    bool dirty, used;
    uint32_t next; /* in its bucket; plus 1, 0 ends */
};
struct qcow2_cache {
    struct qcow2_slice *slices;
    uint32_t *buckets; /* index plus 1 */
    uint32_t count, limit, bucket_mask, hand, dirty;
    unsigned slice_size;
};

/* Host clusters that hold metadata: no guest data may be written there. A hash set. */
struct qcow2_set {
    uint64_t *keys; /* cluster number plus 1, 0: free */
    size_t count, mask;
};

/* Guest clusters whose place is being made and filled: others wait until that is done. */
struct qcow2_claim {
    uint64_t first, last;
    struct qcow2_claim *next;
};

/* References that will be given up when no table in the file has them any more. */
struct qcow2_free {
    uint64_t offset, length;
    bool is_table;
};

struct qcow2 {
    struct disk disk;
    struct disk *file;
    struct disk *backing; /* or NULL */
    char *name;
    struct qcow2_header header;
    uint8_t sector[QCOW2_SECTOR]; /* the header's first bytes, as in the file */
    uint64_t cluster_size;
    unsigned cluster_bits, l2_bits; /* l2_bits: of the entries of a table */
    unsigned block_bits;            /* of the clusters that a refcount block counts */
    bool write_through;             /* each change is durable when it is done */
    bool check_only; /* opened to be checked: nothing but qcow2_check() is done with it */

    pthread_mutex_t meta, map;
    pthread_cond_t changed; /* with meta: a claim ended */
    pthread_cond_t idle;    /* with map: something in flight ended */

    uint64_t *l1; /* (map) host order */
    uint32_t l1_count;
    uint32_t l1_dirty_first, l1_dirty_end; /* (map) */
    struct qcow2_cache l2;                 /* (map) */
    bool clean;                            /* (map) a flush of the file makes all durable */
    unsigned epoch, in_flight[2];          /* (map) who uses host clusters: see qcow2_enter() */
    unsigned requests;                     /* (map) submitted and not done */
    bool broken;                           /* (map) metadata makes no sense: no more changes */
    bool started;                          /* (map) the header was prepared for changes */

    uint64_t *reftable;
    uint32_t reftable_count;
    uint32_t reftable_dirty_first, reftable_dirty_end;
    struct qcow2_cache refcounts;
    struct qcow2_set tables; /* (map) */
    uint64_t scan;           /* the cluster from which free ones are looked for */
    uint64_t end;            /* (map) the first cluster behind all that were ever used */
    uint64_t fresh;          /* (map) bytes of the file from here on are zeros */
    struct qcow2_claim *claims;
    struct qcow2_free *frees;
    size_t free_count, free_room;

    pthread_mutex_t inflate_lock; /* guards the two below */
    uint64_t inflated_entry;      /* the compressed cluster that is in `inflated`; 0: none */
    uint8_t *inflated;

    pthread_t workers[QCOW2_WORKERS];
    unsigned worker_count;
    pthread_cond_t work; /* with map: the two below */
    struct disk_request *first, **last;
    bool stopping;
};

static inline struct qcow2 *qcow2_of(struct disk *disk)
{
    return CONTAINER_OF(disk, struct qcow2, disk);
}

/* qcow2_header.c */
int qcow2_header_read(struct disk *file, const char *name, struct qcow2_header *ret_header,
                      uint8_t ret_sector[QCOW2_SECTOR]) __attribute__((warn_unused_result));
/* Write the first sector of the header, and make it durable. */
int qcow2_header_write(struct qcow2 *q) __attribute__((warn_unused_result));
int qcow2_header_set_incompatible(struct qcow2 *q, uint64_t set, uint64_t clear)
    __attribute__((warn_unused_result));

/* qcow2_cache.c */
void qcow2_cache_init(struct qcow2_cache *cache, size_t bytes, unsigned slice_size);
void qcow2_cache_fini(struct qcow2_cache *cache);
/* The slice that has byte `offset` of the file, if it is in memory. */
struct qcow2_slice *qcow2_cache_find(struct qcow2_cache *cache, uint64_t offset);
/*
 * The same, read from the file if need be. Whatever was got before from the same cache may be gone.
 * `meta` is held. -EBUSY: all slices are changed, and a commit is needed first.
 */
int qcow2_cache_get(struct qcow2 *q, struct qcow2_cache *cache, uint64_t offset,
                    struct qcow2_slice **ret_slice) __attribute__((warn_unused_result));
void qcow2_cache_dirty(struct qcow2_cache *cache, struct qcow2_slice *slice);
int qcow2_cache_write(struct qcow2 *q, struct qcow2_cache *cache)
    __attribute__((warn_unused_result));
/* Forget what is in [offset, offset + length): it is no table any more. */
void qcow2_cache_drop(struct qcow2 *q, struct qcow2_cache *cache, uint64_t offset, uint64_t length);

void qcow2_set_init(struct qcow2_set *set, size_t expected);
void qcow2_set_fini(struct qcow2_set *set);
bool qcow2_set_has(const struct qcow2_set *set, uint64_t cluster);
/* False: it is in there already. */
bool qcow2_set_add(struct qcow2_set *set, uint64_t cluster);
void qcow2_set_remove(struct qcow2_set *set, uint64_t cluster);

/* qcow2_refcount.c. `meta` is held. */
int qcow2_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *ret_count)
    __attribute__((warn_unused_result));
/*
 * Take up to `wanted` free clusters that follow each other. `ret_fresh`: they are known to hold
 * zeros. `is_table`: for metadata.
 */
int qcow2_allocate(struct qcow2 *q, uint64_t wanted, bool is_table, uint64_t *ret_offset,
                   uint64_t *ret_got, bool *ret_fresh) __attribute__((warn_unused_result));
/* Give up references at once: of what no table in the file refers to. */
int qcow2_free_now(struct qcow2 *q, const struct qcow2_free *what)
    __attribute__((warn_unused_result));
/* Give them up at the next commit. */
/* Clusters below `end` are in use, or were. */
void qcow2_note_used(struct qcow2 *q, uint64_t end);
void qcow2_free_later(struct qcow2 *q, uint64_t offset, uint64_t length, bool is_table);
uint64_t qcow2_refcount_load(const uint8_t *bytes, uint64_t index, unsigned order);
void qcow2_refcount_store(uint8_t *bytes, uint64_t index, unsigned order, uint64_t value);

/* qcow2_commit.c. `meta` is held. */
int qcow2_commit(struct qcow2 *q) __attribute__((warn_unused_result));
/* Before the first change since the image was opened. */
int qcow2_start_changes(struct qcow2 *q) __attribute__((warn_unused_result));
/* From here to qcow2_leave() no host cluster is used for something else. Any thread. */
unsigned qcow2_enter(struct qcow2 *q);
void qcow2_leave(struct qcow2 *q, unsigned epoch);
/* Metadata is not what it can be: remember that, also in the file. Returns -EIO. */
int qcow2_corrupt(struct qcow2 *q, const char *what, uint64_t where);

/* qcow2_map.c */
enum qcow2_kind {
    QCOW2_IS_UNALLOCATED,
    QCOW2_IS_ZERO,
    QCOW2_IS_DATA,
    QCOW2_IS_COMPRESSED,
    QCOW2_IS_BAD,
};
struct qcow2_entry {
    enum qcow2_kind kind;
    bool copied;
    uint64_t raw;
    uint64_t host;   /* 0: none */
    uint64_t length; /* of compressed data */
};
struct qcow2_entry qcow2_entry_decode(const struct qcow2 *q, uint64_t raw);
/* How many bytes of a table `offset` is into it, as index of its entry. */
static inline uint64_t qcow2_l1_index(const struct qcow2 *q, uint64_t offset)
{
    return offset >> (q->cluster_bits + q->l2_bits);
}
static inline uint64_t qcow2_l2_index(const struct qcow2 *q, uint64_t offset)
{
    return offset >> q->cluster_bits & ((UINT64_C(1) << q->l2_bits) - 1);
}
/*
 * Entries of guest clusters from that of `offset` on, at most `count` and those of one slice.
 * `meta` is held. Without a table all are 0.
 */
int qcow2_entries_get(struct qcow2 *q, uint64_t offset, unsigned count, uint64_t *ret_entries,
                      unsigned *ret_count) __attribute__((warn_unused_result));
/* Replace the entries of `count` clusters, which are of one slice; makes the table if need be. */
int qcow2_entries_set(struct qcow2 *q, uint64_t offset, unsigned count, const uint64_t *entries)
    __attribute__((warn_unused_result));
/* Without waiting: false if a table is not in memory. `map` is held. */
bool qcow2_entry_peek(struct qcow2 *q, uint64_t offset, uint64_t *ret_raw);

/* qcow2.c */
int qcow2_perform(struct disk *disk, const struct disk_request *request);
int qcow2_extent(struct disk *disk, uint64_t offset, uint64_t length,
                 struct disk_extent *ret_extent);
/* Bring everything into the file, and clear the dirty bit. */
int qcow2_finish(struct qcow2 *q) __attribute__((warn_unused_result));
/* The file's last cluster may be cut off: what is missing are zeros. */
bool qcow2_is_in_file(const struct qcow2 *q, uint64_t offset, uint64_t length);
/* Find the clusters of all tables: -EINVAL with a sentence if two are in one. */
int qcow2_find_tables(struct qcow2 *q) __attribute__((warn_unused_result));

/* qcow2_snapshot.c */
struct qcow2_snapshot {
    uint64_t l1_offset;
    uint32_t l1_size;
};
/* All internal snapshots, and the size of their table in bytes. The caller frees them. */
int qcow2_snapshots_read(struct qcow2 *q, struct qcow2_snapshot **ret_snapshots,
                         uint64_t *ret_table_size) __attribute__((warn_unused_result));

/* qcow2_write.c */
int qcow2_write(struct qcow2 *q, const struct disk_request *request)
    __attribute__((warn_unused_result));
int qcow2_write_zeroes(struct qcow2 *q, uint64_t offset, uint64_t length)
    __attribute__((warn_unused_result));
int qcow2_discard(struct qcow2 *q, uint64_t offset, uint64_t length)
    __attribute__((warn_unused_result));

/* qcow2_read.c */
int qcow2_read(struct qcow2 *q, const struct disk_request *request)
    __attribute__((warn_unused_result));
/* The contents of a part of one cluster by its entry. The caller has entered. */
int qcow2_read_entry(struct qcow2 *q, const struct qcow2_entry *entry, uint64_t offset,
                     uint8_t *bytes, uint64_t length) __attribute__((warn_unused_result));
/* The vectors of [skip, skip + length) of a request; `ret_vectors` has room for all of them. */
unsigned qcow2_cut_vectors(const struct disk_request *request, uint64_t skip, uint64_t length,
                           struct iovec *ret_vectors);

/* qcow2_inflate.c: a whole cluster from its compressed data. */
int qcow2_inflate(const struct qcow2 *q, const uint8_t *from, size_t length, uint8_t *ret_cluster)
    __attribute__((warn_unused_result));

/* qcow2_async.c */
int qcow2_workers_open(struct qcow2 *q) __attribute__((warn_unused_result));
void qcow2_workers_close(struct qcow2 *q);
void qcow2_submit(struct disk *disk, struct disk_request *request);
bool qcow2_place(struct disk *disk, uint64_t offset, uint64_t length, struct disk_place *ret_place);
void qcow2_drain(struct disk *disk);

/* Aligned for reads and writes past the page cache. */
void *qcow2_buffer(size_t size);
static inline void qcow2_cleanup_buffer(void *pointer)
{
    free(*(void **)pointer);
}
/* A pointer of any type to memory that is freed on every way out. */
#define CLEANUP_BUFFER __attribute__((cleanup(qcow2_cleanup_buffer)))
