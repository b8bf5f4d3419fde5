/* Inside the raw disk: its two ways to be asynchronous. */
#pragma once

#include <liburing.h>
#include <pthread.h>

#include "backend/disk/disk.h"

enum { RAW_WORKERS = 4 };

/* How requests are carried out. */
enum raw_engine {
    RAW_AUTO, /* the ring where the host allows it, otherwise the workers */
    RAW_RING,
    RAW_WORKER_THREADS,
    RAW_SYNCHRONOUS, /* no threads: raw_perform() only */
};

/* What keeps others from the file. */
enum raw_lock {
    RAW_LOCK_NONE,
    RAW_LOCK_RECORD, /* fcntl(2), F_OFD_SETLK: also against programs on other hosts, by NFS */
    RAW_LOCK_WHOLE,  /* flock(2): on kernels that lack the former */
};

struct raw_disk {
    struct disk disk;
    int fd;
    int direct_fd;      /* the same file past the page cache, or -1 */
    unsigned alignment; /* what direct_fd wants of offsets and lengths, and of addresses */
    unsigned memory_alignment;
    enum disk_cache cache;
    bool grows; /* writes behind the end make the file longer, and reads there see zeros */
    enum raw_lock lock_kind;
    enum raw_engine engine;
    pthread_mutex_t lock; /* guards everything below, and the ring's submission side */
    pthread_cond_t idle;  /* in_flight became 0, or a thread started */
    unsigned in_flight;
    unsigned holders; /* while there are any, the ring's entries may wait */
    pthread_t threads[RAW_WORKERS];
    unsigned thread_count, started_count;
    struct io_uring ring;
    pthread_cond_t work; /* the workers': `first` or `stopping` changed */
    struct disk_request *first, **last;
    bool stopping;
};

int raw_open(const char *path, bool readonly, bool format_given, enum raw_engine engine,
             struct disk **ret_disk) __attribute__((warn_unused_result));
/* `grows`: as the file of an image in another format. `options->backing` is not looked at. */
int raw_open_file(const char *path, const struct disk_options *options, bool grows,
                  enum raw_engine engine, struct disk **ret_disk)
    __attribute__((warn_unused_result));
void raw_destroy(struct raw_disk *raw);
extern const struct disk_ops raw_ops;

/* Not possible here, as opposed to failed: the file system or device lacks it. */
bool raw_is_unsupported(int error);
bool raw_fits_direct(const struct raw_disk *raw, const struct iovec *vectors, size_t count,
                     uint64_t offset);
/* The vectors of a request from byte `done` on become zeros. */
void raw_fill_zeros(const struct disk_request *request, uint64_t done);
/* After a range was discarded or zeroed: make it durable if every change is to be. */
int raw_settle_range(struct raw_disk *raw);

/*
 * Carry out what is left of a request after `done` bytes, waiting for it. 0 or a negative errno.
 */
int raw_perform(struct raw_disk *raw, const struct disk_request *request, uint64_t done);
/* How fallocate(2) makes the zeros that a request asks for: in place, or by giving space back. */
int raw_zero_mode(const struct disk_request *request);
/* Tell the submitter; afterwards the request no longer counts as in flight. */
void raw_complete(struct raw_disk *raw, struct disk_request *request, int result);
/*
 * Start a thread that no signal is delivered to, and wait until it runs: what a thread's beginning
 * asks of the host may be forbidden soon. `run` calls raw_thread_started() first.
 */
void raw_thread_started(struct raw_disk *raw);
int raw_start_thread(struct raw_disk *raw, void *(*run)(void *raw));

/* io_uring: -errno if the host does not allow it (nothing on the trail). */
int raw_ring_open(struct raw_disk *raw);
void raw_ring_close(struct raw_disk *raw);
void raw_ring_submit(struct raw_disk *raw, struct disk_request *request);
/* Hand what was kept back to the kernel. The lock is held. */
void raw_ring_flush(struct raw_disk *raw);

/* The worker threads. */
int raw_workers_open(struct raw_disk *raw);
void raw_workers_close(struct raw_disk *raw);
void raw_workers_submit(struct raw_disk *raw, struct disk_request *request);
