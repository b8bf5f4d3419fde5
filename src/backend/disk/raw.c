/*
 * A raw image, a regular file or a block device: carrying out one request the plain way.
 * raw_ring.c and raw_workers.c make that asynchronous, raw_open.c opens it.
 */
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/disk/raw_internal.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"

enum { VECTORS = 64, ZEROS_SIZE = 65536, COPY_SIZE = 1 << 18 };

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

bool raw_fits_direct(const struct raw_disk *raw, const struct iovec *vectors, size_t count,
                     uint64_t offset)
{
    uint64_t bits = offset % raw->alignment;
    for (size_t i = 0; i < count; i++) {
        bits |= (uintptr_t)vectors[i].iov_base % raw->memory_alignment;
        bits |= vectors[i].iov_len % raw->alignment;
    }
    return bits == 0;
}

void raw_fill_zeros(const struct disk_request *request, uint64_t done)
{
    for (unsigned i = 0; i < request->vector_count; i++) {
        const struct iovec *vector = &request->vectors[i];
        uint64_t skip = done < vector->iov_len ? done : vector->iov_len;
        memset((uint8_t *)vector->iov_base + skip, 0, vector->iov_len - skip);
        done -= skip;
    }
}

static int transfer(struct raw_disk *raw, const struct disk_request *request, uint64_t done)
{
    while (done < request->length) {
        struct iovec vectors[VECTORS];
        int count = rest_of_vectors(request, done, vectors);
        off_t at = (off_t)(request->offset + done);
        bool direct = raw->direct_fd >= 0 &&
                      raw_fits_direct(raw, vectors, (size_t)count, request->offset + done);
        int fd = direct ? raw->direct_fd : raw->fd;
        ssize_t moved = request->operation == DISK_READ ? preadv(fd, vectors, count, at)
                                                        : pwritev(fd, vectors, count, at);
        if (moved < 0 && errno != EINTR) {
            return -errno;
        }
        if (moved == 0 && raw->grows && request->operation == DISK_READ) {
            raw_fill_zeros(request, done);
            return 0;
        }
        if (moved == 0) {
            return -EIO; /* somebody cut the file short */
        }
        done += moved > 0 ? (uint64_t)moved : 0;
    }
    return 0;
}

/* [skip, skip + length) of a request's bytes, from its vectors or to them. */
static void copy_part(const struct disk_request *request, uint64_t skip, uint8_t *bytes,
                      uint64_t length)
{
    for (unsigned i = 0; i < request->vector_count && length; i++) {
        const struct iovec *vector = &request->vectors[i];
        if (skip >= vector->iov_len) {
            skip -= vector->iov_len;
            continue;
        }
        uint64_t now = vector->iov_len - skip < length ? vector->iov_len - skip : length;
        uint8_t *other = (uint8_t *)vector->iov_base + skip;
        memcpy(request->operation == DISK_READ ? other : bytes,
               request->operation == DISK_READ ? bytes : other, now);
        bytes += now;
        length -= now;
        skip = 0;
    }
}

/*
 * Past the page cache through an aligned copy, because the submitter's memory is not aligned. (The
 * page cache would do, but for who writes beside it in the same page at the same time.)
 */
static int transfer_copied(struct raw_disk *raw, const struct disk_request *request)
{
    uint64_t size = request->length < COPY_SIZE ? request->length : COPY_SIZE;
    void *copy = NULL;
    int error = 0;
    ASSERT(!posix_memalign(&copy, raw->memory_alignment, size));
    for (uint64_t done = 0; done < request->length && !error; done += size) {
        uint64_t left = request->length - done;
        struct iovec vector = {.iov_base = copy, .iov_len = left < size ? left : size};
        const struct disk_request part = {.operation = request->operation,
                                          .offset = request->offset + done,
                                          .length = vector.iov_len,
                                          .vectors = &vector,
                                          .vector_count = 1};
        if (request->operation == DISK_WRITE) {
            copy_part(request, done, copy, vector.iov_len);
        }
        error = transfer(raw, &part, 0);
        if (!error && request->operation == DISK_READ) {
            copy_part(request, done, copy, vector.iov_len);
        }
    }
    free(copy);
    return error;
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

bool raw_is_unsupported(int error)
{
    return error == -EOPNOTSUPP || error == -ENOSYS || error == -EINVAL;
}

int raw_zero_mode(const struct disk_request *request)
{
    return request->unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
}

static int write_zeroes(struct raw_disk *raw, const struct disk_request *request)
{
    static const uint8_t zeros[ZEROS_SIZE];
    int error = allocate(raw, request, raw_zero_mode(request));
    if (raw_is_unsupported(error)) {
        error = allocate(raw, request, FALLOC_FL_PUNCH_HOLE);
    }
    if (!raw_is_unsupported(error)) {
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
    int error = -EINVAL;
    switch (request->operation) {
    case DISK_READ:
    case DISK_WRITE:
        if (raw->direct_fd >= 0 && done == 0 && request->length &&
            (request->offset | request->length) % raw->alignment == 0 &&
            !raw_fits_direct(raw, request->vectors, request->vector_count, request->offset)) {
            return transfer_copied(raw, request);
        }
        return transfer(raw, request, done);
    case DISK_FLUSH:
        return raw->cache != DISK_CACHE_UNSAFE && fdatasync(raw->fd) ? -errno : 0;
    case DISK_DISCARD:
        /* A hint: where it cannot be followed the contents simply stay. */
        error = request->length ? allocate(raw, request, FALLOC_FL_PUNCH_HOLE) : 0;
        error = raw_is_unsupported(error) ? 0 : error;
        break;
    case DISK_WRITE_ZEROES:
        error = request->length ? write_zeroes(raw, request) : 0;
        break;
    }
    return error ? error : raw_settle_range(raw);
}

/* O_DSYNC is about writes only. */
int raw_settle_range(struct raw_disk *raw)
{
    bool is_through = raw->cache == DISK_CACHE_WRITETHROUGH || raw->cache == DISK_CACHE_DIRECTSYNC;
    return is_through && fdatasync(raw->fd) ? -errno : 0;
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

static void raw_free(struct disk *disk)
{
    struct raw_disk *raw = raw_of(disk);
    raw_drain(disk);
    if (raw->engine == RAW_RING) {
        raw_ring_close(raw);
    } else if (raw->engine == RAW_WORKER_THREADS) {
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

static int raw_disk_perform(struct disk *disk, const struct disk_request *request)
{
    return raw_perform(raw_of(disk), request, 0);
}

static bool raw_place(struct disk *disk, uint64_t offset, uint64_t length,
                      struct disk_place *ret_place)
{
    *ret_place = (struct disk_place){.disk = disk, .offset = offset, .length = length};
    return true;
}

/* Where the file system cannot tell everything is data. */
static int raw_extent(struct disk *disk, uint64_t offset, uint64_t length,
                      struct disk_extent *ret_extent)
{
    int fd = raw_of(disk)->fd;
    off_t data = lseek(fd, (off_t)offset, SEEK_DATA), end;
    if (data < 0 && errno == ENXIO) { /* nothing but a hole up to the end */
        *ret_extent = (struct disk_extent){.length = length, .kind = DISK_EXTENT_HOLE};
        return 0;
    }
    if (data > (off_t)offset) {
        uint64_t hole = (uint64_t)data - offset;
        *ret_extent =
            (struct disk_extent){.length = hole < length ? hole : length, .kind = DISK_EXTENT_HOLE};
        return 0;
    }
    end = data < 0 ? -1 : lseek(fd, (off_t)offset, SEEK_HOLE);
    uint64_t known = end > (off_t)offset ? (uint64_t)end - offset : length;
    *ret_extent = (struct disk_extent){
        .length = known < length ? known : length, .kind = DISK_EXTENT_DATA, .file_offset = offset};
    return 0;
}

static uint64_t raw_end(struct disk *disk)
{
    struct stat status;
    return fstat(raw_of(disk)->fd, &status) || !S_ISREG(status.st_mode) ? UINT64_MAX
                                                                        : (uint64_t)status.st_size;
}

static int raw_truncate(struct disk *disk, uint64_t size)
{
    struct raw_disk *raw = raw_of(disk);
    if (ftruncate(raw->fd, (off_t)size)) {
        return fail(-errno, "change the size to %llu bytes: %s", (unsigned long long)size,
                    strerror(errno));
    }
    disk->size = raw->grows ? disk->size : size;
    return 0;
}

const struct disk_ops raw_ops = {
    .submit = raw_submit,
    .hold = raw_hold,
    .release = raw_release,
    .perform = raw_disk_perform,
    .place = raw_place,
    .extent = raw_extent,
    .end = raw_end,
    .truncate = raw_truncate,
    .drain = raw_drain,
    .free = raw_free,
};
