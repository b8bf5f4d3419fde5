/*
 * A vCPU that is in a call to the machine holds nobody up who changes mappings, also when the call
 * has changed some itself.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <time.h>

#include <cmocka.h>
#include <pthread.h>

#include "base/bytes.h"
#include "engine/test_engine.h"
#include "x86/cpuid.h"

enum { RAM_SIZE = 1 << 20, CODE = 0x8000, FIRST_PAGE = 0x20000, SECOND_PAGE = 0x21000 };
enum { PATIENCE_MS = 10000 };

/* Real mode: read both pages, which are mapped then, and call the machine. */
static const uint8_t code[] = {
    0xb8, 0x00, 0x20, /* mov ax, 2000h */
    0x8e, 0xd8,       /* mov ds, ax */
    0xa0, 0x00, 0x00, /* mov al, [0] */
    0xa0, 0x00, 0x10, /* mov al, [1000h] */
    0xe6, 0x10,       /* out 10h, al */
    0xf4,             /* hlt */
};

struct machine {
    struct test_engine engine;
    _Atomic bool is_written;
};

/* The first store to a page that is mapped to read takes the mapping away everywhere. */
static void *write_second(void *argument)
{
    struct machine *machine = argument;
    assert_int_equal(memory_write(machine->engine.memory, SECOND_PAGE, "x", 1), 0);
    machine->is_written = true;
    return NULL;
}

static void port_write(void *owner, unsigned vcpu, uint16_t port, unsigned size, uint32_t value)
{
    struct machine *machine = owner;
    const struct timespec millisecond = {.tv_nsec = 1000000};
    pthread_t thread;
    assert_int_equal(memory_write(machine->engine.memory, FIRST_PAGE, "x", 1), 0);
    assert_int_equal(pthread_create(&thread, NULL, write_second, machine), 0);
    for (unsigned i = 0; i < PATIENCE_MS && !machine->is_written; i++) {
        nanosleep(&millisecond, NULL);
    }
    assert_true(machine->is_written);
    pthread_join(thread, NULL);
}

static void run_on(const struct engine_ops *ops)
{
    const struct memory_range ram = {0, RAM_SIZE};
    const struct cpuid_config model = {.model = CPU_MODEL_V2, .cpus = 1, .tsc_hz = 1000000000};
    struct machine machine = {0};
    struct cpuid_table *cpuid;
    struct cpu_state state;
    assert_int_equal(cpuid_table_new(&model, &cpuid), 0);
    struct engine_config config = {
        .cpuid = cpuid, .host = test_host(&machine), .cpus = 1, .cache_size = MIB(4)};
    config.host.port_write = port_write;
    assert_int_equal(test_engine_open(&machine.engine, ops, &ram, 1, config, 0), 0);
    assert_int_equal(memory_write(machine.engine.memory, CODE, code, sizeof code), 0);
    cpu_state_reset(&state, true);
    state.segment[CS].selector = 0;
    state.segment[CS].base = 0;
    state.rip = CODE;
    ops->set_state(machine.engine.vcpu, &state);
    assert_int_equal(ops->run(machine.engine.vcpu), EXIT_HALT);
    assert_true(machine.is_written);
    test_engine_close(&machine.engine);
    cpuid_table_free(cpuid);
}

static void calls_hold_nobody_up(void **state)
{
    run_on(&interp_engine);
    run_on(&translate_engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(calls_hold_nobody_up)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
