/*
 * The clock of a machine in normal use: virtual time is the host's CLOCK_MONOTONIC minus an
 * offset, and alarms are timers of the event loop.
 *
 * Threads: as struct clock says; host_clock_new(), host_clock_free(), alarm_new and alarm_free on
 *          the loop's thread or while the loop does not run. Alarms expire on the loop's thread.
 *          An alarm that is moved or disarmed before its function is entered does not expire.
 */
#pragma once

#include "base/clock.h"

struct host_clock;

/* Virtual time begins at 0. The loop is borrowed. */
int host_clock_new(struct loop *loop, struct host_clock **ret_clock)
    __attribute__((warn_unused_result));
/* NULL is fine. Alarms must have been freed before. */
void host_clock_free(struct host_clock *clock);

/* What devices are given. */
struct clock host_clock_clock(struct host_clock *clock);

/*
 * Let virtual time stand still at `now_ns`, until it is set: no alarm expires meanwhile, however
 * long ago it was due. Any thread, while no vCPU runs.
 */
void host_clock_stop(struct host_clock *clock, uint64_t now_ns);
/*
 * Let virtual time go on from `now_ns`: after a restore, or when a paused machine goes on (time
 * does not pass for it meanwhile). Alarms keep their virtual deadlines. Any thread, while no
 * vCPU runs: this is the one way in which virtual time may go backwards.
 */
void host_clock_set(struct host_clock *clock, uint64_t now_ns);
