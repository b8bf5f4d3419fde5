/*
 * Requests in flight. Where the mapping is in memory and nothing has to change, a request goes
 * straight to the file (or that of the backing chain) as one or a few requests; everything else is
 * done by worker threads, which may wait.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_internal.h"
#include "base/assert.h"
#include "base/error.h"

/* A request of ours on its way, in parts. */
struct io;
struct part {
    struct disk_request request;
    struct io *io;
    struct disk *disk;
};
struct io {
    struct qcow2 *q;
    struct disk_request *parent;
    unsigned epoch;
    unsigned pending; /* atomic */
    int result;       /* atomic: the first error */
    unsigned part_count;
    struct part parts[QCOW2_PARTS_MAX];
    struct iovec vectors[]; /* of the parts, if there are several */
};

static void end_request(struct qcow2 *q)
{
    pthread_mutex_lock(&q->map);
    if (--q->requests == 0) {
        pthread_cond_broadcast(&q->idle);
    }
    pthread_mutex_unlock(&q->map);
}

static void part_done(struct disk_request *request, int result)
{
    struct part *part = CONTAINER_OF(request, struct part, request);
    struct io *io = part->io;
    struct qcow2 *q = io->q;
    if (result) {
        __atomic_store_n(&io->result, result, __ATOMIC_RELAXED);
    }
    if (__atomic_sub_fetch(&io->pending, 1, __ATOMIC_ACQ_REL)) {
        return;
    }
    struct disk_request *parent = io->parent;
    result = io->result;
    qcow2_leave(q, io->epoch);
    free(io);
    parent->more = false;
    parent->done(parent, result);
    end_request(q);
}

/* Where a run of clusters is that may be written in place. `map` is held. */
static bool place_write(struct qcow2 *q, uint64_t offset, uint64_t length,
                        struct disk_place *ret_place)
{
    uint64_t within = offset & (q->cluster_size - 1), run = 0, host = 0;
    while (run < within + length) {
        uint64_t raw;
        if (!qcow2_entry_peek(q, offset - within + run, &raw)) {
            break;
        }
        struct qcow2_entry entry = qcow2_entry_decode(q, raw);
        host = run ? host : entry.host;
        if (entry.kind != QCOW2_IS_DATA || !entry.copied || entry.host != host + run ||
            entry.host + q->cluster_size > q->fresh ||
            qcow2_set_has(&q->tables, entry.host >> q->cluster_bits)) {
            break;
        }
        run += q->cluster_size;
    }
    if (run <= within) {
        return false;
    }
    *ret_place = (struct disk_place){.disk = q->file, .offset = host + within};
    ret_place->length = run - within < length ? run - within : length;
    return true;
}

/* Where something unallocated is read from. */
static bool place_backing(struct qcow2 *q, uint64_t offset, uint64_t length,
                          struct disk_place *ret_place)
{
    struct disk *backing = q->backing;
    if (!backing || offset >= backing->size) {
        *ret_place = (struct disk_place){.length = length, .zero = true};
        return true;
    }
    uint64_t there = backing->size - offset;
    return backing->ops->place(backing, offset, length < there ? length : there, ret_place);
}

/* Where a run of clusters is read from. `map` is held. */
static bool place_read(struct qcow2 *q, uint64_t offset, uint64_t length,
                       struct disk_place *ret_place)
{
    uint64_t within = offset & (q->cluster_size - 1), run = 0;
    struct qcow2_entry first = {0};
    while (run < within + length) {
        uint64_t raw;
        if (!qcow2_entry_peek(q, offset - within + run, &raw)) {
            break;
        }
        struct qcow2_entry entry = qcow2_entry_decode(q, raw);
        first = run ? first : entry;
        if (entry.kind == QCOW2_IS_COMPRESSED || entry.kind == QCOW2_IS_BAD ||
            entry.kind != first.kind ||
            (entry.kind == QCOW2_IS_DATA && entry.host != first.host + run)) {
            break;
        }
        run += q->cluster_size;
    }
    if (run <= within) {
        return false;
    }
    uint64_t there = run - within < length ? run - within : length;
    if (first.kind == QCOW2_IS_UNALLOCATED) {
        return place_backing(q, offset, there, ret_place);
    }
    *ret_place = (struct disk_place){.disk = q->file,
                                     .offset = first.host + within,
                                     .length = there,
                                     .zero = first.kind == QCOW2_IS_ZERO};
    return true;
}

bool qcow2_place(struct disk *disk, uint64_t offset, uint64_t length, struct disk_place *ret_place)
{
    struct qcow2 *q = qcow2_of(disk);
    pthread_mutex_lock(&q->map);
    bool found = place_read(q, offset, length, ret_place);
    pthread_mutex_unlock(&q->map);
    return found;
}

/* All places of a request, if they are few and known. `map` is held. 0: not so. */
static unsigned find_places(struct qcow2 *q, const struct disk_request *request,
                            struct disk_place *ret_places)
{
    unsigned count = 0;
    bool is_write = request->operation == DISK_WRITE, has_data = false;
    if (request->length == 0 || (is_write && (q->broken || !q->started))) {
        return 0;
    }
    /* It would be durable and its place not: a worker commits that, too. */
    if (is_write && q->write_through && !q->clean) {
        return 0;
    }
    for (uint64_t done = 0; done < request->length; count++) {
        struct disk_place *place = &ret_places[count];
        uint64_t offset = request->offset + done, left = request->length - done;
        if (count == QCOW2_PARTS_MAX || !(is_write ? place_write(q, offset, left, place)
                                                   : place_read(q, offset, left, place))) {
            return 0;
        }
        has_data |= !place->zero;
        done += place->length;
    }
    return has_data ? count : 0; /* done() does not run inside submit() */
}

static struct io *make_io(struct qcow2 *q, struct disk_request *parent,
                          const struct disk_place *places, unsigned count)
{
    size_t vectors = count > 1 ? parent->vector_count + count : 0;
    struct io *io = malloc(sizeof *io + vectors * sizeof(struct iovec));
    ASSERT(io);
    io->q = q;
    io->parent = parent;
    io->result = 0;
    io->part_count = 0;
    uint64_t done = 0;
    struct iovec *next = io->vectors;
    for (unsigned i = 0; i < count; i++) {
        const struct disk_place *place = &places[i];
        struct part *part = &io->parts[io->part_count];
        *part = (struct part){.io = io, .disk = place->disk};
        part->request = (struct disk_request){.operation = parent->operation,
                                              .offset = place->offset,
                                              .length = place->length,
                                              .vectors = parent->vectors,
                                              .vector_count = parent->vector_count,
                                              .done = part_done};
        if (count > 1) {
            part->request.vectors = next;
            part->request.vector_count = qcow2_cut_vectors(parent, done, place->length, next);
            next += part->request.vector_count;
        }
        done += place->length;
        for (unsigned k = 0; k < part->request.vector_count && place->zero; k++) {
            memset(part->request.vectors[k].iov_base, 0, part->request.vectors[k].iov_len);
        }
        io->part_count += !place->zero;
    }
    io->pending = io->part_count;
    return io;
}

static void queue(struct qcow2 *q, struct disk_request *request)
{
    request->next = NULL;
    *q->last = request;
    q->last = &request->next;
    pthread_cond_signal(&q->work);
}

void qcow2_submit(struct disk *disk, struct disk_request *request)
{
    struct qcow2 *q = qcow2_of(disk);
    struct disk_place places[QCOW2_PARTS_MAX];
    unsigned count = 0;
    pthread_mutex_lock(&q->map);
    q->requests++;
    if (request->operation == DISK_READ || request->operation == DISK_WRITE) {
        count = find_places(q, request, places);
    } else if (request->operation == DISK_FLUSH && q->clean) {
        places[0] = (struct disk_place){.disk = q->file};
        count = 1;
    }
    if (count == 0) {
        queue(q, request);
        pthread_mutex_unlock(&q->map);
        return;
    }
    unsigned epoch = q->epoch;
    q->in_flight[epoch]++;
    pthread_mutex_unlock(&q->map);
    struct io *io = make_io(q, request, places, count);
    io->epoch = epoch;
    unsigned part_count = io->part_count; /* it may be gone after the last one */
    for (unsigned i = 0; i < part_count; i++) {
        struct part *part = &io->parts[i];
        ASSERT(!disk_submit(part->disk, &part->request));
    }
}

static struct disk_request *next_request(struct qcow2 *q)
{
    pthread_mutex_lock(&q->map);
    while (!q->first && !q->stopping) {
        pthread_cond_wait(&q->work, &q->map);
    }
    struct disk_request *request = q->first;
    if (request) {
        q->first = request->next;
        q->last = q->first ? q->last : &q->first;
    }
    pthread_mutex_unlock(&q->map);
    return request;
}

static void *work(void *argument)
{
    struct qcow2 *q = argument;
    struct disk_request *request;
    pthread_mutex_lock(&q->map);
    q->worker_count++; /* what a thread's beginning asks of the host may be forbidden soon */
    pthread_cond_broadcast(&q->idle);
    pthread_mutex_unlock(&q->map);
    while ((request = next_request(q))) {
        int result = qcow2_perform(&q->disk, request);
        trail_clear();
        request->more = false;
        request->done(request, result);
        end_request(q);
    }
    return NULL;
}

int qcow2_workers_open(struct qcow2 *q)
{
    sigset_t all, before;
    sigfillset(&all);
    for (unsigned i = 0; i < QCOW2_WORKERS; i++) {
        pthread_sigmask(SIG_SETMASK, &all, &before);
        int error = pthread_create(&q->workers[i], NULL, work, q);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (error) {
            qcow2_workers_close(q);
            return fail(-error, "start a thread for disk requests: %s", strerror(error));
        }
        pthread_setname_np(q->workers[i], "qcow2");
        pthread_mutex_lock(&q->map);
        while (q->worker_count <= i) {
            pthread_cond_wait(&q->idle, &q->map);
        }
        pthread_mutex_unlock(&q->map);
    }
    return 0;
}

void qcow2_workers_close(struct qcow2 *q)
{
    pthread_mutex_lock(&q->map);
    q->stopping = true;
    pthread_cond_broadcast(&q->work);
    pthread_mutex_unlock(&q->map);
    for (unsigned i = 0; i < q->worker_count; i++) {
        pthread_join(q->workers[i], NULL);
    }
    q->worker_count = 0;
}

void qcow2_drain(struct disk *disk)
{
    struct qcow2 *q = qcow2_of(disk);
    pthread_mutex_lock(&q->map);
    while (q->requests) {
        pthread_cond_wait(&q->idle, &q->map);
    }
    pthread_mutex_unlock(&q->map);
}
