/*
 * Waiting: vCPUs that wait for each other on one host CPU do not burn it, and what others do to
 * their code meanwhile counts; a halted vCPU looks for a kick only where that has paid, and no kick
 * is lost between looking and sleeping.
 */
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/test_engine.h"
#include "engine/translate/internal.h"
#include "engine/translate/test_guest.h"
#include "x86/cpuid.h"

enum {
    TURNS = 1000, /* of the two vCPUs together */
    CODE = 0xa000,
    TURN = 0xb000,
    KICKS = 20000,
    TRIES = 100, /* a busy host makes short waits long, and deadlines late */
};
/* A turn that ends only when the host's scheduler ends it costs 0.7 to 4 ms. */
static const uint64_t ENOUGH_NS = 200000000;

/*
 * As kernels wait for a lock: until bit 0 of TURN is EDI, PAUSE; then the other's turn. Up to
 * TURNS.
 */
static const uint8_t take_turns[] = {
    0x8b, 0x04, 0x25, 0x00, 0xb0, 0x00, 0x00,       /* mov eax, [TURN] */
    0x3d, 0xe8, 0x03, 0x00, 0x00,                   /* cmp eax, TURNS */
    0x73, 0x17,                                     /* jae end */
    0x89, 0xc1,                                     /* mov ecx, eax */
    0x83, 0xe1, 0x01,                               /* and ecx, 1 */
    0x39, 0xf9,                                     /* cmp ecx, edi */
    0x74, 0x04,                                     /* je turn */
    0xf3, 0x90,                                     /* pause */
    0xeb, 0xe5,                                     /* jmp start */
    0xf0, 0xff, 0x04, 0x25, 0x00, 0xb0, 0x00, 0x00, /* turn: lock inc dword [TURN] */
    0xeb, 0xdb,                                     /* jmp start */
    0xf4,                                           /* end: hlt */
};

struct machine {
    const struct engine_ops *ops;
    struct memory *memory;
    struct cpuid_table *cpuid;
    struct engine_vm *vm;
    unsigned yields;
    uint64_t rounds; /* that there were before the second yield */
};

static void machine_open(struct machine *machine, const struct engine_ops *ops, unsigned cpus)
{
    *machine = (struct machine){.ops = ops};
    const struct memory_range ram = {0, TEST_GUEST_RAM};
    const struct cpuid_config model = {.model = CPU_MODEL_V2, .cpus = cpus, .tsc_hz = 1000000000};
    assert_int_equal(memory_new(&ram, 1, "wait_test", &machine->memory), 0);
    assert_int_equal(cpuid_table_new(&model, &machine->cpuid), 0);
    assert_int_equal(test_guest_map(machine->memory), 0);
    const struct engine_config config = {.memory = machine->memory,
                                         .cpuid = machine->cpuid,
                                         .host = test_host(NULL),
                                         .cpus = cpus,
                                         .cache_size = MIB(4)};
    assert_int_equal(ops->vm_new(&config, &machine->vm), 0);
    alarm(60);
}

static void machine_close(struct machine *machine)
{
    alarm(0);
    machine->ops->vm_free(machine->vm);
    cpuid_table_free(machine->cpuid);
    memory_free(machine->memory);
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

struct start {
    struct machine *machine;
    unsigned index;
};

static void *turns_thread(void *argument)
{
    const struct start *start = argument;
    const struct engine_ops *ops = start->machine->ops;
    struct engine_vcpu *vcpu;
    struct cpu_state state;
    if (ops->vcpu_new(start->machine->vm, start->index, &vcpu) < 0) {
        return NULL;
    }
    test_guest_state(&state, CODE);
    state.gpr[RDI] = start->index;
    ops->set_state(vcpu, &state);
    bool is_halted = ops->run(vcpu) == EXIT_HALT;
    ops->vcpu_free(vcpu);
    return is_halted ? argument : NULL;
}

static void spinning_yields_the_host_cpu(const struct engine_ops *ops)
{
    struct machine machine;
    cpu_set_t before, one;
    pthread_t threads[2];
    machine_open(&machine, ops, 2);
    assert_int_equal(memory_write(machine.memory, CODE, take_turns, sizeof take_turns), 0);
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    CPU_ZERO(&one);
    for (int cpu = 0; CPU_COUNT(&one) == 0; cpu++) {
        if (CPU_ISSET(cpu, &before)) {
            CPU_SET(cpu, &one);
        }
    }
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    uint64_t used = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    struct start starts[2] = {{&machine, 0}, {&machine, 1}};
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, turns_thread, &starts[i]), 0);
    }
    for (unsigned i = 0; i < 2; i++) {
        void *result;
        pthread_join(threads[i], &result);
        assert_non_null(result);
    }
    used = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - used;
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
    assert_in_range(used, 0, ENOUGH_NS);
    machine_close(&machine);
}

static void spinning_in_units_yields_the_host_cpu(void **unused)
{
    spinning_yields_the_host_cpu(&translate_engine);
}

static void spinning_in_interp_yields_the_host_cpu(void **unused)
{
    spinning_yields_the_host_cpu(&interp_engine);
}

/* A vCPU at a HLT with interrupts on. */
static struct block *halted_vcpu(struct machine *machine, unsigned index)
{
    struct engine_vcpu *vcpu;
    struct cpu_state state;
    assert_int_equal(translate_engine.vcpu_new(machine->vm, index, &vcpu), 0);
    test_guest_state(&state, CODE);
    state.activity = ACTIVITY_HALTED;
    state.rflags |= FLAG_IF;
    translate_engine.set_state(vcpu, &state);
    struct block *block = (struct block *)vcpu;
    block->vcpu.kicks = 0;
    return block;
}

static void wait_ns(struct block *block, uint64_t duration)
{
    block_wait(block, clock_ns(CLOCK_MONOTONIC) + duration);
}

static void only_short_waits_are_looked_through(void **unused)
{
    for (unsigned cpus = 1; cpus <= 2; cpus++) {
        struct machine machine;
        machine_open(&machine, &translate_engine, cpus);
        struct block *block = halted_vcpu(&machine, 0);
        assert_int_equal(block->poll_ns, 0);
        for (unsigned i = 0; i < TRIES && block->poll_ns == 0; i++) {
            wait_ns(block, 0);
        }
        assert_int_equal(block->poll_ns, cpus == 1 ? 0 : POLL_FIRST_NS);
        for (unsigned i = 0; i < TRIES && block->poll_ns != 0; i++) {
            wait_ns(block, 2 * POLL_MOST_NS);
        }
        assert_int_equal(block->poll_ns, 0);
        translate_engine.vcpu_free((struct engine_vcpu *)block);
        machine_close(&machine);
    }
}

/* What another vCPU does while this one has yielded its host CPU. */
static void (*meanwhile)(struct machine *machine);
static struct machine *yielding;

/* Instead of the C library's. */
int sched_yield(void)
{
    if (meanwhile) {
        meanwhile(yielding);
    }
    return (int)syscall(SYS_sched_yield);
}

/* At the second yield, when the instruction is known as decoded: HLT instead of PAUSE. */
static void change_code(struct machine *machine)
{
    if (++machine->yields == 2) {
        struct translate_vm *vm = (struct translate_vm *)machine->vm;
        machine->rounds = vm->blocks[0]->vcpu.state.gpr[RCX];
        assert_int_equal(memory_write(machine->memory, CODE + 2, "\xf4", 1), 0);
    }
}

static void forget_units(struct machine *machine)
{
    struct translate_vm *vm = (struct translate_vm *)machine->vm;
    change_code(machine);
    if (machine->yields == 2) {
        pthread_mutex_lock(&vm->lock);
        units_forget(vm);
        pthread_mutex_unlock(&vm->lock);
        spaces_forget_code(vm->blocks[0]);
    }
}

static void code_that_changes_while_a_spin_yields_counts(void **unused)
{
    void (*const changes[])(struct machine *) = {change_code, forget_units};
    for (unsigned i = 0; i < ARRAY_SIZE(changes); i++) {
        struct machine machine;
        struct engine_vcpu *vcpu;
        struct cpu_state state;
        machine_open(&machine, &translate_engine, 2);
        /* 1: inc ecx; pause; jmp 1b */
        assert_int_equal(memory_write(machine.memory, CODE, "\xff\xc1\xf3\x90\xeb\xfa", 6), 0);
        assert_int_equal(translate_engine.vcpu_new(machine.vm, 0, &vcpu), 0);
        test_guest_state(&state, CODE);
        translate_engine.set_state(vcpu, &state);
        yielding = &machine;
        meanwhile = changes[i];
        assert_int_equal(translate_engine.run(vcpu), EXIT_HALT);
        meanwhile = NULL;
        translate_engine.get_state(vcpu, &state);
        assert_int_equal(machine.yields, 2);
        assert_int_equal(state.rip, CODE + 3);
        assert_int_equal(state.gpr[RCX], machine.rounds);
        translate_engine.vcpu_free(vcpu);
        machine_close(&machine);
    }
}

struct pair {
    struct block *self, *other;
};

static void answer_kicks(struct block *self, struct block *other, bool begins)
{
    for (unsigned i = 0; i < KICKS; i++) {
        if (begins) {
            block_kick(other, KICK_INTERRUPT, 0);
        }
        block_wait(self, UINT64_MAX);
        atomic_fetch_and(&self->vcpu.kicks, ~(uint32_t)KICK_INTERRUPT);
        if (!begins) {
            block_kick(other, KICK_INTERRUPT, 0);
        }
    }
}

static void *answer_thread(void *argument)
{
    const struct pair *pair = argument;
    answer_kicks(pair->other, pair->self, false);
    return NULL;
}

static void no_kick_is_lost(void **unused)
{
    struct machine machine;
    pthread_t thread;
    machine_open(&machine, &translate_engine, 2);
    struct pair pair = {halted_vcpu(&machine, 0), halted_vcpu(&machine, 1)};
    assert_int_equal(pthread_create(&thread, NULL, answer_thread, &pair), 0);
    answer_kicks(pair.self, pair.other, true);
    pthread_join(thread, NULL);
    translate_engine.vcpu_free((struct engine_vcpu *)pair.other);
    translate_engine.vcpu_free((struct engine_vcpu *)pair.self);
    machine_close(&machine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spinning_in_units_yields_the_host_cpu),
        cmocka_unit_test(spinning_in_interp_yields_the_host_cpu),
        cmocka_unit_test(code_that_changes_while_a_spin_yields_counts),
        cmocka_unit_test(only_short_waits_are_looked_through),
        cmocka_unit_test(no_kick_is_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
