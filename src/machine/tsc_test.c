/* The rate of the TSC: the measured one is right, and every leaf that tells it tells the same. */
#include <time.h>

/* last: cmocka wants the standard headers before it */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "machine/vm_internal.h"
#include "x86/cpuid.h"

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_RAW, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint64_t difference(uint64_t a, uint64_t b)
{
    return a > b ? a - b : b - a;
}

/* A longer measurement, done plainly; the best of three, because a busy host may interrupt. */
static void test_rate(void **state)
{
    enum { ATTEMPTS = 3, LONG_NS = 100000000, PARTS_PER_MILLION = 200 };
    uint64_t best = UINT64_MAX, measured = 0;
    for (unsigned i = 0; i < ATTEMPTS; i++) {
        uint64_t hz = tsc_measure_hz();
        uint64_t ns = now_ns(), tsc = engine_host_tsc();
        nanosleep(&(struct timespec){.tv_nsec = LONG_NS}, NULL);
        ns = now_ns() - ns;
        tsc = engine_host_tsc() - tsc;
        uint64_t plain = (uint64_t)((unsigned __int128)tsc * 1000000000 / ns);
        if (difference(hz, plain) < best) {
            best = difference(hz, plain);
            measured = hz;
        }
    }
    assert_in_range(best, 0, measured / 1000000 * PARTS_PER_MILLION);
}

static struct cpuid_result ask(const struct cpuid_table *table, uint32_t leaf)
{
    struct cpuid_result result;
    cpuid_query(table, 0, leaf, 0, 0, 0, &result);
    return result;
}

/* Leaves 15H and 16H where the vendor has them, 40000010H everywhere. */
static void test_leaves(void **state)
{
    const struct cpuid_config config = {
        .model = CPU_MODEL_V2, .cpus = 1, .tsc_hz = tsc_measure_hz(), .x2apic = true};
    uint64_t khz = config.tsc_hz / 1000;
    struct cpuid_table *table;
    assert_int_equal(cpuid_table_new(&config, &table), 0);
    assert_int_equal(ask(table, 0x40000010).eax, khz);
    if (cpuid_vendor(table) == CPU_VENDOR_INTEL) {
        struct cpuid_result crystal = ask(table, 0x15);
        uint64_t told = (uint64_t)crystal.ecx * crystal.ebx / crystal.eax / 1000;
        assert_in_range(told, khz - 10, khz + 10);
        assert_in_range(ask(table, 0x16).eax, khz / 1000, khz / 1000 + 1);
    } else {
        assert_in_range(ask(table, 0).eax, 1, 0x14); /* no leaf 15H that could say otherwise */
    }
    cpuid_table_free(table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rate),
        cmocka_unit_test(test_leaves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
