/*
 * Frames to the guest: through its filter, onto the queue where the guest sends the other half of
 * the flow, into one chain of buffers, or into several if they may be merged (5.1.6.4).
 */
#include <string.h>

#include "device/virtio/net_internal.h"

enum { BUDGET = 65536 /* chains in one call */ };

static bool find_address(const uint8_t (*list)[NET_ADDRESS_SIZE], unsigned count,
                         const uint8_t *address)
{
    for (unsigned i = 0; i < count; i++) {
        if (!memcmp(list[i], address, NET_ADDRESS_SIZE)) {
            return true;
        }
    }
    return false;
}

bool net_filter_accepts(const struct virtio_net *self, const uint8_t *destination)
{
    static const uint8_t broadcast[NET_ADDRESS_SIZE] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    const struct net_filter *filter = &self->filter;
    if (filter->promiscuous) {
        return true;
    }
    if (!memcmp(destination, broadcast, NET_ADDRESS_SIZE)) {
        return !filter->no_broadcast;
    }
    if (destination[0] & 1) {
        return !filter->no_multicast &&
               (filter->all_multicast || filter->too_many_multicast ||
                find_address(filter->multicast, filter->multicast_count, destination));
    }
    return !filter->no_unicast &&
           (filter->all_unicast || filter->too_many_unicast ||
            !memcmp(destination, self->address, NET_ADDRESS_SIZE) ||
            find_address(filter->unicast, filter->unicast_count, destination));
}

/* Addresses and ports, the two ends in no order: a frame and its answer are the same flow. */
unsigned net_flow_hash(const uint8_t *frame, size_t length)
{
    uint32_t mixed = 0;
    size_t addresses, size, ports;
    if (length >= 38 && frame[12] == 0x08 && frame[13] == 0) {
        addresses = 26, size = 8, ports = 14 + (frame[14] & 15u) * 4u;
    } else if (length >= 58 && frame[12] == 0x86 && frame[13] == 0xdd) {
        addresses = 22, size = 32, ports = 54;
    } else {
        return 0;
    }
    for (size_t i = 0; i < size; i += 4) {
        mixed ^= load_le32(frame + addresses + i);
    }
    if (ports + 4 <= length) {
        mixed ^= (uint32_t)(load_le16(frame + ports) ^ load_le16(frame + ports + 2)) * 0x9e37u;
    }
    return (mixed * 0x9e3779b1u) >> 24;
}

static unsigned choose_queue(const struct virtio_net *self, const struct net_frame *frame)
{
    if (self->pairs_in_use == 1) {
        return 0;
    }
    unsigned pair = self->flows[net_flow_hash(frame->bytes, frame->length)];
    return pair < self->pairs_in_use ? 2 * pair : 0;
}

/* What is said of the frame, as far as the driver understands it (5.1.6.4.1). */
static struct net_offload offload_for(const struct virtio_net *self, const struct net_frame *frame)
{
    struct net_offload offload = frame->offload;
    if (!virtio_has(&self->virtio, NET_F_GUEST_CSUM)) {
        return (struct net_offload){0};
    }
    if (!(offload.flags & NET_NEEDS_CHECKSUM) && self->net->is_checked) {
        offload.flags |= NET_DATA_VALID;
    }
    return offload;
}

enum place { PLACED, NO_BUFFERS, DROPPED };

/* The rest of a frame into further chains; the first one holds `done` bytes of it already. */
static enum place merge(struct virtio_net *self, unsigned queue, const struct net_frame *frame,
                        size_t done, uint16_t *count)
{
    struct virtio_device *virtio = &self->virtio;
    while (done < frame->length) {
        struct virtio_chain *chain = &self->work->chain;
        if (!virtio_pop(virtio, queue, chain)) {
            return NO_BUFFERS;
        }
        uint64_t left = frame->length - done;
        uint32_t piece = (uint32_t)(chain->write_length < left ? chain->write_length : left);
        if (virtio_chain_write(virtio->memory, chain, 0, frame->bytes + done, piece)) {
            virtio_needs_reset(virtio);
            return DROPPED;
        }
        virtio_fill(virtio, queue, (*count)++, chain->head, piece);
        done += piece;
    }
    return PLACED;
}

/* One frame into the ring, not visible yet: `*count` chains. */
static enum place place_frame(struct virtio_net *self, unsigned queue,
                              const struct net_frame *frame, uint16_t *count)
{
    struct virtio_device *virtio = &self->virtio;
    struct virtio_chain *first = &self->work->first_chain;
    bool may_merge = virtio_has(virtio, NET_F_MRG_RXBUF);
    if (!virtio_pop(virtio, queue, first)) {
        return NO_BUFFERS;
    }
    uint8_t header[NET_VIRTIO_HEADER] = {0};
    struct net_offload offload = offload_for(self, frame);
    memcpy(header, &offload, sizeof offload);
    uint64_t room = first->write_length;
    if (room < sizeof header) {
        virtio_needs_reset(virtio);
        return DROPPED;
    }
    room -= sizeof header;
    if (!may_merge && room < frame->length) {
        virtqueue_unpop(&virtio->queues[queue]);
        return DROPPED;
    }
    size_t piece = room < frame->length ? (size_t)room : frame->length;
    if (virtio_chain_write(virtio->memory, first, sizeof header, frame->bytes, piece)) {
        virtio_needs_reset(virtio);
        return DROPPED;
    }
    virtio_fill(virtio, queue, (*count)++, first->head, (uint32_t)(sizeof header + piece));
    enum place place = merge(self, queue, frame, piece, count);
    store_le16(header + sizeof offload, *count);
    if (place == PLACED && virtio_chain_write(virtio->memory, first, 0, header, sizeof header)) {
        virtio_needs_reset(virtio);
        return DROPPED;
    }
    return place;
}

/* False: there are no buffers, and the driver will tell when there are. */
static bool receive_frame(struct virtio_net *self, unsigned queue, const struct net_frame *frame)
{
    struct virtio_device *virtio = &self->virtio;
    uint16_t count = 0;
    enum place place = place_frame(self, queue, frame, &count);
    if (place == PLACED) {
        virtio_publish(virtio, queue, count);
    } else if (place == NO_BUFFERS) {
        for (; count > 0; count--) {
            virtqueue_unpop(&virtio->queues[queue]);
        }
    }
    return place != NO_BUFFERS || (virtio->status & VIRTIO_NEEDS_RESET);
}

/* Frames for a driver that is not there are lost; those for a paused machine wait. */
static bool is_wanted(const struct virtio_net *self, const struct net_frame *frame)
{
    const struct virtio_device *virtio = &self->virtio;
    return (virtio->status & VIRTIO_DRIVER_OK) && !virtio->resetting &&
           !(virtio->status & VIRTIO_NEEDS_RESET) && frame->length >= NET_HEADER_SIZE &&
           net_filter_accepts(self, frame->bytes);
}

size_t net_receive_frames(void *owner, const struct net_frame *frames, size_t count)
{
    struct virtio_net *self = owner;
    struct virtio_device *virtio = &self->virtio;
    uint32_t used = 0; /* a bit for each queue */
    size_t taken = 0;
    pthread_mutex_lock(&virtio->device.lock);
    virtio->budget = BUDGET;
    for (; taken < count && !virtio->paused; taken++) {
        if (!is_wanted(self, &frames[taken])) {
            continue;
        }
        unsigned queue = choose_queue(self, &frames[taken]);
        if (!receive_frame(self, queue, &frames[taken])) {
            break;
        }
        used |= 1u << queue;
    }
    for (unsigned queue = 0; used >> queue; queue++) {
        if (used >> queue & 1) {
            virtio_signal(virtio, queue);
        }
    }
    pthread_mutex_unlock(&virtio->device.lock);
    return taken;
}
