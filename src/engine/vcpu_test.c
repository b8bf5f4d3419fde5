/*
 * What waits for a vCPU moves with its state: INIT, SIPI, NMI, interrupts and the end of HLT reach
 * it on the engine that the state is set on, from each engine to each.
 */
#include "engine/vcpu.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "engine/test_engine.h"
#include "x86/cpuid.h"

/* Real mode throughout. Every handler is a HLT, which ends run(); `jmp .` would not end. */
enum {
    RAM_SIZE = 1 << 20,
    NMI_HANDLER = 0x6000,
    IRQ_HANDLER = 0x6800,
    SIPI_PAGE = 7,
    CODE = 0x8000
};
enum { IRQ_VECTOR = 0x20 };

static const struct engine_ops *const engines[] = {&interp_engine, &translate_engine};

struct side {
    struct test_engine engine;
    struct cpuid_table *cpuid;
    unsigned interrupts; /* that the machine's interrupt controller still has */
};

static int acknowledge(void *owner, unsigned vcpu)
{
    struct side *side = owner;
    return side->interrupts && side->interrupts-- ? IRQ_VECTOR : -1;
}

static void put(struct side *side, gpa_t at, const void *bytes, size_t size)
{
    assert_int_equal(memory_write(side->engine.memory, at, bytes, size), 0);
}

static void side_open(struct side *side, const struct engine_ops *ops, unsigned index)
{
    const struct memory_range ram = {0, RAM_SIZE};
    const struct cpuid_config model = {.model = CPU_MODEL_V2, .cpus = 2, .tsc_hz = 1000000000};
    *side = (struct side){0};
    assert_int_equal(cpuid_table_new(&model, &side->cpuid), 0);
    struct engine_config config = {
        .cpuid = side->cpuid, .host = test_host(side), .cpus = 2, .cache_size = MIB(4)};
    config.host.interrupt_acknowledge = acknowledge;
    assert_int_equal(test_engine_open(&side->engine, ops, &ram, 1, config, index), 0);
    static const uint16_t nmi[2] = {NMI_HANDLER, 0}, irq[2] = {IRQ_HANDLER, 0};
    put(side, 4 * EXCEPTION_NMI, nmi, sizeof nmi);
    put(side, 4 * IRQ_VECTOR, irq, sizeof irq);
    put(side, NMI_HANDLER, "\xf4", 1);
    put(side, IRQ_HANDLER, "\xf4", 1);
    put(side, SIPI_PAGE << 12, "\xf4", 1);
    put(side, CODE, "\xeb\xfe", 2);
}

static void side_close(struct side *side)
{
    test_engine_close(&side->engine);
    cpuid_table_free(side->cpuid);
}

static void carry(struct side *from, struct side *to)
{
    struct cpu_state state;
    assert_int_equal(test_engine_state_saved(&from->engine, &state), 0);
    to->engine.ops->set_state(to->engine.vcpu, &state);
}

static void start_at_code(struct side *side, uint64_t flags)
{
    struct cpu_state state;
    cpu_state_reset(&state, true);
    state.segment[CS].selector = 0;
    state.segment[CS].base = 0;
    state.rip = CODE;
    state.gpr[RSP] = 0x5000;
    state.rflags |= flags;
    side->engine.ops->set_state(side->engine.vcpu, &state);
}

static void check_halted(struct side *side, uint64_t at)
{
    struct cpu_state state;
    assert_int_equal(side->engine.ops->run(side->engine.vcpu), EXIT_HALT);
    side->engine.ops->get_state(side->engine.vcpu, &state);
    assert_int_equal(state.activity, ACTIVITY_HALTED);
    assert_int_equal(state.segment[CS].base + state.rip, at + 1);
    assert_false(state.init_pending || state.sipi_pending || state.nmi_pending);
}

static void carry_init_and_sipi(const struct engine_ops *a, const struct engine_ops *b)
{
    struct side from, to;
    struct cpu_state state;
    side_open(&from, a, 1);
    side_open(&to, b, 1);
    start_at_code(&from, 0);
    a->kick(from.engine.vcpu, KICK_INIT, 0);
    a->kick(from.engine.vcpu, KICK_SIPI, SIPI_PAGE);
    carry(&from, &to);
    check_halted(&to, SIPI_PAGE << 12);
    /* Nothing stays behind: a state that is set afterwards is not started. */
    cpu_state_reset(&state, false);
    a->set_state(from.engine.vcpu, &state);
    assert_int_equal(a->run(from.engine.vcpu), EXIT_HALT);
    a->get_state(from.engine.vcpu, &state);
    assert_int_equal(state.activity, ACTIVITY_WAIT_SIPI);
    side_close(&from);
    side_close(&to);
}

static void carry_nmi(const struct engine_ops *a, const struct engine_ops *b)
{
    struct side from, to;
    side_open(&from, a, 0);
    side_open(&to, b, 0);
    start_at_code(&from, 0);
    a->kick(from.engine.vcpu, KICK_NMI, 0);
    carry(&from, &to);
    check_halted(&to, NMI_HANDLER);
    side_close(&from);
    side_close(&to);
}

/* The machine has an interrupt for it, and the kick that said so was for another engine. */
static void carry_interrupt(const struct engine_ops *a, const struct engine_ops *b)
{
    struct side from, to;
    side_open(&from, a, 0);
    side_open(&to, b, 0);
    start_at_code(&from, FLAG_IF);
    carry(&from, &to);
    to.interrupts = 1;
    check_halted(&to, IRQ_HANDLER);
    side_close(&from);
    side_close(&to);
}

/* A call for the end of HLT counts for the next one if it comes too early, and counts once. */
static void carry_unhalt(const struct engine_ops *a, const struct engine_ops *b)
{
    struct side from, to;
    side_open(&from, a, 0);
    side_open(&to, b, 0);
    put(&to, CODE, "\xf4\xf4\xf4\xf4", 4);
    start_at_code(&from, 0);
    a->kick(from.engine.vcpu, KICK_UNHALT, 0);
    carry(&from, &to);
    check_halted(&to, CODE + 1);
    b->kick(to.engine.vcpu, KICK_UNHALT, 0);
    b->wait(to.engine.vcpu, UINT64_MAX); /* comes back, though IF is clear */
    carry(&to, &to);
    check_halted(&to, CODE + 2);
    side_close(&from);
    side_close(&to);
}

static void what_waits_moves_with_the_state(void **state)
{
    for (unsigned i = 0; i < 4; i++) {
        const struct engine_ops *a = engines[i / 2], *b = engines[i % 2];
        carry_init_and_sipi(a, b);
        carry_nmi(a, b);
        carry_interrupt(a, b);
        carry_unhalt(a, b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_waits_moves_with_the_state)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
