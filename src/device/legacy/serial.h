/* A 16550A serial port (National Semiconductor PC16550D) in front of a console backend. */
#pragma once

#include <stdint.h>

#include "backend/console/console.h"
#include "base/clock.h"
#include "bus/bus.h"
#include "device/device.h"

struct serial_config {
    const char *id; /* "serial0" */
    uint16_t port;  /* 3F8h for the first */
    struct bus *bus;
    struct irq_line irq;
    struct clock clock;      /* for the receive timeout */
    struct console *console; /* borrowed; NULL: nobody listens */
};

/* Connects itself to the console as its receiver. */
int serial_new(const struct serial_config *config, struct device **ret_device)
    __attribute__((warn_unused_result));
