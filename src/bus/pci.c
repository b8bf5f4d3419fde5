/*
 * One PCI function: configuration space with write masks, and the registers that have effects
 * (command, BARs, MSI-X message control). PCI 3.0, chapter 6.
 */
#include "bus/pci_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"
#include "persist/visitor.h"

enum { BAR_PORT = 1u << 0, BAR_64BIT = 2u << 1, BAR_MEMORY_FLAGS = 0xf, BAR_PORT_FLAGS = 3 };
enum { MSIX_ENABLE = 1u << 15, MSIX_MASK = 1u << 14 };

void pci_function_init(struct pci_function *function, const struct pci_identity *identity,
                       const struct pci_function_ops *ops, void *owner)
{
    *function = (struct pci_function){.ops = ops, .owner = owner, .next_capability = 0x40};
    pthread_mutex_init(&function->lock, NULL);
    uint8_t *config = function->config;
    store_le16(&config[PCI_VENDOR], identity->vendor);
    store_le16(&config[PCI_DEVICE], identity->device);
    store_le16(&config[PCI_SUBSYSTEM_VENDOR], identity->subsystem_vendor);
    store_le16(&config[PCI_SUBSYSTEM], identity->subsystem);
    store_le32(&config[PCI_REVISION], identity->class_code << 8 | identity->revision);
    store_le16(&function->writable[PCI_COMMAND], PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE);
    function->writable[PCI_INTERRUPT_LINE] = 0xff;
}

void pci_function_fini(struct pci_function *function)
{
    if (function->bus) {
        pci_bus_remove(function->bus, function);
    }
    free(function->msix.entries);
    function->msix.entries = NULL;
    pthread_mutex_destroy(&function->lock);
}

static void bar_init(struct pci_function *function, unsigned index, uint64_t size,
                     const struct region_ops *ops, void *owner)
{
    ASSERT(!function->bus && index < PCI_BARS && !function->bars[index].size);
    ASSERT((size & (size - 1)) == 0);
    function->bars[index] = (struct pci_bar){
        .size = size,
        .region = {.name = "pci bar", .size = size, .ops = ops, .owner = owner},
    };
}

void pci_add_memory_bar(struct pci_function *function, unsigned index, uint64_t size, bool is_64bit,
                        const struct region_ops *ops, void *owner)
{
    ASSERT(size >= 16 && (is_64bit ? index + 1 < PCI_BARS : size <= GIB(2)));
    bar_init(function, index, size, ops, owner);
    unsigned at = PCI_BAR + 4 * index;
    store_le32(&function->writable[at], (uint32_t) ~(size - 1));
    store_le16(&function->writable[PCI_COMMAND],
               load_le16(&function->writable[PCI_COMMAND]) | PCI_COMMAND_MEMORY);
    if (is_64bit) {
        ASSERT(!function->bars[index + 1].size);
        function->bars[index].is_64bit = true;
        function->config[at] = BAR_64BIT;
        store_le32(&function->writable[at + 4], (uint32_t)(~(size - 1) >> 32));
    }
}

void pci_add_port_bar(struct pci_function *function, unsigned index, uint32_t size,
                      const struct region_ops *ops, void *owner)
{
    ASSERT(size >= 4 && size <= 256);
    bar_init(function, index, size, ops, owner);
    unsigned at = PCI_BAR + 4 * index;
    function->bars[index].is_port = true;
    function->config[at] = BAR_PORT;
    store_le32(&function->writable[at], ~(size - 1));
    store_le16(&function->writable[PCI_COMMAND],
               load_le16(&function->writable[PCI_COMMAND]) | PCI_COMMAND_PORT);
}

unsigned pci_add_capability(struct pci_function *function, uint8_t id, const void *body,
                            size_t size, const uint8_t *writable)
{
    unsigned at = function->next_capability;
    ASSERT(!function->bus && range_fits(at + 2, size, PCI_CONFIG_SIZE));
    function->config[at] = id;
    memcpy(&function->config[at + 2], body, size);
    if (writable) {
        memcpy(&function->writable[at + 2], writable, size);
    }
    unsigned link = function->last_capability ? function->last_capability + 1 : PCI_CAPABILITIES;
    function->config[link] = (uint8_t)at;
    function->config[PCI_STATUS] |= PCI_STATUS_CAPABILITIES;
    function->last_capability = (uint8_t)at;
    function->next_capability = (uint8_t)align_up(at + 2 + size, 4);
    return at;
}

void pci_add_intx(struct pci_function *function)
{
    ASSERT(!function->bus);
    function->config[PCI_INTERRUPT_PIN] = 1;
}

void pci_function_update_intx(struct pci_function *function)
{
    bool level = function->intx_level && !function->intx_disabled && !function->msix.enabled &&
                 function->config[PCI_INTERRUPT_PIN] != 0;
    if (function->bus && level != function->intx_driven) {
        function->intx_driven = level;
        pci_bus_intx(function->bus, function->slot, level);
    }
}

void pci_intx_set(struct pci_function *function, bool level)
{
    pthread_mutex_lock(&function->lock);
    function->intx_level = level;
    pci_function_update_intx(function);
    pthread_mutex_unlock(&function->lock);
}

/* Where the BAR's register says that it is; 0 if it decodes nothing. */
static uint64_t bar_wanted(const struct pci_function *function, unsigned index)
{
    const struct pci_bar *bar = &function->bars[index];
    const uint8_t *config = &function->config[PCI_BAR + 4 * index];
    uint16_t command = load_le16(&function->config[PCI_COMMAND]);
    if (!bar->size || !(command & (bar->is_port ? PCI_COMMAND_PORT : PCI_COMMAND_MEMORY))) {
        return 0;
    }
    uint64_t base = load_le32(config) & ~(bar->is_port ? BAR_PORT_FLAGS : BAR_MEMORY_FLAGS);
    if (bar->is_64bit) {
        base |= (uint64_t)load_le32(config + 4) << 32;
    }
    return base;
}

void pci_function_unmap_moved(struct pci_function *function, bool all)
{
    for (unsigned i = 0; i < PCI_BARS; i++) {
        struct pci_bar *bar = &function->bars[i];
        if (bar->mapped && (all || bar->region.base != bar_wanted(function, i))) {
            bus_remove(function->bus->bus, &bar->region);
            bar->mapped = false;
        }
    }
}

void pci_function_map(struct pci_function *function)
{
    for (unsigned i = 0; i < PCI_BARS; i++) {
        struct pci_bar *bar = &function->bars[i];
        uint64_t base = bar_wanted(function, i);
        if (bar->mapped || !base) {
            continue;
        }
        bar->region.base = base;
        int result = bar->is_port ? bus_add_port(function->bus->bus, &bar->region)
                                  : bus_add_mmio(function->bus->bus, &bar->region);
        bar->mapped = result == 0;
        if (result != 0) {
            trail_clear(); /* the guest put it onto something else: the older owner answers */
        }
    }
}

/* Take over the control bits that other threads look at. With the PCI bus's lock held. */
static void controls_update(struct pci_function *function)
{
    uint16_t command = load_le16(&function->config[PCI_COMMAND]);
    struct pci_msix *msix = &function->msix;
    uint16_t control = 0;
    if (msix->capability) {
        control = load_le16(&function->config[msix->capability + 2]);
    }
    pthread_mutex_lock(&function->lock);
    function->master = command & PCI_COMMAND_MASTER;
    function->intx_disabled = command & PCI_COMMAND_INTX_DISABLE;
    msix->enabled = control & MSIX_ENABLE;
    msix->masked = control & MSIX_MASK;
    pci_function_update_intx(function);
    pci_msix_flush(function);
    pthread_mutex_unlock(&function->lock);
}

static bool intx_asserted(struct pci_function *function)
{
    pthread_mutex_lock(&function->lock);
    bool level = function->intx_level;
    pthread_mutex_unlock(&function->lock);
    return level;
}

uint32_t pci_function_read(struct pci_function *function, unsigned offset, unsigned size)
{
    if (function->ops && function->ops->config_read) {
        function->ops->config_read(function->owner, offset, size);
    }
    uint32_t value = 0;
    memcpy(&value, &function->config[offset], size);
    if (offset <= PCI_STATUS && PCI_STATUS < offset + size && intx_asserted(function)) {
        value |= PCI_STATUS_INTERRUPT << (8 * (PCI_STATUS - offset));
    }
    return value;
}

void pci_function_write(struct pci_function *function, unsigned offset, unsigned size,
                        uint32_t value)
{
    for (unsigned i = 0; i < size; i++) {
        uint8_t mask = function->writable[offset + i];
        uint8_t *byte = &function->config[offset + i];
        *byte = (uint8_t)((*byte & ~mask) | ((value >> (8 * i)) & mask));
    }
    controls_update(function);
    if (offset < PCI_BAR + 4 * PCI_BARS) {
        pci_bus_update_bars(function->bus);
    }
    if (function->ops && function->ops->config_written) {
        function->ops->config_written(function->owner, offset, size);
    }
}

static void function_lock_bus(const struct pci_function *function)
{
    if (function->bus) {
        pthread_mutex_lock(&function->bus->lock);
    }
}

static void function_unlock_bus(const struct pci_function *function)
{
    if (function->bus) {
        pthread_mutex_unlock(&function->bus->lock);
    }
}

/* Configuration space was replaced as a whole. With the PCI bus's lock held. */
static void function_renew(struct pci_function *function)
{
    controls_update(function);
    if (function->bus) {
        pci_bus_update_bars(function->bus);
    }
}

void pci_function_reset(struct pci_function *function)
{
    function_lock_bus(function);
    if (function->bus) {
        memcpy(function->config, function->initial, sizeof function->config);
    }
    pthread_mutex_lock(&function->lock);
    function->intx_level = false;
    pci_msix_reset(function);
    pthread_mutex_unlock(&function->lock);
    function_renew(function);
    function_unlock_bus(function);
}

/* Only what the guest may write can differ from the device that this board has. */
static bool config_plausible(const struct pci_function *function, const uint8_t *config)
{
    for (unsigned i = 0; i < PCI_CONFIG_SIZE; i++) {
        if ((config[i] ^ function->config[i]) & ~function->writable[i]) {
            return false;
        }
    }
    return true;
}

void pci_function_visit(struct pci_function *function, struct visitor *v)
{
    function_lock_bus(function);
    uint8_t config[PCI_CONFIG_SIZE];
    memcpy(config, function->config, sizeof config);
    visit_begin(v, "pci-function", 1);
    visit_bytes(v, "config", config, sizeof config);
    visit_bool(v, "intx_level", &function->intx_level);
    pci_msix_visit(function, v);
    visit_end(v);
    if (visitor_mode(v) == VISITOR_READ && visitor_error(v) == 0) {
        if (config_plausible(function, config)) {
            memcpy(function->config, config, sizeof config);
            function_renew(function);
        } else {
            visitor_fail(v, -EINVAL, "the saved PCI function is not the one on this board");
        }
    }
    function_unlock_bus(function);
}
