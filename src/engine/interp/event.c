/*
 * Delivery of exceptions and interrupts through the IDT, for real-address, protected and IA-32e
 * mode. SDM volume 3, chapter 6.
 */
#include "engine/interp/interp_internal.h"
#include "x86/cpuid.h"

/* One event on its way to its handler. */
struct event {
    uint8_t vector;
    bool is_software; /* INT n and its kind: the gate's DPL counts, EXT is clear */
    bool has_error_code;
    uint32_t error_code;
    uint64_t rip;
    uint64_t rflags; /* the image to push */
};

static uint32_t external_bit(const struct event *event)
{
    return event->is_software ? 0 : 1;
}

static uint32_t vector_error(const struct event *event)
{
    return event->vector * 8u | 2 | external_bit(event);
}

static unsigned dpl_of(const struct segment *segment)
{
    return (segment->attributes & SEGMENT_DPL) >> SEGMENT_DPL_SHIFT;
}

static enum step deliver_real(struct vcpu *vcpu, const struct event *event)
{
    const struct descriptor_table *idtr = &vcpu->state.idtr;
    struct segment *cs = &vcpu->state.segment[CS];
    struct stack stack = stack_current(vcpu);
    uint32_t entry;

    if (event->vector * 4u + 3 > idtr->limit) {
        return raise_error(vcpu, EXCEPTION_GP, vector_error(event));
    }
    TRY(mmu_read(vcpu, idtr->base + event->vector * 4u, &entry, 4, 0));
    TRY(stack_reserve(vcpu, &stack, 6));
    TRY(stack_push(vcpu, &stack, event->rflags, 2));
    TRY(stack_push(vcpu, &stack, cs->selector, 2));
    TRY(stack_push(vcpu, &stack, event->rip, 2));
    stack_commit(vcpu, &stack);
    cs->selector = (uint16_t)(entry >> 16);
    cs->base = (uint32_t)cs->selector << 4;
    vcpu->state.rip = entry & 0xffff;
    rflags_write(vcpu, 0, FLAG_IF | FLAG_TF | FLAG_AC | FLAG_RF);
    return STEP_NEXT;
}

/* Read the gate and check what does not depend on its target. SDM volume 3, 6.12.1. */
static enum step gate_find(struct vcpu *vcpu, const struct event *event, struct gate *ret_gate)
{
    const struct descriptor_table *idtr = &vcpu->state.idtr;
    unsigned size = is_long(vcpu) ? 16 : 8;
    uint64_t descriptor[2] = {0, 0};

    if (event->vector * size + size - 1 > idtr->limit) {
        return raise_error(vcpu, EXCEPTION_GP, vector_error(event));
    }
    TRY(mmu_read(vcpu, idtr->base + event->vector * size, descriptor, size, 0));
    if (is_long(vcpu)) {
        gate_unpack64(descriptor[0], descriptor[1], ret_gate);
    } else {
        *ret_gate = gate_unpack(descriptor[0]);
    }
    bool is_gate = ret_gate->type == SYSTEM_INTERRUPT_GATE || ret_gate->type == SYSTEM_TRAP_GATE;
    if (!is_long(vcpu)) {
        is_gate = is_gate || ret_gate->type == SYSTEM_INTERRUPT_GATE16 ||
                  ret_gate->type == SYSTEM_TRAP_GATE16 || ret_gate->type == SYSTEM_TASK_GATE;
    }
    if (!ret_gate->system || !is_gate || (event->is_software && ret_gate->dpl < cpl_of(vcpu))) {
        return raise_error(vcpu, EXCEPTION_GP, vector_error(event));
    }
    if (!ret_gate->present) {
        return raise_error(vcpu, EXCEPTION_NP, vector_error(event));
    }
    return STEP_NEXT;
}

/* The handler's code segment; `ret_cpl` is the level it runs at. */
static enum step handler_segment(struct vcpu *vcpu, const struct event *event,
                                 const struct gate *gate, struct target *ret_target,
                                 unsigned *ret_cpl)
{
    uint32_t external = external_bit(event);
    uint32_t error_code = (gate->selector & ~SELECTOR_RPL) | external;
    uint64_t descriptor;

    if (selector_is_null(gate->selector)) {
        return raise_error(vcpu, EXCEPTION_GP, external);
    }
    TRY(descriptor_read(vcpu, gate->selector, EXCEPTION_GP, external, &descriptor));
    struct segment cs = descriptor_unpack(descriptor, gate->selector);
    bool is_code = (cs.attributes & SEGMENT_S) && (cs.attributes & SEGMENT_CODE);
    bool conforming = cs.attributes & SEGMENT_EXPAND_DOWN;
    if (!is_code || dpl_of(&cs) > cpl_of(vcpu) ||
        (is_long(vcpu) && (cs.attributes & (SEGMENT_L | SEGMENT_DB)) != SEGMENT_L)) {
        return raise_error(vcpu, EXCEPTION_GP, error_code);
    }
    if (!(cs.attributes & SEGMENT_P)) {
        return raise_error(vcpu, EXCEPTION_NP, error_code);
    }
    *ret_cpl = conforming ? cpl_of(vcpu) : dpl_of(&cs);
    if (is_v86(vcpu) && *ret_cpl != 0) {
        return raise_error(vcpu, EXCEPTION_GP, error_code);
    }
    if (!(cs.attributes & SEGMENT_ACCESSED)) {
        TRY(descriptor_set(vcpu, gate->selector, DESCRIPTOR_ACCESSED));
        cs.attributes |= SEGMENT_ACCESSED;
    }
    *ret_target = (struct target){.cs = cs, .rip = gate->offset};
    return target_check_rip(vcpu, ret_target, external);
}

/* The stack of the handler in IA-32e mode: IST, TSS or the current one, aligned to 16. */
static enum step handler_stack_long(struct vcpu *vcpu, const struct event *event,
                                    const struct gate *gate, unsigned cpl, struct stack *ret_stack)
{
    uint32_t external = external_bit(event);
    uint16_t selector;
    uint64_t sp;

    *ret_stack = (struct stack){
        .segment = vcpu->state.segment[SS],
        .mask = ~0ull,
        .access = cpl == 3 ? PF_USER : 0,
        .error_code = external,
        .is_64 = true,
    };
    sp = vcpu->state.gpr[RSP];
    if (gate->ist) {
        TRY(tss_ist(vcpu, gate->ist, external, &sp));
    } else if (cpl < cpl_of(vcpu)) {
        TRY(tss_stack(vcpu, cpl, external, &selector, &sp));
    }
    if (cpl < cpl_of(vcpu)) {
        ret_stack->segment = segment_null((uint16_t)cpl, cpl);
    }
    ret_stack->sp = sp & ~15ull;
    return STEP_NEXT;
}

static enum step deliver_long(struct vcpu *vcpu, const struct event *event, const struct gate *gate)
{
    struct cpu_state *state = &vcpu->state;
    struct target target;
    struct stack stack;
    unsigned cpl;

    TRY(handler_segment(vcpu, event, gate, &target, &cpl));
    TRY(handler_stack_long(vcpu, event, gate, cpl, &stack));
    TRY(stack_reserve(vcpu, &stack, 8 * (5 + event->has_error_code)));
    TRY(stack_push(vcpu, &stack, state->segment[SS].selector, 8));
    TRY(stack_push(vcpu, &stack, state->gpr[RSP], 8));
    TRY(stack_push(vcpu, &stack, event->rflags, 8));
    TRY(stack_push(vcpu, &stack, state->segment[CS].selector, 8));
    TRY(stack_push(vcpu, &stack, event->rip, 8));
    if (event->has_error_code) {
        TRY(stack_push(vcpu, &stack, event->error_code, 8));
    }
    state->segment[SS] = stack.segment;
    stack_commit(vcpu, &stack);
    enter_code(vcpu, &target, cpl);
    return STEP_NEXT;
}

/* The stack of the handler in protected mode. */
static enum step handler_stack(struct vcpu *vcpu, const struct event *event, unsigned cpl,
                               struct stack *ret_stack)
{
    uint32_t external = external_bit(event);
    uint16_t selector;
    uint64_t sp;

    *ret_stack = stack_current(vcpu);
    ret_stack->error_code = external;
    if (cpl == cpl_of(vcpu)) {
        return STEP_NEXT;
    }
    TRY(tss_stack(vcpu, cpl, external, &selector, &sp));
    TRY(stack_segment_prepare(vcpu, selector, cpl, EXCEPTION_TS, external, &ret_stack->segment));
    ret_stack->sp = sp;
    ret_stack->mask = ret_stack->segment.attributes & SEGMENT_DB ? 0xffffffff : 0xffff;
    ret_stack->access = 0;
    ret_stack->error_code = (selector & ~SELECTOR_RPL) | external;
    return STEP_NEXT;
}

static enum step push_data_segments(struct vcpu *vcpu, struct stack *stack, unsigned size)
{
    static const uint8_t order[] = {GS, FS, DS, ES};

    for (unsigned n = 0; n < ARRAY_SIZE(order); n++) {
        TRY(stack_push(vcpu, stack, vcpu->state.segment[order[n]].selector, size));
    }
    return STEP_NEXT;
}

static enum step deliver_protected(struct vcpu *vcpu, const struct event *event,
                                   const struct gate *gate)
{
    static const uint8_t data[] = {ES, DS, FS, GS};
    struct cpu_state *state = &vcpu->state;
    bool from_v86 = is_v86(vcpu);
    unsigned size = gate->type & 8 ? 4 : 2;
    struct target target;
    struct stack stack;
    unsigned cpl;

    TRY(handler_segment(vcpu, event, gate, &target, &cpl));
    TRY(handler_stack(vcpu, event, cpl, &stack));
    bool inner = cpl < cpl_of(vcpu);
    unsigned words = 3 + event->has_error_code + (inner ? 2 : 0) + (from_v86 ? 4 : 0);
    TRY(stack_reserve(vcpu, &stack, size * words));
    if (from_v86) {
        TRY(push_data_segments(vcpu, &stack, size));
    }
    if (inner) {
        TRY(stack_push(vcpu, &stack, state->segment[SS].selector, size));
        TRY(stack_push(vcpu, &stack, state->gpr[RSP], size));
    }
    TRY(stack_push(vcpu, &stack, event->rflags, size));
    TRY(stack_push(vcpu, &stack, state->segment[CS].selector, size));
    TRY(stack_push(vcpu, &stack, event->rip, size));
    if (event->has_error_code) {
        TRY(stack_push(vcpu, &stack, event->error_code, size));
    }
    rflags_write(vcpu, 0, FLAG_VM);
    for (unsigned n = 0; from_v86 && n < ARRAY_SIZE(data); n++) {
        state->segment[data[n]] = segment_null(0, 0);
    }
    state->segment[SS] = stack.segment;
    stack_commit(vcpu, &stack);
    enter_code(vcpu, &target, cpl);
    return STEP_NEXT;
}

/* One attempt; STEP_EXCEPTION leaves the state as it was. */
static enum step deliver(struct vcpu *vcpu, const struct event *event)
{
    struct gate gate;

    if (!is_protected(vcpu)) {
        return deliver_real(vcpu, event);
    }
    TRY(gate_find(vcpu, event, &gate));
    if (gate.type == SYSTEM_TASK_GATE) {
        uint64_t rip = vcpu->state.rip;
        vcpu->state.rip = event->rip;
        enum step step = task_switch(vcpu, gate.selector, TASK_INTERRUPT, external_bit(event),
                                     event->has_error_code, event->error_code);
        if (step == STEP_EXCEPTION) {
            vcpu->state.rip = rip;
        }
        return step;
    }
    TRY(is_long(vcpu) ? deliver_long(vcpu, event, &gate) : deliver_protected(vcpu, event, &gate));
    uint64_t cleared = FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM;
    if (!(gate.type & 1)) {
        cleared |= FLAG_IF;
    }
    rflags_write(vcpu, 0, cleared);
    return STEP_NEXT;
}

enum exception_class { BENIGN, CONTRIBUTORY, PAGE_FAULT, DOUBLE_FAULT };

static enum exception_class class_of(uint8_t vector)
{
    switch (vector) {
    case EXCEPTION_DE:
    case EXCEPTION_TS:
    case EXCEPTION_NP:
    case EXCEPTION_SS:
    case EXCEPTION_GP:
        return CONTRIBUTORY;
    case EXCEPTION_PF:
        return PAGE_FAULT;
    case EXCEPTION_DF:
        return DOUBLE_FAULT;
    default:
        return BENIGN;
    }
}

/* Table 6-5: does `second`, met while delivering `first`, make a double fault? */
static bool makes_double_fault(enum exception_class first, enum exception_class second)
{
    return (first == CONTRIBUTORY && second == CONTRIBUTORY) ||
           (first == PAGE_FAULT && (second == CONTRIBUTORY || second == PAGE_FAULT));
}

static enum step shut_down(struct vcpu *vcpu)
{
    vcpu->state.activity = ACTIVITY_SHUTDOWN;
    return STEP_SHUTDOWN;
}

/* What was delivered: external interrupts have vectors from 32 on, except NMI. */
static void count_event(struct vcpu *vcpu, const struct event *event)
{
    if (event->vector < EXCEPTION_VECTORS) {
        counter_add(&vcpu->counters->exceptions[event->vector], 1);
    } else if (!event->is_software) {
        vcpu_count(vcpu, COUNT_INTERRUPTS);
    }
}

/* Deliver `event`, then whatever its delivery raises, until something arrives. */
static enum step deliver_until_done(struct vcpu *vcpu, struct event event,
                                    enum exception_class class)
{
    uint64_t image = vcpu->state.rflags;

    for (;;) {
        enum step step = deliver(vcpu, &event);
        if (step != STEP_EXCEPTION) {
            count_event(vcpu, &event);
            vcpu->state.interrupt_shadow = false;
            vcpu->state.shadow_is_mov_ss = false;
            vcpu->state.activity = ACTIVITY_RUNNING;
            return step;
        }
        const struct exception *second = &vcpu->exception;
        enum exception_class second_class = class_of(second->vector);
        if (second->vector == EXCEPTION_PF) {
            vcpu->state.cr2 = second->cr2;
        }
        if (class == DOUBLE_FAULT && second_class != BENIGN) {
            return shut_down(vcpu);
        }
        bool is_double = makes_double_fault(class, second_class);
        event = (struct event){
            .vector = is_double ? EXCEPTION_DF : second->vector,
            .has_error_code = is_protected(vcpu) && (is_double || second->has_error_code),
            .error_code = is_double ? 0 : second->error_code,
            .rip = vcpu->state.rip,
            .rflags = image | FLAG_RF,
        };
        class = class_of(event.vector);
    }
}

enum step interp_deliver_exception(struct vcpu *vcpu)
{
    const struct exception *exception = &vcpu->exception;
    /* Faults push RF as 1, INT n and its kind as 0, #DB as it is. SDM volume 3, 17.3.1.1. */
    uint64_t rflags = vcpu->state.rflags;
    if (exception->length) {
        rflags &= ~(uint64_t)FLAG_RF;
    } else if (exception->vector != EXCEPTION_DB) {
        rflags |= FLAG_RF;
    }
    struct event event = {
        .vector = exception->vector,
        .is_software = exception->is_software,
        .has_error_code = exception->has_error_code && is_protected(vcpu),
        .error_code = exception->error_code,
        .rip = vcpu->state.rip + exception->length,
        .rflags = rflags,
    };

    if (!is_64bit(vcpu)) {
        event.rip &= 0xffffffff;
    }
    if (exception->vector == EXCEPTION_PF) {
        vcpu->state.cr2 = exception->cr2;
    }
    if (exception->vector == EXCEPTION_DB && !exception->is_software) {
        vcpu->state.dr6 = (vcpu->state.dr6 & ~0xfull) | exception->dr6;
        vcpu->state.dr7 &= ~(1ull << 13); /* GD */
    }
    return deliver_until_done(vcpu, event,
                              exception->is_software ? BENIGN : class_of(exception->vector));
}

enum step interp_deliver_interrupt(struct vcpu *vcpu, uint8_t vector)
{
    struct event event = {
        .vector = vector,
        .rip = vcpu->state.rip,
        .rflags = vcpu->state.rflags,
    };
    enum step step = deliver_until_done(vcpu, event, BENIGN);

    if (vcpu->debug) {
        debug_note_event(vcpu);
    }
    if (vector == EXCEPTION_NMI && step == STEP_NEXT) {
        vcpu->state.nmi_blocked = true;
        vcpu->state.nmi_pending = false;
    }
    return step;
}

static bool take_kick(struct vcpu *vcpu, uint32_t kick)
{
    return __atomic_load_n((uint32_t *)&vcpu->kicks, __ATOMIC_ACQUIRE) & kick &&
           __atomic_fetch_and((uint32_t *)&vcpu->kicks, ~kick, __ATOMIC_ACQ_REL) & kick;
}

/* Start at the page that the startup IPI names. SDM volume 3, 8.4.3. */
static void start_processor(struct vcpu *vcpu, uint8_t vector)
{
    vcpu->state.segment[CS].selector = (uint16_t)(vector << 8);
    vcpu->state.segment[CS].base = (uint32_t)vector << 12;
    vcpu->state.rip = 0;
    vcpu->state.activity = ACTIVITY_RUNNING;
}

static void poll_init(struct vcpu *vcpu)
{
    if (take_kick(vcpu, KICK_INIT)) {
        cpu_state_init_ipi(&vcpu->state, vcpu->index == 0);
        vcpu->state.gpr[RDX] = cpuid_signature(vcpu->cpuid);
        vcpu_mode_changed(vcpu);
        change_flush(vcpu, FLUSH_ALL, 0);
    }
    if (take_kick(vcpu, KICK_SIPI) && vcpu->state.activity == ACTIVITY_WAIT_SIPI) {
        start_processor(vcpu, vcpu->sipi_vector);
    }
}

/* Another vCPU has called for the end of HLT; the next one, if it came too early. */
static void poll_unhalt(struct vcpu *vcpu)
{
    struct cpu_state *state = &vcpu->state;

    if (take_kick(vcpu, KICK_UNHALT)) {
        state->unhalted = state->activity != ACTIVITY_HALTED;
        state->activity = state->unhalted ? state->activity : ACTIVITY_RUNNING;
    }
}

enum step interp_poll(struct vcpu *vcpu)
{
    struct cpu_state *state = &vcpu->state;

    poll_init(vcpu);
    poll_unhalt(vcpu);
    if (take_kick(vcpu, KICK_NMI)) {
        state->nmi_pending = true;
    }
    if (state->activity == ACTIVITY_SHUTDOWN) {
        return STEP_SHUTDOWN;
    }
    if (state->activity == ACTIVITY_WAIT_SIPI) {
        return STEP_HALT;
    }
    if (vcpu->debug && debug_holds_events(vcpu)) {
        return STEP_NEXT;
    }
    if (state->nmi_pending && !state->nmi_blocked) {
        if (!state->interrupt_shadow) {
            return interp_deliver_interrupt(vcpu, EXCEPTION_NMI);
        }
        __atomic_fetch_or((uint32_t *)&vcpu->kicks, KICK_NMI, __ATOMIC_RELEASE);
    }
    if ((state->rflags & FLAG_IF) && !state->interrupt_shadow && take_kick(vcpu, KICK_INTERRUPT)) {
        int vector = vcpu->host->interrupt_acknowledge(vcpu->host->owner, vcpu->index);
        if (vector >= 0) {
            /* There may be another one: only an empty answer ends the asking. */
            __atomic_fetch_or((uint32_t *)&vcpu->kicks, KICK_INTERRUPT, __ATOMIC_RELEASE);
            return interp_deliver_interrupt(vcpu, (uint8_t)vector);
        }
    }
    return state->activity == ACTIVITY_HALTED ? STEP_HALT : STEP_NEXT;
}
