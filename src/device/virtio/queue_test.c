/* Split virtqueues: chains as they should be, and every way to get them wrong. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "device/virtio/queue.h"

enum {
    MEMORY = 1 << 20,
    SIZE = 8,
    DESCRIPTORS = 0x1000,
    DRIVER = 0x2000,
    DEVICE = 0x3000,
    TABLE = 0x4000,
    DATA = 0x8000,
    NEXT = 1,
    WRITE = 2,
    INDIRECT = 4,
};

struct setup {
    struct memory *memory;
    struct virtqueue queue;
    struct virtio_chain chain;
};

static int set_up(void **state)
{
    static struct setup setup;
    struct memory_range range = {.base = 0, .size = MEMORY};
    setup = (struct setup){0};
    if (memory_new(&range, 1, "test", &setup.memory)) {
        return -1;
    }
    virtqueue_init(&setup.queue, setup.memory, VIRTQUEUE_SIZE_MAX);
    setup.queue.size = SIZE;
    setup.queue.descriptor_area = DESCRIPTORS;
    setup.queue.driver_area = DRIVER;
    setup.queue.device_area = DEVICE;
    setup.queue.indirect = true;
    setup.queue.enabled = true;
    *state = &setup;
    return 0;
}

static int tear_down(void **state)
{
    memory_free(((struct setup *)*state)->memory);
    return 0;
}

static void put16(struct setup *s, gpa_t at, uint16_t value)
{
    assert_int_equal(memory_write(s->memory, at, &value, 2), 0);
}

static uint16_t get16(struct setup *s, gpa_t at)
{
    uint16_t value;
    assert_int_equal(memory_read(s->memory, at, &value, 2), 0);
    return value;
}

static void put_descriptor(struct setup *s, gpa_t table, unsigned index, uint64_t gpa,
                           uint32_t length, uint16_t flags, uint16_t next)
{
    uint8_t bytes[16];
    store_le64(bytes, gpa);
    store_le32(bytes + 8, length);
    store_le16(bytes + 12, flags);
    store_le16(bytes + 14, next);
    assert_int_equal(memory_write(s->memory, table + 16 * index, bytes, sizeof bytes), 0);
}

static void offer(struct setup *s, uint16_t head)
{
    uint16_t available = get16(s, DRIVER + 2);
    put16(s, DRIVER + 4 + 2 * (available % SIZE), head);
    put16(s, DRIVER + 2, (uint16_t)(available + 1));
}

static void empty_ring_gives_nothing(void **state)
{
    struct setup *s = *state;
    assert_int_equal(virtqueue_pop(&s->queue, &s->chain), 0);
}

static void chain_is_walked(void **state)
{
    struct setup *s = *state;
    put_descriptor(s, DESCRIPTORS, 2, DATA, 16, NEXT, 5);
    put_descriptor(s, DESCRIPTORS, 5, DATA + 100, 7, NEXT, 0);
    put_descriptor(s, DESCRIPTORS, 0, DATA + 200, 512, WRITE | NEXT, 1);
    put_descriptor(s, DESCRIPTORS, 1, DATA + 800, 1, WRITE, 3);
    offer(s, 2);
    assert_int_equal(virtqueue_pop(&s->queue, &s->chain), 1);
    assert_int_equal(s->chain.head, 2);
    assert_int_equal(s->chain.read_count, 2);
    assert_int_equal(s->chain.write_count, 2);
    assert_int_equal(s->chain.read_length, 23);
    assert_int_equal(s->chain.write_length, 513);
    assert_int_equal(s->chain.segments[2].gpa, DATA + 200);
    assert_int_equal(virtqueue_pop(&s->queue, &s->chain), 0);
}

static void indirect_chain_is_walked(void **state)
{
    struct setup *s = *state;
    put_descriptor(s, DESCRIPTORS, 0, DATA, 4, NEXT, 1);
    put_descriptor(s, DESCRIPTORS, 1, TABLE, 3 * 16, INDIRECT, 0);
    put_descriptor(s, TABLE, 0, DATA + 4, 4, NEXT, 2);
    put_descriptor(s, TABLE, 2, DATA + 8, 4, WRITE, 0);
    offer(s, 0);
    assert_int_equal(virtqueue_pop(&s->queue, &s->chain), 1);
    assert_int_equal(s->chain.read_count, 2);
    assert_int_equal(s->chain.write_count, 1);
    assert_int_equal(s->chain.segments[2].gpa, DATA + 8);
}

/* The longest chain: a table of as many descriptors as a chain may have; one more is refused. */
static void longest_chain(void **state)
{
    struct setup *s = *state;
    for (unsigned i = 0; i <= VIRTQUEUE_SIZE_MAX; i++) {
        put_descriptor(s, TABLE, i, DATA, 1, NEXT, (uint16_t)(i + 1));
    }
    put_descriptor(s, TABLE, VIRTQUEUE_SIZE_MAX - 1, DATA, 1, 0, 0);
    put_descriptor(s, DESCRIPTORS, 0, TABLE, VIRTQUEUE_SIZE_MAX * 16, INDIRECT, 0);
    offer(s, 0);
    assert_int_equal(virtqueue_pop(&s->queue, &s->chain), 1);
    assert_int_equal(s->chain.read_count, VIRTQUEUE_SIZE_MAX);
    put_descriptor(s, TABLE, VIRTQUEUE_SIZE_MAX - 1, DATA, 1, NEXT, VIRTQUEUE_SIZE_MAX);
    put_descriptor(s, TABLE, VIRTQUEUE_SIZE_MAX, DATA, 1, 0, 0);
    put_descriptor(s, DESCRIPTORS, 0, TABLE, (VIRTQUEUE_SIZE_MAX + 1) * 16, INDIRECT, 0);
    offer(s, 0);
    assert_int_equal(virtqueue_pop(&s->queue, &s->chain), -EPROTO);
}

struct bad_descriptor {
    const char *what;
    uint64_t gpa;
    uint32_t length;
    uint16_t flags, next;
};

/* Chains that begin with descriptor 0; descriptor 1 is a good readable end, 2 a writable one. */
static void bad_chains_are_refused(void **state)
{
    static const struct bad_descriptor table[] = {
        {"not RAM", MEMORY, 1, 0, 0},
        {"end is not RAM", MEMORY - 4, 5, 0, 0},
        {"wraps around", UINT64_MAX - 3, 8, 0, 0},
        {"next outside of the table", DATA, 1, NEXT, SIZE},
        {"next far outside", DATA, 1, NEXT, 0xffff},
        {"loop", DATA, 1, NEXT, 0},
        {"readable after writable", DATA, 1, WRITE | NEXT, 1},
        {"indirect with next", TABLE, 16, INDIRECT | NEXT, 1},
        {"indirect and empty", TABLE, 0, INDIRECT, 0},
        {"indirect and odd", TABLE, 24, INDIRECT, 0},
        {"indirect in nowhere", MEMORY, 16, INDIRECT, 0},
        {"indirect wraps", UINT64_MAX - 15, 32, INDIRECT, 0},
        {"indirect twice", TABLE + 0x100, 16, INDIRECT, 0},
    };
    struct setup *s = *state;
    put_descriptor(s, DESCRIPTORS, 1, DATA, 1, 0, 0);
    put_descriptor(s, DESCRIPTORS, 2, DATA, 1, WRITE, 0);
    put_descriptor(s, TABLE, 0, DATA, 1, 0, 0);
    put_descriptor(s, TABLE + 0x100, 0, TABLE, 16, INDIRECT, 0);
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        put_descriptor(s, DESCRIPTORS, 0, table[i].gpa, table[i].length, table[i].flags,
                       table[i].next);
        s->queue.next_available = 0;
        put16(s, DRIVER + 2, 0);
        offer(s, 0);
        if (virtqueue_pop(&s->queue, &s->chain) != -EPROTO) {
            fail_msg("taken: %s", table[i].what);
        }
    }
}

static void indirect_needs_the_feature(void **state)
{
    struct setup *s = *state;
    s->queue.indirect = false;
    put_descriptor(s, DESCRIPTORS, 0, TABLE, 16, INDIRECT, 0);
    put_descriptor(s, TABLE, 0, DATA, 1, 0, 0);
    offer(s, 0);
    assert_int_equal(virtqueue_pop(&s->queue, &s->chain), -EPROTO);
}

static void lengths_of_large_segments_add_up(void **state)
{
    struct setup *s = *state;
    for (unsigned i = 0; i < 255; i++) {
        put_descriptor(s, TABLE, i, 0, MEMORY, NEXT, (uint16_t)(i + 1));
    }
    put_descriptor(s, TABLE, 255, 0, MEMORY, 0, 0);
    put_descriptor(s, DESCRIPTORS, 0, TABLE, 256 * 16, INDIRECT, 0);
    offer(s, 0);
    assert_int_equal(virtqueue_pop(&s->queue, &s->chain), 1);
    assert_int_equal(s->chain.read_length, UINT64_C(256) * MEMORY);
}

static void bad_indexes_are_refused(void **state)
{
    struct setup *s = *state;
    put_descriptor(s, DESCRIPTORS, 0, DATA, 1, 0, 0);
    offer(s, SIZE); /* a head outside of the table */
    assert_int_equal(virtqueue_pop(&s->queue, &s->chain), -EPROTO);
    put16(s, DRIVER + 2, SIZE + 1); /* more entries than the ring has */
    assert_int_equal(virtqueue_pop(&s->queue, &s->chain), -EPROTO);
}

static void no_more_in_flight_than_descriptors(void **state)
{
    struct setup *s = *state;
    put_descriptor(s, DESCRIPTORS, 0, DATA, 1, 0, 0);
    for (unsigned i = 0; i < SIZE; i++) {
        offer(s, 0);
        assert_int_equal(virtqueue_pop(&s->queue, &s->chain), 1);
    }
    offer(s, 0);
    assert_int_equal(virtqueue_pop(&s->queue, &s->chain), -EPROTO);
}

static void used_ring_is_written(void **state)
{
    struct setup *s = *state;
    put_descriptor(s, DESCRIPTORS, 3, DATA, 1, 0, 0);
    for (unsigned round = 0; round < 3 * SIZE; round++) {
        uint32_t entry[2];
        offer(s, 3);
        assert_int_equal(virtqueue_pop(&s->queue, &s->chain), 1);
        assert_int_equal(virtqueue_push(&s->queue, 3, round), 0);
        assert_int_equal(get16(s, DEVICE + 2), round + 1);
        assert_int_equal(
            memory_read(s->memory, DEVICE + 4 + 8 * (round % SIZE), entry, sizeof entry), 0);
        assert_int_equal(entry[0], 3);
        assert_int_equal(entry[1], round);
    }
}

/* Chains that belong together: the driver sees none of them before it sees all. */
static void used_entries_appear_together(void **state)
{
    struct setup *s = *state;
    uint32_t entries[3][2];
    s->queue.next_available = s->queue.next_used = SIZE - 1; /* and around the ring's end */
    for (uint16_t i = 0; i < 3; i++) {
        assert_int_equal(virtqueue_fill(&s->queue, i, 5 + i, 100u + i), 0);
    }
    assert_int_equal(get16(s, DEVICE + 2), 0);
    assert_int_equal(virtqueue_publish(&s->queue, 3), 0);
    assert_int_equal(get16(s, DEVICE + 2), SIZE + 2);
    assert_int_equal(memory_read(s->memory, DEVICE + 4 + 8 * (SIZE - 1), entries[0], 8), 0);
    assert_int_equal(memory_read(s->memory, DEVICE + 4, entries[1], 16), 0);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(entries[i][0], 5 + i);
        assert_int_equal(entries[i][1], 100 + i);
    }
}

static void indexes_wrap(void **state)
{
    struct setup *s = *state;
    put_descriptor(s, DESCRIPTORS, 1, DATA, 1, 0, 0);
    s->queue.next_available = s->queue.next_used = 0xfffe;
    put16(s, DRIVER + 2, 0xfffe);
    for (unsigned i = 0; i < 4; i++) {
        offer(s, 1);
        assert_int_equal(virtqueue_pop(&s->queue, &s->chain), 1);
        assert_int_equal(virtqueue_push(&s->queue, 1, 0), 0);
    }
    assert_int_equal(get16(s, DEVICE + 2), 2);
}

static void interrupt_flag_is_obeyed(void **state)
{
    struct setup *s = *state;
    assert_int_equal(virtqueue_wants_interrupt(&s->queue), 1);
    put16(s, DRIVER, 1);
    assert_int_equal(virtqueue_wants_interrupt(&s->queue), 0);
}

static void interrupt_event_is_obeyed(void **state)
{
    static const struct {
        uint16_t signalled, used, event;
        int wanted;
    } table[] = {
        {0, 1, 0, 1},           /* the entry asked for was pushed */
        {0, 1, 1, 0},           /* the one after it is asked for */
        {0, 5, 3, 1},           /* passed within a batch */
        {4, 5, 3, 0},           /* passed before */
        {0xffff, 1, 0, 1},      /* wraps */
        {0xfffe, 0xffff, 0, 0}, /* not yet there */
        {7, 7, 6, 0},           /* nothing was pushed */
    };
    struct setup *s = *state;
    s->queue.event_index = true;
    assert_int_equal(virtqueue_wants_interrupt(&s->queue), 1); /* the first time always */
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        s->queue.signalled_used = table[i].signalled;
        s->queue.next_used = table[i].used;
        put16(s, DRIVER + 4 + 2 * SIZE, table[i].event);
        assert_int_equal(virtqueue_wants_interrupt(&s->queue), table[i].wanted);
        assert_int_equal(s->queue.signalled_used, table[i].used);
    }
}

static void notifications_are_asked_for_when_empty(void **state)
{
    struct setup *s = *state;
    s->queue.event_index = true;
    put_descriptor(s, DESCRIPTORS, 0, DATA, 1, 0, 0);
    offer(s, 0);
    assert_int_equal(virtqueue_pop(&s->queue, &s->chain), 1);
    assert_int_equal(get16(s, DEVICE + 4 + 8 * SIZE), 0);
    assert_int_equal(virtqueue_pop(&s->queue, &s->chain), 0);
    assert_int_equal(get16(s, DEVICE + 4 + 8 * SIZE), 1);
}

static void unpop_gives_the_chain_again(void **state)
{
    struct setup *s = *state;
    put_descriptor(s, DESCRIPTORS, 6, DATA, 9, 0, 0);
    offer(s, 6);
    assert_int_equal(virtqueue_pop(&s->queue, &s->chain), 1);
    virtqueue_unpop(&s->queue);
    assert_int_equal(virtqueue_pop(&s->queue, &s->chain), 1);
    assert_int_equal(s->chain.head, 6);
}

static void places_are_checked(void **state)
{
    static const struct {
        uint16_t size;
        uint64_t descriptors, driver, device;
        bool sane;
    } table[] = {
        {8, 0x1000, 0x2000, 0x3000, true},        {256, 0x1000, 0x2000, 0x3000, true},
        {0, 0x1000, 0x2000, 0x3000, false},       {7, 0x1000, 0x2000, 0x3000, false},
        {512, 0x1000, 0x2000, 0x3000, false},     {8, 0x1008, 0x2000, 0x3000, false},
        {8, 0x1000, 0x2001, 0x3000, false},       {8, 0x1000, 0x2000, 0x3002, false},
        {8, MEMORY - 127, 0x2000, 0x3000, false}, {8, MEMORY - 112, 0x2000, 0x3000, false},
        {8, MEMORY - 128, 0x2000, 0x3000, true},  {8, 0x1000, MEMORY - 20, 0x3000, false},
        {8, 0x1000, 0x2000, MEMORY - 68, false},  {8, 0x1000, 0x2000, UINT64_MAX - 3, false},
    };
    struct setup *s = *state;
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        s->queue.size = table[i].size;
        s->queue.descriptor_area = table[i].descriptors;
        s->queue.driver_area = table[i].driver;
        s->queue.device_area = table[i].device;
        assert_int_equal(virtqueue_is_sane(&s->queue), table[i].sane);
    }
}

static void chains_are_copied(void **state)
{
    static const char text[] = "abcdefghijklmnop";
    struct setup *s = *state;
    char copy[16];
    s->chain = (struct virtio_chain){
        .read_count = 3,
        .write_count = 2,
        .read_length = 10,
        .write_length = 9,
        .segments = {{DATA, 3}, {DATA + 16, 0}, {DATA + 32, 7}, {DATA + 64, 4}, {DATA + 80, 5}},
    };
    assert_int_equal(memory_write(s->memory, DATA, text, 3), 0);
    assert_int_equal(memory_write(s->memory, DATA + 32, text + 3, 7), 0);
    assert_int_equal(virtio_chain_read(s->memory, &s->chain, 0, copy, 10), 0);
    assert_memory_equal(copy, text, 10);
    assert_int_equal(virtio_chain_read(s->memory, &s->chain, 2, copy, 3), 0);
    assert_memory_equal(copy, text + 2, 3);
    assert_int_equal(virtio_chain_read(s->memory, &s->chain, 1, copy, 10), -EFAULT);
    assert_int_equal(virtio_chain_read(s->memory, &s->chain, UINT64_MAX, copy, 1), -EFAULT);
    assert_int_equal(virtio_chain_write(s->memory, &s->chain, 2, text, 7), 0);
    assert_int_equal(memory_read(s->memory, DATA + 66, copy, 2), 0);
    assert_memory_equal(copy, text, 2);
    assert_int_equal(memory_read(s->memory, DATA + 80, copy, 5), 0);
    assert_memory_equal(copy, text + 2, 5);
    assert_int_equal(virtio_chain_write(s->memory, &s->chain, 3, text, 7), -EFAULT);
}

int main(void)
{
#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(empty_ring_gives_nothing),
        TEST(chain_is_walked),
        TEST(indirect_chain_is_walked),
        TEST(longest_chain),
        TEST(bad_chains_are_refused),
        TEST(indirect_needs_the_feature),
        TEST(lengths_of_large_segments_add_up),
        TEST(bad_indexes_are_refused),
        TEST(no_more_in_flight_than_descriptors),
        TEST(used_ring_is_written),
        cmocka_unit_test_setup_teardown(used_entries_appear_together, set_up, tear_down),
        TEST(indexes_wrap),
        TEST(interrupt_flag_is_obeyed),
        TEST(interrupt_event_is_obeyed),
        TEST(notifications_are_asked_for_when_empty),
        TEST(unpop_gives_the_chain_again),
        TEST(places_are_checked),
        TEST(chains_are_copied),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
