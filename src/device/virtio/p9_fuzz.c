/*
 * virtio-9p under a driver made of bytes, with a share that is slow, gives any length and sometimes
 * fails. What the messages say is the share's business (src/backend/share/share_fuzz.c).
 * Guards: src/device/virtio/p9.c
 */
#include <errno.h>

#include "backend/share/test_share.h"
#include "device/virtio/fuzz_driver.h"
#include "device/virtio/p9.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct setting {
    struct test_board *board;
    struct test_share *share;
};

/* A chain as drivers make them, with lengths that are mostly possible. */
static void request(struct test_board *board, struct fuzz_input *input)
{
    uint8_t message[16] = {0};
    struct test_buffer buffers[3] = {
        {.gpa = TEST_BUFFERS, .length = 7 + (uint32_t)fuzz_take(input, 1)},
        {.gpa = TEST_BUFFERS + 0x1000, .length = 11, .write = true},
        {.gpa = TEST_BUFFERS + 0x2000, .length = (uint32_t)fuzz_take(input, 2), .write = true},
    };
    if (!board->rings[0].size) {
        return;
    }
    store_le64(message, fuzz_take(input, 8));
    test_write(board, buffers[0].gpa, message, sizeof message);
    test_add(board, 0, buffers, 3);
    test_kick(board, 0);
}

static void share_event(void *owner, struct fuzz_input *input)
{
    struct setting *setting = owner;
    uint8_t what = (uint8_t)fuzz_take(input, 1);
    if ((what & 3) == 3) {
        request(setting->board, input);
    } else if (what & 0x80) {
        setting->share->error = what & 0x40 ? -EPIPE : 0;
        setting->share->reply_length = (uint32_t)fuzz_take(input, 2);
    } else {
        test_share_step(setting->share);
    }
}

static void report(void *owner, const char *text)
{
    ASSERT(*text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct test_board board;
    struct virtio_device *virtio;
    struct fuzz_input input = {data, size};
    test_board_init(&board);
    struct test_share *share = test_share_new();
    const struct virtio_9p_config config = {
        .memory = board.memory, .share = &share->share, .tag = "tag", .report = report};
    ASSERT(!virtio_9p_new(&config, "virtio-9p0", &virtio));
    test_plug(&board, virtio);
    struct setting setting = {&board, share};
    fuzz_run(&board, &input, share_event, &setting);
    test_board_fini(&board);
    return 0;
}
