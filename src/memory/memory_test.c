/* The pmap: doors, states, bits and borrows, with a listener that takes notes. */
#include "memory/memory.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"

/* --- a listener that takes notes --- */

struct notes {
    unsigned drops, write_drops, quiesces, writes;
    uint64_t dropped_first, dropped_count;
    gpa_t written_gpa;
    uint64_t written_length;
};

static void note_drop(void *owner, uint64_t first_page, uint64_t count, bool write_only)
{
    struct notes *notes = owner;
    notes->drops++;
    notes->write_drops += write_only;
    notes->dropped_first = first_page;
    notes->dropped_count = count;
}

static void note_quiesce(void *owner)
{
    ((struct notes *)owner)->quiesces++;
}

static void note_code_written(void *owner, gpa_t gpa, uint64_t length)
{
    struct notes *notes = owner;
    notes->writes++;
    notes->written_gpa = gpa;
    notes->written_length = length;
}

static const struct memory_range two_ranges[] = {{MIB(4), MIB(4)}, {0, MIB(2)}};

static int setup(void **state)
{
    struct memory *memory;
    if (memory_new(two_ranges, 2, "memory-test", &memory) < 0) {
        return -1;
    }
    *state = memory;
    return 0;
}

static int teardown(void **state)
{
    memory_free(*state);
    return 0;
}

static void listen(struct memory *memory, struct notes *notes)
{
    struct memory_listener listener = {note_drop, note_quiesce, note_code_written, notes};
    memset(notes, 0, sizeof *notes);
    memory_listen(memory, &listener);
}

static void put(struct memory *memory, gpa_t gpa, uint64_t value)
{
    assert_int_equal(memory_write(memory, gpa, &value, sizeof value), 0);
}

static uint64_t get(struct memory *memory, gpa_t gpa)
{
    uint64_t value;
    assert_int_equal(memory_read(memory, gpa, &value, sizeof value), 0);
    return value;
}

/* --- making and asking --- */

static void ranges_are_checked(void **state)
{
    static const struct {
        struct memory_range ranges[2];
        size_t count;
        int expected;
    } cases[] = {
        {{{0, MIB(1)}, {MIB(1), MIB(1)}}, 2, 0},
        {{{0, MIB(2)}, {MIB(1), MIB(4)}}, 2, -EINVAL},
        {{{0, MIB(2)}, {0, MIB(2)}}, 2, -EINVAL},
        {{{0, 0}}, 1, -EINVAL},
        {{{0, 100}}, 1, -EINVAL},
        {{{100, MIB(1)}}, 1, -EINVAL},
        {{{UINT64_MAX - 4095, MIB(1)}}, 1, -EINVAL},
        {{{0, 1ull << 41}}, 1, -EINVAL},
        {{{0, 0}}, 0, -EINVAL},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct memory *memory = NULL;
        assert_int_equal(memory_new(cases[i].ranges, cases[i].count, "test", &memory),
                         cases[i].expected);
        memory_free(memory);
    }
}

static void ram_is_known(void **state)
{
    struct memory *memory = *state;
    static const struct {
        gpa_t gpa;
        uint64_t length;
        bool is_ram;
    } cases[] = {
        {0, MIB(2), true},           {0, MIB(2) + 1, false}, {MIB(2), 1, false},
        {MIB(4), MIB(4), true},      {MIB(8), 1, false},     {MIB(8) - 1, 1, true},
        {MIB(1), UINT64_MAX, false}, {UINT64_MAX, 2, false}, {MIB(3), MIB(2), false},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        uint8_t byte = 1;
        assert_int_equal(memory_is_ram(memory, cases[i].gpa, cases[i].length), cases[i].is_ram);
        if (cases[i].length == 1) {
            int expected = cases[i].is_ram ? 0 : -EFAULT;
            assert_int_equal(memory_write(memory, cases[i].gpa, &byte, 1), expected);
            assert_int_equal(memory_read(memory, cases[i].gpa, &byte, 1), expected);
        }
    }
    assert_int_equal(memory_size(memory), MIB(6));
    assert_int_equal(memory_page_limit(memory), MIB(8) >> PAGE_SHIFT);
    assert_int_equal(memory_page_state(memory, 0), PAGE_ZERO);
    assert_int_equal(memory_page_state(memory, MIB(3) >> PAGE_SHIFT), PAGE_NONE);
    assert_int_equal(memory_page_state(memory, UINT64_MAX), PAGE_NONE);
}

/* --- doors --- */

static void copies_are_exact_or_nothing(void **state)
{
    struct memory *memory = *state;
    static uint8_t pattern[3 * PAGE_SIZE], back[3 * PAGE_SIZE];
    for (size_t i = 0; i < sizeof pattern; i++) {
        pattern[i] = (uint8_t)(i * 7 + 1);
    }
    for (unsigned offset = 0; offset < 9; offset++) {
        for (unsigned length = 0; length < 18; length++) {
            gpa_t gpa = MIB(1) - 8 + offset; /* some of these cross a page */
            memset(back, 0, sizeof back);
            assert_int_equal(memory_write(memory, gpa, pattern + offset, length), 0);
            assert_int_equal(memory_read(memory, gpa, back, length), 0);
            assert_memory_equal(back, pattern + offset, length);
            assert_int_equal(back[length], 0);
        }
    }
    assert_int_equal(memory_write(memory, MIB(4) + 5, pattern, sizeof pattern), 0);
    assert_int_equal(memory_read(memory, MIB(4) + 5, back, sizeof back), 0);
    assert_memory_equal(back, pattern, sizeof back);

    /* Across the end of RAM, nothing happens, in either direction. */
    memset(back, 0x55, sizeof back);
    assert_int_equal(memory_write(memory, MIB(2) - 4, pattern, 8), -EFAULT);
    assert_int_equal(memory_read(memory, MIB(2) - 4, back, 8), -EFAULT);
    assert_int_equal(memory_write(memory, UINT64_MAX - 3, pattern, 8), -EFAULT);
    assert_int_equal(back[0], 0x55);
    assert_int_equal(memory_page_state(memory, (MIB(2) >> PAGE_SHIFT) - 1), PAGE_ZERO);
}

static void loads_and_exchanges(void **state)
{
    struct memory *memory = *state;
    uint64_t found = 1;
    assert_int_equal(memory_load(memory, 16, 8, &found), 0);
    assert_int_equal(found, 0);
    assert_int_equal(memory_page_state(memory, 0), PAGE_ZERO);
    assert_int_equal(memory_compare_exchange(memory, 16, 8, 0, 0x1122334455667788, &found), 0);
    assert_int_equal(found, 0);
    assert_int_equal(memory_compare_exchange(memory, 16, 8, 0, 5, &found), 0);
    assert_int_equal(found, 0x1122334455667788);
    assert_int_equal(memory_compare_exchange(memory, 20, 4, 0x11223344, 0xaabbccdd, &found), 0);
    assert_int_equal(found, 0x11223344);
    assert_int_equal(memory_load(memory, 20, 4, &found), 0);
    assert_int_equal(found, 0xaabbccdd);
    assert_int_equal(memory_load(memory, 18, 4, &found), -EINVAL);
    assert_int_equal(memory_load(memory, 16, 2, &found), -EINVAL);
    assert_int_equal(memory_load(memory, MIB(2), 8, &found), -EFAULT);
    assert_int_equal(memory_compare_exchange(memory, 18, 4, 0, 0, &found), -EINVAL);
    assert_int_equal(memory_compare_exchange(memory, MIB(3), 4, 0, 0, &found), -EFAULT);
}

/* --- frames --- */

static void frames_take_rounds_only_where_needed(void **state)
{
    struct memory *memory = *state;
    struct notes notes;
    listen(memory, &notes);
    uint8_t *zero, *frame, *again;

    /* Never read before: the first write needs no round. */
    assert_int_equal(memory_frame(memory, 1, true, &frame), FRAME_OK);
    assert_int_equal(notes.drops + notes.quiesces, 0);
    *frame = 7;
    assert_int_equal(get(memory, PAGE_SIZE), 7);
    assert_int_equal(memory_frame(memory, 1, false, &again), FRAME_OK);
    assert_ptr_equal(frame, again);

    /* Read as zeros: no frame is taken, and the write drops that mapping. */
    assert_int_equal(memory_frame(memory, 2, false, &zero), FRAME_OK);
    assert_int_equal(*zero, 0);
    assert_int_equal(memory_page_state(memory, 2), PAGE_ZERO);
    assert_int_equal(memory_frame(memory, 2, true, &frame), FRAME_OK);
    assert_ptr_not_equal(zero, frame);
    assert_int_equal(notes.drops, 1);
    assert_int_equal(notes.write_drops, 0);
    assert_int_equal(notes.dropped_first, 2);
    assert_int_equal(notes.quiesces, 1);

    /* So does a store through a door, and a borrow for writing. */
    assert_int_equal(memory_frame(memory, 3, false, &zero), FRAME_OK);
    put(memory, 3 * PAGE_SIZE, 1);
    assert_int_equal(notes.quiesces, 2);
    put(memory, 3 * PAGE_SIZE, 2);
    assert_int_equal(notes.quiesces, 2);
    struct memory_span span;
    assert_int_equal(memory_frame(memory, 4, false, &zero), FRAME_OK);
    assert_int_equal(memory_borrow(memory, 4 * PAGE_SIZE, 100, false, &span, 1), 1);
    assert_int_equal(notes.quiesces, 2);
    memory_return(memory, &span, 1, false);
    assert_int_equal(memory_borrow(memory, 4 * PAGE_SIZE, 100, true, &span, 1), 1);
    assert_int_equal(notes.quiesces, 3);
    memory_return(memory, &span, 1, true);

    assert_int_equal(memory_frame(memory, MIB(3) >> PAGE_SHIFT, true, &frame), FRAME_NONE);
    assert_int_equal(memory_frame(memory, MIB(3) >> PAGE_SHIFT, false, &frame), FRAME_NONE);
    assert_int_equal(memory_frame(memory, UINT64_MAX, false, &frame), FRAME_NONE);
}

/* --- code --- */

static void code_pages_tell_of_stores(void **state)
{
    struct memory *memory = *state;
    struct notes notes;
    listen(memory, &notes);
    uint8_t *frame;

    assert_int_equal(memory_set_code(memory, 5), 0);
    assert_int_equal(notes.drops, 0);
    assert_int_equal(memory_frame(memory, 5, true, &frame), FRAME_CODE);
    assert_int_equal(memory_frame(memory, 5, false, &frame), FRAME_OK);
    put(memory, 5 * PAGE_SIZE + 24, 1);
    assert_int_equal(notes.writes, 1);
    assert_int_equal(notes.written_gpa, 5 * PAGE_SIZE + 24);
    assert_int_equal(notes.written_length, 8);

    uint64_t found;
    gpa_t at = 5 * PAGE_SIZE + 24;
    assert_int_equal(memory_compare_exchange(memory, at, 8, 3, 4, &found), 0);
    assert_int_equal(notes.writes, 1); /* nothing was stored */
    assert_int_equal(memory_compare_exchange(memory, at, 8, 1, 4, &found), 0);
    assert_int_equal(notes.writes, 2);

    memory_clear_code(memory, 5);
    put(memory, 5 * PAGE_SIZE, 1);
    assert_int_equal(notes.writes, 2);
    assert_int_equal(memory_frame(memory, 5, true, &frame), FRAME_OK);

    /* Now it has been mapped for writing: becoming code drops that, once. */
    unsigned quiesces = notes.quiesces;
    assert_int_equal(memory_set_code(memory, 5), 0);
    assert_int_equal(notes.write_drops, 1);
    assert_int_equal(notes.quiesces, quiesces + 1);
    assert_int_equal(memory_set_code(memory, 5), 0);
    assert_int_equal(notes.quiesces, quiesces + 1);
    assert_int_equal(memory_set_code(memory, MIB(3) >> PAGE_SHIFT), -EFAULT);

    struct memory_census census;
    memory_count(memory, &census);
    assert_int_equal(census.code_pages, 1);
    assert_int_equal(census.pages[PAGE_PRIVATE], 1);
    assert_int_equal(census.pages[PAGE_ZERO], (MIB(6) >> PAGE_SHIFT) - 1);
    assert_int_equal(census.pages[PAGE_NONE], MIB(2) >> PAGE_SHIFT);
}

/* --- borrowing --- */

static void borrows_pin(void **state)
{
    struct memory *memory = *state;
    struct notes notes;
    listen(memory, &notes);
    struct memory_span span, other;

    assert_int_equal(memory_borrow(memory, MIB(2) - 1, 2, true, &span, 1), -EFAULT);
    assert_int_equal(memory_borrow(memory, 0, 0, true, &span, 1), 0);
    assert_int_equal(memory_borrow(memory, 0, 8, true, &span, 0), -E2BIG);
    assert_int_equal(memory_borrow(memory, 10 * PAGE_SIZE + 100, 3 * PAGE_SIZE, true, &span, 1), 1);
    assert_int_equal(span.length, 3 * PAGE_SIZE);
    memset(span.host, 0x41, span.length);

    /* While a device may write, the page cannot become code, and it is not given back. */
    assert_int_equal(memory_set_code(memory, 11), -EBUSY);
    assert_int_equal(memory_discard(memory, 9 * PAGE_SIZE, 6 * PAGE_SIZE), 0);
    assert_int_equal(memory_page_state(memory, 11), PAGE_PRIVATE);
    assert_int_equal(memory_borrow(memory, 12 * PAGE_SIZE, 1, false, &other, 1), 1);
    memory_return(memory, &span, 1, true);
    assert_int_equal(get(memory, 12 * PAGE_SIZE), 0x4141414141414141);
    assert_int_equal(memory_set_code(memory, 12), 0);
    assert_int_equal(memory_discard(memory, 11 * PAGE_SIZE, 2 * PAGE_SIZE), 0);
    assert_int_equal(memory_page_state(memory, 11), PAGE_ZERO);
    assert_int_equal(memory_page_state(memory, 12), PAGE_PRIVATE);
    memory_return(memory, &other, 1, false);

    /* A page that is code already tells of what was written when it comes back. */
    assert_int_equal(memory_borrow(memory, 12 * PAGE_SIZE + 8, 16, true, &span, 1), 1);
    assert_int_equal(memory_set_code(memory, 12), -EBUSY);
    assert_int_equal(notes.writes, 0);
    memory_return(memory, &span, 1, true);
    assert_int_equal(notes.writes, 1);
    assert_int_equal(notes.written_gpa, 12 * PAGE_SIZE + 8);
    assert_int_equal(notes.written_length, 16);
}

static void borrows_have_a_limit(void **state)
{
    struct memory *memory = *state;
    struct memory_span span;
    unsigned count = 0;
    int r;
    while ((r = memory_borrow(memory, PAGE_SIZE - 8, 16, true, &span, 1)) == 1) {
        count++;
    }
    assert_int_equal(r, -EBUSY);
    assert_in_range(count, 1000, 1 << 20);
    while (count-- > 0) {
        span = (struct memory_span){.gpa = PAGE_SIZE - 8, .length = 16, .is_write = true};
        memory_return(memory, &span, 1, false);
    }
    assert_int_equal(memory_set_code(memory, 0), 0);
    assert_int_equal(memory_set_code(memory, 1), 0);
}

/* --- giving back --- */

static void discarded_pages_are_zero(void **state)
{
    struct memory *memory = *state;
    struct notes notes;
    listen(memory, &notes);
    uint8_t *frame;
    for (uint64_t page = 0; page < 1024; page++) {
        put(memory, MIB(4) + page * PAGE_SIZE, page + 1);
    }
    assert_int_equal(memory_discard(memory, MIB(4), MIB(2)), 0);
    assert_int_equal(notes.quiesces, 0); /* never mapped */
    struct memory_census census;
    memory_count(memory, &census);
    assert_int_equal(census.pages[PAGE_PRIVATE], 512);
    assert_int_equal(get(memory, MIB(4)), 0);
    assert_int_equal(get(memory, MIB(6)), 513);

    uint64_t page = (MIB(6) >> PAGE_SHIFT) + 3;
    assert_int_equal(memory_frame(memory, page, false, &frame), FRAME_OK);
    assert_int_equal(memory_set_code(memory, page), 0);
    assert_int_equal(memory_discard(memory, MIB(6), MIB(1)), 0);
    assert_int_equal(notes.drops, 1);
    assert_int_equal(notes.quiesces, 1);
    assert_int_equal(notes.writes, 1);
    put(memory, page * PAGE_SIZE + 8, 9);
    assert_int_equal(get(memory, page * PAGE_SIZE), 0);

    assert_int_equal(memory_discard(memory, 1, PAGE_SIZE), -EINVAL);
    assert_int_equal(memory_discard(memory, MIB(1), MIB(2)), -EFAULT);
    assert_int_equal(memory_discard(memory, MIB(1), 0), 0);
}

/* --- dirty bits --- */

static void dirty_bits_are_taken_once(void **state)
{
    struct memory *memory = *state;
    struct notes notes;
    listen(memory, &notes);
    uint64_t bitmap[2];
    uint8_t *frame;
    struct memory_span span;
    uint64_t found;

    put(memory, 0, 1);
    assert_int_equal(memory_frame(memory, 2, true, &frame), FRAME_OK);
    assert_int_equal(memory_frame(memory, 3, true, &frame), FRAME_OK);
    assert_int_equal(memory_frame(memory, 4, false, &frame), FRAME_OK);
    assert_int_equal(memory_compare_exchange(memory, 5 * PAGE_SIZE, 8, 0, 1, &found), 0);
    assert_int_equal(memory_borrow(memory, 70 * PAGE_SIZE, 8, true, &span, 1), 1);
    memory_take_dirty(memory, DIRTY_MIGRATION, 0, 128, bitmap);
    assert_int_equal(bitmap[0], 1 << 0 | 1 << 2 | 1 << 3 | 1 << 5);
    assert_int_equal(bitmap[1], 0);
    assert_int_equal(notes.drops, 1); /* one run of what was mapped */
    assert_int_equal(notes.write_drops, 1);
    assert_int_equal(notes.dropped_first, 2);
    assert_int_equal(notes.dropped_count, 2);
    assert_int_equal(notes.quiesces, 1);

    memory_return(memory, &span, 1, true);
    assert_int_equal(memory_frame(memory, 2, true, &frame), FRAME_OK);
    memory_take_dirty(memory, DIRTY_MIGRATION, 0, 128, bitmap);
    assert_int_equal(bitmap[0], 1 << 2);
    assert_int_equal(bitmap[1], 1 << 6);
    memory_take_dirty(memory, DIRTY_SNAPSHOT, 0, 128, bitmap);
    assert_int_equal(bitmap[0], 1 << 0 | 1 << 2 | 1 << 3 | 1 << 5);

    /* What has been given back has changed too; what is not RAM has not. */
    assert_int_equal(memory_discard(memory, 0, PAGE_SIZE), 0);
    memory_take_dirty(memory, DIRTY_SNAPSHOT, 0, 64, bitmap);
    assert_int_equal(bitmap[0], 1);
    memory_take_dirty(memory, DIRTY_SNAPSHOT, MIB(8) >> PAGE_SHIFT, 64, bitmap);
    assert_int_equal(bitmap[0], 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranges_are_checked),
        TEST(ram_is_known),
        TEST(copies_are_exact_or_nothing),
        TEST(loads_and_exchanges),
        TEST(frames_take_rounds_only_where_needed),
        TEST(code_pages_tell_of_stores),
        TEST(borrows_pin),
        TEST(borrows_have_a_limit),
        TEST(discarded_pages_are_zero),
        TEST(dirty_bits_are_taken_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
