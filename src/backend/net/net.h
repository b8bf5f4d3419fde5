/*
 * Network backends: Ethernet frames to and from the outside, asynchronous. Knows no guest.
 *
 * Threads: send and flush from any thread, one at a time (the device's lock sees to it); the
 *          receiver's functions run on the loop's thread, without any lock of the backend.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

enum {
    NET_HEADER_SIZE = 14, /* of an Ethernet frame; what is shorter is none */
    /* Larger than an IP packet of 65,535 bytes with its Ethernet header and tags. */
    NET_FRAME_MAX = 65536 + 64,
    NET_MTU_MIN = 68,
    NET_MTU_MAX = 65520,
};

/* Work that is left to whoever sends the frame on (virtio 1.2, 5.1.6). */
enum { NET_NEEDS_CHECKSUM = 1, NET_DATA_VALID = 2 };
enum {
    NET_GSO_NONE = 0,
    NET_GSO_TCPV4 = 1,
    NET_GSO_TCPV6 = 4,
    NET_GSO_ECN = 0x80, /* beside one of the two */
};
struct net_offload {
    uint8_t flags, gso_type;
    uint16_t header_length, gso_size;
    uint16_t checksum_start, checksum_offset;
};
_Static_assert(sizeof(struct net_offload) == 10, "as virtio and the host's tap lay it out");

struct net_frame {
    const uint8_t *bytes;
    size_t length;
    struct net_offload offload; /* all zeros: the frame is complete */
};

/* What a device gives to the backend that it is connected to. */
struct net_receiver {
    /* Frames from outside; returns how many were taken. Call net_ready() when there is room. */
    size_t (*receive)(void *owner, const struct net_frame *frames, size_t count);
    /* net_send() takes frames again after it refused one. */
    void (*sendable)(void *owner);
    /* The cable was plugged in or pulled. */
    void (*link)(void *owner, bool is_up);
    void *owner;
};

/* What net_set_offloads() may switch on: frames with such work left to do may be received. */
enum {
    NET_TAKES_CHECKSUM = 1,
    NET_TAKES_TSO4 = 2,
    NET_TAKES_TSO6 = 4,
    NET_TAKES_ECN = 8,
};

struct net;
struct net_ops {
    bool (*send)(struct net *net, const struct net_frame *frame);
    void (*flush)(struct net *net);
    void (*ready)(struct net *net);
    void (*again)(struct net *net);
    /* NULL: frames are always complete, in both directions. */
    void (*set_offloads)(struct net *net, unsigned takes);
    void (*free)(struct net *net);
};

/* Embedded first in every backend. */
struct net {
    const struct net_ops *ops;
    struct net_receiver receiver;
    atomic_bool is_up; /* written on the loop's thread, or before it runs */
    bool has_offloads; /* frames may be sent with work left to do */
    bool is_checked;   /* checksums of what it gives were made or verified on this host */
    uint16_t mtu;      /* the largest packet, without the Ethernet header; 0: not known */
};

/* NULL is a valid network for all of these: a cable that is not plugged in. */

/*
 * False: there is no room, and receiver.sendable() will be called. Otherwise the frame was copied,
 * or dropped (it is too long, or the cable is out). It may wait for net_flush().
 */
bool net_send(struct net *net, const struct net_frame *frame);
/* Send what was collected. */
void net_flush(struct net *net);
/* The receiver takes frames again. Any thread; it is called back from the loop. */
void net_ready(struct net *net);
/* Call receiver.sendable() soon, from the loop: there is more to send, later. Any thread. */
void net_again(struct net *net);
/* NET_TAKES_*: what the receiver can do itself. */
void net_set_offloads(struct net *net, unsigned takes);
bool net_is_up(const struct net *net);
/* The struct is copied. Before the loop runs. */
void net_connect(struct net *net, const struct net_receiver *receiver);
/* From the loop's thread, or when it does not run. */
void net_free(struct net *net);

CLEANUP_DEFINE(struct net, net_free)
