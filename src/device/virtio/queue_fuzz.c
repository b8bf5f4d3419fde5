/*
 * Virtqueues in memory that is nothing but input: whatever is popped must be whole and inside RAM,
 * and everything must end.
 * Guards: src/device/virtio/queue.c
 */
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "device/virtio/queue.h"
#include "persist/visitor.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MEMORY = 16384, PARAMETERS = 16, ROUNDS = 512 };

static void check_chain(const struct virtqueue *queue, const struct virtio_chain *chain)
{
    unsigned count = (unsigned)chain->read_count + chain->write_count;
    uint64_t read = 0, write = 0;
    ASSERT(count >= 1 && count <= VIRTQUEUE_SIZE_MAX && chain->head < queue->size);
    for (unsigned i = 0; i < count; i++) {
        const struct virtio_segment *segment = &chain->segments[i];
        ASSERT(!segment->length || range_fits(segment->gpa, segment->length, MEMORY));
        *(i < chain->read_count ? &read : &write) += segment->length;
    }
    ASSERT(read == chain->read_length && write == chain->write_length);
}

static void use_chain(struct virtqueue *queue, const struct virtio_chain *chain, uint8_t how)
{
    uint8_t bytes[64];
    uint64_t read = chain->read_length, write = chain->write_length;
    uint64_t length = read < sizeof bytes ? read : sizeof bytes;
    ASSERT(!virtio_chain_read(queue->memory, chain, read - length, bytes, length));
    ASSERT(virtio_chain_read(queue->memory, chain, read, bytes, 1));
    memset(bytes, how, sizeof bytes);
    length = write < sizeof bytes ? write : sizeof bytes;
    ASSERT(!virtio_chain_write(queue->memory, chain, write - length, bytes, length));
    ASSERT(virtio_chain_write(queue->memory, chain, write, bytes, 1));
}

/* A queue that was set up as a driver can do it is saved, reset, and loaded. */
static void save_load(struct virtqueue *queue)
{
    struct visitor *save = visitor_new_write();
    queue->enabled = virtqueue_is_sane(queue);
    virtqueue_visit(queue, save);
    size_t size;
    const void *stream = visitor_buffer(save, &size);
    struct virtqueue before = *queue;
    virtqueue_reset(queue);
    struct visitor *load = visitor_new_read(stream, size);
    virtqueue_visit(queue, load);
    ASSERT(!visitor_error(load) && queue->size == before.size);
    ASSERT(queue->descriptor_area == before.descriptor_area);
    ASSERT(queue->next_available == before.next_available);
    queue->event_index = before.event_index; /* by the features, not by the queue */
    queue->indirect = before.indirect;
    visitor_free(load);
    visitor_free(save);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct memory_range range = {.base = 0, .size = MEMORY};
    struct memory *memory;
    struct virtqueue queue;
    static struct virtio_chain chain;
    if (size < PARAMETERS || size > MEMORY) {
        return 0;
    }
    ASSERT(!memory_new(&range, 1, "fuzz", &memory));
    ASSERT(!memory_write(memory, 0, data, size));
    virtqueue_init(&queue, memory, VIRTQUEUE_SIZE_MAX);
    queue.size = (uint16_t)(1u << (data[0] % 9));
    queue.descriptor_area = load_le16(data + 1);
    queue.driver_area = load_le16(data + 3);
    queue.device_area = load_le16(data + 5);
    queue.event_index = data[7] & 1;
    queue.indirect = data[7] & 2;
    queue.next_available = queue.next_used = load_le16(data + 8);
    for (unsigned i = 0; virtqueue_is_sane(&queue) && i < ROUNDS; i++) {
        if (virtqueue_pop(&queue, &chain) <= 0) {
            break;
        }
        check_chain(&queue, &chain);
        if (data[10] &
            4) { /* put back, it comes again, unless an event index was written over it */
            uint16_t head = chain.head;
            virtqueue_unpop(&queue);
            int again = virtqueue_pop(&queue, &chain);
            ASSERT(queue.event_index || (again == 1 && chain.head == head));
            if (again <= 0) {
                break;
            }
        }
        if (data[10] & 1) {
            use_chain(&queue, &chain, data[11]);
        }
        if ((data[10] & 2) && virtqueue_push(&queue, chain.head, (uint32_t)chain.write_length)) {
            break;
        }
        ASSERT(virtqueue_wants_interrupt(&queue) >= 0);
    }
    if (data[10] & 8) {
        save_load(&queue);
    }
    memory_free(memory);
    return 0;
}
