/*
 * Hot code. A timer of the vCPU thread's CPU time samples where it is; a page of user code that a
 * good part of the samples fall into is compiled anew, with a slot of the soft TLB for each memory
 * operand. A slot pays where an instruction comes back to the same page; where it does not, the
 * instruction is shunned and goes by the tables again.
 */
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/translate/helper.h"

enum {
    SAMPLE_PERIOD_NS = 2000000,
    HOT_SAMPLES = 6, /* of the last SAMPLES */
    CHANGES = 1024,  /* of a slot's page, after which it is judged */
    /* Ticks of the host's TSC between two changes of a slot that pays. */
    CHANGE_DISTANCE = 60,
};

void heat_start(struct block *block)
{
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = KICK_SIGNAL};
    struct itimerspec period = {.it_interval.tv_nsec = SAMPLE_PERIOD_NS,
                                .it_value.tv_nsec = SAMPLE_PERIOD_NS};
    if (block->vm->config.code.hot != HOT_SAMPLED ||
        block->vcpu.time_mode == TIME_DETERMINISTIC) { /* which does not look at the host's time */
        return;
    }
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    if (timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &block->sampler) < 0) {
        vcpu_count(&block->vcpu, COUNT_SAMPLERS_REFUSED);
        return;
    }
    block->has_sampler = true;
    timer_settime(block->sampler, 0, &period, NULL);
}

void heat_stop(struct block *block)
{
    if (block->has_sampler) {
        timer_delete(block->sampler);
    }
}

bool heat_sample(struct block *block, uint64_t host)
{
    const struct unit *unit = unit_at(block->vm, host);
    unsigned same = 0;
    if (!unit || !(unit->mode & MODE_USER)) {
        block->samples[block->sample_count++ % SAMPLES] = NO_PAGE;
        return false;
    }
    block->samples[block->sample_count++ % SAMPLES] = unit->page;
    for (unsigned i = 0; i < SAMPLES; i++) {
        same += block->samples[i] == unit->page;
    }
    block->hot_page = unit->page;
    return same >= HOT_SAMPLES && !unit->has_slots;
}

void heat_answer(struct block *block)
{
    struct translate_vm *vm = block->vm;
    pthread_mutex_lock(&vm->lock);
    page_make_hot(vm, block->hot_page);
    pthread_mutex_unlock(&vm->lock);
}

/* ---- slots ---- */

static uint64_t shunned_index(gpa_t gpa)
{
    return gpa * 0x9e3779b97f4a7c15ull >> 32 & (SHUNNED_ENTRIES - 1);
}

bool slot_is_shunned(const struct translate_vm *vm, gpa_t gpa)
{
    return vm->shunned[shunned_index(gpa)] == gpa + 1;
}

/* Compile the site's unit anew, without a slot at this place. */
static void shun(struct block *block, const struct site *site)
{
    struct translate_vm *vm = block->vm;
    struct unit *unit = &vm->units[site->unit];
    gpa_t gpa = unit->page << PAGE_SHIFT | site->offset;
    pthread_mutex_lock(&vm->lock);
    vm->shunned[shunned_index(gpa)] = gpa + 1;
    unit_renew(vm, unit);
    pthread_mutex_unlock(&vm->lock);
}

/* The slot has changed its page CHANGES times. Too often? */
static bool is_restless(struct tlb_slot *slot)
{
    uint64_t now = __builtin_ia32_rdtsc(), since = slot->since;
    slot->changes_left = CHANGES;
    slot->since = now;
    return now - since < CHANGES * CHANGE_DISTANCE;
}

uint64_t helper_slot(struct block *block, uint32_t number)
{
    const struct site *site = &block->vm->sites[number];
    enum tlb_privilege privilege = tlb_privilege(mode_privilege(block->mode));
    enum tlb_access access = site_access(site);
    struct tlb_slot *slot = &block->vcpu.tlb->slots[privilege][access][site->slot];
    if (is_restless(slot)) {
        shun(block, site);
    }
    return cache_address(block->vm, site_resume(site));
}
