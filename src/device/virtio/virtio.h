/*
 * What all virtio devices share (virtio 1.2 section 2): status, feature negotiation, queues, reset,
 * saved state. Knows no transport: virtio_pci.h gives a device its registers and interrupts.
 *
 * To make one:  virtio_blk_new(&config, "virtio-blk0", &virtio);
 *               virtio_pci_attach(virtio, pci, ...);      then put &virtio->device on the board.
 * Threads:      device.lock guards everything here; functions that want it held say so.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "device/device.h"
#include "device/virtio/queue.h"

/* Device types (5). */
enum {
    VIRTIO_TYPE_NET = 1,
    VIRTIO_TYPE_BLOCK = 2,
    VIRTIO_TYPE_CONSOLE = 3,
    VIRTIO_TYPE_RNG = 4,
    VIRTIO_TYPE_9P = 9,
    VIRTIO_TYPE_VSOCK = 19
};

/* Device status (2.1). */
enum {
    VIRTIO_ACKNOWLEDGE = 1,
    VIRTIO_DRIVER = 2,
    VIRTIO_DRIVER_OK = 4,
    VIRTIO_FEATURES_OK = 8,
    VIRTIO_NEEDS_RESET = 64,
    VIRTIO_FAILED = 128,
};

/* Feature bits that belong to no device type (6). */
#define VIRTIO_F_INDIRECT_DESC (UINT64_C(1) << 28)
#define VIRTIO_F_EVENT_IDX     (UINT64_C(1) << 29)
#define VIRTIO_F_VERSION_1     (UINT64_C(1) << 32)

enum { VIRTIO_QUEUES_MAX = 18 };

struct virtio_device;

/* A device type. Everything is called with the lock held unless it says otherwise. */
struct virtio_ops {
    uint16_t type;
    uint16_t queue_count, queue_size; /* the count is a default: virtio_set_queue_count() */
    uint32_t config_size;
    /* [offset, offset + size) is inside the device's configuration; size is 1, 2, 4 or 8. */
    void (*config_read)(struct virtio_device *virtio, uint32_t offset, void *bytes, unsigned size);
    void (*config_write)(struct virtio_device *virtio, uint32_t offset, const void *bytes,
                         unsigned size); /* NULL: nothing is writable */
    /* The driver is ready, and what it accepted is settled. NULL: nothing to do. */
    void (*ready)(struct virtio_device *virtio);
    /* Work on a queue: virtio_queue_is_live(). */
    void (*notify)(struct virtio_device *virtio, unsigned queue);
    /* Forget all work; no host request is in flight. NULL: nothing to forget. */
    void (*reset)(struct virtio_device *virtio);
    /* Wait until no host request is in flight. Called without the lock. NULL: none ever is. */
    void (*drain)(struct virtio_device *virtio);
    /* A pause is over: without the lock, before queues are served. NULL: nothing to do. */
    void (*resume)(struct virtio_device *virtio);
    /* Fields of the type, inside the device's section. NULL: none. */
    void (*visit)(struct virtio_device *virtio, struct visitor *v);
    void (*free)(struct virtio_device *virtio);
};

/* How a device reaches its driver. */
struct virtio_transport_ops {
    /* With the device's lock held. */
    void (*queue_interrupt)(void *transport, unsigned queue);
    void (*config_interrupt)(void *transport);
    void (*reset)(void *transport); /* the driver's reset: what belongs to the device's life */
    /* Without the lock. */
    void (*power_on)(void *transport); /* the board's reset */
    void (*visit)(void *transport, struct visitor *v);
    void (*free)(void *transport);
};

/* Embedded first in every virtio device. */
struct virtio_device {
    struct device device;
    const struct virtio_ops *ops;
    struct memory *memory; /* borrowed */
    const struct virtio_transport_ops *transport_ops;
    void *transport; /* owned */
    uint64_t features_offered, features_accepted;
    uint8_t status;
    uint8_t config_generation;
    bool paused;     /* no new work is begun */
    bool resetting;  /* a reset waits for host requests */
    uint32_t budget; /* chains that may still be taken in this call */
    uint16_t queue_count;
    struct virtqueue queues[VIRTIO_QUEUES_MAX];
};

/* For the `device_ops` of a type; `name` is the section in saved state. */
#define VIRTIO_DEVICE_OPS(section)                                                                 \
    {                                                                                              \
        .name = (section), .reset = virtio_device_reset, .pause = virtio_device_pause,             \
        .resume = virtio_device_resume, .visit = virtio_device_visit, .free = virtio_device_free   \
    }
void virtio_device_reset(struct device *device);
void virtio_device_pause(struct device *device);
void virtio_device_resume(struct device *device);
void virtio_device_visit(struct device *device, struct visitor *v);
void virtio_device_free(struct device *device);

/* Called by a type's constructor; `features` are those of the type. */
void virtio_init(struct virtio_device *virtio, const struct device_ops *device_ops,
                 const struct virtio_ops *ops, struct memory *memory, uint64_t features,
                 const char *id);
/* How many queues this one device has, if not ops->queue_count. Before it has a transport. */
void virtio_set_queue_count(struct virtio_device *virtio, unsigned count);
/* Called by a type's free: also frees the transport. */
void virtio_fini(struct virtio_device *virtio);

static inline bool virtio_has(const struct virtio_device *virtio, uint64_t feature)
{
    return (virtio->features_accepted & feature) != 0;
}

/* For device types, lock held. */

/* Is the driver ready, the device whole, not paused, and this queue enabled? */
bool virtio_queue_is_live(const struct virtio_device *virtio, unsigned queue);
/*
 * Work on a queue if it is live; how notifications, and whatever lets stopped work go on, enter.
 * A driver that keeps one such call busy for very long is treated as broken.
 */
void virtio_serve(struct virtio_device *virtio, unsigned queue);
/* Take a chain. False: there is none (or the ring is broken: the device then needs a reset). */
bool virtio_pop(struct virtio_device *virtio, unsigned queue, struct virtio_chain *ret_chain);
/*
 * Give several chains back with virtio_put(), then ask for one interrupt for all of them with
 * virtio_signal(): the driver need not be told of each.
 */
void virtio_put(struct virtio_device *virtio, unsigned queue, uint16_t head, uint32_t written);
void virtio_signal(struct virtio_device *virtio, unsigned queue);
/*
 * virtio_put() for chains that the driver must see together: an entry for each at places 0, 1,
 * 2..., then all of them at once.
 */
void virtio_fill(struct virtio_device *virtio, unsigned queue, uint16_t place, uint16_t head,
                 uint32_t written);
void virtio_publish(struct virtio_device *virtio, unsigned queue, uint16_t count);
/* virtio_put() and virtio_signal(), for a chain that comes alone. */
void virtio_push(struct virtio_device *virtio, unsigned queue, uint16_t head, uint32_t written);
/* The driver broke the rules: stop serving it until it resets the device (2.1.2). */
void virtio_needs_reset(struct virtio_device *virtio);
/* The device's configuration changed by itself (2.5). */
void virtio_config_changed(struct virtio_device *virtio);

/* For transports, lock held; status may let go of the lock and take it again (a reset waits). */

void virtio_set_status(struct virtio_device *virtio, uint8_t status);
void virtio_set_features(struct virtio_device *virtio, unsigned word, uint32_t features);
void virtio_enable_queue(struct virtio_device *virtio, unsigned queue);
/* Little-endian; outside of the configuration reads as zeros, and writes vanish. */
uint64_t virtio_config_read(struct virtio_device *virtio, uint64_t offset, unsigned size);
void virtio_config_write(struct virtio_device *virtio, uint64_t offset, unsigned size,
                         uint64_t value);
