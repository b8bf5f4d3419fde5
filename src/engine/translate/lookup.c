/*
 * Where a vCPU goes on: the fetch translations, the jump cache and the units behind them, and what
 * others want of it first (kicks).
 */
#include "engine/mmu.h"
#include "engine/translate/helper.h"

/* ---- finding units ---- */

static void note_exec_page(struct block *block, gva_t gva)
{
    unsigned bit = exec_page_bit(gva);
    block->exec_pages[mode_privilege(block->mode)][bit >> 6] |= 1ull << (bit & 63);
}

enum step block_translate_fetch(struct block *block, gva_t rip, gpa_t *ret_gpa)
{
    struct exec_entry *entry =
        &block->exec_tlb[mode_privilege(block->mode)][rip >> PAGE_SHIFT & (EXEC_ENTRIES - 1)];
    gva_t page = align_down(rip, PAGE_SIZE);
    if (entry->gva_page != page) {
        struct walk_result result;
        enum step step = mmu_translate_fetch(&block->vcpu, rip, &result);
        if (step != STEP_NEXT) {
            return step;
        }
        entry->gva_page = page;
        entry->gpa_page = align_down(result.gpa, PAGE_SIZE);
        block->kernel_is_local |= !result.global && !(block->mode & MODE_USER);
        note_exec_page(block, rip);
        if (result.page_size > PAGE_SIZE) {
            note_exec_page(block, exec_large_page(rip, result.page_size));
        }
    }
    *ret_gpa = entry->gpa_page | (rip & (PAGE_SIZE - 1));
    return STEP_NEXT;
}

uint64_t block_second_page(struct block *block, gva_t rip)
{
    gpa_t gpa;
    if ((rip & (PAGE_SIZE - 1)) + INSN_MAX_LENGTH <= PAGE_SIZE ||
        block_translate_fetch(block, align_down(rip, PAGE_SIZE) + PAGE_SIZE, &gpa) != STEP_NEXT) {
        return NO_PAGE;
    }
    return gpa >> PAGE_SHIFT;
}

uint64_t block_leave(struct block *block, enum leave_reason reason)
{
    block->reason = reason;
    return cache_address(block->vm, block->vm->stubs.leave);
}

uint64_t block_leave_to_translate(struct block *block, uint16_t mode)
{
    block->wanted_mode = mode;
    return block_leave(block, LEAVE_TRANSLATE);
}

uint64_t block_leave_step(struct block *block, enum step step)
{
    block_renew_mode(block);
    block_scatter(block);
    block->step = step;
    return block_leave(block, LEAVE_STEP);
}

static struct jump_entry *jump_entry(struct block *block, uint64_t rip, uint16_t mode)
{
    if (mode & MODE_PLAIN) {
        return &block->plain_jumps[mode_privilege(mode)][jump_index(rip) & (PLAIN_ENTRIES - 1)];
    }
    return &block_jumps(block, mode_privilege(mode))[jump_index(rip)];
}

uint16_t block_variant(struct block *block, uint64_t page, uint64_t rip, uint16_t mode)
{
    const struct page_units *units = page_find(block->vm, page);
    /* Breakpoints are at addresses, and so is what deterministic time counts up to. */
    if (!(mode & MODE_USER) || block->vcpu.debug || !units ||
        block->vm->config.time_mode == TIME_DETERMINISTIC ||
        page_is_bound_elsewhere(block, units, rip) ||
        !optimizes(block->vm, (uint32_t)(units - block->vm->pages), OPTIMIZE_ADDRESSES)) {
        return mode & ~MODE_ANYWHERE;
    }
    return mode | (page_is_away(units, rip) ? MODE_ANYWHERE : 0);
}

/*
 * The unit at rip, which is at gpa: its page is bound there. A unit for this address alone will
 * always do, and may be all there is (where it checks itself). With vm->lock.
 */
static struct unit *find_unit(struct block *block, uint64_t rip, gpa_t gpa, uint64_t second,
                              uint16_t mode)
{
    struct translate_vm *vm = block->vm;
    uint64_t page = gpa >> PAGE_SHIFT, virtual_page = align_down(rip, PAGE_SIZE);
    uint16_t offset = gpa & (PAGE_SIZE - 1), variant = block_variant(block, page, rip, mode);
    struct unit *unit = unit_find(vm, page, second, offset, virtual_page, variant);
    if (!unit && (variant & MODE_ANYWHERE)) {
        unit = unit_find(vm, page, second, offset, virtual_page, variant & ~MODE_ANYWHERE);
    }
    if (unit && (mode & MODE_USER)) {
        page_bind(block, &vm->pages[unit->page_number], rip);
    }
    return unit;
}

uint64_t block_find(struct block *block, uint64_t rip, uint16_t mode)
{
    struct translate_vm *vm = block->vm;
    struct jump_entry *jump = jump_entry(block, rip, mode);
    gpa_t gpa;
    block->address = rip; /* for the link_entry */
    if (jump->gva == rip) {
        return jump->host;
    }
    if (block_translate_fetch(block, rip, &gpa) != STEP_NEXT) {
        return 0;
    }
    uint64_t second = block_second_page(block, rip);
    pthread_mutex_lock(&vm->lock);
    struct unit *unit = find_unit(block, rip, gpa, second, mode);
    uint64_t host = unit ? cache_address(vm, unit->link_entry) : 0;
    pthread_mutex_unlock(&vm->lock);
    if (host && (mode & MODE_PLAIN)) {
        *jump = (struct jump_entry){.gva = rip, .host = host};
        block->plain_filled = true;
    } else if (host) {
        jump_fill(block, mode_privilege(mode), rip, host);
    }
    return host;
}

/* Not by way of the jump cache: what direct branches lead to would fill it. */
uint64_t block_find_link(struct block *block, uint32_t number, uint16_t mode)
{
    struct translate_vm *vm = block->vm;
    const struct site *site = &vm->sites[number];
    uint64_t rip = block_target(block, site), host = 0;
    uint32_t link = site->link, generation = vm->generation;
    gpa_t gpa;
    block->address = rip; /* for the link_entry */
    if (block_translate_fetch(block, rip, &gpa) != STEP_NEXT) {
        return 0;
    }
    uint64_t second = block_second_page(block, rip);
    pthread_mutex_lock(&vm->lock);
    /* The translations may have waited: is the site still what it was? */
    struct unit *unit =
        vm->generation == generation ? find_unit(block, rip, gpa, second, mode) : NULL;
    bool links = unit && optimizes(vm, site->unit, OPTIMIZE_LINKS);
    if (links) {
        site_remember(vm, number, unit);
    }
    if (unit) {
        host = cache_address(vm, unit->link_entry);
    }
    pthread_mutex_unlock(&vm->lock);
    if (links) {
        link_fill(block, link, host);
        block_trace(block, TRACE_CHAINS, "link", "slot", link);
    }
    return host;
}

uint64_t block_go_on(struct block *block, uint16_t mode)
{
    uint64_t host = block_find(block, block->vcpu.state.rip, mode);
    return host ? host : block_leave_to_translate(block, mode);
}

uint64_t block_continue(struct block *block)
{
    if (block->mode & MODE_INTERPRET) {
        return block_leave(block, LEAVE_AGAIN);
    }
    return block_go_on(block, block->mode);
}

uint64_t block_look_again(struct block *block, uint16_t mode)
{
    jump_entry(block, block->vcpu.state.rip, mode)->gva =
        jump_nowhere(jump_index(block->vcpu.state.rip));
    return block_go_on(block, mode);
}

/* ---- kicks ---- */

/* Look at what others want of this vCPU. Gathered state. False: leave for the run loop. */
static bool poll_kicks(struct block *block)
{
    block->poll_now = 0;
    vcpu_count(&block->vcpu, COUNT_KICKS_ANSWERED);
    uint32_t kicks = atomic_load(&block->vcpu.kicks);
    if (kicks & KICK_CODE) {
        atomic_fetch_and(&block->vcpu.kicks, ~(uint32_t)KICK_CODE);
        spaces_forget_code(block);
    }
    if (kicks & KICK_INTERRUPT && !(block->vcpu.state.rflags & FLAG_IF)) {
        kicks &= ~(uint32_t)KICK_INTERRUPT; /* STI and POPF look again */
    }
    return !(kicks & ~(uint32_t)KICK_CODE);
}

uint64_t block_resume(struct block *block, uint64_t inline_address)
{
    uint16_t mode = block->mode;
    uint32_t drops = block->drops;
    block_renew_mode(block);
    bool quiet = (atomic_load(&block->vcpu.kicks) == 0 && !block->poll_now) || poll_kicks(block);
    block_scatter(block);
    if (!quiet) {
        return block_leave(block, LEAVE_AGAIN);
    }
    vectors_restore(block);
    /* Another vCPU may have retired the unit since the caller looked. */
    if (inline_address && mode == block->mode && drops == block->drops) {
        return inline_address;
    }
    return block_continue(block);
}
