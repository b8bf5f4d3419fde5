/*
 * For the tests and the fuzzer of NVMe: a board of memory, bus and PCI, and a driver that enables
 * the controller and runs its queues, as an operating system would.
 */
#pragma once

#include <string.h>

#include "backend/disk/memory_disk.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "bus/bus.h"
#include "bus/pci.h"
#include "device/storage/nvme_internal.h"
#include "memory/memory.h"

enum {
    DRIVER_MEMORY = 2 << 20,
    DRIVER_SLOT = 3,
    DRIVER_ENTRIES = 8,   /* in each of its queues */
    DRIVER_SQS = 0x10000, /* a page for each queue from here on */
    DRIVER_CQS = 0x20000,
    DRIVER_SHADOW = 0x30000,
    DRIVER_EVENTS = 0x31000,
    DRIVER_DATA = 0x40000, /* free for tests from here on */
    DRIVER_CC = 0x00460001,
};

struct driver_queue {
    uint16_t tail, head;
    bool phase;
};

struct driver {
    struct memory *memory;
    struct bus *bus;
    struct pci_bus *pci;
    struct memory_disk *disk;
    struct device *device;
    struct nvme *nvme;
    uint64_t registers, msix;
    unsigned messages[NVME_QUEUES_MAX + 1]; /* by data */
    bool line;
    bool shadow; /* use shadow doorbells */
    uint16_t next_id;
    unsigned reports;
    struct driver_queue queues[NVME_QUEUES_MAX];
};

struct completion {
    uint32_t result, reserved;
    uint16_t sq_head, sq, id, status; /* with the phase as bit 0 */
};

static inline void driver_message(void *owner, uint64_t address, uint32_t data)
{
    struct driver *driver = owner;
    driver->messages[data % (NVME_QUEUES_MAX + 1)]++;
}

static inline void driver_line(void *owner, unsigned number, bool level)
{
    struct driver *driver = owner;
    driver->line = number == DRIVER_SLOT % 4 ? level : driver->line;
}

static inline void driver_report(void *owner, int error, const char *text)
{
    struct driver *driver = owner;
    ASSERT(error < 0 && *text);
    driver->reports++;
}

static inline uint32_t driver_config(struct driver *driver, unsigned offset, unsigned size)
{
    return pci_config_read(driver->pci, 0, DRIVER_SLOT << 3, offset, size);
}

/* Addresses and decoding as firmware leaves them. */
static inline void driver_assign(struct driver *driver)
{
    const struct pci_windows windows = {
        .memory_base = 0xe0000000,
        .memory_size = MIB(16),
        .memory64_base = GIB(64),
        .memory64_size = GIB(1),
    };
    ASSERT(!pci_assign(driver->pci, &windows));
    pci_config_write(driver->pci, 0, DRIVER_SLOT << 3, PCI_COMMAND, 2,
                     PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY);
    driver->registers = driver_config(driver, PCI_BAR, 4) & ~0xfu;
    driver->registers |= (uint64_t)driver_config(driver, PCI_BAR + 4, 4) << 32;
    driver->msix = driver_config(driver, PCI_BAR + 16, 4) & ~0xfu;
}

static inline void driver_init(struct driver *driver, uint64_t disk_size, bool readonly,
                               unsigned queues)
{
    *driver = (struct driver){0};
    struct memory_range range = {.base = 0, .size = DRIVER_MEMORY};
    ASSERT(!memory_new(&range, 1, "test", &driver->memory));
    driver->bus = bus_new();
    struct irq_line lines[4];
    for (unsigned i = 0; i < 4; i++) {
        lines[i] = (struct irq_line){.set = driver_line, .owner = driver, .number = i};
    }
    driver->pci = pci_bus_new(driver->bus,
                              (struct msi_target){.send = driver_message, .owner = driver}, lines);
    driver->disk = memory_disk_new(disk_size, readonly);
    const struct nvme_config config = {
        .memory = driver->memory,
        .disk = &driver->disk->disk,
        .pci = driver->pci,
        .slot = DRIVER_SLOT,
        .queues = queues,
        .serial = "serial-1",
        .report = driver_report,
        .owner = driver,
    };
    ASSERT(!nvme_new(&config, "nvme0", &driver->device));
    driver->nvme = CONTAINER_OF(driver->device, struct nvme, device);
    driver_assign(driver);
}

static inline void driver_fini(struct driver *driver)
{
    device_free(driver->device);
    pci_bus_free(driver->pci);
    bus_free(driver->bus);
    memory_free(driver->memory);
}

static inline uint64_t driver_read(struct driver *driver, unsigned offset, unsigned size)
{
    return bus_mmio_read(driver->bus, driver->registers + offset, size);
}

static inline void driver_write(struct driver *driver, unsigned offset, unsigned size,
                                uint64_t value)
{
    bus_mmio_write(driver->bus, driver->registers + offset, size, value);
}

static inline void driver_store(struct driver *driver, gpa_t gpa, const void *bytes, size_t size)
{
    ASSERT(!memory_write(driver->memory, gpa, bytes, size));
}

static inline void driver_load(struct driver *driver, gpa_t gpa, void *bytes, size_t size)
{
    ASSERT(!memory_read(driver->memory, gpa, bytes, size));
}

/* MSI-X on, with message data n for vector n. */
static inline void driver_enable_msix(struct driver *driver)
{
    unsigned at = driver_config(driver, PCI_CAPABILITIES, 1);
    while (driver_config(driver, at, 1) != PCI_CAPABILITY_MSIX) {
        at = driver_config(driver, at + 1, 1);
        ASSERT(at);
    }
    for (unsigned i = 0; i <= driver->nvme->io_queues; i++) {
        bus_mmio_write(driver->bus, driver->msix + 16 * i, 4, 0xfee00000);
        bus_mmio_write(driver->bus, driver->msix + 16 * i + 4, 4, 0);
        bus_mmio_write(driver->bus, driver->msix + 16 * i + 8, 4, i);
        bus_mmio_write(driver->bus, driver->msix + 16 * i + 12, 4, 0);
    }
    pci_config_write(driver->pci, 0, DRIVER_SLOT << 3, at + 2, 2, 0x8000);
}

static inline void driver_forget_queue(struct driver *driver, unsigned queue)
{
    static const uint8_t zeros[NVME_PAGE];
    driver->queues[queue] = (struct driver_queue){.phase = true};
    driver_store(driver, DRIVER_SQS + NVME_PAGE * queue, zeros, sizeof zeros);
    driver_store(driver, DRIVER_CQS + NVME_PAGE * queue, zeros, sizeof zeros);
}

/* The controller anew, with its admin queues; is it ready? */
static inline bool driver_enable(struct driver *driver)
{
    driver_write(driver, 0x14, 4, 0);
    driver->shadow = false;
    driver_forget_queue(driver, 0);
    driver_write(driver, 0x24, 4, (DRIVER_ENTRIES - 1) | (DRIVER_ENTRIES - 1) << 16);
    driver_write(driver, 0x28, 8, DRIVER_SQS);
    driver_write(driver, 0x30, 8, DRIVER_CQS);
    driver_write(driver, 0x14, 4, DRIVER_CC);
    return (driver_read(driver, 0x1c, 4) & 3) == 1;
}

/* Write a doorbell, or its shadow and then the bell only if the controller asks for it (5.7). */
static inline void driver_ring(struct driver *driver, unsigned index, uint16_t value)
{
    if (driver->shadow && index > 1) {
        uint32_t before, event, now = value;
        driver_load(driver, DRIVER_SHADOW + 4 * index, &before, 4);
        driver_store(driver, DRIVER_SHADOW + 4 * index, &now, 4);
        driver_load(driver, DRIVER_EVENTS + 4 * index, &event, 4);
        if ((uint16_t)(value - event - 1) >= (uint16_t)(value - before)) {
            return;
        }
    }
    driver_write(driver, 0x1000 + 4 * index, 4, value);
}

/* Put a command into a queue; returns its id. */
static inline uint16_t driver_put(struct driver *driver, unsigned queue,
                                  struct nvme_command command)
{
    struct driver_queue *q = &driver->queues[queue];
    command.id = driver->next_id++;
    driver_store(driver, DRIVER_SQS + NVME_PAGE * queue + 64u * q->tail, &command, sizeof command);
    q->tail = (uint16_t)((q->tail + 1) % DRIVER_ENTRIES);
    return command.id;
}

static inline uint16_t driver_submit(struct driver *driver, unsigned queue,
                                     struct nvme_command command)
{
    uint16_t id = driver_put(driver, queue, command);
    driver_ring(driver, 2 * queue, driver->queues[queue].tail);
    return id;
}

/* Take an answer: false if there is none. The head is told with driver_ring(). */
static inline bool driver_take(struct driver *driver, unsigned queue, struct completion *ret_entry)
{
    struct driver_queue *q = &driver->queues[queue];
    driver_load(driver, DRIVER_CQS + NVME_PAGE * queue + 16u * q->head, ret_entry, 16);
    if ((ret_entry->status & 1) != q->phase) {
        return false;
    }
    q->head = (uint16_t)((q->head + 1) % DRIVER_ENTRIES);
    q->phase ^= q->head == 0;
    ret_entry->status >>= 1;
    return true;
}

/* A command and its answer, with the disk's help; the status without the bit about retries. */
static inline uint16_t driver_run(struct driver *driver, unsigned queue,
                                  struct nvme_command command, uint32_t *ret_result)
{
    struct completion entry = {0};
    uint16_t id = driver_submit(driver, queue, command);
    while (memory_disk_step(driver->disk)) {
    }
    ASSERT(driver_take(driver, queue, &entry) && entry.id == id && entry.sq == queue);
    driver_ring(driver, 2 * queue + 1, driver->queues[queue].head);
    if (ret_result) {
        *ret_result = entry.result;
    }
    return entry.status & 0x7ff;
}

static inline uint16_t driver_admin(struct driver *driver, uint8_t opcode, uint32_t dw10,
                                    uint32_t dw11, uint32_t *ret_result)
{
    return driver_run(
        driver, 0,
        (struct nvme_command){.opcode = opcode, .prp1 = DRIVER_DATA, .dw10 = dw10, .dw11 = dw11},
        ret_result);
}

/* A pair of I/O queues of the same number, with the vector of that number. */
static inline uint16_t driver_create_pair(struct driver *driver, unsigned queue)
{
    driver_forget_queue(driver, queue);
    struct nvme_command command = {
        .opcode = 0x05,
        .prp1 = DRIVER_CQS + NVME_PAGE * queue,
        .dw10 = queue | (DRIVER_ENTRIES - 1) << 16,
        .dw11 = 3 | queue << 16,
    };
    uint16_t status = driver_run(driver, 0, command, NULL);
    command.opcode = 0x01;
    command.prp1 = DRIVER_SQS + NVME_PAGE * queue;
    command.dw11 = 1 | queue << 16;
    return status ? status : driver_run(driver, 0, command, NULL);
}

static inline uint16_t driver_use_shadow(struct driver *driver)
{
    uint16_t status = driver_run(
        driver, 0,
        (struct nvme_command){.opcode = 0x7c, .prp1 = DRIVER_SHADOW, .prp2 = DRIVER_EVENTS}, NULL);
    driver->shadow = status == 0;
    return status;
}

/* An I/O command on blocks, with its data at DRIVER_DATA in one piece of memory. */
static inline struct nvme_command driver_io(uint8_t opcode, uint64_t block, uint32_t blocks)
{
    return (struct nvme_command){
        .opcode = opcode,
        .namespace_id = 1,
        .prp1 = DRIVER_DATA,
        .prp2 = DRIVER_DATA + NVME_PAGE,
        .dw10 = (uint32_t)block,
        .dw11 = (uint32_t)(block >> 32),
        .dw12 = blocks - 1,
    };
}
