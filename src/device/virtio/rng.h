/*
 * virtio-rng: the host's random numbers for the guest (virtio 1.2 section 5.4).
 */
#pragma once

#include "device/virtio/virtio.h"

/* `memory` is borrowed. */
int virtio_rng_new(struct memory *memory, const char *id, struct virtio_device **ret_virtio)
    __attribute__((warn_unused_result));
