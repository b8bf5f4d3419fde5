/* The part that all device models share: identity and lock. */
#include "device/device.h"

#include <stdio.h>

#include "base/assert.h"

void device_init(struct device *device, const struct device_ops *ops, const char *id)
{
    ASSERT(ops->name && ops->reset && ops->visit && ops->free);
    device->ops = ops;
    snprintf(device->id, sizeof device->id, "%s", id);
    pthread_mutex_init(&device->lock, NULL);
}

void device_fini(struct device *device)
{
    pthread_mutex_destroy(&device->lock);
}
