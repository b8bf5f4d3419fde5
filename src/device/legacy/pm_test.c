/* ACPI power management: SCI, timer, soft-off. */
#include "device/legacy/pm.c" /* its struct, to check that its visit names every field */

#include "device/test_board.h"

enum { BASE = 0x600 };

struct fixture {
    struct bus *bus;
    struct test_clock *clock;
    struct counted_line line;
    struct device *device;
    unsigned power_offs;
};

static void power_off(void *owner)
{
    ((struct fixture *)owner)->power_offs++;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->bus = bus_new();
    f->clock = test_clock_new();
    const struct pm_config config = {.bus = f->bus,
                                     .port = BASE,
                                     .sci = counted_line_wire(&f->line),
                                     .clock = test_clock_clock(f->clock),
                                     .power_off = power_off,
                                     .owner = f};
    assert_int_equal(pm_new(&config, &f->device), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    device_free(f->device);
    test_clock_free(f->clock);
    bus_free(f->bus);
    free(f);
    return 0;
}

static void test_power_button(void **state)
{
    struct fixture *f = *state;
    assert_false(pm_power_button_enabled(f->device));
    pm_press_power_button(f->device);
    assert_false(f->line.level);
    assert_int_equal(bus_port_read(f->bus, BASE, 2), PM1_POWER_BUTTON);
    bus_port_write(f->bus, BASE + 2, 2, PM1_POWER_BUTTON);
    assert_true(f->line.level);
    assert_true(pm_power_button_enabled(f->device));
    bus_port_write(f->bus, BASE, 2, PM1_TIMER); /* clears by ones only what is named */
    assert_true(f->line.level);
    bus_port_write(f->bus, BASE, 2, PM1_POWER_BUTTON);
    assert_false(f->line.level);
    pm_press_power_button(f->device);
    assert_int_equal(f->line.raises, 2);
    bus_port_write(f->bus, BASE + 1, 1, PM1_POWER_BUTTON >> 8); /* by bytes */
    assert_false(f->line.level);
    bus_port_write(f->bus, BASE, 4, 0xffff0000);
    assert_int_equal(bus_port_read(f->bus, BASE, 4), (uint32_t)ENABLE_WRITABLE << 16);
}

static void test_soft_off(void **state)
{
    static const struct {
        uint16_t value;
        unsigned offs;
    } rows[] = {{0x0000, 0}, {0x1400, 0}, {0x2000, 1}, {0x3000, 0}, {0x3400, 1}};
    struct fixture *f = *state;
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        f->power_offs = 0;
        if (rows[i].value == 0x2000) { /* the enable bit alone, after the type */
            bus_port_write(f->bus, BASE + 5, 1, 0x14 | 0x20);
        } else {
            bus_port_write(f->bus, BASE + 4, 2, rows[i].value);
        }
        assert_int_equal(f->power_offs, rows[i].offs);
    }
    assert_int_equal(bus_port_read(f->bus, BASE + 4, 2), 0x1401);
}

static void test_timer(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(bus_port_read(f->bus, BASE + 8, 4), 0);
    test_clock_advance(f->clock, 1000000000);
    assert_int_equal(bus_port_read(f->bus, BASE + 8, 4), PM_TIMER_HZ);
    assert_int_equal(bus_port_read(f->bus, BASE + 9, 1), PM_TIMER_HZ >> 8 & 0xff);
    bus_port_write(f->bus, BASE + 8, 4, 0);
    assert_int_equal(bus_port_read(f->bus, BASE + 8, 4), PM_TIMER_HZ);
    bus_port_write(f->bus, BASE + 2, 2, PM1_TIMER);
    test_clock_advance(f->clock, 1300000000); /* the highest bit changes after 2.343 s */
    assert_false(f->line.level);
    test_clock_advance(f->clock, 50000000);
    assert_true(f->line.level);
    assert_int_equal(bus_port_read(f->bus, BASE, 2), PM1_TIMER);
    bus_port_write(f->bus, BASE, 2, PM1_TIMER);
    assert_false(f->line.level);
    test_clock_advance(f->clock, 2350000000);
    assert_true(f->line.level);
    assert_int_equal(bus_port_read(f->bus, BASE + 8, 4), 47 * PM_TIMER_HZ / 10 & 0xffffff);
}

static void test_visit(void **state)
{
    struct fixture *f = *state;
    test_clock_advance(f->clock, 1000000000);
    bus_port_write(f->bus, BASE, 4, 0x01010000);
    bus_port_write(f->bus, BASE + 4, 2, 0x1400);
    pm_press_power_button(f->device);
#define PM(member) VISIT_DERIVED(struct pm, member)
    assert_int_equal(VISIT_CHECK(struct pm, f->device, device_visit, f->device,
                                 DEVICE_DERIVED(struct pm), LINE_DERIVED(struct pm, sci),
                                 PM(region), PM(clock), PM(alarm), PM(power_off), PM(owner)),
                     0);
    f->device->ops->reset(f->device);
    assert_false(f->line.level);
    assert_int_equal(bus_port_read(f->bus, BASE, 4), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {TEST(test_power_button), TEST(test_soft_off),
                                       TEST(test_timer), TEST(test_visit)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
