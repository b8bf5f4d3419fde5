/*
 * What all virtio devices share: the status machine, features, the way to and from the queues, and
 * reset, pause and saved state in terms of them.
 */
#include "device/virtio/virtio.h"

#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"
#include "persist/visitor.h"

/*
 * Chains taken within one call. A driver's other CPUs can keep a ring filled, and a hostile one
 * can make the rings feed each other; no honest driver fills a ring as fast as it is emptied for
 * so long.
 */
enum { BUDGET = 65536 };

static struct virtio_device *virtio_of(struct device *device)
{
    return CONTAINER_OF(device, struct virtio_device, device);
}

void virtio_init(struct virtio_device *virtio, const struct device_ops *device_ops,
                 const struct virtio_ops *ops, struct memory *memory, uint64_t features,
                 const char *id)
{
    ASSERT(ops->queue_size <= VIRTQUEUE_SIZE_MAX);
    *virtio = (struct virtio_device){
        .ops = ops,
        .memory = memory,
        .features_offered =
            features | VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX,
    };
    device_init(&virtio->device, device_ops, id);
    virtio_set_queue_count(virtio, ops->queue_count);
}

void virtio_set_queue_count(struct virtio_device *virtio, unsigned count)
{
    ASSERT(count <= VIRTIO_QUEUES_MAX && !virtio->transport);
    virtio->queue_count = (uint16_t)count;
    for (unsigned i = 0; i < count; i++) {
        virtqueue_init(&virtio->queues[i], virtio->memory, virtio->ops->queue_size);
    }
}

void virtio_fini(struct virtio_device *virtio)
{
    if (virtio->transport) {
        virtio->transport_ops->free(virtio->transport);
    }
    device_fini(&virtio->device);
}

bool virtio_queue_is_live(const struct virtio_device *virtio, unsigned queue)
{
    uint8_t relevant = VIRTIO_FEATURES_OK | VIRTIO_DRIVER_OK | VIRTIO_NEEDS_RESET | VIRTIO_FAILED;
    return (virtio->status & relevant) == (VIRTIO_FEATURES_OK | VIRTIO_DRIVER_OK) &&
           !virtio->paused && !virtio->resetting && queue < virtio->queue_count &&
           virtio->queues[queue].enabled;
}

void virtio_serve(struct virtio_device *virtio, unsigned queue)
{
    if (virtio_queue_is_live(virtio, queue)) {
        virtio->budget = BUDGET;
        virtio->ops->notify(virtio, queue);
    }
}

static void serve_all(struct virtio_device *virtio)
{
    for (unsigned i = 0; i < virtio->queue_count; i++) {
        virtio_serve(virtio, i);
    }
}

bool virtio_pop(struct virtio_device *virtio, unsigned queue, struct virtio_chain *ret_chain)
{
    if (!virtio_queue_is_live(virtio, queue)) {
        return false;
    }
    int found = virtqueue_pop(&virtio->queues[queue], ret_chain);
    if (found < 0 || (found && virtio->budget-- == 0)) {
        virtio_needs_reset(virtio);
        return false;
    }
    return found;
}

/* Paused is fine: a request in flight may end. */
static bool may_answer(const struct virtio_device *virtio)
{
    return !virtio->resetting && !(virtio->status & VIRTIO_NEEDS_RESET);
}

void virtio_put(struct virtio_device *virtio, unsigned queue, uint16_t head, uint32_t written)
{
    if (may_answer(virtio) && virtqueue_push(&virtio->queues[queue], head, written)) {
        virtio_needs_reset(virtio);
    }
}

void virtio_fill(struct virtio_device *virtio, unsigned queue, uint16_t place, uint16_t head,
                 uint32_t written)
{
    if (may_answer(virtio) && virtqueue_fill(&virtio->queues[queue], place, head, written)) {
        virtio_needs_reset(virtio);
    }
}

void virtio_publish(struct virtio_device *virtio, unsigned queue, uint16_t count)
{
    if (may_answer(virtio) && virtqueue_publish(&virtio->queues[queue], count)) {
        virtio_needs_reset(virtio);
    }
}

void virtio_signal(struct virtio_device *virtio, unsigned queue)
{
    if (!may_answer(virtio)) {
        return;
    }
    int wanted = virtqueue_wants_interrupt(&virtio->queues[queue]);
    if (wanted < 0) {
        virtio_needs_reset(virtio);
    } else if (wanted && virtio->transport) {
        virtio->transport_ops->queue_interrupt(virtio->transport, queue);
    }
}

void virtio_push(struct virtio_device *virtio, unsigned queue, uint16_t head, uint32_t written)
{
    virtio_put(virtio, queue, head, written);
    virtio_signal(virtio, queue);
}

void virtio_config_changed(struct virtio_device *virtio)
{
    virtio->config_generation++;
    if ((virtio->status & VIRTIO_DRIVER_OK) && virtio->transport) {
        virtio->transport_ops->config_interrupt(virtio->transport);
    }
}

void virtio_needs_reset(struct virtio_device *virtio)
{
    if (!(virtio->status & VIRTIO_NEEDS_RESET)) {
        virtio->status |= VIRTIO_NEEDS_RESET;
        virtio_config_changed(virtio);
    }
}

/* The lock is held, but let go while host requests come to their end. */
static void reset_by_driver(struct virtio_device *virtio)
{
    if (virtio->resetting) {
        return;
    }
    virtio->resetting = true;
    if (virtio->ops->drain) {
        pthread_mutex_unlock(&virtio->device.lock);
        virtio->ops->drain(virtio);
        pthread_mutex_lock(&virtio->device.lock);
    }
    virtio->status = 0;
    virtio->features_accepted = 0;
    for (unsigned i = 0; i < virtio->queue_count; i++) {
        virtqueue_reset(&virtio->queues[i]);
    }
    if (virtio->ops->reset) {
        virtio->ops->reset(virtio);
    }
    if (virtio->transport) {
        virtio->transport_ops->reset(virtio->transport);
    }
    virtio->resetting = false;
}

static void settle_features(struct virtio_device *virtio)
{
    for (unsigned i = 0; i < virtio->queue_count; i++) {
        virtio->queues[i].event_index = virtio_has(virtio, VIRTIO_F_EVENT_IDX);
        virtio->queues[i].indirect = virtio_has(virtio, VIRTIO_F_INDIRECT_DESC);
    }
}

static bool features_are_good(const struct virtio_device *virtio)
{
    return !(virtio->features_accepted & ~virtio->features_offered) &&
           virtio_has(virtio, VIRTIO_F_VERSION_1);
}

void virtio_set_status(struct virtio_device *virtio, uint8_t status)
{
    if (status == 0) {
        reset_by_driver(virtio);
        return;
    }
    if (virtio->resetting) {
        return;
    }
    uint8_t before = virtio->status;
    status = (uint8_t)(status & ~VIRTIO_NEEDS_RESET) | (before & VIRTIO_NEEDS_RESET);
    if ((status & ~before & VIRTIO_FEATURES_OK)) {
        /* The driver reads the bit back: left clear, we did not agree (2.2.2). */
        if (features_are_good(virtio)) {
            settle_features(virtio);
        } else {
            status &= (uint8_t)~VIRTIO_FEATURES_OK;
        }
    }
    virtio->status = status;
    if (status & ~before & VIRTIO_DRIVER_OK) {
        if (virtio->ops->ready) {
            virtio->ops->ready(virtio);
        }
        serve_all(virtio); /* buffers may have been offered before */
    }
}

void virtio_set_features(struct virtio_device *virtio, unsigned word, uint32_t features)
{
    if (word > 1 || virtio->resetting || (virtio->status & VIRTIO_FEATURES_OK)) {
        return;
    }
    uint64_t mask = UINT64_C(0xffffffff) << (32 * word);
    virtio->features_accepted = (virtio->features_accepted & ~mask) | (uint64_t)features
                                                                          << (32 * word);
}

void virtio_enable_queue(struct virtio_device *virtio, unsigned queue)
{
    if (queue >= virtio->queue_count || virtio->resetting) {
        return;
    }
    if (virtqueue_is_sane(&virtio->queues[queue])) {
        virtio->queues[queue].enabled = true;
    } else {
        virtio_needs_reset(virtio);
    }
}

uint64_t virtio_config_read(struct virtio_device *virtio, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    if (size <= sizeof value && range_fits(offset, size, virtio->ops->config_size)) {
        virtio->ops->config_read(virtio, (uint32_t)offset, &value, size);
    }
    return value;
}

void virtio_config_write(struct virtio_device *virtio, uint64_t offset, unsigned size,
                         uint64_t value)
{
    if (virtio->ops->config_write && size <= sizeof value &&
        range_fits(offset, size, virtio->ops->config_size)) {
        virtio->ops->config_write(virtio, (uint32_t)offset, &value, size);
    }
}

void virtio_device_reset(struct device *device)
{
    struct virtio_device *virtio = virtio_of(device);
    pthread_mutex_lock(&device->lock);
    reset_by_driver(virtio);
    pthread_mutex_unlock(&device->lock);
    if (virtio->transport) {
        virtio->transport_ops->power_on(virtio->transport);
    }
}

void virtio_device_pause(struct device *device)
{
    struct virtio_device *virtio = virtio_of(device);
    pthread_mutex_lock(&device->lock);
    virtio->paused = true;
    pthread_mutex_unlock(&device->lock);
    if (virtio->ops->drain) {
        virtio->ops->drain(virtio);
    }
}

void virtio_device_resume(struct device *device)
{
    struct virtio_device *virtio = virtio_of(device);
    if (virtio->ops->resume) {
        virtio->ops->resume(virtio);
    }
    pthread_mutex_lock(&device->lock);
    virtio->paused = false;
    serve_all(virtio);
    pthread_mutex_unlock(&device->lock);
}

static void visit_queues(struct virtio_device *virtio, struct visitor *v)
{
    uint16_t count = virtio->queue_count;
    visit_u16(v, "queue_count", &count);
    if (visitor_mode(v) == VISITOR_READ && !visitor_error(v) && count != virtio->queue_count) {
        visitor_fail(v, -EINVAL, "a virtio device was saved with another number of queues");
        return;
    }
    for (unsigned i = 0; i < virtio->queue_count; i++) {
        struct virtqueue *queue = &virtio->queues[i];
        visit_begin(v, "queue", 1);
        virtqueue_visit(queue, v);
        /* A pause waits for all chains; only a broken driver's are never given back. */
        if (visitor_mode(v) == VISITOR_READ && !visitor_error(v) && queue->enabled &&
            queue->next_available != queue->next_used && !(virtio->status & VIRTIO_NEEDS_RESET)) {
            visitor_fail(v, -EINVAL, "a virtqueue was saved with requests in flight");
        }
        visit_end(v);
    }
}

/* The machine stands still. Moving BARs waits for the lock's other holders: not with it held. */
void virtio_device_visit(struct device *device, struct visitor *v)
{
    struct virtio_device *virtio = virtio_of(device);
    visit_begin(v, device->ops->name, 1);
    pthread_mutex_lock(&device->lock);
    visit_u64(v, "features", &virtio->features_accepted);
    visit_u8(v, "status", &virtio->status);
    visit_u8(v, "config_generation", &virtio->config_generation);
    if (visitor_mode(v) == VISITOR_READ && !visitor_error(v)) {
        if ((virtio->status & VIRTIO_FEATURES_OK) && !features_are_good(virtio)) {
            visitor_fail(v, -EINVAL, "a virtio device was saved with features we do not offer");
        } else if (virtio->status & VIRTIO_FEATURES_OK) {
            settle_features(virtio);
        }
    }
    visit_queues(virtio, v);
    if (virtio->ops->visit) {
        virtio->ops->visit(virtio, v);
    }
    pthread_mutex_unlock(&device->lock);
    if (virtio->transport) {
        virtio->transport_ops->visit(virtio->transport, v);
    }
    visit_end(v);
}

void virtio_device_free(struct device *device)
{
    struct virtio_device *virtio = virtio_of(device);
    virtio->ops->free(virtio);
}
