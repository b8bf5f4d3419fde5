/* The field visitor: its four modes agree, and a stream that is not as it should be is refused. */
#include "persist/visitor.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/error.h"

struct part {
    uint32_t level;
    bool is_open;
};

struct thing {
    uint8_t small;
    uint16_t medium;
    uint32_t large;
    uint64_t huge;
    bool flag;
    uint8_t count; /* at most 4 */
    uint8_t bytes[5];
    uint8_t blob[100];
    struct part parts[2];
    uint8_t late; /* since version 2 */
};

static void thing_visit_as(struct thing *t, struct visitor *v, unsigned version)
{
    unsigned found = visit_begin(v, "thing", version);
    visit_u8(v, "small", &t->small);
    visit_u16(v, "medium", &t->medium);
    visit_u32(v, "large", &t->large);
    visit_u64(v, "huge", &t->huge);
    visit_bool(v, "flag", &t->flag);
    visit_u8_max(v, "count", &t->count, 4);
    visit_bytes(v, "bytes", t->bytes, sizeof t->bytes);
    visit_bytes(v, "blob", t->blob, sizeof t->blob);
    for (unsigned i = 0; i < 2; i++) {
        visit_begin(v, "part", 1);
        visit_u32_max(v, "level", &t->parts[i].level, 1000);
        visit_bool(v, "is_open", &t->parts[i].is_open);
        visit_end(v);
    }
    if (found >= 2) {
        visit_u8(v, "late", &t->late);
    }
    visit_end(v);
}

static void thing_visit(struct thing *t, struct visitor *v)
{
    thing_visit_as(t, v, 2);
}

static const struct thing sample = {
    .small = 1,
    .medium = 0x2345,
    .large = 0x6789abcd,
    .huge = 0xfedcba9876543210,
    .flag = true,
    .count = 4,
    .bytes = {1, 2, 3, 4, 5},
    .parts = {{1000, true}, {7, false}},
    .late = 9,
};

/* A stream with two things; the caller frees it. */
static uint8_t *make_stream(const struct thing *thing, unsigned version, size_t *ret_size)
{
    struct thing copy = *thing;
    struct visitor *v = visitor_new_write();
    thing_visit_as(&copy, v, version);
    thing_visit_as(&copy, v, version);
    assert_int_equal(visitor_error(v), 0);
    const void *buffer = visitor_buffer(v, ret_size);
    uint8_t *stream = malloc(*ret_size);
    assert_non_null(stream);
    memcpy(stream, buffer, *ret_size);
    visitor_free(v);
    return stream;
}

static bool is_equal(const struct thing *a, const struct thing *b)
{
    struct thing copy = *b;
    size_t size;
    uint8_t *stream = make_stream(a, 2, &size);
    struct visitor *v = visitor_new_compare(stream, size, NULL, NULL);
    thing_visit(&copy, v);
    bool equal = visitor_error(v) == 0 && visitor_differences(v) == 0;
    visitor_free(v);
    free(stream);
    return equal;
}

/* --- the four modes --- */

static void what_is_written_is_read(void **state)
{
    size_t size;
    uint8_t *stream = make_stream(&sample, 2, &size);
    struct visitor *v = visitor_new_read(stream, size);
    assert_int_equal(visitor_mode(v), VISITOR_READ);
    struct thing first = {0}, second = {0};
    thing_visit(&first, v);
    assert_false(visitor_at_end(v));
    thing_visit(&second, v);
    assert_true(visitor_at_end(v));
    assert_int_equal(visitor_error(v), 0);
    assert_true(is_equal(&first, &sample));
    assert_true(is_equal(&second, &sample));
    assert_int_equal(first.huge, sample.huge);
    assert_int_equal(first.parts[0].level, 1000);
    visitor_free(v);
    free(stream);
    visitor_free(NULL);
}

static void older_versions_are_read(void **state)
{
    size_t size;
    uint8_t *stream = make_stream(&sample, 1, &size);
    struct visitor *v = visitor_new_read(stream, size);
    struct thing thing = {.late = 77};
    thing_visit(&thing, v);
    assert_int_equal(visitor_error(v), 0);
    assert_int_equal(thing.late, 77);
    assert_int_equal(thing.small, 1);
    visitor_free(v);
    free(stream);
}

static void newer_versions_are_refused(void **state)
{
    size_t size;
    uint8_t *stream = make_stream(&sample, 3, &size);
    struct visitor *v = visitor_new_read(stream, size);
    struct thing thing = {0};
    thing_visit(&thing, v);
    assert_int_equal(visitor_error(v), -ENOTSUP);
    assert_non_null(strstr(trail_text(), "version 3"));
    assert_int_equal(thing.small, 0);
    visitor_free(v);
    free(stream);
    trail_clear();
}

struct report {
    unsigned count;
    char text[256];
};

static void note_difference(void *owner, const char *section, const char *field)
{
    struct report *report = owner;
    report->count++;
    size_t used = strlen(report->text);
    snprintf(report->text + used, sizeof report->text - used, "%s.%s;", section, field);
}

static void differences_are_named(void **state)
{
    size_t size;
    uint8_t *stream = make_stream(&sample, 2, &size);
    struct report report = {0};
    struct visitor *v = visitor_new_compare(stream, size, note_difference, &report);
    struct thing thing = sample;
    thing.medium++;
    thing.bytes[4]++;
    thing.parts[1].is_open = true;
    struct thing before = thing;
    thing_visit(&thing, v);
    assert_int_equal(visitor_error(v), 0);
    assert_int_equal(visitor_differences(v), 3);
    assert_string_equal(report.text, "thing.medium;thing.bytes;thing.part.is_open;");
    assert_true(is_equal(&thing, &before));
    visitor_free(v);
    free(stream);
}

static void loop_visit(struct visitor *v, uint8_t count)
{
    uint32_t value = 5;
    visit_begin(v, "loop", 1);
    visit_u8(v, "count", &count);
    visit_begin(v, "items", 1);
    for (unsigned i = 0; i < count; i++) {
        visit_u32(v, "item", &value);
    }
    visit_begin(v, "inner", 1);
    visit_end(v);
    visit_end(v);
    visit_u32(v, "last", &value);
    visit_end(v);
}

/* Objects of different lengths: the comparison stays in step outside of the section concerned. */
static void lengths_may_differ_in_a_comparison(void **state)
{
    struct visitor *writer = visitor_new_write();
    struct {
        uint8_t value[3];
    } items = {{1, 2, 3}};
    uint8_t last = 9;
    visit_begin(writer, "list", 1);
    visit_begin(writer, "items", 1);
    visit_bytes(writer, "item", items.value, 3);
    visit_end(writer);
    visit_u8(writer, "last", &last);
    visit_end(writer);
    size_t size;
    const void *stream = visitor_buffer(writer, &size);
    static const struct {
        unsigned count;
        size_t differences;
        const char *text;
    } cases[] = {
        {3, 0, ""},
        {2, 1, "list.items.(length);"},
        {5, 1, "list.items.item;"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct report report = {0};
        struct visitor *v = visitor_new_compare(stream, size, note_difference, &report);
        uint8_t item[5] = {1, 2, 3, 4, 5};
        visit_begin(v, "list", 1);
        visit_begin(v, "items", 1);
        for (unsigned k = 0; k < cases[i].count; k++) {
            visit_u8(v, "item", &item[k]);
        }
        visit_end(v);
        visit_u8(v, "last", &last);
        visit_end(v);
        assert_int_equal(visitor_error(v), 0);
        assert_int_equal(visitor_differences(v), cases[i].differences);
        assert_string_equal(report.text, cases[i].text);
        assert_true(visitor_at_end(v));
        visitor_free(v);
    }
    visitor_free(writer);

    /* Sections inside of the one that ended too early are passed over. */
    writer = visitor_new_write();
    loop_visit(writer, 1);
    stream = visitor_buffer(writer, &size);
    struct visitor *v = visitor_new_compare(stream, size, NULL, NULL);
    loop_visit(v, 200);
    assert_int_equal(visitor_error(v), 0);
    assert_in_range(visitor_differences(v), 2, 10); /* the count, and some in "items" */
    assert_true(visitor_at_end(v));
    visitor_free(v);
    visitor_free(writer);
}

static void people_can_read_it(void **state)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    struct visitor *v = visitor_new_print(out);
    struct thing thing = sample;
    thing_visit(&thing, v);
    assert_int_equal(visitor_error(v), 0);
    visitor_free(v);
    fclose(out);
    assert_non_null(strstr(text, "thing.medium = 0x2345\n"));
    assert_non_null(strstr(text, "thing.bytes = 0102030405\n"));
    assert_non_null(strstr(text, "thing.blob = 100 bytes, crc32 "));
    assert_non_null(strstr(text, "thing.part.level = 0x3e8\n"));
    free(text);
}

/* --- what is refused --- */

static void values_out_of_range_change_nothing(void **state)
{
    struct visitor *writer = visitor_new_write();
    uint64_t values[] = {5, 2, 256, UINT32_MAX, 1};
    visit_begin(writer, "x", 1);
    for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
        visit_u64(writer, "value", &values[i]);
    }
    visit_end(writer);
    size_t size;
    const void *stream = visitor_buffer(writer, &size);

    struct visitor *v = visitor_new_read(stream, size);
    uint64_t a = 100, b = 200;
    visit_begin(v, "x", 1);
    visit_u64_max(v, "value", &a, 5);
    visit_u64_max(v, "value", &b, 1);
    assert_int_equal(a, 5);
    assert_int_equal(b, 200);
    assert_int_equal(visitor_error(v), -EINVAL);
    assert_non_null(strstr(trail_text(), "'value' is out of its range"));
    visit_u64(v, "value", &a); /* after an error nothing is read */
    assert_int_equal(a, 5);
    visit_end(v);
    visitor_free(v);
    visitor_free(writer);
    trail_clear();

    /* Nor is anything out of range written. */
    struct thing thing = sample;
    thing.count = 5;
    writer = visitor_new_write();
    thing_visit(&thing, writer);
    assert_int_equal(visitor_error(writer), -EINVAL);
    visitor_free(writer);
    trail_clear();
}

static void a_bool_is_zero_or_one(void **state)
{
    struct visitor *writer = visitor_new_write();
    uint8_t two = 2;
    visit_u8(writer, "flag", &two); /* fields outside of sections are possible too */
    size_t size;
    const void *stream = visitor_buffer(writer, &size);
    struct visitor *v = visitor_new_read(stream, size);
    bool flag = false;
    visit_bool(v, "flag", &flag);
    assert_int_equal(visitor_error(v), -EINVAL);
    assert_false(flag);
    visitor_free(v);
    visitor_free(writer);
    trail_clear();
}

/* What is loaded into may hold anything; only the undefined sanitizer sees the difference. */
static void a_bool_replaces_what_is_none(void **state)
{
    struct visitor *writer = visitor_new_write();
    bool flag = true;
    visit_bool(writer, "flag", &flag);
    size_t size;
    const void *stream = visitor_buffer(writer, &size);
    struct visitor *v = visitor_new_read(stream, size);
    memset(&flag, 0xa5, sizeof flag);
    visit_bool(v, "flag", &flag);
    assert_int_equal(visitor_error(v), 0);
    assert_true(flag);
    visitor_free(v);
    visitor_free(writer);
}

static void read_all(const uint8_t *stream, size_t size, int *ret_error)
{
    struct thing thing = {0};
    struct visitor *v = visitor_new_read(stream, size);
    thing_visit(&thing, v);
    thing_visit(&thing, v);
    *ret_error = visitor_error(v);
    visitor_free(v);
    trail_clear();
}

static void each_flipped_bit_is_noticed(void **state)
{
    size_t size;
    uint8_t *stream = make_stream(&sample, 2, &size);
    for (size_t bit = 0; bit < 8 * size; bit++) {
        int error;
        stream[bit / 8] ^= (uint8_t)(1 << bit % 8);
        read_all(stream, size, &error);
        assert_true(error < 0);
        stream[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    free(stream);
}

static void each_cut_is_noticed(void **state)
{
    size_t size;
    uint8_t *stream = make_stream(&sample, 2, &size);
    for (size_t cut = 0; cut < size; cut++) {
        int error;
        uint8_t *exact = malloc(cut + 1); /* so that the address sanitizer watches the end */
        memcpy(exact, stream, cut);
        read_all(exact, cut, &error);
        assert_true(error < 0);
        free(exact);
    }
    free(stream);
}

static void sections_must_be_used_up_and_not_more(void **state)
{
    struct visitor *writer = visitor_new_write();
    uint32_t value = 0;
    visit_begin(writer, "x", 1);
    visit_u32(writer, "value", &value);
    visit_end(writer);
    size_t size;
    const void *stream = visitor_buffer(writer, &size);

    struct visitor *v = visitor_new_read(stream, size);
    uint16_t half;
    visit_begin(v, "x", 1);
    visit_u16(v, "half", &half);
    visit_end(v);
    assert_int_equal(visitor_error(v), -EINVAL);
    visitor_free(v);

    v = visitor_new_read(stream, size);
    uint64_t twice = 3;
    visit_begin(v, "x", 1);
    visit_u64(v, "twice", &twice);
    visit_end(v);
    assert_int_equal(visitor_error(v), -EINVAL);
    assert_int_equal(twice, 3);
    visitor_free(v);

    v = visitor_new_read(stream, size);
    visit_begin(v, "y", 1);
    visit_end(v);
    assert_int_equal(visitor_error(v), -EINVAL);
    visitor_free(v);
    visitor_free(writer);
    trail_clear();
}

static void the_first_error_stays(void **state)
{
    struct visitor *v = visitor_new_write();
    visit_begin(v, "device", 1);
    visitor_fail(v, -EPROTO, "two fields contradict");
    visitor_fail(v, -EIO, "never seen");
    visit_end(v);
    assert_int_equal(visitor_error(v), -EPROTO);
    assert_string_equal(trail_text(), "state of device: two fields contradict");
    visitor_free(v);
    trail_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(older_versions_are_read),
        cmocka_unit_test(newer_versions_are_refused),
        cmocka_unit_test(differences_are_named),
        cmocka_unit_test(lengths_may_differ_in_a_comparison),
        cmocka_unit_test(people_can_read_it),
        cmocka_unit_test(values_out_of_range_change_nothing),
        cmocka_unit_test(a_bool_is_zero_or_one),
        cmocka_unit_test(a_bool_replaces_what_is_none),
        cmocka_unit_test(each_flipped_bit_is_noticed),
        cmocka_unit_test(each_cut_is_noticed),
        cmocka_unit_test(sections_must_be_used_up_and_not_more),
        cmocka_unit_test(the_first_error_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
