/*
 * The run loop, where another vCPU comes between: a unit is made only of bytes whose change will be
 * noticed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/test_engine.h"
#include "engine/translate/internal.h"
#include "engine/translate/test_guest.h"
#include "x86/cpuid.h"

enum {
    START = 0xc000,
    FIRST = 0xa000, /* these two share an instruction */
    SECOND = FIRST + PAGE_SIZE,
    ACROSS = SECOND - 3,
};

static void put(struct test_engine *engine, gpa_t at, const void *bytes, size_t size)
{
    assert_int_equal(memory_write(engine->memory, at, bytes, size), 0);
}

static void start_at(struct test_engine *engine, uint64_t rip, uint64_t rdi)
{
    struct cpu_state state;
    test_guest_state(&state, rip);
    state.gpr[RDI] = rdi;
    engine->ops->set_state(engine->vcpu, &state);
}

/* Run to the HLT; what is in EAX then. */
static uint64_t run(struct test_engine *engine)
{
    struct cpu_state s;
    assert_int_equal(engine->ops->run(engine->vcpu), EXIT_HALT);
    engine->ops->get_state(engine->vcpu, &s);
    return s.gpr[RAX];
}

/* Another vCPU whose cache is full while this one waits, at the n-th time. */
struct forgetter {
    struct translate_vm *vm;
    int waits;
};

static void no_drop(void *owner, uint64_t first, uint64_t count, bool write_only)
{
}

static void forget(void *owner)
{
    struct forgetter *forgetter = owner;
    if (forgetter->vm && forgetter->waits-- == 0) {
        pthread_mutex_lock(&forgetter->vm->lock);
        units_forget(forgetter->vm);
        pthread_mutex_unlock(&forgetter->vm->lock);
    }
}

static void no_code_written(void *owner, gpa_t gpa, uint64_t length)
{
}

static void nothing_is_translated_from_pages_that_are_not_watched(void **state)
{
    for (int waits = -1; waits < 2; waits++) {
        const struct memory_range ram = {0, TEST_GUEST_RAM};
        const struct cpuid_config model = {.model = CPU_MODEL_V2, .cpus = 1, .tsc_hz = 1000000000};
        struct cpuid_table *cpuid;
        struct test_engine engine;
        struct forgetter forgetter = {.waits = waits};
        const struct memory_listener listener = {.drop = no_drop,
                                                 .quiesce = forget,
                                                 .code_written = no_code_written,
                                                 .owner = &forgetter};
        assert_int_equal(cpuid_table_new(&model, &cpuid), 0);
        const struct engine_config config = {
            .cpuid = cpuid, .host = test_host(NULL), .cpus = 1, .cache_size = MIB(4)};
        assert_int_equal(test_engine_open(&engine, &translate_engine, &ram, 1, config, 0), 0);
        memory_listen(engine.memory, &listener);
        assert_int_equal(test_guest_map(engine.memory), 0);
        put(&engine, ACROSS, "\xb8\x01\0\0\0\xf4", 6); /* mov eax, 1; hlt */
        /* mov [FIRST], al; mov [SECOND + 100H], al; hlt */
        put(&engine, START, "\x88\x04\x25\x00\xa0\0\0\x88\x04\x25\x00\xb1\0\0\xf4", 15);
        /* mov byte [ACROSS + 1], 2; jmp rdi */
        put(&engine, START + 0x100, "\xc6\x04\x25\xfe\xaf\0\0\x02\xff\xe7", 10);
        start_at(&engine, START, 0);
        run(&engine); /* both pages may be written now: marking one as code waits */
        forgetter.vm = (struct translate_vm *)engine.vm;
        start_at(&engine, ACROSS, 0);
        assert_int_equal(run(&engine), 1);
        assert_true(forgetter.waits < 0);
        start_at(&engine, START + 0x100, ACROSS);
        assert_int_equal(run(&engine), 2);
        test_engine_close(&engine);
        cpuid_table_free(cpuid);
    }
}

/*
 * Instructions of 15 bytes, most of them prefixes that mean nothing: the host's own limit is 15
 * bytes, too, and a copy has some that the guest's instruction has not (REX, a displacement). ESI
 * is B000H, ECX is 77H, EAX is 0; behind it EAX is loaded from [RSI].
 */
static void instructions_of_the_greatest_length_run(void **state)
{
    static const struct {
        const char *bytes;
        uint64_t result;
    } cases[] = {
        /* mov dword [rsi], 11223344h; mov word [rsi], 1122h; mov [rsi], cl */
        {"\xf3\xf3\xf3\xf3\xf3\xf3\xf3\xf3\xf3\xc7\x06\x44\x33\x22\x11", 0x11223344},
        {"\xf2\xf2\xf2\xf2\xf2\xf2\xf2\xf2\xf2\xc7\x06\x44\x33\x22\x11", 0x11223344},
        {"\x66\xf3\xf2\xf3\xf2\x2e\x66\xf3\xf3\xf3\xf3\xc7\x06\x22\x11", 0x1122},
        {"\xf3\xf3\xf3\xf3\xf3\xf3\xf3\xf3\xf3\xf3\xf3\xf3\xf3\x88\x0e", 0x77},
        /* lock add dword [rsi], 11223344h */
        {"\xf0\xf0\xf0\xf0\xf0\xf0\xf0\xf0\xf0\x81\x06\x44\x33\x22\x11", 0x11223344},
        /* popcnt ecx, ecx; mov [rsi], ecx */
        {"\xf3\xf3\xf3\xf3\xf3\xf2\xf2\xf3\xf3\xf3\x0f\xb8\xc9\x89\x0e", 6},
        /* tzcnt ecx, eax, which CPU model v2 does not know: bsf, which leaves ECX; mov [rsi], ecx
         */
        {"\xf3\xf3\xf3\xf3\xf3\xf3\xf3\xf3\xf2\xf3\x0f\xbc\xc8\x89\x0e", 0x77},
        {"\xf2\xf2\xf2\xf3\x66\xf3\xf3\xf2\xf2\xf3\x0f\xbc\xc8\x89\x0e", 0x77},
    };
    const struct engine_ops *const engines[] = {&interp_engine, &translate_engine};
    for (unsigned i = 0; i < 2 * ARRAY_SIZE(cases); i++) {
        const struct memory_range ram = {0, TEST_GUEST_RAM};
        const struct cpuid_config model = {.model = CPU_MODEL_V2, .cpus = 1, .tsc_hz = 1000000000};
        struct cpuid_table *cpuid;
        struct test_engine engine;
        assert_int_equal(cpuid_table_new(&model, &cpuid), 0);
        const struct engine_config config = {
            .cpuid = cpuid, .host = test_host(NULL), .cpus = 1, .cache_size = MIB(4)};
        assert_int_equal(test_engine_open(&engine, engines[i % 2], &ram, 1, config, 0), 0);
        assert_int_equal(test_guest_map(engine.memory), 0);
        put(&engine, START, "\xbe\0\xb0\0\0\xb9\x77\0\0\0\x31\xc0", 12);
        put(&engine, START + 12, cases[i / 2].bytes, INSN_MAX_LENGTH);
        put(&engine, START + 12 + INSN_MAX_LENGTH, "\x8b\x06\xf4", 3);
        start_at(&engine, START, 0);
        assert_int_equal(run(&engine), cases[i / 2].result);
        test_engine_close(&engine);
        cpuid_table_free(cpuid);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_translated_from_pages_that_are_not_watched),
        cmocka_unit_test(instructions_of_the_greatest_length_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
