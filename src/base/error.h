/*
 * Errors with a trail.
 *
 * A function that can fail returns 0 or a negative errno. Where a failure is first seen, fail()
 * also stores a sentence for people in a thread-local trail; callers on the way up may add their
 * own line with fail() again (the newest line comes first when printed). Only main() and an API
 * reply read the trail; rooms below never print.
 */
#pragma once

#include <errno.h>

/*
 * Record a sentence for the user and return `error` (a negative errno), so that a failing
 * function can end with `return fail(-EACCES, "open disk '%s'", path);`. Any thread.
 */
#undef fail /* cmocka has one that no test of ours calls */
#define fail(error, ...) fail_at((error), __FILE__, __LINE__, __VA_ARGS__)
int fail_at(int error, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5), cold));

/*
 * The trail of this thread as text: newest sentence first, joined by ": ". The pointer stays
 * valid until the next fail() or trail_clear() on the same thread. Never NULL; empty if nothing
 * was recorded.
 */
const char *trail_text(void);

/* Forget the trail of this thread: called where an error was handled and does not travel on. */
void trail_clear(void);
