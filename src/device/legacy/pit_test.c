/* The interval timer against the 8254 data sheet, on a clock that stands still. */
#include "device/legacy/pit.c" /* its struct, to check that its visit names every field */

#include "device/test_board.h"

struct fixture {
    struct bus *bus;
    struct test_clock *clock;
    struct counted_line line;
    struct device *device;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->bus = bus_new();
    f->clock = test_clock_new();
    const struct pit_config config = {
        .bus = f->bus, .irq = counted_line_wire(&f->line), .clock = test_clock_clock(f->clock)};
    assert_int_equal(pit_new(&config, &f->device), 0);
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

static void program(struct fixture *f, unsigned channel, uint8_t mode, uint16_t count)
{
    out8(f->bus, 0x43, (uint8_t)(channel << 6 | 0x30 | mode << 1));
    out8(f->bus, (uint16_t)(0x40 + channel), (uint8_t)count);
    out8(f->bus, (uint16_t)(0x40 + channel), (uint8_t)(count >> 8));
}

/* Let the time of `ticks` pass, from a moment at which a tick begins. */
static void ticks(struct fixture *f, uint64_t count)
{
    uint64_t now =
        (uint64_t)((unsigned __int128)clock_now(test_clock_clock(f->clock)) * PIT_HZ / 1000000000);
    test_clock_advance_to(f->clock, tick_ns(now + count));
}

static uint16_t latch(struct fixture *f, unsigned channel)
{
    out8(f->bus, 0x43, (uint8_t)(channel << 6));
    uint8_t low = in8(f->bus, (uint16_t)(0x40 + channel));
    return (uint16_t)(low | in8(f->bus, (uint16_t)(0x40 + channel)) << 8);
}

static void test_rate_generator(void **state)
{
    struct fixture *f = *state;
    program(f, 0, 2, 11932); /* 100 Hz */
    unsigned raises = f->line.raises;
    test_clock_advance(f->clock, 1000000000);
    assert_in_range(f->line.raises - raises, 99, 100);
    program(f, 0, 2, 1000);
    ticks(f, 250);
    assert_int_equal(latch(f, 0), 750);
    ticks(f, 800);
    assert_int_equal(latch(f, 0), 950);
}

static void test_new_count_waits_for_period(void **state)
{
    struct fixture *f = *state;
    program(f, 2, 2, 1000);
    out8(f->bus, 0x61, 1);
    ticks(f, 400);
    out8(f->bus, 0x42, 0xf4); /* 500 */
    out8(f->bus, 0x42, 0x01);
    assert_int_equal(latch(f, 2), 600);
    ticks(f, 600);
    assert_int_equal(latch(f, 2), 500);
    ticks(f, 100);
    assert_int_equal(latch(f, 2), 400);
}

static void test_storm(void **state)
{
    struct fixture *f = *state;
    program(f, 0, 2, 2);
    unsigned raises = f->line.raises;
    test_clock_advance(f->clock, 10000000);
    assert_in_range(f->line.raises - raises, 100, 201);
}

static void test_one_shot(void **state)
{
    struct fixture *f = *state;
    program(f, 0, 0, 5000);
    assert_false(f->line.level);
    ticks(f, 4999);
    assert_false(f->line.level);
    ticks(f, 1);
    assert_true(f->line.level);
    assert_int_equal(f->line.raises, 1);
    ticks(f, 10);
    assert_int_equal(latch(f, 0), 65526); /* it counts on */
    assert_int_equal(test_clock_next(f->clock), UINT64_MAX);
    out8(f->bus, 0x40, 1); /* the first byte of a new count lowers the output */
    assert_true(in8(f->bus, 0x43) == 0xff);
    out8(f->bus, 0x40, 0);
    assert_false(f->line.level);
}

/* How Linux and Windows calibrate: channel 2 in mode 0, gate and output at port 61h. */
static void test_gate(void **state)
{
    struct fixture *f = *state;
    out8(f->bus, 0x61, 0);
    program(f, 2, 0, 1000);
    ticks(f, 5000);
    assert_false(in8(f->bus, 0x61) & 0x20); /* the gate holds it */
    assert_int_equal(latch(f, 2), 1000);
    out8(f->bus, 0x61, 1);
    ticks(f, 400);
    out8(f->bus, 0x61, 0);
    ticks(f, 5000);
    assert_int_equal(latch(f, 2), 600);
    out8(f->bus, 0x61, 3);
    ticks(f, 599);
    assert_int_equal(in8(f->bus, 0x61) & 0x23, 3);
    ticks(f, 1);
    assert_int_equal(in8(f->bus, 0x61) & 0x23, 0x23);
}

static void test_gate_triggers(void **state)
{
    struct fixture *f = *state;
    program(f, 2, 1, 100);
    ticks(f, 50);
    assert_true(in8(f->bus, 0x61) & 0x20);
    out8(f->bus, 0x61, 1);
    assert_false(in8(f->bus, 0x61) & 0x20);
    ticks(f, 60);
    out8(f->bus, 0x61, 0);
    out8(f->bus, 0x61, 1); /* again */
    ticks(f, 99);
    assert_false(in8(f->bus, 0x61) & 0x20);
    ticks(f, 1);
    assert_true(in8(f->bus, 0x61) & 0x20);
    program(f, 2, 5, 10);
    out8(f->bus, 0x61, 0);
    out8(f->bus, 0x61, 1);
    ticks(f, 10);
    assert_false(in8(f->bus, 0x61) & 0x20); /* the strobe */
    ticks(f, 1);
    assert_true(in8(f->bus, 0x61) & 0x20);
}

static void test_square_wave(void **state)
{
    struct fixture *f = *state;
    out8(f->bus, 0x61, 1);
    program(f, 2, 3, 101);
    static const struct {
        unsigned wait, out, count;
    } rows[] = {{0, 1, 100}, {50, 1, 0}, {1, 0, 100}, {49, 0, 2}, {1, 1, 100}};
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        ticks(f, rows[i].wait);
        assert_int_equal(in8(f->bus, 0x61) >> 5 & 1, rows[i].out);
        assert_int_equal(latch(f, 2), rows[i].count);
    }
}

static void test_read_back(void **state)
{
    struct fixture *f = *state;
    program(f, 0, 2, 1000);
    out8(f->bus, 0x43, 0xb6); /* channel 2: mode 3, no count yet */
    ticks(f, 100);
    out8(f->bus, 0x43, 0xca); /* status and count of channels 0 and 2 */
    ticks(f, 100);
    assert_int_equal(in8(f->bus, 0x40), 0xb4);
    assert_int_equal(in8(f->bus, 0x40), 900 & 0xff);
    assert_int_equal(in8(f->bus, 0x40), 900 >> 8);
    assert_int_equal(in8(f->bus, 0x40), 800 & 0xff); /* live again */
    assert_int_equal(in8(f->bus, 0x42), 0xf6);
}

static void test_bcd_and_bytes(void **state)
{
    struct fixture *f = *state;
    out8(f->bus, 0x61, 1);
    out8(f->bus, 0x43, 0xb1); /* mode 0, BCD */
    out8(f->bus, 0x42, 0x00);
    out8(f->bus, 0x42, 0x10); /* 1000 */
    ticks(f, 1);
    assert_int_equal(latch(f, 2), 0x0999);
    out8(f->bus, 0x43, 0x94); /* low byte only, mode 2 */
    out8(f->bus, 0x42, 100);
    ticks(f, 30);
    assert_int_equal(in8(f->bus, 0x42), 70);
    out8(f->bus, 0x43, 0xa4); /* high byte only */
    out8(f->bus, 0x42, 0x10);
    ticks(f, 1);
    assert_int_equal(in8(f->bus, 0x42), 0x0f);
}

static void test_visit(void **state)
{
    struct fixture *f = *state;
    program(f, 0, 2, 10000);
    out8(f->bus, 0x61, 3);
    program(f, 2, 3, 1000);
    ticks(f, 100);
    out8(f->bus, 0x43, 0xca);
    out8(f->bus, 0x42, 1);
#define PIT(member) VISIT_DERIVED(struct pit, member)
    assert_int_equal(VISIT_CHECK(struct pit, f->device, device_visit, f->device,
                                 DEVICE_DERIVED(struct pit), LINE_DERIVED(struct pit, irq),
                                 PIT(ports), PIT(speaker_port), PIT(clock), PIT(alarm)),
                     0);
    unsigned raises = f->line.raises;
    ticks(f, 10000);
    assert_int_equal(f->line.raises, raises + 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_rate_generator), TEST(test_new_count_waits_for_period),
        TEST(test_storm),          TEST(test_one_shot),
        TEST(test_gate),           TEST(test_gate_triggers),
        TEST(test_square_wave),    TEST(test_read_back),
        TEST(test_bcd_and_bytes),  TEST(test_visit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
