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

static uint32_t emit_stub_start(struct emitter *e)
{
    while (emit_offset(e) & 15) {
        emit8(e, 0xcc);
    }
    return emit_offset(e);
}

/* Call the helper: SCRATCH is kept in block->address meanwhile. SCRATCH2 = where it says to go on.
 */
static void emit_helper(struct emitter *e, uint64_t (*helper)(struct block *, uint32_t))
{
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
}

/* The body after `mov scratch2, site`. */
static uint32_t emit_call_helper(struct emitter *e, uint64_t (*helper)(struct block *, uint32_t))
{
    uint32_t start = emit_stub_start(e);
    emit_helper(e, helper);
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
    emit_load(e, SCRATCH, offsetof(struct block, address)); /* for a link_entry */
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

uint8_t *emit_jump_lookup(struct emitter *e, enum privilege privilege)
{
    /* SCRATCH2 = twice the entry's number (jump_index()): scaled by 8 it is the entry's offset. */
    emit_rotated(e, false, 9);
    emit_lea_full(e, false, SCRATCH2, SCRATCH2, SCRATCH, 2, 0);
    emit_registers(e, false, 0x81, 4, SCRATCH2); /* and */
    emit32(e, 2 * (JUMP_ENTRIES - 1));
    emit_gs_scaled(e, true, OP_CMP, SCRATCH, SCRATCH2,
                   jumps_offset(privilege) + offsetof(struct jump_entry, gva));
    return emit_branch_forward(e, CONDITION_NZ);
}
_Static_assert(sizeof(struct jump_entry) == 16, "the look-up scales by this");

void emit_jump_found(struct emitter *e, enum privilege privilege, unsigned transfer)
{
    emit_gs_scaled(e, false, 0xff, transfer, SCRATCH2,
                   jumps_offset(privilege) + offsetof(struct jump_entry, host));
}

/* SCRATCH = target: look it up in the jump cache, else, or if a kick waits, ask C. Flags are saved.
 */
static uint32_t emit_indirect(struct emitter *e, enum privilege privilege, uint32_t slow)
{
    uint32_t start = emit_stub_start(e);
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

/* ---- misses of the soft TLB ---- */

enum { KEPT = offsetof(struct block, stub_kept) };

static void emit_shift_right(struct emitter *e, bool w, unsigned reg, uint8_t count)
{
    emit_registers(e, w, 0xc1, 5, reg);
    emit8(e, count);
}

static void emit_and(struct emitter *e, bool w, unsigned reg, uint32_t mask)
{
    emit_registers(e, w, 0x81, 4, reg);
    emit32(e, mask);
}

/*
 * SCRATCH = address. RCX = index of its entry, RAX = tlb_second_index(), SCRATCH2 = its page. Two
 * branches for those that the second level cannot help: it does not have the page, or the entry is
 * the page's already (the access reaches over its end).
 */
static void emit_second_find(struct emitter *e, size_t entry, size_t second, size_t key,
                             uint8_t *ret_branches[2])
{
    emit_move(e, RCX, SCRATCH);
    emit_shift_right(e, true, RCX, PAGE_SHIFT);
    emit_registers(e, false, OP_STORE, RCX, RAX);
    emit_shift_right(e, false, RAX, TLB_SECOND_BITS);
    emit_registers(e, false, 0x31, RCX, RAX); /* xor eax, ecx */
    emit_and(e, false, RAX, TLB_SECOND_ENTRIES - 1);
    emit_lea_full(e, false, RAX, RAX, RAX, 2, 0);
    emit_and(e, false, RCX, TLB_ENTRIES - 1);
    emit_lea_full(e, false, RCX, RCX, RCX, 1, 0);
    emit_move(e, SCRATCH2, SCRATCH);
    emit_and(e, true, SCRATCH2, ~(uint32_t)(PAGE_SIZE - 1));
    emit_gs_scaled(e, true, OP_CMP, SCRATCH2, RCX, entry + offsetof(struct tlb_entry, tag));
    ret_branches[0] = emit_branch_forward(e, CONDITION_Z);
    emit_gs(e, true, OP_OR, SCRATCH2, key);
    emit_gs_scaled(e, true, OP_CMP, SCRATCH2, RAX, second + offsetof(struct tlb_second, key));
    ret_branches[1] = emit_branch_forward(e, CONDITION_NZ);
    emit_and(e, true, SCRATCH2, ~(uint32_t)(PAGE_SIZE - 1));
}
_Static_assert(sizeof(struct tlb_entry) == 16 && sizeof(struct tlb_second) == 24, "scaled by this");

static void emit_kept_load(struct emitter *e)
{
    emit_load(e, RAX, KEPT);
    emit_load(e, RCX, KEPT + 8);
    emit_load(e, SCRATCH2, KEPT + 16);
}

/* SCRATCH = address, SCRATCH2 = site. Returns with the entry of the second level in the table, or
 * asks C.
 */
static uint32_t emit_miss(struct emitter *e, enum privilege p, enum tlb_access access)
{
    const enum tlb_privilege privilege = tlb_privilege(p);
    const size_t tlb = SPACE_OFFSET + offsetof(struct space_data, tlb);
    const size_t entry = tlb + offsetof(struct tlb, entries[privilege][access]);
    const size_t second = tlb + offsetof(struct tlb, second[access]);
    uint8_t *branches[2];
    uint32_t start = emit_stub_start(e);
    emit_store(e, RAX, KEPT);
    emit_store(e, RCX, KEPT + 8);
    emit_store(e, SCRATCH2, KEPT + 16);
    emit_second_find(e, entry, second, tlb + offsetof(struct tlb, second_key[privilege][access]),
                     branches);
    emit_gs_scaled(e, true, OP_STORE, SCRATCH2, RCX, entry + offsetof(struct tlb_entry, tag));
    emit_gs_scaled(e, true, OP_LOAD, SCRATCH2, RAX, second + offsetof(struct tlb_second, host));
    emit_gs_scaled(e, true, OP_STORE, SCRATCH2, RCX, entry + offsetof(struct tlb_entry, host));
    emit_gs_scaled(e, true, OP_LOAD, RAX, RAX, second + offsetof(struct tlb_second, page));
    emit_shift_right(e, false, RCX, 1);
    emit_gs_scaled(e, true, OP_STORE, RAX, RCX,
                   tlb + offsetof(struct tlb, pages[privilege][access]));
    emit_shift_right(e, false, RCX, TLB_BLOCK_BITS);
    emit8(e, 0x65); /* mov byte gs:[rcx + blocks], flags */
    emit8(e, 0xc6);
    emit8(e, 0x80 | RCX);
    emit32(e, (uint32_t)(tlb + offsetof(struct tlb, blocks[privilege][access])));
    emit8(e, TLB_BLOCK_USED | TLB_BLOCK_LOCAL);
    emit_gs(e, true, 0xff, 0, offsetof(struct block, counters.values[COUNT_TLB_SECOND])); /* inc */
    emit_kept_load(e);
    emit8(e, 0xc3); /* ret */
    emit_set_target(e, branches[0]);
    emit_set_target(e, branches[1]);
    emit_kept_load(e);
    emit_lea(e, RSP, RSP, 8);
    emit_helper(e, helper_memory);
    /* The RET belongs to the unit's CALL: the host's predictor of returns stays in step. */
    emit8(e, 0x41); /* push scratch2 */
    emit8(e, 0x50 | (SCRATCH2 & 7));
    emit8(e, 0xc3); /* ret */
    return start;
}

/* ---- links of user code ---- */

/* Take note that the slot whose number is in RCX is filled (space.c: filled_note()). Uses RAX. */
static void emit_note_link(struct emitter *e)
{
    const size_t filled = SPACE_OFFSET + offsetof(struct space_data, links_filled);
    emit_gs(e, false, OP_LOAD, RAX, filled + offsetof(struct filled, count));
    emit_registers(e, false, 0x81, 7, RAX); /* cmp */
    emit32(e, FILLED_NOTED);
    uint8_t *many = emit_branch_forward(e, CONDITION_A);
    uint8_t *full = emit_branch_forward(e, CONDITION_Z);
    emit8(e, 0x65); /* mov gs:[rax * 4 + noted], ecx */
    emit8(e, OP_STORE);
    emit8(e, RCX << 3 | 4);
    emit8(e, 2 << 6 | RAX << 3 | 5);
    emit32(e, (uint32_t)(filled + offsetof(struct filled, noted)));
    emit_set_target(e, full);
    emit_gs(e, false, 0xff, 0, filled + offsetof(struct filled, count)); /* inc */
    emit_set_target(e, many);
    emit_lea(e, RAX, RCX, 1);
    emit_gs(e, false, OP_CMP, RAX, filled + offsetof(struct filled, end));
    uint8_t *below = emit_branch_forward(e, CONDITION_C);
    emit_gs(e, false, OP_STORE, RAX, filled + offsetof(struct filled, end));
    emit_set_target(e, below);
}

/*
 * SCRATCH = target, SCRATCH2 = site: a link whose slot is empty in this address space. If the page
 * that it leads to is where it should be, the slot is filled as block_find_link() would do it: a
 * new process fills thousands. The flags are saved.
 */
static uint32_t emit_fill(struct emitter *e, const struct translate_vm *vm, uint32_t slow)
{
    uint32_t start = emit_stub_start(e);
    emit_store(e, RAX, KEPT);
    emit_store(e, RCX, KEPT + 8);
    emit_store(e, SCRATCH2, KEPT + 16);
    _Static_assert(sizeof(struct site) == 1 << 6, "the look-up shifts by this");
    emit_constant(e, RAX, (uint64_t)vm->sites);
    emit_registers(e, true, 0xc1, 4, SCRATCH2); /* shl */
    emit8(e, 6);
    emit_registers(e, true, OP_ADD, RAX, SCRATCH2);
    emit_memory(e, false, OP_LOAD, RCX, RAX, offsetof(struct site, target_page));
    emit_move(e, SCRATCH2, SCRATCH);
    emit_and(e, true, SCRATCH2, ~(uint32_t)(PAGE_SIZE - 1));
    emit_lea(e, SCRATCH2, SCRATCH2, 1);
    emit_gs_scaled(e, true, OP_CMP, SCRATCH2, RCX,
                   SPACE_OFFSET + offsetof(struct space_data, bindings));
    uint8_t *elsewhere = emit_branch_forward(e, CONDITION_NZ);
    emit_memory(e, false, OP_LOAD, SCRATCH2, RAX, offsetof(struct site, resume));
    emit_registers(e, false, 0x85, SCRATCH2, SCRATCH2); /* test */
    uint8_t *retired = emit_branch_forward(e, CONDITION_Z);
    emit_memory(e, false, OP_LOAD, RCX, RAX, offsetof(struct site, link));
    emit_constant(e, RAX, cache_address(vm, 0));
    emit_registers(e, true, OP_ADD, SCRATCH2, RAX);
    emit_gs_scaled(e, true, OP_STORE, SCRATCH2, RCX, links_offset(PRIVILEGE_USER));
    emit_note_link(e);
    emit_load(e, RAX, KEPT);
    emit_load(e, RCX, KEPT + 8);
    emit_registers(e, false, 0xff, 4, SCRATCH2); /* jmp scratch2 */
    emit_set_target(e, elsewhere);
    emit_set_target(e, retired);
    emit_kept_load(e);
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
    for (unsigned p = 0; p < PRIVILEGES; p++) {
        stubs->memory[p][TLB_READ] = emit_miss(&e, p, TLB_READ);
        stubs->memory[p][TLB_WRITE] = emit_miss(&e, p, TLB_WRITE);
    }
    stubs->execute = emit_call_helper(&e, helper_execute);
    stubs->link = emit_call_helper(&e, helper_link);
    stubs->fill = emit_fill(&e, vm, stubs->link);
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
    cache_divide(&vm->cache, emit_offset(&e));
}
