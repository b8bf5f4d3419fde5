/*
 * The rate of the host's time stamp counter, measured against CLOCK_MONOTONIC_RAW: what the guest
 * is told as the frequency of its own. The error of 10 ms is below 10 ppm.
 */
#include <time.h>

#include "machine/vm_internal.h"

enum { ATTEMPTS = 8, MEASURE_NS = 10000000 };

struct sample {
    uint64_t tsc, ns;
};

static uint64_t raw_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_RAW, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* The tightest of a few readings: a preemption in between would spoil a single one. */
static struct sample sample_take(void)
{
    struct sample best = {0};
    uint64_t best_width = UINT64_MAX;
    for (unsigned i = 0; i < ATTEMPTS; i++) {
        uint64_t before = engine_host_tsc();
        uint64_t ns = raw_ns();
        uint64_t width = engine_host_tsc() - before;
        if (width < best_width) {
            best_width = width;
            best = (struct sample){.tsc = before + width / 2, .ns = ns};
        }
    }
    return best;
}

uint64_t tsc_measure_hz(void)
{
    struct sample start = sample_take();
    struct timespec pause = {.tv_nsec = MEASURE_NS};
    nanosleep(&pause, NULL); /* cut short by a signal, the measurement is only less precise */
    struct sample end = sample_take();
    uint64_t ns = end.ns - start.ns;
    if (ns == 0) {
        ns = 1;
    }
    return (uint64_t)((unsigned __int128)(end.tsc - start.tsc) * 1000000000 / ns);
}
