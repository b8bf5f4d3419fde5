/*
 * virtio-rng under a driver made of bytes.
 * Guards: src/device/virtio/rng.c
 */
#include "device/virtio/fuzz_driver.h"
#include "device/virtio/rng.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void board_reset(void *owner, struct fuzz_input *input)
{
    struct test_board *board = owner;
    if (fuzz_take(input, 1) == 0) {
        test_common_write(board, 0x14, 1, 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct test_board board;
    struct virtio_device *virtio;
    struct fuzz_input input = {data, size};
    test_board_init(&board);
    ASSERT(!virtio_rng_new(board.memory, "virtio-rng0", &virtio));
    test_plug(&board, virtio);
    fuzz_run(&board, &input, board_reset, &board);
    test_board_fini(&board);
    return 0;
}
