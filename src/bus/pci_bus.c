/* PCI bus 0: slots, configuration accesses, shared INTx lines, and address assignment. */
#include "bus/pci_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"

struct pci_bus *pci_bus_new(struct bus *bus, struct msi_target msi, const struct irq_line intx[4])
{
    struct pci_bus *pci = calloc(1, sizeof *pci);
    ASSERT(pci);
    pci->bus = bus;
    pci->msi = msi;
    memcpy(pci->intx, intx, sizeof pci->intx);
    pthread_mutex_init(&pci->lock, NULL);
    pthread_mutex_init(&pci->intx_lock, NULL);
    return pci;
}

void pci_bus_free(struct pci_bus *pci)
{
    if (!pci) {
        return;
    }
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        ASSERT(!pci->functions[slot]);
    }
    pthread_mutex_destroy(&pci->lock);
    pthread_mutex_destroy(&pci->intx_lock);
    free(pci);
}

int pci_bus_add(struct pci_bus *pci, struct pci_function *function, unsigned slot)
{
    if (slot >= PCI_SLOTS) {
        return fail(-EINVAL, "PCI slot %u does not exist, the last one is %d", slot, PCI_SLOTS - 1);
    }
    pthread_mutex_lock(&pci->lock);
    bool taken = pci->functions[slot];
    if (!taken) {
        pthread_mutex_lock(&function->lock);
        function->bus = pci;
        function->slot = slot;
        pthread_mutex_unlock(&function->lock);
        memcpy(function->initial, function->config, sizeof function->initial);
        pci->functions[slot] = function;
    }
    pthread_mutex_unlock(&pci->lock);
    return taken ? fail(-EBUSY, "PCI slot %u is taken", slot) : 0;
}

void pci_bus_remove(struct pci_bus *pci, struct pci_function *function)
{
    pthread_mutex_lock(&pci->lock);
    if (function->bus == pci) {
        pci_function_unmap_moved(function, true);
        pthread_mutex_lock(&function->lock);
        function->intx_level = false;
        pci_function_update_intx(function);
        function->bus = NULL;
        pthread_mutex_unlock(&function->lock);
        pci->functions[function->slot] = NULL;
    }
    pthread_mutex_unlock(&pci->lock);
}

void pci_bus_intx(struct pci_bus *pci, unsigned slot, bool level)
{
    unsigned line = slot % 4; /* INTA# of the slot: pin 0 */
    pthread_mutex_lock(&pci->intx_lock);
    pci->intx_count[line] += level ? 1 : -1u;
    irq_line_set(&pci->intx[line], pci->intx_count[line] != 0);
    pthread_mutex_unlock(&pci->intx_lock);
}

void pci_bus_update_bars(struct pci_bus *pci)
{
    /* all leave before any arrives, so that two BARs may change places */
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        if (pci->functions[slot]) {
            pci_function_unmap_moved(pci->functions[slot], false);
        }
    }
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        if (pci->functions[slot]) {
            pci_function_map(pci->functions[slot]);
        }
    }
}

/* The function that answers; NULL: nobody. With the lock held. */
static struct pci_function *function_at(struct pci_bus *pci, unsigned bus_number,
                                        unsigned device_function, unsigned offset, unsigned size)
{
    bool exists = bus_number == 0 && device_function % 8 == 0 && device_function / 8 < PCI_SLOTS;
    bool fits = (size == 1 || size == 2 || size == 4) && range_fits(offset, size, PCI_CONFIG_SIZE);
    return exists && fits ? pci->functions[device_function / 8] : NULL;
}

uint32_t pci_config_read(struct pci_bus *pci, unsigned bus_number, unsigned device_function,
                         unsigned offset, unsigned size)
{
    pthread_mutex_lock(&pci->lock);
    struct pci_function *function = function_at(pci, bus_number, device_function, offset, size);
    uint32_t value = UINT32_MAX;
    if (function) {
        value = pci_function_read(function, offset, size);
    }
    pthread_mutex_unlock(&pci->lock);
    return size < 4 ? value & ((1u << (8 * size)) - 1) : value;
}

void pci_config_write(struct pci_bus *pci, unsigned bus_number, unsigned device_function,
                      unsigned offset, unsigned size, uint32_t value)
{
    pthread_mutex_lock(&pci->lock);
    struct pci_function *function = function_at(pci, bus_number, device_function, offset, size);
    if (function) {
        pci_function_write(function, offset, size, value);
    }
    pthread_mutex_unlock(&pci->lock);
}

/* What is left of a window. */
struct window {
    uint64_t next, end;
};

static bool window_take(struct window *window, uint64_t size, uint64_t *ret_base)
{
    uint64_t base = align_up(window->next, size);
    if (base < window->next || base > window->end || size > window->end - base) {
        return false;
    }
    window->next = base + size;
    *ret_base = base;
    return true;
}

/* The three windows, in the order memory, memory above 4 GiB, ports. */
struct cursor {
    struct window memory, memory64, ports;
    uint8_t gsi_base;
};

static int bar_assign(struct pci_function *function, unsigned index, struct cursor *cursor)
{
    const struct pci_bar *bar = &function->bars[index];
    struct window *window = &cursor->memory;
    if (bar->is_port) {
        window = &cursor->ports;
    } else if (bar->is_64bit && cursor->memory64.end) {
        window = &cursor->memory64;
    }
    uint64_t base;
    if (!window_take(window, bar->size, &base)) {
        return fail(-ENOSPC, "no addresses left for BAR %u of PCI slot %u (size %#llx)", index,
                    function->slot, (unsigned long long)bar->size);
    }
    unsigned at = PCI_BAR + 4 * index;
    pci_function_write(function, at, 4, (uint32_t)base);
    if (bar->is_64bit) {
        pci_function_write(function, at + 4, 4, (uint32_t)(base >> 32));
    }
    return 0;
}

static int function_assign(struct pci_function *function, struct cursor *cursor)
{
    uint16_t enable = 0;
    pci_function_write(function, PCI_COMMAND, 2, 0);
    for (unsigned i = 0; i < PCI_BARS; i++) {
        if (function->bars[i].size) {
            int result = bar_assign(function, i, cursor);
            if (result < 0) {
                return result;
            }
            enable |= function->bars[i].is_port ? PCI_COMMAND_PORT : PCI_COMMAND_MEMORY;
        }
    }
    if (function->config[PCI_INTERRUPT_PIN]) {
        pci_function_write(function, PCI_INTERRUPT_LINE, 1, cursor->gsi_base + function->slot % 4);
    }
    pci_function_write(function, PCI_COMMAND, 2, enable);
    return 0;
}

int pci_assign(struct pci_bus *pci, const struct pci_windows *windows)
{
    struct cursor cursor = {
        .memory = {windows->memory_base, windows->memory_base + windows->memory_size},
        .memory64 = {windows->memory64_base, windows->memory64_base + windows->memory64_size},
        .ports = {windows->port_base, (uint64_t)windows->port_base + windows->port_size},
        .gsi_base = windows->gsi_base,
    };
    if (!windows->memory64_size) {
        cursor.memory64.end = 0;
    }
    int result = 0;
    pthread_mutex_lock(&pci->lock);
    for (unsigned slot = 0; slot < PCI_SLOTS && result == 0; slot++) {
        if (pci->functions[slot]) {
            result = function_assign(pci->functions[slot], &cursor);
        }
    }
    pthread_mutex_unlock(&pci->lock);
    return result;
}
