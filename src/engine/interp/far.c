/*
 * Far transfers: far jumps, calls and returns, call gates, IRET. SDM volume 3, 5.8, and volume 2.
 */
#include "engine/interp/interp_internal.h"

static unsigned dpl_of(const struct segment *segment)
{
    return (segment->attributes & SEGMENT_DPL) >> SEGMENT_DPL_SHIFT;
}

static bool is_code_segment(const struct segment *segment)
{
    return (segment->attributes & (SEGMENT_S | SEGMENT_CODE)) == (SEGMENT_S | SEGMENT_CODE);
}

static bool is_conforming(const struct segment *segment)
{
    return segment->attributes & SEGMENT_EXPAND_DOWN;
}

static uint32_t selector_error(uint16_t selector, uint32_t external)
{
    return (selector & ~SELECTOR_RPL) | external;
}

void enter_code(struct vcpu *vcpu, const struct target *target, unsigned cpl)
{
    struct segment *cs = &vcpu->state.segment[CS];

    *cs = target->cs;
    if (has_selectors(vcpu)) {
        cs->selector = (uint16_t)((cs->selector & ~SELECTOR_RPL) | cpl);
    }
    vcpu->state.rip = target->rip;
}

enum step target_check_rip(struct vcpu *vcpu, const struct target *target, uint32_t external)
{
    bool is_64 = is_long(vcpu) && (target->cs.attributes & SEGMENT_L);
    bool valid = is_64 ? is_canonical(target->rip) : target->rip <= target->cs.limit;

    return valid ? STEP_NEXT : raise_error(vcpu, EXCEPTION_GP, external);
}

/* The checks that every new code segment must pass, after those of privilege. */
static enum step code_segment_finish(struct vcpu *vcpu, struct segment *cs, uint32_t external)
{
    uint32_t error_code = selector_error(cs->selector, external);

    if (is_long(vcpu) && (cs->attributes & SEGMENT_L) && (cs->attributes & SEGMENT_DB)) {
        return raise_error(vcpu, EXCEPTION_GP, error_code);
    }
    if (!(cs->attributes & SEGMENT_P)) {
        return raise_error(vcpu, EXCEPTION_NP, error_code);
    }
    if (!(cs->attributes & SEGMENT_ACCESSED)) {
        TRY(descriptor_set(vcpu, cs->selector, DESCRIPTOR_ACCESSED));
        cs->attributes |= SEGMENT_ACCESSED;
    }
    return STEP_NEXT;
}

static uint32_t tss_limit(const struct vcpu *vcpu)
{
    return vcpu->state.tr.attributes & SEGMENT_UNUSABLE ? 0 : vcpu->state.tr.limit;
}

enum step tss_stack(struct vcpu *vcpu, unsigned cpl, uint32_t external, uint16_t *ret_selector,
                    uint64_t *ret_sp)
{
    const struct segment *tr = &vcpu->state.tr;
    bool is_32 = tr->attributes & 8; /* type 9 or 11 */
    unsigned size = is_long(vcpu) ? 8 : is_32 ? 4 : 2;
    uint64_t offset = is_long(vcpu) ? 4 + 8 * cpl : is_32 ? 4 + 8 * cpl : 2 + 4 * cpl;
    uint64_t selector = 0;

    *ret_sp = 0;
    *ret_selector = 0;
    if (offset + (is_long(vcpu) ? 8 : size + 2) - 1 > tss_limit(vcpu)) {
        return raise_error(vcpu, EXCEPTION_TS, selector_error(tr->selector, external));
    }
    TRY(mmu_read(vcpu, tr->base + offset, ret_sp, size, 0));
    if (!is_long(vcpu)) {
        TRY(mmu_read(vcpu, tr->base + offset + size, &selector, 2, 0));
        *ret_selector = (uint16_t)selector;
    }
    return STEP_NEXT;
}

enum step tss_ist(struct vcpu *vcpu, unsigned ist, uint32_t external, uint64_t *ret_sp)
{
    const struct segment *tr = &vcpu->state.tr;
    uint64_t offset = 28 + 8 * ist;

    if (offset + 7 > tss_limit(vcpu)) {
        return raise_error(vcpu, EXCEPTION_TS, selector_error(tr->selector, external));
    }
    return mmu_read(vcpu, tr->base + offset, ret_sp, 8, 0);
}

/* A far transfer in real-address and virtual-8086 mode. */
static enum step real_target(struct vcpu *vcpu, uint16_t selector, uint64_t rip,
                             struct target *ret_target)
{
    ret_target->cs = vcpu->state.segment[CS];
    ret_target->cs.selector = selector;
    ret_target->cs.base = (uint32_t)selector << 4;
    ret_target->rip = rip;
    return target_check_rip(vcpu, ret_target, 0);
}

enum far_kind { FAR_JUMP, FAR_CALL };

/* The far pointer of JMP and CALL, in the instruction or in memory. */
static enum step load_far_pointer(struct vcpu *vcpu, const struct insn *insn,
                                  uint16_t *ret_selector, uint64_t *ret_rip)
{
    const struct insn_operand *operand = &insn->operands[0];
    unsigned size = operand_width(insn);
    struct place place;
    uint64_t selector;

    if (operand->type == ZYDIS_OPERAND_TYPE_POINTER) {
        *ret_selector = operand->ptr.segment;
        *ret_rip = operand->ptr.offset & size_mask(size);
        return STEP_NEXT;
    }
    TRY(operand_locate(vcpu, insn, 0, false, &place));
    TRY(linear_read(vcpu, place.gva, ret_rip, size));
    TRY(linear_read(vcpu, place.gva + size, &selector, 2));
    *ret_selector = (uint16_t)selector;
    return STEP_NEXT;
}

/* CS and the return address, for a call that stays on its stack. */
static enum step push_return(struct vcpu *vcpu, struct stack *stack, unsigned size)
{
    TRY(stack_reserve(vcpu, stack, 2 * size));
    TRY(stack_push(vcpu, stack, vcpu->state.segment[CS].selector, size));
    return stack_push(vcpu, stack, vcpu->state.rip, size);
}

/* A code segment named by the far pointer itself. */
static enum step far_direct(struct vcpu *vcpu, struct target *target, enum far_kind kind,
                            unsigned size)
{
    uint16_t selector = target->cs.selector;
    unsigned cpl = cpl_of(vcpu), rpl = selector & SELECTOR_RPL;
    bool permitted = is_conforming(&target->cs) ? dpl_of(&target->cs) <= cpl
                                                : rpl <= cpl && dpl_of(&target->cs) == cpl;

    if (!permitted) {
        return raise_error(vcpu, EXCEPTION_GP, selector_error(selector, 0));
    }
    TRY(code_segment_finish(vcpu, &target->cs, 0));
    TRY(target_check_rip(vcpu, target, 0));
    if (kind == FAR_CALL) {
        struct stack stack = stack_current(vcpu);
        TRY(push_return(vcpu, &stack, size));
        stack_commit(vcpu, &stack);
    }
    enter_code(vcpu, target, cpl);
    return STEP_NEXT;
}

/* The stack that the TSS holds for an inner level. */
static enum step inner_stack(struct vcpu *vcpu, unsigned cpl, struct stack *ret_stack)
{
    uint16_t selector;
    uint64_t sp;

    TRY(tss_stack(vcpu, cpl, 0, &selector, &sp));
    *ret_stack = (struct stack){.sp = sp, .mask = ~0ull, .is_64 = is_long(vcpu)};
    if (is_long(vcpu)) {
        ret_stack->segment = segment_null((uint16_t)cpl, cpl);
        return STEP_NEXT;
    }
    TRY(stack_segment_prepare(vcpu, selector, cpl, EXCEPTION_TS, 0, &ret_stack->segment));
    ret_stack->mask = ret_stack->segment.attributes & SEGMENT_DB ? 0xffffffff : 0xffff;
    ret_stack->error_code = selector_error(selector, 0);
    return STEP_NEXT;
}

/* CALL through a gate to an inner level: stack switch and parameters. SDM volume 3, 5.8.5. */
static enum step gate_call_inner(struct vcpu *vcpu, const struct gate *gate,
                                 const struct target *target, unsigned size)
{
    unsigned cpl = dpl_of(&target->cs), parameters = is_long(vcpu) ? 0 : gate->parameters;
    struct stack old = stack_current(vcpu), new;
    struct stack source = old;
    uint64_t values[32];

    TRY(inner_stack(vcpu, cpl, &new));
    for (unsigned n = 0; n < parameters; n++) {
        TRY(stack_pop(vcpu, &source, size, &values[n]));
    }
    TRY(stack_reserve(vcpu, &new, size * (4 + parameters)));
    TRY(stack_push(vcpu, &new, vcpu->state.segment[SS].selector, size));
    TRY(stack_push(vcpu, &new, old.sp, size));
    for (unsigned n = parameters; n-- > 0;) {
        TRY(stack_push(vcpu, &new, values[n], size));
    }
    TRY(push_return(vcpu, &new, size));
    vcpu->state.segment[SS] = new.segment;
    stack_commit(vcpu, &new);
    enter_code(vcpu, target, cpl);
    return STEP_NEXT;
}

static enum step gate_read(struct vcpu *vcpu, uint16_t selector, uint64_t descriptor,
                           struct gate *ret_gate)
{
    uint64_t high;

    if (!is_long(vcpu)) {
        *ret_gate = gate_unpack(descriptor);
        return STEP_NEXT;
    }
    TRY(descriptor_read_high(vcpu, selector, EXCEPTION_GP, 0, &high));
    if (!gate_unpack64(descriptor, high, ret_gate)) {
        return raise_error(vcpu, EXCEPTION_GP, selector_error(selector, 0));
    }
    return STEP_NEXT;
}

static enum step far_gate(struct vcpu *vcpu, uint16_t selector, uint64_t descriptor,
                          enum far_kind kind)
{
    struct target target;
    struct gate gate;
    uint64_t code;
    unsigned cpl = cpl_of(vcpu);

    TRY(gate_read(vcpu, selector, descriptor, &gate));
    if (gate.dpl < cpl || gate.dpl < (selector & SELECTOR_RPL)) {
        return raise_error(vcpu, EXCEPTION_GP, selector_error(selector, 0));
    }
    if (!gate.present) {
        return raise_error(vcpu, EXCEPTION_NP, selector_error(selector, 0));
    }
    if (selector_is_null(gate.selector)) {
        return raise_gp(vcpu);
    }
    TRY(descriptor_read(vcpu, gate.selector, EXCEPTION_GP, 0, &code));
    target.cs = descriptor_unpack(code, gate.selector);
    target.rip = gate.offset;
    unsigned dpl = dpl_of(&target.cs);
    bool inner = !is_conforming(&target.cs) && dpl < cpl;
    if (!is_code_segment(&target.cs) || dpl > cpl || (kind == FAR_JUMP && inner) ||
        (is_long(vcpu) && !(target.cs.attributes & SEGMENT_L))) {
        return raise_error(vcpu, EXCEPTION_GP, selector_error(gate.selector, 0));
    }
    TRY(code_segment_finish(vcpu, &target.cs, 0));
    TRY(target_check_rip(vcpu, &target, 0));
    unsigned size = is_long(vcpu) ? 8 : gate.type == SYSTEM_CALL_GATE ? 4 : 2;
    if (kind == FAR_CALL && inner) {
        return gate_call_inner(vcpu, &gate, &target, size);
    }
    if (kind == FAR_CALL) {
        struct stack stack = stack_current(vcpu);
        if (is_long(vcpu)) {
            stack.is_64 = true;
            stack.mask = ~0ull;
        }
        TRY(push_return(vcpu, &stack, size));
        stack_commit(vcpu, &stack);
    }
    enter_code(vcpu, &target, cpl);
    return STEP_NEXT;
}

/* A task gate or TSS as target. */
static enum step far_task(struct vcpu *vcpu, uint16_t selector, uint64_t descriptor,
                          enum far_kind kind)
{
    struct gate gate = gate_unpack(descriptor);

    if (gate.dpl < cpl_of(vcpu) || gate.dpl < (selector & SELECTOR_RPL)) {
        return raise_error(vcpu, EXCEPTION_GP, selector_error(selector, 0));
    }
    if (!gate.present) {
        return raise_error(vcpu, EXCEPTION_NP, selector_error(selector, 0));
    }
    if (gate.type == SYSTEM_TASK_GATE) {
        selector = gate.selector;
    }
    return task_switch(vcpu, selector, kind == FAR_JUMP ? TASK_JUMP : TASK_CALL, 0, false, 0);
}

static enum step far_protected(struct vcpu *vcpu, uint16_t selector, uint64_t rip,
                               enum far_kind kind, unsigned size)
{
    uint64_t descriptor;

    if (selector_is_null(selector)) {
        return raise_gp(vcpu);
    }
    TRY(descriptor_read(vcpu, selector, EXCEPTION_GP, 0, &descriptor));
    struct target target = {.cs = descriptor_unpack(descriptor, selector), .rip = rip};
    if (is_code_segment(&target.cs)) {
        return far_direct(vcpu, &target, kind, size);
    }
    if (!(target.cs.attributes & SEGMENT_S)) {
        switch (target.cs.attributes & SEGMENT_TYPE) {
        case SYSTEM_CALL_GATE:
            return far_gate(vcpu, selector, descriptor, kind);
        case SYSTEM_CALL_GATE16:
            if (is_long(vcpu)) {
                break;
            }
            return far_gate(vcpu, selector, descriptor, kind);
        case SYSTEM_TASK_GATE:
        case SYSTEM_TSS_AVAILABLE:
        case SYSTEM_TSS16_AVAILABLE:
            if (is_long(vcpu)) {
                break;
            }
            return far_task(vcpu, selector, descriptor, kind);
        default:
            break;
        }
    }
    return raise_error(vcpu, EXCEPTION_GP, selector_error(selector, 0));
}

static enum step far_transfer(struct vcpu *vcpu, const struct insn *insn, enum far_kind kind)
{
    unsigned size = operand_width(insn);
    struct target target;
    uint16_t selector;
    uint64_t rip;

    TRY(load_far_pointer(vcpu, insn, &selector, &rip));
    if (has_selectors(vcpu)) {
        return far_protected(vcpu, selector, rip, kind, size);
    }
    TRY(real_target(vcpu, selector, rip, &target));
    if (kind == FAR_CALL) {
        struct stack stack = stack_current(vcpu);
        TRY(push_return(vcpu, &stack, size));
        stack_commit(vcpu, &stack);
    }
    enter_code(vcpu, &target, cpl_of(vcpu));
    return STEP_NEXT;
}

enum step execute_jump_far(struct vcpu *vcpu, const struct insn *insn)
{
    return far_transfer(vcpu, insn, FAR_JUMP);
}

enum step execute_call_far(struct vcpu *vcpu, const struct insn *insn)
{
    return far_transfer(vcpu, insn, FAR_CALL);
}

/* The code segment that a return goes back to: at RPL, never more privileged than now. */
static enum step return_code_segment(struct vcpu *vcpu, uint16_t selector, struct segment *ret_cs)
{
    unsigned rpl = selector & SELECTOR_RPL;
    uint64_t descriptor;

    if (selector_is_null(selector)) {
        return raise_gp(vcpu);
    }
    TRY(descriptor_read(vcpu, selector, EXCEPTION_GP, 0, &descriptor));
    *ret_cs = descriptor_unpack(descriptor, selector);
    if (!is_code_segment(ret_cs) || rpl < cpl_of(vcpu) ||
        (is_conforming(ret_cs) ? dpl_of(ret_cs) > rpl : dpl_of(ret_cs) != rpl)) {
        return raise_error(vcpu, EXCEPTION_GP, selector_error(selector, 0));
    }
    return code_segment_finish(vcpu, ret_cs, 0);
}

/* The stack segment that a return to `cpl` loads. Null is fine for 64-bit code below CPL 3. */
static enum step return_stack_segment(struct vcpu *vcpu, uint16_t selector,
                                      const struct segment *cs, unsigned cpl,
                                      struct segment *ret_ss)
{
    bool to_64bit = is_long(vcpu) && (cs->attributes & SEGMENT_L);

    if (selector_is_null(selector) && to_64bit && cpl < 3 && (selector & SELECTOR_RPL) == cpl) {
        *ret_ss = segment_null(selector, cpl);
        return STEP_NEXT;
    }
    return stack_segment_prepare(vcpu, selector, cpl, EXCEPTION_GP, 0, ret_ss);
}

/* Load SS and the stack pointer of the level that is returned to. */
static void return_to_stack(struct vcpu *vcpu, const struct target *target,
                            const struct segment *ss, uint64_t sp)
{
    bool to_64bit = is_long(vcpu) && (target->cs.attributes & SEGMENT_L);
    struct stack stack = {
        .sp = sp,
        .mask = to_64bit                      ? ~0ull
                : ss->attributes & SEGMENT_DB ? 0xffffffff
                                              : 0xffff,
    };

    vcpu->state.segment[SS] = *ss;
    stack_commit(vcpu, &stack);
}

enum step execute_return_far(struct vcpu *vcpu, const struct insn *insn)
{
    struct stack stack = stack_current(vcpu);
    unsigned size = operand_width(insn), cpl = cpl_of(vcpu);
    uint64_t release = 0, rip, selector, sp, stack_selector;
    struct target target;
    struct segment ss;

    if (insn->operands[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        release = insn->operands[0].imm.value.u;
    }
    TRY(stack_pop(vcpu, &stack, size, &rip));
    TRY(stack_pop(vcpu, &stack, size, &selector));
    stack.sp = (stack.sp & ~stack.mask) | ((stack.sp + release) & stack.mask);
    if (!has_selectors(vcpu)) {
        TRY(real_target(vcpu, (uint16_t)selector, rip, &target));
        stack_commit(vcpu, &stack);
        enter_code(vcpu, &target, cpl);
        return STEP_NEXT;
    }
    target.rip = rip;
    TRY(return_code_segment(vcpu, (uint16_t)selector, &target.cs));
    unsigned new_cpl = selector & SELECTOR_RPL;
    if (new_cpl == cpl) {
        TRY(target_check_rip(vcpu, &target, 0));
        stack_commit(vcpu, &stack);
        enter_code(vcpu, &target, cpl);
        return STEP_NEXT;
    }
    TRY(stack_pop(vcpu, &stack, size, &sp));
    TRY(stack_pop(vcpu, &stack, size, &stack_selector));
    TRY(return_stack_segment(vcpu, (uint16_t)stack_selector, &target.cs, new_cpl, &ss));
    TRY(target_check_rip(vcpu, &target, 0));
    enter_code(vcpu, &target, new_cpl);
    return_to_stack(vcpu, &target, &ss, sp + release);
    segments_drop_privileged(vcpu, new_cpl);
    return STEP_NEXT;
}

/* What IRET may change in RFLAGS, beside what POPF may. */
static uint64_t iret_mask(const struct vcpu *vcpu, unsigned size)
{
    uint64_t mask = rflags_writable(vcpu, size);

    if (size > 2) {
        mask |= FLAG_RF;
        if (is_protected(vcpu) && cpl_of(vcpu) == 0) {
            mask |= FLAG_VIF | FLAG_VIP;
        }
    }
    return mask;
}

static enum step iret_real(struct vcpu *vcpu, struct stack *stack, unsigned size)
{
    uint64_t rip, selector, flags;
    struct target target;

    if (is_v86(vcpu) && iopl_of(vcpu) < 3) {
        return raise_gp(vcpu);
    }
    TRY(stack_pop(vcpu, stack, size, &rip));
    TRY(stack_pop(vcpu, stack, size, &selector));
    TRY(stack_pop(vcpu, stack, size, &flags));
    TRY(real_target(vcpu, (uint16_t)selector, rip, &target));
    stack_commit(vcpu, stack);
    enter_code(vcpu, &target, cpl_of(vcpu));
    rflags_write(vcpu, flags, iret_mask(vcpu, size));
    return STEP_NEXT;
}

/* Return to virtual-8086 mode: ESP, SS, ES, DS, FS, GS follow the flags. */
static enum step iret_to_v86(struct vcpu *vcpu, struct stack *stack, const struct target *target,
                             uint64_t flags)
{
    static const uint8_t order[] = {SS, ES, DS, FS, GS};
    uint64_t selectors[ARRAY_SIZE(order)], sp;

    TRY(stack_pop(vcpu, stack, 4, &sp));
    for (unsigned n = 0; n < ARRAY_SIZE(order); n++) {
        TRY(stack_pop(vcpu, stack, 4, &selectors[n]));
    }
    for (unsigned n = 0; n < ARRAY_SIZE(order); n++) {
        vcpu->state.segment[order[n]] = segment_real((uint16_t)selectors[n], true);
    }
    vcpu->state.segment[CS] = segment_real(target->cs.selector, true);
    vcpu->state.rip = target->rip & 0xffff;
    vcpu->state.gpr[RSP] = (uint32_t)sp;
    rflags_write(vcpu, flags, 0x3f7fd7);
    return STEP_NEXT;
}

static enum step iret_protected(struct vcpu *vcpu, struct stack *stack, unsigned size)
{
    unsigned cpl = cpl_of(vcpu);
    uint64_t rip, selector, flags, sp = 0, stack_selector = 0;
    struct target target;
    struct segment ss;

    TRY(stack_pop(vcpu, stack, size, &rip));
    TRY(stack_pop(vcpu, stack, size, &selector));
    TRY(stack_pop(vcpu, stack, size, &flags));
    target.rip = rip;
    if (size == 4 && (flags & FLAG_VM) && cpl == 0 && !is_long(vcpu)) {
        target.cs.selector = (uint16_t)selector;
        return iret_to_v86(vcpu, stack, &target, flags);
    }
    TRY(return_code_segment(vcpu, (uint16_t)selector, &target.cs));
    unsigned new_cpl = selector & SELECTOR_RPL;
    bool pops_stack = new_cpl != cpl || is_64bit(vcpu);
    if (pops_stack) {
        TRY(stack_pop(vcpu, stack, size, &sp));
        TRY(stack_pop(vcpu, stack, size, &stack_selector));
        TRY(return_stack_segment(vcpu, (uint16_t)stack_selector, &target.cs, new_cpl, &ss));
    }
    TRY(target_check_rip(vcpu, &target, 0));
    uint64_t mask = iret_mask(vcpu, size);
    enter_code(vcpu, &target, new_cpl);
    rflags_write(vcpu, flags, mask);
    if (!pops_stack) {
        stack_commit(vcpu, stack);
        return STEP_NEXT;
    }
    return_to_stack(vcpu, &target, &ss, sp);
    if (new_cpl != cpl) {
        segments_drop_privileged(vcpu, new_cpl);
    }
    return STEP_NEXT;
}

enum step execute_iret(struct vcpu *vcpu, const struct insn *insn)
{
    struct stack stack = stack_current(vcpu);
    unsigned size = operand_width(insn);
    uint64_t selector = 0;

    vcpu->state.nmi_blocked = false;
    if (vcpu->state.nmi_pending) { /* its kick was taken while it was blocked: look again */
        __atomic_fetch_or((uint32_t *)&vcpu->kicks, KICK_NMI, __ATOMIC_RELEASE);
    }
    if (!has_selectors(vcpu)) {
        return iret_real(vcpu, &stack, size);
    }
    if (!(vcpu->state.rflags & FLAG_NT)) {
        return iret_protected(vcpu, &stack, size);
    }
    if (is_long(vcpu)) {
        return raise_gp(vcpu);
    }
    TRY(mmu_read(vcpu, vcpu->state.tr.base, &selector, 2, 0)); /* the back link */
    return task_switch(vcpu, (uint16_t)selector, TASK_IRET, 0, false, 0);
}
