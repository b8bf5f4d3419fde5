/*
 * Assertions about ourselves, on in release builds too: what fails here is our mistake, never the
 * guest's and never the host's.
 */
#pragma once

/* Print the broken condition on stderr and abort. Called by ASSERT only. */
_Noreturn void assert_failed(const char *condition, const char *file, int line)
    __attribute__((cold));

#define ASSERT(condition)                                                                          \
    (__builtin_expect(!!(condition), 1) ? (void)0 : assert_failed(#condition, __FILE__, __LINE__))
