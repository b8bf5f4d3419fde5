/*
 * I/O commands (6): each becomes a request that owns itself from the submission queue to the
 * answer. Its data is borrowed from guest memory as a whole, which MDTS bounds; compare and
 * deallocate have a buffer of ours.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/error.h"
#include "device/storage/nvme_internal.h"

enum {
    FLUSH = 0x00,
    WRITE = 0x01,
    READ = 0x02,
    COMPARE = 0x05,
    WRITE_ZEROES = 0x08,
    DATASET_MANAGEMENT = 0x09,
    FUSED_MASK = 3,
    DEALLOCATE = 1 << 2,        /* in dw11 of dataset management */
    COMPARE_PIECE = 65536,      /* bytes read at once */
    RANGE_SIZE = 16,            /* le32 attributes, le32 blocks, le64 first block (6.7) */
    NO_QUEUE = NVME_QUEUES_MAX, /* a request of the controller itself */
};
/* In dw12. */
#define FORCE_UNIT_ACCESS (UINT32_C(1) << 30)
#define MAY_DEALLOCATE    (UINT32_C(1) << 25)

struct nvme_request {
    struct disk_request disk; /* the piece in flight */
    struct nvme *nvme;
    struct nvme_request *next; /* in the list of free ones */
    unsigned queue;
    uint16_t id;
    uint8_t opcode;
    bool is_durable; /* flush before the answer */
    bool flushing;
    uint64_t length;   /* compare: bytes in all */
    uint64_t position; /* compare: bytes done; deallocate: ranges done */
    unsigned range_count;
    uint8_t *buffer; /* compare: what the disk has; deallocate: the ranges */
    struct iovec buffer_vector;
    unsigned span_count;
    struct memory_span spans[NVME_SEGMENTS_MAX];
    struct iovec vectors[NVME_SEGMENTS_MAX];
    struct nvme_data data;
};

static struct nvme_request *request_take(struct nvme *nvme, unsigned queue, uint16_t id,
                                         uint8_t opcode)
{
    struct nvme_request *request = nvme->free_requests;
    if (request) {
        nvme->free_requests = request->next;
    } else {
        request = malloc(sizeof *request);
        ASSERT(request);
    }
    memset(request, 0, offsetof(struct nvme_request, spans));
    request->nvme = nvme;
    request->queue = queue;
    request->id = id;
    request->opcode = opcode;
    nvme->in_flight++;
    return request;
}

static void request_release(struct nvme_request *request)
{
    struct nvme *nvme = request->nvme;
    free(request->buffer);
    request->next = nvme->free_requests;
    nvme->free_requests = request;
    nvme->in_flight--;
}

static void request_finish(struct nvme_request *request, uint16_t status)
{
    struct nvme *nvme = request->nvme;
    if (request->queue == NO_QUEUE) {
        nvme->csts = (nvme->csts & ~(uint32_t)NVME_CSTS_SHUTDOWN) | NVME_CSTS_SHUT_DOWN;
    } else {
        nvme_answer(nvme, request->queue, request->id, status, 0);
    }
    request_release(request);
}

/* The host failed a command: tell the user, not too often. */
static void report_failure(struct nvme_request *request, int error)
{
    struct nvme *nvme = request->nvme;
    nvme->media_errors++;
    uint64_t now = nvme->clock.ops ? clock_now(nvme->clock) : UINT64_MAX;
    if (!nvme->report || now < nvme->next_report_ns) {
        return;
    }
    nvme->next_report_ns = nvme->clock.ops ? now + UINT64_C(1000000000) : 0;
    char reason[64], text[200];
    snprintf(text, sizeof text, "%s: %s the disk failed at byte %llu: %s", nvme->device.id,
             disk_operation_text(request->disk.operation), (unsigned long long)request->disk.offset,
             strerror_r(-error, reason, sizeof reason));
    nvme->report(nvme->report_owner, error, text);
}

static uint16_t status_of(const struct nvme_request *request, int error)
{
    uint16_t status = request->disk.operation == DISK_READ ? NVME_READ_ERROR : NVME_WRITE_FAULT;
    return (error == -ENOSPC ? NVME_CAPACITY : status) | NVME_DO_NOT_RETRY;
}

static void return_spans(struct nvme_request *request)
{
    memory_return(request->nvme->memory, request->spans, request->span_count,
                  request->opcode == READ);
    request->span_count = 0;
}

static void request_done(struct disk_request *disk_request, int result);

static void request_submit(struct nvme_request *request, enum disk_operation operation)
{
    request->disk.operation = operation;
    request->disk.done = request_done;
    int error = disk_submit(request->nvme->disk, &request->disk);
    if (error) {
        trail_clear();
        return_spans(request);
        request_finish(request, NVME_INTERNAL_ERROR | NVME_DO_NOT_RETRY);
    }
}

static void request_flush(struct nvme_request *request)
{
    request->flushing = true;
    request->disk.offset = request->disk.length = 0;
    request->disk.vector_count = 0;
    request_submit(request, DISK_FLUSH);
}

/* The next piece of a comparison. */
static void compare_piece(struct nvme_request *request)
{
    uint64_t left = request->length - request->position;
    request->disk.length = left < COMPARE_PIECE ? left : COMPARE_PIECE;
    request->buffer_vector = (struct iovec){request->buffer, request->disk.length};
    request->disk.vectors = &request->buffer_vector;
    request->disk.vector_count = 1;
    request_submit(request, DISK_READ);
}

/* A piece of the disk is in the buffer: is the same in guest memory? */
static uint16_t compare_buffer(const struct nvme_request *request)
{
    uint8_t bytes[NVME_PAGE];
    uint64_t skip = request->position, done = 0;
    for (unsigned i = 0; i < request->data.count && done < request->disk.length; i++) {
        const struct nvme_segment *segment = &request->data.segments[i];
        for (uint64_t at = skip; at < segment->length && done < request->disk.length;) {
            uint64_t size = segment->length - at;
            size = size < sizeof bytes ? size : sizeof bytes;
            size = size < request->disk.length - done ? size : request->disk.length - done;
            if (memory_read(request->nvme->memory, segment->gpa + at, bytes, size)) {
                return NVME_TRANSFER_ERROR | NVME_DO_NOT_RETRY;
            }
            if (memcmp(bytes, request->buffer + done, size)) {
                return NVME_COMPARE_FAILED | NVME_DO_NOT_RETRY;
            }
            at += size;
            done += size;
        }
        skip -= skip < segment->length ? skip : segment->length;
    }
    return NVME_OK;
}

/* The next range of a deallocation that has blocks in it; they were checked. */
static void deallocate_range(struct nvme_request *request)
{
    while (request->position < request->range_count) {
        const uint8_t *range = request->buffer + RANGE_SIZE * request->position++;
        request->disk.length = (uint64_t)load_le32(range + 4) * NVME_BLOCK;
        request->disk.offset = load_le64(range + 8) * NVME_BLOCK;
        request->disk.vector_count = 0;
        if (request->disk.length) {
            request_submit(request, DISK_DISCARD);
            return;
        }
    }
    request_finish(request, NVME_OK);
}

/* A piece came back: the next one, or the answer. */
static void request_continue(struct nvme_request *request, int result)
{
    if (result) {
        report_failure(request, result);
        request_finish(request, status_of(request, result));
    } else if (request->nvme->resetting) {
        request_release(request); /* nobody waits for the rest */
    } else if (request->is_durable && !request->flushing) {
        request_flush(request);
    } else if (request->opcode == COMPARE) {
        uint16_t status = compare_buffer(request);
        request->position += request->disk.length;
        request->disk.offset += request->disk.length;
        if (status || request->position == request->length) {
            request_finish(request, status);
        } else {
            compare_piece(request);
        }
    } else if (request->opcode == DATASET_MANAGEMENT) {
        deallocate_range(request);
    } else {
        request_finish(request, NVME_OK);
    }
}

static void request_done(struct disk_request *disk_request, int result)
{
    struct nvme_request *request = CONTAINER_OF(disk_request, struct nvme_request, disk);
    struct nvme *nvme = request->nvme;
    pthread_mutex_lock(&nvme->device.lock);
    return_spans(request); /* before the guest can see the answer */
    bool was_full = nvme->in_flight == NVME_REQUESTS_MAX, more = disk_request->more;
    unsigned queue = request->queue;
    request_continue(request, result);
    if (was_full) {
        nvme_serve_all(nvme, queue);
    }
    if (!more) {
        nvme_signal(nvme);
    }
    pthread_mutex_unlock(&nvme->device.lock);
}

/* Borrow all of the data, for the host to read or write. */
static uint16_t borrow(struct nvme_request *request)
{
    for (unsigned i = 0; i < request->data.count; i++) {
        const struct nvme_segment *segment = &request->data.segments[i];
        unsigned room = NVME_SEGMENTS_MAX - request->span_count;
        struct memory_span *spans = request->spans + request->span_count;
        int count = memory_borrow(request->nvme->memory, segment->gpa, segment->length,
                                  request->opcode == READ, spans, room);
        if (count < 0) {
            trail_clear();
            memory_return(request->nvme->memory, request->spans, request->span_count, false);
            request->span_count = 0;
            return count == -EFAULT ? NVME_TRANSFER_ERROR | NVME_DO_NOT_RETRY : NVME_INTERNAL_ERROR;
        }
        for (int j = 0; j < count; j++) {
            request->vectors[request->span_count++] =
                (struct iovec){.iov_base = spans[j].host, .iov_len = spans[j].length};
        }
    }
    return NVME_OK;
}

/* The blocks of a command, all of which are there and may be changed if that is what it does. */
static uint16_t check_blocks(const struct nvme *nvme, const struct nvme_command *command,
                             bool is_change, uint64_t *ret_first, uint64_t *ret_count)
{
    *ret_first = command->dw10 | (uint64_t)command->dw11 << 32;
    *ret_count = (command->dw12 & 0xffff) + UINT64_C(1);
    if (is_change && nvme->disk->readonly) {
        return NVME_WRITE_PROTECTED;
    }
    return range_fits(*ret_first, *ret_count, nvme->disk->size / NVME_BLOCK) ? NVME_OK
                                                                             : NVME_OUT_OF_RANGE;
}

static void count_transfer(struct nvme *nvme, const struct nvme_command *command, uint64_t blocks)
{
    bool is_write = command->opcode == WRITE;
    *(is_write ? &nvme->writes : &nvme->reads) += 1;
    *(is_write ? &nvme->blocks_written : &nvme->blocks_read) += blocks;
}

/* Read, write and compare. A status: it is answered now; none: it is on its way. */
static uint16_t transfer(struct nvme *nvme, struct nvme_request *request,
                         const struct nvme_command *command)
{
    uint64_t first, count;
    uint16_t status = check_blocks(nvme, command, command->opcode == WRITE, &first, &count);
    request->length = count * NVME_BLOCK;
    if (!status && request->length > NVME_TRANSFER_MAX) {
        status = NVME_INVALID_FIELD;
    }
    status = status ? status : nvme_map(nvme, command, request->length, &request->data);
    if (status) {
        return status | NVME_DO_NOT_RETRY;
    }
    count_transfer(nvme, command, count);
    request->disk.offset = first * NVME_BLOCK;
    if (command->opcode == COMPARE) {
        request->buffer = malloc(COMPARE_PIECE);
        ASSERT(request->buffer);
        compare_piece(request);
        return NVME_OK;
    }
    status = borrow(request);
    if (status) {
        return status;
    }
    bool is_write = command->opcode == WRITE;
    request->is_durable = is_write && (!nvme->write_cache || (command->dw12 & FORCE_UNIT_ACCESS));
    request->disk.length = request->length;
    request->disk.vectors = request->vectors;
    request->disk.vector_count = request->span_count;
    request_submit(request, is_write ? DISK_WRITE : DISK_READ);
    return NVME_OK;
}

static uint16_t write_zeroes(struct nvme *nvme, struct nvme_request *request,
                             const struct nvme_command *command)
{
    uint64_t first, count;
    uint16_t status = check_blocks(nvme, command, true, &first, &count);
    if (status) {
        return status | NVME_DO_NOT_RETRY;
    }
    request->is_durable = !nvme->write_cache || (command->dw12 & FORCE_UNIT_ACCESS);
    request->disk.offset = first * NVME_BLOCK;
    request->disk.length = count * NVME_BLOCK;
    request->disk.vector_count = 0;
    request->disk.unmap = command->dw12 & MAY_DEALLOCATE;
    request_submit(request, DISK_WRITE_ZEROES);
    return NVME_OK;
}

/* The ranges, copied and checked; what is not about deallocation is advice that we do not need. */
static uint16_t manage(struct nvme *nvme, struct nvme_request *request,
                       const struct nvme_command *command)
{
    request->range_count = (command->dw10 & 0xff) + 1;
    uint64_t size = (uint64_t)request->range_count * RANGE_SIZE, done = 0;
    uint16_t status = nvme_map(nvme, command, size, &request->data);
    if (status) {
        return status | NVME_DO_NOT_RETRY;
    }
    request->buffer = malloc(size);
    ASSERT(request->buffer);
    for (unsigned i = 0; i < request->data.count; i++) {
        const struct nvme_segment *segment = &request->data.segments[i];
        if (memory_read(nvme->memory, segment->gpa, request->buffer + done, segment->length)) {
            return NVME_TRANSFER_ERROR | NVME_DO_NOT_RETRY;
        }
        done += segment->length;
    }
    for (unsigned i = 0; i < request->range_count; i++) {
        const uint8_t *range = request->buffer + RANGE_SIZE * i;
        if (!range_fits(load_le64(range + 8), load_le32(range + 4),
                        nvme->disk->size / NVME_BLOCK)) {
            return NVME_OUT_OF_RANGE | NVME_DO_NOT_RETRY;
        }
    }
    if (!(command->dw11 & DEALLOCATE)) {
        request->range_count = 0;
    } else if (nvme->disk->readonly) {
        return NVME_WRITE_PROTECTED | NVME_DO_NOT_RETRY;
    }
    deallocate_range(request);
    return NVME_OK;
}

static uint16_t begin(struct nvme *nvme, struct nvme_request *request,
                      const struct nvme_command *command)
{
    bool is_all = command->namespace_id == (uint32_t)NVME_ALL_NAMESPACES;
    if (command->flags & FUSED_MASK) {
        return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    }
    if (command->namespace_id != NVME_NAMESPACE && !(is_all && command->opcode == FLUSH)) {
        return NVME_INVALID_NAMESPACE | NVME_DO_NOT_RETRY;
    }
    switch (command->opcode) {
    case FLUSH:
        request_flush(request);
        return NVME_OK;
    case READ:
    case WRITE:
    case COMPARE:
        return transfer(nvme, request, command);
    case WRITE_ZEROES:
        return write_zeroes(nvme, request, command);
    case DATASET_MANAGEMENT:
        return manage(nvme, request, command);
    default:
        return NVME_INVALID_OPCODE | NVME_DO_NOT_RETRY;
    }
}

void nvme_io(struct nvme *nvme, unsigned queue, const struct nvme_command *command)
{
    struct nvme_request *request = request_take(nvme, queue, command->id, command->opcode);
    uint16_t status = begin(nvme, request, command);
    if (status) {
        request_finish(request, status);
    }
}

void nvme_shut_down(struct nvme *nvme)
{
    request_flush(request_take(nvme, NO_QUEUE, 0, FLUSH));
}

void nvme_free_requests(struct nvme *nvme)
{
    while (nvme->free_requests) {
        struct nvme_request *request = nvme->free_requests;
        nvme->free_requests = request->next;
        free(request);
    }
}
