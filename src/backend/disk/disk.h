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
    /* `result` is 0 or a negative errno; all of `length` was transferred if 0. */
    void (*done)(struct disk_request *request, int result);
    struct disk_request *next; /* the backend's while it owns the request */
    /* For done(): the same thread calls done() of another request of this disk right after it. */
    bool more;
};

struct disk;
struct disk_ops {
    void (*submit)(struct disk *disk, struct disk_request *request);
    /* disk_hold() and disk_release(). NULL: each request is passed on at once. */
    void (*hold)(struct disk *disk);
    void (*release)(struct disk *disk);
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
void disk_free(struct disk *disk);

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
