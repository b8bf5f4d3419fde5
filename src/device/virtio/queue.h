/*
 * Split virtqueues (virtio 1.2 section 2.7): the device's side of the rings.
 *
 * Promises: every access to the rings goes through memory's doors; descriptors are copied once; a
 *           chain is handed out whole and within bounds, or not at all; all loops are bounded.
 * Threads:  none of its own; the caller holds the device's lock.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "memory/memory.h"

struct visitor;

enum {
    VIRTQUEUE_SIZE_MAX = 256, /* descriptors in a ring; also the longest chain taken */
};

/* Where a driver placed its rings, and how far both sides came. */
struct virtqueue {
    struct memory *memory; /* borrowed */
    uint16_t size_max;     /* what the device offers */
    bool event_index;      /* VIRTIO_F_RING_EVENT_IDX was negotiated */
    bool indirect;         /* VIRTIO_F_RING_INDIRECT_DESC was negotiated */
    /* Written by the driver through the transport. */
    uint16_t size;
    bool enabled;
    uint64_t descriptor_area, driver_area, device_area;
    /* The device's place in the rings. */
    uint16_t next_available; /* index of the next entry to take from the available ring */
    uint16_t next_used;      /* index of the next entry to put into the used ring */
    uint16_t signalled_used; /* next_used when the driver was last asked about an interrupt */
    bool signalled_valid;    /* signalled_used means something */
};

/* A piece of guest-physical memory named by one descriptor; all of it is RAM. */
struct virtio_segment {
    gpa_t gpa;
    uint32_t length;
};

/* One request of the driver: first the segments the device reads, then those it writes. */
struct virtio_chain {
    uint16_t head;
    uint16_t read_count, write_count;
    uint64_t read_length, write_length; /* bytes of all segments of the kind */
    struct virtio_segment segments[VIRTQUEUE_SIZE_MAX];
};

void virtqueue_init(struct virtqueue *queue, struct memory *memory, uint16_t size_max);
/* As after power-on: not enabled, the largest size. */
void virtqueue_reset(struct virtqueue *queue);
/* Save or load. The contents of the rings are guest memory and travel with it. */
void virtqueue_visit(struct virtqueue *queue, struct visitor *v);

/* May the driver enable the queue like this? Size and alignment (2.7) and all three areas RAM. */
bool virtqueue_is_sane(const struct virtqueue *queue);

/*
 * Take the next chain: 1 with a chain, 0 if there is none (then the driver will notify the next
 * one), -EPROTO if the driver broke the rules of the ring: the device needs a reset.
 */
int virtqueue_pop(struct virtqueue *queue, struct virtio_chain *ret_chain)
    __attribute__((warn_unused_result));
/* Put the chain that was popped last back: the next pop takes it again. */
void virtqueue_unpop(struct virtqueue *queue);
/*
 * Give a chain back with `written` bytes in its writable segments. -EPROTO if the used ring is
 * no longer RAM. The driver sees it at once; ask virtqueue_wants_interrupt() after the last one.
 */
int virtqueue_push(struct virtqueue *queue, uint16_t head, uint32_t written)
    __attribute__((warn_unused_result));
/*
 * The same for several chains that the driver must see together: fill an entry for each, at places
 * 0, 1, 2..., then publish them all.
 */
int virtqueue_fill(struct virtqueue *queue, uint16_t place, uint16_t head, uint32_t written)
    __attribute__((warn_unused_result));
int virtqueue_publish(struct virtqueue *queue, uint16_t count) __attribute__((warn_unused_result));
/*
 * Does the driver want an interrupt for what was pushed since the last call? 1, 0, or -EPROTO.
 */
int virtqueue_wants_interrupt(struct virtqueue *queue) __attribute__((warn_unused_result));

/*
 * Copy `length` bytes at `offset` of the readable (writable) part of a chain out (in). -EFAULT if
 * the range is not inside, or not all RAM; a failed write may have written some of it.
 */
int virtio_chain_read(struct memory *memory, const struct virtio_chain *chain, uint64_t offset,
                      void *buffer, uint64_t length) __attribute__((warn_unused_result));
int virtio_chain_write(struct memory *memory, const struct virtio_chain *chain, uint64_t offset,
                       const void *buffer, uint64_t length) __attribute__((warn_unused_result));
