/* The life of a machine: what the guest has asked for is not forgotten while the machine stops. */
#include "machine/vm.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* last: cmocka wants the standard headers before it */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/error.h"
#include "machine/vm_internal.h"

enum { PATIENCE_S = 30, EXIT_VALUE = 1 };

/*
 * A Multiboot kernel at 1 MiB. It counts in memory, which a reset leaves alone, how often it was
 * started: the first time it asks for a reset, the second time it ends the machine.
 */
static const unsigned char kernel[] = {
    0x02, 0xb0,       0xad, 0x1b, 0x00, 0x00, 0x01, 0x00, 0xfe,
    0x4f, 0x51,       0xe4, /* magic, flags, sum */
    0x00, 0x00,       0x10, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00,
    0x00, 0x00,       0x00,                                     /* header, load, end */
    0x00, 0x00,       0x00, 0x00, 0x20, 0x00, 0x10, 0x00,       /* end of BSS, entry */
    0xff, 0x05,       0x00, 0x00, 0x20, 0x00,                   /* inc [200000h] */
    0x83, 0x3d,       0x00, 0x00, 0x20, 0x00, 0x02,             /* cmp [200000h], 2 */
    0x74, 0x09,                                                 /* je end */
    0xb0, 0x06,       0x66, 0xba, 0xf9, 0x0c, 0xee, 0xeb, 0xfe, /* out 0cf9h, 6; jmp . */
    0xb8, EXIT_VALUE, 0x00, 0x00, 0x00, 0xe6, 0xf4, 0xeb, 0xfe, /* end: out 0f4h, eax; jmp . */
};

static void on_timeout(void *owner)
{
    vm_request_end(owner, VM_END_QUIT, 0);
}

static void resume(void *owner)
{
    vm_resume(owner);
}

/*
 * On the loop's thread, which does the reset that the guest asks for meanwhile: behind this, and
 * before what is posted here.
 */
static void pause_at_reset(void *owner)
{
    struct vm *vm = owner;
    const struct timespec millisecond = {.tv_nsec = 1000000};
    for (unsigned i = 0; i < PATIENCE_S * 1000 && !vm->stop; i++) {
        nanosleep(&millisecond, NULL);
    }
    vm_pause(vm);
    assert_int_equal(vm_life(vm), VM_PAUSED);
    loop_post(vm_loop(vm), resume, vm);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void reset_survives_a_pause(void **state)
{
    char path[] = "/tmp/doppel-vm-test-XXXXXX";
    int fd = mkstemp(path);
    assert_int_equal(write(fd, kernel, sizeof kernel), sizeof kernel);
    close(fd);
    struct vm_config config;
    struct vm *vm;
    struct vm_end end;
    vm_config_init(&config);
    assert_int_equal(vm_config_set(&config, "kernel", path), 0);
    assert_int_equal(vm_config_set(&config, "engine", "interp"), 0);
    assert_int_equal(vm_config_set(&config, "debug-exit", "0xf4"), 0);
    assert_int_equal(vm_new(&config, &vm), 0);
    unlink(path);
    assert_int_equal(vm_start(vm), 0);
    struct timer *timer = timer_new(vm_loop(vm), on_timeout, vm);
    timer_arm(timer, now_ns() + PATIENCE_S * 1000000000ull);
    loop_post(vm_loop(vm), pause_at_reset, vm);
    vm_run(vm, &end);
    assert_int_equal(end.kind, VM_END_DEBUG_EXIT);
    assert_int_equal(end.value, EXIT_VALUE);
    timer_free(timer);
    vm_free(vm);
    vm_config_fini(&config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(reset_survives_a_pause)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
