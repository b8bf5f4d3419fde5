/*
 * Any accesses to the HPET, with time and with the lines that pass through it.
 * Guards: src/device/legacy/hpet.c
 */
#include "base/bytes.h"
#include "base/test_clock.h"
#include "bus/bus.h"
#include "device/fuzz_board.h"
#include "device/legacy/hpet.h"

enum { BASE = 0xfed00000 };

static void line_set(void *owner, unsigned number, bool level)
{
    bool *levels = owner;
    ASSERT(levels[number] != level); /* lines change, they are not told the same twice */
    levels[number] = level;
}

static void step(struct bus *bus, struct test_clock *clock, struct device *device,
                 struct irq_line inputs[HPET_LEGACIES], struct fuzz_input *input)
{
    uint8_t operation = (uint8_t)fuzz_take(input, 1);
    uint64_t address = BASE + (fuzz_take(input, 1) << 2 & 0x1fc);
    unsigned size = 4u << (operation >> 7);
    switch (operation & 7) {
    case 0:
    case 1:
    case 2:
        bus_mmio_write(bus, address, size, fuzz_take(input, size));
        break;
    case 3:
        bus_mmio_write(bus, address + (operation >> 3 & 7), 1, fuzz_take(input, 1));
        break;
    case 4:
        ASSERT(size == 8 || bus_mmio_read(bus, address, size) <= UINT32_MAX);
        break;
    case 5:
        irq_line_set(&inputs[operation >> 3 & 1], operation >> 4 & 1);
        break;
    case 6:
        test_clock_advance(clock, fuzz_take(input, operation >> 6 ? 3 : 6));
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
    bool levels[HPET_PINS + HPET_LEGACIES] = {false};
    struct fuzz_input input = {data, size};
    struct bus *bus = bus_new();
    struct test_clock *clock = test_clock_new();
    struct hpet_config config = {.bus = bus, .base = BASE, .clock = test_clock_clock(clock)};
    for (unsigned i = 0; i < HPET_PINS; i++) {
        config.pins[i] = (struct irq_line){.set = line_set, .owner = levels, .number = i};
    }
    for (unsigned i = 0; i < HPET_LEGACIES; i++) {
        config.legacy[i] =
            (struct irq_line){.set = line_set, .owner = levels, .number = HPET_PINS + i};
    }
    struct device *device;
    ASSERT(hpet_new(&config, &device) == 0);
    struct irq_line inputs[] = {hpet_legacy_line(device, HPET_PIT),
                                hpet_legacy_line(device, HPET_RTC)};
    while (input.left) {
        step(bus, clock, device, inputs, &input);
    }
    device_free(device);
    test_clock_free(clock);
    bus_free(bus);
    return 0;
}
