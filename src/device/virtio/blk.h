/*
 * virtio-blk: a disk (virtio 1.2 section 5.2). One queue for each vCPU; read, write, flush,
 * identify, discard, write zeroes. Contents come from a disk backend; requests run asynchronously.
 * What comes with one notification goes to the host together, and what the host finished together
 * is answered with one interrupt.
 */
#pragma once

#include "base/clock.h"
#include "device/virtio/virtio.h"

struct disk;

struct virtio_blk_config {
    struct memory *memory; /* borrowed */
    struct disk *disk;     /* owned by the device once virtio_blk_new() succeeded */
    unsigned queues;       /* 0: one; more than the device can have: as many as it can */
    const char *serial;    /* up to 20 bytes are shown to the guest; NULL: empty */
    struct clock clock;    /* paces report(); ops == NULL: every error is reported */
    /*
     * The host failed a request (the guest was told VIRTIO_BLK_S_IOERR and lives on): `error` is
     * a negative errno. At most one call each second. Any thread, with the device's lock held:
     * it must not call back. NULL: nobody listens.
     */
    void (*report)(void *owner, int error, const char *text);
    void *owner;
};

int virtio_blk_new(const struct virtio_blk_config *config, const char *id,
                   struct virtio_device **ret_virtio) __attribute__((warn_unused_result));
