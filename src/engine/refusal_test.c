/*
 * Engines on a host that refuses one call: whichever it is, making a vCPU fails with a sentence
 * that says why, and leaves neither mappings nor descriptors behind; nor does one that is made and
 * freed. A timer alone is not missed. The calls are this program's own functions of the same name,
 * which the linker prefers.
 */
#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/error.h"
#include "engine/test_engine.h"
#include "x86/cpuid.h"

enum { NEVER = -1, RAM = 1 << 20, CALLS_MAX = 1000 };

static int calls_until_refusal = NEVER;
static int64_t mapped; /* bytes, of those who call mmap() by its name */

/* Is it this call? Then it must fail with ENOMEM, which no other reason gives. */
static bool refuses(void)
{
    if (calls_until_refusal == NEVER || calls_until_refusal-- != 0) {
        return false;
    }
    errno = ENOMEM;
    return true;
}

void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    if (refuses()) {
        return MAP_FAILED;
    }
    long area = syscall(SYS_mmap, address, size, protection, flags, fd, offset);
    if (area != -1 && !(flags & MAP_FIXED)) {
        mapped += (int64_t)size;
    }
    return (void *)area;
}

int munmap(void *address, size_t size)
{
    mapped -= (int64_t)size;
    return (int)syscall(SYS_munmap, address, size);
}

int mprotect(void *address, size_t size, int protection)
{
    return refuses() ? -1 : (int)syscall(SYS_mprotect, address, size, protection);
}

int memfd_create(const char *name, unsigned flags)
{
    return refuses() ? -1 : (int)syscall(SYS_memfd_create, name, flags);
}

int ftruncate(int fd, off_t size)
{
    return refuses() ? -1 : (int)syscall(SYS_ftruncate, fd, size);
}

int sigaltstack(const stack_t *stack, stack_t *ret_before)
{
    return refuses() ? -1 : (int)syscall(SYS_sigaltstack, stack, ret_before);
}

static bool refuses_timers;

int timer_create(clockid_t clock, struct sigevent *event, timer_t *ret_timer)
{
    int number;
    if (refuses_timers) {
        errno = EAGAIN;
        return -1;
    }
    long result = syscall(SYS_timer_create, clock, event, &number);
    *ret_timer = (timer_t)(intptr_t)number;
    return (int)result;
}

int timer_settime(timer_t timer, int flags, const struct itimerspec *time,
                  struct itimerspec *ret_before)
{
    return (int)syscall(SYS_timer_settime, (int)(intptr_t)timer, flags, time, ret_before);
}

int timer_delete(timer_t timer)
{
    return (int)syscall(SYS_timer_delete, (int)(intptr_t)timer);
}

static unsigned open_descriptors(void)
{
    unsigned count = 0;
    DIR *folder = opendir("/proc/self/fd");
    assert_non_null(folder);
    while (readdir(folder)) {
        count++;
    }
    closedir(folder);
    return count;
}

static int open_engine(struct test_engine *engine, const struct engine_ops *ops,
                       struct cpuid_table *cpuid)
{
    const struct memory_range ram = {0, RAM};
    const struct engine_config config = {
        .cpuid = cpuid, .host = test_host(NULL), .cpus = 1, .cache_size = MIB(4)};
    return test_engine_open(engine, ops, &ram, 1, config, 0);
}

static void nothing_is_left_behind(const struct engine_ops *ops)
{
    const struct cpuid_config model = {.model = CPU_MODEL_V2, .cpus = 1, .tsc_hz = 1000000000};
    struct cpuid_table *cpuid;
    struct test_engine engine;
    assert_int_equal(cpuid_table_new(&model, &cpuid), 0);
    int errors = 0;
    bool is_refused = true;
    for (int n = 0; is_refused && n < CALLS_MAX; n++) {
        int64_t mapped_before = mapped;
        unsigned descriptors = open_descriptors();
        trail_clear();
        calls_until_refusal = n;
        int result = open_engine(&engine, ops, cpuid);
        is_refused = calls_until_refusal == NEVER;
        calls_until_refusal = NEVER;
        if (result) {
            assert_int_equal(result, -ENOMEM);
            assert_non_null(strstr(trail_text(), "Cannot allocate memory"));
            errors++;
        }
        test_engine_close(&engine);
        assert_int_equal(mapped - mapped_before, 0);
        assert_int_equal(open_descriptors(), descriptors);
    }
    assert_false(is_refused); /* the last one was refused nothing */
    assert_in_range(errors, 8, CALLS_MAX);
    cpuid_table_free(cpuid);
}

static void interp_leaves_nothing_behind(void **state)
{
    nothing_is_left_behind(&interp_engine);
}

static void translate_leaves_nothing_behind(void **state)
{
    nothing_is_left_behind(&translate_engine);
}

/* It costs samples and hot code, and is told. */
static void a_timer_is_not_missed(void **state)
{
    const struct cpuid_config model = {.model = CPU_MODEL_V2, .cpus = 1, .tsc_hz = 1000000000};
    struct cpuid_table *cpuid;
    struct test_engine engine;
    assert_int_equal(cpuid_table_new(&model, &cpuid), 0);
    for (unsigned refused = 0; refused < 2; refused++) {
        refuses_timers = refused;
        assert_int_equal(open_engine(&engine, &translate_engine, cpuid), 0);
        refuses_timers = false;
        const struct engine_counters *counters = translate_engine.counters(engine.vcpu);
        assert_int_equal(counters->values[COUNT_SAMPLERS_REFUSED], refused);
        test_engine_close(&engine);
    }
    cpuid_table_free(cpuid);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(interp_leaves_nothing_behind),
        cmocka_unit_test(translate_leaves_nothing_behind),
        cmocka_unit_test(a_timer_is_not_missed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
