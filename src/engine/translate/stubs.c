/*
 * Host code that all units share: entering and leaving, and the calls from units into C.
 *
 * A call into C saves every guest register in the block, switches to the C stack, calls a helper
 * with (block, SCRATCH2), loads every register again and jumps to the address that the helper
 * returned. Vector state stays in the CPU: the helpers use general registers only.
 */
#include "engine/translate/emit.h"

/* Guest registers that sit in their own host register while units run. */
enum { IN_PLACE = 0xffff & ~(1u << RSP | DISPLACED) };

static void emit_save_registers(struct emitter *e)
{
    for (unsigned left = IN_PLACE; left; left &= left - 1) {
        unsigned gpr = (unsigned)__builtin_ctz(left);
        emit_store(e, gpr, gpr_slot(gpr));
    }
    emit_store(e, GUEST_RSP, gpr_slot(RSP));
}

static void emit_load_registers(struct emitter *e)
{
    for (unsigned left = IN_PLACE; left; left &= left - 1) {
        unsigned gpr = (unsigned)__builtin_ctz(left);
        emit_load(e, gpr, gpr_slot(gpr));
    }
    emit_load(e, GUEST_RSP, gpr_slot(RSP));
}

/* The body after `mov scratch2, site`: SCRATCH is kept in block->address around the call. */
static uint32_t emit_call_helper(struct emitter *e, uint64_t (*helper)(struct block *, uint32_t))
{
    while (emit_offset(e) & 15) {
        emit8(e, 0xcc);
    }
    uint32_t start = emit_offset(e);
    emit_store(e, SCRATCH, offsetof(struct block, address));
    emit_save_registers(e);
    emit_store(e, RSP, offsetof(struct block, stack));
    emit_load(e, RDI, offsetof(struct block, self));
    emit_registers(e, false, OP_STORE, SCRATCH2, RSI);
    emit_load(e, RSP, offsetof(struct block, host_rsp));
    emit_constant(e, RAX, (uint64_t)helper);
    emit8(e, 0xff); /* call rax */
    emit8(e, 0xd0);
    emit_move(e, SCRATCH2, RAX);
    emit_load(e, SCRATCH, offsetof(struct block, address));
    emit_load(e, RSP, offsetof(struct block, stack));
    emit_load_registers(e);
    emit_registers(e, false, 0xff, 4, SCRATCH2); /* jmp scratch2 */
    return start;
}

/* void enter(block in rdi, host in rsi) */
static uint32_t emit_enter(struct emitter *e)
{
    static const uint8_t push_all[] = {0x55, 0x53, 0x41, 0x54, 0x41, 0x55, 0x41,
                                       0x56, 0x41, 0x57, 0x48, 0x83, 0xec, 0x08};
    uint32_t start = emit_offset(e);
    for (unsigned i = 0; i < ARRAY_SIZE(push_all); i++) {
        emit8(e, push_all[i]);
    }
    emit_store(e, RSP, offsetof(struct block, host_rsp));
    emit_move(e, SCRATCH2, RSI);
    emit_load(e, RSP, offsetof(struct block, stack));
    emit_load_registers(e);
    emit_registers(e, false, 0xff, 4, SCRATCH2);
    return start;
}

static uint32_t emit_leave(struct emitter *e)
{
    static const uint8_t pop_all[] = {0x48, 0x83, 0xc4, 0x08, 0x41, 0x5f, 0x41, 0x5e,
                                      0x41, 0x5d, 0x41, 0x5c, 0x5b, 0x5d, 0xc3};
    uint32_t start = emit_offset(e);
    /* Helpers have saved everything before they return this address. */
    emit_load(e, RSP, offsetof(struct block, host_rsp));
    for (unsigned i = 0; i < ARRAY_SIZE(pop_all); i++) {
        emit8(e, pop_all[i]);
    }
    return start;
}

/* op reg, gs:[SCRATCH2 * 8 + displacement] */
static void emit_gs_scaled(struct emitter *e, bool w, uint8_t opcode, unsigned reg,
                           size_t displacement)
{
    emit8(e, 0x65);
    emit_rex(e, w, reg, SCRATCH2, 0);
    emit8(e, opcode);
    emit8(e, (uint8_t)((reg & 7) << 3 | 4));
    emit8(e, 3 << 6 | (SCRATCH2 & 7) << 3 | 5);
    emit32(e, (uint32_t)displacement);
}

uint8_t *emit_jump_lookup(struct emitter *e, enum privilege privilege)
{
    /* SCRATCH2 = twice the entry's number (jump_index()): scaled by 8 it is the entry's offset. */
    emit_rotated(e, false, 9);
    emit_lea_full(e, false, SCRATCH2, SCRATCH2, SCRATCH, 2, 0);
    emit_registers(e, false, 0x81, 4, SCRATCH2); /* and */
    emit32(e, 2 * (JUMP_ENTRIES - 1));
    emit_gs_scaled(e, true, OP_CMP, SCRATCH,
                   jumps_offset(privilege) + offsetof(struct jump_entry, gva));
    return emit_branch_forward(e, CONDITION_NZ);
}
_Static_assert(sizeof(struct jump_entry) == 16, "the look-up scales by this");

void emit_jump_found(struct emitter *e, enum privilege privilege, unsigned transfer)
{
    emit_gs_scaled(e, false, 0xff, transfer,
                   jumps_offset(privilege) + offsetof(struct jump_entry, host));
}

/* SCRATCH = target: look it up in the jump cache, else, or if a kick waits, ask C. Flags are saved.
 */
static uint32_t emit_indirect(struct emitter *e, enum privilege privilege, uint32_t slow)
{
    while (emit_offset(e) & 15) {
        emit8(e, 0xcc);
    }
    uint32_t start = emit_offset(e);
    emit_gs(e, false, 0x83, 7, offsetof(struct block, poll_now)); /* cmp dword, 0 */
    emit8(e, 0);
    uint8_t *kicked = emit_branch_forward(e, CONDITION_NZ);
    uint8_t *missing = emit_jump_lookup(e, privilege);
    emit_jump_found(e, privilege, 4);
    emit_set_target(e, kicked);
    emit_set_target(e, missing);
    emit_jump(e, slow);
    return start;
}

void stubs_make(struct translate_vm *vm)
{
    struct emitter e = {
        .at = vm->cache.write, .base = vm->cache.write, .has_bmi2 = __builtin_cpu_supports("bmi2")};
    struct stubs *stubs = &vm->stubs;
    stubs->enter = emit_enter(&e);
    stubs->leave = emit_leave(&e);
    stubs->memory = emit_call_helper(&e, helper_memory);
    stubs->execute = emit_call_helper(&e, helper_execute);
    stubs->link = emit_call_helper(&e, helper_link);
    stubs->poll = emit_call_helper(&e, helper_poll);
    stubs->time = emit_call_helper(&e, helper_deadline);
    stubs->stale = emit_call_helper(&e, helper_stale);
    stubs->string = emit_call_helper(&e, helper_string);
    stubs->slot = emit_call_helper(&e, helper_slot);
    stubs->fxsave = emit_call_helper(&e, helper_fxsave);
    stubs->fxrstor = emit_call_helper(&e, helper_fxrstor);
    stubs->pause = emit_call_helper(&e, helper_pause);
    stubs->fault_saved = emit_call_helper(&e, helper_fault);
    /* The signal handler put the site number into block->fault_site. */
    stubs->fault_host = emit_offset(&e);
    emit_save_flags(&e);
    emit_gs(&e, false, OP_LOAD, SCRATCH2, offsetof(struct block, fault_site));
    emit_jump(&e, stubs->fault_saved);
    stubs->indirect_slow = emit_call_helper(&e, helper_indirect);
    for (unsigned p = 0; p < PRIVILEGES; p++) {
        stubs->indirect[p] = emit_indirect(&e, p, stubs->indirect_slow);
    }
    vm->cache.used = vm->cache.stubs_end = (uint32_t)align_up(emit_offset(&e), 64);
}
