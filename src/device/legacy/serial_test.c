/* The serial port against the PC16550D data sheet, with an array as console. */
#include "device/legacy/serial.c" /* its struct, to check that its visit names every field */

#include "backend/console/array_console.h"
#include "device/test_board.h"

enum { COM1 = 0x3f8 };

struct fixture {
    struct bus *bus;
    struct test_clock *clock;
    struct counted_line line;
    struct array_console *console;
    struct device *device;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->bus = bus_new();
    f->clock = test_clock_new();
    f->console = array_console_new();
    f->console->room = SIZE_MAX;
    const struct serial_config config = {
        .id = "serial0",
        .port = COM1,
        .bus = f->bus,
        .irq = counted_line_wire(&f->line),
        .clock = test_clock_clock(f->clock),
        .console = &f->console->console,
    };
    assert_int_equal(serial_new(&config, &f->device), 0);
    out8(f->bus, COM1 + MCR, MCR_OUT2);
    in8(f->bus, COM1 + MSR);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    device_free(f->device);
    console_free(&f->console->console);
    test_clock_free(f->clock);
    bus_free(f->bus);
    free(f);
    return 0;
}

static void test_output(void **state)
{
    struct fixture *f = *state;
    for (const char *c = "hello"; *c; c++) {
        assert_int_equal(in8(f->bus, COM1 + LSR) & (LSR_EMPTY | LSR_IDLE), LSR_EMPTY | LSR_IDLE);
        out8(f->bus, COM1, (uint8_t)*c);
    }
    assert_int_equal(f->console->output_count, 5);
    assert_memory_equal(f->console->output, "hello", 5);
    assert_int_equal(f->line.raises, 0);
}

static void test_transmit_interrupt(void **state)
{
    struct fixture *f = *state;
    out8(f->bus, COM1 + IER, IER_EMPTY);
    assert_true(f->line.level);
    assert_int_equal(in8(f->bus, COM1 + IIR), IIR_EMPTY);
    assert_false(f->line.level); /* reading the cause acknowledges it */
    assert_int_equal(in8(f->bus, COM1 + IIR), IIR_NONE);
    out8(f->bus, COM1, 'x');
    assert_true(f->line.level);
    unsigned raises = f->line.raises;
    out8(f->bus, COM1, 'y'); /* each byte is an edge of its own */
    assert_int_equal(f->line.raises, raises + 1);
    out8(f->bus, COM1 + IER, 0);
    assert_false(f->line.level);
}

static void test_out2_gates_interrupt(void **state)
{
    struct fixture *f = *state;
    out8(f->bus, COM1 + MCR, 0);
    out8(f->bus, COM1 + IER, IER_EMPTY);
    assert_false(f->line.level);
    out8(f->bus, COM1 + MCR, MCR_OUT2);
    assert_true(f->line.level);
}

static void test_registers(void **state)
{
    struct fixture *f = *state;
    out8(f->bus, COM1 + SCR, 0xa5);
    assert_int_equal(in8(f->bus, COM1 + SCR), 0xa5);
    out8(f->bus, COM1 + IER, 0xff);
    assert_int_equal(in8(f->bus, COM1 + IER), 0x0f);
    out8(f->bus, COM1 + LCR, LCR_DLAB | 3);
    out8(f->bus, COM1, 0x34);
    out8(f->bus, COM1 + 1, 0x12);
    assert_int_equal(in8(f->bus, COM1), 0x34);
    assert_int_equal(in8(f->bus, COM1 + 1), 0x12);
    out8(f->bus, COM1 + LCR, 3);
    assert_int_equal(in8(f->bus, COM1 + IER), 0x0f);
    assert_int_equal(f->console->output_count, 0);
    out8(f->bus, COM1 + IIR, 0x01);
    assert_int_equal(in8(f->bus, COM1 + IIR) & 0xc0, 0xc0); /* a 16550A, not a 16450 */
    out8(f->bus, COM1 + IIR, 0x00);
    assert_int_equal(in8(f->bus, COM1 + IIR) & 0xc0, 0);
    assert_int_equal(in8(f->bus, COM1 + MSR) & 0xf0, CONNECTED);
}

static void test_receive_trigger(void **state)
{
    static const struct {
        uint8_t fcr;
        unsigned trigger;
    } rows[] = {{0x00, 1}, {0x01, 1}, {0x41, 4}, {0x81, 8}, {0xc1, 14}};
    struct fixture *f = *state;
    out8(f->bus, COM1 + IER, IER_RECEIVED);
    for (size_t row = 0; row < ARRAY_SIZE(rows); row++) {
        out8(f->bus, COM1 + IIR, rows[row].fcr | FCR_CLEAR_RECEIVER);
        for (unsigned i = 0; i < rows[row].trigger; i++) {
            assert_false(f->line.level);
            assert_int_equal(array_console_type(f->console, "a"), 1);
        }
        assert_true(f->line.level);
        assert_int_equal(in8(f->bus, COM1 + IIR) & 0xf, IIR_RECEIVED);
        assert_int_equal(in8(f->bus, COM1), 'a');
        assert_false(f->line.level);
        out8(f->bus, COM1 + IIR, 0);
        while (in8(f->bus, COM1 + LSR) & LSR_READY) {
            in8(f->bus, COM1);
        }
    }
}

static void test_receive_flow(void **state)
{
    struct fixture *f = *state;
    out8(f->bus, COM1 + IIR, 0x01);
    assert_int_equal(array_console_type(f->console, "0123456789abcdefXYZ"), 16);
    assert_int_equal(array_console_type(f->console, "X"), 0);
    unsigned ready = f->console->ready_calls;
    assert_int_equal(in8(f->bus, COM1), '0');
    assert_int_equal(f->console->ready_calls, ready + 1);
    assert_int_equal(in8(f->bus, COM1), '1');
    assert_int_equal(f->console->ready_calls, ready + 1);
    for (const char *c = "23456789abcdef"; *c; c++) {
        assert_int_equal(in8(f->bus, COM1), *c);
    }
    assert_int_equal(in8(f->bus, COM1 + LSR), LSR_EMPTY | LSR_IDLE);
    assert_int_equal(in8(f->bus, COM1), 0);
}

static void test_receive_timeout(void **state)
{
    struct fixture *f = *state;
    out8(f->bus, COM1 + LCR, LCR_DLAB);
    out8(f->bus, COM1, 1); /* 115200 baud */
    out8(f->bus, COM1 + 1, 0);
    out8(f->bus, COM1 + LCR, 3);
    out8(f->bus, COM1 + IIR, 0x81);
    out8(f->bus, COM1 + IER, IER_RECEIVED);
    array_console_type(f->console, "ab");
    assert_false(f->line.level);
    test_clock_advance(f->clock, 340000);
    assert_false(f->line.level);
    test_clock_advance(f->clock, 10000); /* four characters take 347 us */
    assert_true(f->line.level);
    assert_int_equal(in8(f->bus, COM1 + IIR) & 0xf, IIR_TIMEOUT);
    in8(f->bus, COM1);
    assert_false(f->line.level);
    test_clock_advance(f->clock, 350000);
    assert_true(f->line.level);
    in8(f->bus, COM1);
    test_clock_advance(f->clock, 10000000);
    assert_false(f->line.level);
}

static void test_loopback(void **state)
{
    static const struct {
        uint8_t mcr, msr;
    } rows[] = {{MCR_DTR, MSR_DSR}, {MCR_RTS, MSR_CTS}, {MCR_OUT1, MSR_RI}, {MCR_OUT2, MSR_DCD}};
    struct fixture *f = *state;
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        out8(f->bus, COM1 + MCR, MCR_LOOP | rows[i].mcr);
        assert_int_equal(in8(f->bus, COM1 + MSR) & 0xf0, rows[i].msr);
    }
    out8(f->bus, COM1, 0x5a);
    assert_int_equal(f->console->output_count, 0);
    assert_int_equal(array_console_type(f->console, "no"), 0);
    assert_int_equal(in8(f->bus, COM1), 0x5a);
    unsigned ready = f->console->ready_calls;
    out8(f->bus, COM1 + MCR, 0);
    assert_int_equal(f->console->ready_calls, ready + 1);
    assert_int_equal(in8(f->bus, COM1 + MSR) & 0xf, 0x3); /* CTS and DSR came back */
}

static void test_break_and_overrun(void **state)
{
    struct fixture *f = *state;
    out8(f->bus, COM1 + IER, IER_LINE);
    f->console->console.receiver.send_break(f->console->console.receiver.owner);
    assert_true(f->line.level);
    assert_int_equal(in8(f->bus, COM1 + IIR), IIR_LINE);
    assert_int_equal(in8(f->bus, COM1 + LSR), LSR_EMPTY | LSR_IDLE | LSR_READY | LSR_BREAK);
    assert_false(f->line.level);
    f->console->console.receiver.send_break(f->console->console.receiver.owner);
    assert_true(in8(f->bus, COM1 + LSR) & LSR_OVERRUN); /* one byte of room without FIFO */
    assert_int_equal(in8(f->bus, COM1), 0);
}

static void test_visit(void **state)
{
    struct fixture *f = *state;
    out8(f->bus, COM1 + IIR, 0x81);
    out8(f->bus, COM1 + IER, 0x0f);
    array_console_type(f->console, "abc");
    out8(f->bus, COM1, 'x');
    assert_int_equal(VISIT_CHECK(struct serial, f->device, device_visit, f->device,
                                 DEVICE_DERIVED(struct serial), LINE_DERIVED(struct serial, irq),
                                 VISIT_DERIVED(struct serial, region),
                                 VISIT_DERIVED(struct serial, clock),
                                 VISIT_DERIVED(struct serial, timeout_alarm),
                                 VISIT_DERIVED(struct serial, console)),
                     0);
    test_clock_advance(f->clock, 10000000); /* the timeout was armed again */
    assert_true(serial_of(f->device)->timeout_pending);
}

static void test_reset(void **state)
{
    struct fixture *f = *state;
    out8(f->bus, COM1 + IER, 0x0f);
    assert_true(f->line.level);
    f->device->ops->reset(f->device);
    assert_false(f->line.level);
    assert_int_equal(in8(f->bus, COM1 + IER), 0);
    struct device *second = NULL;
    const struct serial_config config = {
        .id = "serial1", .port = COM1 + 4, .bus = f->bus, .clock = test_clock_clock(f->clock)};
    assert_int_equal(serial_new(&config, &second), -EBUSY);
    assert_null(second);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_output),
        TEST(test_transmit_interrupt),
        TEST(test_out2_gates_interrupt),
        TEST(test_registers),
        TEST(test_receive_trigger),
        TEST(test_receive_flow),
        TEST(test_receive_timeout),
        TEST(test_loopback),
        TEST(test_break_and_overrun),
        TEST(test_visit),
        TEST(test_reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
