/* The keyboard controller without keyboard and mouse; the exit and POST code ports. */
#include "device/legacy/i8042.c" /* its struct, to check that its visit names every field */

#include "device/legacy/debug_exit.h"
#include "device/test_board.h"

struct fixture {
    struct bus *bus;
    struct counted_line keyboard, mouse;
    struct device *device;
    unsigned resets;
    uint32_t exit_value;
};

static void reset_asked(void *owner)
{
    ((struct fixture *)owner)->resets++;
}

static void exit_asked(void *owner, uint32_t value)
{
    ((struct fixture *)owner)->exit_value = value;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->bus = bus_new();
    const struct i8042_config config = {.bus = f->bus,
                                        .keyboard_irq = counted_line_wire(&f->keyboard),
                                        .mouse_irq = counted_line_wire(&f->mouse),
                                        .reset = reset_asked,
                                        .owner = f};
    assert_int_equal(i8042_new(&config, &f->device), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    device_free(f->device);
    bus_free(f->bus);
    free(f);
    return 0;
}

/* A command, its data byte (-1: none), and the answer with its status (0: no answer). */
static void test_commands(void **state)
{
    static const struct {
        uint8_t command;
        int data;
        uint8_t status, answer;
    } rows[] = {
        {0xaa, -1, 0x1d, 0x55},   {0xab, -1, 0x1d, 0x00},   {0xa9, -1, 0x1d, 0x00},
        {0x60, 0x47, 0x14, 0},    {0x20, -1, 0x1d, 0x47},   {0xa7, -1, 0x1c, 0},
        {0x20, -1, 0x1d, 0x67},   {0xa8, -1, 0x1c, 0},      {0xad, -1, 0x1c, 0},
        {0x20, -1, 0x1d, 0x57},   {0xae, -1, 0x1c, 0},      {0x20, -1, 0x1d, 0x47},
        {0xd2, 0x5a, 0x15, 0x5a}, {0xd3, 0xa5, 0x35, 0xa5}, {0xd4, 0xf2, 0x75, 0xfe},
        {0x7f, 0x77, 0x14, 0},    {0x3f, -1, 0x1d, 0x77},   {0xc0, -1, 0x1d, 0x80},
        {0xd0, -1, 0x1d, 0x03},   {0xd1, 0x01, 0x14, 0},    {0xd0, -1, 0x1d, 0x01},
        {0xff, -1, 0x1c, 0},      {0x00, -1, 0x1c, 0},
    };
    struct fixture *f = *state;
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        out8(f->bus, 0x64, rows[i].command);
        if (rows[i].data >= 0) {
            assert_false(in8(f->bus, 0x64) & STATUS_FULL);
            out8(f->bus, 0x60, (uint8_t)rows[i].data);
        }
        assert_int_equal(in8(f->bus, 0x64), rows[i].status);
        if (rows[i].status & STATUS_FULL) {
            assert_int_equal(in8(f->bus, 0x60), rows[i].answer);
            assert_int_equal(in8(f->bus, 0x64) & 0x61, 0);
        }
    }
    assert_int_equal(f->resets, 0);
}

static void test_interrupts(void **state)
{
    struct fixture *f = *state;
    out8(f->bus, 0x60, 0xed); /* to the keyboard that is not there */
    assert_int_equal(in8(f->bus, 0x64) & 0x41, 0x41);
    assert_true(f->keyboard.level);
    out8(f->bus, 0x60, 0xed); /* nobody read the answer; the new one is an edge of its own */
    assert_int_equal(f->keyboard.raises, 2);
    assert_int_equal(in8(f->bus, 0x60), 0xfe);
    assert_false(f->keyboard.level);
    out8(f->bus, 0x64, 0x60);
    out8(f->bus, 0x60, 0x02);
    out8(f->bus, 0x64, 0xd4);
    out8(f->bus, 0x60, 0xff);
    assert_true(f->mouse.level);
    assert_false(f->keyboard.level);
    in8(f->bus, 0x60);
    assert_false(f->mouse.level);
}

static void test_reset_and_a20(void **state)
{
    struct fixture *f = *state;
    out8(f->bus, 0x64, 0xfe);
    assert_int_equal(f->resets, 1);
    out8(f->bus, 0x64, 0xd1);
    out8(f->bus, 0x60, 0x02);
    assert_int_equal(f->resets, 2);
    assert_int_equal(in8(f->bus, 0x92), 2);
    out8(f->bus, 0x92, 0x00);
    assert_int_equal(in8(f->bus, 0x92), 0);
    out8(f->bus, 0x92, 0x01);
    out8(f->bus, 0x92, 0x03); /* no new edge */
    assert_int_equal(f->resets, 3);
}

static void test_visit(void **state)
{
    struct fixture *f = *state;
    out8(f->bus, 0x64, 0xd4);
    out8(f->bus, 0x60, 1);
    out8(f->bus, 0x64, 0x61);
    out8(f->bus, 0x92, 1);
#define KBC(member) VISIT_DERIVED(struct i8042, member)
    assert_int_equal(
        VISIT_CHECK(struct i8042, f->device, device_visit, f->device, DEVICE_DERIVED(struct i8042),
                    LINE_DERIVED(struct i8042, keyboard_irq), LINE_DERIVED(struct i8042, mouse_irq),
                    KBC(data), KBC(command), KBC(system), KBC(request_reset), KBC(owner)),
        0);
    f->device->ops->reset(f->device);
    assert_int_equal(in8(f->bus, 0x64), 0x14);
}

static void test_debug_ports(void **state)
{
    struct fixture *f = *state;
    struct device *leave = NULL, *post = NULL, *second = NULL;
    const struct debug_exit_config config = {
        .bus = f->bus, .port = 0xf4, .exit = exit_asked, .owner = f};
    assert_int_equal(debug_exit_new(&config, &leave), 0);
    assert_int_equal(debug_exit_new(&config, &second), -EBUSY);
    assert_int_equal(post_code_new(f->bus, &post), 0);
    bus_port_write(f->bus, 0xf4, 4, 0x12345678);
    assert_int_equal(f->exit_value, 0x12345678);
    out8(f->bus, 0xf4, 0x10);
    assert_int_equal(f->exit_value, 0x10);
    out8(f->bus, 0x80, 0xa5);
    assert_int_equal(in8(f->bus, 0x80), 0xa5);
    struct visitor *save = visitor_new_write();
    post->ops->visit(post, save);
    size_t size;
    const void *stream = visitor_buffer(save, &size);
    post->ops->reset(post);
    assert_int_equal(in8(f->bus, 0x80), 0);
    struct visitor *load = visitor_new_read(stream, size);
    post->ops->visit(post, load);
    assert_int_equal(in8(f->bus, 0x80), 0xa5);
    visitor_free(load);
    visitor_free(save);
    device_free(post);
    device_free(leave);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {TEST(test_commands), TEST(test_interrupts),
                                       TEST(test_reset_and_a20), TEST(test_visit),
                                       TEST(test_debug_ports)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
