/* virtio-console on an array as its backend; and what every virtio device saves. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "backend/console/array_console.h"
#include "device/virtio/console.h"
#include "device/virtio/test_driver.h"
#include "device/visit_check.h"

enum { RECEIVE = 0, TRANSMIT = 1, DATA = TEST_BUFFERS };

struct setup {
    struct test_board board;
    struct array_console *array;
};

static void build(struct setup *s)
{
    test_board_init(&s->board);
    s->array = array_console_new();
    const struct virtio_console_config config = {
        .memory = s->board.memory, .console = &s->array->console, .columns = 80, .rows = 25};
    struct virtio_device *virtio;
    assert_int_equal(virtio_console_new(&config, "virtio-console0", &virtio), 0);
    test_plug(&s->board, virtio);
}

static int set_up(void **state)
{
    static struct setup setup;
    build(&setup);
    *state = &setup;
    return 0;
}

static int tear_down(void **state)
{
    test_board_fini(&((struct setup *)*state)->board);
    return 0;
}

static void transmit(struct setup *s, gpa_t gpa, const char *text)
{
    struct test_buffer buffer = {gpa, (uint32_t)strlen(text), false};
    test_write(&s->board, gpa, text, buffer.length);
    test_add(&s->board, TRANSMIT, &buffer, 1);
    test_kick(&s->board, TRANSMIT);
}

static bool output_is(struct setup *s, const char *text)
{
    return s->array->output_count == strlen(text) &&
           memcmp(s->array->output, text, strlen(text)) == 0;
}

static void output(void **state)
{
    struct setup *s = *state;
    uint32_t head, written;
    test_start(&s->board, 0);
    transmit(s, DATA, "hello ");
    transmit(s, DATA + 100, "world");
    assert_true(output_is(s, "hello world"));
    assert_true(test_take_used(&s->board, TRANSMIT, &head, &written));
    assert_int_equal(written, 0);
    assert_true(test_take_used(&s->board, TRANSMIT, &head, &written));
}

static void long_output(void **state)
{
    static char text[20000];
    struct setup *s = *state;
    memset(text, 'x', sizeof text - 1);
    test_start(&s->board, 0);
    transmit(s, DATA, text);
    assert_true(output_is(s, text));
}

/* A backend without room stops the ring in the middle of a chain, and nothing is lost or doubled.
 */
static void slow_backend(void **state)
{
    struct setup *s = *state;
    uint32_t head, written;
    const struct console_receiver *receiver = &s->array->console.receiver;
    test_start(&s->board, 0);
    s->array->room = 4;
    transmit(s, DATA, "abcdefgh");
    transmit(s, DATA + 100, "ijkl");
    assert_true(output_is(s, "abcd"));
    assert_false(test_take_used(&s->board, TRANSMIT, &head, &written));
    s->array->room = 6;
    receiver->drained(receiver->owner);
    assert_true(output_is(s, "abcdefghij"));
    assert_true(test_take_used(&s->board, TRANSMIT, &head, &written));
    assert_false(test_take_used(&s->board, TRANSMIT, &head, &written));
    s->array->room = SIZE_MAX;
    receiver->drained(receiver->owner);
    assert_true(output_is(s, "abcdefghijkl"));
    assert_true(test_take_used(&s->board, TRANSMIT, &head, &written));
}

static void input(void **state)
{
    struct setup *s = *state;
    uint32_t head, written;
    char text[8];
    assert_int_equal(array_console_type(s->array, "early"), 0); /* nobody there yet */
    test_start(&s->board, 0);
    assert_int_equal(array_console_type(s->array, "no buffer"), 0);
    struct test_buffer buffers[] = {{DATA, 3, true}, {DATA + 64, 4, true}};
    test_add(&s->board, RECEIVE, &buffers[0], 1);
    test_add(&s->board, RECEIVE, &buffers[1], 1);
    unsigned before = s->array->ready_calls;
    test_kick(&s->board, RECEIVE);
    assert_int_equal(s->array->ready_calls, before + 1);
    assert_int_equal(array_console_type(s->array, "abcde"), 5);
    assert_true(test_take_used(&s->board, RECEIVE, &head, &written));
    assert_int_equal(written, 3);
    assert_true(test_take_used(&s->board, RECEIVE, &head, &written));
    assert_int_equal(written, 2);
    test_read(&s->board, DATA, text, 3);
    test_read(&s->board, DATA + 64, text + 3, 2);
    assert_memory_equal(text, "abcde", 5);
    assert_int_equal(array_console_type(s->array, "x"), 0);
}

static void window_size(void **state)
{
    struct setup *s = *state;
    const struct console_receiver *receiver = &s->array->console.receiver;
    test_enable_msix(&s->board);
    test_start(&s->board, 0);
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config, 2), 80);
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config + 2, 2), 25);
    uint64_t generation = test_common_read(&s->board, 0x15, 1);
    receiver->resized(receiver->owner, 132, 43);
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config, 4), 43 << 16 | 132);
    assert_int_not_equal(test_common_read(&s->board, 0x15, 1), generation);
    assert_int_equal(s->board.messages[0], 1);
    receiver->resized(receiver->owner, 132, 43);
    assert_int_equal(s->board.messages[0], 1);
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config + 4, 4), 0); /* beyond the end */
}

/* Input buffers that make no progress do not keep the device busy forever. */
static void empty_buffers_end(void **state)
{
    struct setup *s = *state;
    uint32_t head, written;
    test_start(&s->board, 0);
    for (unsigned i = 0; i < TEST_QUEUE; i++) {
        struct test_buffer buffer = {DATA, 5, false};
        test_add(&s->board, RECEIVE, &buffer, 1);
    }
    assert_int_equal(array_console_type(s->array, "abc"), 0);
    for (unsigned i = 0; i < TEST_QUEUE; i++) {
        assert_true(test_take_used(&s->board, RECEIVE, &head, &written));
        assert_int_equal(written, 0);
    }
}

/* Saved in the middle of a chain, restored, and the rest comes out once. */
static void save_in_the_middle(void **state)
{
    struct setup *s = *state;
    struct device *device = &s->board.virtio->device;
    test_start(&s->board, 0);
    s->array->room = 3;
    transmit(s, DATA, "abcdef");
    struct visitor *saver = visitor_new_write();
    device->ops->visit(device, saver);
    size_t size;
    const void *saved = visitor_buffer(saver, &size);
    s->array->room = SIZE_MAX;
    test_kick(&s->board, TRANSMIT);
    assert_true(output_is(s, "abcdef"));

    s->array->output_count = 0;
    struct visitor *loader = visitor_new_read(saved, size);
    device->ops->visit(device, loader);
    assert_int_equal(visitor_error(loader), 0);
    device->ops->resume(device);
    assert_true(output_is(s, "def"));
    visitor_free(loader);
    visitor_free(saver);
}

static void visit_device(void *owner, struct visitor *v)
{
    struct device *device = owner;
    device->ops->visit(device, v);
}

#define QUEUE_DERIVED(n)                                                                           \
    VISIT_DERIVED(struct virtio_device, queues[n].memory),                                         \
        VISIT_DERIVED(struct virtio_device, queues[n].size_max),                                   \
        VISIT_DERIVED(struct virtio_device, queues[n].event_index),                                \
        VISIT_DERIVED(struct virtio_device, queues[n].indirect)

static void everything_is_saved(void **state)
{
    struct setup *s = *state;
    struct virtio_device *virtio = s->board.virtio;
    test_start(&s->board, 0);
    transmit(s, DATA, "something to count");
    assert_int_equal(VISIT_CHECK(struct virtio_device, virtio, visit_device, &virtio->device,
                                 VISIT_DERIVED(struct virtio_device, device),
                                 VISIT_DERIVED(struct virtio_device, ops),
                                 VISIT_DERIVED(struct virtio_device, memory),
                                 VISIT_DERIVED(struct virtio_device, transport_ops),
                                 VISIT_DERIVED(struct virtio_device, transport),
                                 VISIT_DERIVED(struct virtio_device, features_offered),
                                 VISIT_DERIVED(struct virtio_device, paused),
                                 VISIT_DERIVED(struct virtio_device, resetting),
                                 VISIT_DERIVED(struct virtio_device, budget), QUEUE_DERIVED(0),
                                 QUEUE_DERIVED(1), VISIT_DERIVED(struct virtio_device, queue_count),
                                 {offsetof(struct virtio_device, queues[2]),
                                  (VIRTIO_QUEUES_MAX - 2) * sizeof(struct virtqueue)}),
                     0);
    transmit(s, DATA, ", and more");
    assert_true(output_is(s, "something to count, and more"));
}

/* Saved states that no device of ours could have written. */
static void impossible_states_are_refused(void **state)
{
    struct setup *s = *state;
    struct virtio_device *virtio = s->board.virtio;
    struct virtio_device good = *virtio;
    for (unsigned i = 0; i < 3; i++) {
        test_start(&s->board, 0);
        switch (i) {
        case 0:
            virtio->features_accepted = ~UINT64_C(0);
            break;
        case 1:
            virtio->queues[0].device_area = TEST_MEMORY;
            break;
        case 2:
            virtio->queues[1].next_available += 1;
            break;
        }
        struct visitor *saver = visitor_new_write();
        virtio->device.ops->visit(&virtio->device, saver);
        size_t size;
        const void *saved = visitor_buffer(saver, &size);
        struct visitor *loader = visitor_new_read(saved, size);
        virtio->device.ops->visit(&virtio->device, loader);
        assert_int_equal(visitor_error(loader), -EINVAL);
        visitor_free(loader);
        visitor_free(saver);
        virtio->queues[0] = good.queues[0];
    }
}

/* A driver that would keep the device busy for hours is broken: the machine must be stoppable. */
static void endless_output_is_refused(void **state)
{
    enum { PIECES = 14 };
    struct setup *s = *state;
    struct test_buffer buffers[PIECES];
    test_start(&s->board, 0);
    for (unsigned i = 0; i < PIECES; i++) {
        buffers[i] = (struct test_buffer){0, TEST_MEMORY, false};
    }
    test_add(&s->board, TRANSMIT, buffers, PIECES);
    s->array->room = 100 << 20;
    test_kick(&s->board, TRANSMIT);
    assert_true(s->board.virtio->status & VIRTIO_NEEDS_RESET);
    assert_int_equal((100 << 20) - s->array->room, 8 << 20);
}

int main(void)
{
#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(output),
        TEST(long_output),
        TEST(slow_backend),
        TEST(endless_output_is_refused),
        TEST(input),
        TEST(window_size),
        TEST(empty_buffers_end),
        TEST(save_in_the_middle),
        TEST(everything_is_saved),
        TEST(impossible_states_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
