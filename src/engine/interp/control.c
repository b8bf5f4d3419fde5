/*
 * Near jumps, calls, returns and loops, and the software interrupts.
 */
#include "engine/interp/interp_internal.h"

enum step check_rip(struct vcpu *vcpu, uint64_t rip)
{
    bool valid = is_64bit(vcpu) ? is_canonical(rip) : rip <= vcpu->state.segment[CS].limit;

    return valid ? STEP_NEXT : raise_gp(vcpu);
}

enum step near_jump(struct vcpu *vcpu, uint64_t rip, unsigned width)
{
    rip &= size_mask(width);
    TRY(check_rip(vcpu, rip));
    vcpu->state.rip = rip;
    return STEP_NEXT;
}

static bool is_far(const struct insn *insn)
{
    return insn->info.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
}

/* Where a relative or indirect near branch goes, not yet cut to its width. */
static enum step branch_target(struct vcpu *vcpu, const struct insn *insn, uint64_t *ret_rip)
{
    const struct insn_operand *operand = &insn->operands[0];

    if (operand->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        *ret_rip = vcpu->state.rip + operand->imm.value.u;
        return STEP_NEXT;
    }
    return operand_load(vcpu, insn, 0, ret_rip);
}

enum step execute_jmp(struct vcpu *vcpu, const struct insn *insn)
{
    uint64_t rip;

    if (is_far(insn)) {
        return execute_jump_far(vcpu, insn);
    }
    TRY(branch_target(vcpu, insn, &rip));
    return near_jump(vcpu, rip, branch_width(vcpu, insn));
}

enum step execute_jcc(struct vcpu *vcpu, const struct insn *insn)
{
    if (!condition_holds(vcpu->state.rflags, insn->info.opcode & 15)) {
        return STEP_NEXT;
    }
    return near_jump(vcpu, vcpu->state.rip + insn->operands[0].imm.value.u,
                     branch_width(vcpu, insn));
}

enum step execute_call(struct vcpu *vcpu, const struct insn *insn)
{
    struct stack stack = stack_current(vcpu);
    unsigned width = branch_width(vcpu, insn);
    uint64_t rip;

    if (is_far(insn)) {
        return execute_call_far(vcpu, insn);
    }
    TRY(branch_target(vcpu, insn, &rip));
    rip &= size_mask(width);
    /* CPUs store the return address before they find the target unfit; RSP stays, though. */
    TRY(stack_push(vcpu, &stack, vcpu->state.rip, width));
    TRY(check_rip(vcpu, rip));
    stack_commit(vcpu, &stack);
    vcpu->state.rip = rip;
    return STEP_NEXT;
}

enum step execute_ret(struct vcpu *vcpu, const struct insn *insn)
{
    struct stack stack = stack_current(vcpu);
    unsigned width = branch_width(vcpu, insn);
    uint64_t rip;

    if (is_far(insn)) {
        return execute_return_far(vcpu, insn);
    }
    TRY(stack_pop(vcpu, &stack, width, &rip));
    TRY(near_jump(vcpu, rip, width));
    if (insn->operands[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        stack.sp =
            (stack.sp & ~stack.mask) | ((stack.sp + insn->operands[0].imm.value.u) & stack.mask);
    }
    stack_commit(vcpu, &stack);
    return STEP_NEXT;
}

enum step execute_loop(struct vcpu *vcpu, const struct insn *insn)
{
    unsigned size = address_width(insn);
    uint64_t count = (gpr_load(vcpu, RCX, size) - 1) & size_mask(size);
    bool zero = vcpu->state.rflags & FLAG_ZF;
    bool taken = count != 0;

    if (insn->info.mnemonic == ZYDIS_MNEMONIC_LOOPE) {
        taken = taken && zero;
    } else if (insn->info.mnemonic == ZYDIS_MNEMONIC_LOOPNE) {
        taken = taken && !zero;
    }
    if (taken) {
        TRY(near_jump(vcpu, vcpu->state.rip + insn->operands[0].imm.value.u,
                      branch_width(vcpu, insn)));
    }
    gpr_store(vcpu, RCX, size, count);
    return STEP_NEXT;
}

/* JCXZ, JECXZ, JRCXZ */
enum step execute_jrcxz(struct vcpu *vcpu, const struct insn *insn)
{
    if (gpr_load(vcpu, RCX, address_width(insn)) != 0) {
        return STEP_NEXT;
    }
    return near_jump(vcpu, vcpu->state.rip + insn->operands[0].imm.value.u,
                     branch_width(vcpu, insn));
}

static enum step raise_software(struct vcpu *vcpu, const struct insn *insn, uint8_t vector)
{
    vcpu->exception = (struct exception){
        .vector = vector,
        .is_software = true,
        .length = insn->info.length,
    };
    return STEP_EXCEPTION;
}

enum step execute_int(struct vcpu *vcpu, const struct insn *insn)
{
    if (is_v86(vcpu) && iopl_of(vcpu) < 3) {
        return raise_gp(vcpu);
    }
    return raise_software(vcpu, insn, (uint8_t)insn->operands[0].imm.value.u);
}

enum step execute_int3(struct vcpu *vcpu, const struct insn *insn)
{
    return raise_software(vcpu, insn, EXCEPTION_BP);
}

enum step execute_into(struct vcpu *vcpu, const struct insn *insn)
{
    return vcpu->state.rflags & FLAG_OF ? raise_software(vcpu, insn, EXCEPTION_OF) : STEP_NEXT;
}

/* INT1: a #DB trap without a privilege check of the gate. SDM volume 2, INT n. */
enum step execute_int1(struct vcpu *vcpu, const struct insn *insn)
{
    vcpu->exception = (struct exception){.vector = EXCEPTION_DB, .length = insn->info.length};
    return STEP_EXCEPTION;
}

enum step execute_ud(struct vcpu *vcpu, const struct insn *insn)
{
    return raise_ud(vcpu);
}

/* BOUND: the index against a pair of bounds in memory, all signed. */
enum step execute_bound(struct vcpu *vcpu, const struct insn *insn)
{
    unsigned size = operand_bytes(insn, 0);
    uint64_t index, low, high;
    struct place place;

    TRY(operand_load(vcpu, insn, 0, &index));
    TRY(operand_locate(vcpu, insn, 1, false, &place));
    TRY(linear_read(vcpu, place.gva, &low, size));
    TRY(linear_read(vcpu, place.gva + size, &high, size));
    int64_t value = (int64_t)sign_extend(index, size);
    if (value < (int64_t)sign_extend(low, size) || value > (int64_t)sign_extend(high, size)) {
        return raise_exception(vcpu, EXCEPTION_BR);
    }
    return STEP_NEXT;
}
