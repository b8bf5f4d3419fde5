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

enum { SECTOR = 512, DISK_SIZE = 1 << 16 };

struct setting {
    struct test_board *board;
    struct memory_disk *disk;
};

/* A request as drivers make them (5.2.6), with values that are mostly possible. */
static void request(struct test_board *board, struct fuzz_input *input)
{
    static const uint32_t types[] = {0, 1, 4, 8, 11, 13, 0, 1};
    uint8_t what = (uint8_t)fuzz_take(input, 1), bytes[16] = {0};
    uint32_t type = types[what & 7], length = SECTOR * (what >> 3 & 3);
    struct test_buffer buffers[3] = {
        {.gpa = TEST_BUFFERS, .length = 16},
        {.gpa = TEST_BUFFERS + SECTOR, .length = length, .write = type == 0 || type == 8},
        {.gpa = TEST_BUFFERS + 16, .length = 1, .write = true},
    };
    unsigned queue = (what >> 6) % board->virtio->queue_count;
    if (!board->rings[queue].size) {
        return;
    }
    if (type == 11 || type == 13) {
        buffers[1].length = what & 0x20 ? 17 : 16;
        store_le64(bytes, fuzz_take(input, 1));
        store_le32(bytes + 8, (uint32_t)fuzz_take(input, what & 0x40 ? 4 : 1));
        store_le32(bytes + 12, what >> 7);
    } else if (type == 8) {
        buffers[1].length = 20;
    }
    test_write(board, buffers[1].gpa, bytes, sizeof bytes);
    store_le32(bytes, type);
    store_le64(bytes + 8, fuzz_take(input, 1));
    test_write(board, buffers[0].gpa, bytes, sizeof bytes);
    if (type == 4) { /* a flush has no data */
        buffers[1] = buffers[2];
    }
    test_add(board, queue, buffers, type == 4 ? 2 : 3);
    test_kick(board, queue);
}

static void disk_event(void *owner, struct fuzz_input *input)
{
    struct setting *setting = owner;
    struct memory_disk *disk = setting->disk;
    uint8_t what = (uint8_t)fuzz_take(input, 1);
    if ((what & 3) == 3) {
        request(setting->board, input);
    } else if (what & 0x80) {
        disk->errors[what % (DISK_WRITE_ZEROES + 1)] = what & 0x40 ? -EIO : 0;
    } else {
        disk->burst = what & 0x20;
        memory_disk_step(disk);
    }
}

static void report(void *owner, int error, const char *text)
{
    ASSERT(error < 0 && *text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct test_board board;
    struct virtio_device *virtio;
    struct fuzz_input input = {data, size};
    test_board_init(&board);
    struct memory_disk *disk = memory_disk_new(DISK_SIZE, size && (data[0] & 1));
    const struct virtio_blk_config config = {.memory = board.memory,
                                             .disk = &disk->disk,
                                             .queues = size ? data[0] >> 1 & 3 : 0,
                                             .serial = "serial",
                                             .report = report};
    ASSERT(!virtio_blk_new(&config, "virtio-blk0", &virtio));
    test_plug(&board, virtio);
    struct setting setting = {&board, disk};
    fuzz_run(&board, &input, disk_event, &setting);
    test_board_fini(&board);
    return 0;
}
