/*
 * virtio-console: one port (virtio 1.2 section 5.3, without VIRTIO_CONSOLE_F_MULTIPORT). A backend
 * that has no room stops the guest's output without losing any of it.
 */
#pragma once

#include "device/virtio/virtio.h"

struct console;

struct virtio_console_config {
    struct memory *memory;   /* borrowed */
    struct console *console; /* owned by the device once virtio_console_new() succeeded; or NULL */
    /* The window's size until the backend says another. 0: not known. */
    uint16_t columns, rows;
};

/* Connects itself to the console. */
int virtio_console_new(const struct virtio_console_config *config, const char *id,
                       struct virtio_device **ret_virtio) __attribute__((warn_unused_result));
