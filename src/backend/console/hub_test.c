/*
 * The hub: history, viewers that come, go and sleep, who may type, a device that waits for room,
 * and the log's two files.
 */
#include "backend/console/hub.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* last: cmocka wants the standard headers before it */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "backend/console/array_console.h"
#include "base/loop.h"

struct fixture {
    struct loop *loop;
    struct console *console;
    struct array_console *inner;
    struct console_hub *hub;
    char typed[64];
    size_t typed_count, takes; /* the device takes that many bytes more */
    unsigned breaks, drained, calls;
    uint16_t columns, rows;
    int log[2];
};

static size_t on_receive(void *owner, const uint8_t *bytes, size_t count)
{
    struct fixture *f = owner;
    count = count < f->takes ? count : f->takes;
    memcpy(f->typed + f->typed_count, bytes, count);
    f->typed_count += count;
    f->takes -= count;
    return count;
}

static void on_break(void *owner)
{
    ((struct fixture *)owner)->breaks++;
}

static void on_resized(void *owner, uint16_t columns, uint16_t rows)
{
    struct fixture *f = owner;
    f->columns = columns;
    f->rows = rows;
}

static void on_drained(void *owner)
{
    ((struct fixture *)owner)->drained++;
}

static void on_ready(void *owner)
{
    ((struct fixture *)owner)->calls++;
}

static void open_hub(struct fixture *f, bool inner_types)
{
    assert_int_equal(loop_new(&f->loop), 0);
    f->inner = array_console_new();
    f->takes = sizeof f->typed;
    const struct console_hub_config config = {.loop = f->loop,
                                              .inner = &f->inner->console,
                                              .inner_types = inner_types,
                                              .log = {f->log[0], f->log[1]}};
    f->console = console_hub_new(&config);
    f->hub = console_hub_of(f->console);
    console_connect(f->console, &(struct console_receiver){.receive = on_receive,
                                                           .send_break = on_break,
                                                           .resized = on_resized,
                                                           .drained = on_drained,
                                                           .owner = f});
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->log[0] = f->log[1] = -1;
    open_hub(f, false);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    console_free(f->console);
    loop_free(f->loop);
    free(f);
    return 0;
}

static struct console_viewer *join(struct fixture *f)
{
    const struct console_viewer_config config = {.ready = on_ready, .owner = f};
    return console_viewer_new(f->hub, &config);
}

static void print(struct fixture *f, const char *text)
{
    console_write(f->console, (const uint8_t *)text, strlen(text));
}

static void expect(struct console_viewer *viewer, const char *text)
{
    uint8_t bytes[64] = "";
    uint64_t lost;
    assert_int_equal(console_viewer_read(viewer, bytes, sizeof bytes - 1, &lost), strlen(text));
    assert_string_equal((char *)bytes, text);
    assert_int_equal(lost, 0);
}

static void stop_loop(void *owner)
{
    loop_stop(owner);
}

static void run_for(struct fixture *f, uint64_t ns)
{
    struct timespec now;
    struct timer *timer = timer_new(f->loop, stop_loop, f->loop);
    clock_gettime(CLOCK_MONOTONIC, &now);
    timer_arm(timer, (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec + ns);
    assert_int_equal(loop_run(f->loop), 0);
    timer_free(timer);
}

static void test_viewers(void **state)
{
    struct fixture *f = *state;
    print(f, "before");
    struct console_viewer *first = join(f), *second = join(f);
    assert_int_equal(console_viewer_history(first), 6);
    expect(first, "before");
    assert_int_equal(console_viewer_history(first), 0);
    print(f, "after");
    expect(first, "after");
    assert_int_equal(console_viewer_history(second), 6);
    expect(second, "beforeafter");
    run_for(f, 20000000);
    assert_int_equal(f->calls, 2); /* once each: what comes together is told together */
    assert_memory_equal(f->inner->output, "beforeafter", 11);
    console_viewer_free(first);
    console_viewer_free(second);
}

static void test_who_types(void **state)
{
    struct fixture *f = *state;
    const uint8_t *text = (const uint8_t *)"abc";
    struct console_viewer *first = join(f), *second = join(f);
    assert_true(console_viewer_types(first) && !console_viewer_types(second));
    assert_int_equal(console_viewer_type(second, text, 3), 0);
    console_viewer_break(second);
    console_viewer_resize(second, 1, 2);
    assert_int_equal(f->breaks + f->columns + f->rows, 0);
    f->takes = 2;
    assert_int_equal(console_viewer_type(first, text, 3), 2);
    console_viewer_break(first);
    console_viewer_resize(first, 80, 25);
    assert_int_equal(f->breaks, 1);
    assert_int_equal(f->columns * 100 + f->rows, 8025);
    console_ready(f->console); /* it has room again */
    run_for(f, 20000000);
    assert_int_equal(f->calls, 2);
    console_viewer_free(first);
    assert_true(console_viewer_types(second));
    run_for(f, 20000000);
    assert_int_equal(f->calls, 3); /* the second is told */
    /* what comes by the inner console always counts */
    f->takes = 3;
    assert_int_equal(array_console_type(f->inner, "xyz"), 3);
    assert_memory_equal(f->typed, "abxyz", 5);
    console_viewer_free(second);
}

static void test_terminal_first(void **state)
{
    struct fixture f = {.log = {-1, -1}};
    open_hub(&f, true);
    struct console_viewer *viewer = join(&f);
    assert_false(console_viewer_types(viewer));
    assert_int_equal(console_viewer_type(viewer, (const uint8_t *)"a", 1), 0);
    console_free(f.console);
    /* the hub is gone, the viewer still harmless */
    uint64_t lost;
    uint8_t byte;
    assert_int_equal(console_viewer_read(viewer, &byte, 1, &lost), 0);
    assert_false(console_viewer_types(viewer));
    console_viewer_free(viewer);
    loop_free(f.loop);
}

static void test_slow_viewers(void **state)
{
    enum { PIECE = 1000 };
    struct fixture *f = *state;
    static uint8_t bytes[CONSOLE_HISTORY + 1];
    struct console_viewer *viewer = join(f);
    uint64_t lost;
    for (unsigned i = 0; i < 2 * CONSOLE_HISTORY / PIECE; i++) {
        memset(bytes, 'a' + (int)(i % 26), PIECE);
        f->inner->output_count = 0;
        console_write(f->console, bytes, PIECE);
    }
    size_t written = 2 * CONSOLE_HISTORY / PIECE * PIECE;
    assert_int_equal(console_viewer_read(viewer, bytes, sizeof bytes, &lost), CONSOLE_HISTORY);
    assert_int_equal(lost, written - CONSOLE_HISTORY);
    for (size_t i = 0; i < CONSOLE_HISTORY; i++) {
        assert_int_equal(bytes[i], 'a' + (int)((lost + i) / PIECE % 26));
    }
    console_viewer_free(viewer);
}

/* A device that asks waits for who types, but not for one that sleeps. */
static void test_room(void **state)
{
    struct fixture *f = *state;
    static uint8_t bytes[CONSOLE_HISTORY];
    struct console_viewer *viewer = join(f), *other = join(f);
    uint64_t lost;
    size_t written = 0, room;
    while ((room = console_room(f->console))) {
        assert_true(room < sizeof bytes);
        f->inner->output_count = 0;
        console_write(f->console, bytes, room);
        written += room;
    }
    assert_true(written < CONSOLE_HISTORY);
    run_for(f, 50000000);
    assert_int_equal(f->drained, 0);
    assert_int_equal(console_viewer_read(viewer, bytes, sizeof bytes, &lost), written);
    assert_int_equal(lost, 0);
    assert_int_equal(f->drained, 1);
    while ((room = console_room(f->console))) {
        f->inner->output_count = 0;
        console_write(f->console, bytes, room < 100 ? 100 : room);
    }
    run_for(f, 1300000000);
    assert_int_equal(f->drained, 2);
    assert_int_equal(console_room(f->console), SIZE_MAX);
    console_viewer_free(viewer);
    console_viewer_free(other);
}

static void test_log(void **state)
{
    struct fixture f = {0};
    static uint8_t bytes[100000];
    struct stat facts[2];
    for (unsigned i = 0; i < 2; i++) {
        char path[] = "/tmp/doppel-hub-test-XXXXXX";
        f.log[i] = mkstemp(path);
        unlink(path);
    }
    open_hub(&f, false);
    print(&f, "first");
    run_for(&f, 20000000);
    assert_int_equal(pread(f.log[0], bytes, sizeof bytes, 0), 5);
    size_t total = 5;
    while (total < 2 * CONSOLE_LOG_HALF + 1000) { /* the first is full, the second, the first */
        memset(bytes, 'x', sizeof bytes);
        f.inner->output_count = 0;
        console_write(f.console, bytes, sizeof bytes);
        total += sizeof bytes;
    }
    console_free(f.console);
    loop_free(f.loop);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(fstat(f.log[i], &facts[i]), 0);
    }
    assert_int_equal(facts[1].st_size, CONSOLE_LOG_HALF);
    assert_int_equal(facts[0].st_size, total - 2 * CONSOLE_LOG_HALF);
    f = (struct fixture){.log = {f.log[0], f.log[1]}}; /* the next start goes on behind it */
    open_hub(&f, false);
    print(&f, "again");
    console_free(f.console);
    loop_free(f.loop);
    assert_int_equal(pread(f.log[0], bytes, 5, facts[0].st_size), 5);
    assert_memory_equal(bytes, "again", 5);
    close(f.log[0]);
    close(f.log[1]);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_viewers),      TEST(test_who_types), cmocka_unit_test(test_terminal_first),
        TEST(test_slow_viewers), TEST(test_room),      cmocka_unit_test(test_log),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
