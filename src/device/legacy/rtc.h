/*
 * The MC146818 real-time clock with 128 bytes of CMOS memory at ports 70h/71h. Time of day is the
 * wall clock given by the machine plus what the guest set.
 */
#pragma once

#include <stdint.h>

#include "base/clock.h"
#include "bus/bus.h"
#include "device/device.h"

struct rtc_config {
    struct bus *bus;
    struct irq_line irq; /* ISA line 8 */
    struct clock clock;  /* for periodic, alarm and update interrupts */
    /* Nanoseconds since 1970-01-01 UTC. Any thread. */
    uint64_t (*wall_now)(void *owner);
    void *owner;
    uint64_t memory_below_4g, memory_above_4g; /* bytes of RAM, for the memory size bytes */
};

int rtc_new(const struct rtc_config *config, struct device **ret_device)
    __attribute__((warn_unused_result));
