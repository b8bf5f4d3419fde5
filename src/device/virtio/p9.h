/*
 * virtio-9p: a folder of the host for the guest (virtio type 9; Linux mounts it by its tag with
 * `mount -t 9p -o trans=virtio TAG /mnt`). Messages go to the share as they are; what they mean is
 * its business.
 *
 * Saving: what the guest has open is the host's, and cannot be taken along: a save is refused while
 * the folder is mounted.
 */
#pragma once

#include "device/virtio/virtio.h"

struct share;

enum { VIRTIO_9P_TAG_MAX = 32 };

struct virtio_9p_config {
    struct memory *memory; /* borrowed */
    struct share *share;   /* owned by the device once virtio_9p_new() succeeded */
    const char *tag;       /* 1 to VIRTIO_9P_TAG_MAX bytes */
    /* The share cannot go on (once). Any thread, with the device's lock held. NULL: nobody cares.
     */
    void (*report)(void *owner, const char *text);
    void *owner;
};

/* -EINVAL: the tag is empty or too long. */
int virtio_9p_new(const struct virtio_9p_config *config, const char *id,
                  struct virtio_device **ret_virtio) __attribute__((warn_unused_result));
