/*
 * Frames from the guest. Each is copied once, so that what is checked is what is sent. A backend
 * without room leaves the chain in the ring, with the number of its segments that are out.
 */
#include <string.h>

#include "backend/net/offload.h"
#include "device/virtio/net_internal.h"

enum {
    /* For one call: other CPUs may keep the ring filled, and the machine wants to be stopped. */
    CHAINS_AT_ONCE = 512,
    BYTES_AT_ONCE = 8 << 20,
};

static bool emit(void *owner, const struct net_frame *frame)
{
    struct virtio_net *self = owner;
    return net_send(self->net, frame);
}

/* Does the frame ask only for what was negotiated (5.1.6.2.1)? */
static bool is_negotiated(const struct virtio_net *self, const struct net_offload *offload)
{
    const struct virtio_device *virtio = &self->virtio;
    if ((offload->flags & NET_NEEDS_CHECKSUM) && !virtio_has(virtio, NET_F_CSUM)) {
        return false;
    }
    if ((offload->gso_type & NET_GSO_ECN) && !virtio_has(virtio, NET_F_HOST_ECN)) {
        return false;
    }
    switch (offload->gso_type & ~NET_GSO_ECN) {
    case NET_GSO_NONE:
        return offload->gso_type == NET_GSO_NONE;
    case NET_GSO_TCPV4:
        return virtio_has(virtio, NET_F_HOST_TSO4);
    case NET_GSO_TCPV6:
        return virtio_has(virtio, NET_F_HOST_TSO6);
    default:
        return false;
    }
}

/* Send one frame, or what is left of it; false if the backend had no room for all of it. */
static bool send_frame(struct virtio_net *self, const struct net_frame *frame, uint16_t *sent)
{
    if (self->net && self->net->has_offloads) {
        return !net_offload_is_sane(frame) || net_send(self->net, frame);
    }
    bool all;
    int segments = net_finish(frame, *sent, emit, self, self->work->scratch, &all);
    if (segments < 0 || all) {
        *sent = 0;
        return true;
    }
    *sent = (uint16_t)segments;
    return false;
}

/* A frame that is broken, or that nobody asked us to be able to send, is dropped. */
static bool transmit_chain(struct virtio_net *self, const struct virtio_chain *chain, unsigned pair)
{
    uint64_t length = chain->read_length;
    if (length < NET_VIRTIO_HEADER + NET_HEADER_SIZE || length > sizeof self->work->buffer) {
        return true;
    }
    if (virtio_chain_read(self->virtio.memory, chain, 0, self->work->buffer, length)) {
        virtio_needs_reset(&self->virtio);
        return true;
    }
    struct net_frame frame = {
        .bytes = self->work->buffer + NET_VIRTIO_HEADER,
        .length = length - NET_VIRTIO_HEADER,
    };
    memcpy(&frame.offload, self->work->buffer, sizeof frame.offload);
    frame.offload.flags &= NET_NEEDS_CHECKSUM;
    if (!is_negotiated(self, &frame.offload)) {
        return true;
    }
    if (self->pairs_in_use > 1) {
        self->flows[net_flow_hash(frame.bytes, frame.length)] = (uint8_t)pair;
    }
    return send_frame(self, &frame, &self->segments_sent[pair]);
}

void net_transmit(struct virtio_net *self, unsigned queue)
{
    struct virtio_device *virtio = &self->virtio;
    unsigned chains = 0;
    uint64_t bytes = 0;
    bool has_room = true;
    while (has_room && virtio_pop(virtio, queue, &self->work->chain)) {
        has_room = transmit_chain(self, &self->work->chain, queue / 2);
        if (!has_room) {
            virtqueue_unpop(&virtio->queues[queue]);
            break;
        }
        virtio_put(virtio, queue, self->work->chain.head, 0);
        bytes += self->work->chain.read_length;
        if (++chains == CHAINS_AT_ONCE || bytes >= BYTES_AT_ONCE) {
            net_again(self->net);
            break;
        }
    }
    if (chains > 0 || !has_room) {
        net_flush(self->net);
        virtio_signal(virtio, queue);
    }
}
