/*
 * Any accesses to configuration space, BARs and MSI-X tables of three functions.
 * Guards: src/bus/pci.c src/bus/pci_bus.c src/bus/pci_msix.c src/device/pci/host.c
 */
#include <stdlib.h>

#include "base/bytes.h"
#include "bus/pci.h"
#include "device/fuzz_board.h"
#include "device/pci/host.h"

enum { FUNCTIONS = 2, MMCONFIG = 0xb0000000 };

struct soup {
    struct bus *bus;
    struct pci_bus *pci;
    struct device *host;
    struct pci_function functions[FUNCTIONS];
    int intx[4];
    uint64_t events;
};

static uint64_t model_read(void *owner, uint64_t offset, unsigned size)
{
    ASSERT(offset < 0x4000);
    return offset;
}

static void model_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    ASSERT(offset < 0x4000);
    pci_msix_notify(owner, (unsigned)value);
}

static const struct region_ops model_ops = {.read = model_read, .write = model_write};

static void message_send(void *owner, uint64_t address, uint32_t data)
{
    ((struct soup *)owner)->events++;
}

static void line_set(void *owner, unsigned number, bool level)
{
    ((struct soup *)owner)->intx[number] = level;
}

static void reset_asked(void *owner)
{
    ((struct soup *)owner)->events++;
}

static void function_make(struct soup *soup, unsigned index)
{
    static const struct pci_identity identity = {.vendor = 0x1af4, .device = 0x1041};
    static const uint8_t body[14], writable[14] = {[2] = 0xff, [6] = 0xff, [13] = 0x3c};
    struct pci_function *function = &soup->functions[index];
    pci_function_init(function, &identity, NULL, NULL);
    pci_add_memory_bar(function, 0, 0x1000, false, &model_ops, function);
    pci_add_port_bar(function, 1, 64, &model_ops, function);
    pci_add_msix(function, 2, 1 + 200 * index);
    pci_add_memory_bar(function, 4, 0x4000, true, &model_ops, function);
    pci_add_capability(function, PCI_CAPABILITY_VENDOR, body, sizeof body, writable);
    pci_add_intx(function);
    ASSERT(pci_bus_add(soup->pci, function, 3 + 4 * index) == 0);
}

static void soup_make(struct soup *soup)
{
    struct irq_line lines[4];
    for (unsigned i = 0; i < 4; i++) {
        lines[i] = (struct irq_line){.set = line_set, .owner = soup, .number = i};
    }
    soup->bus = bus_new();
    soup->pci =
        pci_bus_new(soup->bus, (struct msi_target){.send = message_send, .owner = soup}, lines);
    ASSERT(pci_host_new(&(struct pci_host_config){.bus = soup->bus,
                                                  .pci = soup->pci,
                                                  .mmconfig_base = MMCONFIG,
                                                  .reset = reset_asked,
                                                  .owner = soup},
                        &soup->host) == 0);
    for (unsigned i = 0; i < FUNCTIONS; i++) {
        function_make(soup, i);
    }
    const struct pci_windows windows = {.memory_base = 0xe0000000,
                                        .memory_size = 0x100000,
                                        .port_base = 0xc000,
                                        .port_size = 0x400};
    ASSERT(pci_assign(soup->pci, &windows) == 0);
}

static void soup_free(struct soup *soup)
{
    for (unsigned i = 0; i < FUNCTIONS; i++) {
        pci_function_fini(&soup->functions[i]);
    }
    for (unsigned i = 0; i < 4; i++) {
        ASSERT(!soup->intx[i]); /* who leaves takes its interrupt along */
    }
    device_free(soup->host);
    pci_bus_free(soup->pci);
    bus_free(soup->bus);
}

static void function_visit(void *function, struct visitor *v)
{
    pci_function_visit(function, v);
}

/* A vector is given a message, unmasked or not, and MSI-X is switched on or off. */
static void vector_set_up(struct soup *soup, struct pci_function *function,
                          struct fuzz_input *input)
{
    uint8_t vector = (uint8_t)fuzz_take(input, 1), control = (uint8_t)fuzz_take(input, 1);
    unsigned at = function->msix.capability, devfn = function->slot << 3;
    uint32_t base = pci_config_read(soup->pci, 0, devfn, PCI_BAR + 4 * 2, 4) & ~15u;
    pci_config_write(soup->pci, 0, devfn, PCI_COMMAND, 2, control & 7);
    pci_config_write(soup->pci, 0, devfn, at + 2, 2, (uint32_t)(control & 0xc0) << 8);
    bus_mmio_write(soup->bus, base + 16ull * vector, 8, 0xfee00000);
    bus_mmio_write(soup->bus, base + 16ull * vector + 8, 8, (uint64_t)(control >> 3 & 1) << 32);
    bus_mmio_read(soup->bus, base + 16ull * vector, 4);
    bus_mmio_read(soup->bus, base + fuzz_take(input, 2), 8);
}

static void step(struct soup *soup, struct fuzz_input *input)
{
    static const uint8_t slots[] = {0x00, 0x18, 0x38, 0x39};
    uint8_t operation = (uint8_t)fuzz_take(input, 1);
    unsigned size = 1u << (operation >> 4 & 3), index = operation >> 7;
    struct pci_function *function = &soup->functions[index];
    uint64_t slot = slots[operation >> 6 & 3];
    switch (operation & 7) {
    case 0: {
        uint64_t at = MMCONFIG + (slot << 12) + fuzz_take(input, 1);
        bus_mmio_write(soup->bus, at, size, fuzz_take(input, size));
        bus_mmio_read(soup->bus, at, size);
        break;
    }
    case 1:
        bus_port_write(soup->bus, 0xcf8, 4, (uint32_t)(1u << 31 | slot << 8 | fuzz_take(input, 1)));
        bus_port_write(soup->bus, 0xcfc, size & 7, (uint32_t)fuzz_take(input, size & 7));
        break;
    case 2:
        bus_port_write(soup->bus, 0xcf8 + (fuzz_take(input, 1) & 7), size & 7,
                       (uint32_t)fuzz_take(input, size & 7));
        bus_port_read(soup->bus, 0xcf8 + (fuzz_take(input, 1) & 7), size & 7);
        break;
    case 3: /* wherever the BARs are now */
        bus_mmio_write(soup->bus, 0xe0000000 + fuzz_take(input, 2), size, fuzz_take(input, size));
        bus_mmio_read(soup->bus, 0xe0000000 + fuzz_take(input, 3), size);
        break;
    case 4:
        if (operation & 8) {
            vector_set_up(soup, function, input);
        }
        pci_msix_notify(function, (unsigned)fuzz_take(input, 1));
        break;
    case 5:
        pci_intx_set(function, operation & 8);
        break;
    case 6:
        if (operation & 8) {
            soup->host->ops->reset(soup->host);
        }
        pci_function_reset(function);
        break;
    default:
        fuzz_visit(function_visit, function);
        fuzz_visit(fuzz_visit_device, soup->host);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct soup *soup = calloc(1, sizeof *soup);
    struct fuzz_input input = {data, size};
    ASSERT(soup);
    soup_make(soup);
    while (input.left) {
        step(soup, &input);
    }
    soup_free(soup);
    free(soup);
    return 0;
}
