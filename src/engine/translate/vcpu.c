/*
 * translate as an engine: making VMs and vCPUs, and the run loop, which enters units and does
 * what they cannot: translate, interpret other code sizes, wait, stop.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "engine/translate/internal.h"
#include "x86/cpuid.h"

enum { CACHE_DEFAULT = 128 << 20 };

static struct translate_vm *vm_of(struct engine_vm *vm)
{
    return (struct translate_vm *)vm;
}

static struct block *block_of(struct engine_vcpu *vcpu)
{
    return (struct block *)vcpu;
}

/* ---- VM ---- */

static int translate_probe(void)
{
    struct cache cache;
    int result = cache_init(&cache, MIB(1));
    cache_fini(&cache);
    return result;
}

static void translate_vm_free(struct engine_vm *engine)
{
    struct translate_vm *vm = vm_of(engine);
    if (!vm) {
        return;
    }
    units_fini(vm);
    cache_fini(&vm->cache);
    world_fini(vm);
    pthread_mutex_destroy(&vm->lock);
    free(vm);
}

static int translate_vm_new(const struct engine_config *config, struct engine_vm **ret_vm)
{
    struct translate_vm *vm = calloc(1, sizeof *vm);
    ASSERT(vm);
    vm->config = *config;
    pthread_mutex_init(&vm->lock, NULL);
    world_init(vm);
    uint64_t size = config->cache_size ? config->cache_size : CACHE_DEFAULT;
    int result = cache_init(&vm->cache, (uint32_t)size);
    if (result == 0) {
        result = units_init(vm);
    }
    if (result < 0) {
        translate_vm_free((struct engine_vm *)vm);
        return result;
    }
    stubs_make(vm);
    if (config->trace.wants_unit) {
        config->trace.stubs(config->trace.owner, cache_address(vm, 0),
                            vm->cache.first[PART_STRAIGHT]);
    }
    world_listen(vm);
    *ret_vm = (struct engine_vm *)vm;
    return 0;
}

/* ---- vCPU ---- */

static int stacks_new(struct block *block)
{
    enum { GUARD = PAGE_SIZE };
    for (unsigned p = 0; p < PRIVILEGES; p++) {
        uint8_t *area = mmap(NULL, PRIVATE_STACK_SIZE + GUARD, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (area != MAP_FAILED) {
            block->stack_base[p] = area + GUARD;
        }
        if (area == MAP_FAILED || mprotect(area, GUARD, PROT_NONE) < 0) {
            return fail(-errno, "map a vCPU's private stack: %m");
        }
    }
    return 0;
}

static void translate_vcpu_free(struct engine_vcpu *engine)
{
    struct block *block = block_of(engine);
    if (!block) {
        return;
    }
    block->vm->blocks[block->vcpu.index] = NULL;
    heat_stop(block);
    if (signals_current() == block) {
        signals_attach(NULL);
    }
    interp_detach(&block->vcpu);
    for (unsigned p = 0; p < PRIVILEGES; p++) {
        if (block->stack_base[p]) {
            munmap(block->stack_base[p] - PAGE_SIZE, PRIVATE_STACK_SIZE + PAGE_SIZE);
        }
    }
    free(block->decoded);
    int fd = block->memory_fd;
    spaces_fini(block);
    close(fd);
}

/* The block lives in a memory file of its own, so that it can be mapped once for each space. */
static int block_new(struct translate_vm *vm, struct block **ret_block)
{
    struct block *template = calloc(1, sizeof *template);
    ASSERT(template);
    template->vm = vm;
    template->memory_fd = memfd_create("doppel-vcpu", MFD_CLOEXEC);
    int result = template->memory_fd < 0 || ftruncate(template->memory_fd, SPACE_OFFSET) < 0
                     ? fail(-errno, "make a memory file for a vCPU: %m")
                     : spaces_init(template);
    if (result == 0) {
        struct block *block = template->spaces[0].alias;
        bytes_copy(block, template, sizeof *block);
        block->self = block;
        *ret_block = block;
    } else if (template->memory_fd >= 0) {
        close(template->memory_fd);
    }
    free(template);
    return result;
}

static int translate_vcpu_new(struct engine_vm *engine, unsigned index,
                              struct engine_vcpu **ret_vcpu)
{
    struct translate_vm *vm = vm_of(engine);
    struct block *block = NULL;
    int result = block_new(vm, &block);
    if (result < 0) {
        return result;
    }
    struct vcpu *vcpu = &block->vcpu;
    block->host = block_host(block);
    vcpu->memory = vm->config.memory;
    vcpu->cpuid = vm->config.cpuid;
    vcpu->host = &block->host;
    vcpu->index = index;
    vcpu->time_mode = vm->config.time_mode;
    vcpu->engine = block;
    vcpu->counters = &block->counters;
    uint64_t allowed = cpuid_xcr0_allowed(vm->config.cpuid);
    block->xcr0_host = allowed ? allowed : XCR0_X87 | XCR0_SSE;
    block->decoded = calloc(DECODED_ENTRIES, sizeof *block->decoded);
    ASSERT(block->decoded);
    block->mode = MODE_INTERPRET;
    block->parked = true;
    block->deadline = block->units_until = UINT64_MAX;
    vcpu->pauses = PAUSES_UNTIL_YIELD;
    block->thread = pthread_self();
    cpu_state_reset(&vcpu->state, index == 0);
    result = interp_attach(vcpu);
    if (result == 0) {
        result = stacks_new(block);
    }
    if (result == 0) {
        result = signals_init();
    }
    if (result < 0) {
        translate_vcpu_free((struct engine_vcpu *)block);
        return result;
    }
    heat_start(block);
    vcpu->hooks = &translate_hooks;
    pthread_mutex_lock(&vm->world_lock);
    vm->blocks[index] = block;
    if (index >= vm->block_count) {
        vm->block_count = index + 1;
    }
    pthread_mutex_unlock(&vm->world_lock);
    pthread_mutex_lock(&vm->lock); /* links that are made ready from now on are ready here, too */
    spaces_reset(block);
    pthread_mutex_unlock(&vm->lock);
    vcpu_mode_changed(vcpu);
    space_activate(block);
    block_set_activity(block, COUNT_SAMPLE_HELPERS);
    *ret_vcpu = (struct engine_vcpu *)block;
    return 0;
}

/* In deterministic time the saved offset counts from the state's own moment (as in interp). */
static uint64_t counted(const struct block *block)
{
    return block->vcpu.time_mode == TIME_DETERMINISTIC ? block->vcpu.instructions : 0;
}

static void translate_get_state(struct engine_vcpu *vcpu, struct cpu_state *ret_state)
{
    bytes_copy(ret_state, &block_of(vcpu)->vcpu.state, sizeof *ret_state);
    ret_state->tsc_offset += counted(block_of(vcpu));
}

static void translate_set_state(struct engine_vcpu *engine, const struct cpu_state *state)
{
    struct block *block = block_of(engine);
    bytes_copy(&block->vcpu.state, state, sizeof *state);
    block->vcpu.state.tsc_offset -= counted(block);
    block->vectors_live = false;
    vcpu_mode_changed(&block->vcpu);
    translate_hooks.flush(&block->vcpu, FLUSH_ALL, 0, 0);
    block->mode = MODE_INTERPRET;
    vcpu_raise_pending(&block->vcpu);
}

static void translate_take_pending(struct engine_vcpu *engine, struct cpu_state *state)
{
    vcpu_take_pending(&block_of(engine)->vcpu, state);
}

static uint64_t translate_instructions(const struct engine_vcpu *vcpu)
{
    return ((const struct block *)vcpu)->vcpu.instructions;
}

static void translate_kick(struct engine_vcpu *vcpu, unsigned kicks, uint8_t sipi_vector)
{
    block_kick(block_of(vcpu), kicks, sipi_vector);
}

static void translate_wait(struct engine_vcpu *vcpu, uint64_t deadline_ns)
{
    block_wait(block_of(vcpu), deadline_ns);
}

/* Units come near the deadline only; the last instructions are interpreted one at a time. */
static void translate_set_deadline(struct engine_vcpu *vcpu, uint64_t instructions)
{
    struct block *block = block_of(vcpu);
    block->deadline = instructions;
    block->units_until = instructions > DEADLINE_REACH ? instructions - DEADLINE_REACH : 0;
    if (block->vcpu.instructions >= block->units_until) {
        atomic_fetch_or(&block->vcpu.kicks, KICK_DEADLINE);
        block->poll_now = 1;
    }
}

/* ---- the run loop ---- */

static void make_room(struct block *block)
{
    struct translate_vm *vm = block->vm;
    pthread_mutex_lock(&vm->lock);
    bool full = units_are_full(vm);
    pthread_mutex_unlock(&vm->lock);
    if (!full) {
        return;
    }
    world_stop(vm, block, COUNT_WORLD_ROOM);
    pthread_mutex_lock(&vm->lock);
    counter_add(&block->vcpu.counters->values[COUNT_RETIRED_BY_ROOM], vm->unit_count - 1);
    units_forget(vm);
    pthread_mutex_unlock(&vm->lock);
    for (unsigned i = 0; i < vm->block_count; i++) {
        if (vm->blocks[i]) {
            spaces_forget_code(vm->blocks[i]);
        }
    }
    world_resume(vm);
}

/* Will a unit of these pages check itself? */
static bool are_checked(struct translate_vm *vm, uint64_t page, uint64_t second)
{
    return page_is_checked(vm, page) || page_is_checked(vm, second);
}

/* Make the unit at rip, unless somebody else has by now. False: not in RAM. With vm->lock. */
static bool compile_missing(struct block *block, uint64_t rip, gpa_t gpa, uint64_t second,
                            bool checks)
{
    uint64_t page = gpa >> PAGE_SHIFT;
    gva_t virtual_page = align_down(rip, PAGE_SIZE);
    page_settle(block->vm, page, virtual_page);
    uint16_t mode = checks ? block->wanted_mode & ~MODE_ANYWHERE
                           : block_variant(block, page, rip, block->wanted_mode);
    if (unit_find(block->vm, page, second, gpa & (PAGE_SIZE - 1), virtual_page, mode)) {
        return true;
    }
    links_prepare(block->vm);
    return compile(block, rip, gpa, second, mode, checks);
}

/* Make the unit for state.rip. The vector state is saved. */
static enum step translate_here(struct block *block)
{
    struct translate_vm *vm = block->vm;
    uint64_t rip = block->vcpu.state.rip;
    gpa_t gpa;
    if (block->vcpu.debug && debug_has_break(block->vcpu.debug->points, rip)) {
        return STEP_NEXT; /* the run loop stops, or passes it by a step */
    }
    enum step step = block_translate_fetch(block, rip, &gpa);
    if (step == STEP_EXCEPTION) {
        return interp_deliver_exception(&block->vcpu);
    }
    make_room(block);
    uint64_t page = gpa >> PAGE_SHIFT, second = block_second_page(block, rip);
    pthread_mutex_lock(&vm->lock);
    uint32_t generation = vm->generation;
    pages_begin_compile(vm, page, second);
    bool was_checked = are_checked(vm, page, second);
    pthread_mutex_unlock(&vm->lock);
    /* May wait for other vCPUs: without our lock. Afterwards every store to the pages is seen. */
    bool is_watched = !was_checked && memory_set_code(vm->config.memory, page) == 0;
    if (is_watched && second != NO_PAGE && memory_set_code(vm->config.memory, second) < 0) {
        is_watched = false;
    }
    trail_clear();
    pthread_mutex_lock(&vm->lock);
    bool is_forgotten = vm->generation != generation;
    bool is_checked = are_checked(vm, page, second), is_ram = true;
    if (is_forgotten) {
        /* Another vCPU forgot everything meanwhile, maybe the mark of a page too: once more. */
        pages_begin_compile(vm, page, second);
    } else if ((is_watched || is_checked) &&
               !units_are_full(vm)) { /* others have compiled since make_room() */
        is_ram = compile_missing(block, rip, gpa, second, is_checked);
    }
    pages_end_compile(vm, page, second);
    pthread_mutex_unlock(&vm->lock);
    /* Code outside RAM, or that a device writes now, is for interp. */
    bool is_decided = is_ram && (is_watched || is_checked || was_checked || is_forgotten);
    return is_decided ? STEP_NEXT : interp_step(&block->vcpu);
}

/* The engine's own kicks; the architectural ones are interp_poll()'s. */
static void answer_engine_kicks(struct block *block)
{
    block->poll_now = 0;
    vcpu_count(&block->vcpu, COUNT_KICKS_ANSWERED);
    uint32_t own = KICK_WORLD | KICK_CODE | KICK_DEADLINE | KICK_DEBUG | KICK_HOT;
    uint32_t kicks = atomic_fetch_and(&block->vcpu.kicks, ~own);
    if (kicks & KICK_WORLD) {
        world_park(block);
        world_unpark(block);
    }
    if (kicks & KICK_HOT) {
        heat_answer(block);
    }
    if (kicks & KICK_CODE) {
        spaces_forget_code(block);
    }
    units_review(block->vm);
}

static enum step run_units(struct block *block)
{
    struct translate_vm *vm = block->vm;
    uint64_t leave = cache_address(vm, vm->stubs.leave);
    void (*enter)(struct block *, uint64_t) = (void *)cache_address(vm, vm->stubs.enter);

    block_scatter(block);
    /* A variant that was just made is the one to enter. */
    const uint16_t variants = MODE_PLAIN | MODE_ANYWHERE;
    bool is_made = (block->wanted_mode & ~variants) == block->mode;
    uint64_t host = is_made ? block_go_on(block, block->wanted_mode) : block_continue(block);
    if (host != leave) {
        block->wanted_mode = block->mode;
        vectors_restore(block);
        block->in_units = true;
        /* A kick since the run loop looked, which has sent no signal because we were in C code? */
        if (block->poll_now) {
            block->reason = LEAVE_AGAIN;
        } else {
            enter(block, host);
        }
        block->in_units = false;
    }
    block_gather(block);
    switch (block->reason) {
    case LEAVE_TRANSLATE: {
        vectors_save(block);
        uint32_t before = block_set_activity(block, COUNT_SAMPLE_TRANSLATION);
        enum step step = translate_here(block);
        block_set_activity(block, before);
        return step;
    }
    case LEAVE_STEP:
        return block->step;
    case LEAVE_AGAIN:
        break;
    }
    return STEP_NEXT;
}

static enum exit_kind leave_run(struct block *block, enum exit_kind kind)
{
    vectors_save(block);
    __asm__ volatile("fninit");
    world_park(block);
    block->in_run = false;
    return kind;
}

/* Units neither know a shadow that is on at their start, nor stop at a deadline exactly. */
static bool needs_single_steps(const struct block *block)
{
    return (block->mode & MODE_INTERPRET) || block->vcpu.state.interrupt_shadow ||
           block->vcpu.instructions >= block->units_until;
}

static enum exit_kind translate_run(struct engine_vcpu *engine)
{
    struct block *block = block_of(engine);
    struct vcpu *vcpu = &block->vcpu;
    block->thread = pthread_self();
    signals_attach(block);
    block->in_run = true;
    world_unpark(block);
    space_activate(block);
    for (;;) {
        enum step step = STEP_NEXT;
        if (vcpu->debug && debug_is_over(vcpu)) {
            return leave_run(block, EXIT_DEBUG);
        }
        if (vcpu->instructions >= block->deadline) {
            block->deadline = block->units_until = UINT64_MAX;
            return leave_run(block, EXIT_INTERRUPTED);
        }
        if (atomic_load(&vcpu->kicks) || block->poll_now) {
            answer_engine_kicks(block);
            if (atomic_load(&vcpu->kicks) & KICK_STOP) {
                atomic_fetch_and(&vcpu->kicks, ~(uint32_t)KICK_STOP);
                return leave_run(block, EXIT_INTERRUPTED);
            }
            vectors_save(block);
            step = interp_poll(vcpu);
        } else if (vcpu->state.activity != ACTIVITY_RUNNING) {
            step = STEP_HALT;
        }
        enum debug_verdict verdict = DEBUG_RUN;
        if (vcpu->debug && step == STEP_NEXT) {
            verdict = debug_before(vcpu);
        }
        if (verdict == DEBUG_STOP) {
            return leave_run(block, EXIT_DEBUG);
        }
        if (step == STEP_NEXT) {
            block_renew_mode(block);
            if (verdict == DEBUG_STEP || needs_single_steps(block)) {
                vectors_save(block);
                vcpu_count(vcpu, COUNT_SINGLE_STEPS);
                block_set_activity(block, COUNT_SAMPLE_INTERP);
                step = interp_step(vcpu);
                block_set_activity(block, COUNT_SAMPLE_HELPERS);
            } else {
                step = run_units(block);
            }
        }
        switch (step) {
        case STEP_NEXT:
        case STEP_EXCEPTION:
            break;
        case STEP_HALT:
            if (!block_has_work(block) && !(vcpu->debug && vcpu->debug->is_armed)) {
                vcpu_count(vcpu, COUNT_HALTS);
                return leave_run(block, EXIT_HALT);
            }
            break;
        case STEP_SHUTDOWN:
            return leave_run(block, EXIT_TRIPLE_FAULT);
        case STEP_ERROR:
            return leave_run(block, EXIT_ERROR);
        }
    }
}

/* ---- the debugger ---- */

static void translate_set_debug(struct engine_vcpu *vcpu, struct debug *debug)
{
    block_of(vcpu)->vcpu.debug = debug;
}

static void translate_breaks_changed(struct engine_vm *engine, const struct debug_points *points)
{
    struct translate_vm *vm = vm_of(engine);
    pthread_mutex_lock(&vm->lock);
    units_retire_breaks(vm, points);
    pthread_mutex_unlock(&vm->lock);
    for (unsigned i = 0; i < vm->block_count; i++) {
        if (vm->blocks[i]) {
            atomic_fetch_or(&vm->blocks[i]->vcpu.kicks, KICK_CODE);
            vm->blocks[i]->poll_now = 1;
        }
    }
}

static const struct engine_counters *translate_counters(const struct engine_vcpu *vcpu)
{
    return &((const struct block *)vcpu)->counters;
}

static const struct engine_counters *translate_vm_counters(const struct engine_vm *vm)
{
    return &((const struct translate_vm *)vm)->counters;
}

static enum engine_counter translate_where(const struct engine_vcpu *vcpu, uint64_t *ret_rip)
{
    const struct block *block = (const struct block *)vcpu;
    uint64_t seen = atomic_load(&block->seen_at);
    const struct unit *unit = block->in_units ? unit_at(block->vm, seen) : NULL;
    *ret_rip = unit ? block_unit_page(block, unit) + unit->offset
                    : __atomic_load_n(&block->vcpu.state.rip, __ATOMIC_RELAXED);
    return !unit                    ? (enum engine_counter)block->activity
           : unit->mode & MODE_USER ? COUNT_SAMPLE_USER
                                    : COUNT_SAMPLE_KERNEL;
}

const struct engine_ops translate_engine = {
    .name = "translate",
    .probe = translate_probe,
    .vm_new = translate_vm_new,
    .vm_free = translate_vm_free,
    .vcpu_new = translate_vcpu_new,
    .vcpu_free = translate_vcpu_free,
    .run = translate_run,
    .kick = translate_kick,
    .wait = translate_wait,
    .get_state = translate_get_state,
    .set_state = translate_set_state,
    .take_pending = translate_take_pending,
    .instructions = translate_instructions,
    .set_deadline = translate_set_deadline,
    .set_debug = translate_set_debug,
    .breaks_changed = translate_breaks_changed,
    .counters = translate_counters,
    .vm_counters = translate_vm_counters,
    .where = translate_where,
};
