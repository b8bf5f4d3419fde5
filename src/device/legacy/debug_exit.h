/*
 * A port with which test guests end the machine and tell a value, and the POST code port 80h,
 * which keeps the last value written.
 */
#pragma once

#include <stdint.h>

#include "bus/bus.h"
#include "device/device.h"

struct debug_exit_config {
    struct bus *bus;
    uint16_t port; /* four ports from here, usually F4h */
    /* The guest wrote `value`. On the vCPU's thread; must not wait for it. */
    void (*exit)(void *owner, uint32_t value);
    void *owner;
};

int debug_exit_new(const struct debug_exit_config *config, struct device **ret_device)
    __attribute__((warn_unused_result));

/* Port 80h. */
int post_code_new(struct bus *bus, struct device **ret_device) __attribute__((warn_unused_result));
