/* The KVM clock: what the guest computes from its page is the clock. */
#include "device/paravirt/kvmclock.c" /* its struct, to check that its visit names every field */

#include "device/test_board.h"

struct fixture {
    struct test_clock *clock;
    struct memory *memory;
    struct device *device;
    uint64_t tsc_hz;
};

static uint64_t tsc_now(void *owner)
{
    struct fixture *f = owner;
    uint64_t ns = clock_now(test_clock_clock(f->clock));
    return (uint64_t)((unsigned __int128)ns * f->tsc_hz / NS_PER_S) + 12345;
}

static uint64_t wall_now(void *owner)
{
    struct fixture *f = owner;
    return 1700000000ull * NS_PER_S + 250 + clock_now(test_clock_clock(f->clock));
}

static void fixture_new(struct fixture *f, uint64_t tsc_hz)
{
    static const struct memory_range ram = {0, 0x4000};
    f->tsc_hz = tsc_hz;
    f->clock = test_clock_new();
    assert_int_equal(memory_new(&ram, 1, "kvmclock-test", &f->memory), 0);
    const struct kvmclock_config config = {.cpus = 2,
                                           .memory = f->memory,
                                           .tsc_hz = tsc_hz,
                                           .clock = test_clock_clock(f->clock),
                                           .tsc_now = tsc_now,
                                           .wall_now = wall_now,
                                           .owner = f};
    assert_int_equal(kvmclock_new(&config, &f->device), 0);
}

static void fixture_free(struct fixture *f)
{
    device_free(f->device);
    memory_free(f->memory);
    test_clock_free(f->clock);
}

/* What a guest does. */
static uint64_t guest_time(struct fixture *f, gpa_t gpa, struct vcpu_time *ret_page)
{
    assert_int_equal(memory_read(f->memory, gpa, ret_page, sizeof *ret_page), 0);
    assert_int_equal(ret_page->version & 1, 0);
    uint64_t delta = tsc_now(f) - ret_page->tsc_timestamp;
    delta = ret_page->tsc_shift < 0 ? delta >> -ret_page->tsc_shift : delta << ret_page->tsc_shift;
    return ret_page->system_time +
           (uint64_t)((unsigned __int128)delta * ret_page->tsc_to_system_mul >> 32);
}

static void test_time(void **state)
{
    static const uint64_t rates[] = {2500000000, 1000000000, 999999999,  4294967296,
                                     33000000,   1000000,    10000000000};
    for (size_t i = 0; i < ARRAY_SIZE(rates); i++) {
        struct fixture f;
        struct vcpu_time page;
        fixture_new(&f, rates[i]);
        test_clock_advance(f.clock, 777);
        assert_true(kvmclock_msr_write(f.device, 1, MSR_SYSTEM_TIME_NEW, 0x1ff0 | 1));
        test_clock_advance(f.clock, 3600ull * NS_PER_S); /* the page crosses a page of RAM */
        uint64_t now = clock_now(test_clock_clock(f.clock)), time = guest_time(&f, 0x1ff0, &page);
        assert_in_range(time, now - 5000, now + 5000);
        assert_int_equal(page.flags, FLAG_TSC_STABLE);
        assert_int_equal(page.version, 2);
        kvmclock_refresh(f.device, true);
        assert_in_range(guest_time(&f, 0x1ff0, &page), now - 2000, now + 2000);
        assert_int_equal(page.flags, FLAG_TSC_STABLE | FLAG_STOPPED);
        assert_int_equal(page.version, 4);
        assert_true(kvmclock_msr_write(f.device, 1, MSR_SYSTEM_TIME_NEW, 0));
        kvmclock_refresh(f.device, false);
        guest_time(&f, 0x1ff0, &page);
        assert_int_equal(page.version, 4); /* switched off */
        fixture_free(&f);
    }
}

static void test_wall_clock(void **state)
{
    struct fixture f;
    struct wall_clock wall;
    uint64_t value;
    fixture_new(&f, 2000000000);
    test_clock_advance(f.clock, 5ull * NS_PER_S);
    assert_true(kvmclock_msr_write(f.device, 0, MSR_WALL_CLOCK, 0x2000));
    assert_int_equal(memory_read(f.memory, 0x2000, &wall, sizeof wall), 0);
    assert_int_equal(wall.version, 2);
    assert_int_equal(wall.seconds, 1700000000);
    assert_int_equal(wall.nanoseconds, 250);
    assert_true(kvmclock_msr_read(f.device, 1, MSR_WALL_CLOCK_NEW, &value));
    assert_int_equal(value, 0x2000);
    assert_false(kvmclock_msr_read(f.device, 1, 0x13, &value));
    assert_false(kvmclock_msr_write(f.device, 1, 0x4b564d02, 0));
    /* what is not RAM gets nothing, and nobody complains */
    assert_true(kvmclock_msr_write(f.device, 0, MSR_WALL_CLOCK, 0x3ffc));
    assert_true(kvmclock_msr_write(f.device, 0, MSR_SYSTEM_TIME, UINT64_MAX));
    fixture_free(&f);
}

static void test_config(void **state)
{
    struct device *device = NULL;
    const struct kvmclock_config config = {.cpus = 1, .tsc_hz = 0};
    assert_int_equal(kvmclock_new(&config, &device), -EINVAL);
    assert_null(device);
}

static void test_visit(void **state)
{
    struct fixture f;
    struct vcpu_time page;
    fixture_new(&f, 2000000000);
    test_clock_advance(f.clock, 1000);
    kvmclock_msr_write(f.device, 0, MSR_SYSTEM_TIME_NEW, 0x1001);
    kvmclock_msr_write(f.device, 1, MSR_SYSTEM_TIME_NEW, 0x1041);
    kvmclock_msr_write(f.device, 0, MSR_WALL_CLOCK_NEW, 0x1100);
    struct kvmclock *k = kvmclock_of(f.device);
#define CLOCK(member) VISIT_DERIVED(struct kvmclock, member)
    assert_int_equal(VISIT_CHECK(struct kvmclock, k, device_visit, f.device, CLOCK(device),
                                 CLOCK(config), CLOCK(multiplier), CLOCK(shift), CLOCK(vcpus)),
                     0);
    assert_int_equal(VISIT_CHECK(struct kvmclock_vcpu, &k->vcpus[1], device_visit, f.device, {0}),
                     0);
    f.device->ops->reset(f.device);
    kvmclock_refresh(f.device, false);
    guest_time(&f, 0x1040, &page);
    assert_int_equal(page.version, 2); /* reset switched it off */
    fixture_free(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_time),
                                       cmocka_unit_test(test_wall_clock),
                                       cmocka_unit_test(test_config), cmocka_unit_test(test_visit)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
