/*
 * The raw disk on io_uring: submission by whoever submits, completion by one thread that waits.
 *
 * System call filters cannot see what a ring is asked to do, so the ring itself is restricted to
 * the five operations and the one file that a disk needs.
 */
#include "backend/disk/raw_internal.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"

enum { RING_ENTRIES = 128, BATCH = 32 };
/* Indices of the registered files. */
enum { FILE_CACHED, FILE_DIRECT };

/* Take completions off the ring; at least one. */
static unsigned reap(struct raw_disk *raw, struct disk_request **requests, int *results)
{
    struct io_uring_cqe *entry;
    int error;
    do {
        error = io_uring_wait_cqe(&raw->ring, &entry);
    } while (error == -EINTR || error == -EAGAIN);
    ASSERT(!error);

    struct io_uring_cqe *entries[BATCH];
    pthread_mutex_lock(&raw->lock);
    unsigned count = io_uring_peek_batch_cqe(&raw->ring, entries, BATCH);
    for (unsigned i = 0; i < count; i++) {
        requests[i] = io_uring_cqe_get_data(entries[i]);
        results[i] = entries[i]->res;
    }
    io_uring_cq_advance(&raw->ring, count);
    pthread_mutex_unlock(&raw->lock);
    return count;
}

/* Past the page cache addresses are aligned: where the submitter's are not, a copy stands in. */
struct bounce {
    struct iovec vector;
    uint8_t *bytes;
};

static struct bounce *make_bounce(const struct disk_request *request, unsigned alignment)
{
    struct bounce *bounce = calloc(1, sizeof *bounce);
    ASSERT(bounce);
    ASSERT(!posix_memalign((void **)&bounce->bytes, alignment, request->length));
    bounce->vector = (struct iovec){.iov_base = bounce->bytes, .iov_len = request->length};
    uint8_t *at = bounce->bytes;
    for (unsigned i = 0; request->operation == DISK_WRITE && i < request->vector_count; i++) {
        memcpy(at, request->vectors[i].iov_base, request->vectors[i].iov_len);
        at += request->vectors[i].iov_len;
    }
    return bounce;
}

/* What was read goes to the submitter. */
static int take_bounce(struct disk_request *request, int result)
{
    struct bounce *bounce = request->backend;
    const uint8_t *at = bounce->bytes;
    uint64_t left = result > 0 && request->operation == DISK_READ ? (uint64_t)result : 0;
    for (unsigned i = 0; i < request->vector_count && left; i++) {
        uint64_t length = request->vectors[i].iov_len;
        length = length < left ? length : left;
        memcpy(request->vectors[i].iov_base, at, length);
        at += length;
        left -= length;
    }
    free(bounce->bytes);
    free(bounce);
    request->backend = NULL;
    return result;
}

/* The ring's result of a request as ours; what it could not do at all is done here. */
static int settle(struct raw_disk *raw, struct disk_request *request, int result)
{
    bool is_transfer = request->operation == DISK_READ || request->operation == DISK_WRITE;
    bool is_range = request->operation == DISK_DISCARD || request->operation == DISK_WRITE_ZEROES;
    if (request->backend) {
        result = take_bounce(request, result);
    }
    if (result == -EINTR || result == -EAGAIN || result == -EOPNOTSUPP || result == -EINVAL) {
        return raw_perform(raw, request, 0);
    }
    if (result < 0) {
        return result;
    }
    if (is_transfer && (uint64_t)result < request->length) {
        return raw_perform(raw, request, (uint64_t)result);
    }
    return is_range ? raw_settle_range(raw) : 0;
}

/* Ends with the completion that carries no request. */
static void *complete(void *argument)
{
    struct raw_disk *raw = argument;
    raw_thread_started(raw);
    for (bool stop = false; !stop;) {
        struct disk_request *requests[BATCH];
        int results[BATCH];
        unsigned count = reap(raw, requests, results);
        for (unsigned i = 0; i < count; i++) {
            if (requests[i]) {
                requests[i]->more = i + 1 < count && requests[i + 1];
                raw_complete(raw, requests[i], settle(raw, requests[i], results[i]));
            } else {
                stop = true;
            }
        }
    }
    return NULL;
}

static void prepare_transfer(const struct raw_disk *raw, struct io_uring_sqe *entry,
                             struct disk_request *request)
{
    const struct iovec *vectors = request->vectors;
    unsigned count = request->vector_count;
    bool direct = raw->direct_fd >= 0 && request->offset % raw->alignment == 0 &&
                  request->length % raw->alignment == 0;
    if (direct && !raw_fits_direct(raw, vectors, count, request->offset)) {
        struct bounce *bounce = make_bounce(request, raw->memory_alignment);
        request->backend = bounce;
        vectors = &bounce->vector;
        count = 1;
    }
    int file = direct ? FILE_DIRECT : FILE_CACHED;
    if (request->operation == DISK_READ) {
        io_uring_prep_readv(entry, file, vectors, count, request->offset);
    } else {
        io_uring_prep_writev(entry, file, vectors, count, request->offset);
    }
}

static void prepare(const struct raw_disk *raw, struct io_uring_sqe *entry,
                    struct disk_request *request)
{
    const int file = FILE_CACHED;
    request->backend = NULL;
    switch (request->operation) {
    case DISK_READ:
    case DISK_WRITE:
        prepare_transfer(raw, entry, request);
        break;
    case DISK_FLUSH:
        if (raw->cache == DISK_CACHE_UNSAFE) {
            io_uring_prep_nop(entry);
            break;
        }
        io_uring_prep_fsync(entry, file, IORING_FSYNC_DATASYNC);
        break;
    case DISK_DISCARD:
        io_uring_prep_fallocate(entry, file, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
                                (off_t)request->offset, (off_t)request->length);
        break;
    case DISK_WRITE_ZEROES:
        io_uring_prep_fallocate(entry, file, FALLOC_FL_KEEP_SIZE | raw_zero_mode(request),
                                (off_t)request->offset, (off_t)request->length);
        break;
    }
}

void raw_ring_flush(struct raw_disk *raw)
{
    while (io_uring_sq_ready(&raw->ring)) {
        int submitted = io_uring_submit(&raw->ring);
        if (submitted <= 0) { /* the host is short of memory for a moment, or a signal came */
            ASSERT(submitted == -EAGAIN || submitted == -EBUSY || submitted == -EINTR ||
                   submitted == -ENOMEM || submitted == 0);
            sched_yield();
        }
    }
}

/* `request` == NULL: the completion thread ends. */
static void submit(struct raw_disk *raw, struct disk_request *request)
{
    pthread_mutex_lock(&raw->lock);
    struct io_uring_sqe *entry = io_uring_get_sqe(&raw->ring);
    if (!entry) { /* all of them are kept back */
        raw_ring_flush(raw);
        entry = io_uring_get_sqe(&raw->ring);
        ASSERT(entry);
    }
    if (request) {
        prepare(raw, entry, request);
    } else {
        io_uring_prep_nop(entry);
    }
    io_uring_sqe_set_flags(entry, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data(entry, request);
    if (!request || !raw->holders) {
        raw_ring_flush(raw);
    }
    pthread_mutex_unlock(&raw->lock);
}

void raw_ring_submit(struct raw_disk *raw, struct disk_request *request)
{
    submit(raw, request);
}

/* By hand: not every liburing that declares the calls below also exports them. */
static int ring_register(struct raw_disk *raw, unsigned operation, const void *argument,
                         unsigned count)
{
    long result = syscall(__NR_io_uring_register, raw->ring.ring_fd, operation, argument, count);
    return result < 0 ? -errno : 0;
}

static int restrict_ring(struct raw_disk *raw)
{
    static const uint8_t operations[] = {IORING_OP_NOP, IORING_OP_READV, IORING_OP_WRITEV,
                                         IORING_OP_FSYNC, IORING_OP_FALLOCATE};
    struct io_uring_restriction restrictions[ARRAY_SIZE(operations) + 1] = {0};
    for (size_t i = 0; i < ARRAY_SIZE(operations); i++) {
        restrictions[i].opcode = IORING_RESTRICTION_SQE_OP;
        restrictions[i].sqe_op = operations[i];
    }
    restrictions[ARRAY_SIZE(operations)].opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED;
    restrictions[ARRAY_SIZE(operations)].sqe_flags = IOSQE_FIXED_FILE;
    const int files[] = {[FILE_CACHED] = raw->fd, [FILE_DIRECT] = raw->direct_fd};
    int error = ring_register(raw, IORING_REGISTER_FILES, files, raw->direct_fd >= 0 ? 2 : 1);
    if (!error) {
        error = ring_register(raw, IORING_REGISTER_RESTRICTIONS, restrictions,
                              ARRAY_SIZE(restrictions));
    }
    return error ? error : ring_register(raw, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
}

int raw_ring_open(struct raw_disk *raw)
{
    int error = io_uring_queue_init(RING_ENTRIES, &raw->ring, IORING_SETUP_R_DISABLED);
    if (error) {
        return error;
    }
    error = restrict_ring(raw);
    if (!error) {
        error = raw_start_thread(raw, complete);
    }
    if (error) {
        io_uring_queue_exit(&raw->ring);
    }
    return error;
}

void raw_ring_close(struct raw_disk *raw)
{
    submit(raw, NULL);
    pthread_join(raw->threads[0], NULL);
    io_uring_queue_exit(&raw->ring);
}
