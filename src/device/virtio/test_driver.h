/*
 * For tests and fuzzers of virtio devices: a board of memory, bus and PCI, and a driver that finds
 * the device through its capabilities and runs its rings, as an operating system would.
 */
#pragma once

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "bus/bus.h"
#include "bus/pci.h"
#include "device/virtio/virtio.h"
#include "device/virtio/virtio_pci.h"

enum {
    TEST_MEMORY = 1 << 20,
    TEST_SLOT = 3,
    TEST_DEVFN = TEST_SLOT << 3,
    TEST_RINGS = 0x1000,      /* queue n has its rings at (n + 1) times this */
    TEST_RINGS_SIZE = 0x8000, /* bytes for the rings of a queue */
    TEST_BUFFERS = 0x40000,   /* free for tests from here on */
    TEST_QUEUE = 16,          /* entries in a test's ring */
};

/* What the driver knows of a queue. */
struct test_ring {
    uint16_t size, available, used_seen, next_descriptor;
    gpa_t descriptors, driver, device;
    uint64_t notify; /* where to write */
};

struct test_board {
    struct memory *memory;
    struct bus *bus;
    struct pci_bus *pci;
    struct virtio_device *virtio;
    uint64_t common, isr, config; /* addresses of the register blocks */
    uint64_t notify;
    uint32_t notify_spacing;
    unsigned messages[PCI_MSIX_MAX]; /* by data */
    bool line[4];
    struct test_ring rings[VIRTIO_QUEUES_MAX];
};

struct test_buffer {
    gpa_t gpa;
    uint32_t length;
    bool write; /* by the device */
};

static inline void test_message(void *owner, uint64_t address, uint32_t data)
{
    struct test_board *board = owner;
    board->messages[data % PCI_MSIX_MAX]++;
}

static inline void test_line(void *owner, unsigned number, bool level)
{
    struct test_board *board = owner;
    board->line[number] = level;
}

static inline void test_board_init(struct test_board *board)
{
    *board = (struct test_board){0};
    struct memory_range range = {.base = 0, .size = TEST_MEMORY};
    ASSERT(!memory_new(&range, 1, "test", &board->memory));
    board->bus = bus_new();
    struct irq_line lines[4];
    for (unsigned i = 0; i < 4; i++) {
        lines[i] = (struct irq_line){.set = test_line, .owner = board, .number = i};
    }
    board->pci =
        pci_bus_new(board->bus, (struct msi_target){.send = test_message, .owner = board}, lines);
}

static inline uint32_t test_config(struct test_board *board, unsigned offset, unsigned size)
{
    return pci_config_read(board->pci, 0, TEST_DEVFN, offset, size);
}

/* Walk the capabilities (4.1.4) and note where the blocks are. */
static inline void test_find_blocks(struct test_board *board)
{
    unsigned at = test_config(board, PCI_CAPABILITIES, 1);
    for (unsigned i = 0; at && i < 48; i++, at = test_config(board, at + 1, 1)) {
        if (test_config(board, at, 1) != PCI_CAPABILITY_VENDOR) {
            continue;
        }
        unsigned type = test_config(board, at + 3, 1), bar = test_config(board, at + 4, 1);
        uint64_t base = test_config(board, PCI_BAR + 4 * bar, 4) & ~0xfu;
        base |= (uint64_t)test_config(board, PCI_BAR + 4 * bar + 4, 4) << 32;
        base += test_config(board, at + 8, 4);
        if (type == 1) {
            board->common = base;
        } else if (type == 2) {
            board->notify = base;
            board->notify_spacing = test_config(board, at + 16, 4);
        } else if (type == 3) {
            board->isr = base;
        } else if (type == 4) {
            board->config = base;
        }
    }
    ASSERT(board->common && board->notify && board->isr);
}

/* Put the device on the board, with addresses and decoding as firmware leaves it. */
static inline void test_plug(struct test_board *board, struct virtio_device *virtio)
{
    board->virtio = virtio;
    ASSERT(!virtio_pci_attach(virtio, board->pci, TEST_SLOT));
    const struct pci_windows windows = {
        .memory_base = 0xe0000000,
        .memory_size = MIB(16),
        .memory64_base = GIB(64),
        .memory64_size = GIB(1),
    };
    ASSERT(!pci_assign(board->pci, &windows));
    uint32_t command = test_config(board, PCI_COMMAND, 2);
    pci_config_write(board->pci, 0, TEST_DEVFN, PCI_COMMAND, 2,
                     command | PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY);
    test_find_blocks(board);
}

static inline void test_board_fini(struct test_board *board)
{
    if (board->virtio) {
        device_free(&board->virtio->device);
    }
    pci_bus_free(board->pci);
    bus_free(board->bus);
    memory_free(board->memory);
}

static inline uint64_t test_common_read(struct test_board *board, unsigned offset, unsigned size)
{
    return bus_mmio_read(board->bus, board->common + offset, size);
}

static inline void test_common_write(struct test_board *board, unsigned offset, unsigned size,
                                     uint64_t value)
{
    bus_mmio_write(board->bus, board->common + offset, size, value);
}

static inline uint8_t test_status(struct test_board *board)
{
    return (uint8_t)test_common_read(board, 0x14, 1);
}

static inline void test_write(struct test_board *board, gpa_t gpa, const void *bytes,
                              uint64_t length)
{
    ASSERT(!memory_write(board->memory, gpa, bytes, length));
}

static inline void test_read(struct test_board *board, gpa_t gpa, void *bytes, uint64_t length)
{
    ASSERT(!memory_read(board->memory, gpa, bytes, length));
}

/* Up to FEATURES_OK; returns whether the device agreed. */
static inline bool test_negotiate(struct test_board *board, uint64_t features)
{
    test_common_write(board, 0x14, 1, 0);
    test_common_write(board, 0x14, 1, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER);
    for (unsigned word = 0; word < 2; word++) {
        test_common_write(board, 0x08, 4, word);
        test_common_write(board, 0x0c, 4, (uint32_t)(features >> (32 * word)));
    }
    uint8_t status = VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK;
    test_common_write(board, 0x14, 1, status);
    return test_status(board) & VIRTIO_FEATURES_OK;
}

static inline uint64_t test_features(struct test_board *board)
{
    uint64_t features = 0;
    for (unsigned word = 0; word < 2; word++) {
        test_common_write(board, 0x00, 4, word);
        features |= test_common_read(board, 0x04, 4) << (32 * word);
    }
    return features;
}

static inline void test_setup_queue(struct test_board *board, unsigned queue, uint16_t size)
{
    gpa_t base = TEST_RINGS + (uint64_t)queue * TEST_RINGS_SIZE;
    struct test_ring *ring = &board->rings[queue];
    *ring = (struct test_ring){
        .size = size, .descriptors = base, .driver = base + 0x2000, .device = base + 0x3000};
    static const uint8_t zeros[TEST_RINGS_SIZE];
    test_write(board, base, zeros, sizeof zeros);
    test_common_write(board, 0x16, 2, queue);
    test_common_write(board, 0x18, 2, size);
    test_common_write(board, 0x1a, 2, queue + 1);
    for (unsigned half = 0; half < 2; half++) {
        test_common_write(board, 0x20 + 4 * half, 4, (uint32_t)(ring->descriptors >> (32 * half)));
        test_common_write(board, 0x28 + 4 * half, 4, (uint32_t)(ring->driver >> (32 * half)));
        test_common_write(board, 0x30 + 4 * half, 4, (uint32_t)(ring->device >> (32 * half)));
    }
    ring->notify = board->notify + board->notify_spacing * test_common_read(board, 0x1e, 2);
    test_common_write(board, 0x1c, 2, 1);
}

/* MSI-X on, with message data n for vector n. */
static inline void test_enable_msix(struct test_board *board)
{
    unsigned at = test_config(board, PCI_CAPABILITIES, 1);
    while (test_config(board, at, 1) != PCI_CAPABILITY_MSIX) {
        at = test_config(board, at + 1, 1);
    }
    uint32_t table = test_config(board, at + 4, 4);
    uint64_t base = test_config(board, PCI_BAR + 4 * (table & 7), 4) & ~0xfu;
    base += table & ~7u;
    unsigned count = (test_config(board, at + 2, 2) & 0x7ff) + 1;
    pci_config_write(board->pci, 0, TEST_DEVFN, at + 2, 2, 0x8000);
    for (unsigned i = 0; i < count; i++) {
        bus_mmio_write(board->bus, base + 16 * i, 4, 0xfee00000);
        bus_mmio_write(board->bus, base + 16 * i + 4, 4, 0);
        bus_mmio_write(board->bus, base + 16 * i + 8, 4, i);
        bus_mmio_write(board->bus, base + 16 * i + 12, 4, 0);
    }
}

/* The whole way to DRIVER_OK with all features but `without`, and all queues of TEST_QUEUE. */
static inline void test_start(struct test_board *board, uint64_t without)
{
    ASSERT(test_negotiate(board, test_features(board) & ~without));
    unsigned queues = (unsigned)test_common_read(board, 0x12, 2);
    test_common_write(board, 0x10, 2, 0);
    for (unsigned i = 0; i < queues; i++) {
        test_setup_queue(board, i, TEST_QUEUE);
    }
    test_common_write(board, 0x14, 1, test_status(board) | VIRTIO_DRIVER_OK);
}

static inline void test_put_descriptor(struct test_board *board, gpa_t at, gpa_t gpa,
                                       uint32_t length, uint16_t flags, uint16_t next)
{
    uint8_t descriptor[16];
    store_le64(descriptor, gpa);
    store_le32(descriptor + 8, length);
    store_le16(descriptor + 12, flags);
    store_le16(descriptor + 14, next);
    test_write(board, at, descriptor, sizeof descriptor);
}

/* Offer the chain that begins at descriptor `head`. */
static inline void test_offer(struct test_board *board, unsigned queue, uint16_t head)
{
    struct test_ring *ring = &board->rings[queue];
    gpa_t slot = ring->driver + 4 + 2u * (ring->available % ring->size);
    test_write(board, slot, &head, 2);
    ring->available++;
    test_write(board, ring->driver + 2, &ring->available, 2);
}

/* Offer a chain of buffers, without a notification; returns its head. */
static inline uint16_t test_add(struct test_board *board, unsigned queue,
                                const struct test_buffer *buffers, unsigned count)
{
    struct test_ring *ring = &board->rings[queue];
    uint16_t head = ring->next_descriptor;
    for (unsigned i = 0; i < count; i++) {
        uint16_t index = (uint16_t)((head + i) % ring->size);
        uint16_t next = (uint16_t)((head + i + 1) % ring->size);
        uint16_t flags = (uint16_t)((i + 1 < count ? 1 : 0) | (buffers[i].write ? 2 : 0));
        test_put_descriptor(board, ring->descriptors + 16u * index, buffers[i].gpa,
                            buffers[i].length, flags, next);
    }
    ring->next_descriptor = (uint16_t)((head + count) % ring->size);
    test_offer(board, queue, head);
    return head;
}

static inline void test_kick(struct test_board *board, unsigned queue)
{
    bus_mmio_write(board->bus, board->rings[queue].notify, 2, queue);
}

/* Take a used entry: false if there is none. */
static inline bool test_take_used(struct test_board *board, unsigned queue, uint32_t *ret_head,
                                  uint32_t *ret_written)
{
    struct test_ring *ring = &board->rings[queue];
    uint16_t used;
    test_read(board, ring->device + 2, &used, 2);
    if (used == ring->used_seen) {
        return false;
    }
    gpa_t slot = ring->device + 4 + 8u * (ring->used_seen % ring->size);
    test_read(board, slot, ret_head, 4);
    test_read(board, slot + 4, ret_written, 4);
    ring->used_seen++;
    return true;
}
