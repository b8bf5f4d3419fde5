/*
 * What units call: instructions that interp executes, exits that are not linked yet. Each helper
 * returns the host address at which to go on.
 *
 * Built for general registers only: guest vector state is in the CPU meanwhile. Where that does
 * not do (Zydis, device models) it is saved first: vectors_save().
 */
#include "engine/translate/helper.h"

/* ---- instructions in interp ---- */

struct place place_at(const struct block *block, uint32_t number)
{
    const struct translate_vm *vm = block->vm;
    const struct site *site = &vm->sites[number];
    const struct unit *unit = &vm->units[site->unit];
    bool is_inline = site->kind == SITE_EXECUTE && site->resume;
    uint64_t resume = cache_address(vm, site_resume(site));
    struct place place = {
        .rip = block_unit_page(block, unit) + site->offset,
        .gpa = unit->page << PAGE_SHIFT | site->offset,
        .unit = unit,
        .inline_address = is_inline ? resume : 0,
        .retry_address = resume,
        .generation = vm->generation,
        .drops = block->drops,
        .uncounted = site->uncounted,
        .recipe.kind = RECIPE_NONE,
        .length = site->size,
    };
    if (site->flags_home == FLAGS_RECIPE) {
        place.recipe = site->recipe;
    }
    return place;
}

void place_save_flags(struct block *block, const struct place *place)
{
    if (place->recipe.kind != RECIPE_NONE) {
        block->saved_flags =
            recipe_flags(block->vcpu.state.gpr, block->recipe_kept, &place->recipe);
    }
}

struct place place_of(struct block *block, uint32_t number)
{
    struct place place = place_at(block, number);
    place_save_flags(block, &place);
    return place;
}

bool place_is_current(const struct block *block, const struct place *place)
{
    return block->vm->generation == place->generation && block->drops == place->drops &&
           !place->unit->is_retired;
}

/*
 * The decoded instruction at a place, or NULL if its bytes cross the page or are invalid. Nobody
 * tells of stores to places of units that check themselves.
 */
static const struct decoded *decoded_find(struct block *block, gpa_t gpa, bool checks)
{
    if (!block->decoded_valid) {
        for (unsigned i = 0; i < DECODED_ENTRIES; i++) {
            block->decoded[i].key = UINT64_MAX;
        }
        block->decoded_valid = true;
    }
    struct decoded *entry = &block->decoded[(gpa ^ gpa >> 8) & (DECODED_ENTRIES - 1)];
    if (entry->key != gpa || checks) {
        uint8_t bytes[INSN_MAX_LENGTH];
        unsigned room = PAGE_SIZE - (gpa & (PAGE_SIZE - 1));
        unsigned count = room < sizeof bytes ? room : sizeof bytes;
        if (memory_read(block->vm->config.memory, gpa, bytes, count) < 0) {
            return NULL;
        }
        entry->key = UINT64_MAX;
        if (!decode_common(DECODE_64, bytes, count, &entry->insn)) {
            vectors_save(block);
            if (decode(DECODE_64, bytes, count, &entry->insn) != DECODE_OK) {
                return NULL;
            }
        }
        entry->key = checks ? UINT64_MAX : gpa;
        entry->form = slow_form_find(&block->counters, slow_form_of(&entry->insn));
    }
    return entry;
}

uint64_t place_execute(struct block *block, const struct place *place)
{
    struct vcpu *vcpu = &block->vcpu;
    enum step step;

    block_gather(block);
    vcpu->state.rip = place->rip;
    vcpu->instructions += (uint64_t)place->uncounted;
    const struct decoded *decoded = decoded_find(block, place->gpa, place->unit->source);
    const struct insn *insn = decoded ? &decoded->insn : NULL;
    vcpu_count(vcpu, COUNT_SLOW_INSTRUCTIONS);
    if (insn) {
        counter_add(&vcpu->counters->slow_forms[decoded->form].count, 1);
        if (interp_uses_vector_state(insn)) {
            vectors_save(block);
        }
        step = interp_conclude(vcpu, interp_execute(vcpu, insn));
    } else {
        vectors_save(block);
        step = interp_step(vcpu);
    }
    if (step == STEP_NEXT && vcpu->state.interrupt_shadow && !vcpu->debug) {
        vectors_save(block);
        step = interp_step(vcpu); /* no interrupt may come between: SDM volume 3, 6.8.3 */
    }
    /* A debugger may stop in the shadow: the run loop asks it before each step. */
    if (step != STEP_NEXT || (vcpu->debug && vcpu->state.interrupt_shadow)) {
        return block_leave_step(block, step);
    }
    /* A unit that checks itself does not know what interp has found at its place. */
    bool goes_on = insn && !place->unit->source && place_is_current(block, place) &&
                   vcpu->state.rip == place->rip + insn->info.length;
    return block_resume(block, goes_on ? place->inline_address : 0);
}

uint64_t helper_execute(struct block *block, uint32_t number)
{
    struct place place = place_of(block, number);
    vcpu_count(&block->vcpu, COUNT_EXIT_EXECUTE);
    block_trace(block, TRACE_EXITS, "instruction", "at", place.rip);
    return place_execute(block, &place);
}

uint64_t helper_fault(struct block *block, uint32_t number)
{
    if (block->vm->sites[number].kind == SITE_POLL) {
        return helper_poll(block, number);
    }
    struct place place = place_of(block, number);
    vcpu_count(&block->vcpu, COUNT_EXIT_FAULT);
    block_trace(block, TRACE_EXITS, "fault", "at", place.rip);
    return place_execute(block, &place);
}

uint64_t place_start_over(struct block *block, const struct place *place)
{
    block->vcpu.state.rip = place->rip;
    block->vcpu.instructions += (uint64_t)place->uncounted;
    return block_continue(block);
}

/* ---- exits ---- */

uint64_t helper_poll(struct block *block, uint32_t number)
{
    place_of(block, number); /* for the flags */
    block_gather(block);
    block->vcpu.state.rip = block_target(block, &block->vm->sites[number]);
    block->vcpu.instructions += block->vm->sites[number].uncounted;
    vcpu_count(&block->vcpu, COUNT_EXIT_POLL);
    block_trace(block, TRACE_EXITS, "poll", "at", block->vcpu.state.rip);
    return block_resume(block, 0);
}

uint64_t helper_deadline(struct block *block, uint32_t number)
{
    block->vcpu.state.rip = block_target(block, &block->vm->sites[number]);
    vcpu_count(&block->vcpu, COUNT_EXIT_DEADLINE);
    return block_leave(block, LEAVE_AGAIN);
}

uint64_t helper_link(struct block *block, uint32_t number)
{
    struct translate_vm *vm = block->vm;
    const struct site *site = &vm->sites[number];
    uint64_t rip = block_target(block, site);
    const struct unit *from = &vm->units[site->unit];
    uint16_t mode =
        block->mode | (site->kind == SITE_PLAIN ? MODE_PLAIN : 0) | (from->mode & MODE_ANYWHERE);
    block->vcpu.state.rip = rip;
    bool is_link = site->kind == SITE_LINK;
    vcpu_count(&block->vcpu, is_link ? COUNT_EXIT_LINK : COUNT_EXIT_CHAIN);
    block_trace(block, TRACE_EXITS, is_link ? "link" : "chain", "to", rip);
    if (is_link) {
        uint64_t host = block_find_link(block, number, mode);
        return host ? host : block_leave_to_translate(block, mode);
    }
    pthread_mutex_lock(&vm->lock);
    /* Exits to an instruction across pages are links, never chains. */
    struct unit *target =
        unit_find(vm, from->page, NO_PAGE, rip & (PAGE_SIZE - 1), align_down(rip, PAGE_SIZE), mode);
    if (target && !from->is_retired && optimizes(vm, site->unit, OPTIMIZE_CHAINS)) {
        site_link(vm, number, target);
        block_trace(block, TRACE_CHAINS, "chain", "host",
                    cache_address(vm, target->parts[PART_STRAIGHT].start));
    }
    pthread_mutex_unlock(&vm->lock);
    return target ? cache_address(vm, target->saved_entry) : block_go_on(block, mode);
}

uint64_t helper_stale(struct block *block, uint32_t number)
{
    struct translate_vm *vm = block->vm;
    struct unit *unit = &vm->units[vm->sites[number].unit];
    uint16_t mode = unit->mode;
    block->vcpu.state.rip = unit->virtual_page + unit->offset;
    vcpu_count(&block->vcpu, COUNT_EXIT_STALE);
    block_trace(block, TRACE_EXITS, "stale", "at", block->vcpu.state.rip);
    pthread_mutex_lock(&vm->lock);
    struct unit *current =
        unit_find(vm, unit->page, unit->second_page, unit->offset, unit->virtual_page, unit->mode);
    if (current > unit) { /* only to younger ones, so that the last one comes here */
        site_link(vm, number, current);
    }
    pthread_mutex_unlock(&vm->lock);
    return block_look_again(block, mode);
}

uint64_t helper_indirect(struct block *block, uint32_t unused)
{
    (void)unused;
    vcpu_count(&block->vcpu, COUNT_EXIT_INDIRECT);
    block_trace(block, TRACE_EXITS, "indirect", "to", block->address);
    if (!is_canonical(block->address)) {
        block->vcpu.state.gpr[RSP] -= block->vm->sites[block->indirect_site].undo;
        return helper_execute(block, block->indirect_site);
    }
    block->vcpu.state.rip = block->address;
    if (block->poll_now) {
        block_gather(block);
        return block_resume(block, 0);
    }
    return block_continue(block);
}
