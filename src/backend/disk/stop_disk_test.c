/* A disk that keeps failed requests: they are tried again, or given back, and never lost. */
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
#include "base/bytes.h"

enum { SIZE = 65536, COUNT = 5 };

struct setup {
    struct memory_disk *memory;
    struct disk *disk;
    unsigned stops, done;
    int results[COUNT];
    char text[300];
    struct disk_request requests[COUNT];
    uint8_t bytes[COUNT][512];
    struct iovec vectors[COUNT];
};

static struct setup setup;

static void note_stopped(void *owner, const char *text)
{
    struct setup *s = owner;
    s->stops++;
    snprintf(s->text, sizeof s->text, "%s", text);
}

static void note_done(struct disk_request *request, int result)
{
    setup.results[request - setup.requests] = result;
    setup.done++;
    assert_false(request->more);
}

static int set_up(void **state)
{
    setup = (struct setup){.memory = memory_disk_new(SIZE, false)};
    const struct stop_disk_config config = {
        .lower = &setup.memory->disk, .stopped = note_stopped, .owner = &setup, .name = "some.img"};
    setup.disk = stop_disk_new(&config);
    setup.memory->burst = true;
    *state = &setup;
    return 0;
}

static int tear_down(void **state)
{
    disk_free(setup.disk);
    return 0;
}

static void submit(struct setup *s, enum disk_operation operation)
{
    for (unsigned i = 0; i < COUNT; i++) {
        memset(s->bytes[i], (int)i + 1, sizeof s->bytes[i]);
        s->vectors[i] = (struct iovec){s->bytes[i], sizeof s->bytes[i]};
        s->requests[i] = (struct disk_request){.operation = operation,
                                               .offset = 512 * i,
                                               .length = 512,
                                               .vectors = &s->vectors[i],
                                               .vector_count = 1,
                                               .unmap = true,
                                               .done = note_done};
        s->results[i] = 12345;
        assert_int_equal(disk_submit(s->disk, &s->requests[i]), 0);
    }
}

static void what_works_is_passed_on(void **state)
{
    struct setup *s = *state;
    assert_int_equal(s->disk->size, SIZE);
    submit(s, DISK_WRITE);
    disk_drain(s->disk);
    assert_int_equal(s->done, COUNT);
    assert_int_equal(s->memory->bytes[4 * 512 + 511], 5);
    submit(s, DISK_WRITE_ZEROES);
    disk_drain(s->disk);
    assert_true(s->memory->unmapped);
    assert_int_equal(s->stops, 0);
}

static void what_fails_is_tried_again(void **state)
{
    struct setup *s = *state;
    s->memory->errors[DISK_WRITE] = -ENOSPC;
    submit(s, DISK_WRITE);
    disk_drain(s->disk);
    assert_int_equal(s->done, 0);
    assert_int_equal(s->stops, COUNT);
    assert_non_null(strstr(s->text, "some.img"));
    assert_non_null(strstr(s->text, "writing failed at byte 2048: No space"));
    disk_retry(s->disk);
    disk_drain(s->disk);
    assert_int_equal(s->done, 0);
    s->memory->errors[DISK_WRITE] = 0;
    disk_retry(s->disk);
    disk_drain(s->disk);
    assert_int_equal(s->done, COUNT);
    for (unsigned i = 0; i < COUNT; i++) {
        assert_int_equal(s->results[i], 0);
        assert_int_equal(s->memory->bytes[512 * i], i + 1);
    }
}

static void what_is_given_up_has_its_error(void **state)
{
    struct setup *s = *state;
    s->memory->errors[DISK_READ] = -EIO;
    submit(s, DISK_READ);
    assert_true(memory_disk_step(s->memory)); /* the others are on their way yet */
    disk_cancel(s->disk);
    assert_int_equal(s->done, COUNT);
    for (unsigned i = 0; i < COUNT; i++) {
        assert_int_equal(s->results[i], -EIO);
    }
    submit(s, DISK_READ);
    disk_drain(s->disk); /* and freed with requests kept */
}

int main(void)
{
#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(what_works_is_passed_on),
        TEST(what_fails_is_tried_again),
        TEST(what_is_given_up_has_its_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
