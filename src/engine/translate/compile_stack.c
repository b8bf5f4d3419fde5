/*
 * Stack instructions: pushes and pops in runs with one soft TLB check for the whole run, calls
 * and returns through the private host stack, and the flag image of PUSHF and POPF.
 */
#include "engine/translate/compiler.h"

enum { RUN_MAX = 8 };

/* The register that a 64-bit PUSH or POP of a register names, or -1 for other forms. */
static int stack_register(const struct insn *insn, ZydisMnemonic mnemonic)
{
    if (insn->info.mnemonic != mnemonic || insn->info.operand_width != 64 ||
        insn->operands[0].type != ZYDIS_OPERAND_TYPE_REGISTER) {
        return -1;
    }
    return rewrite_gpr(insn->operands[0].reg.value);
}

/* How many instructions from the current one push (or pop) a register other than RSP. */
static unsigned run_length(const struct compiler *c, ZydisMnemonic mnemonic)
{
    unsigned count = 0, most = has_groups(c) ? RUN_MAX : 1;
    while (count < most && c->current + count < c->count) {
        int gpr = stack_register(&c->insns[c->current + count], mnemonic);
        if (gpr < 0 || gpr == RSP) {
            break;
        }
        count++;
    }
    return count;
}

/* mov [base + displacement], guest register (uses SCRATCH2 for displaced ones) */
static void store_register(struct compiler *c, int gpr, int32_t displacement)
{
    unsigned from = is_displaced(c, gpr) ? SCRATCH2 : home_of(c, gpr);
    if (from == SCRATCH2) {
        emit_load(&c->e, SCRATCH2, gpr_slot((unsigned)gpr));
    }
    emit_memory(&c->e, true, OP_STORE, from, SCRATCH, displacement);
}

static void load_register(struct compiler *c, int gpr, int32_t displacement)
{
    unsigned to = is_displaced(c, gpr) ? SCRATCH2 : home_of(c, gpr);
    emit_memory(&c->e, true, OP_LOAD, to, SCRATCH, displacement);
    if (to == SCRATCH2) {
        emit_store(&c->e, SCRATCH2, gpr_slot((unsigned)gpr));
    }
}

static bool push_run(struct compiler *c, unsigned count)
{
    flags_for_checks(c, count);
    int32_t size = 8 * (int32_t)count;
    uint32_t site = c->vm->site_count;
    emit_lea(&c->e, SCRATCH, GUEST_RSP, -size);
    compile_check(c, (unsigned)size, true);
    c->vm->sites[site].is_group = count > 1; /* across pages, or with a fault: one by one */
    for (unsigned i = 0; i < count; i++) {
        int gpr = stack_register(&c->insns[c->current + i], ZYDIS_MNEMONIC_PUSH);
        store_register(c, gpr, size - 8 * (int32_t)(i + 1));
    }
    emit_lea(&c->e, GUEST_RSP, GUEST_RSP, -size);
    c->current += count - 1;
    return true;
}

/* Push the value in spill[0]; used where making the value needs the scratch registers. */
static void push_spilled(struct compiler *c)
{
    emit_lea(&c->e, SCRATCH, GUEST_RSP, -8);
    compile_check(c, 8, true);
    emit_load(&c->e, SCRATCH2, offsetof(struct block, spill[0]));
    emit_memory(&c->e, true, OP_STORE, SCRATCH2, SCRATCH, 0);
    emit_lea(&c->e, GUEST_RSP, GUEST_RSP, -8);
}

bool compile_push(struct compiler *c)
{
    const struct insn *insn = compiler_insn(c);
    const struct insn_operand *operand = &insn->operands[0];
    unsigned run = run_length(c, ZYDIS_MNEMONIC_PUSH);
    if (run) {
        return push_run(c, run);
    }
    if (insn->info.operand_width != 64) {
        return false;
    }
    if (stack_register(insn, ZYDIS_MNEMONIC_PUSH) == RSP) {
        return push_run(c, 1);
    }
    if (operand->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        flags_for_check(c);
        emit_lea(&c->e, SCRATCH, GUEST_RSP, -8);
        compile_check(c, 8, true);
        emit_memory(&c->e, true, 0xc7, 0, SCRATCH, 0);
        emit32(&c->e, (uint32_t)operand->imm.value.u);
        emit_lea(&c->e, GUEST_RSP, GUEST_RSP, -8);
        return true;
    }
    if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY) {
        struct host_place place = compile_operand_check(c, operand, false, false);
        emit_memory(&c->e, true, OP_LOAD, SCRATCH, SCRATCH, place.offset);
        emit_store(&c->e, SCRATCH, offsetof(struct block, spill[0]));
        push_spilled(c);
        return true;
    }
    return false; /* segment registers */
}

/* Is the instruction a plain near return, so that it can end a run of pops? */
static bool is_plain_return(const struct insn *insn)
{
    return insn->info.mnemonic == ZYDIS_MNEMONIC_RET &&
           insn->info.meta.branch_type == ZYDIS_BRANCH_TYPE_NEAR &&
           insn->info.operand_width == 64 && insn->info.raw.imm[0].size == 0;
}

/* SCRATCH = return address, GUEST_RSP behind it: return by the private stack if its top matches. */
static void emit_return(struct compiler *c, uint32_t size)
{
    struct emitter *e = &c->e;
    uint32_t site = site_new(c, SITE_EXECUTE);
    c->vm->sites[site].resume = 0;
    c->vm->sites[site].undo = size;
    c->vm->sites[site].uncounted = c->counts ? -1 : 0; /* pops before it are done */
    registers_leave(c);
    c->ended = true;
    if (!compiler_optimizes(c, OPTIMIZE_RETURNS)) {
        outline(c, OUTLINE_RETURN, emit_jump_forward(e), site, 0);
        return;
    }
    emit_memory(e, true, 0x39, SCRATCH, RSP, 8); /* cmp [rsp + 8], scratch */
    outline(c, OUTLINE_RETURN, emit_branch_forward(e, CONDITION_NZ), site, 0);
    emit8(e, 0xc3); /* ret */
}

static bool pop_run(struct compiler *c, unsigned count)
{
    unsigned next = c->current + count;
    bool returns = has_groups(c) && next < c->count && is_plain_return(&c->insns[next]);
    int32_t size = 8 * (int32_t)(count + returns);
    if (returns) {
        flags_to_block(c);
    } else {
        flags_for_checks(c, count);
    }
    count_instructions(c, (int)(count + returns));
    emit_move(&c->e, SCRATCH, GUEST_RSP);
    uint32_t site = c->vm->site_count;
    compile_check(c, (unsigned)size, false);
    c->vm->sites[site].is_group = count + returns > 1;
    for (unsigned i = 0; i < count; i++) {
        load_register(c, stack_register(&c->insns[c->current + i], ZYDIS_MNEMONIC_POP),
                      8 * (int32_t)i);
    }
    if (returns) {
        emit_memory(&c->e, true, OP_LOAD, SCRATCH, SCRATCH, size - 8);
    }
    emit_lea(&c->e, GUEST_RSP, GUEST_RSP, size);
    c->current += count - 1;
    if (returns) {
        c->current++;
        emit_return(c, 8);
    }
    return true;
}

bool compile_pop(struct compiler *c)
{
    const struct insn *insn = compiler_insn(c);
    unsigned run = run_length(c, ZYDIS_MNEMONIC_POP);
    if (run) {
        return pop_run(c, run);
    }
    if (stack_register(insn, ZYDIS_MNEMONIC_POP) != RSP) {
        return false;
    }
    flags_to_block(c);
    emit_move(&c->e, SCRATCH, GUEST_RSP);
    compile_check(c, 8, false);
    emit_memory(&c->e, true, OP_LOAD, GUEST_RSP, SCRATCH, 0);
    return true;
}

bool compile_leave(struct compiler *c)
{
    if (compiler_insn(c)->info.operand_width != 64) {
        return false;
    }
    flags_for_check(c);
    emit_move(&c->e, SCRATCH, RBP);
    compile_check(c, 8, false);
    emit_memory(&c->e, true, OP_LOAD, SCRATCH, SCRATCH, 0); /* may fault: site_at() */
    emit_lea(&c->e, GUEST_RSP, RBP, 8);
    emit_move(&c->e, RBP, SCRATCH);
    return true;
}

bool compile_return(struct compiler *c)
{
    const struct insn *insn = compiler_insn(c);
    if (insn->info.meta.branch_type != ZYDIS_BRANCH_TYPE_NEAR || insn->info.operand_width != 64) {
        return false;
    }
    int32_t extra = insn->info.raw.imm[0].size ? (int32_t)insn->operands[0].imm.value.u : 0;
    flags_to_block(c);
    count_instructions(c, 1);
    emit_move(&c->e, SCRATCH, GUEST_RSP);
    compile_check(c, 8, false);
    emit_memory(&c->e, true, OP_LOAD, SCRATCH, SCRATCH, 0);
    emit_lea(&c->e, GUEST_RSP, GUEST_RSP, 8 + extra);
    emit_return(c, (uint32_t)(8 + extra));
    return true;
}

/* Push the return address for the guest and a frame on the private stack. */
static void emit_call_frame(struct compiler *c)
{
    struct emitter *e = &c->e;
    uint64_t address = compiler_next_pc(c);
    emit_lea(e, SCRATCH, GUEST_RSP, -8);
    compile_check(c, 8, true);
    if (!(c->mode & MODE_ANYWHERE) && (uint64_t)(int64_t)(int32_t)address == address) {
        emit_memory(e, true, 0xc7, 0, SCRATCH, 0); /* mov qword [scratch], imm32 */
        emit32(e, (uint32_t)address);
        emit_lea(e, GUEST_RSP, GUEST_RSP, -8);
        emit8(e, 0x68); /* push imm32 */
        emit32(e, (uint32_t)address);
        return;
    }
    emit_code_address(c, SCRATCH2, address);
    emit_memory(e, true, OP_STORE, SCRATCH2, SCRATCH, 0);
    emit_lea(e, GUEST_RSP, GUEST_RSP, -8);
    emit8(e, 0x41); /* push scratch2 */
    emit8(e, 0x50 | (SCRATCH2 & 7));
}

void compile_canonical_check(struct compiler *c)
{
    struct emitter *e = &c->e;
    emit_move(e, SCRATCH2, SCRATCH);
    emit_registers(e, true, 0xc1, 4, SCRATCH2); /* shl scratch2, 16 */
    emit8(e, 16);
    emit_registers(e, true, 0xc1, 7, SCRATCH2); /* sar scratch2, 16 */
    emit8(e, 16);
    emit_registers(e, true, OP_CMP, SCRATCH2, SCRATCH);
    uint8_t *branch = emit_branch_forward(e, CONDITION_NZ);
    uint32_t site = site_new(c, SITE_EXECUTE);
    c->vm->sites[site].resume = 0;
    outline(c, OUTLINE_EXECUTE, branch, site, 0);
}

bool compile_call(struct compiler *c)
{
    const struct insn *insn = compiler_insn(c);
    struct emitter *e = &c->e;
    if (insn->info.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR || insn->info.operand_width != 64) {
        return false;
    }
    flags_to_block(c);
    count_instructions(c, 1);
    if (insn->operands[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && !is_variable(c, c->current)) {
        uint64_t target = compiler_next_pc(c) + insn->operands[0].imm.value.u;
        emit_loop_poll(c, target); /* a cycle of such calls need not ever return */
        emit_call_frame(c);
        compile_direct(c, 0xe8, target);
        c->ended = false;
    } else {
        compile_branch_poll(c);
        if (!compile_indirect_target(c)) {
            return false;
        }
        compile_canonical_check(c); /* a bad target faults before the push */
        emit_store(e, SCRATCH, offsetof(struct block, spill[0]));
        emit_call_frame(c);
        registers_leave(c);
        emit_load(e, SCRATCH, offsetof(struct block, spill[0]));
        uint8_t *missing = emit_jump_lookup(e, mode_privilege(c->mode));
        emit_jump_found(e, mode_privilege(c->mode), 2);
        outline(c, OUTLINE_CALL, missing, 0, emit_offset(e));
    }
    groups_forget(c);
    /* The landing pad: drop the frame's guest half and go on. */
    emit8(e, 0x48); /* lea rsp, [rsp + 8] */
    emit8(e, 0x8d);
    emit8(e, 0x64);
    emit8(e, 0x24);
    emit8(e, 8);
    emit_enter_page(c, c->offsets[c->current + 1]); /* SCRATCH: see emit_return() */
    registers_enter(c);
    c->flags = FLAGS_SAVED;
    compile_deadline_check(c, compiler_next_pc(c));
    return true;
}

/* ---- PUSHF and POPF ---- */

enum { POPF_PLAIN = FLAGS_ARITHMETIC | FLAG_IF | FLAG_FIXED };

/* movzx scratch2, byte gs:[displacement] */
static void emit_load_byte(struct emitter *e, size_t displacement)
{
    emit8(e, 0x65);
    emit8(e, 0x44);
    emit8(e, 0x0f);
    emit8(e, 0xb6);
    emit8(e, (SCRATCH2 & 7) << 3 | 4);
    emit8(e, 0x25);
    emit32(e, (uint32_t)displacement);
}

bool compile_pushf(struct compiler *c)
{
    struct emitter *e = &c->e;
    flags_to_block(c);
    /* scratch = high bits | arithmetic flags | OF << 11 | IF << 9 */
    emit_load(e, SCRATCH, offsetof(struct block, vcpu.state.rflags));
    emit_load_byte(e, offsetof(struct block, saved_flags) + 1);
    emit_registers(e, false, 0x81, 4, SCRATCH); /* and */
    emit32(e, ~(uint32_t)(FLAGS_ARITHMETIC | FLAG_IF | FLAG_FIXED | FLAG_RF | FLAG_VM));
    emit_registers(e, false, 0x83, 4, SCRATCH2); /* and (what it keeps of bits above is zero) */
    emit8(e, FLAGS_ARITHMETIC & 0xff);
    emit_registers(e, false, OP_OR, SCRATCH, SCRATCH2);
    static const struct {
        size_t offset;
        uint8_t shift;
    } bytes[] = {{offsetof(struct block, saved_flags), 11},
                 {offsetof(struct block, interrupt_flag), 9}};
    for (unsigned i = 0; i < ARRAY_SIZE(bytes); i++) {
        emit_load_byte(e, bytes[i].offset);
        emit_registers(e, false, 0xc1, 4, SCRATCH2); /* shl */
        emit8(e, bytes[i].shift);
        emit_registers(e, false, OP_OR, SCRATCH, SCRATCH2);
    }
    emit_registers(e, false, 0x83, 1, SCRATCH); /* or */
    emit8(e, FLAG_FIXED);
    emit_store(e, SCRATCH, offsetof(struct block, spill[0]));
    push_spilled(c);
    return true;
}

bool compile_popf(struct compiler *c)
{
    struct emitter *e = &c->e;
    if ((c->mode & MODE_USER) || c->counts) {
        return false; /* IOPL and IF rules: interp */
    }
    flags_to_block(c);
    emit_move(e, SCRATCH, GUEST_RSP);
    compile_check(c, 8, false);
    emit_memory(e, true, OP_LOAD, SCRATCH, SCRATCH, 0);
    /* Anything but the plain flags in the image or in force: interp. */
    emit_move(e, SCRATCH2, SCRATCH);
    emit_gs(e, true, OP_OR, SCRATCH2, offsetof(struct block, vcpu.state.rflags));
    emit_registers(e, true, 0xf7, 0, SCRATCH2); /* test scratch2, ~plain (sign-extended) */
    emit32(e, ~(uint32_t)POPF_PLAIN);
    uint8_t *branch = emit_branch_forward(e, CONDITION_NZ);
    uint32_t site = site_new(c, SITE_EXECUTE);
    c->vm->sites[site].resume = 0;
    outline(c, OUTLINE_EXECUTE, branch, site, 0);
    static const struct {
        size_t offset;
        uint8_t shift;
        uint8_t mask;
    } bytes[] = {{offsetof(struct block, saved_flags) + 1, 0, 0},
                 {offsetof(struct block, saved_flags), 11, 1},
                 {offsetof(struct block, interrupt_flag), 9, 1}};
    for (unsigned i = 0; i < ARRAY_SIZE(bytes); i++) {
        emit_move(e, SCRATCH2, SCRATCH);
        if (bytes[i].shift) {
            emit_registers(e, false, 0xc1, 5, SCRATCH2); /* shr */
            emit8(e, bytes[i].shift);
            emit_registers(e, false, 0x83, 4, SCRATCH2); /* and */
            emit8(e, bytes[i].mask);
        }
        emit_gs(e, false, 0x88, SCRATCH2, bytes[i].offset); /* mov byte gs:[...], scratch2 */
    }
    emit_lea(e, GUEST_RSP, GUEST_RSP, 8);
    /* scratch2 = IF: with IF set, waiting kicks are taken now. */
    emit_registers(e, false, 0x85, SCRATCH2, SCRATCH2); /* test */
    uint8_t *skip = emit_branch_forward(e, CONDITION_Z);
    compile_poll(c, compiler_next_pc(c), offsetof(struct block, vcpu.kicks));
    emit_set_target(e, skip);
    return true;
}
