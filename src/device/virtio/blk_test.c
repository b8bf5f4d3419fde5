/* virtio-blk, driven through its PCI function as an operating system does. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/disk/memory_disk.h"
#include "backend/disk/stop_disk.h"
#include "device/virtio/blk.h"
#include "device/virtio/test_driver.h"
#include "persist/visitor.h"

enum {
    DISK_SIZE = 1 << 16,
    HEADER = TEST_BUFFERS,
    STATUS = TEST_BUFFERS + 0x100,
    DATA = TEST_BUFFERS + 0x1000,
    IN = 0,
    OUT = 1,
    FLUSH = 4,
    GET_ID = 8,
    DISCARD = 11,
    WRITE_ZEROES = 13,
    OK = 0,
    IOERR = 1,
    UNSUPPORTED = 2,
    FEATURE_FLUSH = 1 << 9,
};

struct setup {
    struct test_board board;
    struct memory_disk *disk;
    unsigned reports;
    int reported_error;
    char reported_text[256];
};

static void note_report(void *owner, int error, const char *text)
{
    struct setup *s = owner;
    s->reports++;
    s->reported_error = error;
    snprintf(s->reported_text, sizeof s->reported_text, "%s", text);
}

static void build_queues(struct setup *s, bool readonly, unsigned queues)
{
    *s = (struct setup){0};
    test_board_init(&s->board);
    s->disk = memory_disk_new(DISK_SIZE, readonly);
    const struct virtio_blk_config config = {
        .memory = s->board.memory,
        .disk = &s->disk->disk,
        .queues = queues,
        .serial = "disk-0",
        .report = note_report,
        .owner = s,
    };
    struct virtio_device *virtio;
    assert_int_equal(virtio_blk_new(&config, "virtio-blk0", &virtio), 0);
    test_plug(&s->board, virtio);
}

static void build(struct setup *s, bool readonly)
{
    build_queues(s, readonly, 0);
}

static int set_up_queues(void **state)
{
    static struct setup setup;
    build_queues(&setup, false, 3);
    *state = &setup;
    return 0;
}

static int set_up(void **state)
{
    static struct setup setup;
    build(&setup, false);
    *state = &setup;
    return 0;
}

static int set_up_readonly(void **state)
{
    static struct setup setup;
    build(&setup, true);
    *state = &setup;
    return 0;
}

static int tear_down(void **state)
{
    struct setup *s = *state;
    test_board_fini(&s->board);
    return 0;
}

static void put_header(struct setup *s, uint32_t type, uint64_t sector)
{
    uint8_t header[16] = {0};
    const uint8_t pending = 0xff;
    store_le32(header, type);
    store_le64(header + 8, sector);
    test_write(&s->board, HEADER, header, sizeof header);
    test_write(&s->board, STATUS, &pending, 1);
}

static uint8_t get_status(struct setup *s)
{
    uint8_t status;
    test_read(&s->board, STATUS, &status, 1);
    return status;
}

/* Offer a request with one data buffer (none if 0 long) and notify. */
static void start(struct setup *s, uint32_t type, uint64_t sector, uint32_t length, bool into_guest)
{
    put_header(s, type, sector);
    struct test_buffer buffers[3] = {{HEADER, 16, false}, {DATA, length, into_guest}};
    unsigned count = length ? 2 : 1;
    buffers[count++] = (struct test_buffer){STATUS, 1, true};
    test_add(&s->board, 0, buffers, count);
    test_kick(&s->board, 0);
}

/* Let the disk work until it has nothing to do; the answer must be there. */
static uint8_t finish(struct setup *s, uint32_t *ret_written)
{
    uint32_t head;
    while (memory_disk_step(s->disk)) {
    }
    assert_true(test_take_used(&s->board, 0, &head, ret_written));
    assert_false(test_take_used(&s->board, 0, &head, &head));
    return get_status(s);
}

static uint8_t request(struct setup *s, uint32_t type, uint64_t sector, uint32_t length,
                       bool into_guest)
{
    uint32_t written;
    start(s, type, sector, length, into_guest);
    return finish(s, &written);
}

static void identity(void **state)
{
    struct setup *s = *state;
    assert_int_equal(test_config(&s->board, PCI_VENDOR, 2), 0x1af4);
    assert_int_equal(test_config(&s->board, PCI_DEVICE, 2), 0x1042);
    assert_int_equal(test_config(&s->board, PCI_REVISION, 1), 1);
    assert_int_equal(test_common_read(&s->board, 0x12, 2), 1);
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config, 4), DISK_SIZE / 512);
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config + 4, 4), 0);
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config + 20, 4), 512);
    assert_true(test_features(&s->board) & 1 << 10); /* topology */
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config + 24, 1), 3);
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config + 26, 2), 8);
    assert_false(test_features(&s->board) & 1 << 12); /* several queues */
}

static void read_and_write(void **state)
{
    struct setup *s = *state;
    uint8_t bytes[1024], back[1024];
    uint32_t written;
    test_start(&s->board, 0);
    memset(bytes, 0xa5, sizeof bytes);
    test_write(&s->board, DATA, bytes, sizeof bytes);
    assert_int_equal(request(s, OUT, 3, sizeof bytes, false), OK);
    assert_memory_equal(s->disk->bytes + 3 * 512, bytes, sizeof bytes);
    memset(s->disk->bytes + 5 * 512, 0x77, 512);
    start(s, IN, 4, sizeof bytes, true);
    assert_int_equal(finish(s, &written), OK);
    assert_int_equal(written, sizeof bytes + 1);
    test_read(&s->board, DATA, back, sizeof back);
    assert_memory_equal(back, bytes, 512);
    assert_int_equal(back[512], 0x77);
    assert_int_equal(s->disk->completed[DISK_FLUSH], 0);
}

/* Header, data and status may be cut anywhere (2.7.4). */
static void odd_framing(void **state)
{
    struct setup *s = *state;
    uint8_t bytes[512];
    uint32_t written;
    test_start(&s->board, 0);
    put_header(s, OUT, 1);
    memset(bytes, 0x31, sizeof bytes);
    /* The data follows the header in memory, and is cut at odd places. */
    test_write(&s->board, HEADER + 16, bytes, 200);
    test_write(&s->board, DATA + 7, bytes, 312);
    const struct test_buffer buffers[] = {
        {HEADER, 5, false},     {HEADER + 5, 100, false}, {HEADER + 105, 111, false},
        {DATA + 7, 312, false}, {STATUS, 1, true},
    };
    test_add(&s->board, 0, buffers, ARRAY_SIZE(buffers));
    test_kick(&s->board, 0);
    while (memory_disk_step(s->disk)) {
    }
    uint32_t head;
    assert_true(test_take_used(&s->board, 0, &head, &written));
    assert_int_equal(s->disk->bytes[512], 0x31);
    assert_int_equal(s->disk->bytes[1023], 0x31);
    assert_int_equal(s->disk->bytes[1024], 0);
}

static void identify_and_flush(void **state)
{
    struct setup *s = *state;
    char serial[20];
    uint32_t written;
    test_start(&s->board, 0);
    start(s, GET_ID, 0, sizeof serial, true);
    assert_int_equal(finish(s, &written), OK);
    assert_int_equal(written, 21);
    test_read(&s->board, DATA, serial, sizeof serial);
    assert_memory_equal(serial, "disk-0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20);
    assert_int_equal(request(s, FLUSH, 0, 0, false), OK);
    assert_int_equal(s->disk->completed[DISK_FLUSH], 1);
}

/* A driver that did not take the flush feature gets durable writes. */
static void write_through_without_flush(void **state)
{
    struct setup *s = *state;
    test_start(&s->board, FEATURE_FLUSH);
    assert_int_equal(request(s, OUT, 0, 512, false), OK);
    assert_int_equal(s->disk->completed[DISK_FLUSH], 1);
    assert_int_equal(request(s, IN, 0, 512, true), OK);
    assert_int_equal(s->disk->completed[DISK_FLUSH], 1);
}

static void put_range(struct setup *s, uint64_t sector, uint32_t count, uint32_t flags)
{
    uint8_t range[16];
    store_le64(range, sector);
    store_le32(range + 8, count);
    store_le32(range + 12, flags);
    test_write(&s->board, DATA, range, sizeof range);
}

static void discard_and_zeroes(void **state)
{
    static const struct {
        uint32_t type;
        uint64_t sector;
        uint32_t count, flags, length;
        uint8_t status;
        uint8_t byte; /* first of the range afterwards */
    } table[] = {
        {DISCARD, 8, 8, 0, 16, OK, 0xdd},
        {WRITE_ZEROES, 8, 8, 0, 16, OK, 0},
        {WRITE_ZEROES, 8, 8, 1, 16, OK, 0},
        {DISCARD, 8, 8, 1, 16, UNSUPPORTED, 0x11},
        {WRITE_ZEROES, 8, 8, 2, 16, UNSUPPORTED, 0x11},
        {DISCARD, DISK_SIZE / 512 - 1, 2, 0, 16, IOERR, 0},
        {DISCARD, UINT64_MAX, 8, 0, 16, IOERR, 0},
        {WRITE_ZEROES, 8, UINT32_MAX, 0, 16, IOERR, 0x11},
        {WRITE_ZEROES, 8, 0, 0, 16, OK, 0x11},
        {WRITE_ZEROES, 8, 8, 0, 8, IOERR, 0x11},
        {WRITE_ZEROES, 8, 8, 0, 32, IOERR, 0x11},
    };
    struct setup *s = *state;
    test_start(&s->board, 0);
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        memset(s->disk->bytes, 0x11, DISK_SIZE);
        put_range(s, table[i].sector, table[i].count, table[i].flags);
        assert_int_equal(request(s, table[i].type, 0, table[i].length, false), table[i].status);
        if (table[i].sector == 8) {
            assert_int_equal(s->disk->bytes[8 * 512], table[i].byte);
            assert_int_equal(s->disk->bytes[16 * 512], 0x11);
            if (table[i].type == WRITE_ZEROES && table[i].byte == 0) {
                assert_int_equal(s->disk->unmapped, table[i].flags);
            }
        }
    }
}

static void refusals(void **state)
{
    static const struct {
        uint32_t type;
        uint64_t sector;
        uint32_t length;
        bool into_guest;
        uint8_t status;
    } table[] = {
        {IN, DISK_SIZE / 512, 512, true, IOERR},
        {IN, DISK_SIZE / 512 - 1, 1024, true, IOERR},
        {IN, UINT64_MAX / 512, 512, true, IOERR},
        {IN, UINT64_MAX, 512, true, IOERR},
        {OUT, DISK_SIZE / 512, 512, false, IOERR},
        {IN, 0, 511, true, IOERR},
        {OUT, 0, 513, false, IOERR},
        {IN, 0, 0, true, OK},
        {OUT, 0, 0, false, OK},
        {2, 0, 0, false, UNSUPPORTED},
        {14, 0, 0, false, UNSUPPORTED},
        {UINT32_MAX, 0, 512, true, UNSUPPORTED},
    };
    struct setup *s = *state;
    test_start(&s->board, 0);
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        assert_int_equal(
            request(s, table[i].type, table[i].sector, table[i].length, table[i].into_guest),
            table[i].status);
    }
    assert_int_equal(s->reports, 0); /* the guest's mistakes are not the host's */
}

static void readonly_disk(void **state)
{
    struct setup *s = *state;
    assert_true(test_features(&s->board) & (1 << 5));
    assert_false(test_features(&s->board) & (1 << 13));
    test_start(&s->board, 0);
    assert_int_equal(request(s, OUT, 0, 512, false), IOERR);
    put_range(s, 0, 1, 0);
    assert_int_equal(request(s, WRITE_ZEROES, 0, 16, false), IOERR);
    assert_int_equal(request(s, IN, 0, 512, true), OK);
    assert_int_equal(request(s, FLUSH, 0, 0, false), OK);
}

static void host_errors_reach_guest_and_user(void **state)
{
    struct setup *s = *state;
    test_start(&s->board, 0);
    s->disk->errors[DISK_WRITE] = -ENOSPC;
    assert_int_equal(request(s, OUT, 8, 512, false), IOERR);
    assert_int_equal(s->reports, 1);
    assert_int_equal(s->reported_error, -ENOSPC);
    assert_non_null(strstr(s->reported_text, "virtio-blk0"));
    assert_non_null(strstr(s->reported_text, "No space left"));
    s->disk->errors[DISK_WRITE] = 0;
    assert_int_equal(request(s, OUT, 8, 512, false), OK); /* life goes on */
    s->disk->errors[DISK_FLUSH] = -EIO;
    assert_int_equal(request(s, FLUSH, 0, 0, false), IOERR);
    assert_int_equal(s->reports, 2);
}

/* A request larger than one disk request: the memory's pieces are done one after the other. */
static void large_request(void **state)
{
    enum { SEGMENTS = 200, TABLE = TEST_BUFFERS + 0x20000 };
    struct setup *s = *state;
    uint8_t byte;
    test_start(&s->board, 0);
    for (unsigned i = 0; i < DISK_SIZE; i++) {
        s->disk->bytes[i] = (uint8_t)(i / 256);
    }
    put_header(s, IN, 0);
    /* 200 segments of 256 bytes, each in a page of its own order: 51,200 bytes in all. */
    test_put_descriptor(&s->board, TABLE, HEADER, 16, 1, 1);
    for (unsigned i = 0; i < SEGMENTS; i++) {
        test_put_descriptor(&s->board, TABLE + 16 * (i + 1), DATA + 512 * (SEGMENTS - i), 256, 3,
                            (uint16_t)(i + 2));
    }
    test_put_descriptor(&s->board, TABLE + 16 * (SEGMENTS + 1), STATUS, 1, 2, 0);
    test_put_descriptor(&s->board, s->board.rings[0].descriptors, TABLE, 16 * (SEGMENTS + 2), 4, 0);
    test_offer(&s->board, 0, 0);
    test_kick(&s->board, 0);
    uint32_t written;
    assert_int_equal(finish(s, &written), OK);
    assert_int_equal(written, SEGMENTS * 256 + 1);
    assert_true(s->disk->completed[DISK_READ] > 1);
    for (unsigned i = 0; i < SEGMENTS; i++) {
        test_read(&s->board, DATA + 512 * (SEGMENTS - i) + 255, &byte, 1);
        assert_int_equal(byte, (uint8_t)i);
    }
}

/* More requests than are taken at once: the rest waits in the ring, and none is lost. */
static void more_than_in_flight(void **state)
{
    enum { COUNT = 100 };
    struct setup *s = *state;
    assert_true(test_negotiate(&s->board, test_features(&s->board)));
    test_setup_queue(&s->board, 0, 256);
    test_common_write(&s->board, 0x14, 1, 15);
    put_header(s, FLUSH, 0);
    const struct test_buffer buffers[] = {{HEADER, 16, false}, {STATUS, 1, true}};
    for (unsigned i = 0; i < COUNT; i++) {
        test_add(&s->board, 0, buffers, 2);
    }
    test_kick(&s->board, 0);
    assert_true(s->disk->waiting < COUNT);
    while (memory_disk_step(s->disk)) {
    }
    uint32_t head, written;
    for (unsigned i = 0; i < COUNT; i++) {
        assert_true(test_take_used(&s->board, 0, &head, &written));
    }
    assert_int_equal(s->disk->completed[DISK_FLUSH], COUNT);
}

static void interrupts(void **state)
{
    struct setup *s = *state;
    test_start(&s->board, 1u << 29); /* without event indexes: one for each request */
    assert_int_equal(request(s, FLUSH, 0, 0, false), OK);
    /* INTx: level, with a status that takes it back. */
    unsigned line = TEST_SLOT % 4;
    assert_true(s->board.line[line]);
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.isr, 1), 1);
    assert_false(s->board.line[line]);
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.isr, 1), 0);
    test_enable_msix(&s->board);
    assert_int_equal(request(s, FLUSH, 0, 0, false), OK);
    assert_int_equal(s->board.messages[1], 1);
    assert_false(s->board.line[line]);
    test_common_write(&s->board, 0x1a, 2, 9); /* a vector that is not there */
    assert_int_equal(test_common_read(&s->board, 0x1a, 2), 0xffff);
    assert_int_equal(request(s, FLUSH, 0, 0, false), OK);
    assert_int_equal(s->board.messages[1], 1);
}

/* Offer `count` flushes to a queue, then notify. */
static void offer_flushes(struct setup *s, unsigned queue, unsigned count)
{
    put_header(s, FLUSH, 0);
    const struct test_buffer buffers[] = {{HEADER, 16, false}, {STATUS, 1, true}};
    for (unsigned i = 0; i < count; i++) {
        test_add(&s->board, queue, buffers, 2);
    }
    test_kick(&s->board, queue);
}

static unsigned take_all(struct setup *s, unsigned queue)
{
    uint32_t head, written;
    unsigned count = 0;
    while (test_take_used(&s->board, queue, &head, &written)) {
        count++;
    }
    return count;
}

/* Requests are answered in the queue that they came by, with its vector. */
static void several_queues(void **state)
{
    struct setup *s = *state;
    assert_true(test_features(&s->board) & 1 << 12);
    assert_int_equal(test_common_read(&s->board, 0x12, 2), 3);
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config + 34, 2), 3);
    test_enable_msix(&s->board);
    test_start(&s->board, 1u << 29);
    for (unsigned queue = 0; queue < 3; queue++) {
        offer_flushes(s, queue, queue + 1);
    }
    assert_int_equal(s->disk->waiting, 6);
    assert_int_equal(s->disk->holders, 0);
    while (memory_disk_step(s->disk)) {
    }
    for (unsigned queue = 0; queue < 3; queue++) {
        assert_int_equal(take_all(s, queue), queue + 1);
        assert_int_equal(s->board.messages[queue + 1], queue + 1);
    }
}

/* What the disk ends in one go is told with one interrupt, whatever queues it came by. */
static void one_interrupt_for_a_burst(void **state)
{
    struct setup *s = *state;
    test_enable_msix(&s->board);
    test_start(&s->board, 1u << 29);
    s->disk->burst = true;
    offer_flushes(s, 0, 5);
    offer_flushes(s, 2, 3);
    while (memory_disk_step(s->disk)) {
    }
    assert_int_equal(take_all(s, 0), 5);
    assert_int_equal(take_all(s, 2), 3);
    assert_int_equal(s->board.messages[1], 1);
    assert_int_equal(s->board.messages[2], 0);
    assert_int_equal(s->board.messages[3], 1);
}

/* One queue fills the device; the others' requests get their turn all the same. */
static void full_queue_does_not_starve_others(void **state)
{
    enum { COUNT = 100 };
    struct setup *s = *state;
    assert_true(test_negotiate(&s->board, test_features(&s->board)));
    for (unsigned queue = 0; queue < 3; queue++) {
        test_setup_queue(&s->board, queue, 256);
    }
    test_common_write(&s->board, 0x14, 1, 15);
    offer_flushes(s, 1, COUNT);
    offer_flushes(s, 0, 1);
    assert_true(s->disk->waiting < COUNT);
    assert_true(memory_disk_step(s->disk));
    while (take_all(s, 0) == 0) {
        assert_true(s->disk->completed[DISK_FLUSH] < COUNT);
        assert_true(memory_disk_step(s->disk));
    }
    while (memory_disk_step(s->disk)) {
    }
    assert_int_equal(take_all(s, 1), COUNT);
}

/* A saved device fits one with as many queues only. */
static void other_queues_are_refused(void **state)
{
    struct setup *s = *state;
    struct setup other;
    struct device *device = &s->board.virtio->device;
    struct visitor *saver = visitor_new_write();
    device->ops->visit(device, saver);
    size_t size;
    const void *saved = visitor_buffer(saver, &size);
    build_queues(&other, false, 2);
    struct visitor *loader = visitor_new_read(saved, size);
    other.board.virtio->device.ops->visit(&other.board.virtio->device, loader);
    assert_int_equal(visitor_error(loader), -EINVAL);
    visitor_free(loader);
    visitor_free(saver);
    test_board_fini(&other.board);
}

static void broken_requests_need_a_reset(void **state)
{
    static const struct test_buffer no_status[] = {{HEADER, 16, false}};
    static const struct test_buffer short_header[] = {{HEADER, 15, false}, {STATUS, 1, true}};
    static const struct test_buffer no_ram[] = {{TEST_MEMORY, 16, false}, {STATUS, 1, true}};
    static const struct {
        const struct test_buffer *buffers;
        unsigned count;
    } table[] = {{no_status, 1}, {short_header, 2}, {no_ram, 2}};
    struct setup *s = *state;
    test_enable_msix(&s->board);
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        test_start(&s->board, 0);
        unsigned before = s->board.messages[0];
        put_header(s, FLUSH, 0);
        test_add(&s->board, 0, table[i].buffers, table[i].count);
        test_kick(&s->board, 0);
        assert_true(test_status(&s->board) & VIRTIO_NEEDS_RESET);
        assert_int_equal(s->board.messages[0], before + 1);
        assert_int_equal(s->disk->waiting, 0);
    }
    test_start(&s->board, 0);
    assert_int_equal(request(s, FLUSH, 0, 0, false), OK);
}

/* A reset waits for the disk, and what comes back then touches neither ring nor memory. */
static void reset_with_requests_in_flight(void **state)
{
    struct setup *s = *state;
    test_start(&s->board, 0);
    start(s, IN, 0, 512, true);
    assert_int_equal(s->disk->waiting, 1);
    test_common_write(&s->board, 0x14, 1, 0);
    assert_int_equal(test_status(&s->board), 0);
    assert_int_equal(s->disk->waiting, 0);
    uint32_t head;
    assert_false(test_take_used(&s->board, 0, &head, &head));
    assert_int_equal(test_common_read(&s->board, 0x1c, 2), 0);
    test_start(&s->board, 0);
    assert_int_equal(request(s, IN, 0, 512, true), OK);
}

static void negotiation(void **state)
{
    struct setup *s = *state;
    uint64_t all = test_features(&s->board);
    assert_false(test_negotiate(&s->board, all & ~VIRTIO_F_VERSION_1));
    assert_false(test_negotiate(&s->board, all | UINT64_C(1) << 63));
    assert_true(test_negotiate(&s->board, VIRTIO_F_VERSION_1));
    /* Too late for more, and no work before DRIVER_OK. */
    test_common_write(&s->board, 0x08, 4, 0);
    test_common_write(&s->board, 0x0c, 4, 0xffffffff);
    assert_int_equal(test_common_read(&s->board, 0x0c, 4), 0);
    test_setup_queue(&s->board, 0, TEST_QUEUE);
    start(s, FLUSH, 0, 0, false);
    assert_int_equal(s->disk->waiting, 0);
    test_common_write(&s->board, 0x14, 1, 15);
    assert_int_equal(s->disk->waiting, 1);
    uint32_t written;
    assert_int_equal(finish(s, &written), OK);
}

/* All registers through the window in configuration space (4.1.4.9). */
static void access_through_configuration_space(void **state)
{
    struct setup *s = *state;
    struct pci_bus *pci = s->board.pci;
    unsigned at = test_config(&s->board, PCI_CAPABILITIES, 1);
    while (test_config(&s->board, at, 1) != 9 || test_config(&s->board, at + 3, 1) != 5) {
        at = test_config(&s->board, at + 1, 1);
        assert_int_not_equal(at, 0);
    }
    pci_config_write(pci, 0, TEST_DEVFN, at + 4, 1, 0);
    pci_config_write(pci, 0, TEST_DEVFN, at + 8, 4, 0x14);
    pci_config_write(pci, 0, TEST_DEVFN, at + 12, 4, 1);
    pci_config_write(pci, 0, TEST_DEVFN, at + 16, 1, 3);
    assert_int_equal(test_status(&s->board), 3);
    assert_int_equal(test_config(&s->board, at + 16, 1), 3);
    /* Nonsense is harmless. */
    pci_config_write(pci, 0, TEST_DEVFN, at + 12, 4, 3);
    pci_config_write(pci, 0, TEST_DEVFN, at + 16, 4, 0);
    pci_config_write(pci, 0, TEST_DEVFN, at + 12, 4, 4);
    pci_config_write(pci, 0, TEST_DEVFN, at + 8, 4, 0xfffffffc);
    pci_config_write(pci, 0, TEST_DEVFN, at + 16, 4, 0);
    pci_config_write(pci, 0, TEST_DEVFN, at + 4, 1, 5);
    pci_config_write(pci, 0, TEST_DEVFN, at + 16, 4, 0);
    assert_int_equal(test_status(&s->board), 3);
}

/* A paused device finishes what it began, starts nothing, and a restored one goes on. */
static void pause_save_restore(void **state)
{
    struct setup *s = *state;
    struct setup other;
    struct device *device = &s->board.virtio->device;
    test_start(&s->board, 0);
    start(s, IN, 0, 512, true);
    device->ops->pause(device);
    assert_int_equal(s->disk->waiting, 0);
    assert_int_equal(get_status(s), OK);
    start(s, IN, 1, 512, true);
    assert_int_equal(s->disk->waiting, 0);
    struct visitor *saver = visitor_new_write();
    device->ops->visit(device, saver);
    size_t size;
    const void *saved = visitor_buffer(saver, &size);
    assert_int_equal(visitor_error(saver), 0);

    build(&other, false);
    struct device *copy = &other.board.virtio->device;
    copy->ops->pause(copy);
    uint8_t page[4096];
    for (gpa_t gpa = 0; gpa < TEST_MEMORY; gpa += sizeof page) {
        test_read(&s->board, gpa, page, sizeof page);
        test_write(&other.board, gpa, page, sizeof page);
    }
    struct visitor *loader = visitor_new_read(saved, size);
    copy->ops->visit(copy, loader);
    assert_int_equal(visitor_error(loader), 0);
    assert_true(visitor_at_end(loader));
    visitor_free(loader);
    struct visitor *comparer = visitor_new_compare(saved, size, NULL, NULL);
    copy->ops->visit(copy, comparer);
    assert_int_equal(visitor_error(comparer), 0);
    assert_int_equal(visitor_differences(comparer), 0);
    visitor_free(comparer);
    copy->ops->resume(copy);
    assert_int_equal(other.disk->waiting, 1);
    memory_disk_step(other.disk);
    assert_int_equal(get_status(&other), OK);
    visitor_free(saver);
    test_board_fini(&other.board);
}

static void note_stopped(void *owner, const char *text)
{
    struct setup *s = owner;
    s->reports++;
    snprintf(s->reported_text, sizeof s->reported_text, "%s", text);
}

/* The visit's error when the device is saved now. */
static int save_error(struct setup *s)
{
    struct visitor *saver = visitor_new_write();
    s->board.virtio->device.ops->visit(&s->board.virtio->device, saver);
    int error = visitor_error(saver);
    visitor_free(saver);
    return error;
}

/* With a disk that keeps what fails, the guest waits: a resume tries again, a reset gives up. */
static void kept_requests(void **state)
{
    struct setup s = {0};
    test_board_init(&s.board);
    s.disk = memory_disk_new(DISK_SIZE, false);
    const struct stop_disk_config stop = {
        .lower = &s.disk->disk, .stopped = note_stopped, .owner = &s, .name = "d.img"};
    const struct virtio_blk_config config = {
        .memory = s.board.memory, .disk = stop_disk_new(&stop), .report = note_report, .owner = &s};
    assert_int_equal(virtio_blk_new(&config, "virtio-blk0", &s.board.virtio), 0);
    test_plug(&s.board, s.board.virtio);
    struct device *device = &s.board.virtio->device;
    test_start(&s.board, 0);
    uint32_t head, written;
    s.disk->errors[DISK_WRITE] = -ENOSPC;
    start(&s, OUT, 8, 512, false);
    assert_true(memory_disk_step(s.disk));
    assert_int_equal(s.reports, 1);
    assert_non_null(strstr(s.reported_text, "d.img"));
    assert_false(test_take_used(&s.board, 0, &head, &written));
    device->ops->pause(device);
    assert_int_equal(save_error(&s), -EBUSY);
    device->ops->resume(device);
    assert_true(memory_disk_step(s.disk)); /* in vain */
    assert_int_equal(s.reports, 2);
    device->ops->pause(device);
    s.disk->errors[DISK_WRITE] = 0;
    device->ops->resume(device);
    assert_int_equal(finish(&s, &written), OK);
    device->ops->pause(device);
    assert_int_equal(save_error(&s), 0);
    device->ops->resume(device);
    s.disk->errors[DISK_WRITE] = -EIO;
    start(&s, OUT, 8, 512, false);
    assert_true(memory_disk_step(s.disk));
    test_common_write(&s.board, 0x14, 1, 0);
    assert_int_equal(test_status(&s.board), 0);
    test_start(&s.board, 0);
    assert_int_equal(request(&s, IN, 8, 512, true), OK);
    start(&s, OUT, 8, 512, false); /* given up when all ends */
    assert_true(memory_disk_step(s.disk));
    test_board_fini(&s.board);
}

static void another_disk_is_refused(void **state)
{
    struct setup *s = *state;
    struct device *device = &s->board.virtio->device;
    struct visitor *saver = visitor_new_write();
    device->ops->visit(device, saver);
    size_t size;
    const void *saved = visitor_buffer(saver, &size);
    s->disk->disk.size -= 512;
    struct visitor *loader = visitor_new_read(saved, size);
    device->ops->visit(device, loader);
    assert_int_equal(visitor_error(loader), -EINVAL);
    visitor_free(loader);
    visitor_free(saver);
}

static void board_reset(void **state)
{
    struct setup *s = *state;
    struct device *device = &s->board.virtio->device;
    test_start(&s->board, 0);
    start(s, FLUSH, 0, 0, false);
    device->ops->reset(device);
    assert_int_equal(s->disk->waiting, 0);
    assert_int_equal(s->board.virtio->status, 0);
    assert_int_equal(test_config(&s->board, PCI_COMMAND, 2) & PCI_COMMAND_MEMORY, 0);
}

static bool wait_for_used(struct setup *s)
{
    uint32_t head, written;
    for (unsigned i = 0; i < 5000; i++) {
        if (test_take_used(&s->board, 0, &head, &written)) {
            return true;
        }
        usleep(1000);
    }
    return false;
}

/* With a file and the threads of its backend; a reset comes while requests are in flight. */
static void real_disk(void **state)
{
    struct setup s = {0};
    char path[] = "/tmp/blk_test.XXXXXX";
    int fd = mkstemp(path);
    assert_int_equal(ftruncate(fd, DISK_SIZE), 0);
    struct virtio_blk_config config = {0};
    assert_int_equal(disk_raw_open(path, false, false, &config.disk), 0);
    test_board_init(&s.board);
    config.memory = s.board.memory;
    assert_int_equal(virtio_blk_new(&config, "virtio-blk0", &s.board.virtio), 0);
    test_plug(&s.board, s.board.virtio);
    test_enable_msix(&s.board);
    for (unsigned round = 0; round < 20; round++) {
        test_start(&s.board, 0);
        for (unsigned i = 0; i < 5; i++) {
            start(&s, round & 1 ? OUT : IN, i, 4096, !(round & 1));
        }
        test_common_write(&s.board, 0x14, 1, 0);
        assert_int_equal(test_status(&s.board), 0);
        test_start(&s.board, 0);
        start(&s, IN, round, 4096, true);
        assert_true(wait_for_used(&s));
        assert_int_equal(get_status(&s), OK);
    }
    start(&s, IN, 0, 4096, true);
    test_board_fini(&s.board);
    close(fd);
    unlink(path);
}

int main(void)
{
#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(identity),
        TEST(read_and_write),
        TEST(odd_framing),
        TEST(identify_and_flush),
        TEST(write_through_without_flush),
        TEST(discard_and_zeroes),
        TEST(refusals),
        cmocka_unit_test_setup_teardown(readonly_disk, set_up_readonly, tear_down),
        TEST(host_errors_reach_guest_and_user),
        TEST(large_request),
        TEST(more_than_in_flight),
        TEST(interrupts),
        cmocka_unit_test_setup_teardown(several_queues, set_up_queues, tear_down),
        cmocka_unit_test_setup_teardown(one_interrupt_for_a_burst, set_up_queues, tear_down),
        cmocka_unit_test_setup_teardown(full_queue_does_not_starve_others, set_up_queues,
                                        tear_down),
        cmocka_unit_test_setup_teardown(other_queues_are_refused, set_up_queues, tear_down),
        TEST(broken_requests_need_a_reset),
        TEST(reset_with_requests_in_flight),
        TEST(negotiation),
        TEST(access_through_configuration_space),
        TEST(pause_save_restore),
        cmocka_unit_test(kept_requests),
        TEST(another_disk_is_refused),
        TEST(board_reset),
        cmocka_unit_test(real_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
