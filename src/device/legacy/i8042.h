/*
 * The keyboard controller at ports 60h/64h with nothing plugged into its two ports, and port 92h
 * (fast A20 and reset). Guests use it to reset the machine; its self tests pass, and devices
 * behind it time out as absent ones do. The A20 gate is recorded but always open.
 */
#pragma once

#include "bus/bus.h"
#include "device/device.h"

struct i8042_config {
    struct bus *bus;
    struct irq_line keyboard_irq; /* ISA line 1 */
    struct irq_line mouse_irq;    /* ISA line 12 */
    /* The guest pulsed the reset line. On the vCPU's thread; must not wait for it. */
    void (*reset)(void *owner);
    void *owner;
};

int i8042_new(const struct i8042_config *config, struct device **ret_device)
    __attribute__((warn_unused_result));
