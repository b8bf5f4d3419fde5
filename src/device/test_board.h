/* Test only: doubles that device tests share: counting interrupt lines and one's own visit. */
#pragma once

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/test_clock.h"
#include "bus/bus.h"
#include "device/device.h"
#include "device/visit_check.h"

struct counted_line {
    bool level;
    unsigned raises;
};

static inline void counted_line_set(void *owner, unsigned number, bool level)
{
    struct counted_line *line = owner;
    line->raises += level && !line->level;
    line->level = level;
}

static inline struct irq_line counted_line_wire(struct counted_line *line)
{
    return (struct irq_line){.set = counted_line_set, .owner = line};
}

/* For VISIT_CHECK of a whole device. */
static inline void device_visit(void *device, struct visitor *v)
{
    ((struct device *)device)->ops->visit(device, v);
}

/* What every device has that is not state. */
#define DEVICE_DERIVED(type) VISIT_DERIVED(type, device), VISIT_DERIVED(type, bus)
#define LINE_DERIVED(type, line)                                                                   \
    VISIT_DERIVED(type, line.set), VISIT_DERIVED(type, line.owner), VISIT_DERIVED(type, line.number)

static inline uint8_t in8(struct bus *bus, uint16_t port)
{
    return (uint8_t)bus_port_read(bus, port, 1);
}

static inline void out8(struct bus *bus, uint16_t port, uint8_t value)
{
    bus_port_write(bus, port, 1, value);
}
