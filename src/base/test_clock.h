/*
 * A clock that stands still until it is told to advance: for unit tests of devices, and for the
 * deterministic mode, where the count of executed instructions drives it.
 *
 * Threads: as struct clock says; test_clock_advance() belongs to one thread at a time, and alarms
 *          expire on it.
 */
#pragma once

#include "base/clock.h"

struct test_clock;

/* Virtual time begins at 0. */
struct test_clock *test_clock_new(void);
/* NULL is fine. Alarms must have been freed before. */
void test_clock_free(struct test_clock *clock);

/* What devices are given. */
struct clock test_clock_clock(struct test_clock *clock);

/*
 * Let `ns` nanoseconds pass. Alarms that fall due expire in the order of their deadlines (equal
 * ones in the order in which they were set), each at exactly its own time; what they arm within
 * the span expires too.
 */
void test_clock_advance(struct test_clock *clock, uint64_t ns);
/* The same, up to an absolute time; a time that has passed changes nothing. */
void test_clock_advance_to(struct test_clock *clock, uint64_t now_ns);
/* The earliest deadline of an armed alarm, or UINT64_MAX. */
uint64_t test_clock_next(struct test_clock *clock);
