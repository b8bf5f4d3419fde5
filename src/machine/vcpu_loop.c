/*
 * The threads of the vCPUs. Each makes its engine vCPU, then alternates between standing still
 * (parked: its state lies in vm_vcpu.state and belongs to whoever holds the machine) and running
 * until it is asked to stop.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/assert.h"
#include "base/error.h"
#include "device/irqchip/irqchip.h"
#include "machine/report.h"
#include "machine/vm_internal.h"

enum { STOP_SECONDS = 20 };

/* Stand still until the machine may run. False: return from the thread. */
static bool park(struct vm_vcpu *vcpu, struct engine_vcpu *engine)
{
    struct vm *vm = vcpu->vm;
    pthread_mutex_lock(&vm->lock);
    if (engine && !vcpu->state_changed) {
        vm->engine_ops->get_state(engine, &vcpu->state);
    }
    vcpu->is_parked = true;
    pthread_cond_broadcast(&vm->changed);
    while ((vm->stop || vcpu->is_held) && !vm->quitting) {
        pthread_cond_wait(&vm->changed, &vm->lock);
    }
    vcpu->is_parked = false;
    bool run = !vm->quitting;
    if (run) {
        vm_debug_arm(vcpu, engine);
    }
    if (run && vcpu->state_changed) {
        vm->engine_ops->set_state(engine, &vcpu->state);
        vcpu->tsc_offset = vcpu->state.tsc_offset;
        if (vm->config->time_mode == TIME_DETERMINISTIC) { /* what the engine has counted before */
            vcpu->tsc_offset -= vm->engine_ops->instructions(engine);
        }
        vcpu->state_changed = false;
    }
    pthread_mutex_unlock(&vm->lock);
    return run;
}

/* Nothing can be run any more until somebody decides: wait for that. */
static void wait_for_stop(struct vm *vm)
{
    pthread_mutex_lock(&vm->lock);
    while (!vm->stop) {
        pthread_cond_wait(&vm->changed, &vm->lock);
    }
    pthread_mutex_unlock(&vm->lock);
}

static void handle_triple_fault(struct vm_vcpu *vcpu, struct engine_vcpu *engine)
{
    struct cpu_state state;
    vcpu->vm->engine_ops->get_state(engine, &state);
    vm_triple_fault(vcpu->vm, vcpu->index, &state);
    wait_for_stop(vcpu->vm);
}

static void run_until_stop(struct vm_vcpu *vcpu, struct engine_vcpu *engine)
{
    struct vm *vm = vcpu->vm;
    while (!vm->stop) {
        if (atomic_exchange(&vcpu->init_pending, false)) {
            irqchip_vcpu_init(vm->board.irqchip, vcpu->index);
        }
        step_time_advance(vm);
        step_time_arm(vm);
        switch (vm->engine_ops->run(engine)) {
        case EXIT_INTERRUPTED:
            break;
        case EXIT_HALT:
            if (!vm->step_clock || !step_time_skip(vm, engine)) {
                vm->engine_ops->wait(engine, UINT64_MAX);
            }
            break;
        case EXIT_TRIPLE_FAULT:
            handle_triple_fault(vcpu, engine);
            break;
        case EXIT_DEBUG:
            vm_debug_came_back(vcpu);
            wait_for_stop(vm);
            break;
        case EXIT_ERROR:
            vm_request_error(vm, trail_text());
            wait_for_stop(vm);
            break;
        }
    }
}

static void report_start(struct vm *vm, int error)
{
    pthread_mutex_lock(&vm->lock);
    if (error && !vm->start_error) {
        vm->start_error = error;
        snprintf(vm->start_message, sizeof vm->start_message, "%s", trail_text());
    }
    pthread_mutex_unlock(&vm->lock);
}

static void *vcpu_main(void *argument)
{
    struct vm_vcpu *vcpu = argument;
    struct vm *vm = vcpu->vm;
    char name[16];
    snprintf(name, sizeof name, "vcpu%u", vcpu->index);
    pthread_setname_np(pthread_self(), name);

    struct engine_vcpu *engine = NULL;
    report_start(vm, vm->engine_ops->vcpu_new(vm->engine, vcpu->index, &engine));
    vcpu->engine = engine;
    while (park(vcpu, engine)) {
        run_until_stop(vcpu, engine);
    }
    vcpu->engine = NULL;
    vm->engine_ops->vcpu_free(engine);
    return NULL;
}

/* A vCPU that runs, or NULL. With the lock. */
static struct vm_vcpu *running(struct vm *vm)
{
    for (unsigned i = 0; i < vm->config->cpus; i++) {
        if (vm->vcpus[i].has_thread && !vm->vcpus[i].is_parked) {
            return &vm->vcpus[i];
        }
    }
    return NULL;
}

static _Noreturn void give_up(struct vm *vm, const struct vm_vcpu *vcpu)
{
    char message[256];
    uint64_t rip;
    const char *what = vm_vcpu_where(vm, vcpu->index, &rip);
    snprintf(message, sizeof message,
             "internal error: vCPU %u does not stop; it was last seen %s, near %#llx", vcpu->index,
             what, (unsigned long long)rip);
    if (vm->stuck) {
        vm->stuck(vm->stuck_owner, message);
    }
    report("doppel: %s: %s\n", vm->config->name, message);
    abort();
}

/*
 * Everything that a vCPU does ends in a moment. Waited for in short pieces, so that the time in
 * which the whole process stood still (SIGSTOP) does not count.
 */
static void wait_for_stopped(struct vm *vm)
{
    struct vm_vcpu *vcpu;
    for (unsigned waits = 0; (vcpu = running(vm)); waits++) {
        struct timespec until;
        if (waits == STOP_SECONDS) {
            give_up(vm, vcpu);
        }
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec++;
        while (running(vm) &&
               !pthread_cond_clockwait(&vm->changed, &vm->lock, CLOCK_MONOTONIC, &until)) {
        }
    }
}

int vcpu_threads_start(struct vm *vm)
{
    vm->stop = true;
    for (unsigned i = 0; i < vm->config->cpus; i++) {
        struct vm_vcpu *vcpu = &vm->vcpus[i];
        int r = pthread_create(&vcpu->thread, NULL, vcpu_main, vcpu);
        if (r) {
            return fail(-r, "start the thread of vCPU %u: %s%s", i, strerror(r),
                        r == EAGAIN ? " (a limit of processes and threads: 'ulimit -u', or the "
                                      "container's)"
                                    : "");
        }
        vcpu->has_thread = true;
    }
    pthread_mutex_lock(&vm->lock);
    while (running(vm)) { /* making an engine's vCPU may take long */
        pthread_cond_wait(&vm->changed, &vm->lock);
    }
    int r = vm->start_error;
    pthread_mutex_unlock(&vm->lock);
    return r ? fail(r, "%s", vm->start_message) : 0;
}

void vcpu_threads_join(struct vm *vm)
{
    if (!vm->vcpus) {
        return;
    }
    vcpu_threads_stop(vm);
    pthread_mutex_lock(&vm->lock);
    vm->quitting = true;
    pthread_cond_broadcast(&vm->changed);
    pthread_mutex_unlock(&vm->lock);
    for (unsigned i = 0; i < vm->config->cpus; i++) {
        if (vm->vcpus[i].has_thread) {
            pthread_join(vm->vcpus[i].thread, NULL);
        }
    }
}

void vcpu_threads_go(struct vm *vm)
{
    pthread_mutex_lock(&vm->lock);
    vm->stop = false;
    pthread_cond_broadcast(&vm->changed);
    pthread_mutex_unlock(&vm->lock);
}

void vcpu_threads_ask_stop(struct vm *vm)
{
    pthread_mutex_lock(&vm->lock);
    vm->stop = true;
    pthread_cond_broadcast(&vm->changed);
    pthread_mutex_unlock(&vm->lock);
    for (unsigned i = 0; i < vm->config->cpus; i++) {
        struct engine_vcpu *engine = vm->vcpus[i].engine;
        if (engine) {
            vm->engine_ops->kick(engine, KICK_STOP, 0);
        }
    }
}

void vcpu_threads_stop(struct vm *vm)
{
    vcpu_threads_ask_stop(vm);
    pthread_mutex_lock(&vm->lock);
    wait_for_stopped(vm);
    pthread_mutex_unlock(&vm->lock);
}

void vcpu_states_complete(struct vm *vm)
{
    for (unsigned i = 0; i < vm->config->cpus; i++) {
        struct vm_vcpu *vcpu = &vm->vcpus[i];
        vm->engine_ops->take_pending(vcpu->engine, &vcpu->state);
        if (atomic_exchange(&vcpu->init_pending, false)) {
            irqchip_vcpu_init(vm->board.irqchip, i);
        }
        vcpu->state_changed = true;
    }
}
