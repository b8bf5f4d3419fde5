/* The NVMe controller, driven through its PCI function as an operating system does. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/disk/stop_disk.h"
#include "device/storage/nvme_driver.h"
#include "device/visit_check.h"
#include "persist/visitor.h"

enum {
    DISK_SIZE = 4 << 20,
    BLOCKS = DISK_SIZE / NVME_BLOCK,
    FLUSH = 0,
    WRITE = 1,
    READ = 2,
    COMPARE = 5,
    WRITE_ZEROES = 8,
    MANAGE = 9,
    SET = 0x09,
    GET = 0x0a,
    LIST = 0x100000, /* where PRP lists and SGLs are */
};

static void build(struct driver *driver, bool readonly)
{
    driver_init(driver, DISK_SIZE, readonly, 3);
    assert_true(driver_enable(driver));
    assert_int_equal(driver_create_pair(driver, 1), 0);
}

static int set_up(void **state)
{
    static struct driver driver;
    build(&driver, false);
    *state = &driver;
    return 0;
}

static int set_up_readonly(void **state)
{
    static struct driver driver;
    build(&driver, true);
    *state = &driver;
    return 0;
}

static int tear_down(void **state)
{
    driver_fini(*state);
    return 0;
}

static void registers(void **state)
{
    struct driver *d = *state;
    assert_int_equal(driver_config(d, PCI_CLASS, 1), 2);
    assert_int_equal(driver_config(d, PCI_CLASS + 1, 2), 0x0108);
    uint64_t cap = driver_read(d, 0, 8);
    assert_int_equal(cap & 0xffff, NVME_ENTRIES_MAX - 1);
    assert_int_equal(cap >> 37 & 0xff, 1);
    assert_int_equal(driver_read(d, 8, 4), 0x10400);
    assert_int_equal(driver_read(d, 4, 4), cap >> 32);
    assert_int_equal(driver_read(d, 0x40, 4), 0);
    /* While it is enabled the admin queues stay. */
    driver_write(d, 0x28, 8, 0x5000);
    driver_write(d, 0x24, 4, 0);
    assert_int_equal(driver_read(d, 0x28, 8), DRIVER_SQS);
    assert_int_equal(driver_read(d, 0x24, 4), (DRIVER_ENTRIES - 1) | (DRIVER_ENTRIES - 1) << 16);
    /* A reset keeps them, too (7.3.2). */
    driver_write(d, 0x14, 4, 0);
    assert_int_equal(driver_read(d, 0x1c, 4), 0);
    assert_int_equal(driver_read(d, 0x28, 8), DRIVER_SQS);
}

static void what_cannot_be_enabled_is_fatal(void **state)
{
    static const struct {
        uint32_t cc, aqa;
        uint64_t asq;
    } table[] = {
        {DRIVER_CC | 1 << 7, 0x70007, DRIVER_SQS}, /* pages of 8 KiB */
        {DRIVER_CC | 1 << 4, 0x70007, DRIVER_SQS}, /* another command set */
        {DRIVER_CC, 0x00007, DRIVER_SQS},          /* one entry */
        {DRIVER_CC, 0x70000, DRIVER_SQS},
        {DRIVER_CC, 0x70007, DRIVER_MEMORY},
        {DRIVER_CC, 0x70fff, DRIVER_MEMORY - NVME_PAGE},
    };
    struct driver *d = *state;
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        driver_write(d, 0x14, 4, 0);
        driver_write(d, 0x24, 4, table[i].aqa);
        driver_write(d, 0x28, 4, (uint32_t)table[i].asq);
        driver_write(d, 0x14, 4, table[i].cc);
        assert_int_equal(driver_read(d, 0x1c, 4), 2);
    }
    assert_true(driver_enable(d));
}

static void identify(void **state)
{
    struct driver *d = *state;
    uint8_t page[4096];
    struct nvme_command command = {.opcode = 6, .prp1 = DRIVER_DATA, .dw10 = 1};
    assert_int_equal(driver_run(d, 0, command, NULL), 0);
    driver_load(d, DRIVER_DATA, page, sizeof page);
    assert_memory_equal(page + 4, "serial-1            ", 20);
    assert_int_equal(page[77], 7);
    assert_int_equal(load_le32(page + 80), 0x10400);
    assert_int_equal(load_le32(page + 516), 1);
    assert_memory_equal(page + 768, "nqn.2014-08.org.nvmexpress:", 27);
    command = (struct nvme_command){.opcode = 6, .namespace_id = 1, .prp1 = DRIVER_DATA + 100};
    command.prp2 = DRIVER_DATA + NVME_PAGE; /* across two pages */
    assert_int_equal(driver_run(d, 0, command, NULL), 0);
    driver_load(d, DRIVER_DATA + 100, page, sizeof page);
    assert_int_equal(load_le64(page), BLOCKS);
    assert_int_equal(page[130], 9);
    assert_int_equal(page[99], 0);
    command.dw10 = 3;
    assert_int_equal(driver_run(d, 0, command, NULL), 0);
    driver_load(d, DRIVER_DATA + 100, page, sizeof page);
    assert_int_equal(page[0], 1);
    assert_int_equal(page[1], 8);
    command.dw10 = 2;
    command.namespace_id = 0;
    assert_int_equal(driver_run(d, 0, command, NULL), 0);
    driver_load(d, DRIVER_DATA + 100, page, sizeof page);
    assert_int_equal(load_le64(page), 1);
    command.namespace_id = 1; /* none above it */
    assert_int_equal(driver_run(d, 0, command, NULL), 0);
    driver_load(d, DRIVER_DATA + 100, page, sizeof page);
    assert_int_equal(load_le64(page), 0);
    command.dw10 = 0;
    command.namespace_id = 2;
    assert_int_equal(driver_run(d, 0, command, NULL), NVME_INVALID_NAMESPACE);
    command.dw10 = 0x77;
    assert_int_equal(driver_run(d, 0, command, NULL), NVME_INVALID_FIELD);
    command.dw10 = 1;
    command.prp1 = DRIVER_MEMORY;
    assert_int_equal(driver_run(d, 0, command, NULL), NVME_TRANSFER_ERROR);
}

static void queues_are_checked(void **state)
{
    static const struct {
        uint8_t opcode;
        uint32_t dw10, dw11;
        uint64_t prp1;
        uint16_t status;
    } table[] = {
        {5, 7 << 16 | 0, 1, DRIVER_DATA, NVME_INVALID_QUEUE},
        {5, 7 << 16 | 1, 1, DRIVER_DATA, NVME_INVALID_QUEUE}, /* there already */
        {5, 7 << 16 | 4, 1, DRIVER_DATA, NVME_INVALID_QUEUE},
        {5, 7 << 16 | 0xffff, 1, DRIVER_DATA, NVME_INVALID_QUEUE},
        {5, 0 << 16 | 2, 1, DRIVER_DATA, NVME_INVALID_QUEUE_SIZE},
        {5, NVME_ENTRIES_MAX << 16 | 2, 1, DRIVER_DATA, NVME_INVALID_QUEUE_SIZE},
        {5, 7 << 16 | 2, 0, DRIVER_DATA, NVME_INVALID_FIELD}, /* not contiguous */
        {5, 7 << 16 | 2, 1 | 4 << 16, DRIVER_DATA, NVME_INVALID_VECTOR},
        {5, 7 << 16 | 2, 1, DRIVER_DATA + 4, NVME_PRP_OFFSET},
        {5, 7 << 16 | 2, 1, DRIVER_MEMORY, NVME_INVALID_FIELD},
        {1, 7 << 16 | 2, 1 | 2 << 16, DRIVER_DATA, NVME_INVALID_CQ},
        {1, 7 << 16 | 2, 1 | 0 << 16, DRIVER_DATA, NVME_INVALID_CQ},
        {1, 7 << 16 | 2, 1 | 0xffffu << 16, DRIVER_DATA, NVME_INVALID_CQ},
        {1, 7 << 16 | 1, 1 | 1 << 16, DRIVER_DATA, NVME_INVALID_QUEUE},
        {4, 1, 0, 0, NVME_INVALID_DELETION},
        {4, 2, 0, 0, NVME_INVALID_QUEUE},
        {4, 0, 0, 0, NVME_INVALID_QUEUE},
        {0, 2, 0, 0, NVME_INVALID_QUEUE},
        {0, 0xffff, 0, 0, NVME_INVALID_QUEUE},
        {0, 1, 0, 0, NVME_OK},
        {4, 1, 0, 0, NVME_OK},
        {0x80, 0, 0, 0, NVME_INVALID_OPCODE}, /* format */
        {0x11, 0, 0, 0, NVME_INVALID_OPCODE}, /* firmware download */
    };
    struct driver *d = *state;
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        struct nvme_command command = {.opcode = table[i].opcode,
                                       .prp1 = table[i].prp1,
                                       .dw10 = table[i].dw10,
                                       .dw11 = table[i].dw11};
        assert_int_equal(driver_run(d, 0, command, NULL), table[i].status);
    }
    uint32_t result;
    assert_int_equal(driver_admin(d, 8, 1, 0, &result), 0); /* abort: too late */
    assert_int_equal(result, 1);
    assert_int_equal(driver_run(d, 0, (struct nvme_command){.flags = 1, .opcode = 8}, NULL),
                     NVME_INVALID_FIELD); /* fused */
}

static void features(void **state)
{
    static const struct {
        uint32_t id, value, reads_as;
        uint16_t status;
    } table[] = {
        {1, 3, 3, 0},
        {2, 0, 0, 0},
        {2, 1, 0, NVME_INVALID_FIELD},
        {4, 350, 350, 0},
        {4, 1 << 16 | 350, 0, NVME_INVALID_FIELD}, /* a sensor that is not there */
        {5, 7, 7, 0},
        {5, 1 << 16, 0, NVME_INVALID_FIELD},
        {6, 0, 0, 0},
        {6, 1, 1, 0},
        {7, 1, 2 | 2 << 16, NVME_SEQUENCE_ERROR}, /* there are queues */
        {7, 0xffff, 2 | 2 << 16, NVME_INVALID_FIELD},
        {8, 0x1234, 0x1234, 0},
        {9, 1 << 16 | 2, 1 << 16 | 2, 0},
        {9, 4, 0, NVME_INVALID_FIELD},
        {0xa, 1, 1, 0},
        {0xb, 3, 3, 0},
        {0x33, 0, 0, NVME_INVALID_FIELD},
        {1u << 31 | 6, 0, 0, NVME_NOT_SAVEABLE},
    };
    struct driver *d = *state;
    uint32_t result;
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        assert_int_equal(driver_admin(d, SET, table[i].id, table[i].value, NULL), table[i].status);
        if (!table[i].status || table[i].status == NVME_SEQUENCE_ERROR) {
            assert_int_equal(driver_admin(d, GET, table[i].id, table[i].value, &result), 0);
            assert_int_equal(result, table[i].reads_as);
        }
    }
    assert_int_equal(driver_admin(d, GET, 0x33, 0, NULL), NVME_INVALID_FIELD);
    assert_true(driver_enable(d));
    assert_int_equal(driver_admin(d, SET, 7, 99 | 99 << 16, &result), 0);
    assert_int_equal(result, 2 | 2 << 16);
    assert_int_equal(driver_admin(d, GET, 8, 0, &result), 0);
    assert_int_equal(result, 0); /* forgotten with the reset */
}

static void logs_and_events(void **state)
{
    struct driver *d = *state;
    uint8_t page[512];
    struct completion entry;
    struct nvme_command log = {.opcode = 2, .prp1 = DRIVER_DATA, .dw10 = 2 | 127 << 16};
    assert_int_equal(driver_run(d, 1, driver_io(READ, 0, 8), NULL), 0);
    assert_int_equal(driver_run(d, 0, log, NULL), 0);
    driver_load(d, DRIVER_DATA, page, sizeof page);
    assert_int_equal(load_le16(page + 1), NVME_TEMPERATURE);
    assert_int_equal(load_le64(page + 32), 1);
    assert_int_equal(load_le64(page + 64), 1);
    /* An event waits for a request, is told once, and again only after its log was read. */
    driver_write(d, 0x1000 + 4 * 6, 4, 1); /* a queue that is not there */
    assert_false(driver_take(d, 0, &entry));
    driver_submit(d, 0, (struct nvme_command){.opcode = 0x0c});
    driver_submit(d, 0, (struct nvme_command){.opcode = 0x0c});
    assert_true(driver_take(d, 0, &entry));
    driver_ring(d, 1, d->queues[0].head);
    assert_int_equal(entry.result, 0x010000);
    driver_write(d, 0x1000 + 4 * 2, 4, DRIVER_ENTRIES); /* no index of the queue */
    assert_false(driver_take(d, 0, &entry));
    log.dw10 = 1 | 15 << 16 | 1 << 15; /* the log is read, but the event retained */
    assert_int_equal(driver_run(d, 0, log, NULL), 0);
    driver_write(d, 0x1000 + 4 * 2, 4, DRIVER_ENTRIES);
    assert_false(driver_take(d, 0, &entry));
    log.dw10 = 1 | 15 << 16;
    assert_int_equal(driver_run(d, 0, log, NULL), 0);
    driver_write(d, 0x1000 + 4 * 2, 4, DRIVER_ENTRIES);
    assert_true(driver_take(d, 0, &entry));
    driver_ring(d, 1, d->queues[0].head);
    assert_int_equal(entry.result, 0x010100);
    /* A limit below the temperature is a matter of health, if the driver wants to know. */
    driver_submit(d, 0, (struct nvme_command){.opcode = 0x0c});
    assert_int_equal(driver_admin(d, SET, 4, NVME_TEMPERATURE - 1, NULL), 0);
    assert_false(driver_take(d, 0, &entry));
    driver_submit(d, 0, (struct nvme_command){.opcode = SET, .dw10 = 0xb, .dw11 = 2});
    assert_true(driver_take(d, 0, &entry));
    assert_int_equal(entry.result, 0x020101);
    assert_true(driver_take(d, 0, &entry));
    driver_ring(d, 1, d->queues[0].head);
    for (unsigned i = 0; i < NVME_EVENTS_MAX; i++) {
        driver_submit(d, 0, (struct nvme_command){.opcode = 0x0c});
        assert_false(driver_take(d, 0, &entry));
    }
    assert_int_equal(driver_run(d, 0, (struct nvme_command){.opcode = 0x0c}, NULL),
                     NVME_TOO_MANY_EVENTS);
    /* The newest error comes first. */
    log.dw10 = 1 | 31 << 16;
    assert_int_equal(driver_run(d, 0, log, NULL), 0);
    driver_load(d, DRIVER_DATA, page, 128);
    assert_int_equal(load_le64(page), 1);
    assert_int_equal(load_le16(page + 12) >> 1 & 0x7ff, NVME_TOO_MANY_EVENTS);
    assert_int_equal(load_le64(page + 64), 0);
    log.dw10 = 3 | 127 << 16;
    assert_int_equal(driver_run(d, 0, log, NULL), 0);
    driver_load(d, DRIVER_DATA, page, sizeof page);
    assert_int_equal(page[0], 1);
    log.dw12 = 512;
    assert_int_equal(driver_run(d, 0, log, NULL), NVME_INVALID_FIELD);
    log.dw10 = 0x70;
    assert_int_equal(driver_run(d, 0, log, NULL), NVME_INVALID_LOG);
}

static void fill(struct driver *d, gpa_t gpa, size_t size, uint8_t seed)
{
    static uint8_t bytes[NVME_TRANSFER_MAX];
    for (size_t i = 0; i < size; i++) {
        bytes[i] = (uint8_t)(seed + i * 7 + i / 256);
    }
    driver_store(d, gpa, bytes, size);
}

static void read_and_write(void **state)
{
    struct driver *d = *state;
    uint8_t bytes[4096], back[4096];
    fill(d, DRIVER_DATA, sizeof bytes, 1);
    driver_load(d, DRIVER_DATA, bytes, sizeof bytes);
    assert_int_equal(driver_run(d, 1, driver_io(WRITE, 3, 8), NULL), 0);
    assert_memory_equal(d->disk->bytes + 3 * 512, bytes, sizeof bytes);
    assert_int_equal(d->disk->completed[DISK_FLUSH], 0);
    fill(d, DRIVER_DATA, sizeof bytes, 99);
    assert_int_equal(driver_run(d, 1, driver_io(READ, 3, 8), NULL), 0);
    driver_load(d, DRIVER_DATA, back, sizeof back);
    assert_memory_equal(back, bytes, sizeof bytes);
    assert_int_equal(driver_run(d, 1, driver_io(COMPARE, 3, 8), NULL), 0);
    bytes[4000] ^= 1;
    driver_store(d, DRIVER_DATA, bytes, sizeof bytes);
    assert_int_equal(driver_run(d, 1, driver_io(COMPARE, 3, 8), NULL), NVME_COMPARE_FAILED);
    /* Durable: by the bit, or because there is no cache. */
    struct nvme_command command = driver_io(WRITE, 0, 1);
    command.dw12 |= 1 << 30;
    assert_int_equal(driver_run(d, 1, command, NULL), 0);
    assert_int_equal(d->disk->completed[DISK_FLUSH], 1);
    assert_int_equal(driver_admin(d, SET, 6, 0, NULL), 0);
    assert_int_equal(driver_run(d, 1, driver_io(WRITE, 0, 1), NULL), 0);
    assert_int_equal(driver_run(d, 1, driver_io(WRITE_ZEROES, 0, 1), NULL), 0);
    assert_int_equal(d->disk->completed[DISK_FLUSH], 3);
    command = (struct nvme_command){.opcode = FLUSH, .namespace_id = 0xffffffff};
    assert_int_equal(driver_run(d, 1, command, NULL), 0);
    assert_int_equal(d->disk->completed[DISK_FLUSH], 4);
}

/* The largest transfer, over page lists that lead on to each other, and through SGLs. */
static void lists(void **state)
{
    enum { SIZE = NVME_TRANSFER_MAX, PAGES = SIZE / NVME_PAGE };
    static uint8_t expected[SIZE];
    struct driver *d = *state;
    uint64_t entries[PAGES];
    for (unsigned i = 0; i < PAGES; i++) { /* the pages of the data, in reverse order */
        fill(d, DRIVER_DATA + NVME_PAGE * (PAGES - i), NVME_PAGE, (uint8_t)i);
        driver_load(d, DRIVER_DATA + NVME_PAGE * (PAGES - i), expected + NVME_PAGE * i, NVME_PAGE);
        entries[i] = DRIVER_DATA + NVME_PAGE * (PAGES - i);
    }
    struct nvme_command command = driver_io(WRITE, 8, SIZE / NVME_BLOCK);
    command.prp1 = entries[0];
    command.prp2 = LIST + NVME_PAGE - 24; /* two pages, then the next list */
    uint64_t second = LIST + 2 * NVME_PAGE;
    driver_store(d, LIST + NVME_PAGE - 24, entries + 1, 16);
    driver_store(d, LIST + NVME_PAGE - 8, &second, 8);
    driver_store(d, second, entries + 3, sizeof entries - 24);
    assert_int_equal(driver_run(d, 1, command, NULL), 0);
    assert_memory_equal(d->disk->bytes + 8 * 512, expected, SIZE);
    assert_int_equal(driver_run(d, 1, (command.opcode = COMPARE, command), NULL), 0);

    /* SGL: a segment with a block and the way to the last segment. */
    struct {
        uint64_t address;
        uint32_t length;
        uint8_t reserved[3], type;
    } sgl[4] = {
        {DRIVER_DATA + 1, 1000, {0}, 0},
        {LIST + 32, 32, {0}, 0x30},
        {DRIVER_DATA + 5000, 0, {0}, 0},
        {DRIVER_DATA + 3000, 536, {0}, 0},
    };
    driver_store(d, LIST, sgl, sizeof sgl);
    command = driver_io(READ, 8, 3);
    command.flags = 1 << 6;
    command.prp1 = LIST;
    command.prp2 = 32 | UINT64_C(0x20) << 56;
    assert_int_equal(driver_run(d, 1, command, NULL), 0);
    uint8_t back[1536];
    driver_load(d, DRIVER_DATA + 1, back, 1000);
    driver_load(d, DRIVER_DATA + 3000, back + 1000, 536);
    assert_memory_equal(back, expected, sizeof back);
    command.prp1 = DRIVER_DATA; /* one block is a list by itself */
    command.prp2 = 1536;
    assert_int_equal(driver_run(d, 1, command, NULL), 0);
    driver_load(d, DRIVER_DATA, back, sizeof back);
    assert_memory_equal(back, expected, sizeof back);
}

static void broken_lists(void **state)
{
    static const struct {
        uint8_t flags;
        uint64_t prp1, prp2;
        uint32_t blocks;
        uint16_t status;
    } table[] = {
        {0, DRIVER_DATA + 2, 0, 1, NVME_PRP_OFFSET},
        {0, DRIVER_DATA, DRIVER_DATA + 8, 16, NVME_PRP_OFFSET},
        {0, DRIVER_MEMORY, 0, 1, NVME_TRANSFER_ERROR},
        {0, UINT64_MAX & ~UINT64_C(4095), 0, 1, NVME_TRANSFER_ERROR},
        {0, DRIVER_DATA, UINT64_MAX & ~UINT64_C(4095), 16, NVME_TRANSFER_ERROR},
        {0, DRIVER_DATA, DRIVER_MEMORY, 32, NVME_TRANSFER_ERROR},     /* the list */
        {0, DRIVER_DATA, LIST + 4, 32, NVME_PRP_OFFSET},              /* the list's place */
        {0, DRIVER_DATA, LIST + NVME_PAGE - 8, 32, NVME_PRP_OFFSET},  /* one place: leads on */
        {0, DRIVER_DATA, LIST + NVME_PAGE - 16, 64, NVME_PRP_OFFSET}, /* leads to itself */
        {0, DRIVER_DATA, 0, NVME_TRANSFER_MAX / 512 + 1, NVME_INVALID_FIELD},
        {2 << 6, DRIVER_DATA, 512, 1, NVME_INVALID_FIELD},
        {3 << 6, DRIVER_DATA, 512, 1, NVME_INVALID_FIELD},
        {1 << 6, DRIVER_DATA, 511, 1, NVME_SGL_LENGTH},
        {1 << 6, DRIVER_DATA, 513, 1, NVME_SGL_LENGTH},
        {1 << 6, DRIVER_MEMORY - 511, 512, 1, NVME_TRANSFER_ERROR},
        {1 << 6, LIST, 16 | UINT64_C(0x10) << 56, 1, NVME_SGL_TYPE},
        {1 << 6, LIST, 15 | UINT64_C(0x30) << 56, 1, NVME_SGL_SEGMENT},
        {1 << 6, LIST, 0 | UINT64_C(0x30) << 56, 1, NVME_SGL_SEGMENT},
        {1 << 6, LIST, 0xfffffff0 | UINT64_C(0x30) << 56, 1, NVME_SGL_COUNT},
        {1 << 6, DRIVER_MEMORY, 16 | UINT64_C(0x30) << 56, 1, NVME_TRANSFER_ERROR},
        {1 << 6, LIST + 64, 16 | UINT64_C(0x20) << 56, 1, NVME_SGL_COUNT}, /* leads to itself */
        {1 << 6, LIST + 64, 16 | UINT64_C(0x30) << 56, 1, NVME_SGL_SEGMENT},
        {1 << 6, LIST + 96, 32 | UINT64_C(0x20) << 56, 1, NVME_SGL_SEGMENT}, /* ends too early */
    };
    struct driver *d = *state;
    uint64_t self = LIST + NVME_PAGE - 16;
    uint64_t looping[2] = {LIST + 64, 16 | UINT64_C(0x20) << 56};
    driver_store(d, self, &(uint64_t){DRIVER_DATA}, 8);
    driver_store(d, self + 8, &self, 8);
    driver_store(d, LIST + 64, looping, sizeof looping);
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        struct nvme_command command = driver_io(READ, 0, table[i].blocks);
        command.flags = table[i].flags;
        command.prp1 = table[i].prp1;
        command.prp2 = table[i].prp2;
        uint16_t status = driver_run(d, 1, command, NULL);
        if (status != table[i].status) {
            fail_msg("row %zu: status %#x, not %#x", i, status, table[i].status);
        }
        assert_int_equal(d->disk->completed[DISK_READ], 0);
    }
}

static void refusals(void **state)
{
    static const struct {
        uint8_t opcode;
        uint32_t namespace_id, blocks;
        uint64_t block;
        uint16_t status;
    } table[] = {
        {READ, 1, 1, BLOCKS, NVME_OUT_OF_RANGE},
        {READ, 1, 2, BLOCKS - 1, NVME_OUT_OF_RANGE},
        {READ, 1, 1, UINT64_MAX, NVME_OUT_OF_RANGE},
        {WRITE, 1, 1, UINT64_MAX / 512 + 1, NVME_OUT_OF_RANGE},
        {WRITE_ZEROES, 1, 65536, 0, NVME_OUT_OF_RANGE},
        {COMPARE, 1, 1, BLOCKS, NVME_OUT_OF_RANGE},
        {READ, 0, 1, 0, NVME_INVALID_NAMESPACE},
        {READ, 2, 1, 0, NVME_INVALID_NAMESPACE},
        {READ, 0xffffffff, 1, 0, NVME_INVALID_NAMESPACE},
        {FLUSH, 2, 1, 0, NVME_INVALID_NAMESPACE},
        {0x0d, 1, 1, 0, NVME_INVALID_OPCODE}, /* reservations */
        {0x04, 1, 1, 0, NVME_INVALID_OPCODE}, /* write uncorrectable */
        {0xff, 1, 1, 0, NVME_INVALID_OPCODE},
    };
    struct driver *d = *state;
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        struct nvme_command command = driver_io(table[i].opcode, table[i].block, table[i].blocks);
        command.namespace_id = table[i].namespace_id;
        assert_int_equal(driver_run(d, 1, command, NULL), table[i].status);
    }
    struct nvme_command fused = driver_io(READ, 0, 1);
    fused.flags = 2;
    assert_int_equal(driver_run(d, 1, fused, NULL), NVME_INVALID_FIELD);
    assert_int_equal(d->reports, 0); /* the guest's mistakes are not the host's */
}

static uint16_t manage(struct driver *d, const uint64_t (*ranges)[2], unsigned count,
                       uint32_t attributes)
{
    for (unsigned i = 0; i < count; i++) {
        uint8_t range[16] = {0};
        store_le32(range + 4, (uint32_t)ranges[i][1]);
        store_le64(range + 8, ranges[i][0]);
        driver_store(d, DRIVER_DATA + 16 * i, range, sizeof range);
    }
    struct nvme_command command = {.opcode = MANAGE,
                                   .namespace_id = 1,
                                   .prp1 = DRIVER_DATA,
                                   .dw10 = count - 1,
                                   .dw11 = attributes};
    return driver_run(d, 1, command, NULL);
}

static void zeroes_and_deallocation(void **state)
{
    struct driver *d = *state;
    memset(d->disk->bytes, 0x11, DISK_SIZE);
    assert_int_equal(driver_run(d, 1, driver_io(WRITE_ZEROES, 8, 8), NULL), 0);
    assert_int_equal(d->disk->bytes[8 * 512], 0);
    assert_int_equal(d->disk->bytes[16 * 512 - 1], 0);
    assert_int_equal(d->disk->bytes[16 * 512], 0x11);
    assert_false(d->disk->unmapped);
    struct nvme_command command = driver_io(WRITE_ZEROES, 8, 8);
    command.dw12 |= 1 << 25;
    assert_int_equal(driver_run(d, 1, command, NULL), 0);
    assert_true(d->disk->unmapped);
    static const uint64_t good[3][2] = {{32, 8}, {0, 0}, {64, 1}};
    assert_int_equal(manage(d, good, 3, 0), 0); /* advice only */
    assert_int_equal(d->disk->completed[DISK_DISCARD], 0);
    assert_int_equal(manage(d, good, 3, 4), 0);
    assert_int_equal(d->disk->completed[DISK_DISCARD], 2);
    assert_int_equal(d->disk->bytes[32 * 512], 0xdd);
    assert_int_equal(d->disk->bytes[64 * 512], 0xdd);
    assert_int_equal(d->disk->bytes[65 * 512], 0x11);
    static const uint64_t bad[2][2] = {{0, 8}, {BLOCKS - 1, 2}};
    assert_int_equal(manage(d, bad, 2, 4), NVME_OUT_OF_RANGE);
    assert_int_equal(d->disk->completed[DISK_DISCARD], 2); /* all of it or nothing */
    d->disk->errors[DISK_DISCARD] = -EIO;
    assert_int_equal(manage(d, good, 3, 4), NVME_WRITE_FAULT);
    assert_int_equal(d->reports, 1);
}

static void readonly_disk(void **state)
{
    struct driver *d = *state;
    uint8_t page[4096];
    static const uint64_t range[1][2] = {{0, 8}};
    assert_int_equal(driver_run(d, 1, driver_io(WRITE, 0, 1), NULL), NVME_WRITE_PROTECTED);
    assert_int_equal(driver_run(d, 1, driver_io(WRITE_ZEROES, 0, 1), NULL), NVME_WRITE_PROTECTED);
    assert_int_equal(manage(d, range, 1, 4), NVME_WRITE_PROTECTED);
    assert_int_equal(driver_run(d, 1, driver_io(READ, 0, 1), NULL), 0);
    assert_int_equal(driver_run(d, 1, driver_io(FLUSH, 0, 1), NULL), 0);
    struct nvme_command command = {.opcode = 6, .namespace_id = 1, .prp1 = DRIVER_DATA};
    assert_int_equal(driver_run(d, 0, command, NULL), 0);
    driver_load(d, DRIVER_DATA, page, sizeof page);
    assert_int_equal(page[99], 1);
}

static void host_errors_reach_guest_and_user(void **state)
{
    struct driver *d = *state;
    d->disk->errors[DISK_WRITE] = -ENOSPC;
    assert_int_equal(driver_run(d, 1, driver_io(WRITE, 0, 1), NULL), NVME_CAPACITY);
    d->disk->errors[DISK_WRITE] = -EIO;
    assert_int_equal(driver_run(d, 1, driver_io(WRITE, 0, 1), NULL), NVME_WRITE_FAULT);
    d->disk->errors[DISK_READ] = -EIO;
    assert_int_equal(driver_run(d, 1, driver_io(READ, 0, 1), NULL), NVME_READ_ERROR);
    assert_int_equal(driver_run(d, 1, driver_io(COMPARE, 0, 1), NULL), NVME_READ_ERROR);
    assert_int_equal(d->reports, 4);
    d->disk->errors[DISK_READ] = 0;
    assert_int_equal(driver_run(d, 1, driver_io(READ, 0, 1), NULL), 0); /* life goes on */
}

/* The completion queue is never overrun: commands wait until the driver has made room. */
static void full_completion_queue(void **state)
{
    struct driver *d = *state;
    struct completion entry;
    for (unsigned shadow = 0; shadow < 2; shadow++) {
        unsigned answers = 0;
        for (unsigned i = 0; i < DRIVER_ENTRIES - 1; i++) {
            driver_submit(d, 1, driver_io(READ, i, 1));
        }
        while (memory_disk_step(d->disk)) {
        }
        for (unsigned i = 0; i < 3; i++) { /* no answers were taken: there is no room */
            driver_submit(d, 1, driver_io(READ, i, 1));
            assert_int_equal(d->disk->waiting, 0);
        }
        while (driver_take(d, 1, &entry)) {
            answers++;
        }
        assert_int_equal(answers, DRIVER_ENTRIES - 1);
        driver_ring(d, 3, d->queues[1].head);
        assert_int_equal(d->disk->waiting, 3);
        while (memory_disk_step(d->disk)) {
        }
        while (driver_take(d, 1, &entry)) {
            answers++;
        }
        assert_int_equal(answers, DRIVER_ENTRIES + 2);
        driver_ring(d, 3, d->queues[1].head);
        assert_int_equal(driver_use_shadow(d), 0);
    }
}

static void shadow_doorbells(void **state)
{
    struct driver *d = *state;
    struct completion entry;
    assert_int_equal(driver_use_shadow(d), 0);
    assert_int_equal(driver_create_pair(d, 2), 0);
    for (unsigned i = 0; i < 50; i++) {
        assert_int_equal(driver_run(d, 1 + i % 2, driver_io(READ, i, 1), NULL), 0);
    }
    /* A command whose bell was not rung is taken along with the next one. */
    driver_put(d, 2, driver_io(READ, 0, 1));
    uint32_t tail = d->queues[2].tail;
    driver_store(d, DRIVER_SHADOW + 16, &tail, 4);
    assert_int_equal(d->disk->waiting, 0);
    driver_put(d, 2, driver_io(READ, 0, 1));
    driver_ring(d, 4, d->queues[2].tail);
    driver_write(d, 0x1000 + 16, 4, d->queues[2].tail);
    assert_int_equal(d->disk->waiting, 2);
    while (memory_disk_step(d->disk)) {
    }
    assert_true(driver_take(d, 2, &entry) && driver_take(d, 2, &entry));
    /* Nonsense in the shadow is nobody's index. */
    tail = 0xffffffff;
    driver_store(d, DRIVER_SHADOW + 8, &tail, 4);
    driver_write(d, 0x1000 + 8, 4, d->queues[1].tail);
    assert_int_equal(d->disk->waiting, 0);
    static const uint64_t bad[][2] = {{DRIVER_SHADOW + 4, DRIVER_EVENTS},
                                      {DRIVER_MEMORY, DRIVER_EVENTS},
                                      {DRIVER_SHADOW, DRIVER_SHADOW}};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct nvme_command command = {.opcode = 0x7c, .prp1 = bad[i][0], .prp2 = bad[i][1]};
        assert_int_not_equal(driver_run(d, 0, command, NULL), 0);
    }
}

static void interrupts(void **state)
{
    struct driver *d = *state;
    assert_false(d->line);
    driver_submit(d, 0, (struct nvme_command){.opcode = 8});
    assert_true(d->line); /* until the answer is taken, or masked */
    driver_write(d, 0x0c, 4, 1);
    assert_false(d->line);
    driver_write(d, 0x10, 4, 1);
    assert_true(d->line);
    struct completion entry;
    assert_true(driver_take(d, 0, &entry));
    driver_ring(d, 1, d->queues[0].head);
    assert_false(d->line);
    driver_enable_msix(d);
    assert_int_equal(driver_run(d, 1, driver_io(READ, 0, 1), NULL), 0);
    assert_false(d->line);
    assert_int_equal(d->messages[0], 0);
    assert_int_equal(d->messages[1], 1);
    /* What the disk ends in one go is told with one message. */
    d->disk->burst = true;
    for (unsigned i = 0; i < 5; i++) {
        driver_submit(d, 1, driver_io(READ, i, 1));
    }
    assert_int_equal(d->disk->holders, 0);
    while (memory_disk_step(d->disk)) {
    }
    assert_int_equal(d->messages[1], 2);
}

/* A queue is deleted once its commands are done; a new one may take its place. */
static void deletion_waits_for_commands(void **state)
{
    struct driver *d = *state;
    struct completion entry;
    driver_submit(d, 1, driver_io(READ, 0, 1));
    driver_submit(d, 1, driver_io(READ, 1, 1));
    uint16_t id = driver_submit(d, 0, (struct nvme_command){.opcode = 0, .dw10 = 1});
    driver_submit(d, 1, driver_io(READ, 2, 1));
    assert_int_equal(d->disk->waiting, 2);
    assert_true(memory_disk_step(d->disk));
    assert_false(driver_take(d, 0, &entry));
    assert_true(memory_disk_step(d->disk));
    assert_true(driver_take(d, 0, &entry));
    driver_ring(d, 1, d->queues[0].head);
    assert_int_equal(entry.id, id);
    assert_int_equal(entry.status, 0);
    assert_int_equal(driver_admin(d, 4, 1, 0, NULL), 0);
    assert_int_equal(driver_create_pair(d, 1), 0);
    assert_int_equal(driver_run(d, 1, driver_io(READ, 0, 1), NULL), 0);
}

/* A reset waits for the disk, and what comes back then touches neither queue nor memory. */
static void reset_with_commands_in_flight(void **state)
{
    struct driver *d = *state;
    struct completion entry;
    driver_submit(d, 1, driver_io(READ, 0, 1));
    driver_submit(d, 1, driver_io(COMPARE, 0, 256));
    assert_int_equal(d->disk->waiting, 2);
    driver_write(d, 0x14, 4, 0);
    assert_int_equal(driver_read(d, 0x1c, 4), 0);
    assert_int_equal(d->disk->waiting, 0);
    assert_false(driver_take(d, 1, &entry));
    driver_write(d, 0x1008, 4, 1); /* a bell of a controller that is off */
    assert_true(driver_enable(d));
    assert_int_equal(driver_create_pair(d, 1), 0);
    assert_int_equal(driver_run(d, 1, driver_io(READ, 0, 1), NULL), 0);
    driver_submit(d, 1, driver_io(READ, 0, 1));
    d->device->ops->reset(d->device);
    assert_int_equal(d->disk->waiting, 0);
    assert_int_equal(driver_config(d, PCI_COMMAND, 2) & PCI_COMMAND_MEMORY, 0);
    driver_assign(d);
    assert_int_equal(driver_read(d, 0x28, 8), 0);
}

/* A shutdown makes what was written durable before it says that it is done. */
static void shutdown(void **state)
{
    struct driver *d = *state;
    driver_write(d, 0x14, 4, DRIVER_CC | 1 << 14);
    assert_int_equal(driver_read(d, 0x1c, 4) & 0xc, 4);
    assert_true(memory_disk_step(d->disk));
    assert_int_equal(d->disk->completed[DISK_FLUSH], 1);
    assert_int_equal(driver_read(d, 0x1c, 4) & 0xc, 8);
    assert_true(driver_enable(d));
    assert_int_equal(driver_read(d, 0x1c, 4), 1);
}

static void visit_nvme(void *owner, struct visitor *v)
{
    ((struct device *)owner)->ops->visit(owner, v);
}

#define NVME_DERIVED(member) VISIT_DERIVED(struct nvme, member)
static void everything_is_saved(void **state)
{
    struct driver *d = *state;
    assert_int_equal(driver_use_shadow(d), 0);
    assert_int_equal(driver_create_pair(d, 2), 0);
    assert_int_equal(driver_run(d, 2, driver_io(READ, BLOCKS, 1), NULL), NVME_OUT_OF_RANGE);
    driver_submit(d, 0, (struct nvme_command){.opcode = 0x0c});
    d->device->ops->pause(d->device);
    /* The queues, whose live ones have checked places, are compared below. */
    assert_int_equal(
        VISIT_CHECK(struct nvme, d->nvme, visit_nvme, d->device, NVME_DERIVED(device),
                    NVME_DERIVED(function), NVME_DERIVED(memory), NVME_DERIVED(disk),
                    NVME_DERIVED(clock), NVME_DERIVED(report), NVME_DERIVED(report_owner),
                    NVME_DERIVED(next_report_ns), NVME_DERIVED(io_queues), NVME_DERIVED(serial[20]),
                    NVME_DERIVED(paused), NVME_DERIVED(resetting), NVME_DERIVED(free_requests),
                    NVME_DERIVED(in_flight), NVME_DERIVED(answered), NVME_DERIVED(budget),
                    NVME_DERIVED(sqs), NVME_DERIVED(cqs)),
        0);
}

/* A saved controller goes on in another one of the same shape. */
static void save_restore(void **state)
{
    struct driver *d = *state;
    static struct driver other;
    assert_int_equal(driver_use_shadow(d), 0);
    driver_submit(d, 1, driver_io(READ, 0, 1));
    d->device->ops->pause(d->device);
    assert_int_equal(d->disk->waiting, 0);
    driver_submit(d, 1, driver_io(READ, 1, 1));
    assert_int_equal(d->disk->waiting, 0);
    struct visitor *saver = visitor_new_write();
    d->device->ops->visit(d->device, saver);
    size_t size;
    const void *saved = visitor_buffer(saver, &size);
    assert_int_equal(visitor_error(saver), 0);

    driver_init(&other, DISK_SIZE, false, 3);
    other.device->ops->pause(other.device);
    uint8_t page[4096];
    for (gpa_t gpa = 0; gpa < DRIVER_MEMORY; gpa += sizeof page) {
        driver_load(d, gpa, page, sizeof page);
        driver_store(&other, gpa, page, sizeof page);
    }
    memcpy(other.queues, d->queues, sizeof other.queues);
    struct visitor *loader = visitor_new_read(saved, size);
    other.device->ops->visit(other.device, loader);
    assert_int_equal(visitor_error(loader), 0);
    assert_true(visitor_at_end(loader));
    visitor_free(loader);
    struct visitor *comparer = visitor_new_compare(saved, size, NULL, NULL);
    other.device->ops->visit(other.device, comparer);
    assert_int_equal(visitor_differences(comparer), 0);
    visitor_free(comparer);
    assert_memory_equal(other.nvme->sqs, d->nvme->sqs, sizeof d->nvme->sqs);
    assert_memory_equal(other.nvme->cqs, d->nvme->cqs, sizeof d->nvme->cqs);
    other.device->ops->resume(other.device);
    assert_int_equal(other.disk->waiting, 1);
    assert_true(memory_disk_step(other.disk));
    struct completion entry;
    assert_true(driver_take(&other, 1, &entry) && driver_take(&other, 1, &entry));
    visitor_free(saver);
    driver_fini(&other);
}

/* Saved states that no controller of ours could have written, or of another shape. */
static void impossible_states_are_refused(void **state)
{
    struct driver *d = *state;
    static struct nvme good;
    d->device->ops->pause(d->device);
    good = *d->nvme;
    for (unsigned i = 0; i < 10; i++) {
        struct nvme *nvme = d->nvme;
        switch (i) {
        case 0:
            nvme->sqs[1].cq = 2;
            break;
        case 1:
            nvme->sqs[1].cq = 0;
            break;
        case 2:
            nvme->sqs[0].cq = 1;
            break;
        case 3:
            nvme->sqs[1].tail = nvme->sqs[1].size;
            break;
        case 4:
            nvme->cqs[1].head = nvme->cqs[1].size;
            break;
        case 5:
            nvme->cqs[1].base = DRIVER_MEMORY;
            break;
        case 6:
            nvme->has_shadow = true;
            nvme->shadow = DRIVER_MEMORY;
            break;
        case 7:
            nvme->sqs[0].live = false;
            break;
        case 8:
            nvme->sqs[1].size = 0;
            break;
        case 9:
            nvme->sqs[7] = nvme->sqs[1];
            nvme->cqs[7] = nvme->cqs[1];
            break;
        }
        struct visitor *saver = visitor_new_write();
        d->device->ops->visit(d->device, saver);
        size_t size;
        const void *saved = visitor_buffer(saver, &size);
        struct visitor *loader = visitor_new_read(saved, size);
        d->device->ops->visit(d->device, loader);
        assert_int_equal(visitor_error(loader), -EINVAL);
        visitor_free(loader);
        visitor_free(saver);
        memcpy(nvme->sqs, good.sqs, sizeof good.sqs);
        memcpy(nvme->cqs, good.cqs, sizeof good.cqs);
        nvme->has_shadow = false;
        nvme->shadow = 0;
    }
    d->disk->disk.size -= 512;
    struct visitor *saver = visitor_new_write();
    d->device->ops->visit(d->device, saver);
    d->disk->disk.size += 512;
    size_t size;
    const void *saved = visitor_buffer(saver, &size);
    struct visitor *loader = visitor_new_read(saved, size);
    d->device->ops->visit(d->device, loader);
    assert_int_equal(visitor_error(loader), -EINVAL);
    visitor_free(loader);
    visitor_free(saver);
}

static void note_stopped(void *owner, const char *text)
{
    *(unsigned *)owner += strstr(text, "d.img") != NULL;
}

/* With a disk that keeps what fails, the guest waits: a resume tries again, a reset gives up. */
static void kept_commands(void **state)
{
    struct driver *d = *state;
    struct completion entry;
    unsigned stops = 0;
    const struct stop_disk_config stop = {
        .lower = d->nvme->disk, .stopped = note_stopped, .owner = &stops, .name = "d.img"};
    d->nvme->disk = stop_disk_new(&stop);
    d->disk->errors[DISK_WRITE] = -ENOSPC;
    driver_submit(d, 1, driver_io(WRITE, 0, 1));
    driver_submit(d, 1, driver_io(WRITE, 1, 1));
    assert_true(memory_disk_step(d->disk) && memory_disk_step(d->disk));
    assert_int_equal(stops, 2);
    assert_false(driver_take(d, 1, &entry));
    d->device->ops->pause(d->device);
    struct visitor *saver = visitor_new_write();
    d->device->ops->visit(d->device, saver);
    assert_int_equal(visitor_error(saver), -EBUSY);
    visitor_free(saver);
    d->disk->errors[DISK_WRITE] = 0;
    d->device->ops->resume(d->device);
    assert_true(memory_disk_step(d->disk) && memory_disk_step(d->disk));
    assert_true(driver_take(d, 1, &entry) && entry.status == 0);
    assert_true(driver_take(d, 1, &entry) && entry.status == 0);
    driver_ring(d, 3, d->queues[1].head);
    d->disk->errors[DISK_WRITE] = -EIO;
    driver_submit(d, 1, driver_io(WRITE, 0, 1));
    assert_true(memory_disk_step(d->disk));
    assert_true(driver_enable(d));
    assert_int_equal(d->nvme->in_flight, 0);
    assert_int_equal(driver_create_pair(d, 1), 0);
    driver_submit(d, 1, driver_io(WRITE, 0, 1)); /* given up when all ends */
    assert_true(memory_disk_step(d->disk));
}

static void too_small_a_disk(void **state)
{
    struct driver *d = *state;
    struct memory_disk *disk = memory_disk_new(511, false);
    const struct nvme_config config = {
        .memory = d->memory, .disk = &disk->disk, .pci = d->pci, .slot = 4, .queues = 1};
    struct device *device;
    assert_int_equal(nvme_new(&config, "nvme1", &device), -EINVAL);
    disk_free(&disk->disk);
    disk = memory_disk_new(512, false);
    const struct nvme_config taken = {
        .memory = d->memory, .disk = &disk->disk, .pci = d->pci, .slot = DRIVER_SLOT, .queues = 1};
    assert_int_equal(nvme_new(&taken, "nvme1", &device), -EBUSY);
    disk_free(&disk->disk);
}

/* With a file and the threads of its backend; resets come while commands are in flight. */
static void real_disk(void **state)
{
    struct driver d = {0};
    char path[] = "/tmp/nvme_test.XXXXXX";
    int fd = mkstemp(path);
    assert_int_equal(ftruncate(fd, DISK_SIZE), 0);
    driver_init(&d, DISK_SIZE, false, 1);
    struct disk *idle = d.nvme->disk; /* the driver looks at it */
    assert_int_equal(disk_raw_open(path, false, false, &d.nvme->disk), 0);
    for (unsigned round = 0; round < 20; round++) {
        assert_true(driver_enable(&d));
        assert_int_equal(driver_create_pair(&d, 1), 0);
        for (unsigned i = 0; i < 5; i++) {
            driver_submit(&d, 1, driver_io(round & 1 ? WRITE : READ, i, 8));
        }
        driver_write(&d, 0x14, 4, 0);
        assert_true(driver_enable(&d));
        assert_int_equal(driver_create_pair(&d, 1), 0);
        driver_submit(&d, 1, driver_io(READ, round, 8));
        struct completion entry;
        unsigned waited = 0;
        while (!driver_take(&d, 1, &entry) && waited++ < 5000) {
            usleep(1000);
        }
        assert_int_equal(entry.status, 0);
    }
    driver_submit(&d, 1, driver_io(READ, 0, 8));
    driver_fini(&d);
    disk_free(idle);
    close(fd);
    unlink(path);
}

int main(void)
{
#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(registers),
        TEST(what_cannot_be_enabled_is_fatal),
        TEST(identify),
        TEST(queues_are_checked),
        TEST(features),
        TEST(logs_and_events),
        TEST(read_and_write),
        TEST(lists),
        TEST(broken_lists),
        TEST(refusals),
        TEST(zeroes_and_deallocation),
        cmocka_unit_test_setup_teardown(readonly_disk, set_up_readonly, tear_down),
        TEST(host_errors_reach_guest_and_user),
        TEST(full_completion_queue),
        TEST(shadow_doorbells),
        TEST(interrupts),
        TEST(deletion_waits_for_commands),
        TEST(reset_with_commands_in_flight),
        TEST(shutdown),
        TEST(everything_is_saved),
        TEST(save_restore),
        TEST(impossible_states_are_refused),
        TEST(kept_commands),
        TEST(too_small_a_disk),
        cmocka_unit_test(real_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
