/*
 * Inside virtio-net: the device (net.c), frames from the guest (net_transmit.c), frames to it
 * (net_receive.c), and its control queue (net_control.c).
 */
#pragma once

#include "backend/net/net.h"
#include "base/bytes.h"
#include "device/virtio/net.h"

/* Feature bits (5.1.3). */
#define NET_F_CSUM          (UINT64_C(1) << 0)
#define NET_F_GUEST_CSUM    (UINT64_C(1) << 1)
#define NET_F_MTU           (UINT64_C(1) << 3)
#define NET_F_MAC           (UINT64_C(1) << 5)
#define NET_F_GUEST_TSO4    (UINT64_C(1) << 7)
#define NET_F_GUEST_TSO6    (UINT64_C(1) << 8)
#define NET_F_GUEST_ECN     (UINT64_C(1) << 9)
#define NET_F_HOST_TSO4     (UINT64_C(1) << 11)
#define NET_F_HOST_TSO6     (UINT64_C(1) << 12)
#define NET_F_HOST_ECN      (UINT64_C(1) << 13)
#define NET_F_MRG_RXBUF     (UINT64_C(1) << 15)
#define NET_F_STATUS        (UINT64_C(1) << 16)
#define NET_F_CTRL_VQ       (UINT64_C(1) << 17)
#define NET_F_CTRL_RX       (UINT64_C(1) << 18)
#define NET_F_CTRL_RX_EXTRA (UINT64_C(1) << 20)
#define NET_F_MQ            (UINT64_C(1) << 22)
#define NET_F_CTRL_MAC_ADDR (UINT64_C(1) << 23)

enum {
    NET_QUEUE_SIZE = 256,
    NET_VIRTIO_HEADER = 12, /* in front of each frame (5.1.6): the offload and num_buffers */
    NET_ADDRESSES_MAX = 64, /* of each kind in the filter; with more, all are let through */
    NET_FLOWS = 256,
};

/* What the driver wants to receive (5.1.6.5.1, 5.1.6.5.2). */
struct net_filter {
    bool promiscuous, all_multicast, all_unicast, no_multicast, no_unicast, no_broadcast;
    bool too_many_unicast, too_many_multicast; /* for our lists: all are let through */
    uint8_t unicast_count, multicast_count;
    uint8_t unicast[NET_ADDRESSES_MAX][NET_ADDRESS_SIZE];
    uint8_t multicast[NET_ADDRESSES_MAX][NET_ADDRESS_SIZE];
};

struct virtio_net {
    struct virtio_device virtio;
    struct net *net;
    struct net_work *work;
    uint16_t mtu;   /* 0: not known */
    uint16_t pairs; /* that there are */
    uint8_t configured_address[NET_ADDRESS_SIZE];
    uint8_t address[NET_ADDRESS_SIZE]; /* as the driver last set it */
    /* Segments of the frame at the head of each transmit queue that are out. */
    uint16_t segments_sent[NET_PAIRS_MAX];
    uint8_t flows[NET_FLOWS]; /* by hash: the pair on which the guest last sent */
    uint16_t pairs_in_use;
    struct net_filter filter;
};

/* Where a frame is while it passes through. */
struct net_work {
    struct virtio_chain chain, first_chain;
    uint8_t buffer[NET_VIRTIO_HEADER + NET_FRAME_MAX], scratch[NET_FRAME_MAX];
};

static inline struct virtio_net *net_of(struct virtio_device *virtio)
{
    return CONTAINER_OF(virtio, struct virtio_net, virtio);
}

/* All with the device's lock held. */

/* Send what the driver offers on a queue, as long as the backend has room. */
void net_transmit(struct virtio_net *self, unsigned queue);
/* Carry out the commands on the control queue. */
void net_control(struct virtio_net *self, unsigned queue);
/* Does the driver want a frame with this destination? */
bool net_filter_accepts(const struct virtio_net *self, const uint8_t *destination);
/* A number below NET_FLOWS that both directions of a flow share. */
unsigned net_flow_hash(const uint8_t *frame, size_t length);

/* Without the lock: frames from outside. */
size_t net_receive_frames(void *owner, const struct net_frame *frames, size_t count);
