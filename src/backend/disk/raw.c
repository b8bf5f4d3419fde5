/*
 * A raw image, a regular file or a block device: opening and locking it, and carrying out one
 * request the plain way. raw_ring.c and raw_workers.c make that asynchronous.
 */
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backend/disk/magic.h"
#include "backend/disk/raw_internal.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"

enum { SECTOR = 512, VECTORS = 64, ZEROS_SIZE = 65536, LOCK_ATTEMPTS = 15 };

static struct raw_disk *raw_of(struct disk *disk)
{
    return CONTAINER_OF(disk, struct raw_disk, disk);
}

/* The vectors of a request from byte `done` on, as many as fit. */
static int rest_of_vectors(const struct disk_request *request, uint64_t done,
                           struct iovec ret_vectors[VECTORS])
{
    int count = 0;
    for (unsigned i = 0; i < request->vector_count && count < VECTORS; i++) {
        struct iovec vector = request->vectors[i];
        if (done >= vector.iov_len) {
            done -= vector.iov_len;
            continue;
        }
        vector.iov_base = (uint8_t *)vector.iov_base + done;
        vector.iov_len -= done;
        done = 0;
        ret_vectors[count++] = vector;
    }
    return count;
}

static int transfer(struct raw_disk *raw, const struct disk_request *request, uint64_t done)
{
    while (done < request->length) {
        struct iovec vectors[VECTORS];
        int count = rest_of_vectors(request, done, vectors);
        off_t at = (off_t)(request->offset + done);
        ssize_t moved = request->operation == DISK_READ ? preadv(raw->fd, vectors, count, at)
                                                        : pwritev(raw->fd, vectors, count, at);
        if (moved < 0 && errno != EINTR) {
            return -errno;
        }
        if (moved == 0) {
            return -EIO; /* somebody cut the file short */
        }
        done += moved > 0 ? (uint64_t)moved : 0;
    }
    return 0;
}

static int allocate(struct raw_disk *raw, const struct disk_request *request, int mode)
{
    int error;
    do {
        error = fallocate(raw->fd, FALLOC_FL_KEEP_SIZE | mode, (off_t)request->offset,
                          (off_t)request->length)
                    ? -errno
                    : 0;
    } while (error == -EINTR);
    return error;
}

/* Not possible here, as opposed to failed: the file system or device lacks it. */
static bool is_unsupported(int error)
{
    return error == -EOPNOTSUPP || error == -ENOSYS || error == -EINVAL;
}

static int write_zeroes(struct raw_disk *raw, const struct disk_request *request)
{
    static const uint8_t zeros[ZEROS_SIZE];
    int error = allocate(raw, request, FALLOC_FL_ZERO_RANGE);
    if (is_unsupported(error)) {
        error = allocate(raw, request, FALLOC_FL_PUNCH_HOLE);
    }
    if (!is_unsupported(error)) {
        return error;
    }
    uint64_t done = 0;
    while (done < request->length) {
        uint64_t left = request->length - done;
        ssize_t moved = pwrite(raw->fd, zeros, left < sizeof zeros ? left : sizeof zeros,
                               (off_t)(request->offset + done));
        if (moved < 0 && errno != EINTR) {
            return -errno;
        }
        if (moved == 0) {
            return -EIO;
        }
        done += moved > 0 ? (uint64_t)moved : 0;
    }
    return 0;
}

int raw_perform(struct raw_disk *raw, const struct disk_request *request, uint64_t done)
{
    int error = 0;
    switch (request->operation) {
    case DISK_READ:
    case DISK_WRITE:
        return transfer(raw, request, done);
    case DISK_FLUSH:
        return fdatasync(raw->fd) ? -errno : 0;
    case DISK_DISCARD:
        /* A hint: where it cannot be followed the contents simply stay. */
        error = request->length ? allocate(raw, request, FALLOC_FL_PUNCH_HOLE) : 0;
        return is_unsupported(error) ? 0 : error;
    case DISK_WRITE_ZEROES:
        return request->length ? write_zeroes(raw, request) : 0;
    }
    return -EINVAL;
}

void raw_complete(struct raw_disk *raw, struct disk_request *request, int result)
{
    request->done(request, result);
    /* Only now: done() may have submitted more, and drain waits for that, too. */
    pthread_mutex_lock(&raw->lock);
    if (--raw->in_flight == 0) {
        pthread_cond_broadcast(&raw->idle);
    }
    pthread_mutex_unlock(&raw->lock);
}

void raw_thread_started(struct raw_disk *raw)
{
    pthread_mutex_lock(&raw->lock);
    raw->started_count++;
    pthread_cond_broadcast(&raw->idle);
    pthread_mutex_unlock(&raw->lock);
}

int raw_start_thread(struct raw_disk *raw, void *(*run)(void *raw))
{
    ASSERT(raw->thread_count < RAW_WORKERS);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&raw->threads[raw->thread_count], NULL, run, raw);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) {
        return fail(-error, "start a thread for disk requests: %s%s", strerror(error),
                    error == EAGAIN ? " (a limit of processes and threads: 'ulimit -u', or the "
                                      "container's)"
                                    : "");
    }
    pthread_setname_np(raw->threads[raw->thread_count++], "disk");
    pthread_mutex_lock(&raw->lock);
    while (raw->started_count < raw->thread_count) {
        pthread_cond_wait(&raw->idle, &raw->lock);
    }
    pthread_mutex_unlock(&raw->lock);
    return 0;
}

static void raw_submit(struct disk *disk, struct disk_request *request)
{
    struct raw_disk *raw = raw_of(disk);
    pthread_mutex_lock(&raw->lock);
    raw->in_flight++;
    pthread_mutex_unlock(&raw->lock);
    if (raw->engine == RAW_RING) {
        raw_ring_submit(raw, request);
    } else {
        raw_workers_submit(raw, request);
    }
}

static void raw_drain(struct disk *disk)
{
    struct raw_disk *raw = raw_of(disk);
    pthread_mutex_lock(&raw->lock);
    while (raw->in_flight) {
        pthread_cond_wait(&raw->idle, &raw->lock);
    }
    pthread_mutex_unlock(&raw->lock);
}

/* Locks of the open file, not of the process. 0 or a negative errno. */
static int try_record_lock(int fd, short type)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET};
    return fcntl(fd, F_OFD_SETLK, &lock) ? -errno : 0;
}

static int try_whole_lock(int fd, int operation)
{
    return flock(fd, operation | LOCK_NB) ? -errno : 0;
}

/* Not possible here: an old or small kernel, a file system without locks or without its server. */
static bool is_lockless(int error)
{
    return is_unsupported(error) || error == -ENOLCK;
}

/* The first kind of lock that there is. flock(2) of a local file knows nothing of fcntl(2)'s. */
static int try_lock(struct raw_disk *raw)
{
    bool readonly = raw->disk.readonly;
    raw->lock_kind = RAW_LOCK_RECORD;
    int error = try_record_lock(raw->fd, readonly ? F_RDLCK : F_WRLCK);
    if (is_lockless(error)) {
        raw->lock_kind = RAW_LOCK_WHOLE;
        error = try_whole_lock(raw->fd, readonly ? LOCK_SH : LOCK_EX);
    }
    if (error) {
        raw->lock_kind = RAW_LOCK_NONE;
    }
    return error;
}

static void unlock(struct raw_disk *raw)
{
    if (raw->lock_kind == RAW_LOCK_RECORD) {
        try_record_lock(raw->fd, F_UNLCK);
    } else if (raw->lock_kind == RAW_LOCK_WHOLE) {
        try_whole_lock(raw->fd, LOCK_UN);
    }
}

static void raw_destroy(struct raw_disk *raw)
{
    if (raw) {
        if (raw->fd >= 0) {
            /* Not left to close(): the kernel may hold the file for a while after a ring's end. */
            unlock(raw);
            close(raw->fd);
        }
        pthread_cond_destroy(&raw->idle);
        pthread_mutex_destroy(&raw->lock);
        free(raw);
    }
}
CLEANUP_DEFINE(struct raw_disk, raw_destroy)

static void raw_free(struct disk *disk)
{
    struct raw_disk *raw = raw_of(disk);
    raw_drain(disk);
    if (raw->engine == RAW_RING) {
        raw_ring_close(raw);
    } else {
        raw_workers_close(raw);
    }
    raw_destroy(raw);
}

/* For the ring only: the workers take requests one by one. */
static void raw_hold(struct disk *disk)
{
    struct raw_disk *raw = raw_of(disk);
    pthread_mutex_lock(&raw->lock);
    raw->holders++;
    pthread_mutex_unlock(&raw->lock);
}

static void raw_release(struct disk *disk)
{
    struct raw_disk *raw = raw_of(disk);
    pthread_mutex_lock(&raw->lock);
    ASSERT(raw->holders);
    if (--raw->holders == 0 && raw->engine == RAW_RING) {
        raw_ring_flush(raw);
    }
    pthread_mutex_unlock(&raw->lock);
}

static const struct disk_ops raw_ops = {
    .submit = raw_submit,
    .hold = raw_hold,
    .release = raw_release,
    .drain = raw_drain,
    .free = raw_free,
};

/* The size in bytes; what is neither file nor block device is refused. */
static int find_size(int fd, const char *path, uint64_t *ret_size)
{
    struct stat status;
    if (fstat(fd, &status)) {
        return fail(-errno, "disk '%s': %s", path, strerror(errno));
    }
    if (S_ISREG(status.st_mode)) {
        *ret_size = (uint64_t)status.st_size;
    } else if (!S_ISBLK(status.st_mode)) {
        return fail(-EINVAL, "disk '%s' is neither a file nor a block device", path);
    } else if (ioctl(fd, BLKGETSIZE64, ret_size)) {
        return fail(-errno, "disk '%s': ask the block device for its size: %s", path,
                    strerror(errno));
    }
    *ret_size = align_down(*ret_size, SECTOR);
    if (*ret_size == 0) {
        return fail(-EINVAL, "disk '%s' has less than one sector of %d bytes", path, SECTOR);
    }
    return 0;
}

static int check_magic(int fd, const char *path)
{
    uint8_t bytes[DISK_MAGIC_SIZE];
    ssize_t count = pread(fd, bytes, sizeof bytes, 0);
    if (count < 0) {
        return fail(-errno, "disk '%s': read the first sector: %s", path, strerror(errno));
    }
    const char *name = disk_magic(bytes, (size_t)count);
    if (name) {
        return fail(-EINVAL,
                    "disk '%s' looks like a %s file, which is not supported: convert it to a raw "
                    "image, or say format=raw if its bytes are the disk's contents",
                    path, name);
    }
    return 0;
}

/* One writer, or any number of readers. */
static int lock_file(struct raw_disk *raw, const char *path)
{
    int error = try_lock(raw);
    /* A process that has just ended may still hold its file, for as long as its ring goes away. */
    for (unsigned i = 0; error == -EAGAIN && i < LOCK_ATTEMPTS; i++) {
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
        error = try_lock(raw);
    }
    if (error == -EAGAIN || error == -EACCES) {
        return fail(-EBUSY, "disk '%s' is in use by another virtual machine or program", path);
    }
    raw->disk.unlocked = is_lockless(error);
    if (error && !raw->disk.unlocked) {
        return fail(error, "disk '%s': lock it: %s", path, strerror(-error));
    }
    return 0;
}

/* Opened without waiting (a pipe would), used with waiting. */
static int open_file(const char *path, bool readonly, int *ret_fd)
{
    CLEANUP_FD int fd = open(path, (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return fail(-errno, "open disk '%s': %s", path, strerror(errno));
    }
    if (fcntl(fd, F_SETFL, 0)) {
        return fail(-errno, "disk '%s': %s", path, strerror(errno));
    }
    *ret_fd = TAKE_FD(fd);
    return 0;
}

static int start_engine(struct raw_disk *raw, enum raw_engine engine)
{
    int error = engine == RAW_WORKER_THREADS ? -ENOSYS : raw_ring_open(raw);
    raw->engine = RAW_RING;
    if (error && engine != RAW_RING) {
        trail_clear();
        raw->engine = RAW_WORKER_THREADS;
        error = raw_workers_open(raw);
    }
    return error;
}

int raw_open(const char *path, bool readonly, bool format_given, enum raw_engine engine,
             struct disk **ret_disk)
{
    CLEANUP(raw_destroy) struct raw_disk *raw = calloc(1, sizeof *raw);
    ASSERT(raw);
    raw->fd = -1;
    pthread_mutex_init(&raw->lock, NULL);
    pthread_cond_init(&raw->idle, NULL);
    raw->disk = (struct disk){.ops = &raw_ops, .readonly = readonly};
    int error = open_file(path, readonly, &raw->fd);
    if (!error) {
        error = find_size(raw->fd, path, &raw->disk.size);
    }
    if (!error) {
        error = lock_file(raw, path);
    }
    if (!error && !format_given) {
        error = check_magic(raw->fd, path);
    }
    if (!error) {
        error = start_engine(raw, engine);
    }
    if (error) {
        return error;
    }
    *ret_disk = &TAKE(raw)->disk;
    return 0;
}

int disk_raw_open(const char *path, bool readonly, bool format_given, struct disk **ret_disk)
{
    return raw_open(path, readonly, format_given, RAW_AUTO, ret_disk);
}
