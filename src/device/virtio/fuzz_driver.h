/*
 * For fuzzers of virtio devices: a driver that does what bytes say. Registers, rings, buffers and
 * PCI configuration are written in any order; now and then things are set up properly, so that
 * short inputs reach deep.
 */
#pragma once

#include "device/virtio/test_driver.h"
#include "persist/visitor.h"

/* The bytes that are left; zeros after the end. */
struct fuzz_input {
    const uint8_t *bytes;
    size_t count;
};

static inline uint64_t fuzz_take(struct fuzz_input *input, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size && input->count; i++, input->count--) {
        value |= (uint64_t)*input->bytes++ << (8 * i);
    }
    return value;
}

/* Mostly near the rings and buffers, sometimes anywhere. */
static inline uint64_t fuzz_address(struct fuzz_input *input)
{
    uint8_t kind = (uint8_t)fuzz_take(input, 1);
    if (kind == 0xff) {
        return fuzz_take(input, 8);
    }
    return (kind & 1 ? TEST_BUFFERS : TEST_RINGS) + fuzz_take(input, 2);
}

static inline void fuzz_registers(struct test_board *board, struct fuzz_input *input)
{
    static const uint8_t sizes[4] = {1, 2, 4, 8};
    uint16_t where = (uint16_t)fuzz_take(input, 2);
    unsigned size = sizes[where >> 14];
    uint8_t how = (uint8_t)fuzz_take(input, 1);
    /* Half of the accesses to the common block, where most of the registers are. */
    uint64_t offset = how & 2 ? where & 0x3f : where & (how & 4 ? 0x303f : 0x3fff);
    if (how & 1) {
        bus_mmio_read(board->bus, board->common + offset, size);
    } else {
        bus_mmio_write(board->bus, board->common + offset, size, fuzz_take(input, size));
    }
}

static inline void fuzz_configuration(struct test_board *board, struct fuzz_input *input)
{
    static const uint8_t sizes[4] = {1, 2, 4, 4};
    unsigned size = sizes[fuzz_take(input, 1) & 3];
    unsigned offset = (unsigned)fuzz_take(input, 1) & ~(size - 1);
    if (offset >= PCI_COMMAND && offset < 0x40) {
        test_config(board, offset, size); /* the BARs stay, or nothing more is reached */
    } else {
        pci_config_write(board->pci, 0, TEST_DEVFN, offset, size, (uint32_t)fuzz_take(input, size));
        test_config(board, offset, size);
    }
}

static inline void fuzz_memory(struct test_board *board, struct fuzz_input *input)
{
    uint8_t bytes[64];
    uint64_t at = fuzz_address(input);
    size_t count = fuzz_take(input, 1) % sizeof bytes;
    for (size_t i = 0; i < count; i++) {
        bytes[i] = (uint8_t)fuzz_take(input, 1);
    }
    if (memory_write(board->memory, at, bytes, count)) {
        return; /* it was no RAM */
    }
}

/* A chain of up to 7 buffers with contents as the input says, offered and perhaps notified. */
static inline void fuzz_chain(struct test_board *board, struct fuzz_input *input)
{
    struct test_buffer buffers[7];
    uint8_t kind = (uint8_t)fuzz_take(input, 1);
    unsigned queue = kind & 1, count = 1 + (kind >> 1 & 7) % 7;
    struct test_ring *ring = &board->rings[queue];
    if (!ring->size) {
        return;
    }
    for (unsigned i = 0; i < count; i++) {
        buffers[i].gpa = fuzz_address(input);
        buffers[i].length = (uint32_t)fuzz_take(input, 2);
        buffers[i].write = buffers[i].length & 1;
        uint64_t head[2] = {fuzz_take(input, 1), fuzz_take(input, 1)};
        if (buffers[i].length == 16 &&
            memory_write(board->memory, buffers[i].gpa, head, sizeof head)) {
            return;
        }
    }
    test_add(board, queue, buffers, count);
    if (kind & 0x80) {
        test_kick(board, queue);
    }
}

/* Save and load into the same device: what was saved must be accepted and be the same. */
static inline void fuzz_save_load(struct test_board *board)
{
    struct device *device = &board->virtio->device;
    if (device->ops->pause) {
        device->ops->pause(device);
    }
    struct visitor *save = visitor_new_write();
    device->ops->visit(device, save);
    size_t size;
    const void *saved = visitor_buffer(save, &size);
    struct visitor *load = visitor_new_read(saved, size);
    device->ops->visit(device, load);
    ASSERT(!visitor_error(save) && !visitor_error(load));
    struct visitor *compare = visitor_new_compare(saved, size, NULL, NULL);
    device->ops->visit(device, compare);
    ASSERT(!visitor_differences(compare));
    visitor_free(compare);
    visitor_free(load);
    visitor_free(save);
    if (device->ops->resume) {
        device->ops->resume(device);
    }
}

/* Drive the device until the input ends. `other` does what only this type of device can. */
static inline void fuzz_run(struct test_board *board, struct fuzz_input *input,
                            void (*other)(void *owner, struct fuzz_input *input), void *owner)
{
    unsigned saves = 2; /* they take most of the time, and more of them find no more */
    while (input->count) {
        uint8_t what = (uint8_t)fuzz_take(input, 1);
        switch (what % 8) {
        case 0:
            fuzz_registers(board, input);
            break;
        case 1:
            fuzz_memory(board, input);
            break;
        case 2:
            fuzz_configuration(board, input);
            break;
        case 3:
            test_start(board, fuzz_take(input, 4));
            break;
        case 4:
        case 5:
            fuzz_chain(board, input);
            break;
        case 6:
            if (what & 0x80 && saves > 0) {
                saves--;
                fuzz_save_load(board);
            } else if (what & 0x40) { /* the machine is reset, and has no BARs from here on */
                board->virtio->device.ops->reset(&board->virtio->device);
                fuzz_save_load(board);
                return;
            } else if (board->rings[what >> 3 & 1].size) {
                test_kick(board, what >> 3 & 1);
            }
            break;
        case 7:
            other(owner, input);
            break;
        }
    }
}
