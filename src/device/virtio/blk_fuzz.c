/*
 * virtio-blk under a driver made of bytes, with a disk that is slow and sometimes fails.
 * Guards: src/device/virtio/blk.c src/device/virtio/blk_request.c src/device/virtio/virtio.c
 * src/device/virtio/virtio_pci.c
 */
#include <errno.h>

#include "backend/disk/memory_disk.h"
#include "device/virtio/blk.h"
#include "device/virtio/fuzz_driver.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void disk_event(void *owner, struct fuzz_input *input)
{
    struct memory_disk *disk = owner;
    uint8_t what = (uint8_t)fuzz_take(input, 1);
    if (what & 0x80) {
        disk->errors[what % (DISK_WRITE_ZEROES + 1)] = what & 0x40 ? -EIO : 0;
    } else {
        memory_disk_step(disk);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct test_board board;
    struct virtio_device *virtio;
    struct fuzz_input input = {data, size};
    test_board_init(&board);
    struct memory_disk *disk = memory_disk_new(1 << 16, size && (data[0] & 1));
    const struct virtio_blk_config config = {.memory = board.memory, .disk = &disk->disk};
    ASSERT(!virtio_blk_new(&config, "virtio-blk0", &virtio));
    test_plug(&board, virtio);
    fuzz_run(&board, &input, disk_event, disk);
    test_board_fini(&board);
    return 0;
}
