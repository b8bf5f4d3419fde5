/*
 * Branches: direct ones are chained inside the page and go through a slot of the address space
 * to other pages; indirect ones look into the jump cache. Loops poll for kicks.
 */
#include "engine/translate/compiler.h"

/*
 * A rel32 that other threads may patch while it runs must be written in one piece: keep it
 * inside an aligned quadword.
 */
void align_patch(struct compiler *c, unsigned before)
{
    unsigned at = (emit_offset(&c->e) + before) & 7;
    emit_nops(&c->e, at > 4 ? 8 - at : 0);
}

/* Is the target's unit valid as long as this one? */
static bool in_same_page(const struct compiler *c, uint64_t target)
{
    return align_down(target, PAGE_SIZE) == c->virtual_page && !crosses_page(c, target);
}

/* A site for an exit to `target`. */
static uint32_t exit_site(struct compiler *c, uint64_t target)
{
    enum privilege privilege = mode_privilege(c->mode);
    bool same = in_same_page(c, target);
    uint32_t site = site_new(c, same ? SITE_CHAIN : SITE_LINK);
    c->vm->sites[site].target = target;
    if (!same) {
        c->vm->sites[site].resume = 0;
        c->vm->sites[site].link = c->vm->link_count[privilege]++; /* make_room() left some */
    }
    return site;
}

/*
 * Loops are stopped by a load from the poll page that faults: it needs neither flags nor a
 * branch. Every cycle of guest code has a direct branch backwards or an indirect one.
 */
void compile_branch_poll(struct compiler *c)
{
    uint32_t site = site_new(c, SITE_POLL);
    c->vm->sites[site].target = compiler_pc(c);
    emit_gs(&c->e, false, OP_LOAD, SCRATCH2, POLL_OFFSET);
}

void emit_loop_poll(struct compiler *c, uint64_t target)
{
    if ((int64_t)target <= (int64_t)compiler_pc(c)) {
        compile_branch_poll(c);
    }
}

void emit_link(struct compiler *c, unsigned transfer, uint32_t number)
{
    const struct site *site = &c->vm->sites[number];
    if (c->mode & MODE_USER) {
        emit_code_address(c, SCRATCH, site->target);
    }
    emit_constant(&c->e, SCRATCH2, number);
    emit_gs_transfer(&c->e, transfer,
                     links_offset(mode_privilege(c->mode)) + 8 * (size_t)site->link);
}

void compile_direct(struct compiler *c, uint8_t opcode, uint64_t target)
{
    struct emitter *e = &c->e;
    uint32_t site;
    if (c->flags == FLAGS_RECIPE) {
        flags_to_host(c);
    }
    if (opcode == 0xe9) {
        emit_loop_poll(c, target);
    }
    if (in_same_page(c, target)) {
        align_patch(c, 1);
        site = exit_site(c, target);
        emit8(e, opcode);
        c->vm->sites[site].patch = emit_offset(e);
        emit32(e, 0);
        outline(c, OUTLINE_EXIT, e->at - 4, site, 0);
    } else {
        flags_to_block(c);
        registers_leave(c);
        site = exit_site(c, target);
        emit_link(c, opcode == 0xe9 ? 4 : 2, site);
    }
    c->ended = true;
}

void emit_indirect_note(struct compiler *c, uint32_t site)
{
    emit_gs(&c->e, false, 0xc7, 0, offsetof(struct block, indirect_site)); /* mov dword, imm32 */
    emit32(&c->e, site);
}

bool compile_indirect_target(struct compiler *c)
{
    const struct insn_operand *operand = &compiler_insn(c)->operands[0];
    struct emitter *e = &c->e;
    if (operand->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        return compile_variable_target(c);
    }
    if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY) {
        if (operand->size != 64) {
            return false;
        }
        struct host_place place = compile_operand_check(c, operand, false, false);
        emit_memory(e, true, OP_LOAD, SCRATCH, SCRATCH, place.offset);
        return true;
    }
    int gpr = rewrite_gpr(operand->reg.value);
    if (gpr < 0) {
        return false;
    }
    if (is_displaced(c, gpr)) {
        emit_load(e, SCRATCH, gpr_slot((unsigned)gpr));
    } else {
        emit_move(e, SCRATCH, home_of(c, gpr));
    }
    return true;
}

bool compile_jump(struct compiler *c)
{
    const struct insn *insn = compiler_insn(c);
    if (insn->info.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR || insn->info.operand_width != 64) {
        return false;
    }
    count_instructions(c, 1);
    if (insn->operands[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && !is_variable(c, c->current)) {
        compile_direct(c, 0xe9, compiler_next_pc(c) + insn->operands[0].imm.value.u);
        return true;
    }
    flags_to_block(c);
    compile_branch_poll(c);
    if (!compile_indirect_target(c)) {
        return false;
    }
    registers_leave(c);
    uint32_t site = site_new(c, SITE_EXECUTE);
    c->vm->sites[site].resume = 0;
    uint8_t *missing = emit_jump_lookup(&c->e, mode_privilege(c->mode));
    emit_jump_found(&c->e, mode_privilege(c->mode), 4);
    outline(c, OUTLINE_JUMP, missing, site, 0);
    c->ended = true;
    return true;
}

/* The saved flags that decide a condition by themselves (bits of LAHF), or 0 if they cannot. */
static uint8_t saved_mask(unsigned condition)
{
    switch (condition >> 1) {
    case 1:
        return FLAG_CF;
    case 2:
        return FLAG_ZF;
    case 3:
        return FLAG_CF | FLAG_ZF;
    case 4:
        return FLAG_SF;
    case 5:
        return FLAG_PF;
    default:
        return 0;
    }
}

void compile_exit(struct compiler *c, unsigned condition, uint64_t target)
{
    align_patch(c, 2);
    uint32_t site = exit_site(c, target);
    uint8_t *branch = emit_branch_forward(&c->e, (uint8_t)condition);
    if (c->vm->sites[site].kind == SITE_CHAIN) {
        c->vm->sites[site].patch = (uint32_t)(branch - c->e.base);
    }
    outline(c, OUTLINE_EXIT, branch, site, 0);
}

bool compile_condition(struct compiler *c)
{
    const struct insn *insn = compiler_insn(c);
    struct emitter *e = &c->e;
    if (!is_conditional_jump(insn)) {
        return false;
    }
    unsigned condition = insn->info.opcode & 15;
    uint64_t target = compiler_next_pc(c) + insn->operands[0].imm.value.u;
    count_instructions(c, 1);
    if (c->flags == FLAGS_RECIPE) {
        flags_to_host(c);
    }
    emit_loop_poll(c, target);
    if (c->flags == FLAGS_SAVED) {
        uint8_t mask = saved_mask(condition);
        if (mask) {
            emit_gs(e, false, 0xf6, 0, offsetof(struct block, saved_flags) + 1); /* test */
            emit8(e, mask);
            condition = (condition & 1) ? CONDITION_Z : CONDITION_NZ;
        } else {
            flags_to_host(c);
        }
    }
    compile_exit(c, condition, target);
    return true;
}
