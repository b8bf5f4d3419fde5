/*
 * What every device model is: an embedded struct device, an operations table, a lock.
 *
 * A model is made by its own X_new(...), which takes everything it needs as arguments (regions go
 * on a bus, interrupts out on lines, time from a clock, contents to a backend), so that each
 * can be tested alone. The machine keeps all devices in one list, in board order.
 */
#pragma once

#include <pthread.h>

struct device;
struct visitor;

struct device_ops {
    const char *name; /* the section in saved state */
    /* Power-on state. NULL is not allowed. */
    void (*reset)(struct device *device);
    /* Stop starting host requests and wait for those in flight. NULL: nothing to do. */
    void (*pause)(struct device *device);
    void (*resume)(struct device *device);
    /* Save, load, compare, print: persist/visitor.h. NULL is not allowed. */
    void (*visit)(struct device *device, struct visitor *v);
    void (*free)(struct device *device);
};

struct device {
    const struct device_ops *ops;
    char id[24];          /* unique on the board, e.g. "serial0", "virtio-blk1" */
    pthread_mutex_t lock; /* guards the model's fields; taken by its own entry points */
};

/* Called by X_new. `id` is copied (and truncated). */
void device_init(struct device *device, const struct device_ops *ops, const char *id);
/* Called by X's own free. */
void device_fini(struct device *device);

static inline void device_free(struct device *device)
{
    if (device) {
        device->ops->free(device);
    }
}
