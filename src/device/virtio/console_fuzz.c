/*
 * virtio-console under a driver made of bytes, with input, resizes and a backend that fills up.
 * Guards: src/device/virtio/console.c
 */
#include "backend/console/array_console.h"
#include "device/virtio/console.h"
#include "device/virtio/fuzz_driver.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void console_event(void *owner, struct fuzz_input *input)
{
    struct array_console *array = owner;
    const struct console_receiver *receiver = &array->console.receiver;
    uint8_t what = (uint8_t)fuzz_take(input, 1);
    switch (what & 3) {
    case 0:
        ASSERT(array_console_type(array, "some text that is typed") <= 23);
        break;
    case 1:
        receiver->resized(receiver->owner, (uint16_t)fuzz_take(input, 2), what);
        break;
    case 2:
        array->room = fuzz_take(input, 1);
        break;
    case 3:
        array->room = SIZE_MAX;
        receiver->drained(receiver->owner);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct test_board board;
    struct virtio_device *virtio;
    struct fuzz_input input = {data, size};
    test_board_init(&board);
    struct array_console *array = array_console_new();
    const struct virtio_console_config config = {
        .memory = board.memory, .console = &array->console, .columns = 80, .rows = 25};
    ASSERT(!virtio_console_new(&config, "virtio-console0", &virtio));
    test_plug(&board, virtio);
    fuzz_run(&board, &input, console_event, array);
    test_board_fini(&board);
    return 0;
}
