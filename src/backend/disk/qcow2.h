/*
 * qcow2 images beside opening them (disk_open() does that): making, checking and resizing them, and
 * what their header says. Nothing here may be called while the image is in use by a machine.
 */
#pragma once

#include "backend/disk/disk.h"

struct qcow2_create {
    uint64_t size;          /* of the disk, in bytes */
    uint64_t cluster_size;  /* 0: 64 KiB */
    unsigned version;       /* 2, or 3 if 0 */
    unsigned refcount_bits; /* 0: 16 */
    bool lazy_refcounts;
    bool zstd;                  /* what compressed clusters will be compressed with */
    const char *backing;        /* the name to be written into the header, or NULL */
    const char *backing_format; /* "raw" or "qcow2"; NULL without backing */
};

/* Write an empty image into the file of `file`, which is empty and grows. */
int qcow2_create(struct disk *file, const struct qcow2_create *create)
    __attribute__((warn_unused_result));
/* The least and largest sizes of clusters, and whether `create` makes sense; size included. */
int qcow2_create_check(const struct qcow2_create *create) __attribute__((warn_unused_result));

/* What the header of an open image says. The strings belong to the disk. */
struct qcow2_facts {
    unsigned version;
    uint64_t cluster_size;
    unsigned refcount_bits;
    bool lazy_refcounts, dirty, corrupt;
    const char *compression;
    const char *backing; /* NULL: none */
    const char *backing_format;
    unsigned snapshots;
};
/* NULL as `disk` or of another format: false. */
bool qcow2_facts(struct disk *disk, struct qcow2_facts *ret_facts);

/* What a check found, and with `repair` mended. All counts are of clusters or entries. */
struct qcow2_report {
    uint64_t leaks;                 /* counted as used, and not used: space is lost, nothing else */
    uint64_t errors;                /* counted as less used than it is, or a wrong flag */
    uint64_t bad;                   /* entries that cannot be: what they led to is lost */
    uint64_t allocated, compressed; /* data clusters */
    bool repaired;
    bool was_dirty, was_corrupt;
};
/*
 * Count all references of the image and compare them with what it says itself. `repair` writes the
 * counts anew, drops entries that cannot be, and clears the marks of a crash. `progress` (NULL:
 * nobody) is told bytes of the disk that are done, and of how many.
 */
int qcow2_check(struct disk *disk, bool repair,
                void (*progress)(void *owner, uint64_t done, uint64_t total), void *owner,
                struct qcow2_report *ret_report) __attribute__((warn_unused_result));

/* Make the disk larger or smaller; what is cut off is gone. */
int qcow2_resize(struct disk *disk, uint64_t size) __attribute__((warn_unused_result));

/* Open an image that is the contents of `file`, which grows; it belongs to the image from then. */
int qcow2_open(struct disk *file, const char *name, const struct disk_options *options,
               struct disk **ret_disk) __attribute__((warn_unused_result));
