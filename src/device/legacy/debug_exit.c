/* Two ports for programs without an operating system: the exit port and the POST code. */
#include "device/legacy/debug_exit.h"

#include <stdlib.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "persist/visitor.h"

CLEANUP_DEFINE(struct device, device_free)

enum { EXIT_PORTS = 4, POST_PORT = 0x80 };

/* Both keep the last value written; only the exit port tells somebody. */
struct debug_port {
    struct device device;
    struct bus *bus;
    struct region region;
    void (*exit)(void *owner, uint32_t value);
    void *owner;
    uint32_t value;
};

static struct debug_port *debug_port_of(struct device *device)
{
    return CONTAINER_OF(device, struct debug_port, device);
}

static uint64_t debug_port_read(void *owner, uint64_t offset, unsigned size)
{
    struct debug_port *port = owner;
    pthread_mutex_lock(&port->device.lock);
    uint32_t value = port->value;
    pthread_mutex_unlock(&port->device.lock);
    return value >> (8 * offset);
}

static void debug_port_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    struct debug_port *port = owner;
    pthread_mutex_lock(&port->device.lock);
    port->value = (uint32_t)value;
    pthread_mutex_unlock(&port->device.lock);
    if (port->exit) {
        port->exit(port->owner, (uint32_t)value);
    }
}

static const struct region_ops region_ops = {.read = debug_port_read, .write = debug_port_write};

static void debug_port_reset(struct device *device)
{
    struct debug_port *port = debug_port_of(device);
    pthread_mutex_lock(&device->lock);
    port->value = 0;
    pthread_mutex_unlock(&device->lock);
}

static void debug_port_visit(struct device *device, struct visitor *v)
{
    struct debug_port *port = debug_port_of(device);
    visit_begin(v, device->ops->name, 1);
    visit_u32(v, "value", &port->value);
    visit_end(v);
}

static void debug_port_free(struct device *device)
{
    struct debug_port *port = debug_port_of(device);
    bus_remove(port->bus, &port->region);
    device_fini(device);
    free(port);
}

static const struct device_ops exit_ops = {
    .name = "debug-exit",
    .reset = debug_port_reset,
    .visit = debug_port_visit,
    .free = debug_port_free,
};

static const struct device_ops post_ops = {
    .name = "post-code",
    .reset = debug_port_reset,
    .visit = debug_port_visit,
    .free = debug_port_free,
};

static int debug_port_new(const struct device_ops *ops, const struct debug_exit_config *config,
                          uint64_t ports, struct device **ret_device)
{
    struct debug_port *port = calloc(1, sizeof *port);
    ASSERT(port);
    CLEANUP(device_free) struct device *device = &port->device;
    device_init(device, ops, ops->name);
    port->bus = config->bus;
    port->exit = config->exit;
    port->owner = config->owner;
    port->region = (struct region){
        .name = ops->name, .base = config->port, .size = ports, .ops = &region_ops, .owner = port};
    int result = bus_add_port(port->bus, &port->region);
    if (result == 0) {
        *ret_device = TAKE(device);
    }
    return result;
}

int debug_exit_new(const struct debug_exit_config *config, struct device **ret_device)
{
    return debug_port_new(&exit_ops, config, EXIT_PORTS, ret_device);
}

int post_code_new(struct bus *bus, struct device **ret_device)
{
    const struct debug_exit_config config = {.bus = bus, .port = POST_PORT};
    return debug_port_new(&post_ops, &config, 1, ret_device);
}
