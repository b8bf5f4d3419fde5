/*
 * The event loop: one thread that waits for descriptors, timers and posted calls.
 *
 * Purpose: the home of everything that is not a vCPU: timers of devices, console input,
 *          completions of disk requests.
 * Threads: loop_run() belongs to one thread; callbacks run on it. timer_arm(), timer_disarm() and
 *          loop_post() may be called from any thread; everything else from the loop's thread or
 *          before loop_run() starts.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct loop;
struct watch;
struct timer;

int loop_new(struct loop **ret_loop) __attribute__((warn_unused_result));
/* NULL is fine. Watches and timers must have been freed before. */
void loop_free(struct loop *loop);

/* Serve events until loop_stop(). Returns 0, or a negative errno if the host refuses. */
int loop_run(struct loop *loop) __attribute__((warn_unused_result));
/* Make loop_run() return soon. Any thread; async-signal-safe. */
void loop_stop(struct loop *loop);

/*
 * Call `function(owner)` once on the loop's thread. Any thread. Calls run in the order posted.
 * Never fails: the node is allocated, and running out of that little memory aborts.
 */
void loop_post(struct loop *loop, void (*function)(void *owner), void *owner);

enum { LOOP_READABLE = 1, LOOP_WRITABLE = 2, LOOP_HANGUP = 4 };

/*
 * Watch `fd` (borrowed, must outlive the watch) for LOOP_* `events`, level-triggered. `ready` gets
 * the LOOP_* bits that hold; LOOP_HANGUP is always reported.
 */
int watch_new(struct loop *loop, int fd, unsigned events,
              void (*ready)(void *owner, unsigned events), void *owner, struct watch **ret_watch)
    __attribute__((warn_unused_result));
/* Change the set of events; 0 pauses the watch without losing it. */
int watch_set(struct watch *watch, unsigned events) __attribute__((warn_unused_result));
void watch_free(struct watch *watch);

/*
 * A one-shot timer on the host's CLOCK_MONOTONIC. `expired` runs on the loop's thread at or after
 * the deadline; it may arm the timer again.
 */
struct timer *timer_new(struct loop *loop, void (*expired)(void *owner), void *owner);
void timer_free(struct timer *timer);
/* Any thread. `deadline_ns` is absolute CLOCK_MONOTONIC time; an armed timer is moved. */
void timer_arm(struct timer *timer, uint64_t deadline_ns);
void timer_disarm(struct timer *timer);
