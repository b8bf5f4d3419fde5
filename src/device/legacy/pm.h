/*
 * ACPI power management (ACPI 6.3, 4.8): PM1a event and control blocks, the PM timer, the power
 * button and soft-off.
 *
 * Ports from `port` on: +0 PM1 status, +2 PM1 enable, +4 PM1 control, +8 PM timer (24 bits).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "bus/bus.h"
#include "device/device.h"

enum {
    PM_PORT_EVENT = 0,
    PM_PORT_CONTROL = 4,
    PM_PORT_TIMER = 8,
    PM_PORT_COUNT = 12,
    PM_SLEEP_TYPE_S5 = 5, /* SLP_TYP of \_S5 */
    PM_TIMER_HZ = 3579545,
};

struct pm_config {
    struct bus *bus;
    uint16_t port; /* 600h */
    struct irq_line sci;
    struct clock clock;
    /* The guest switched itself off. On the vCPU's thread; must not wait for it. */
    void (*power_off)(void *owner);
    void *owner;
};

int pm_new(const struct pm_config *config, struct device **ret_device)
    __attribute__((warn_unused_result));
/* A person pressed the power button: raises the SCI if the guest enabled it. Any thread. */
void pm_press_power_button(struct device *device);
/* Did the guest enable the power button event, so that a press can be expected to work? */
bool pm_power_button_enabled(struct device *device);
