/*
 * What the two measuring programs of guests share: the clock, and the lines that bench.c reads.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Several times, since a line may reach the reader late: the one that came soonest counts. */
static void tell_clock(void)
{
    for (unsigned i = 0; i < 20; i++) {
        printf("clock %llu\n", (unsigned long long)now_ns());
        fflush(stdout);
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    }
}

/* Is the word in a list that commas separate? */
static bool in_list(const char *list, const char *word)
{
    size_t length = strlen(word);
    for (const char *p = list; p && *p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL) {
        if (!strncmp(p, word, length) && (p[length] == ',' || !p[length])) {
            return true;
        }
    }
    return false;
}
