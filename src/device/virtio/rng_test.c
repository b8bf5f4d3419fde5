/* virtio-rng: buffers are filled, bounded, and a broken one is the driver's mistake. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "device/virtio/rng.h"
#include "device/virtio/test_driver.h"
#include "persist/visitor.h"

enum { DATA = TEST_BUFFERS };

static int set_up(void **state)
{
    static struct test_board board;
    struct virtio_device *virtio;
    test_board_init(&board);
    assert_int_equal(virtio_rng_new(board.memory, "virtio-rng0", &virtio), 0);
    test_plug(&board, virtio);
    *state = &board;
    return 0;
}

static int tear_down(void **state)
{
    test_board_fini(*state);
    return 0;
}

static void buffers_are_filled(void **state)
{
    static const struct {
        uint32_t length, written;
    } table[] = {{1, 1}, {16, 16}, {255, 255}, {256, 256}, {257, 257}, {4096, 4096}, {70000, 4096}};
    struct test_board *board = *state;
    static uint8_t bytes[8192], zeros[8192];
    uint32_t head, written;
    test_start(board, 0);
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        struct test_buffer buffer = {DATA, table[i].length, true};
        test_write(board, DATA, zeros, sizeof zeros);
        test_add(board, 0, &buffer, 1);
        test_kick(board, 0);
        assert_true(test_take_used(board, 0, &head, &written));
        assert_int_equal(written, table[i].written);
        test_read(board, DATA, bytes, sizeof bytes);
        /* Nothing behind the end; and 16 zeros by chance are not to be expected. */
        assert_memory_equal(bytes + written, zeros, sizeof bytes - written);
        assert_true(written < 16 || memcmp(bytes, zeros, written) != 0);
    }
}

static void nothing_to_fill(void **state)
{
    struct test_board *board = *state;
    struct test_buffer buffer = {DATA, 8, false};
    test_start(board, 0);
    test_add(board, 0, &buffer, 1);
    test_kick(board, 0);
    assert_true(test_status(board) & VIRTIO_NEEDS_RESET);
    test_start(board, 0);
    assert_false(test_status(board) & VIRTIO_NEEDS_RESET);
}

/* No configuration: no capability for it, and nothing behind the address where it would be. */
static void no_configuration(void **state)
{
    struct test_board *board = *state;
    assert_int_equal(board->config, 0);
    assert_int_equal(test_config(board, PCI_DEVICE, 2), 0x1044);
}

static void save_and_restore(void **state)
{
    struct test_board *board = *state;
    struct device *device = &board->virtio->device;
    struct test_buffer buffer = {DATA, 8, true};
    uint32_t head, written;
    test_start(board, 0);
    struct visitor *saver = visitor_new_write();
    device->ops->visit(device, saver);
    size_t size;
    const void *saved = visitor_buffer(saver, &size);
    test_common_write(board, 0x14, 1, 0);
    struct visitor *loader = visitor_new_read(saved, size);
    device->ops->visit(device, loader);
    assert_int_equal(visitor_error(loader), 0);
    test_add(board, 0, &buffer, 1);
    test_kick(board, 0);
    assert_true(test_take_used(board, 0, &head, &written));
    visitor_free(loader);
    visitor_free(saver);
}

int main(void)
{
#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(buffers_are_filled),
        TEST(nothing_to_fill),
        TEST(no_configuration),
        TEST(save_and_restore),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
