/*
 * Disk backends: asynchronous block storage on the host. Knows no guest.
 *
 * Threads: submit from any thread; done() runs on a thread of the backend's own, or inside drain,
 *          never inside submit().
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum disk_operation { DISK_READ, DISK_WRITE, DISK_FLUSH, DISK_DISCARD, DISK_WRITE_ZEROES };
/* What it does to a disk, for a sentence: "reading from". */
const char *disk_operation_text(enum disk_operation operation);

/*
 * The submitter owns the request until submit, and again from done() on. Requests in flight
 * together are not ordered; a flush covers the writes that were done before it was submitted.
 */
struct disk_request {
    enum disk_operation operation;
    uint64_t offset;       /* bytes */
    uint64_t length;       /* bytes: of all vectors, or of the range for discard and zeroes */
    struct iovec *vectors; /* borrowed until done() */
    unsigned vector_count;
    bool unmap; /* DISK_WRITE_ZEROES: the space is not needed, if it reads as zeros without it */
    /* `result` is 0 or a negative errno; all of `length` was transferred if 0. */
    void (*done)(struct disk_request *request, int result);
    struct disk_request *next; /* these two are the backend's while it owns the request */
    void *backend;
    /* For done(): the same thread calls done() of another request of this disk right after it. */
    bool more;
};

struct disk;

/* Where bytes of a disk are: those of `disk`, from `offset` on, or zeros. */
struct disk_place {
    struct disk *disk;
    uint64_t offset, length;
    bool zero;
};

enum disk_extent_kind {
    DISK_EXTENT_HOLE, /* reads as zeros, because nothing was ever written */
    DISK_EXTENT_ZERO, /* said to be zeros */
    DISK_EXTENT_DATA,
    DISK_EXTENT_COMPRESSED,
};

/* What is known of a piece of a disk without reading its contents. */
struct disk_extent {
    uint64_t length;
    enum disk_extent_kind kind;
    unsigned depth;       /* 0: in the image itself; n: in the nth file of its backing chain */
    uint64_t file_offset; /* DISK_EXTENT_DATA: where in that file */
};

struct disk_ops {
    void (*submit)(struct disk *disk, struct disk_request *request);
    /* disk_hold() and disk_release(). NULL: each request is passed on at once. */
    void (*hold)(struct disk *disk);
    void (*release)(struct disk *disk);
    /* See disk_perform() and those behind it. NULL: this backend cannot. */
    int (*perform)(struct disk *disk, const struct disk_request *request);
    bool (*place)(struct disk *disk, uint64_t offset, uint64_t length,
                  struct disk_place *ret_place);
    int (*extent)(struct disk *disk, uint64_t offset, uint64_t length,
                  struct disk_extent *ret_extent);
    uint64_t (*end)(struct disk *disk);
    int (*truncate)(struct disk *disk, uint64_t size);
    /* disk_retry() and disk_cancel(). NULL: no request is ever kept. */
    void (*retry)(struct disk *disk);
    void (*cancel)(struct disk *disk);
    /* Wait until nothing is in flight. */
    void (*drain)(struct disk *disk);
    void (*free)(struct disk *disk);
};

/* Embedded first in every backend. */
struct disk {
    const struct disk_ops *ops;
    uint64_t size; /* bytes */
    bool readonly;
    bool unlocked; /* the host has no locks for it: nobody notices a second writer */
};

/*
 * Check the range and the right, then submit. -EINVAL or -EROFS: the request was not taken, and
 * done() will not run.
 */
int disk_submit(struct disk *disk, struct disk_request *request)
    __attribute__((warn_unused_result));
/*
 * What is submitted between the two may be kept back, so that the host is called once for all of
 * it. Any thread; they nest, also between threads. Who holds waits for no request meanwhile.
 */
void disk_hold(struct disk *disk);
void disk_release(struct disk *disk);
/*
 * Returns when nothing is in flight, including what done() submitted meanwhile. Not from done(),
 * and without any lock that done() takes. NULL is fine for this and for disk_free().
 */
void disk_drain(struct disk *disk);
/*
 * Requests that the host failed and that are kept for later (stop_disk.h): try them again, or give
 * them back with their errors. Without any lock that done() takes; cancelling may call it.
 */
void disk_retry(struct disk *disk);
void disk_cancel(struct disk *disk);
void disk_free(struct disk *disk);

/*
 * Carry out a request on the calling thread, which waits; `done` is not used. 0 or a negative
 * errno. Any thread.
 */
int disk_perform(struct disk *disk, const struct disk_request *request)
    __attribute__((warn_unused_result));
/* The same for what a buffer holds. */
int disk_read(struct disk *disk, uint64_t offset, void *bytes, size_t length)
    __attribute__((warn_unused_result));
int disk_write(struct disk *disk, uint64_t offset, const void *bytes, size_t length)
    __attribute__((warn_unused_result));
int disk_flush(struct disk *disk) __attribute__((warn_unused_result));
/*
 * What [offset, offset + length) begins with: `ret_extent->length` bytes of one kind, at least one
 * and at most `length`. May read metadata, and waits for it.
 */
int disk_extent(struct disk *disk, uint64_t offset, uint64_t length, struct disk_extent *ret_extent)
    __attribute__((warn_unused_result));
/* Change the size of a raw image or of a file that grows. Nothing may be in flight. */
int disk_truncate(struct disk *disk, uint64_t size) __attribute__((warn_unused_result));

enum disk_format { DISK_FORMAT_UNKNOWN, DISK_FORMAT_RAW, DISK_FORMAT_QCOW2 };

/* Named as QEMU names them. */
enum disk_cache {
    DISK_CACHE_WRITEBACK,    /* the host's page cache, and flushes to stable storage */
    DISK_CACHE_NONE,         /* past the host's page cache, and flushes */
    DISK_CACHE_WRITETHROUGH, /* the host's page cache, and each write is on stable storage */
    DISK_CACHE_DIRECTSYNC,   /* past it, and each write is on stable storage */
    DISK_CACHE_UNSAFE,       /* flushes do nothing: for what may be lost with the host */
};

struct disk_options {
    /* DISK_FORMAT_UNKNOWN: raw, but a file that begins like an image of any format is refused. */
    enum disk_format format;
    enum disk_cache cache;
    bool readonly;
    /*
     * The files of the backing chain, from the image on: "FILE", "raw:FILE" or "qcow2:FILE". What
     * an image's header names is never opened by itself.
     */
    const char *const *backing;
    size_t backing_count;
    bool unlocked;    /* look at what others may be using */
    bool synchronous; /* without threads: disk_submit() is not for this disk */
    bool repair;      /* open also what is marked corrupt, for qcow2_check() alone */
    bool no_backing;  /* without the backing chain: for who looks at the image itself only */
};

enum { DISK_BACKING_MAX = 8 };

/*
 * Open the file of an image as such: its bytes, which become more when it is written behind its
 * end. Format and backing files are not looked at.
 */
int disk_file_open(const char *path, const struct disk_options *options, struct disk **ret_disk)
    __attribute__((warn_unused_result));

/* Open an image of any format that we know. */
int disk_open(const char *path, const struct disk_options *options, struct disk **ret_disk)
    __attribute__((warn_unused_result));

/*
 * A raw image: a regular file or a block device. The size must be a multiple of 512 bytes or is
 * rounded down. A file that starts with the magic of another format is refused with -EINVAL
 * unless `format_given`, with the spellings to choose from on the trail. io_uring where
 * the host allows it, otherwise threads; both are made here, so that a process may give up the
 * right to make them afterwards. The file is locked against a second writer; where the host's
 * kernel or file system has no locks it is used without, and `unlocked` says so.
 */
int disk_raw_open(const char *path, bool readonly, bool format_given, struct disk **ret_disk)
    __attribute__((warn_unused_result));
