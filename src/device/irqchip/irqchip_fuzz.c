/*
 * Any accesses to the interrupt controllers by four vCPUs, with lines, messages and time.
 * Guards: src/device/irqchip/irqchip.c src/device/irqchip/ioapic.c src/device/irqchip/lapic.c
 * src/device/irqchip/lapic_registers.c src/device/irqchip/lapic_timer.c src/device/irqchip/pic.c
 */
#include "base/bytes.h"
#include "base/test_clock.h"
#include "bus/bus.h"
#include "device/fuzz_board.h"
#include "device/irqchip/irqchip.h"

enum { CPUS = 4 };

struct soup {
    struct bus *bus;
    struct test_clock *clock;
    struct irqchip *chip;
    struct irq_line lines[IRQCHIP_LINES];
    uint64_t kicks;
};

static void wire_kick(void *owner, unsigned vcpu, enum irqchip_event event, uint8_t vector)
{
    ASSERT(vcpu < CPUS);
    ((struct soup *)owner)->kicks++;
}

static uint64_t wire_tsc_now(void *owner, unsigned vcpu)
{
    return clock_now(test_clock_clock(((struct soup *)owner)->clock)) * 3;
}

static uint64_t wire_deadline(void *owner, unsigned vcpu, uint64_t tsc)
{
    return tsc / 3;
}

static void soup_make(struct soup *soup)
{
    soup->bus = bus_new();
    soup->clock = test_clock_new();
    const struct irqchip_config config = {.cpus = CPUS,
                                          .bus = soup->bus,
                                          .clock = test_clock_clock(soup->clock),
                                          .wire = {.kick = wire_kick,
                                                   .tsc_now = wire_tsc_now,
                                                   .tsc_to_deadline_ns = wire_deadline,
                                                   .owner = soup}};
    ASSERT(irqchip_new(&config, &soup->chip) == 0);
    for (unsigned i = 0; i < IRQCHIP_LINES; i++) {
        soup->lines[i] = irqchip_line(soup->chip, i);
    }
}

static void soup_free(struct soup *soup)
{
    device_free(irqchip_device(soup->chip));
    test_clock_free(soup->clock);
    bus_free(soup->bus);
}

/* Accesses that leave the CPU. */
static void access_step(struct soup *soup, struct fuzz_input *input, uint8_t operation,
                        unsigned vcpu)
{
    static const uint16_t ports[] = {0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1};
    static const uint64_t pages[] = {0x00, 0x10, 0x40, 0x12};
    uint64_t value;
    switch (operation & 7) {
    case 0:
        irqchip_mmio_write(soup->chip, vcpu, fuzz_take(input, 1) << 4, 4, fuzz_take(input, 4));
        break;
    case 1:
        irqchip_mmio_read(soup->chip, vcpu, fuzz_take(input, 2) & 0xfff, 4);
        break;
    case 2: {
        uint32_t index = 0x800 + (uint32_t)(fuzz_take(input, 1) & 0x3f);
        irqchip_msr_write(soup->chip, vcpu, index, fuzz_take(input, 1 + (operation >> 5)));
        break;
    }
    case 3:
        irqchip_msr_read(soup->chip, vcpu, 0x800 + (uint32_t)fuzz_take(input, 1), &value);
        break;
    case 4:
        irqchip_msr_write(soup->chip, vcpu, operation & 0x80 ? 0x1b : 0x6e0, fuzz_take(input, 4));
        break;
    case 5:
        bus_port_write(soup->bus, ports[fuzz_take(input, 1) % ARRAY_SIZE(ports)], 1,
                       (uint32_t)fuzz_take(input, 1));
        break;
    case 6:
        bus_port_read(soup->bus, ports[fuzz_take(input, 1) % ARRAY_SIZE(ports)], 2);
        break;
    default: {
        uint64_t address = IRQCHIP_IO_APIC_BASE + pages[fuzz_take(input, 1) % ARRAY_SIZE(pages)];
        bus_mmio_write(soup->bus, address, 4, fuzz_take(input, 4));
        bus_mmio_read(soup->bus, address, 4);
        break;
    }
    }
}

static void event_step(struct soup *soup, struct fuzz_input *input, uint8_t operation,
                       unsigned vcpu)
{
    struct device *device = irqchip_device(soup->chip);
    const struct msi_target msi = irqchip_msi(soup->chip);
    switch (operation & 7) {
    case 0:
    case 1: {
        uint8_t which = (uint8_t)fuzz_take(input, 1);
        irq_line_set(&soup->lines[which % IRQCHIP_LINES], which & 0x80);
        break;
    }
    case 2: {
        uint64_t address = 0xfee00000 | fuzz_take(input, 3);
        msi.send(msi.owner, address, (uint32_t)fuzz_take(input, 2));
        break;
    }
    case 3: {
        bool promised = irqchip_has_interrupt(soup->chip, vcpu);
        int vector = irqchip_acknowledge(soup->chip, vcpu);
        ASSERT(promised == (vector >= 0) && vector < 256);
        break;
    }
    case 4:
        test_clock_advance(soup->clock, fuzz_take(input, 3));
        break;
    case 5:
        irqchip_cr8_write(soup->chip, vcpu, fuzz_take(input, 1));
        break;
    case 6:
        if (operation & 0x80) {
            irqchip_vcpu_init(soup->chip, vcpu);
        } else {
            irqchip_tsc_changed(soup->chip, vcpu);
        }
        break;
    default:
        if (operation & 0x80) {
            device->ops->reset(device);
        }
        fuzz_visit(fuzz_visit_device, device);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct soup soup = {0};
    struct fuzz_input input = {data, size};
    soup_make(&soup);
    while (input.left) {
        uint8_t operation = (uint8_t)fuzz_take(&input, 1);
        unsigned vcpu = (unsigned)fuzz_take(&input, 1) % CPUS;
        (operation & 8 ? event_step : access_step)(&soup, &input, operation, vcpu);
    }
    soup_free(&soup);
    return 0;
}
