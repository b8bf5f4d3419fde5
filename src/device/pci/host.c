/* The PCI host bridge: ways into configuration space, function 00:00.0, the reset register. */
#include "device/pci/host.h"

#include <stdlib.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "persist/visitor.h"

enum { PORT_ADDRESS = 0xcf8, ADDRESS_ENABLE = 1u << 31, ADDRESS_WRITABLE = 0x80fffffc };
enum { OFFSET_RESET = 1, OFFSET_DATA = 4 };
/* CF9h: a reset happens when "reset CPU" goes from 0 to 1; the other bits choose its kind. */
enum { RESET_CPU = 1u << 2, RESET_WRITABLE = 0x0e };

struct pci_host {
    struct device device;
    struct bus *bus;
    struct pci_bus *pci;
    struct region ports, mmconfig;
    void (*request_reset)(void *owner);
    void *owner;
    uint32_t address;      /* CF8h */
    uint8_t reset_control; /* CF9h */
    struct pci_function function;
};

static struct pci_host *pci_host_of(struct device *device)
{
    return CONTAINER_OF(device, struct pci_host, device);
}

static uint32_t address_get(struct pci_host *host)
{
    pthread_mutex_lock(&host->device.lock);
    uint32_t address = host->address;
    pthread_mutex_unlock(&host->device.lock);
    return address;
}

static uint64_t data_read(struct pci_host *host, unsigned byte, unsigned size)
{
    uint32_t address = address_get(host);
    if (!(address & ADDRESS_ENABLE)) {
        return UINT64_MAX;
    }
    return pci_config_read(host->pci, address >> 16 & 0xff, address >> 8 & 0xff,
                           (address & 0xfc) + byte, size);
}

static uint64_t ports_read(void *owner, uint64_t offset, unsigned size)
{
    struct pci_host *host = owner;
    if (offset >= OFFSET_DATA) {
        return data_read(host, (unsigned)offset - OFFSET_DATA, size);
    }
    if (offset == 0 && size == 4) {
        return address_get(host);
    }
    if (offset == OFFSET_RESET && size == 1) {
        pthread_mutex_lock(&host->device.lock);
        uint8_t control = host->reset_control;
        pthread_mutex_unlock(&host->device.lock);
        return control;
    }
    return UINT64_MAX;
}

static void reset_write(struct pci_host *host, uint8_t value)
{
    pthread_mutex_lock(&host->device.lock);
    bool rises = value & ~host->reset_control & RESET_CPU;
    host->reset_control = value & RESET_WRITABLE;
    pthread_mutex_unlock(&host->device.lock);
    if (rises) {
        host->request_reset(host->owner);
    }
}

/* Only a 32-bit write sets the address; narrower ones belong to what lies behind (here: CF9h). */
static void ports_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_host *host = owner;
    if (offset >= OFFSET_DATA) {
        uint32_t address = address_get(host);
        if (address & ADDRESS_ENABLE) {
            pci_config_write(host->pci, address >> 16 & 0xff, address >> 8 & 0xff,
                             (address & 0xfc) + (unsigned)offset - OFFSET_DATA, size,
                             (uint32_t)value);
        }
    } else if (offset == 0 && size == 4) {
        pthread_mutex_lock(&host->device.lock);
        host->address = (uint32_t)value & ADDRESS_WRITABLE;
        pthread_mutex_unlock(&host->device.lock);
    } else if (offset == OFFSET_RESET && size == 1) {
        reset_write(host, (uint8_t)value);
    }
}

static const struct region_ops ports_ops = {.read = ports_read, .write = ports_write};

/* MMCONFIG: bus in bits 27:20, device and function in 19:12, register in 11:0. */
static uint64_t mmconfig_read(void *owner, uint64_t offset, unsigned size)
{
    struct pci_host *host = owner;
    unsigned device_function = offset >> 12 & 0xff, at = offset & 0xfff;
    if (size == 8) {
        uint64_t high = pci_config_read(host->pci, 0, device_function, at + 4, 4);
        return high << 32 | pci_config_read(host->pci, 0, device_function, at, 4);
    }
    return pci_config_read(host->pci, 0, device_function, at, size);
}

static void mmconfig_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_host *host = owner;
    unsigned device_function = offset >> 12 & 0xff, at = offset & 0xfff;
    if (size == 8) {
        pci_config_write(host->pci, 0, device_function, at, 4, (uint32_t)value);
        pci_config_write(host->pci, 0, device_function, at + 4, 4, (uint32_t)(value >> 32));
        return;
    }
    pci_config_write(host->pci, 0, device_function, at, size, (uint32_t)value);
}

static const struct region_ops mmconfig_ops = {.read = mmconfig_read, .write = mmconfig_write};

static void pci_host_reset(struct device *device)
{
    struct pci_host *host = pci_host_of(device);
    pthread_mutex_lock(&device->lock);
    host->address = 0;
    host->reset_control = 0;
    pthread_mutex_unlock(&device->lock);
    pci_function_reset(&host->function);
}

static void pci_host_visit(struct device *device, struct visitor *v)
{
    struct pci_host *host = pci_host_of(device);
    visit_begin(v, "pci-host", 1);
    visit_u32(v, "address", &host->address);
    visit_u8_max(v, "reset_control", &host->reset_control, RESET_WRITABLE);
    host->address &= ADDRESS_WRITABLE;
    host->reset_control &= RESET_WRITABLE;
    pci_function_visit(&host->function, v);
    visit_end(v);
}

static void pci_host_free(struct device *device)
{
    struct pci_host *host = pci_host_of(device);
    bus_remove(host->bus, &host->ports);
    bus_remove(host->bus, &host->mmconfig);
    pci_function_fini(&host->function);
    device_fini(device);
    free(host);
}

static const struct device_ops pci_host_ops = {
    .name = "pci-host",
    .reset = pci_host_reset,
    .visit = pci_host_visit,
    .free = pci_host_free,
};
CLEANUP_DEFINE(struct device, device_free)

/* An Intel host bridge that is bound to no chipset: guests apply no workarounds to it. */
static const struct pci_identity identity = {
    .vendor = 0x8086,
    .device = 0x0d57,
    .class_code = 0x060000,
};

int pci_host_new(const struct pci_host_config *config, struct device **ret_device)
{
    struct pci_host *host = calloc(1, sizeof *host);
    ASSERT(host);
    CLEANUP(device_free) struct device *device = &host->device;
    device_init(device, &pci_host_ops, "pci-host");
    host->bus = config->bus;
    host->pci = config->pci;
    host->request_reset = config->reset;
    host->owner = config->owner;
    host->ports = (struct region){.name = "pci configuration",
                                  .base = PORT_ADDRESS,
                                  .size = 8,
                                  .ops = &ports_ops,
                                  .owner = host};
    host->mmconfig = (struct region){.name = "pci mmconfig",
                                     .base = config->mmconfig_base,
                                     .size = PCI_MMCONFIG_SIZE,
                                     .ops = &mmconfig_ops,
                                     .owner = host};
    pci_function_init(&host->function, &identity, NULL, NULL);
    int result = pci_bus_add(config->pci, &host->function, 0);
    if (result == 0) {
        result = bus_add_port(config->bus, &host->ports);
    }
    if (result == 0 && config->mmconfig_base) {
        result = bus_add_mmio(config->bus, &host->mmconfig);
    }
    if (result == 0) {
        *ret_device = TAKE(device);
    }
    return result;
}
