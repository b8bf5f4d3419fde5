/*
 * virtio-9p: each chain is a message and room for the answer, both borrowed from guest memory while
 * the share works on them.
 */
#include "device/virtio/p9.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/share/share.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"
#include "persist/visitor.h"

enum {
    QUEUE_SIZE = 128,
    REQUESTS_MAX = 16, /* in flight at once; the rest waits in the ring */
    MESSAGE_MIN = 7,   /* le32 size, u8 type, le16 tag */
    TAG_AT = 5,
    ERROR_SIZE = 11,
    ERROR_TYPE = 7, /* Rlerror: le32 errno */
    GUEST_EIO = 5,
};
#define FEATURE_MOUNT_TAG (UINT64_C(1) << 0)

struct p9_request {
    struct share_request share;
    struct virtio_9p *p9;
    struct p9_request *next; /* in the list of free ones */
    unsigned out_spans;      /* the first of the spans; the others are for the answer */
    unsigned span_count;
    struct memory_span spans[VIRTQUEUE_SIZE_MAX];
    struct iovec vectors[VIRTQUEUE_SIZE_MAX];
    struct virtio_chain chain;
};
_Static_assert((int)VIRTQUEUE_SIZE_MAX <= (int)SHARE_VECTORS_MAX, "a chain fits a request");

/* The configuration: how the tag is read. */
struct p9_registers {
    uint16_t tag_length;
    char tag[VIRTIO_9P_TAG_MAX];
};

struct virtio_9p {
    struct virtio_device virtio;
    struct share *share;
    struct p9_registers registers;
    void (*report)(void *owner, const char *text);
    void *report_owner;
    struct p9_request *free_requests;
    unsigned in_flight;
    bool is_broken; /* told already */
};

static struct virtio_9p *p9_of(struct virtio_device *virtio)
{
    return CONTAINER_OF(virtio, struct virtio_9p, virtio);
}

static struct p9_request *request_take(struct virtio_9p *p9)
{
    struct p9_request *request = p9->free_requests;
    if (request) {
        p9->free_requests = request->next;
    } else {
        request = calloc(1, sizeof *request);
        ASSERT(request);
        request->p9 = p9;
    }
    request->span_count = 0;
    p9->in_flight++;
    return request;
}

static void request_release(struct p9_request *request)
{
    struct virtio_9p *p9 = request->p9;
    request->next = p9->free_requests;
    p9->free_requests = request;
    p9->in_flight--;
}

static void return_spans(struct p9_request *request, bool written)
{
    struct memory *memory = request->p9->virtio.memory;
    memory_return(memory, request->spans, request->out_spans, false);
    memory_return(memory, request->spans + request->out_spans,
                  request->span_count - request->out_spans, written);
    request->span_count = request->out_spans = 0;
}

/* An answer of our own: it did not work. */
static void answer_error(struct p9_request *request)
{
    struct virtio_device *virtio = &request->p9->virtio;
    uint8_t reply[ERROR_SIZE] = {ERROR_SIZE, 0, 0, 0, ERROR_TYPE};
    store_le32(reply + MESSAGE_MIN, GUEST_EIO);
    if (virtio_chain_read(virtio->memory, &request->chain, TAG_AT, reply + TAG_AT, 2) ||
        virtio_chain_write(virtio->memory, &request->chain, 0, reply, sizeof reply)) {
        virtio_needs_reset(virtio);
        return;
    }
    virtio_push(virtio, 0, request->chain.head, sizeof reply);
}

static void report_end(struct virtio_9p *p9)
{
    char text[160];
    if (p9->is_broken || !p9->report) {
        return;
    }
    p9->is_broken = true;
    snprintf(text, sizeof text,
             "%s: the process for the shared folder '%.*s' has ended: the guest gets I/O errors",
             p9->virtio.device.id, p9->registers.tag_length, p9->registers.tag);
    p9->report(p9->report_owner, text);
}

static void request_done(struct share_request *share_request, int result)
{
    struct p9_request *request = CONTAINER_OF(share_request, struct p9_request, share);
    struct virtio_9p *p9 = request->p9;
    pthread_mutex_lock(&p9->virtio.device.lock);
    return_spans(request, true); /* before the guest can see the answer */
    if (result > 0) {
        virtio_push(&p9->virtio, 0, request->chain.head, (uint32_t)result);
    } else {
        report_end(p9);
        answer_error(request);
    }
    bool was_full = p9->in_flight == REQUESTS_MAX;
    request_release(request);
    if (was_full) {
        virtio_serve(&p9->virtio, 0);
    }
    pthread_mutex_unlock(&p9->virtio.device.lock);
}

/* Borrow one kind of segments; -errno, with what was borrowed still in the list. */
static int borrow(struct p9_request *request, unsigned first, unsigned count, bool write)
{
    for (unsigned i = first; i < first + count; i++) {
        const struct virtio_segment *segment = &request->chain.segments[i];
        struct memory_span *spans = request->spans + request->span_count;
        int used = memory_borrow(request->p9->virtio.memory, segment->gpa, segment->length, write,
                                 spans, VIRTQUEUE_SIZE_MAX - request->span_count);
        if (used < 0) {
            return used;
        }
        for (int j = 0; j < used; j++) {
            request->vectors[request->span_count++] =
                (struct iovec){.iov_base = spans[j].host, .iov_len = spans[j].length};
        }
    }
    return 0;
}

static int borrow_all(struct p9_request *request)
{
    const struct virtio_chain *chain = &request->chain;
    int r = borrow(request, 0, chain->read_count, false);
    request->out_spans = request->span_count;
    return r ? r : borrow(request, chain->read_count, chain->write_count, true);
}

static void request_start(struct p9_request *request)
{
    struct virtio_9p *p9 = request->p9;
    const struct virtio_chain *chain = &request->chain;
    /* No message, or no room even for an error: nothing that could be answered. */
    if (chain->read_length < MESSAGE_MIN || chain->read_length > SHARE_MESSAGE_MAX ||
        chain->write_length < ERROR_SIZE) {
        virtio_needs_reset(&p9->virtio);
        request_release(request);
        return;
    }
    if (borrow_all(request)) {
        trail_clear();
        return_spans(request, false);
        answer_error(request);
        request_release(request);
        return;
    }
    uint64_t room = chain->write_length;
    request->share = (struct share_request){
        .out = request->vectors,
        .in = request->vectors + request->out_spans,
        .out_count = request->out_spans,
        .in_count = request->span_count - request->out_spans,
        .out_length = (uint32_t)chain->read_length,
        .in_length = (uint32_t)(room < SHARE_MESSAGE_MAX ? room : SHARE_MESSAGE_MAX),
        .done = request_done,
    };
    share_submit(p9->share, &request->share);
}

static void p9_notify(struct virtio_device *virtio, unsigned queue)
{
    struct virtio_9p *p9 = p9_of(virtio);
    while (p9->in_flight < REQUESTS_MAX) {
        struct p9_request *request = request_take(p9);
        if (!virtio_pop(virtio, queue, &request->chain)) {
            request_release(request);
            return;
        }
        request_start(request);
    }
}

static void p9_config_read(struct virtio_device *virtio, uint32_t offset, void *bytes,
                           unsigned size)
{
    memcpy(bytes, (const uint8_t *)&p9_of(virtio)->registers + offset, size);
}

/* The driver is gone, and with it whoever held names. */
static void p9_reset(struct virtio_device *virtio)
{
    share_forget(p9_of(virtio)->share);
}

static void p9_drain(struct virtio_device *virtio)
{
    share_drain(p9_of(virtio)->share);
}

static void p9_visit(struct virtio_device *virtio, struct visitor *v)
{
    struct virtio_9p *p9 = p9_of(virtio);
    struct p9_registers registers = p9->registers;
    ASSERT(p9->in_flight == 0 || visitor_mode(v) == VISITOR_PRINT);
    visit_bytes(v, "tag", registers.tag, sizeof registers.tag);
    if (visitor_mode(v) == VISITOR_WRITE && share_is_used(p9->share)) {
        visitor_fail(v, -EBUSY,
                     "the guest has mounted a shared folder, and what it has open there is the "
                     "host's: unmount it in the guest before the machine is saved");
    }
    if (visitor_mode(v) == VISITOR_READ && !visitor_error(v)) {
        if (memcmp(registers.tag, p9->registers.tag, sizeof registers.tag)) {
            visitor_fail(v, -EINVAL, "a shared folder was saved with another tag");
        }
        share_forget(p9->share);
    }
}

static void p9_free(struct virtio_device *virtio)
{
    struct virtio_9p *p9 = p9_of(virtio);
    share_drain(p9->share);
    share_free(p9->share);
    while (p9->free_requests) {
        struct p9_request *request = p9->free_requests;
        p9->free_requests = request->next;
        free(request);
    }
    virtio_fini(virtio);
    free(p9);
}

static const struct virtio_ops p9_ops = {
    .type = VIRTIO_TYPE_9P,
    .queue_count = 1,
    .queue_size = QUEUE_SIZE,
    .config_size = sizeof(struct p9_registers),
    .config_read = p9_config_read,
    .notify = p9_notify,
    .reset = p9_reset,
    .drain = p9_drain,
    .visit = p9_visit,
    .free = p9_free,
};
static const struct device_ops device_ops = VIRTIO_DEVICE_OPS("virtio-9p");

int virtio_9p_new(const struct virtio_9p_config *config, const char *id,
                  struct virtio_device **ret_virtio)
{
    size_t length = strlen(config->tag);
    if (length == 0 || length > VIRTIO_9P_TAG_MAX) {
        return fail(-EINVAL, "%s: a tag has 1 to %d bytes", id, VIRTIO_9P_TAG_MAX);
    }
    struct virtio_9p *p9 = calloc(1, sizeof *p9);
    ASSERT(p9);
    p9->share = config->share;
    p9->report = config->report;
    p9->report_owner = config->owner;
    p9->registers.tag_length = (uint16_t)length;
    memcpy(p9->registers.tag, config->tag, length);
    virtio_init(&p9->virtio, &device_ops, &p9_ops, config->memory, FEATURE_MOUNT_TAG, id);
    *ret_virtio = &p9->virtio;
    return 0;
}
