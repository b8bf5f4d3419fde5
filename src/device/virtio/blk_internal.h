/* Inside virtio-blk: the device (blk.c) and its requests (blk_request.c). */
#pragma once

#include "backend/disk/disk.h"
#include "base/bytes.h"
#include "device/virtio/blk.h"

enum {
    BLK_SECTOR = 512,
    BLK_SERIAL_SIZE = 20,
    BLK_QUEUE_SIZE = 256,
    BLK_QUEUES_MAX = 16,
    BLK_PHYSICAL_BLOCK = 4096,       /* what the host's file systems and disks like best */
    BLK_RANGE_SECTORS_MAX = 1 << 17, /* 64 MiB: the host may have to write zeros itself */
};

/* Feature bits (5.2.3). */
#define BLK_F_SEG_MAX      (UINT64_C(1) << 2)
#define BLK_F_RO           (UINT64_C(1) << 5)
#define BLK_F_BLK_SIZE     (UINT64_C(1) << 6)
#define BLK_F_FLUSH        (UINT64_C(1) << 9)
#define BLK_F_TOPOLOGY     (UINT64_C(1) << 10)
#define BLK_F_MQ           (UINT64_C(1) << 12)
#define BLK_F_DISCARD      (UINT64_C(1) << 13)
#define BLK_F_WRITE_ZEROES (UINT64_C(1) << 14)

struct blk_request;

struct virtio_blk {
    struct virtio_device virtio;
    struct disk *disk;
    uint8_t serial[BLK_SERIAL_SIZE];
    struct clock clock;
    void (*report)(void *owner, int error, const char *text);
    void *report_owner;
    uint64_t next_report_ns;
    struct blk_request *free_requests;
    unsigned in_flight;
    uint32_t answered; /* queues, by bit, with answers whose interrupt is still to come */
};
_Static_assert(BLK_QUEUES_MAX <= 32, "bits of answered");

static inline struct virtio_blk *blk_of(struct virtio_device *virtio)
{
    return CONTAINER_OF(virtio, struct virtio_blk, virtio);
}

/* Take chains off a ring and start them. The lock is held. */
void blk_notify(struct virtio_device *virtio, unsigned queue);
/* When nothing is in flight. */
void blk_free_requests(struct virtio_blk *blk);
