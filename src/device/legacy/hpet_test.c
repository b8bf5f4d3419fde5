/* HPET: the specification's example, one-shot and wrapping, levels, legacy replacement, bounds. */
#include "device/legacy/hpet.c" /* its struct, to check that its visit names every field */

#include "device/test_board.h"

enum { BASE = 0xfed00000, US = 1000 / TICK_NS };

struct fixture {
    struct bus *bus;
    struct test_clock *clock;
    struct device *device;
    struct counted_line pins[HPET_PINS], legacy[HPET_LEGACIES];
};

static int setup(void **state)
{
    static struct fixture fixture;
    struct fixture *f = &fixture;
    *f = (struct fixture){.bus = bus_new(), .clock = test_clock_new()};
    struct hpet_config config = {.bus = f->bus, .base = BASE, .clock = test_clock_clock(f->clock)};
    for (unsigned i = 0; i < HPET_PINS; i++) {
        config.pins[i] = counted_line_wire(&f->pins[i]);
    }
    for (unsigned i = 0; i < HPET_LEGACIES; i++) {
        config.legacy[i] = counted_line_wire(&f->legacy[i]);
    }
    *state = f;
    return hpet_new(&config, &f->device);
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    device_free(f->device);
    test_clock_free(f->clock);
    bus_free(f->bus);
    return 0;
}

static uint64_t get(struct fixture *f, uint64_t offset)
{
    return bus_mmio_read(f->bus, BASE + offset, 8);
}

static void set(struct fixture *f, uint64_t offset, uint64_t value)
{
    bus_mmio_write(f->bus, BASE + offset, 8, value);
}

static uint64_t timer_register(unsigned n, unsigned offset)
{
    return REGISTER_TIMERS + n * TIMER_SIZE + offset;
}

static void set_config(struct fixture *f, unsigned n, unsigned pin, uint32_t bits)
{
    set(f, timer_register(n, TIMER_CONFIG), bits | pin << TIMER_ROUTE_SHIFT);
}

static void set_comparator(struct fixture *f, unsigned n, uint64_t value)
{
    set(f, timer_register(n, TIMER_COMPARATOR), value);
}

static void advance(struct fixture *f, uint64_t ticks)
{
    test_clock_advance(f->clock, ticks * TICK_NS);
}

static void test_capabilities(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(get(f, 0), 0x009896808086a201);
    assert_int_equal(bus_mmio_read(f->bus, BASE + 4, 4), 10000000); /* femtoseconds */
    assert_int_equal(get(f, timer_register(2, TIMER_CONFIG)),
                     0x00f0000000000030 | HPET_FIRST_PIN << TIMER_ROUTE_SHIFT);
    assert_int_equal(get(f, timer_register(3, TIMER_CONFIG)), 0);
    set(f, 0, 0);
    assert_int_equal(get(f, 0), 0x009896808086a201);
}

static void test_counter(void **state)
{
    struct fixture *f = *state;
    advance(f, 1000);
    assert_int_equal(get(f, REGISTER_COUNTER), 0); /* halted */
    bus_mmio_write(f->bus, BASE + REGISTER_COUNTER + 4, 4, 7);
    bus_mmio_write(f->bus, BASE + REGISTER_COUNTER, 4, 50);
    set(f, REGISTER_CONFIG, CONFIG_ENABLE);
    advance(f, 8);
    assert_int_equal(get(f, REGISTER_COUNTER), 0x700000000 + 58);
    set(f, REGISTER_COUNTER, 1); /* not while it runs */
    assert_int_equal(get(f, REGISTER_COUNTER), 0x700000000 + 58);
    set(f, REGISTER_CONFIG, 0);
    advance(f, 8);
    assert_int_equal(get(f, REGISTER_COUNTER), 0x700000000 + 58);
}

/* 2.3.9.2.2: comparator 123h means interrupts at 123h, 246h, 369h. */
static void test_periodic(void **state)
{
    struct fixture *f = *state;
    const uint64_t period = 0x123 * US;
    set_config(f, 0, 21, TIMER_INTERRUPT | TIMER_PERIODIC | TIMER_SET_VALUE);
    set_comparator(f, 0, period);
    assert_int_equal(get(f, timer_register(0, TIMER_CONFIG)) & TIMER_SET_VALUE, 0);
    set(f, REGISTER_CONFIG, CONFIG_ENABLE);
    advance(f, period - 1);
    assert_int_equal(f->pins[1].raises, 0);
    advance(f, 1);
    assert_int_equal(f->pins[1].raises, 1);
    assert_false(f->pins[1].level);
    assert_int_equal(get(f, timer_register(0, TIMER_COMPARATOR)), 2 * period);
    advance(f, period);
    assert_int_equal(f->pins[1].raises, 2);
    advance(f, period);
    assert_int_equal(f->pins[1].raises, 3);
    /* as Linux sets one up: the first match, then the period alone */
    set_config(f, 0, 21, TIMER_INTERRUPT | TIMER_PERIODIC | TIMER_SET_VALUE | TIMER_32_BIT);
    set_comparator(f, 0, 5 * period);
    set_comparator(f, 0, period / 2);
    advance(f, 2 * period);
    assert_int_equal(f->pins[1].raises, 4);
    advance(f, period);
    assert_int_equal(f->pins[1].raises, 6);
    /* while the CPU was away, once for all that was missed */
    set_config(f, 0, 21, TIMER_PERIODIC);
    advance(f, 100 * period);
    assert_true(get(f, timer_register(0, TIMER_COMPARATOR)) - get(f, REGISTER_COUNTER) <=
                period / 2);
}

static void test_one_shot(void **state)
{
    struct fixture *f = *state;
    set(f, REGISTER_CONFIG, CONFIG_ENABLE);
    set_config(f, 1, 22, TIMER_INTERRUPT | TIMER_32_BIT);
    set_comparator(f, 1, 100);
    set_config(f, 2, 23, TIMER_INTERRUPT);
    set_comparator(f, 2, 100);
    advance(f, 100);
    assert_int_equal(f->pins[2].raises, 1);
    assert_int_equal(f->pins[3].raises, 1);
    advance(f, UINT64_C(1) << 32); /* 32 bits of the counter match again, 64 do not */
    assert_int_equal(f->pins[2].raises, 2);
    assert_int_equal(f->pins[3].raises, 1);
    set_comparator(f, 2, get(f, REGISTER_COUNTER)); /* matches now */
    assert_int_equal(f->pins[3].raises, 2);
    set_comparator(f, 2, get(f, REGISTER_COUNTER) - 1); /* in the past: never */
    advance(f, UINT64_C(1) << 33);
    assert_int_equal(f->pins[3].raises, 2);
    set_config(f, 2, 5, TIMER_INTERRUPT); /* a pin that is not offered */
    set_comparator(f, 2, get(f, REGISTER_COUNTER) + 1);
    advance(f, 10);
    assert_int_equal(f->pins[0].raises + f->pins[1].raises + f->pins[3].raises, 2);
}

static void test_level(void **state)
{
    struct fixture *f = *state;
    set(f, REGISTER_CONFIG, CONFIG_ENABLE);
    set_config(f, 0, 20, TIMER_INTERRUPT | TIMER_LEVEL);
    set_config(f, 1, 20, TIMER_INTERRUPT | TIMER_LEVEL);
    set_comparator(f, 0, 100);
    set_comparator(f, 1, 200);
    advance(f, 200);
    assert_int_equal(get(f, REGISTER_STATUS), 3);
    assert_true(f->pins[0].level);
    set(f, REGISTER_STATUS, 1);
    assert_true(f->pins[0].level); /* the other one still asserts it */
    set(f, REGISTER_STATUS, 2);
    assert_false(f->pins[0].level);
    set_comparator(f, 0, get(f, REGISTER_COUNTER));
    assert_true(f->pins[0].level);
    set_config(f, 0, 20, TIMER_LEVEL); /* the interrupt is switched off */
    assert_false(f->pins[0].level);
    assert_int_equal(get(f, REGISTER_STATUS), 1);
}

static void test_legacy(void **state)
{
    struct fixture *f = *state;
    struct irq_line pit = hpet_legacy_line(f->device, HPET_PIT);
    struct irq_line rtc = hpet_legacy_line(f->device, HPET_RTC);
    irq_line_set(&pit, true);
    assert_true(f->legacy[HPET_PIT].level);
    irq_line_pulse(&rtc);
    assert_int_equal(f->legacy[HPET_RTC].raises, 1);
    set(f, REGISTER_CONFIG, CONFIG_LEGACY); /* not before it is enabled */
    assert_true(f->legacy[HPET_PIT].level);
    set(f, REGISTER_CONFIG, CONFIG_LEGACY | CONFIG_ENABLE);
    assert_false(f->legacy[HPET_PIT].level);
    irq_line_pulse(&rtc);
    assert_int_equal(f->legacy[HPET_RTC].raises, 1);
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        set_config(f, n, 20, TIMER_INTERRUPT);
        set_comparator(f, n, 100);
    }
    advance(f, 100);
    assert_int_equal(f->legacy[HPET_PIT].raises, 2);
    assert_int_equal(f->legacy[HPET_RTC].raises, 2);
    assert_int_equal(f->pins[0].raises, 1); /* timer 2 has no legacy line */
    set(f, REGISTER_CONFIG, 0);
    assert_true(f->legacy[HPET_PIT].level); /* what the 8254 has been driving all the time */
}

/* A guest that asks for 100 MHz costs the host no more than 20,000 wake-ups a second. */
static void test_storm(void **state)
{
    struct fixture *f = *state;
    set_config(f, 0, 20, TIMER_INTERRUPT | TIMER_PERIODIC | TIMER_SET_VALUE);
    set_comparator(f, 0, 1);
    set(f, REGISTER_CONFIG, CONFIG_ENABLE);
    for (unsigned i = 0; i < 1000; i++) {
        advance(f, 100);
    }
    assert_in_range(f->pins[0].raises, 10, 22);
    set_config(f, 0, 20, TIMER_INTERRUPT | TIMER_PERIODIC | TIMER_SET_VALUE);
    set_comparator(f, 0, 0); /* no period: once at most */
    unsigned raises = f->pins[0].raises;
    test_clock_advance(f->clock, UINT64_C(1000000000000));
    assert_in_range(f->pins[0].raises, raises, raises + 1);
}

static void test_visit(void **state)
{
    struct fixture *f = *state;
    struct hpet *h = hpet_of(f->device);
    set_config(f, 1, 22, TIMER_INTERRUPT | TIMER_PERIODIC | TIMER_SET_VALUE);
    set_comparator(f, 1, 1000);
    set(f, REGISTER_CONFIG, CONFIG_ENABLE);
    advance(f, 77);
#define HPET(member) VISIT_DERIVED(struct hpet, member)
    assert_int_equal(VISIT_CHECK(struct hpet, h, device_visit, f->device,
                                 DEVICE_DERIVED(struct hpet), HPET(region), HPET(clock),
                                 HPET(alarm), HPET(legacy), HPET(pins), HPET(timers)),
                     0);
    assert_int_equal(VISIT_CHECK(struct hpet_timer, &h->timers[1], device_visit, f->device, {0}),
                     0);
    for (unsigned i = 0; i < HPET_PINS; i++) {
        assert_int_equal(VISIT_CHECK(struct irq_line, &h->pins[i], device_visit, f->device,
                                     VISIT_DERIVED(struct irq_line, set),
                                     VISIT_DERIVED(struct irq_line, owner),
                                     VISIT_DERIVED(struct irq_line, number)),
                         0);
    }
    for (unsigned i = 0; i < HPET_LEGACIES; i++) {
        assert_int_equal(VISIT_CHECK(struct irq_line, &h->legacy[i], device_visit, f->device,
                                     VISIT_DERIVED(struct irq_line, set),
                                     VISIT_DERIVED(struct irq_line, owner),
                                     VISIT_DERIVED(struct irq_line, number)),
                         0);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_capabilities), TEST(test_counter), TEST(test_periodic), TEST(test_one_shot),
        TEST(test_level),        TEST(test_legacy),  TEST(test_storm),    TEST(test_visit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
