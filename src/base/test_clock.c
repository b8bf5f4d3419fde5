/* The clock that is advanced by hand: a list of alarms, searched for the earliest. */
#include "base/test_clock.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/assert.h"

static const uint64_t NOT_ARMED = UINT64_MAX;

struct alarm {
    uint64_t deadline;
    uint64_t order; /* equal deadlines expire in the order of setting */
    void (*expired)(void *argument);
    void *argument;
    struct alarm *next;
};

struct test_clock {
    pthread_mutex_t lock; /* never held while an alarm expires */
    uint64_t now;
    uint64_t orders;
    struct alarm *alarms;
};

static uint64_t test_clock_now(void *owner)
{
    struct test_clock *clock = owner;
    pthread_mutex_lock(&clock->lock);
    uint64_t now = clock->now;
    pthread_mutex_unlock(&clock->lock);
    return now;
}

static void *test_clock_alarm_new(void *owner, void (*expired)(void *argument), void *argument)
{
    struct test_clock *clock = owner;
    struct alarm *alarm = calloc(1, sizeof *alarm);
    ASSERT(alarm);
    alarm->deadline = NOT_ARMED;
    alarm->expired = expired;
    alarm->argument = argument;
    pthread_mutex_lock(&clock->lock);
    alarm->next = clock->alarms;
    clock->alarms = alarm;
    pthread_mutex_unlock(&clock->lock);
    return alarm;
}

static void test_clock_alarm_free(void *owner, void *object)
{
    struct test_clock *clock = owner;
    pthread_mutex_lock(&clock->lock);
    struct alarm **link = &clock->alarms;
    while (*link != object) {
        ASSERT(*link);
        link = &(*link)->next;
    }
    *link = (*link)->next;
    pthread_mutex_unlock(&clock->lock);
    free(object);
}

static void test_clock_alarm_set(void *owner, void *object, uint64_t deadline_ns)
{
    struct test_clock *clock = owner;
    struct alarm *alarm = object;
    pthread_mutex_lock(&clock->lock);
    alarm->deadline = deadline_ns;
    alarm->order = ++clock->orders;
    pthread_mutex_unlock(&clock->lock);
}

static const struct clock_ops test_clock_ops = {
    .now = test_clock_now,
    .alarm_new = test_clock_alarm_new,
    .alarm_free = test_clock_alarm_free,
    .alarm_set = test_clock_alarm_set,
};

struct test_clock *test_clock_new(void)
{
    struct test_clock *clock = calloc(1, sizeof *clock);
    ASSERT(clock);
    pthread_mutex_init(&clock->lock, NULL);
    return clock;
}

void test_clock_free(struct test_clock *clock)
{
    if (!clock) {
        return;
    }
    ASSERT(!clock->alarms);
    pthread_mutex_destroy(&clock->lock);
    free(clock);
}

struct clock test_clock_clock(struct test_clock *clock)
{
    return (struct clock){.ops = &test_clock_ops, .owner = clock};
}

/* The armed alarm that expires first, or NULL. Call with the lock. */
static struct alarm *earliest(const struct test_clock *clock)
{
    struct alarm *best = NULL;
    for (struct alarm *alarm = clock->alarms; alarm; alarm = alarm->next) {
        if (alarm->deadline == NOT_ARMED) {
            continue;
        }
        if (!best || alarm->deadline < best->deadline ||
            (alarm->deadline == best->deadline && alarm->order < best->order)) {
            best = alarm;
        }
    }
    return best;
}

void test_clock_advance(struct test_clock *clock, uint64_t ns)
{
    uint64_t now = test_clock_now(clock);
    test_clock_advance_to(clock, ns < UINT64_MAX - now ? now + ns : UINT64_MAX - 1);
}

void test_clock_advance_to(struct test_clock *clock, uint64_t now_ns)
{
    pthread_mutex_lock(&clock->lock);
    struct alarm *alarm;
    while (clock->now <= now_ns && (alarm = earliest(clock)) && alarm->deadline <= now_ns) {
        /* An alarm set to the past expires at once, and time does not go back for it. */
        clock->now = alarm->deadline > clock->now ? alarm->deadline : clock->now;
        alarm->deadline = NOT_ARMED;
        void (*expired)(void *argument) = alarm->expired;
        void *argument = alarm->argument;
        pthread_mutex_unlock(&clock->lock);
        expired(argument); /* may set and free alarms */
        pthread_mutex_lock(&clock->lock);
    }
    clock->now = now_ns > clock->now ? now_ns : clock->now;
    pthread_mutex_unlock(&clock->lock);
}

uint64_t test_clock_next(struct test_clock *clock)
{
    pthread_mutex_lock(&clock->lock);
    struct alarm *alarm = earliest(clock);
    uint64_t deadline = alarm ? alarm->deadline : NOT_ARMED;
    pthread_mutex_unlock(&clock->lock);
    return deadline;
}
