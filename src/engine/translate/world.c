/*
 * Stopping the world: some changes count only when no other vCPU is in the middle of an
 * instruction: page transitions, locked accesses across cache lines, a full code cache.
 *
 * A vCPU is *parked* when it is outside units and outside C code that holds what a stopper may
 * change: not in run(), or in a call to the machine, or waiting here. A stopper kicks the others
 * and waits until all are parked. Nobody waits for the world while holding another lock.
 */
#include "engine/translate/internal.h"

void world_init(struct translate_vm *vm)
{
    pthread_mutex_init(&vm->world_lock, NULL);
    pthread_cond_init(&vm->world_changed, NULL);
    pthread_mutex_init(&vm->stopper, NULL);
}

void world_fini(struct translate_vm *vm)
{
    pthread_mutex_destroy(&vm->stopper);
    pthread_cond_destroy(&vm->world_changed);
    pthread_mutex_destroy(&vm->world_lock);
}

void world_park(struct block *block)
{
    pthread_mutex_lock(&block->vm->world_lock);
    block->parked = true;
    pthread_cond_broadcast(&block->vm->world_changed);
    pthread_mutex_unlock(&block->vm->world_lock);
}

void world_unpark(struct block *block)
{
    struct translate_vm *vm = block->vm;
    pthread_mutex_lock(&vm->world_lock);
    while (vm->world_stopping) {
        pthread_cond_wait(&vm->world_changed, &vm->world_lock);
    }
    block->parked = false;
    pthread_mutex_unlock(&vm->world_lock);
}

static bool all_parked(const struct translate_vm *vm)
{
    for (unsigned i = 0; i < vm->block_count; i++) {
        if (vm->blocks[i] && !vm->blocks[i]->parked) {
            return false;
        }
    }
    return true;
}

void world_stop(struct translate_vm *vm, struct block *self, enum engine_counter why)
{
    if (self) {
        vcpu_count(&self->vcpu, why);
        block_trace(self, TRACE_WORLD,
                    why == COUNT_WORLD_LOCKED ? "locked access"
                    : why == COUNT_WORLD_ROOM ? "full cache"
                                              : "page transition",
                    NULL, 0);
        self->was_parked = self->parked;
        world_park(self); /* another stopper may be first */
    }
    pthread_mutex_lock(&vm->stopper);
    pthread_mutex_lock(&vm->world_lock);
    if (!self) {
        counter_add(&vm->counters.values[why], 1);
    }
    vm->world_stopping = true;
    for (unsigned i = 0; i < vm->block_count; i++) {
        struct block *block = vm->blocks[i];
        if (block && !block->parked) {
            atomic_fetch_or(&block->vcpu.kicks, KICK_WORLD);
            block->poll_now = 1;
            signals_kick(block);
        }
    }
    while (!all_parked(vm)) {
        pthread_cond_wait(&vm->world_changed, &vm->world_lock);
    }
    pthread_mutex_unlock(&vm->world_lock);
}

/* The stopper itself goes on as it was: in a call to the machine it stays parked. */
void world_resume(struct translate_vm *vm)
{
    struct block *self = signals_current();
    pthread_mutex_lock(&vm->world_lock);
    vm->world_stopping = false;
    if (self && self->vm == vm && self->in_run) {
        self->parked = self->was_parked;
    }
    pthread_cond_broadcast(&vm->world_changed);
    pthread_mutex_unlock(&vm->world_lock);
    pthread_mutex_unlock(&vm->stopper);
}

/* ---- as a listener of memory ---- */

static void drop(void *owner, uint64_t first, uint64_t count, bool write_only)
{
    struct translate_vm *vm = owner;
    pthread_mutex_lock(&vm->world_lock);
    if (vm->drop_count < ARRAY_SIZE(vm->drops)) {
        vm->drops[vm->drop_count].first = first;
        vm->drops[vm->drop_count].count = count;
        vm->drops[vm->drop_count++].write_only = write_only;
    } else {
        vm->drop_everything = true;
    }
    pthread_mutex_unlock(&vm->world_lock);
}

/* Units that check themselves read frames: where those go, the units go too. World stopped. */
static void drop_units(struct translate_vm *vm)
{
    bool dropped = false;
    pthread_mutex_lock(&vm->lock);
    for (unsigned i = 0; vm->had_checked_units && i < vm->drop_count; i++) {
        if (!vm->drops[i].write_only) {
            units_drop(vm, vm->drops[i].first, vm->drops[i].count);
            dropped = true;
        }
    }
    if (vm->had_checked_units && vm->drop_everything) {
        units_drop(vm, 0, UINT64_MAX);
        dropped = true;
    }
    pthread_mutex_unlock(&vm->lock);
    for (unsigned i = 0; dropped && i < vm->block_count; i++) {
        if (vm->blocks[i]) {
            spaces_forget_code(vm->blocks[i]);
        }
    }
}

static void apply_drops(struct translate_vm *vm)
{
    drop_units(vm);
    for (unsigned b = 0; b < vm->block_count; b++) {
        if (!vm->blocks[b]) {
            continue;
        }
        for (unsigned i = 0; i < vm->drop_count; i++) {
            spaces_drop(vm->blocks[b], vm->drops[i].first, vm->drops[i].count,
                        vm->drops[i].write_only);
        }
        if (vm->drop_everything) {
            spaces_drop(vm->blocks[b], 0, UINT64_MAX, false);
        }
    }
    vm->drop_count = 0;
    vm->drop_everything = false;
}

static void quiesce(void *owner)
{
    struct translate_vm *vm = owner;
    struct block *self = signals_current();
    if (self && (self->vm != vm || !self->in_run)) {
        self = NULL;
    }
    world_stop(vm, self, COUNT_WORLD_TRANSITION);
    pthread_mutex_lock(&vm->world_lock);
    apply_drops(vm);
    pthread_mutex_unlock(&vm->world_lock);
    world_resume(vm);
}

/* A store by the vCPU of this thread, or by a device (which may have been called by a vCPU). */
static void count_retired(struct translate_vm *vm, struct block *self, uint64_t retired)
{
    bool is_device = !self || self->activity == COUNT_SAMPLE_MACHINE;
    uint64_t *values = self ? self->vcpu.counters->values : vm->counters.values;
    counter_add(&values[COUNT_CODE_WRITES], 1);
    counter_add(&values[is_device ? COUNT_RETIRED_BY_DEVICE : COUNT_RETIRED_BY_STORE], retired);
}

static void code_written(void *owner, gpa_t gpa, uint64_t length)
{
    struct translate_vm *vm = owner;
    struct block *self = signals_current();
    pthread_mutex_lock(&vm->lock);
    uint64_t *otherwise = &vm->counters.values[COUNT_RETIRED_OTHERWISE], before = *otherwise;
    units_retire(vm, gpa, length);
    uint64_t retired = *otherwise - before;
    counter_add(otherwise, -retired);
    count_retired(vm, self && self->vm == vm && self->in_run ? self : NULL, retired);
    pthread_mutex_unlock(&vm->lock);
    if (engine_traces(&vm->config.trace, TRACE_RETIRE)) {
        trace_event(vm, self, TRACE_RETIRE, retired ? "retired" : "nothing", "by a store to", gpa);
    }
}

void world_listen(struct translate_vm *vm)
{
    struct memory_listener listener = {
        .drop = drop, .quiesce = quiesce, .code_written = code_written, .owner = vm};
    memory_listen(vm->config.memory, &listener);
}
