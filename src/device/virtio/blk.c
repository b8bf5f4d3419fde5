/*
 * virtio-blk, the device: configuration, life and saved state. The work is in blk_request.c.
 */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/error.h"
#include "device/virtio/blk_internal.h"
#include "persist/visitor.h"

#define BLK_KEPT                                                                                   \
    "a disk keeps requests that the host has failed: resume the machine, or reset it, before it "  \
    "is "                                                                                          \
    "saved or loaded"

enum { SEGMENTS_MAX = BLK_QUEUE_SIZE - 2 }; /* besides header and status */

/* The configuration (5.2.4), as the driver sees it. */
struct blk_registers {
    uint64_t capacity; /* in sectors */
    uint32_t size_max, seg_max;
    uint16_t cylinders;
    uint8_t heads, sectors;
    uint32_t blk_size;
    uint8_t physical_block_exponent, alignment_offset;
    uint16_t min_io_size;
    uint32_t opt_io_size;
    uint8_t writeback, unused0;
    uint16_t num_queues;
    uint32_t max_discard_sectors, max_discard_seg, discard_sector_alignment;
    uint32_t max_write_zeroes_sectors, max_write_zeroes_seg;
    uint8_t write_zeroes_may_unmap, unused1[3];
};
_Static_assert(sizeof(struct blk_registers) == 64, "as the driver sees it (5.2.4)");

static void blk_config_read(struct virtio_device *virtio, uint32_t offset, void *bytes,
                            unsigned size)
{
    const struct virtio_blk *blk = blk_of(virtio);
    bool writable = !blk->disk->readonly;
    const struct blk_registers registers = {
        .capacity = blk->disk->size / BLK_SECTOR,
        .seg_max = SEGMENTS_MAX,
        .blk_size = BLK_SECTOR,
        .physical_block_exponent = 3,
        .min_io_size = BLK_PHYSICAL_BLOCK / BLK_SECTOR,
        .num_queues = blk->virtio.queue_count,
        .max_discard_sectors = writable ? BLK_RANGE_SECTORS_MAX : 0,
        .max_discard_seg = writable,
        .discard_sector_alignment = BLK_PHYSICAL_BLOCK / BLK_SECTOR,
        .max_write_zeroes_sectors = writable ? BLK_RANGE_SECTORS_MAX : 0,
        .max_write_zeroes_seg = writable,
        .write_zeroes_may_unmap = writable,
    };
    memcpy(bytes, (const uint8_t *)&registers + offset, size);
}

/* A reset also wants back what the disk keeps for later. */
static void blk_drain(struct virtio_device *virtio)
{
    if (virtio->resetting) {
        disk_cancel(blk_of(virtio)->disk);
    }
    disk_drain(blk_of(virtio)->disk);
}

static void blk_resume(struct virtio_device *virtio)
{
    disk_retry(blk_of(virtio)->disk);
}

/* Nothing is in flight, unless the disk keeps it; what a save needs to know is that it fits the
 * same disk. */
static void blk_visit(struct virtio_device *virtio, struct visitor *v)
{
    struct virtio_blk *blk = blk_of(virtio);
    uint64_t capacity = blk->disk->size / BLK_SECTOR;
    if (blk->in_flight && visitor_mode(v) != VISITOR_PRINT) {
        visitor_fail(v, -EBUSY, BLK_KEPT);
    }
    visit_u64(v, "capacity", &capacity);
    visit_bytes(v, "serial", blk->serial, sizeof blk->serial);
    if (visitor_mode(v) == VISITOR_READ && !visitor_error(v) &&
        capacity != blk->disk->size / BLK_SECTOR) {
        visitor_fail(v, -EINVAL, "the disk's size is not the size it had when saved");
    }
}

/* What came back meanwhile is answered to nobody. */
static void blk_reset(struct virtio_device *virtio)
{
    blk_of(virtio)->answered = 0;
}

static void blk_free(struct virtio_device *virtio)
{
    struct virtio_blk *blk = blk_of(virtio);
    disk_cancel(blk->disk);
    disk_drain(blk->disk);
    disk_free(blk->disk);
    blk_free_requests(blk);
    virtio_fini(virtio);
    free(blk);
}

static const struct virtio_ops blk_ops = {
    .type = VIRTIO_TYPE_BLOCK,
    .queue_count = 1,
    .queue_size = BLK_QUEUE_SIZE,
    .config_size = sizeof(struct blk_registers),
    .config_read = blk_config_read,
    .notify = blk_notify,
    .reset = blk_reset,
    .drain = blk_drain,
    .resume = blk_resume,
    .visit = blk_visit,
    .free = blk_free,
};
static const struct device_ops device_ops = VIRTIO_DEVICE_OPS("virtio-blk");

int virtio_blk_new(const struct virtio_blk_config *config, const char *id,
                   struct virtio_device **ret_virtio)
{
    if (config->disk->size < BLK_SECTOR) {
        return fail(-EINVAL, "%s: the disk is smaller than one sector of %d bytes", id, BLK_SECTOR);
    }
    struct virtio_blk *blk = calloc(1, sizeof *blk);
    ASSERT(blk);
    blk->disk = config->disk;
    blk->clock = config->clock;
    blk->report = config->report;
    blk->report_owner = config->owner;
    if (config->serial) {
        memcpy(blk->serial, config->serial, strnlen(config->serial, BLK_SERIAL_SIZE));
    }
    uint64_t features = BLK_F_SEG_MAX | BLK_F_BLK_SIZE | BLK_F_FLUSH | BLK_F_TOPOLOGY;
    unsigned queues = config->queues < BLK_QUEUES_MAX ? config->queues : BLK_QUEUES_MAX;
    features |= queues > 1 ? BLK_F_MQ : 0;
    features |= config->disk->readonly ? BLK_F_RO : BLK_F_DISCARD | BLK_F_WRITE_ZEROES;
    virtio_init(&blk->virtio, &device_ops, &blk_ops, config->memory, features, id);
    virtio_set_queue_count(&blk->virtio, queues ? queues : 1);
    *ret_virtio = &blk->virtio;
    return 0;
}
