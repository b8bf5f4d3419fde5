/*
 * Hardware task switches of 16-bit and 32-bit protected mode. SDM volume 3, 7.2 and 7.3.
 */
#include "engine/interp/interp_internal.h"

/* Where things are in the two kinds of task-state segment. */
struct tss_layout {
    uint8_t word; /* bytes of a general register */
    uint8_t cr3, rip, rflags, gpr, segments, ldt, trap;
    uint8_t segment_step, segment_count;
    uint8_t size;
};

static const struct tss_layout layout16 = {
    .word = 2,
    .rip = 0x0e,
    .rflags = 0x10,
    .gpr = 0x12,
    .segments = 0x22,
    .ldt = 0x2a,
    .segment_step = 2,
    .segment_count = 4,
    .size = 0x2c,
};
static const struct tss_layout layout32 = {
    .word = 4,
    .cr3 = 0x1c,
    .rip = 0x20,
    .rflags = 0x24,
    .gpr = 0x28,
    .segments = 0x48,
    .ldt = 0x60,
    .trap = 0x64,
    .segment_step = 4,
    .segment_count = 6,
    .size = 0x68,
};

enum { TSS_BUSY = 2, TSS_32BIT = 8 };

static const struct tss_layout *layout_of(const struct segment *tss)
{
    return tss->attributes & TSS_32BIT ? &layout32 : &layout16;
}

static uint32_t selector_error(uint16_t selector, uint32_t external)
{
    return (selector & ~SELECTOR_RPL) | external;
}

static uint32_t field_load(const uint8_t *image, unsigned offset, unsigned word)
{
    return word == 4 ? load_le32(image + offset) : load_le16(image + offset);
}

static void field_store(uint8_t *image, unsigned offset, unsigned word, uint32_t value)
{
    if (word == 4) {
        store_le32(image + offset, value);
    } else {
        store_le16(image + offset, (uint16_t)value);
    }
}

/* Find and check the new task's TSS. */
static enum step find_tss(struct vcpu *vcpu, uint16_t selector, enum task_switch reason,
                          uint32_t external, struct segment *ret_tss)
{
    enum exception_vector vector = reason == TASK_IRET ? EXCEPTION_TS : EXCEPTION_GP;
    uint32_t error_code = selector_error(selector, external);
    uint64_t descriptor;

    if (selector_is_null(selector) || (selector & SELECTOR_TI)) {
        return raise_error(vcpu, vector, error_code);
    }
    TRY(descriptor_read(vcpu, selector, vector, external, &descriptor));
    *ret_tss = descriptor_unpack(descriptor, selector);
    unsigned type = ret_tss->attributes & SEGMENT_TYPE & ~TSS_BUSY;
    bool busy = ret_tss->attributes & TSS_BUSY;
    if ((ret_tss->attributes & SEGMENT_S) ||
        (type != SYSTEM_TSS_AVAILABLE && type != SYSTEM_TSS16_AVAILABLE) ||
        busy != (reason == TASK_IRET)) {
        return raise_error(vcpu, vector, error_code);
    }
    if (!(ret_tss->attributes & SEGMENT_P)) {
        return raise_error(vcpu, EXCEPTION_NP, error_code);
    }
    if (ret_tss->limit + 1ull < layout_of(ret_tss)->size) {
        return raise_error(vcpu, EXCEPTION_TS, error_code);
    }
    return STEP_NEXT;
}

/* The dynamic fields of the outgoing task. */
static enum step save_old(struct vcpu *vcpu, uint32_t rflags)
{
    const struct cpu_state *state = &vcpu->state;
    const struct tss_layout *layout = layout_of(&state->tr);
    uint8_t image[sizeof(uint64_t) * 16];

    TRY(mmu_read(vcpu, state->tr.base, image, layout->size, 0));
    field_store(image, layout->rip, layout->word, (uint32_t)state->rip);
    field_store(image, layout->rflags, layout->word, rflags);
    for (unsigned n = 0; n < 8; n++) {
        field_store(image, layout->gpr + n * layout->word, layout->word, (uint32_t)state->gpr[n]);
    }
    for (unsigned n = 0; n < layout->segment_count; n++) {
        store_le16(image + layout->segments + n * layout->segment_step, state->segment[n].selector);
    }
    unsigned start = layout->rip; /* what lies before is static */
    return mmu_write(vcpu, state->tr.base + start, image + start, layout->ldt - start, 0);
}

static enum step load_ldt(struct vcpu *vcpu, uint16_t selector, uint32_t external)
{
    uint64_t descriptor;

    vcpu->state.ldtr = segment_null(selector, 0);
    if (selector_is_null(selector)) {
        return STEP_NEXT;
    }
    if (selector & SELECTOR_TI) {
        return raise_error(vcpu, EXCEPTION_TS, selector_error(selector, external));
    }
    TRY(descriptor_read(vcpu, selector, EXCEPTION_TS, external, &descriptor));
    struct segment ldt = descriptor_unpack(descriptor, selector);
    if ((ldt.attributes & (SEGMENT_S | SEGMENT_TYPE | SEGMENT_P)) != (SYSTEM_LDT | SEGMENT_P)) {
        return raise_error(vcpu, EXCEPTION_TS, selector_error(selector, external));
    }
    vcpu->state.ldtr = ldt;
    return STEP_NEXT;
}

static enum step load_code(struct vcpu *vcpu, uint16_t selector, uint32_t external)
{
    uint32_t error_code = selector_error(selector, external);
    uint64_t descriptor;

    if (selector_is_null(selector)) {
        return raise_error(vcpu, EXCEPTION_TS, error_code);
    }
    TRY(descriptor_read(vcpu, selector, EXCEPTION_TS, external, &descriptor));
    struct segment cs = descriptor_unpack(descriptor, selector);
    unsigned dpl = (cs.attributes & SEGMENT_DPL) >> SEGMENT_DPL_SHIFT;
    unsigned rpl = selector & SELECTOR_RPL;
    bool conforming = cs.attributes & SEGMENT_EXPAND_DOWN;
    if ((cs.attributes & (SEGMENT_S | SEGMENT_CODE)) != (SEGMENT_S | SEGMENT_CODE) ||
        (conforming ? dpl > rpl : dpl != rpl)) {
        return raise_error(vcpu, EXCEPTION_TS, error_code);
    }
    if (!(cs.attributes & SEGMENT_P)) {
        return raise_error(vcpu, EXCEPTION_NP, error_code);
    }
    TRY(descriptor_set(vcpu, selector, DESCRIPTOR_ACCESSED));
    cs.attributes |= SEGMENT_ACCESSED;
    vcpu->state.segment[CS] = cs;
    return STEP_NEXT;
}

/* The descriptors of the new task: faults belong to it already. */
static enum step load_segments(struct vcpu *vcpu, const uint16_t *selectors, uint16_t ldt,
                               uint32_t external)
{
    static const uint8_t data[] = {ES, DS, FS, GS};
    unsigned cpl = selectors[CS] & SELECTOR_RPL;
    struct segment segment;

    for (unsigned n = 0; n < SEGMENT_COUNT; n++) {
        vcpu->state.segment[n] =
            is_v86(vcpu) ? segment_real(selectors[n], true) : segment_null(selectors[n], cpl);
    }
    TRY(load_ldt(vcpu, ldt, external));
    if (is_v86(vcpu)) {
        return STEP_NEXT;
    }
    /* The stack before the code (table 7-1): a fault of the code segment needs one. */
    TRY(stack_segment_prepare(vcpu, selectors[SS], cpl, EXCEPTION_TS, external, &segment));
    vcpu->state.segment[SS] = segment;
    TRY(load_code(vcpu, selectors[CS], external));
    for (unsigned n = 0; n < ARRAY_SIZE(data); n++) {
        enum step step = segment_prepare(vcpu, data[n], selectors[data[n]], cpl, &segment);
        if (step == STEP_EXCEPTION && vcpu->exception.vector == EXCEPTION_GP) {
            return raise_error(vcpu, EXCEPTION_TS, selector_error(selectors[data[n]], external));
        }
        TRY(step);
        vcpu->state.segment[data[n]] = segment;
    }
    return STEP_NEXT;
}

/* The registers of the incoming task. */
static enum step load_new(struct vcpu *vcpu, const struct segment *tss, const uint8_t *image,
                          enum task_switch reason, uint32_t external)
{
    struct cpu_state *state = &vcpu->state;
    const struct tss_layout *layout = layout_of(tss);
    uint16_t selectors[SEGMENT_COUNT] = {0};

    state->tr = *tss;
    state->tr.attributes |= TSS_BUSY;
    state->cr0 |= CR0_TS;
    if (layout->cr3 && (state->cr0 & CR0_PG)) {
        TRY(control_register_write(vcpu, 3, load_le32(image + layout->cr3)));
    }
    state->rip = field_load(image, layout->rip, layout->word);
    uint64_t flags = field_load(image, layout->rflags, layout->word);
    if (reason == TASK_CALL || reason == TASK_INTERRUPT) {
        flags |= FLAG_NT;
    }
    rflags_write(vcpu, flags, 0x3f7fd7);
    for (unsigned n = 0; n < 8; n++) {
        gpr_store(vcpu, n, layout->word,
                  field_load(image, layout->gpr + n * layout->word, layout->word));
    }
    for (unsigned n = 0; n < layout->segment_count; n++) {
        selectors[n] = load_le16(image + layout->segments + n * layout->segment_step);
    }
    state->dr7 &= ~0x155ull; /* local breakpoints */
    TRY(load_segments(vcpu, selectors, load_le16(image + layout->ldt), external));
    if (layout->trap && (image[layout->trap] & 1)) {
        vcpu->debug_hits |= 1u << 15;
    }
    vcpu_mode_changed(vcpu);
    return check_rip(vcpu, state->rip);
}

enum step task_switch(struct vcpu *vcpu, uint16_t selector, enum task_switch reason,
                      uint32_t external, bool has_error_code, uint32_t error_code)
{
    struct cpu_state *state = &vcpu->state;
    uint16_t old_selector = state->tr.selector;
    uint8_t image[sizeof(uint64_t) * 16];
    struct segment tss;
    uint32_t rflags = (uint32_t)state->rflags;

    TRY(find_tss(vcpu, selector, reason, external, &tss));
    TRY(mmu_read(vcpu, tss.base, image, layout_of(&tss)->size, 0));
    TRY(mmu_check_write(vcpu, tss.base, 2, 0));
    if (reason == TASK_IRET) {
        rflags &= ~(uint32_t)FLAG_NT;
    }
    TRY(save_old(vcpu, rflags));
    if (reason == TASK_JUMP || reason == TASK_IRET) {
        TRY(descriptor_clear(vcpu, old_selector, DESCRIPTOR_BUSY));
    }
    if (reason == TASK_CALL || reason == TASK_INTERRUPT) {
        TRY(mmu_write(vcpu, tss.base, &old_selector, 2, 0));
    }
    if (reason != TASK_IRET) {
        TRY(descriptor_set(vcpu, selector, DESCRIPTOR_BUSY));
    }
    enum step step = load_new(vcpu, &tss, image, reason, external);
    if (step == STEP_NEXT && has_error_code) {
        struct stack stack = stack_current(vcpu);
        step = stack_push(vcpu, &stack, error_code, layout_of(&tss)->word);
        if (step == STEP_NEXT) {
            stack_commit(vcpu, &stack);
        }
    }
    if (step == STEP_EXCEPTION) {
        /* It happens in the new task, before its first instruction. */
        return interp_deliver_exception(vcpu);
    }
    return step;
}
