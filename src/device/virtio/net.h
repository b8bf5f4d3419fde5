/*
 * virtio-net: a network card (virtio 1.2 section 5.1). Up to NET_PAIRS_MAX pairs of queues,
 * checksum and segmentation offload, mergeable receive buffers, a control queue for addresses,
 * receive filters and the number of queues in use. Frames come from and go to a network backend;
 * what the backend cannot do (checksums, TCP segments) is done here.
 */
#pragma once

#include "device/virtio/virtio.h"

struct net;

enum { NET_PAIRS_MAX = 8, NET_ADDRESS_SIZE = 6 };

struct virtio_net_config {
    struct memory *memory; /* borrowed */
    struct net *net;       /* owned by the device once virtio_net_new() succeeded; or NULL */
    uint8_t address[NET_ADDRESS_SIZE];
    unsigned pairs; /* of queues: one for each CPU is best */
};

/* Connects itself to the network. */
int virtio_net_new(const struct virtio_net_config *config, const char *id,
                   struct virtio_device **ret_virtio) __attribute__((warn_unused_result));
