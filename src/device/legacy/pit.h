/*
 * The 8254 interval timer at ports 40h..43h and the speaker gate at port 61h, with which guests
 * calibrate their clocks. Channel 0 drives an interrupt line.
 */
#pragma once

#include "base/clock.h"
#include "bus/bus.h"
#include "device/device.h"

enum { PIT_HZ = 1193182 };

struct pit_config {
    struct bus *bus;
    struct irq_line irq; /* ISA line 0 */
    struct clock clock;
};

int pit_new(const struct pit_config *config, struct device **ret_device)
    __attribute__((warn_unused_result));
