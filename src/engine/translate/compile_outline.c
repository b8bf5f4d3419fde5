/*
 * Sites and outlines: the places of a unit that may come back to C, and the code for what is rare,
 * which is emitted behind the straight path, in the cache's other part.
 */
#include "engine/translate/compiler.h"

uint32_t site_new(struct compiler *c, enum site_kind kind)
{
    ASSERT(c->vm->site_count < SITES_MAX);
    uint32_t number = c->vm->site_count++;
    c->vm->sites[number] = (struct site){
        .unit = unit_number(c->vm, c->unit),
        .offset = c->offsets[c->current],
        .kind = kind,
        .flags_home = c->flags,
        .recipe = c->recipe,
        .uncounted = (int8_t)c->uncounted,
        .resume = emit_offset(&c->e),
    };
    return number;
}

void outline(struct compiler *c, enum outline_kind kind, uint8_t *branch, uint32_t site,
             uint64_t constant)
{
    ASSERT(c->outline_count < OUTLINES_MAX);
    c->work->outlines[c->outline_count++] = (struct outline){
        .kind = kind, .branch = branch, .site = site, .constant = constant, .flags = c->flags};
}

/* The soft TLB has no entry for the address in SCRATCH: check again when there is one. */
static void emit_miss(struct compiler *c, uint32_t number)
{
    struct site *site = &c->vm->sites[number];
    emit_constant(&c->e, SCRATCH2, number);
    registers_leave(c);
    emit_call(&c->e, c->vm->stubs.memory[mode_privilege(c->mode)][site_access(site)]);
    site->reentry = has_own_registers(c) ? emit_offset(&c->e) : 0;
    registers_enter(c);
    emit_jump(&c->e, site->resume);
}

/* Behind a way out: where it comes back, if the unit has registers of its own. */
static void emit_reentry(struct compiler *c, uint32_t number)
{
    struct site *site = &c->vm->sites[number];
    if (has_own_registers(c) && site->resume) {
        site->reentry = emit_offset(&c->e);
        registers_enter(c);
        emit_jump(&c->e, site->resume);
    }
}

/* Behind the straight path: leave by a stub; if that comes back, go on where the site says. */
static void emit_stub(struct compiler *c, uint32_t number, uint32_t stub)
{
    emit_constant(&c->e, SCRATCH2, number);
    registers_leave(c);
    emit_jump(&c->e, stub);
    emit_reentry(c, number);
}

/* A direct exit that is not taken yet, or leads to other registers. */
static void emit_exit(struct compiler *c, const struct outline *o)
{
    struct emitter *e = &c->e;
    struct site *site = &c->vm->sites[o->site];
    uint32_t start = emit_offset(e);
    c->flags = o->flags;
    c->recipe = site->recipe;
    flags_to_block(c);
    registers_leave(c);
    if (site->kind == SITE_LINK) {
        emit_link(c, 4, o->site);
        return;
    }
    site->resume = start;
    emit_constant(e, SCRATCH2, o->site);
    if (has_own_registers(c)) {
        align_patch(c, 1);
        site->far = emit_offset(e) + 1;
    }
    emit_jump(e, c->vm->stubs.link);
}

static void emit_outline(struct compiler *c, const struct outline *o)
{
    struct emitter *e = &c->e;
    struct site *site = &c->vm->sites[o->site];
    if (c->marks) {
        trace_mark(c->marks, emit_offset(e), site->offset, true);
    }
    emit_set_target(e, o->branch);
    switch (o->kind) {
    case OUTLINE_MEMORY:
        if (site->is_group && (c->mode & MODE_USER)) { /* the kernel's stacks seldom lie so */
            emit_border_exit(c, o->site, o->flags);
        }
        emit_gs_scratch2(e, true, OP_ADD, SCRATCH, o->constant);
        emit_miss(c, o->site);
        break;
    case OUTLINE_ADDRESS:
        emit_constant(e, SCRATCH, o->constant);
        emit_miss(c, o->site);
        break;
    case OUTLINE_SLOT:
        emit_slot_miss(c, o->site, o->flags);
        break;
    case OUTLINE_EXECUTE:
        emit_stub(c, o->site, c->vm->stubs.execute);
        break;
    case OUTLINE_PAUSE:
        emit_stub(c, o->site, c->vm->stubs.pause);
        break;
    case OUTLINE_STRING:
        emit_stub(c, o->site, c->vm->stubs.string);
        break;
    case OUTLINE_JUMP:
        emit_indirect_note(c, o->site);
        emit_jump(e, c->vm->stubs.indirect_slow);
        break;
    case OUTLINE_CALL:
        emit_call(e, c->vm->stubs.indirect_slow);
        emit_jump(e, (uint32_t)o->constant);
        break;
    case OUTLINE_RETURN: /* the flags are saved: it may count itself */
        emit_gs(e, true, 0xff, 0, offsetof(struct block, counters.values[COUNT_RETURN_MISSES]));
        emit_indirect_note(c, o->site);
        emit_jump(e, c->vm->stubs.indirect[mode_privilege(c->mode)]);
        break;
    case OUTLINE_EXIT:
        emit_exit(c, o);
        break;
    case OUTLINE_POLL:
        emit_stub(c, o->site, c->vm->stubs.poll);
        break;
    case OUTLINE_TIME:
        emit_stub(c, o->site, c->vm->stubs.time);
        break;
    }
}

/* Entries and exits with the usual registers. */
static void emit_registers_exchanged(struct compiler *c)
{
    struct unit *unit = c->unit;
    struct emitter *e = &c->e;
    unit->inner_saved_entry = unit->saved_entry;
    unit->inner_host_entry = unit->host_entry;
    if (!has_own_registers(c)) {
        unit->fault_exit[false] = c->vm->stubs.fault_saved;
        unit->fault_exit[true] = c->vm->stubs.fault_host;
        return;
    }
    unit->saved_entry = emit_offset(e);
    registers_enter(c);
    emit_jump(e, unit->inner_saved_entry);
    unit->host_entry = emit_offset(e);
    registers_enter(c);
    emit_jump(e, unit->inner_host_entry);
    unit->fault_exit[false] = emit_offset(e);
    registers_leave(c);
    emit_jump(e, c->vm->stubs.fault_saved);
    unit->fault_exit[true] = emit_offset(e);
    registers_leave(c);
    emit_jump(e, c->vm->stubs.fault_host);
}

void emit_enter_page(struct compiler *c, unsigned offset)
{
    if (c->mode & MODE_ANYWHERE) {
        emit_lea(&c->e, SCRATCH, SCRATCH, 1 - (int32_t)offset);
        emit_store(&c->e, SCRATCH, offsetof(struct block, code_page));
    }
}

/* Where other pages enter: at SCRATCH, which says where this page is. */
static void emit_link_entry(struct compiler *c)
{
    struct unit *unit = c->unit;
    unit->link_entry = unit->saved_entry;
    if (c->mode & MODE_ANYWHERE) {
        unit->link_entry = emit_offset(&c->e);
        emit_enter_page(c, unit->offset);
        emit_jump(&c->e, unit->saved_entry);
    }
}

void emit_outlines(struct compiler *c)
{
    for (unsigned i = 0; i < c->outline_count; i++) {
        emit_outline(c, &c->work->outlines[i]);
    }
    emit_registers_exchanged(c);
    emit_link_entry(c);
}
