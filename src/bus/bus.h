/*
 * The wires: which device answers a port or a physical address, and how interrupts travel.
 *
 * Knows:   addresses and owners. Knows no CPU and no guest memory.
 * Threads: bus_add/remove happen under the VM's device lock with vCPUs able to run (PCI BARs move
 *          while the guest runs); accesses take a read-side path and then the owner's own lock.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A device's answer to accesses of one region. `offset` is relative to the region's base. */
struct region_ops {
    uint64_t (*read)(void *owner, uint64_t offset, unsigned size);
    void (*write)(void *owner, uint64_t offset, unsigned size, uint64_t value);
};

/* A span of ports or of physical addresses. The owner embeds it; the bus keeps a pointer. */
struct region {
    const char *name; /* for messages and `doppel show` */
    uint64_t base, size;
    const struct region_ops *ops;
    void *owner;
    bool is_byte_wide;              /* wider accesses arrive as bytes, the lowest address first */
    _Atomic uint64_t reads, writes; /* the bus's: accesses that it has answered */
};

struct bus;

struct bus *bus_new(void);
void bus_free(struct bus *bus);

/* -EBUSY with both names on the trail if the region overlaps another. */
int bus_add_port(struct bus *bus, struct region *region) __attribute__((warn_unused_result));
int bus_add_mmio(struct bus *bus, struct region *region) __attribute__((warn_unused_result));
/* Returns when no access to the region is in progress. A region that is not there is fine. */
void bus_remove(struct bus *bus, struct region *region);

/*
 * Accesses by vCPUs. What nobody owns reads as all ones, and writes vanish. An access that
 * crosses the end of a region is split into bytes.
 */
uint32_t bus_port_read(struct bus *bus, uint16_t port, unsigned size);
void bus_port_write(struct bus *bus, uint16_t port, unsigned size, uint32_t value);
uint64_t bus_mmio_read(struct bus *bus, uint64_t address, unsigned size);
void bus_mmio_write(struct bus *bus, uint64_t address, unsigned size, uint64_t value);

/* Tell of each region how it is used. Any thread; `tell` calls nothing of the bus. */
void bus_visit(struct bus *bus,
               void (*tell)(void *owner, const struct region *region, bool is_port), void *owner);

/*
 * An interrupt line: who drives it sees only this. The receiver sees its number. A line without a
 * receiver (set == NULL) is not connected. Any thread.
 */
struct irq_line {
    void (*set)(void *owner, unsigned number, bool level);
    void *owner;
    unsigned number;
    bool level;
};

static inline void irq_line_set(struct irq_line *line, bool level)
{
    if (line->set && line->level != level) {
        line->level = level;
        line->set(line->owner, line->number, level);
    }
}

/* Raise and lower at once: for receivers that are edge-triggered. */
static inline void irq_line_pulse(struct irq_line *line)
{
    irq_line_set(line, true);
    irq_line_set(line, false);
}

/* Where message-signalled interrupts go: a 32-bit write to the local APICs' address window. */
struct msi_target {
    void (*send)(void *owner, uint64_t address, uint32_t data);
    void *owner;
};
