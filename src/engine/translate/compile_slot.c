/*
 * The check of a memory operand in hot code, by a slot of the soft TLB that belongs to the operand
 * alone: nothing has to be computed before the slot can be loaded.
 */
#include "engine/translate/compiler.h"

void compile_slot_check(struct compiler *c, unsigned size, bool write, uint8_t opcode, unsigned reg)
{
    struct emitter *e = &c->e;
    uint32_t site = check_site(c, size, write);
    enum privilege privilege = mode_privilege(c->mode);
    enum tlb_access access = write ? TLB_WRITE : TLB_READ;
    uint32_t number = c->vm->slot_count[privilege][access]++ % TLB_SLOTS;
    size_t slot = slot_offset(privilege, access, number);
    c->vm->sites[site].has_slot = true;
    c->vm->sites[site].slot = number;
    emit_gs(e, true, OP_SUB, SCRATCH, slot + offsetof(struct tlb_slot, tag));
    outline(c, OUTLINE_SLOT, emit_distance_check(e, size), site, 0);
    emit_gs(e, true, opcode, reg, slot + offsetof(struct tlb_slot, host));
}

/* Another page than the slot's: take its entry from the table, unless it is for C. */
void emit_slot_miss(struct compiler *c, uint32_t number, enum flags_home flags)
{
    struct emitter *e = &c->e;
    struct site *site = &c->vm->sites[number];
    enum privilege privilege = mode_privilege(c->mode);
    enum tlb_access access = site_access(site);
    size_t slot = slot_offset(privilege, access, site->slot);
    size_t entry = tlb_entry_offset(privilege, access);
    uint32_t border = site->is_group ? emit_border_exit(c, number, flags) : 0;
    emit_gs(e, true, OP_ADD, SCRATCH, slot + offsetof(struct tlb_slot, tag));
    emit_store(e, SCRATCH, offsetof(struct block, slot_address));
    uint32_t again = emit_offset(e);
    emit_check_index(e);
    emit_gs_scratch2(e, true, OP_SUB, SCRATCH, entry + offsetof(struct tlb_entry, tag));
    uint8_t *misses = emit_distance_check(e, site->size);
    emit_gs(e, false, 0x83, 5, slot + offsetof(struct tlb_slot, changes_left)); /* sub dword, 1 */
    emit8(e, 1);
    uint8_t *is_judged = emit_branch_forward(e, CONDITION_S);
    emit_gs(e, false, 0xc6, 0, slots_used_offset(privilege)); /* mov byte, 1 */
    emit8(e, 1);
    emit_gs_scratch2(e, true, OP_LOAD, SCRATCH, entry + offsetof(struct tlb_entry, tag));
    emit_store(e, SCRATCH, slot + offsetof(struct tlb_slot, tag));
    emit_gs_scratch2(e, true, OP_LOAD, SCRATCH2, entry + offsetof(struct tlb_entry, host));
    emit_store(e, SCRATCH2, slot + offsetof(struct tlb_slot, host));
    emit_load(e, SCRATCH, offsetof(struct block, slot_address));
    emit_jump(e, site->resume);
    emit_set_target(e, misses);
    if (border) {
        uint8_t *farther = emit_distance_check(e, 1);
        emit_jump(e, border);
        emit_set_target(e, farther);
    }
    emit_load(e, SCRATCH, offsetof(struct block, slot_address));
    emit_constant(e, SCRATCH2, number);
    registers_leave(c);
    emit_call(e, c->vm->stubs.memory[privilege][access]);
    site->reentry = has_own_registers(c) ? emit_offset(e) : 0;
    registers_enter(c);
    emit_jump(e, again);
    emit_set_target(e, is_judged);
    emit_load(e, SCRATCH, offsetof(struct block, slot_address));
    emit_constant(e, SCRATCH2, number);
    registers_leave(c);
    emit_jump(e, c->vm->stubs.slot);
}
