/*
 * High precision event timers: a 64-bit counter of 100 MHz and three timers, each of which can
 * repeat; legacy replacement. IA-PC HPET Specification, revision 1.0a. Messages ("FSB interrupts")
 * are not offered.
 *
 * Interrupts go to I/O APIC pins 20 to 23, as the guest chooses. In legacy replacement timers 0 and
 * 1 take the lines of the 8254 and of the RTC, whose own interrupts are then cut off: so these two
 * pass through here.
 */
#pragma once

#include <stdint.h>

#include "base/clock.h"
#include "bus/bus.h"
#include "device/device.h"

enum {
    HPET_SIZE = 0x400,
    HPET_FIRST_PIN = 20,
    HPET_PINS = 4,
    HPET_TIMERS = 3,
    /* The low half of the capabilities, which is the ACPI table's event timer block id, too. */
    HPET_BLOCK_ID = 0x8086 << 16 | 1 << 15 | 1 << 13 | (HPET_TIMERS - 1) << 8 | 1,
};

enum hpet_legacy { HPET_PIT, HPET_RTC, HPET_LEGACIES };

struct hpet_config {
    struct bus *bus;
    uint64_t base;
    struct clock clock;
    struct irq_line pins[HPET_PINS];
    struct irq_line legacy[HPET_LEGACIES]; /* where the 8254's and the RTC's interrupts go */
};

int hpet_new(const struct hpet_config *config, struct device **ret_device)
    __attribute__((warn_unused_result));
/* The line to give to the 8254 or to the RTC. */
struct irq_line hpet_legacy_line(struct device *device, enum hpet_legacy which);
