/* The small things: the trail of errors, ownership by scope, bytes and ranges. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"

static int open_disk(void)
{
    return fail(-ENOENT, "open '%s'", "disk.img");
}

static int start_machine(void)
{
    int r = open_disk();
    return fail(r, "start the machine");
}

static void the_trail_reads_from_the_outside_in(void **state)
{
    assert_string_equal(trail_text(), "");
    assert_int_equal(start_machine(), -ENOENT);
    assert_string_equal(trail_text(), "start the machine: open 'disk.img'");
    trail_clear();
    assert_string_equal(trail_text(), "");
}

static void the_trail_is_bounded(void **state)
{
    char sentence[600];
    memset(sentence, 'x', sizeof sentence - 1);
    sentence[sizeof sentence - 1] = '\0';
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(fail(-EIO, "%u%s", i, sentence), -EIO);
    }
    assert_true(strlen(trail_text()) < 1024);
    assert_int_equal(trail_text()[0], '9');
    trail_clear();
}

static void ranges_do_not_overflow(void **state)
{
    static const struct {
        uint64_t start, length, limit;
        bool fits;
    } cases[] = {
        {0, 0, 0, true},           {0, 1, 0, false},
        {4, 4, 8, true},           {4, 5, 8, false},
        {8, 0, 8, true},           {9, 0, 8, false},
        {1, UINT64_MAX, 8, false}, {UINT64_MAX, 1, UINT64_MAX, false},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        assert_int_equal(range_fits(cases[i].start, cases[i].length, cases[i].limit),
                         cases[i].fits);
    }
    assert_int_equal(align_down(4097, 4096), 4096);
    assert_int_equal(align_up(4097, 4096), 8192);
    assert_int_equal(align_up(4096, 4096), 4096);
}

static void bytes_are_little_endian_and_need_no_alignment(void **state)
{
    uint8_t bytes[12] = {0};
    store_le64(bytes + 1, 0x1122334455667788);
    assert_int_equal(bytes[1], 0x88);
    assert_int_equal(load_le16(bytes + 1), 0x7788);
    assert_int_equal(load_le32(bytes + 5), 0x11223344);
    uint8_t copy[12];
    bytes_fill(copy, 0xee, sizeof copy);
    bytes_copy(copy + 1, bytes + 1, 8);
    assert_int_equal(load_le64(copy + 1), 0x1122334455667788);
    assert_int_equal(copy[0], 0xee);
    assert_int_equal(copy[9], 0xee);
}

struct thing {
    unsigned *freed;
};

static void thing_free(struct thing *thing)
{
    if (thing) {
        ++*thing->freed;
    }
}
CLEANUP_DEFINE(struct thing, thing_free)

static struct thing *keep_or_lose(struct thing *given, bool keep)
{
    CLEANUP(thing_free) struct thing *thing = given;
    if (keep) {
        return TAKE(thing);
    }
    return NULL;
}

static void scopes_own_what_is_not_taken(void **state)
{
    unsigned freed = 0;
    struct thing thing = {&freed};
    assert_ptr_equal(keep_or_lose(&thing, true), &thing);
    assert_int_equal(freed, 0);
    assert_null(keep_or_lose(&thing, false));
    assert_int_equal(freed, 1);

    int kept = -1, lost = -1;
    {
        CLEANUP_FD int first = open("/dev/null", O_RDONLY | O_CLOEXEC);
        CLEANUP_FD int second = open("/dev/null", O_RDONLY | O_CLOEXEC);
        lost = first;
        kept = TAKE_FD(second);
        assert_int_equal(second, -1);
    }
    assert_int_equal(fcntl(lost, F_GETFD), -1);
    assert_true(fcntl(kept, F_GETFD) >= 0);
    close(kept);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_trail_reads_from_the_outside_in),
        cmocka_unit_test(the_trail_is_bounded),
        cmocka_unit_test(ranges_do_not_overflow),
        cmocka_unit_test(bytes_are_little_endian_and_need_no_alignment),
        cmocka_unit_test(scopes_own_what_is_not_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
