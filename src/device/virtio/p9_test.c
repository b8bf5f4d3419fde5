/* virtio-9p over a share that the test answers for. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "backend/share/test_share.h"
#include "device/virtio/p9.h"
#include "device/virtio/test_driver.h"
#include "persist/visitor.h"

enum { MESSAGE = TEST_BUFFERS, REPLY = TEST_BUFFERS + 0x10000, SIZE = 23 };

struct setup {
    struct test_board board;
    struct test_share *share;
    unsigned reports;
    char text[256];
};

static void note_report(void *owner, const char *text)
{
    struct setup *s = owner;
    s->reports++;
    snprintf(s->text, sizeof s->text, "%s", text);
}

static void build(struct setup *s, const char *tag)
{
    *s = (struct setup){0};
    test_board_init(&s->board);
    s->share = test_share_new();
    s->share->reply_length = SIZE;
    memset(s->share->reply, 0x5a, sizeof s->share->reply);
    const struct virtio_9p_config config = {
        .memory = s->board.memory,
        .share = &s->share->share,
        .tag = tag,
        .report = note_report,
        .owner = s,
    };
    struct virtio_device *virtio;
    assert_int_equal(virtio_9p_new(&config, "virtio-9p0", &virtio), 0);
    test_plug(&s->board, virtio);
}

static int set_up(void **state)
{
    static struct setup setup;
    build(&setup, "work");
    *state = &setup;
    return 0;
}

static int tear_down(void **state)
{
    test_board_fini(&((struct setup *)*state)->board);
    return 0;
}

/* A message in two pieces, room for the answer in three. */
static void start(struct setup *s, uint16_t tag)
{
    uint8_t message[SIZE] = {SIZE, 0, 0, 0, 100};
    store_le16(message + 5, tag);
    test_write(&s->board, MESSAGE, message, 5);
    test_write(&s->board, MESSAGE + 0x100, message + 5, SIZE - 5);
    const struct test_buffer buffers[] = {
        {MESSAGE, 5, false},     {MESSAGE + 0x100, SIZE - 5, false},
        {REPLY, 3, true},        {REPLY + 3, 4, true},
        {REPLY + 7, 8192, true},
    };
    test_add(&s->board, 0, buffers, 5);
    test_kick(&s->board, 0);
}

static uint32_t finish(struct setup *s)
{
    uint32_t head, written = 0;
    while (test_share_step(s->share)) {
    }
    assert_true(test_take_used(&s->board, 0, &head, &written));
    return written;
}

static void identity(void **state)
{
    struct setup *s = *state;
    assert_int_equal(test_config(&s->board, PCI_DEVICE, 2), 0x1049);
    assert_true(test_features(&s->board) & 1);
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config, 2), 4);
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config + 2, 4), 0x6b726f77); /* "work" */
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config + 6, 4), 0);
}

static void messages_and_answers(void **state)
{
    struct setup *s = *state;
    uint8_t reply[SIZE];
    test_start(&s->board, 0);
    start(s, 7);
    assert_int_equal(finish(s), SIZE);
    assert_int_equal(s->share->message_length, SIZE);
    assert_int_equal(load_le16(s->share->message + 5), 7);
    test_read(&s->board, REPLY, reply, sizeof reply);
    assert_memory_equal(reply, s->share->reply, sizeof reply);
    /* More than are taken at once: the rest waits in the ring, and none is lost. */
    assert_true(test_negotiate(&s->board, test_features(&s->board)));
    test_setup_queue(&s->board, 0, 128);
    test_common_write(&s->board, 0x14, 1, 15);
    for (unsigned i = 0; i < 25; i++) {
        start(s, (uint16_t)i);
    }
    assert_true(s->share->waiting < 25);
    unsigned answers = 1;
    finish(s);
    uint32_t head, written;
    while (test_take_used(&s->board, 0, &head, &written)) {
        answers++;
    }
    assert_int_equal(answers, 25);
}

/* The helper process is gone: an error for the guest, one line for the user. */
static void broken_share(void **state)
{
    struct setup *s = *state;
    uint8_t reply[11];
    test_start(&s->board, 0);
    s->share->error = -EPIPE;
    for (unsigned i = 0; i < 3; i++) {
        start(s, (uint16_t)(0x100 + i));
        assert_int_equal(finish(s), sizeof reply);
        test_read(&s->board, REPLY, reply, sizeof reply);
        assert_int_equal(load_le32(reply), sizeof reply);
        assert_int_equal(reply[4], 7);
        assert_int_equal(load_le16(reply + 5), 0x100 + i);
        assert_int_equal(load_le32(reply + 7), EIO);
    }
    assert_int_equal(s->reports, 1);
    assert_non_null(strstr(s->text, "'work'"));
}

static void broken_requests_need_a_reset(void **state)
{
    static const struct test_buffer small[] = {{MESSAGE, 6, false}, {REPLY, 100, true}};
    static const struct test_buffer no_room[] = {{MESSAGE, SIZE, false}, {REPLY, 10, true}};
    static const struct test_buffer large[] = {{0, 600000, false}, {REPLY, 100, true}};
    static const struct test_buffer no_ram[] = {{TEST_MEMORY, SIZE, false}, {REPLY, 100, true}};
    static const struct test_buffer *const table[] = {small, no_room, large, no_ram};
    struct setup *s = *state;
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        test_start(&s->board, 0);
        test_add(&s->board, 0, table[i], 2);
        test_kick(&s->board, 0);
        assert_true(test_status(&s->board) & VIRTIO_NEEDS_RESET);
        assert_int_equal(s->share->waiting, 0);
    }
    test_start(&s->board, 0);
    start(s, 1);
    assert_int_equal(finish(s), SIZE);
}

/* A reset waits for the share, and the client that is gone is forgotten. */
static void reset_with_requests_in_flight(void **state)
{
    struct setup *s = *state;
    uint32_t head;
    test_start(&s->board, 0);
    unsigned before = s->share->forgotten;
    start(s, 1);
    test_common_write(&s->board, 0x14, 1, 0);
    assert_int_equal(s->share->waiting, 0);
    assert_int_equal(s->share->forgotten, before + 1);
    assert_false(test_take_used(&s->board, 0, &head, &head));
}

/* 0, or why the device cannot be saved; loads it again, into the same device. */
static int save_and_load(struct setup *s)
{
    struct device *device = &s->board.virtio->device;
    struct visitor *saver = visitor_new_write();
    device->ops->pause(device);
    device->ops->visit(device, saver);
    size_t size;
    const void *saved = visitor_buffer(saver, &size);
    int r = visitor_error(saver);
    if (!r) {
        struct visitor *loader = visitor_new_read(saved, size);
        device->ops->visit(device, loader);
        assert_true(visitor_error(loader) || visitor_at_end(loader));
        r = visitor_error(loader);
        visitor_free(loader);
    }
    device->ops->resume(device);
    visitor_free(saver);
    return r;
}

static void saved_when_unmounted_only(void **state)
{
    struct setup *s = *state;
    test_start(&s->board, 0);
    s->share->is_used = true;
    start(s, 1);
    assert_int_equal(save_and_load(s), -EBUSY);
    assert_int_equal(s->share->waiting, 0);
    assert_int_equal(finish(s), SIZE);
    s->share->is_used = false;
    assert_int_equal(save_and_load(s), 0);
    start(s, 2);
    assert_int_equal(finish(s), SIZE);
}

static void another_tag_is_refused(void **state)
{
    struct setup *s = *state;
    struct setup other;
    struct visitor *saver = visitor_new_write();
    s->board.virtio->device.ops->visit(&s->board.virtio->device, saver);
    size_t size;
    const void *saved = visitor_buffer(saver, &size);
    build(&other, "play");
    struct visitor *loader = visitor_new_read(saved, size);
    other.board.virtio->device.ops->visit(&other.board.virtio->device, loader);
    assert_int_equal(visitor_error(loader), -EINVAL);
    visitor_free(loader);
    visitor_free(saver);
    test_board_fini(&other.board);
}

static void tags_are_checked(void **state)
{
    struct virtio_device *virtio;
    struct virtio_9p_config config = {.tag = ""};
    assert_int_equal(virtio_9p_new(&config, "virtio-9p0", &virtio), -EINVAL);
    config.tag = "a-tag-of-more-than-thirty-two-bytes";
    assert_int_equal(virtio_9p_new(&config, "virtio-9p0", &virtio), -EINVAL);
}

int main(void)
{
#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(identity),
        TEST(messages_and_answers),
        TEST(broken_share),
        TEST(broken_requests_need_a_reset),
        TEST(reset_with_requests_in_flight),
        TEST(saved_when_unmounted_only),
        TEST(another_tag_is_refused),
        cmocka_unit_test(tags_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
