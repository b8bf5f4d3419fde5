/* The real-time clock against the MC146818A data sheet. */
#include "device/legacy/rtc.c" /* its struct, to check that its visit names every field */

#include "device/test_board.h"

/* 2024-02-28 23:59:58 UTC */
#define START 1709164798ull

struct fixture {
    struct bus *bus;
    struct test_clock *clock;
    struct counted_line line;
    struct device *device;
};

static uint64_t wall(void *owner)
{
    struct fixture *f = owner;
    return START * NS_PER_S + clock_now(test_clock_clock(f->clock));
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->bus = bus_new();
    f->clock = test_clock_new();
    const struct rtc_config config = {.bus = f->bus,
                                      .irq = counted_line_wire(&f->line),
                                      .clock = test_clock_clock(f->clock),
                                      .wall_now = wall,
                                      .owner = f,
                                      .memory_below_4g = GIB(3),
                                      .memory_above_4g = GIB(5)};
    assert_int_equal(rtc_new(&config, &f->device), 0);
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

static uint8_t get(struct fixture *f, uint8_t index)
{
    out8(f->bus, 0x70, index);
    return in8(f->bus, 0x71);
}

static void set(struct fixture *f, uint8_t index, uint8_t value)
{
    out8(f->bus, 0x70, index);
    out8(f->bus, 0x71, value);
}

static void assert_time(struct fixture *f, const uint8_t (*bytes)[2], size_t count)
{
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(get(f, bytes[i][0]), bytes[i][1]);
    }
}
#define ASSERT_TIME(f, ...)                                                                        \
    do {                                                                                           \
        static const uint8_t bytes_[][2] = {__VA_ARGS__};                                          \
        assert_time(f, bytes_, ARRAY_SIZE(bytes_));                                                \
    } while (0)

static void test_formats(void **state)
{
    struct fixture *f = *state;
    ASSERT_TIME(f, {SECOND, 0x58}, {MINUTE, 0x59}, {HOUR, 0x23}, {WEEKDAY, 4}, {DAY, 0x28},
                {MONTH, 2}, {YEAR, 0x24}, {CENTURY, 0x20});
    set(f, REGISTER_B, B_BINARY);
    ASSERT_TIME(f, {SECOND, 58}, {HOUR, 11 | HOUR_PM}, {YEAR, 24}, {CENTURY, 20});
    test_clock_advance(f->clock, 2ull * NS_PER_S); /* a leap day begins */
    ASSERT_TIME(f, {SECOND, 0}, {HOUR, 12}, {DAY, 29}, {MONTH, 2}, {WEEKDAY, 5});
    assert_int_equal(get(f, REGISTER_D), 0x80);
}

static void test_setting(void **state)
{
    struct fixture *f = *state;
    set(f, REGISTER_B, B_SET | B_24H);
    set(f, SECOND, 0x30);
    set(f, MINUTE, 0x20);
    set(f, HOUR, 0x10);
    set(f, DAY, 0x31);
    set(f, MONTH, 0x12);
    set(f, YEAR, 0x99);
    set(f, CENTURY, 0x19);
    test_clock_advance(f->clock, 5ull * NS_PER_S);
    assert_int_equal(get(f, SECOND), 0x30); /* held */
    set(f, REGISTER_B, B_24H);
    test_clock_advance(f->clock, 3ull * NS_PER_S);
    ASSERT_TIME(f, {SECOND, 0x33}, {HOUR, 0x10}, {DAY, 0x31}, {YEAR, 0x99}, {CENTURY, 0x19},
                {WEEKDAY, 6});
    set(f, MONTH, 0x01); /* without holding */
    ASSERT_TIME(f, {SECOND, 0x33}, {MONTH, 1});
    f->device->ops->reset(f->device); /* the battery keeps it */
    ASSERT_TIME(f, {SECOND, 0x33}, {MONTH, 1}, {YEAR, 0x99});
}

static void test_update_in_progress(void **state)
{
    struct fixture *f = *state;
    assert_false(get(f, REGISTER_A) & A_UPDATING);
    test_clock_advance(f->clock, NS_PER_S - 2000000);
    assert_true(get(f, REGISTER_A) & A_UPDATING);
    set(f, REGISTER_B, B_SET);
    assert_false(get(f, REGISTER_A) & A_UPDATING);
}

static void test_update_interrupt(void **state)
{
    struct fixture *f = *state;
    set(f, REGISTER_B, B_24H | B_UPDATE);
    for (unsigned i = 0; i < 3; i++) {
        test_clock_advance(f->clock, NS_PER_S);
        assert_true(f->line.level);
        assert_int_equal(get(f, REGISTER_C) & (C_REQUEST | B_UPDATE), C_REQUEST | B_UPDATE);
        assert_false(f->line.level);
        assert_int_equal(get(f, REGISTER_C), 0);
    }
    set(f, REGISTER_B, B_24H);
    test_clock_advance(f->clock, NS_PER_S);
    assert_false(f->line.level);
    assert_int_equal(get(f, REGISTER_C) & ~B_PERIODIC,
                     B_UPDATE); /* the flag comes without an interrupt */
}

static void test_alarm(void **state)
{
    struct fixture *f = *state;
    set(f, HOUR_ALARM, 0x00);
    set(f, MINUTE_ALARM, 0xff); /* any */
    set(f, SECOND_ALARM, 0x05);
    set(f, REGISTER_B, B_24H | B_ALARM);
    get(f, REGISTER_C);
    test_clock_advance(f->clock, 6ull * NS_PER_S);
    assert_false(f->line.level);
    test_clock_advance(f->clock, 1ull * NS_PER_S); /* 00:00:05 */
    assert_true(f->line.level);
    assert_int_equal(get(f, REGISTER_C) & B_ALARM, B_ALARM);
    test_clock_advance(f->clock, 60ull * NS_PER_S);
    assert_true(f->line.level);
    get(f, REGISTER_C);
    test_clock_advance(f->clock, 3600ull * NS_PER_S);
    get(f, REGISTER_C);
    test_clock_advance(f->clock, 3600ull * NS_PER_S); /* past one o'clock: not before tomorrow */
    assert_false(f->line.level);
    test_clock_advance(f->clock, 22ull * 3600 * NS_PER_S);
    assert_true(f->line.level);
    get(f, REGISTER_C);
    set(f, HOUR_ALARM, 0x77); /* an hour that never comes */
    test_clock_advance(f->clock, 100000ull * NS_PER_S);
    assert_false(f->line.level);
}

static void test_periodic(void **state)
{
    struct fixture *f = *state;
    set(f, REGISTER_A, 0x26); /* 1024 Hz */
    set(f, REGISTER_B, B_24H | B_PERIODIC);
    unsigned raises = f->line.raises;
    for (unsigned i = 0; i < 1024; i++) {
        get(f, REGISTER_C);
        test_clock_advance(f->clock, 976563);
    }
    assert_in_range(f->line.raises - raises, 1023, 1025);
    set(f, REGISTER_A, 0x20); /* off */
    get(f, REGISTER_C);
    test_clock_advance(f->clock, NS_PER_S);
    assert_false(f->line.level);
}

/* While the guest sets the time there are no updates and no alarms, interrupts pending or not. */
static void test_alarm_while_set(void **state)
{
    struct fixture *f = *state;
    const struct rtc *rtc = rtc_of(f->device);
    set(f, HOUR_ALARM, 0);
    set(f, MINUTE_ALARM, 0);
    set(f, SECOND_ALARM, 5);
    set(f, REGISTER_B, B_24H | B_PERIODIC | B_ALARM);
    test_clock_advance(f->clock, NS_PER_S);
    assert_int_equal(f->line.level, 1);
    set(f, REGISTER_B, B_SET | B_24H | B_PERIODIC | B_ALARM);
    assert_int_equal(next_event(rtc), UINT64_MAX);
    test_clock_advance(f->clock, 20ull * NS_PER_S);
    assert_int_equal(get(f, REGISTER_C) & B_ALARM, 0);
}

static void test_memory(void **state)
{
    struct fixture *f = *state;
    ASSERT_TIME(f, {BASE_MEMORY, 0x80}, {BASE_MEMORY + 1, 0x02}, {EXTENDED_MEMORY, 0xff},
                {EXTENDED_MEMORY + 1, 0xff}, {MEMORY_ABOVE_16M, 0x00}, {MEMORY_ABOVE_16M + 1, 0xbf},
                {MEMORY_ABOVE_4G, 0x00}, {MEMORY_ABOVE_4G + 1, 0x40}, {MEMORY_ABOVE_4G + 2, 0x01});
    set(f, 0x0f, 0x5a);
    set(f, 0x7f, 0xa5);
    assert_int_equal(get(f, 0x8f), 0x5a); /* bit 7 is the NMI mask */
    assert_int_equal(get(f, 0x7f), 0xa5);
    set(f, REGISTER_C, 0xff);
    set(f, REGISTER_D, 0);
    assert_int_equal(get(f, REGISTER_D), 0x80);
}

static void test_impossible_dates(void **state)
{
    struct fixture *f = *state;
    set(f, REGISTER_B, B_SET | B_BINARY | B_24H);
    for (uint8_t index = 0; index < 10; index++) {
        set(f, index, 0xff);
    }
    set(f, CENTURY, 0);
    set(f, REGISTER_B, B_BINARY | B_24H);
    assert_int_equal(get(f, YEAR), 70); /* there is nothing before 1970 */
}

static void test_visit(void **state)
{
    struct fixture *f = *state;
    set(f, REGISTER_B, B_24H | B_UPDATE);
    set(f, MINUTE, 0x10);
    test_clock_advance(f->clock, NS_PER_S + 5);
    assert_true(f->line.level);
#define RTC(member) VISIT_DERIVED(struct rtc, member)
    assert_int_equal(VISIT_CHECK(struct rtc, f->device, device_visit, f->device,
                                 DEVICE_DERIVED(struct rtc), LINE_DERIVED(struct rtc, irq),
                                 RTC(region), RTC(clock), RTC(alarm), RTC(wall_now), RTC(owner)),
                     0);
    get(f, REGISTER_C);
    test_clock_advance(f->clock, NS_PER_S);
    assert_true(f->line.level);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_formats),
        TEST(test_setting),
        TEST(test_update_in_progress),
        TEST(test_alarm),
        TEST(test_alarm_while_set),
        TEST(test_periodic),
        TEST(test_update_interrupt),
        TEST(test_memory),
        TEST(test_visit),
        TEST(test_impossible_dates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
