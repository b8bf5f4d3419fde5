/*
 * Split virtqueues: taking chains from the available ring and giving them back through the used
 * ring. The driver may change the rings at any time and lie in every field.
 */
#include "device/virtio/queue.h"

#include "base/bytes.h"
#include "base/error.h"
#include "persist/visitor.h"

/* Layout of the rings (2.7.5 to 2.7.8). */
enum {
    DESCRIPTOR_SIZE = 16,
    DESCRIPTOR_NEXT = 1,
    DESCRIPTOR_WRITE = 2,
    DESCRIPTOR_INDIRECT = 4,
    RING_INDEX = 2, /* both rings: le16 flags, le16 index, entries */
    RING_ENTRIES = 4,
    AVAILABLE_ENTRY_SIZE = 2,
    AVAILABLE_NO_INTERRUPT = 1,
    USED_ENTRY_SIZE = 8,
};

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};
_Static_assert(sizeof(struct descriptor) == DESCRIPTOR_SIZE, "as the guest lays it out");

/*
 * Memory's doors load and store in program order, and so does an x86 host (SDM volume 3, 9.2.2);
 * only a store and a later load can change places, where both sides must not miss each other.
 */
static inline void order_store_before_load(void)
{
    __asm__ volatile("mfence" : : : "memory");
}

void virtqueue_init(struct virtqueue *queue, struct memory *memory, uint16_t size_max)
{
    *queue = (struct virtqueue){.memory = memory, .size_max = size_max, .size = size_max};
}

void virtqueue_reset(struct virtqueue *queue)
{
    virtqueue_init(queue, queue->memory, queue->size_max);
}

bool virtqueue_is_sane(const struct virtqueue *queue)
{
    uint64_t size = queue->size;
    bool aligned = queue->descriptor_area % 16 == 0 && queue->driver_area % 2 == 0 &&
                   queue->device_area % 4 == 0;
    return size > 0 && size <= queue->size_max && (size & (size - 1)) == 0 && aligned &&
           memory_is_ram(queue->memory, queue->descriptor_area, size * DESCRIPTOR_SIZE) &&
           memory_is_ram(queue->memory, queue->driver_area,
                         RING_ENTRIES + size * AVAILABLE_ENTRY_SIZE + 2) &&
           memory_is_ram(queue->memory, queue->device_area,
                         RING_ENTRIES + size * USED_ENTRY_SIZE + 2);
}

void virtqueue_visit(struct virtqueue *queue, struct visitor *v)
{
    visit_u16_max(v, "size", &queue->size, queue->size_max);
    visit_bool(v, "enabled", &queue->enabled);
    visit_u64(v, "descriptor_area", &queue->descriptor_area);
    visit_u64(v, "driver_area", &queue->driver_area);
    visit_u64(v, "device_area", &queue->device_area);
    visit_u16(v, "next_available", &queue->next_available);
    visit_u16(v, "next_used", &queue->next_used);
    visit_u16(v, "signalled_used", &queue->signalled_used);
    visit_bool(v, "signalled_valid", &queue->signalled_valid);
    if (visitor_mode(v) == VISITOR_READ && !visitor_error(v) && queue->enabled &&
        !virtqueue_is_sane(queue)) {
        visitor_fail(v, -EINVAL, "a virtqueue is enabled at an impossible place");
    }
}

/* A 16-bit field of a ring. */
static int read_field(const struct virtqueue *queue, gpa_t gpa, uint16_t *ret_value)
{
    return memory_read(queue->memory, gpa, ret_value, sizeof *ret_value) ? -EPROTO : 0;
}

/* Ask the driver to notify us of the entry after the last one we took (2.7.10). */
static int arm_notification(struct virtqueue *queue)
{
    gpa_t event = queue->device_area + RING_ENTRIES + (uint64_t)queue->size * USED_ENTRY_SIZE;
    return memory_write(queue->memory, event, &queue->next_available, 2) ? -EPROTO : 0;
}

/* 1 with the head of the next chain, 0 if the driver offers none, -EPROTO. */
static int next_head(struct virtqueue *queue, uint16_t *ret_head)
{
    uint16_t available;
    if (read_field(queue, queue->driver_area + RING_INDEX, &available)) {
        return -EPROTO;
    }
    if (available == queue->next_available && queue->event_index) {
        /* Look again after asking: an entry put in between would come without a notification. */
        if (arm_notification(queue)) {
            return -EPROTO;
        }
        order_store_before_load();
        if (read_field(queue, queue->driver_area + RING_INDEX, &available)) {
            return -EPROTO;
        }
    }
    if (available == queue->next_available) {
        return 0;
    }
    /* More entries than the ring holds, or more chains in flight than descriptors: nonsense. */
    if ((uint16_t)(available - queue->next_available) > queue->size ||
        (uint16_t)(queue->next_available - queue->next_used) >= queue->size) {
        return -EPROTO;
    }
    /* The driver wrote the entry before the index. */
    uint64_t slot = queue->next_available & (queue->size - 1u);
    gpa_t entry = queue->driver_area + RING_ENTRIES + slot * AVAILABLE_ENTRY_SIZE;
    return read_field(queue, entry, ret_head) ? -EPROTO : 1;
}

static int append_segment(struct memory *memory, struct virtio_chain *chain,
                          const struct descriptor *descriptor)
{
    bool write = descriptor->flags & DESCRIPTOR_WRITE;
    unsigned count = (unsigned)chain->read_count + chain->write_count;
    uint64_t total = chain->read_length + chain->write_length + descriptor->length;
    /* What the device reads comes first (2.7.4.2); 2^32 bytes are the limit of a chain (2.7.5). */
    if (count == VIRTQUEUE_SIZE_MAX || total > UINT32_MAX || (!write && chain->write_count) ||
        (descriptor->length && !memory_is_ram(memory, descriptor->address, descriptor->length))) {
        return -EPROTO;
    }
    chain->segments[count] = (struct virtio_segment){descriptor->address, descriptor->length};
    if (write) {
        chain->write_count++;
        chain->write_length += descriptor->length;
    } else {
        chain->read_count++;
        chain->read_length += descriptor->length;
    }
    return 0;
}

/* Follow a chain; ends because append_segment() takes a bounded number and we go indirect once. */
static int walk_chain(struct virtqueue *queue, uint16_t head, struct virtio_chain *chain)
{
    gpa_t table = queue->descriptor_area;
    uint32_t count = queue->size, index = head;
    bool is_indirect = false;

    chain->head = head;
    chain->read_count = chain->write_count = 0;
    chain->read_length = chain->write_length = 0;
    for (;;) {
        struct descriptor descriptor;
        if (index >= count || memory_read(queue->memory, table + index * DESCRIPTOR_SIZE,
                                          &descriptor, sizeof descriptor)) {
            return -EPROTO;
        }
        if (descriptor.flags & DESCRIPTOR_INDIRECT) {
            /* At the end of a chain, once, and a whole number of descriptors (2.7.5.3). */
            if (!queue->indirect || is_indirect || (descriptor.flags & DESCRIPTOR_NEXT) ||
                descriptor.length == 0 || descriptor.length % DESCRIPTOR_SIZE ||
                !memory_is_ram(queue->memory, descriptor.address, descriptor.length)) {
                return -EPROTO;
            }
            is_indirect = true;
            table = descriptor.address;
            count = descriptor.length / DESCRIPTOR_SIZE;
            index = 0;
            continue;
        }
        if (append_segment(queue->memory, chain, &descriptor)) {
            return -EPROTO;
        }
        if (!(descriptor.flags & DESCRIPTOR_NEXT)) {
            return 0;
        }
        index = descriptor.next;
    }
}

int virtqueue_pop(struct virtqueue *queue, struct virtio_chain *ret_chain)
{
    uint16_t head;
    int found = next_head(queue, &head);
    if (found <= 0) {
        return found;
    }
    if (head >= queue->size || walk_chain(queue, head, ret_chain)) {
        return -EPROTO;
    }
    queue->next_available++;
    return 1;
}

void virtqueue_unpop(struct virtqueue *queue)
{
    queue->next_available--;
}

int virtqueue_fill(struct virtqueue *queue, uint16_t place, uint16_t head, uint32_t written)
{
    uint64_t slot = ((unsigned)queue->next_used + place) & (queue->size - 1u);
    uint8_t entry[USED_ENTRY_SIZE];
    store_le32(entry, head);
    store_le32(entry + 4, written);
    return memory_write(queue->memory, queue->device_area + RING_ENTRIES + slot * USED_ENTRY_SIZE,
                        entry, sizeof entry)
               ? -EPROTO
               : 0;
}

int virtqueue_publish(struct virtqueue *queue, uint16_t count)
{
    /* After the entries: the driver reads them when it saw the index (2.7.8.2). */
    queue->next_used = (uint16_t)(queue->next_used + count);
    gpa_t index = queue->device_area + RING_INDEX;
    return memory_write(queue->memory, index, &queue->next_used, 2) ? -EPROTO : 0;
}

int virtqueue_push(struct virtqueue *queue, uint16_t head, uint32_t written)
{
    int r = virtqueue_fill(queue, 0, head, written);
    return r ? r : virtqueue_publish(queue, 1);
}

int virtqueue_wants_interrupt(struct virtqueue *queue)
{
    uint16_t was_used = queue->signalled_used, value;
    bool was_valid = queue->signalled_valid;
    gpa_t used_event =
        queue->driver_area + RING_ENTRIES + (uint64_t)queue->size * AVAILABLE_ENTRY_SIZE;

    queue->signalled_used = queue->next_used;
    queue->signalled_valid = true;
    /* The driver writes its wish, then looks at the index once more; we do the opposite (2.7.7). */
    order_store_before_load();
    if (read_field(queue, queue->event_index ? used_event : queue->driver_area, &value)) {
        return -EPROTO;
    }
    if (!queue->event_index) {
        return !(value & AVAILABLE_NO_INTERRUPT);
    }
    /* Did next_used pass the driver's event since last time? Indexes wrap (2.7.7.2). */
    uint16_t since_event = (uint16_t)(queue->next_used - value - 1);
    uint16_t since_signal = (uint16_t)(queue->next_used - was_used);
    return !was_valid || since_event < since_signal;
}

/* Copy between a buffer and `count` segments, beginning `offset` bytes into them. */
static int copy_segments(struct memory *memory, const struct virtio_segment *segments,
                         unsigned count, uint64_t offset, void *to, const void *from,
                         uint64_t length)
{
    uint64_t done = 0;
    for (unsigned i = 0; i < count && done < length; i++) {
        if (offset >= segments[i].length) {
            offset -= segments[i].length;
            continue;
        }
        uint64_t piece = segments[i].length - offset;
        piece = piece < length - done ? piece : length - done;
        gpa_t gpa = segments[i].gpa + offset;
        int error = to ? memory_read(memory, gpa, (uint8_t *)to + done, piece)
                       : memory_write(memory, gpa, (const uint8_t *)from + done, piece);
        if (error) {
            return error;
        }
        done += piece;
        offset = 0;
    }
    return done == length ? 0 : -EFAULT;
}

int virtio_chain_read(struct memory *memory, const struct virtio_chain *chain, uint64_t offset,
                      void *buffer, uint64_t length)
{
    return copy_segments(memory, chain->segments, chain->read_count, offset, buffer, NULL, length);
}

int virtio_chain_write(struct memory *memory, const struct virtio_chain *chain, uint64_t offset,
                       const void *buffer, uint64_t length)
{
    return copy_segments(memory, chain->segments + chain->read_count, chain->write_count, offset,
                         NULL, buffer, length);
}
