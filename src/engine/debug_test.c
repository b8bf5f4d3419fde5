/* Breakpoints, watchpoints and steps on the bare engines: each rule of debug.h once. */
#include "engine/debug.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "engine/test_engine.h"
#include "x86/cpuid.h"

enum { RAM_SIZE = 1 << 20, CODE = 0x8000, DATA = 0x20000, VECTOR = 0x20 };

/* Real mode, DS = ES = 2000H. */
static const uint8_t code[] = {
    0xb8, 0x00, 0x20, /* 00 mov ax, 2000h */
    0x8e, 0xd8,       /* 03 mov ds, ax */
    0x8e, 0xc0,       /* 05 mov es, ax */
    0xb9, 0x04, 0x00, /* 07 mov cx, 4 */
    0x31, 0xff,       /* 0a xor di, di */
    0xf3, 0xaa,       /* 0c rep stosb */
    0xa1, 0x01, 0x00, /* 0e mov ax, [1] */
    0xfb,             /* 11 sti */
    0x90,             /* 12 nop */
    0x90,             /* 13 nop */
    0xf4,             /* 14 hlt */
    0xeb, 0xfd,       /* 15 jmp 14 */
};
/* The handler of the interrupt: iret. */
enum { HANDLER = 0x9000 };

struct fixture {
    struct test_engine engine;
    const struct engine_ops *ops;
    struct cpuid_table *cpuid;
    struct debug_points points;
    struct debug debug;
    bool has_interrupt;
};

static int acknowledge(void *owner, unsigned vcpu)
{
    struct fixture *f = owner;
    bool had = f->has_interrupt;
    f->has_interrupt = false;
    return had ? VECTOR : -1;
}

static void set_up(struct fixture *f, const struct engine_ops *ops)
{
    const struct memory_range ram = {0, RAM_SIZE};
    const struct cpuid_config model = {.model = CPU_MODEL_V2, .cpus = 1, .tsc_hz = 1000000000};
    const uint8_t iret = 0xcf;
    struct cpu_state state;
    *f = (struct fixture){.ops = ops};
    assert_int_equal(cpuid_table_new(&model, &f->cpuid), 0);
    struct engine_config config = {
        .cpuid = f->cpuid, .host = test_host(f), .cpus = 1, .cache_size = MIB(4)};
    config.host.interrupt_acknowledge = acknowledge;
    assert_int_equal(test_engine_open(&f->engine, ops, &ram, 1, config, 0), 0);
    assert_int_equal(memory_write(f->engine.memory, CODE, code, sizeof code), 0);
    assert_int_equal(memory_write(f->engine.memory, HANDLER, &iret, 1), 0);
    const uint16_t vector[] = {HANDLER, 0};
    assert_int_equal(memory_write(f->engine.memory, VECTOR * 4, vector, sizeof vector), 0);
    cpu_state_reset(&state, true);
    state.segment[CS].selector = 0;
    state.segment[CS].base = 0;
    state.gpr[RSP] = 0x7000;
    state.rip = CODE;
    f->debug.points = &f->points;
    ops->set_state(f->engine.vcpu, &state);
}

static void tear_down(struct fixture *f)
{
    test_engine_close(&f->engine);
    cpuid_table_free(f->cpuid);
}

static uint64_t rip(const struct fixture *f)
{
    struct cpu_state state;
    f->ops->get_state(f->engine.vcpu, &state);
    return state.rip - CODE;
}

/* Go on, and stop for this reason here. */
static void run_to(struct fixture *f, enum debug_stop_kind kind, uint64_t offset)
{
    if (f->ops->breaks_changed) {
        f->ops->breaks_changed(f->engine.vm, &f->points);
    }
    f->ops->set_debug(f->engine.vcpu, &f->debug);
    assert_int_equal(f->ops->run(f->engine.vcpu), EXIT_DEBUG);
    assert_int_equal(f->debug.stop.kind, kind);
    assert_int_equal(rip(f), offset);
}

static void step_to(struct fixture *f, uint64_t offset)
{
    f->debug.is_step = true;
    run_to(f, DEBUG_STOP_STEP, offset);
}

static void break_at(struct fixture *f, uint64_t offset)
{
    f->points.break_count = 1;
    f->points.breaks[0] = CODE + offset;
}

static void watch(struct fixture *f, gva_t first, gva_t last, enum watch_kind kind)
{
    f->points.watch_count = 1;
    f->points.watches[0] = (struct debug_watch){first, last, kind};
}

static void breaks_and_steps(const struct engine_ops *ops)
{
    struct fixture f;
    set_up(&f, ops);
    break_at(&f, 3);
    run_to(&f, DEBUG_STOP_BREAK, 3);
    assert_int_equal(f.debug.stop.address, CODE + 3);
    run_to(&f, DEBUG_STOP_BREAK, 3); /* not told: again */
    f.debug.is_past = true;
    f.debug.past = CODE + 3;
    break_at(&f, 3);
    f.points.break_count = 2;
    f.points.breaks[1] = CODE + 7;
    run_to(&f, DEBUG_STOP_BREAK, 7);
    f.points.break_count = 0;
    step_to(&f, 0xa);
    step_to(&f, 0xc);
    step_to(&f, 0xc); /* one iteration */
    step_to(&f, 0xc);
    step_to(&f, 0xc);
    step_to(&f, 0xe);
    tear_down(&f);
}

static void watches(const struct engine_ops *ops)
{
    struct fixture f;
    set_up(&f, ops);
    watch(&f, DATA + 2, DATA + 5, WATCH_ACCESS);
    run_to(&f, DEBUG_STOP_WATCH, 0xc); /* behind the third iteration, before the fourth */
    assert_int_equal(f.debug.stop.address, DATA + 2);
    run_to(&f, DEBUG_STOP_WATCH, 0xe);
    assert_int_equal(f.debug.stop.address, DATA + 3);
    run_to(&f, DEBUG_STOP_WATCH, 0x11);
    assert_int_equal(f.debug.stop.address, DATA + 2);
    tear_down(&f);
    set_up(&f, ops);
    watch(&f, DATA + 1, DATA + 1, WATCH_READ);
    run_to(&f, DEBUG_STOP_WATCH, 0x11);
    assert_int_equal(f.debug.stop.watch, WATCH_READ);
    tear_down(&f);
}

static void events(const struct engine_ops *ops)
{
    struct fixture f;
    set_up(&f, ops);
    break_at(&f, 0x12);
    run_to(&f, DEBUG_STOP_BREAK, 0x12); /* in the shadow of STI */
    f.has_interrupt = true;
    ops->kick(f.engine.vcpu, KICK_INTERRUPT, 0);
    f.points.break_count = 0;
    step_to(&f, 0x13);
    step_to(&f, 0x14);
    step_to(&f, 0x15);           /* HLT is a step, too */
    step_to(&f, HANDLER - CODE); /* and then the interrupt comes */
    step_to(&f, 0x15);
    step_to(&f, 0x14);
    break_at(&f, 0x15); /* of a halted vCPU: when it goes on there */
    ops->set_debug(f.engine.vcpu, &f.debug);
    assert_int_equal(ops->run(f.engine.vcpu), EXIT_HALT);
    f.has_interrupt = true;
    ops->kick(f.engine.vcpu, KICK_INTERRUPT, 0);
    run_to(&f, DEBUG_STOP_BREAK, 0x15);
    tear_down(&f);
}

static void test_breaks_and_steps(void **state)
{
    breaks_and_steps(&interp_engine);
    breaks_and_steps(&translate_engine);
}

static void test_watches(void **state)
{
    watches(&interp_engine);
    watches(&translate_engine);
}

static void test_events(void **state)
{
    events(&interp_engine);
    events(&translate_engine);
}

static void test_order(void **state)
{
    const struct debug_points points = {.break_count = 3, .breaks = {1, 5, UINT64_MAX}};
    assert_true(debug_has_break(&points, 1) && debug_has_break(&points, UINT64_MAX));
    assert_false(debug_has_break(&points, 0) || debug_has_break(&points, 4));
    assert_true(debug_has_break_within(&points, 2, 5));
    assert_false(debug_has_break_within(&points, 2, 4) || debug_has_break_within(&points, 6, 99));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_breaks_and_steps),
        cmocka_unit_test(test_watches),
        cmocka_unit_test(test_events),
        cmocka_unit_test(test_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
