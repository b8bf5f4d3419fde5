/*
 * Time as the machine sees it. Devices never ask the host: they are given a clock, which is the
 * host's monotonic clock in normal use and a counter that tests advance by hand or that follows
 * the count of executed instructions (the deterministic mode).
 */
#pragma once

#include "base/loop.h"

struct clock_ops {
    /* Nanoseconds of virtual time; never goes backwards. Any thread. */
    uint64_t (*now)(void *owner);
    /* A one-shot alarm; `expired` runs without any device lock held. */
    void *(*alarm_new)(void *owner, void (*expired)(void *argument), void *argument);
    void (*alarm_free)(void *owner, void *alarm);
    /* Absolute virtual nanoseconds; UINT64_MAX disarms. Any thread. */
    void (*alarm_set)(void *owner, void *alarm, uint64_t deadline_ns);
};

/* Passed by value; `owner` is borrowed and outlives every device. */
struct clock {
    const struct clock_ops *ops;
    void *owner;
};

static inline uint64_t clock_now(struct clock clock)
{
    return clock.ops->now(clock.owner);
}

static inline void *clock_alarm_new(struct clock clock, void (*expired)(void *argument),
                                    void *argument)
{
    return clock.ops->alarm_new(clock.owner, expired, argument);
}

static inline void clock_alarm_free(struct clock clock, void *alarm)
{
    if (alarm) {
        clock.ops->alarm_free(clock.owner, alarm);
    }
}

static inline void clock_alarm_set(struct clock clock, void *alarm, uint64_t deadline_ns)
{
    clock.ops->alarm_set(clock.owner, alarm, deadline_ns);
}
