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
#include <sys/syscall.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"

enum { RING_ENTRIES = 128, BATCH = 32 };

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

/* The ring's result of a request as ours; what it could not do at all is done here. */
static int settle(struct raw_disk *raw, struct disk_request *request, int result)
{
    bool is_transfer = request->operation == DISK_READ || request->operation == DISK_WRITE;
    if (result == -EINTR || result == -EAGAIN || result == -EOPNOTSUPP || result == -EINVAL) {
        return raw_perform(raw, request, 0);
    }
    if (result < 0) {
        return result;
    }
    if (is_transfer && (uint64_t)result < request->length) {
        return raw_perform(raw, request, (uint64_t)result);
    }
    return 0;
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

static void prepare(const struct raw_disk *raw, struct io_uring_sqe *entry,
                    const struct disk_request *request)
{
    const int file = 0; /* the index of the registered file */
    switch (request->operation) {
    case DISK_READ:
        io_uring_prep_readv(entry, file, request->vectors, request->vector_count, request->offset);
        break;
    case DISK_WRITE:
        io_uring_prep_writev(entry, file, request->vectors, request->vector_count, request->offset);
        break;
    case DISK_FLUSH:
        io_uring_prep_fsync(entry, file, IORING_FSYNC_DATASYNC);
        break;
    case DISK_DISCARD:
        io_uring_prep_fallocate(entry, file, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
                                (off_t)request->offset, (off_t)request->length);
        break;
    case DISK_WRITE_ZEROES:
        io_uring_prep_fallocate(entry, file, FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE,
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
    int error = ring_register(raw, IORING_REGISTER_FILES, &raw->fd, 1);
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
