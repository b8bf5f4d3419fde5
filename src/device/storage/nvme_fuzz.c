/*
 * NVMe under a driver made of bytes, with a disk that is slow and sometimes fails. Registers,
 * doorbells, queues, lists and shadow doorbells are written in any order; now and then things are
 * set up properly, so that short inputs reach deep.
 * Guards: src/device/storage/nvme.c src/device/storage/nvme_registers.c
 * src/device/storage/nvme_queue.c src/device/storage/nvme_map.c src/device/storage/nvme_admin.c
 * src/device/storage/nvme_identify.c src/device/storage/nvme_feature.c
 * src/device/storage/nvme_log.c src/device/storage/nvme_io.c
 */
#include <errno.h>

#include "device/fuzz_board.h"
#include "device/storage/nvme_driver.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { DISK_SIZE = 1 << 18, QUEUES = 3 };

/* Mostly where queues, lists and data are, sometimes anywhere. */
static uint64_t address(struct fuzz_input *input)
{
    uint8_t kind = (uint8_t)fuzz_take(input, 1);
    if (kind == 0xff) {
        return fuzz_take(input, 8);
    }
    static const uint64_t bases[4] = {DRIVER_DATA, DRIVER_SQS, DRIVER_SHADOW, DRIVER_CQS};
    uint64_t at = bases[kind & 3] + fuzz_take(input, 2);
    return kind & 4 ? at : align_down(at, kind & 8 ? 8 : NVME_PAGE);
}

static void touch_registers(struct driver *d, struct fuzz_input *input)
{
    uint16_t where = (uint16_t)fuzz_take(input, 2);
    unsigned size = where & 0x8000 ? 8 : 4;
    /* Half of the accesses to the doorbells of the queues that can be there. */
    unsigned offset = where & 0x4000 ? 0x1000 + (where & 0x3c) : where & 0x103f;
    if (where & 0x2000) {
        driver_read(d, offset, size);
    } else {
        driver_write(d, offset, size, fuzz_take(input, where & 0x400 ? 1 : size));
    }
}

static void write_memory(struct driver *d, struct fuzz_input *input)
{
    uint8_t bytes[64];
    uint64_t at = address(input);
    size_t count = fuzz_take(input, 1) % sizeof bytes;
    for (size_t i = 0; i < count; i++) {
        bytes[i] = (uint8_t)fuzz_take(input, 1);
    }
    if (memory_write(d->memory, at, bytes, count)) {
        return; /* it was no RAM */
    }
}

/* A list of addresses, as PRPs and as SGL descriptors are made of. */
static void write_list(struct driver *d, struct fuzz_input *input)
{
    uint64_t at = address(input);
    unsigned count = (unsigned)fuzz_take(input, 1) % 8;
    for (unsigned i = 0; i < count; i++) {
        static const uint8_t types[4] = {0x00, 0x20, 0x30, 0x10};
        uint8_t kind = (uint8_t)fuzz_take(input, 1);
        uint64_t entry = address(input);
        if (kind & 0x80) { /* the second half of a descriptor */
            entry = fuzz_take(input, 2) | (uint64_t)types[kind & 3] << 56;
        }
        if (memory_write(d->memory, at + 8 * i, &entry, sizeof entry)) {
            return;
        }
    }
}

static void admin_command(struct driver *d, struct fuzz_input *input)
{
    static const uint8_t opcodes[] = {0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x08, 0x09,
                                      0x0a, 0x0c, 0x7c, 0x09, 0x0a, 0x02, 0x06, 0xff};
    uint8_t what = (uint8_t)fuzz_take(input, 1);
    struct nvme_command command = {
        .opcode = opcodes[what & 15],
        .flags = what & 0x80 ? (uint8_t)fuzz_take(input, 1) : 0,
        .namespace_id = what & 0x40 ? (uint32_t)fuzz_take(input, 4) : what >> 4 & 1,
        .prp1 = address(input),
        .prp2 = address(input),
        .dw10 = (uint32_t)fuzz_take(input, what & 0x20 ? 4 : 1),
        .dw11 = (uint32_t)fuzz_take(input, what & 0x20 ? 4 : 1),
    };
    if (what & 0x40) {
        command.dw10 |= (uint32_t)fuzz_take(input, 1) << 16;
        command.dw12 = (uint32_t)fuzz_take(input, 2);
    }
    driver_submit(d, 0, command);
}

static void io_command(struct driver *d, struct fuzz_input *input)
{
    static const uint8_t opcodes[] = {0, 1, 2, 5, 8, 9, 1, 2};
    uint8_t what = (uint8_t)fuzz_take(input, 1), how = (uint8_t)fuzz_take(input, 1);
    unsigned queue = 1 + (what >> 3 & 3) % QUEUES;
    struct nvme_command command = driver_io(opcodes[what & 7], fuzz_take(input, 1), 1);
    command.dw12 = (uint32_t)fuzz_take(input, how & 1 ? 2 : 1);
    command.dw12 |= how & 2 ? 1u << 30 : 0;
    if (command.opcode == 9) {
        command.dw10 &= 3;
        command.dw11 = how & 8 ? 0 : 4;
    } else if (how & 0x80) {
        command.dw11 = (uint32_t)fuzz_take(input, 4);
    }
    if (how & 4) {
        command.prp1 = address(input);
        command.prp2 = address(input);
    }
    if (how & 0x10) {
        command.flags = (uint8_t)(how & 0x20 ? 1 << 6 : fuzz_take(input, 1));
        static const uint8_t types[4] = {0x00, 0x20, 0x30, 0x40};
        command.prp2 = fuzz_take(input, 2) | (uint64_t)types[how >> 6] << 56;
    }
    if (how & 0x40) {
        driver_put(d, queue, command); /* without a ring */
    } else {
        driver_submit(d, queue, command);
    }
}

/* Answers are taken, or the driver forgets to tell so. */
static void take_answers(struct driver *d, struct fuzz_input *input)
{
    uint8_t what = (uint8_t)fuzz_take(input, 1);
    unsigned queue = what & 3;
    struct completion entry;
    for (unsigned i = 0; i < DRIVER_ENTRIES && driver_take(d, queue, &entry); i++) {
    }
    if (!(what & 0x80)) {
        driver_ring(d, 2 * queue + 1, d->queues[queue].head);
    }
}

static void disk_event(struct driver *d, struct fuzz_input *input)
{
    uint8_t what = (uint8_t)fuzz_take(input, 1);
    if (what & 0x80) {
        d->disk->errors[what % (DISK_WRITE_ZEROES + 1)] = what & 0x40 ? -EIO : 0;
        return;
    }
    d->disk->burst = what & 0x20;
    for (unsigned i = 0; i <= (what & 3u); i++) {
        memory_disk_step(d->disk);
    }
}

/* The pair may be there already, or the controller may be broken: commands that get no answer. */
static void set_up(struct driver *d, struct fuzz_input *input)
{
    uint8_t what = (uint8_t)fuzz_take(input, 1);
    if (!driver_enable(d)) {
        return;
    }
    if (what & 0x80) {
        driver_enable_msix(d);
    }
    if (what & 1) {
        ASSERT(driver_use_shadow(d) == 0);
    }
    for (unsigned i = 1; i <= QUEUES; i++) {
        if (what >> i & 1) {
            ASSERT(driver_create_pair(d, i) == 0);
        }
    }
}

static void life_event(struct driver *d, struct fuzz_input *input)
{
    uint8_t what = (uint8_t)fuzz_take(input, 1);
    if (what & 1) {
        d->device->ops->reset(d->device);
        driver_assign(d);
    } else if (what & 2) {
        driver_write(d, 0x14, 4, DRIVER_CC | (what >> 2 & 3u) << 14);
    } else {
        d->device->ops->pause(d->device);
        ASSERT(d->disk->waiting == 0);
        if (what & 4) {
            fuzz_visit(fuzz_visit_device, d->device);
        }
        d->device->ops->resume(d->device);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const events[8])(struct driver *, struct fuzz_input *) = {
        touch_registers, write_memory, write_list, admin_command,
        io_command,      take_answers, disk_event, set_up,
    };
    struct driver driver;
    struct fuzz_input input = {data, size};
    driver_init(&driver, DISK_SIZE, size && (data[0] & 0x40), QUEUES);
    unsigned lives = 3; /* saves take most of the time, and more of them find no more */
    while (input.left) {
        uint8_t what = (uint8_t)fuzz_take(&input, 1);
        if (what == 0xff && lives > 0) {
            lives--;
            life_event(&driver, &input);
        } else {
            events[what & 7](&driver, &input);
        }
        ASSERT(driver.disk->holders == 0 && driver.nvme->in_flight <= NVME_REQUESTS_MAX);
    }
    driver_fini(&driver);
    return 0;
}
