/*
 * The stack: pushes and pops, stack frames, and flags on the stack.
 */
#include "engine/interp/interp_internal.h"

static uint64_t stack_mask(const struct segment *segment)
{
    return segment->attributes & SEGMENT_DB ? 0xffffffff : 0xffff;
}

struct stack stack_current(const struct vcpu *vcpu)
{
    const struct segment *segment = &vcpu->state.segment[SS];
    bool is_64 = is_64bit(vcpu);

    return (struct stack){
        .segment = *segment,
        .sp = vcpu->state.gpr[RSP],
        .mask = is_64 ? ~0ull : stack_mask(segment),
        .access = user_access(vcpu),
        .is_64 = is_64,
    };
}

static enum step stack_linear(struct vcpu *vcpu, const struct stack *stack, uint64_t offset,
                              unsigned size, bool write, gva_t *ret_gva)
{
    if (stack->is_64) {
        if (!is_canonical(offset) || !is_canonical(offset + size - 1)) {
            return raise_error(vcpu, EXCEPTION_SS, stack->error_code);
        }
        *ret_gva = offset;
        return STEP_NEXT;
    }
    return segment_linear(vcpu, &stack->segment, true, offset, size, write, stack->error_code,
                          ret_gva);
}

enum step stack_reserve(struct vcpu *vcpu, const struct stack *stack, unsigned bytes)
{
    /* Word by word: 16-bit stacks wrap, and a limit may cut at any word. */
    uint64_t first = (stack->sp - bytes) & stack->mask;
    gva_t gva;

    if (first < ((stack->sp - 1) & stack->mask)) {
        TRY(stack_linear(vcpu, stack, first, bytes, true, &gva));
        return mmu_check_write(vcpu, gva, bytes, stack->access);
    }
    for (unsigned n = 2; n <= bytes; n += 2) {
        TRY(stack_linear(vcpu, stack, (stack->sp - n) & stack->mask, 2, true, &gva));
        TRY(mmu_check_write(vcpu, gva, 2, stack->access));
    }
    return STEP_NEXT;
}

enum step stack_push(struct vcpu *vcpu, struct stack *stack, uint64_t value, unsigned size)
{
    uint64_t offset = (stack->sp - size) & stack->mask;
    gva_t gva;

    TRY(stack_linear(vcpu, stack, offset, size, true, &gva));
    if (stack->access) {
        TRY(check_alignment(vcpu, gva, size));
    }
    TRY(mmu_write(vcpu, gva, &value, size, stack->access));
    note_data_access(vcpu, gva, size, true);
    stack->sp = (stack->sp & ~stack->mask) | offset;
    return STEP_NEXT;
}

enum step stack_pop(struct vcpu *vcpu, struct stack *stack, unsigned size, uint64_t *ret_value)
{
    uint64_t value = 0;
    gva_t gva;

    TRY(stack_linear(vcpu, stack, stack->sp & stack->mask, size, false, &gva));
    if (stack->access) {
        TRY(check_alignment(vcpu, gva, size));
    }
    TRY(mmu_read(vcpu, gva, &value, size, stack->access));
    note_data_access(vcpu, gva, size, false);
    stack->sp = (stack->sp & ~stack->mask) | ((stack->sp + size) & stack->mask);
    *ret_value = value;
    return STEP_NEXT;
}

void stack_commit(struct vcpu *vcpu, const struct stack *stack)
{
    uint64_t *rsp = &vcpu->state.gpr[RSP];

    *rsp = stack->mask == 0xffffffff ? (uint32_t)stack->sp
                                     : (*rsp & ~stack->mask) | (stack->sp & stack->mask);
}

enum step execute_push(struct vcpu *vcpu, const struct insn *insn)
{
    const struct insn_operand *operand = &insn->operands[0];
    struct stack stack = stack_current(vcpu);
    unsigned size = operand_width(insn);
    uint64_t value;

    if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER &&
        segment_of(operand->reg.value) != SEGMENT_COUNT) {
        value = vcpu->state.segment[segment_of(operand->reg.value)].selector;
        if (size == 4) { /* a 16-bit move into a 32-bit slot: the upper half keeps its contents */
            struct stack low = stack;
            low.sp = (stack.sp & ~stack.mask) | ((stack.sp - 2) & stack.mask);
            TRY(stack_push(vcpu, &low, value, 2));
            stack_commit(vcpu, &low);
            return STEP_NEXT;
        }
    } else {
        TRY(operand_load(vcpu, insn, 0, &value));
    }
    TRY(stack_push(vcpu, &stack, value, size));
    stack_commit(vcpu, &stack);
    return STEP_NEXT;
}

static enum step pop_segment(struct vcpu *vcpu, struct stack *stack, unsigned size,
                             enum segment_register which)
{
    uint64_t selector;

    TRY(stack_pop(vcpu, stack, size, &selector));
    TRY(segment_load(vcpu, which, (uint16_t)selector));
    if (which == SS) { /* the width of the old stack pointer counts */
        vcpu->state.interrupt_shadow = true;
        vcpu->state.shadow_is_mov_ss = true;
    }
    stack_commit(vcpu, stack);
    return STEP_NEXT;
}

/* A destination address that uses RSP is computed after the increment. SDM volume 2, POP. */
enum step execute_pop(struct vcpu *vcpu, const struct insn *insn)
{
    const struct insn_operand *operand = &insn->operands[0];
    struct stack stack = stack_current(vcpu);
    unsigned size = operand_width(insn);
    uint64_t old = vcpu->state.gpr[RSP];
    uint64_t value;

    if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER &&
        segment_of(operand->reg.value) != SEGMENT_COUNT) {
        return pop_segment(vcpu, &stack, size, segment_of(operand->reg.value));
    }
    TRY(stack_pop(vcpu, &stack, size, &value));
    stack_commit(vcpu, &stack);
    enum step step = operand_store(vcpu, insn, 0, value);
    if (step != STEP_NEXT) {
        vcpu->state.gpr[RSP] = old;
    }
    return step;
}

enum step execute_pusha(struct vcpu *vcpu, const struct insn *insn)
{
    struct stack stack = stack_current(vcpu);
    unsigned size = operand_width(insn);

    TRY(stack_reserve(vcpu, &stack, size * 8));
    for (unsigned n = 0; n < 8; n++) {
        TRY(stack_push(vcpu, &stack, vcpu->state.gpr[n], size));
    }
    stack_commit(vcpu, &stack);
    return STEP_NEXT;
}

enum step execute_popa(struct vcpu *vcpu, const struct insn *insn)
{
    struct stack stack = stack_current(vcpu);
    unsigned size = operand_width(insn);
    uint64_t values[8];

    for (unsigned n = 8; n-- > 0;) {
        TRY(stack_pop(vcpu, &stack, size, &values[n]));
    }
    for (unsigned n = 0; n < 8; n++) {
        if (n != RSP) {
            gpr_store(vcpu, n, size, values[n]);
        }
    }
    stack_commit(vcpu, &stack);
    return STEP_NEXT;
}

/* The outer frame pointers that ENTER copies for its nesting level. SDM volume 2, ENTER. */
static enum step enter_display(struct vcpu *vcpu, struct stack *stack, unsigned size,
                               unsigned level, uint64_t frame)
{
    uint64_t rbp = vcpu->state.gpr[RBP];

    for (unsigned n = 1; n < level; n++) {
        struct stack outer = *stack;
        uint64_t value;
        rbp = (rbp - size) & stack->mask;
        outer.sp = rbp;
        TRY(stack_pop(vcpu, &outer, size, &value));
        TRY(stack_push(vcpu, stack, value, size));
    }
    return level > 0 ? stack_push(vcpu, stack, frame, size) : STEP_NEXT;
}

enum step execute_enter(struct vcpu *vcpu, const struct insn *insn)
{
    unsigned allocate = (uint16_t)insn->operands[0].imm.value.u;
    unsigned level = insn->operands[1].imm.value.u & 31;
    struct stack stack = stack_current(vcpu);
    unsigned size = branch_width(vcpu, insn);
    gva_t gva;

    if (is_64bit(vcpu) && operand_width(insn) == 2) {
        size = 2;
    }
    TRY(stack_reserve(vcpu, &stack, size * (level + 1)));
    TRY(stack_push(vcpu, &stack, vcpu->state.gpr[RBP], size));
    uint64_t frame = stack.sp;
    TRY(enter_display(vcpu, &stack, size, level, frame));
    stack.sp = (stack.sp & ~stack.mask) | ((stack.sp - allocate) & stack.mask);
    /* The new top must be writable, though nothing is written. */
    TRY(stack_linear(vcpu, &stack, stack.sp & stack.mask, size, true, &gva));
    TRY(check_alignment(vcpu, gva, size));
    TRY(mmu_check_write(vcpu, gva, size, stack.access));
    gpr_store(vcpu, RBP, size, frame);
    stack_commit(vcpu, &stack);
    return STEP_NEXT;
}

enum step execute_leave(struct vcpu *vcpu, const struct insn *insn)
{
    struct stack stack = stack_current(vcpu);
    unsigned size = operand_width(insn);
    uint64_t frame;

    if (is_64bit(vcpu) && size == 4) {
        size = 8;
    }
    stack.sp = (stack.sp & ~stack.mask) | (vcpu->state.gpr[RBP] & stack.mask);
    TRY(stack_pop(vcpu, &stack, size, &frame));
    gpr_store(vcpu, RBP, size, frame);
    stack_commit(vcpu, &stack);
    return STEP_NEXT;
}

/* PUSHF and POPF in virtual-8086 mode need IOPL 3 (VME is not offered). */
static bool flags_are_trapped(const struct vcpu *vcpu)
{
    return is_v86(vcpu) && iopl_of(vcpu) < 3;
}

enum step execute_pushf(struct vcpu *vcpu, const struct insn *insn)
{
    struct stack stack = stack_current(vcpu);

    if (flags_are_trapped(vcpu)) {
        return raise_gp(vcpu);
    }
    uint64_t image = vcpu->state.rflags & ~(uint64_t)(FLAG_VM | FLAG_RF);
    TRY(stack_push(vcpu, &stack, image, operand_width(insn)));
    stack_commit(vcpu, &stack);
    return STEP_NEXT;
}

uint64_t rflags_writable(const struct vcpu *vcpu, unsigned size)
{
    uint64_t mask = FLAGS_ARITHMETIC | FLAG_TF | FLAG_DF | FLAG_NT | FLAG_AC | FLAG_ID;

    if (!is_protected(vcpu) || cpl_of(vcpu) == 0) {
        mask |= FLAG_IF | FLAG_IOPL;
    } else if (cpl_of(vcpu) <= iopl_of(vcpu)) {
        mask |= FLAG_IF;
    }
    return size == 2 ? mask & 0xffff : mask;
}

void rflags_write(struct vcpu *vcpu, uint64_t value, uint64_t mask)
{
    vcpu->state.rflags = (vcpu->state.rflags & ~mask) | (value & mask) | FLAG_FIXED;
    vcpu->walk_mode.rflags = vcpu->state.rflags;
}

enum step execute_popf(struct vcpu *vcpu, const struct insn *insn)
{
    struct stack stack = stack_current(vcpu);
    unsigned size = operand_width(insn);
    uint64_t image;

    if (flags_are_trapped(vcpu)) {
        return raise_gp(vcpu);
    }
    TRY(stack_pop(vcpu, &stack, size, &image));
    stack_commit(vcpu, &stack);
    rflags_write(vcpu, image, rflags_writable(vcpu, size));
    return STEP_NEXT;
}
