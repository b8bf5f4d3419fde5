/*
 * virtio-vsock: connections between programs of the guest and of the host, without a network
 * (virtio 1.2 section 5.10), on Unix sockets in the way of Firecracker: who connects to the hub's
 * socket says "CONNECT PORT" and a newline, and is answered "OK PORT" when the guest accepts; a
 * guest that connects to port P of the host (CID 2) reaches who listens at the hub for P.
 */
#pragma once

#include "device/virtio/virtio.h"

struct hub;

enum { VSOCK_CID_MIN = 3, VSOCK_CID_DEFAULT = 3 };

struct virtio_vsock_config {
    struct memory *memory; /* borrowed */
    struct hub *hub;       /* owned by the device once virtio_vsock_new() succeeded */
    uint32_t cid;          /* the guest's */
};

int virtio_vsock_new(const struct virtio_vsock_config *config, const char *id,
                     struct virtio_device **ret_virtio) __attribute__((warn_unused_result));
