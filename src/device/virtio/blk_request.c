/*
 * Requests of virtio-blk: each chain becomes a request that owns itself from pop to push. Its data
 * is borrowed from guest memory piece by piece, so that a request of any size needs a fixed amount
 * of ours.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/error.h"
#include "device/virtio/blk_internal.h"

enum {
    HEADER_SIZE = 16, /* le32 type, le32 reserved, le64 sector (5.2.6) */
    RANGE_SIZE = 16,  /* le64 sector, le32 sectors, le32 flags */
    RANGE_UNMAP = 1,
    REQUESTS_MAX = 64, /* in flight at once; the rest waits in the ring */
    SPANS_MAX = 128,   /* host-contiguous pieces in one disk request */
    /* Bytes in one disk request: one span reaches for any range, and the disk may need a copy. */
    PIECE_MAX = 2 << 20,
};

enum {
    TYPE_IN = 0,
    TYPE_OUT = 1,
    TYPE_FLUSH = 4,
    TYPE_GET_ID = 8,
    TYPE_DISCARD = 11,
    TYPE_WRITE_ZEROES = 13,
};

enum { STATUS_OK = 0, STATUS_IOERR = 1, STATUS_UNSUPPORTED = 2 };

struct blk_request {
    struct disk_request disk; /* the piece in flight */
    struct virtio_blk *blk;
    struct blk_request *next; /* in the list of free ones */
    unsigned queue;           /* where it came from */
    uint32_t type;
    uint64_t position; /* bytes of the data that are done */
    uint64_t length;   /* bytes of the data in all */
    bool flushing;     /* a write is being made durable */
    unsigned span_count;
    struct memory_span spans[SPANS_MAX];
    struct iovec vectors[SPANS_MAX];
    struct virtio_chain chain;
};

static struct blk_request *request_take(struct virtio_blk *blk)
{
    struct blk_request *request = blk->free_requests;
    if (request) {
        blk->free_requests = request->next;
    } else {
        request = calloc(1, sizeof *request);
        ASSERT(request);
        request->blk = blk;
    }
    blk->in_flight++;
    return request;
}

static void request_release(struct blk_request *request)
{
    struct virtio_blk *blk = request->blk;
    request->next = blk->free_requests;
    blk->free_requests = request;
    blk->in_flight--;
}

/* Answer: the status is the last writable byte. `written` bytes of data came before it. */
static void request_finish(struct blk_request *request, uint8_t status, uint64_t written)
{
    struct virtio_device *virtio = &request->blk->virtio;
    uint64_t at = request->chain.write_length - 1;
    if (virtio_chain_write(virtio->memory, &request->chain, at, &status, 1)) {
        virtio_needs_reset(virtio);
    }
    /* The used length counts what was written without a gap (2.7.8.2). */
    uint32_t used = (uint32_t)(written == at ? at + 1 : written);
    virtio_put(virtio, request->queue, request->chain.head, used);
    request->blk->answered |= UINT32_C(1) << request->queue;
    request_release(request);
}

/* Tell the driver of all answers since the last time. */
static void signal_answers(struct virtio_blk *blk)
{
    for (; blk->answered; blk->answered &= blk->answered - 1) {
        virtio_signal(&blk->virtio, (unsigned)__builtin_ctz(blk->answered));
    }
}

/* The host failed a request: tell the user, not too often. The guest sees an I/O error. */
static void report_failure(struct blk_request *request, int error)
{
    struct virtio_blk *blk = request->blk;
    uint64_t now = blk->clock.ops ? clock_now(blk->clock) : UINT64_MAX;
    if (!blk->report || now < blk->next_report_ns) {
        return;
    }
    blk->next_report_ns = blk->clock.ops ? now + UINT64_C(1000000000) : 0;
    char reason[64], text[200];
    snprintf(text, sizeof text, "%s: %s the disk failed at byte %llu: %s", blk->virtio.device.id,
             disk_operation_text(request->disk.operation), (unsigned long long)request->disk.offset,
             strerror_r(-error, reason, sizeof reason));
    blk->report(blk->report_owner, error, text);
}

static void request_done(struct disk_request *disk_request, int result);

/* Hand the prepared disk request to the backend; what it refuses is answered here. */
static void request_submit(struct blk_request *request)
{
    request->disk.done = request_done;
    int error = disk_submit(request->blk->disk, &request->disk);
    if (error) {
        trail_clear();
        memory_return(request->blk->virtio.memory, request->spans, request->span_count, false);
        request->span_count = 0;
        request_finish(request, STATUS_IOERR, 0);
    }
}

static void request_flush(struct blk_request *request)
{
    request->disk.operation = DISK_FLUSH;
    request->disk.offset = request->disk.length = 0;
    request->disk.vector_count = 0;
    request_submit(request);
}

/* Borrow a run of guest memory into the free spans; as much of it as surely fits. */
static int borrow_run(struct blk_request *request, gpa_t gpa, uint64_t length, bool write,
                      uint64_t *ret_length)
{
    struct memory *memory = request->blk->virtio.memory;
    struct memory_span *spans = request->spans + request->span_count;
    unsigned room = SPANS_MAX - request->span_count;
    int count = memory_borrow(memory, gpa, length, write, spans, room);
    if (count == -E2BIG) {
        /* A span is at least a page, but for the first one. */
        uint64_t in_first = PAGE_SIZE - gpa % PAGE_SIZE;
        uint64_t sure = in_first + (uint64_t)(room - 1) * PAGE_SIZE;
        length = length < sure ? length : sure;
        count = memory_borrow(memory, gpa, length, write, spans, room);
    }
    if (count < 0) {
        return count;
    }
    for (int i = 0; i < count; i++) {
        request->vectors[request->span_count + (unsigned)i] =
            (struct iovec){.iov_base = spans[i].host, .iov_len = spans[i].length};
    }
    request->span_count += (unsigned)count;
    *ret_length = length;
    return 0;
}

/* Borrow the next piece of the data; its bytes in `ret_length`. */
static int borrow_piece(struct blk_request *request, uint64_t *ret_length)
{
    bool write = request->type == TYPE_IN; /* into guest memory */
    const struct virtio_chain *chain = &request->chain;
    const struct virtio_segment *segment = chain->segments + (write ? chain->read_count : 0);
    uint64_t skip = request->position + (write ? 0 : HEADER_SIZE);
    uint64_t left = request->length - request->position, piece = 0;

    left = left < PIECE_MAX ? left : PIECE_MAX;
    request->span_count = 0;
    for (; left > 0 && request->span_count < SPANS_MAX; segment++) {
        if (skip >= segment->length) {
            skip -= segment->length;
            continue;
        }
        uint64_t want = segment->length - skip, got;
        want = want < left ? want : left;
        int error = borrow_run(request, segment->gpa + skip, want, write, &got);
        if (error) {
            memory_return(request->blk->virtio.memory, request->spans, request->span_count, false);
            request->span_count = 0;
            return error;
        }
        piece += got;
        left -= got;
        skip = 0;
        if (got < want) {
            break;
        }
    }
    *ret_length = piece;
    return 0;
}

/* Submit the next piece of a read or write. */
static void request_transfer(struct blk_request *request)
{
    if (borrow_piece(request, &request->disk.length)) {
        trail_clear();
        request_finish(request, STATUS_IOERR, 0);
        return;
    }
    request->disk.vectors = request->vectors;
    request->disk.vector_count = request->span_count;
    request_submit(request);
}

/* A piece came back: the next one, or the answer. The lock is held. */
static void request_continue(struct blk_request *request, int result)
{
    struct virtio_blk *blk = request->blk;
    bool is_transfer = request->type == TYPE_IN || request->type == TYPE_OUT;
    if (result) {
        report_failure(request, result);
        request_finish(request, STATUS_IOERR, 0);
        return;
    }
    if (blk->virtio.resetting) {
        request_release(request); /* nobody waits for the rest */
        return;
    }
    if (is_transfer && !request->flushing) {
        request->position += request->disk.length;
        request->disk.offset += request->disk.length;
        if (request->position < request->length) {
            request_transfer(request);
            return;
        }
    }
    /* A driver that knows no flush is promised that a finished write is durable (5.2.6.2). */
    bool is_change = request->type != TYPE_IN && request->type != TYPE_FLUSH;
    if (is_change && !request->flushing && !virtio_has(&blk->virtio, BLK_F_FLUSH)) {
        request->flushing = true;
        request_flush(request);
        return;
    }
    request_finish(request, STATUS_OK, request->type == TYPE_IN ? request->length : 0);
}

static void request_done(struct disk_request *disk_request, int result)
{
    struct blk_request *request = CONTAINER_OF(disk_request, struct blk_request, disk);
    struct virtio_blk *blk = request->blk;
    pthread_mutex_lock(&blk->virtio.device.lock);
    /* Before the guest can see the answer. */
    memory_return(blk->virtio.memory, request->spans, request->span_count,
                  request->type == TYPE_IN);
    request->span_count = 0;
    bool was_full = blk->in_flight == REQUESTS_MAX, more = disk_request->more;
    unsigned queue = request->queue;
    request_continue(request, result);
    /* The queue whose request made room comes last, so that none waits for ever. */
    for (unsigned i = 1; was_full && i <= blk->virtio.queue_count; i++) {
        virtio_serve(&blk->virtio, (queue + i) % blk->virtio.queue_count);
    }
    if (!more) {
        signal_answers(blk);
    }
    pthread_mutex_unlock(&blk->virtio.device.lock);
}

static bool sectors_fit(const struct virtio_blk *blk, uint64_t sector, uint64_t count)
{
    return range_fits(sector, count, blk->disk->size / BLK_SECTOR);
}

static void request_read_write(struct blk_request *request, uint64_t sector)
{
    struct virtio_blk *blk = request->blk;
    bool is_read = request->type == TYPE_IN;
    request->length =
        is_read ? request->chain.write_length - 1 : request->chain.read_length - HEADER_SIZE;
    request->position = 0;
    if (request->length % BLK_SECTOR || !sectors_fit(blk, sector, request->length / BLK_SECTOR) ||
        (!is_read && blk->disk->readonly)) {
        request_finish(request, STATUS_IOERR, 0);
    } else if (request->length == 0) {
        request_finish(request, STATUS_OK, 0);
    } else {
        request->disk.operation = is_read ? DISK_READ : DISK_WRITE;
        request->disk.offset = sector * BLK_SECTOR;
        request_transfer(request);
    }
}

static void request_identify(struct blk_request *request)
{
    struct virtio_blk *blk = request->blk;
    uint64_t room = request->chain.write_length - 1;
    uint64_t length = room < BLK_SERIAL_SIZE ? room : BLK_SERIAL_SIZE;
    bool bad = virtio_chain_write(blk->virtio.memory, &request->chain, 0, blk->serial, length);
    request_finish(request, bad ? STATUS_IOERR : STATUS_OK, bad ? 0 : length);
}

/* Discard and write zeroes: one range, as our configuration says (5.2.6). */
static void request_range(struct blk_request *request)
{
    struct virtio_blk *blk = request->blk;
    uint8_t range[RANGE_SIZE];
    bool is_discard = request->type == TYPE_DISCARD;
    if (request->chain.read_length != HEADER_SIZE + RANGE_SIZE ||
        virtio_chain_read(blk->virtio.memory, &request->chain, HEADER_SIZE, range, sizeof range)) {
        request_finish(request, STATUS_IOERR, 0);
        return;
    }
    uint64_t sector = load_le64(range);
    uint32_t count = load_le32(range + 8), flags = load_le32(range + 12);
    if (flags & ~(is_discard ? 0u : (uint32_t)RANGE_UNMAP)) {
        request_finish(request, STATUS_UNSUPPORTED, 0);
    } else if (count > BLK_RANGE_SECTORS_MAX || !sectors_fit(blk, sector, count) ||
               blk->disk->readonly) {
        request_finish(request, STATUS_IOERR, 0);
    } else if (count == 0) {
        request_finish(request, STATUS_OK, 0);
    } else {
        request->disk.operation = is_discard ? DISK_DISCARD : DISK_WRITE_ZEROES;
        request->disk.unmap = flags & RANGE_UNMAP;
        request->disk.offset = sector * BLK_SECTOR;
        request->disk.length = (uint64_t)count * BLK_SECTOR;
        request->disk.vector_count = 0;
        request_submit(request);
    }
}

static void request_start(struct blk_request *request)
{
    struct virtio_blk *blk = request->blk;
    uint8_t header[HEADER_SIZE];
    request->flushing = false;
    /* Without a header and a place for the status there is nothing that could be answered. */
    if (request->chain.write_length == 0 ||
        virtio_chain_read(blk->virtio.memory, &request->chain, 0, header, sizeof header)) {
        virtio_needs_reset(&blk->virtio);
        request_release(request);
        return;
    }
    request->type = load_le32(header);
    switch (request->type) {
    case TYPE_IN:
    case TYPE_OUT:
        request_read_write(request, load_le64(header + 8));
        break;
    case TYPE_FLUSH:
        request_flush(request);
        break;
    case TYPE_GET_ID:
        request_identify(request);
        break;
    case TYPE_DISCARD:
    case TYPE_WRITE_ZEROES:
        request_range(request);
        break;
    default:
        request_finish(request, STATUS_UNSUPPORTED, 0);
    }
}

void blk_notify(struct virtio_device *virtio, unsigned queue)
{
    struct virtio_blk *blk = blk_of(virtio);
    disk_hold(blk->disk);
    while (blk->in_flight < REQUESTS_MAX) {
        struct blk_request *request = request_take(blk);
        if (!virtio_pop(virtio, queue, &request->chain)) {
            request_release(request);
            break;
        }
        request->queue = queue;
        request_start(request);
    }
    disk_release(blk->disk);
    signal_answers(blk); /* what needed nothing of the host is answered already */
}

void blk_free_requests(struct virtio_blk *blk)
{
    while (blk->free_requests) {
        struct blk_request *request = blk->free_requests;
        blk->free_requests = request->next;
        free(request);
    }
}
