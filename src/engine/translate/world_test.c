/*
 * Stopping the world, with vCPUs on threads: while it is stopped nothing runs, nothing is lost, and
 * who waits for the machine does not keep the others waiting.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/syscall.h>

#include <cmocka.h>

#include "engine/translate/test_world.h"

enum {
    STOPS = 100,
    WHOLE_ROUNDS = 250, /* in each round of a vCPU */
    SPLIT = 0xb03c,     /* 8 bytes across two cache lines: a locked access stops the world */
    WHOLE = 0xb100,
    FLAG = 0xb200, /* the vCPUs come to an end; or one has come here */
};

struct start {
    struct fixture *fixture;
    unsigned index;
};

static _Atomic pid_t vcpu_task; /* of the vCPU that started last */

static void *vcpu_thread(void *argument)
{
    struct start *start = argument;
    struct engine_vcpu *vcpu;
    struct cpu_state state;
    test_guest_state(&state, CODE);
    int r = translate_engine.vcpu_new((struct engine_vm *)start->fixture->vm, start->index, &vcpu);
    if (r == 0) {
        translate_engine.set_state(vcpu, &state);
        vcpu_task = (pid_t)syscall(SYS_gettid);
        enum exit_kind exit = translate_engine.run(vcpu);
        r = exit == EXIT_HALT || exit == EXIT_INTERRUPTED ? 0 : -1;
        translate_engine.get_state(vcpu, &state);
        start->fixture->rounds[start->index] = state.gpr[RCX];
        translate_engine.vcpu_free(vcpu);
    }
    return (void *)(intptr_t)r;
}

static void run_vcpus(struct fixture *fixture, unsigned count, void (*meanwhile)(struct fixture *))
{
    struct start starts[VCPUS];
    for (unsigned i = 0; i < count; i++) {
        starts[i] = (struct start){fixture, i};
        assert_int_equal(pthread_create(&fixture->threads[i], NULL, vcpu_thread, &starts[i]), 0);
    }
    meanwhile(fixture);
    for (unsigned i = 0; i < count; i++) {
        void *result;
        pthread_join(fixture->threads[i], &result);
        assert_null(result);
    }
}

static uint64_t number_at(struct fixture *fixture, gpa_t gpa)
{
    uint64_t value = 0;
    assert_int_equal(memory_read(fixture->memory, gpa, &value, 8), 0);
    return value;
}

static void stop_and_look(struct fixture *fixture)
{
    for (unsigned i = 0; i < STOPS; i++) {
        world_stop(fixture->vm, NULL, COUNT_WORLD_TRANSITION);
        uint64_t split = number_at(fixture, SPLIT), whole = number_at(fixture, WHOLE);
        usleep(200);
        uint64_t split_then = number_at(fixture, SPLIT), whole_then = number_at(fixture, WHOLE);
        world_resume(fixture->vm);
        assert_int_equal(split, split_then);
        assert_int_equal(whole, whole_then);
        while (number_at(fixture, WHOLE) == whole) {
            usleep(50);
        }
    }
    put(fixture, FLAG, "\1", 1);
}

static void nothing_runs_and_nothing_is_lost(void **state)
{
    struct fixture *fixture = *state;
    uint64_t rounds = 0;
    /*
     * xor ecx, ecx; 1: mov edx, WHOLE_ROUNDS; lock inc qword [SPLIT]
     * 2: lock inc qword [WHOLE]; dec edx; jnz 2b; inc ecx; cmp byte [FLAG], 0; jz 1b; hlt
     */
    static const uint8_t code[] = {
        0x31,
        0xc9,
        0xba,
        WHOLE_ROUNDS & 0xff,
        WHOLE_ROUNDS >> 8,
        0,
        0,
        0xf0,
        0x48,
        0xff,
        0x04,
        0x25,
        SPLIT & 0xff,
        SPLIT >> 8,
        0,
        0,
        0xf0,
        0x48,
        0xff,
        0x04,
        0x25,
        WHOLE & 0xff,
        WHOLE >> 8,
        0,
        0,
        0xff,
        0xca,
        0x75,
        0xf3, /* dec edx; jnz 2b */
        0xff,
        0xc1,
        0x80,
        0x3c,
        0x25,
        FLAG & 0xff,
        FLAG >> 8,
        0,
        0,
        0,
        0x74,
        0xd9, /* jz 1b */
        0xf4,
    };
    put(fixture, CODE, code, sizeof code);
    run_vcpus(fixture, VCPUS, stop_and_look);
    for (unsigned i = 0; i < VCPUS; i++) {
        assert_true(fixture->rounds[i] > 0);
        rounds += fixture->rounds[i];
    }
    assert_int_equal(number_at(fixture, SPLIT), rounds);
    assert_int_equal(number_at(fixture, WHOLE), rounds * WHOLE_ROUNDS);
}

/* A vCPU that never leaves its loop: only the signal reaches it. */
static void stop_a_loop(struct fixture *fixture)
{
    while (number_at(fixture, WHOLE) == 0) {
        usleep(50);
    }
    world_stop(fixture->vm, NULL, COUNT_WORLD_TRANSITION);
    uint64_t rounds = number_at(fixture, WHOLE);
    usleep(1000);
    assert_int_equal(number_at(fixture, WHOLE), rounds);
    world_resume(fixture->vm);
    while (number_at(fixture, WHOLE) == rounds) {
        usleep(50);
    }
    put(fixture, FLAG, "\1", 1);
}

static void a_loop_is_stopped_by_the_signal(void **state)
{
    struct fixture *fixture = *state;
    /* 1: inc qword [WHOLE]; cmp byte [FLAG], 0; jz 1b; hlt */
    put(fixture, CODE, "\x48\xff\x04\x25\x00\xb1\0\0\x80\x3c\x25\x00\xb2\0\0\0\x74\xee\xf4", 19);
    run_vcpus(fixture, 1, stop_a_loop);
}

/*
 * The sampler's timer and a kick have the same signal, and two that wait become one, which tells
 * of the timer.
 */
static void hide_a_kick(struct fixture *fixture)
{
    while (number_at(fixture, WHOLE) == 0) {
        usleep(50);
    }
    struct block *block = fixture->vm->blocks[0];
    atomic_fetch_or(&block->vcpu.kicks, KICK_STOP);
    block->poll_now = 1;
    siginfo_t timer = {.si_signo = SIGUSR1, .si_code = SI_TIMER};
    assert_int_equal(syscall(SYS_rt_tgsigqueueinfo, getpid(), vcpu_task, SIGUSR1, &timer), 0);
}

static void a_kick_behind_the_samplers_signal_is_heard(void **state)
{
    struct fixture *fixture = *state;
    put(fixture, CODE, "\x48\xff\x04\x25\x00\xb1\0\0\xeb\xf6",
        10); /* 1: inc qword [WHOLE]; jmp 1b */
    run_vcpus(fixture, 1, hide_a_kick);
}

/* A vCPU waits for a device: the world can be stopped, and then the vCPU does not come back. */
static void stop_around_device(struct fixture *fixture)
{
    while (sem_wait(&fixture->in_device) != 0) {
    }
    world_stop(fixture->vm, NULL, COUNT_WORLD_TRANSITION);
    sem_post(&fixture->leave_device);
    usleep(20000);
    assert_int_equal(number_at(fixture, FLAG), 0);
    world_resume(fixture->vm);
}

static void who_waits_for_the_machine_is_at_a_safe_point(void **state)
{
    struct fixture *fixture = *state;
    /* out 80H, al; mov byte [FLAG], 1; hlt */
    put(fixture, CODE, "\xe6\x80\xc6\x04\x25\x00\xb2\0\0\x01\xf4", 11);
    run_vcpus(fixture, 1, stop_around_device);
    assert_int_equal(number_at(fixture, FLAG), 1);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(nothing_runs_and_nothing_is_lost),
        TEST(a_loop_is_stopped_by_the_signal),
        TEST(a_kick_behind_the_samplers_signal_is_heard),
        TEST(who_waits_for_the_machine_is_at_a_safe_point),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
