/* The two clocks: the one that tests advance, and the one that follows the host. */
#include "base/clock.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <time.h>

#include <cmocka.h>

#include "base/host_clock.h"
#include "base/test_clock.h"

struct recorder {
    struct clock clock;
    struct loop *loop;
    void *alarm;
    uint64_t again; /* arm once more, so much later */
    uint64_t expired_at[4];
    unsigned count;
    unsigned *order; /* shared: which expiry is this? */
    unsigned position;
};

static void record(void *argument)
{
    struct recorder *r = argument;
    r->expired_at[r->count++ % 4] = clock_now(r->clock);
    if (r->order) {
        r->position = ++*r->order;
    }
    if (r->again) {
        clock_alarm_set(r->clock, r->alarm, clock_now(r->clock) + r->again);
        r->again = 0;
    }
    if (r->loop) {
        loop_stop(r->loop);
    }
}

static void alarms_expire_in_order_at_their_time(void **state)
{
    struct test_clock *test = test_clock_new();
    struct clock clock = test_clock_clock(test);
    unsigned order = 0;
    struct recorder r[3] = {
        {.clock = clock, .order = &order}, {.clock = clock, .order = &order}, {.clock = clock}};
    for (unsigned i = 0; i < 3; i++) {
        r[i].alarm = clock_alarm_new(clock, record, &r[i]);
    }
    assert_int_equal(test_clock_next(test), UINT64_MAX);
    clock_alarm_set(clock, r[1].alarm, 50);
    clock_alarm_set(clock, r[0].alarm, 50); /* the same time, set later */
    clock_alarm_set(clock, r[2].alarm, 30);
    r[2].again = 40;
    assert_int_equal(test_clock_next(test), 30);
    test_clock_advance(test, 29);
    assert_int_equal(r[2].count, 0);
    test_clock_advance(test, 71);
    assert_int_equal(clock_now(clock), 100);
    assert_int_equal(r[2].count, 2);
    assert_int_equal(r[2].expired_at[0], 30);
    assert_int_equal(r[2].expired_at[1], 70);
    assert_int_equal(r[1].position, 1);
    assert_int_equal(r[0].position, 2);
    assert_int_equal(r[0].expired_at[0], 50);

    clock_alarm_set(clock, r[0].alarm, 10); /* in the past: at once, at the present time */
    clock_alarm_set(clock, r[1].alarm, 120);
    clock_alarm_set(clock, r[1].alarm, UINT64_MAX);
    test_clock_advance_to(test, 90);
    assert_int_equal(r[0].count, 1);
    test_clock_advance(test, UINT64_MAX);
    assert_int_equal(r[0].expired_at[1], 100);
    assert_int_equal(r[1].count, 1);
    for (unsigned i = 0; i < 3; i++) {
        clock_alarm_free(clock, r[i].alarm);
    }
    clock_alarm_free(clock, NULL);
    test_clock_free(test);
    test_clock_free(NULL);
}

static const uint64_t SECOND = 1000000000;
static const uint64_t MILLISECOND = 1000000;

static void stop_loop(void *loop)
{
    loop_stop(loop);
}

static uint64_t host_nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

static void the_host_clock_follows_its_setting(void **state)
{
    struct loop *loop;
    struct host_clock *host;
    assert_int_equal(loop_new(&loop), 0);
    assert_int_equal(host_clock_new(loop, &host), 0);
    struct clock clock = host_clock_clock(host);
    struct recorder r = {.clock = clock, .loop = loop};
    r.alarm = clock_alarm_new(clock, record, &r);
    uint64_t start = clock_now(clock);
    assert_true(start < SECOND);
    assert_true(clock_now(clock) >= start);

    clock_alarm_set(clock, r.alarm, start + MILLISECOND);
    assert_int_equal(loop_run(loop), 0);
    assert_true(r.expired_at[0] >= start + MILLISECOND);

    /* An alarm an hour ahead is due when the clock is set to then, however early the host is. */
    clock_alarm_set(clock, r.alarm, 3600 * SECOND);
    host_clock_set(host, 1ull << 62);
    assert_true(clock_now(clock) - (1ull << 62) < SECOND);
    assert_int_equal(loop_run(loop), 0);
    assert_int_equal(r.count, 2);

    /* Set back, alarms keep their virtual deadlines. */
    clock_alarm_set(clock, r.alarm, 2 * MILLISECOND);
    host_clock_set(host, 0);
    assert_int_equal(loop_run(loop), 0);
    assert_true(r.expired_at[2] >= 2 * MILLISECOND && r.expired_at[2] < SECOND);

    /* While it stands still, nothing is due, not even what was due before. */
    host_clock_stop(host, 7 * SECOND);
    clock_alarm_set(clock, r.alarm, SECOND);
    struct timer *end = timer_new(loop, stop_loop, loop);
    timer_arm(end, host_nanoseconds() + 5 * MILLISECOND);
    assert_int_equal(loop_run(loop), 0);
    assert_int_equal(r.count, 3);
    assert_true(clock_now(clock) == 7 * SECOND);
    host_clock_set(host, 7 * SECOND);
    assert_int_equal(loop_run(loop), 0);
    assert_int_equal(r.count, 4);
    timer_free(end);

    clock_alarm_set(clock, r.alarm, UINT64_MAX - 1); /* far beyond what the host can count */
    clock_alarm_set(clock, r.alarm, UINT64_MAX);
    clock_alarm_free(clock, r.alarm);
    host_clock_free(host);
    host_clock_free(NULL);
    loop_free(loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(alarms_expire_in_order_at_their_time),
        cmocka_unit_test(the_host_clock_follows_its_setting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
