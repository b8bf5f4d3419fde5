/*
 * Any accesses to the serial port and the other legacy ports, with time passing and input.
 * Guards: src/device/legacy/serial.c src/device/legacy/i8042.c src/device/legacy/pit.c
 * src/device/legacy/pm.c src/device/legacy/rtc.c
 */
#include "backend/console/array_console.h"
#include "base/bytes.h"
#include "base/test_clock.h"
#include "device/fuzz_board.h"
#include "device/legacy/i8042.h"
#include "device/legacy/pit.h"
#include "device/legacy/pm.h"
#include "device/legacy/rtc.h"
#include "device/legacy/serial.h"

enum { DEVICES = 5 };

struct soup {
    struct bus *bus;
    struct test_clock *clock;
    struct array_console *console;
    struct device *devices[DEVICES];
    uint64_t events;
};

static void line_set(void *owner, unsigned number, bool level)
{
    ((struct soup *)owner)->events++;
}

static void event(void *owner)
{
    ((struct soup *)owner)->events++;
}

static uint64_t wall_now(void *owner)
{
    return 1700000000000000000ull + clock_now(test_clock_clock(((struct soup *)owner)->clock));
}

static void soup_make(struct soup *soup)
{
    struct bus *bus = soup->bus = bus_new();
    soup->clock = test_clock_new();
    soup->console = array_console_new();
    soup->console->room = SIZE_MAX;
    const struct clock clock = test_clock_clock(soup->clock);
    const struct irq_line irq = {.set = line_set, .owner = soup};
    int result = serial_new(&(struct serial_config){.id = "serial0",
                                                    .port = 0x3f8,
                                                    .bus = bus,
                                                    .irq = irq,
                                                    .clock = clock,
                                                    .console = &soup->console->console},
                            &soup->devices[0]);
    result |=
        pit_new(&(struct pit_config){.bus = bus, .irq = irq, .clock = clock}, &soup->devices[1]);
    result |= rtc_new(
        &(struct rtc_config){
            .bus = bus, .irq = irq, .clock = clock, .wall_now = wall_now, .owner = soup},
        &soup->devices[2]);
    result |= pm_new(&(struct pm_config){.bus = bus,
                                         .port = 0x600,
                                         .sci = irq,
                                         .clock = clock,
                                         .power_off = event,
                                         .owner = soup},
                     &soup->devices[3]);
    result |= i8042_new(
        &(struct i8042_config){
            .bus = bus, .keyboard_irq = irq, .mouse_irq = irq, .reset = event, .owner = soup},
        &soup->devices[4]);
    ASSERT(result == 0);
}

static void soup_free(struct soup *soup)
{
    for (unsigned i = 0; i < DEVICES; i++) {
        device_free(soup->devices[i]);
    }
    console_free(&soup->console->console);
    test_clock_free(soup->clock);
    bus_free(soup->bus);
}

static uint16_t port_choose(uint8_t byte)
{
    static const uint16_t ports[] = {0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff,
                                     0x40,  0x41,  0x42,  0x43,  0x61,  0x70,  0x71,  0x60,
                                     0x64,  0x92,  0x600, 0x601, 0x602, 0x604, 0x605, 0x608};
    return ports[byte % ARRAY_SIZE(ports)];
}

static void step(struct soup *soup, struct fuzz_input *input)
{
    static const char text[] = "0123456789abcdefghijklmnop";
    uint8_t operation = (uint8_t)fuzz_take(input, 1);
    unsigned size = 1u << (operation >> 4 & 3) % 3;
    switch (operation & 7) {
    case 0:
    case 1:
    case 2:
    case 3: {
        uint16_t port = port_choose((uint8_t)fuzz_take(input, 1));
        bus_port_write(soup->bus, port, size, (uint32_t)fuzz_take(input, size));
        break;
    }
    case 4:
        bus_port_read(soup->bus, port_choose((uint8_t)fuzz_take(input, 1)), size);
        break;
    case 5:
        test_clock_advance(soup->clock, fuzz_take(input, 3) * (operation & 8 ? 1 : 97));
        break;
    case 6:
        array_console_type(soup->console, text + fuzz_take(input, 1) % sizeof text);
        break;
    default: {
        struct device *device = soup->devices[fuzz_take(input, 1) % DEVICES];
        if (operation & 0x80) {
            device->ops->reset(device);
        } else {
            fuzz_visit(fuzz_visit_device, device);
        }
        break;
    }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct soup soup = {0};
    struct fuzz_input input = {data, size};
    soup_make(&soup);
    while (input.left) {
        step(&soup, &input);
    }
    soup_free(&soup);
    return 0;
}
