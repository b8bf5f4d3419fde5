/*
 * Virtual time on the host's clock. Each alarm keeps its virtual deadline, and the loop's timer
 * follows it: whoever moves either does it under the lock, and a timer that fires looks whether
 * its alarm is due.
 */
#include "base/host_clock.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "base/assert.h"

static const uint64_t NOT_ARMED = UINT64_MAX;

struct alarm {
    struct host_clock *clock; /* borrowed */
    struct timer *timer;
    uint64_t deadline; /* virtual */
    void (*expired)(void *argument);
    void *argument;
    struct alarm *previous, *next;
};

struct host_clock {
    struct loop *loop; /* borrowed */
    /* Host time at which virtual time is 0; after a restore it may be before the host's own 0. */
    _Atomic uint64_t origin;
    _Atomic bool is_stopped;
    _Atomic uint64_t stopped_at; /* virtual time, while it stands still */
    pthread_mutex_t lock;
    struct alarm *alarms;
};

static uint64_t host_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint64_t virtual_now(const struct host_clock *clock)
{
    return atomic_load(&clock->is_stopped) ? atomic_load(&clock->stopped_at)
                                           : host_now() - atomic_load(&clock->origin);
}

/* Let the timer follow the deadline. Call with the lock. */
static void follow(struct alarm *alarm)
{
    if (alarm->deadline == NOT_ARMED || atomic_load(&alarm->clock->is_stopped)) {
        timer_disarm(alarm->timer);
        return;
    }
    /* By way of what remains: the sum of origin and deadline need not be in the host's range. */
    uint64_t now = host_now();
    uint64_t passed = now - atomic_load(&alarm->clock->origin);
    uint64_t remaining = alarm->deadline > passed ? alarm->deadline - passed : 0;
    timer_arm(alarm->timer, remaining < UINT64_MAX - now ? now + remaining : UINT64_MAX - 1);
}

static void alarm_timer_expired(void *owner)
{
    struct alarm *alarm = owner;
    struct host_clock *clock = alarm->clock;
    pthread_mutex_lock(&clock->lock);
    bool is_due = !atomic_load(&clock->is_stopped) && alarm->deadline != NOT_ARMED &&
                  alarm->deadline <= virtual_now(clock);
    if (is_due) {
        alarm->deadline = NOT_ARMED;
    } else {
        follow(alarm); /* it was moved, or the clock was set or stopped, while the timer fired */
    }
    pthread_mutex_unlock(&clock->lock);
    if (is_due) {
        alarm->expired(alarm->argument); /* may free the alarm */
    }
}

static uint64_t host_clock_now(void *owner)
{
    return virtual_now(owner);
}

static void *host_clock_alarm_new(void *owner, void (*expired)(void *argument), void *argument)
{
    struct host_clock *clock = owner;
    struct alarm *alarm = calloc(1, sizeof *alarm);
    ASSERT(alarm);
    alarm->clock = clock;
    alarm->deadline = NOT_ARMED;
    alarm->expired = expired;
    alarm->argument = argument;
    alarm->timer = timer_new(clock->loop, alarm_timer_expired, alarm);
    pthread_mutex_lock(&clock->lock);
    alarm->next = clock->alarms;
    if (alarm->next) {
        alarm->next->previous = alarm;
    }
    clock->alarms = alarm;
    pthread_mutex_unlock(&clock->lock);
    return alarm;
}

static void host_clock_alarm_free(void *owner, void *object)
{
    struct host_clock *clock = owner;
    struct alarm *alarm = object;
    pthread_mutex_lock(&clock->lock);
    *(alarm->previous ? &alarm->previous->next : &clock->alarms) = alarm->next;
    if (alarm->next) {
        alarm->next->previous = alarm->previous;
    }
    pthread_mutex_unlock(&clock->lock);
    timer_free(alarm->timer);
    free(alarm);
}

static void host_clock_alarm_set(void *owner, void *object, uint64_t deadline_ns)
{
    struct host_clock *clock = owner;
    struct alarm *alarm = object;
    pthread_mutex_lock(&clock->lock);
    alarm->deadline = deadline_ns;
    follow(alarm);
    pthread_mutex_unlock(&clock->lock);
}

static const struct clock_ops host_clock_ops = {
    .now = host_clock_now,
    .alarm_new = host_clock_alarm_new,
    .alarm_free = host_clock_alarm_free,
    .alarm_set = host_clock_alarm_set,
};

int host_clock_new(struct loop *loop, struct host_clock **ret_clock)
{
    struct host_clock *clock = calloc(1, sizeof *clock);
    ASSERT(clock);
    clock->loop = loop;
    pthread_mutex_init(&clock->lock, NULL);
    atomic_init(&clock->origin, host_now());
    *ret_clock = clock;
    return 0;
}

void host_clock_free(struct host_clock *clock)
{
    if (!clock) {
        return;
    }
    ASSERT(!clock->alarms);
    pthread_mutex_destroy(&clock->lock);
    free(clock);
}

struct clock host_clock_clock(struct host_clock *clock)
{
    return (struct clock){.ops = &host_clock_ops, .owner = clock};
}

static void follow_all(struct host_clock *clock)
{
    for (struct alarm *alarm = clock->alarms; alarm; alarm = alarm->next) {
        follow(alarm);
    }
}

void host_clock_stop(struct host_clock *clock, uint64_t now_ns)
{
    pthread_mutex_lock(&clock->lock);
    atomic_store(&clock->stopped_at, now_ns);
    atomic_store(&clock->is_stopped, true);
    follow_all(clock);
    pthread_mutex_unlock(&clock->lock);
}

void host_clock_set(struct host_clock *clock, uint64_t now_ns)
{
    pthread_mutex_lock(&clock->lock);
    atomic_store(&clock->origin, host_now() - now_ns);
    atomic_store(&clock->is_stopped, false);
    follow_all(clock);
    pthread_mutex_unlock(&clock->lock);
}
