/*
 * Access to the local APIC's registers: the memory-mapped page (xAPIC) and MSRs (x2APIC). SDM
 * volume 3, tables 10-1 and 10-6. Registers are numbered by their MSR, which is the offset in the
 * page divided by 16.
 */
#include "device/irqchip/lapic_internal.h"

#include "base/bytes.h"

enum lapic_register {
    REGISTER_ID = 0x02,
    REGISTER_VERSION = 0x03,
    REGISTER_TPR = 0x08,
    REGISTER_APR = 0x09,
    REGISTER_PPR = 0x0a,
    REGISTER_EOI = 0x0b,
    REGISTER_RRD = 0x0c,
    REGISTER_LDR = 0x0d,
    REGISTER_DFR = 0x0e,
    REGISTER_SVR = 0x0f,
    REGISTER_ISR = 0x10,
    REGISTER_TMR = 0x18,
    REGISTER_IRR = 0x20,
    REGISTER_ESR = 0x28,
    REGISTER_ICR = 0x30,
    REGISTER_ICR_HIGH = 0x31,
    REGISTER_LVT = 0x32, /* timer, thermal, counter, LINT0, LINT1, error */
    REGISTER_INITIAL = 0x38,
    REGISTER_CURRENT = 0x39,
    REGISTER_DIVIDE = 0x3e,
    REGISTER_SELF_IPI = 0x3f,
};

enum {
    /* integrated APIC, six local vectors, EOI broadcasts can be suppressed */
    VERSION = 0x14 | (LVT_COUNT - 1) << 16 | 1 << 24,
    SVR_WRITABLE = 0x11ff,
    ICR_WRITABLE = 0x000ccfff, /* without the read-only delivery status */
    LVT_READ_ONLY = 1u << 12 | 1u << 14,
    MSR_APIC_BASE = 0x1b,
    MSR_TSC_DEADLINE = 0x6e0,
    MSR_X2APIC_FIRST = 0x800,
    MSR_X2APIC_LAST = 0x8ff,
};

/* What may be written to each local vector; the rest is reserved. */
static const uint32_t lvt_writable[LVT_COUNT] = {
    [LVT_TIMER] = 0x700ff, [LVT_THERMAL] = 0x107ff, [LVT_COUNTER] = 0x107ff,
    [LVT_LINT0] = 0x1a7ff, [LVT_LINT1] = 0x1a7ff,   [LVT_ERROR] = 0x100ff,
};

static uint32_t register_read(struct lapic *lapic, unsigned number)
{
    switch (number) {
    case REGISTER_ID:
        return lapic_is_x2apic(lapic) ? lapic->id : lapic->id << 24;
    case REGISTER_VERSION:
        return VERSION;
    case REGISTER_TPR:
        return lapic->tpr;
    case REGISTER_APR:
    case REGISTER_PPR:
        return lapic_ppr(lapic);
    case REGISTER_LDR:
        return lapic->ldr;
    case REGISTER_DFR:
        return lapic->dfr;
    case REGISTER_SVR:
        return lapic->svr;
    case REGISTER_ISR ... REGISTER_ISR + 7:
        return lapic->isr[number - REGISTER_ISR];
    case REGISTER_TMR ... REGISTER_TMR + 7:
        return lapic->tmr[number - REGISTER_TMR];
    case REGISTER_IRR ... REGISTER_IRR + 7:
        return lapic->irr[number - REGISTER_IRR];
    case REGISTER_ESR:
        return lapic->esr;
    case REGISTER_ICR:
        return (uint32_t)lapic->icr;
    case REGISTER_ICR_HIGH:
        return (uint32_t)(lapic->icr >> 32);
    case REGISTER_LVT ... REGISTER_LVT + LVT_COUNT - 1:
        return lapic->lvt[number - REGISTER_LVT];
    case REGISTER_INITIAL:
        return lapic->timer_initial;
    case REGISTER_CURRENT:
        return lapic_timer_current(lapic);
    case REGISTER_DIVIDE:
        return lapic->timer_divide;
    case REGISTER_EOI:
    case REGISTER_RRD:
        return 0;
    default:
        lapic_error(lapic, ESR_REGISTER);
        return 0;
    }
}

static void lvt_write(struct lapic *lapic, unsigned which, uint32_t value)
{
    value &= lvt_writable[which];
    if (!(lapic->svr & SVR_ENABLE)) {
        value |= LVT_MASKED;
    }
    if (which == LVT_TIMER) {
        lapic_timer_set_vector(lapic, value);
        return;
    }
    lapic->lvt[which] = value;
    if (which == LVT_LINT0) {
        lapic_update(lapic); /* the 8259s may have been waiting for it */
    }
}

static void svr_write(struct lapic *lapic, uint32_t value)
{
    lapic->svr = value & SVR_WRITABLE;
    if (!(value & SVR_ENABLE)) { /* SDM volume 3, 10.4.7.2 */
        for (unsigned i = 0; i < LVT_COUNT; i++) {
            lapic->lvt[i] |= LVT_MASKED;
        }
        lapic_timer_arm(lapic);
    }
}

/* Registers without an effect on others. With the lock held. */
static void register_write(struct lapic *lapic, unsigned number, uint32_t value)
{
    switch (number) {
    case REGISTER_TPR:
        lapic->tpr = value & 0xff;
        lapic_update(lapic);
        break;
    case REGISTER_LDR:
        lapic->ldr = value & 0xff000000;
        break;
    case REGISTER_DFR:
        lapic->dfr = value | 0x0fffffff;
        break;
    case REGISTER_SVR:
        svr_write(lapic, value);
        break;
    case REGISTER_ESR:
        lapic->esr = lapic->esr_pending;
        lapic->esr_pending = 0;
        break;
    case REGISTER_ICR_HIGH:
        lapic->icr = (uint32_t)lapic->icr | (uint64_t)(value & 0xff000000) << 32;
        break;
    case REGISTER_LVT ... REGISTER_LVT + LVT_COUNT - 1:
        lvt_write(lapic, number - REGISTER_LVT, value);
        break;
    case REGISTER_INITIAL:
        lapic_timer_set_initial(lapic, value);
        break;
    case REGISTER_DIVIDE:
        lapic_timer_set_divide(lapic, value);
        break;
    case REGISTER_ID ... REGISTER_VERSION:
    case REGISTER_APR ... REGISTER_PPR:
    case REGISTER_RRD:
    case REGISTER_ISR ... REGISTER_IRR + 7:
    case REGISTER_CURRENT:
        break; /* read-only */
    default:
        lapic_error(lapic, ESR_REGISTER);
        break;
    }
}

/* Send what `icr` says. Without the lock: the message may come back to ourselves. */
static void icr_send(struct lapic *lapic, uint64_t icr, bool is_wide)
{
    struct apic_message message = {
        .destination = is_wide ? (uint32_t)(icr >> 32) : (uint32_t)(icr >> 56),
        .is_logical = icr >> 11 & 1,
        .is_wide = is_wide,
        .is_level = false, /* IPIs are edge-triggered whatever the bit says (10.6.1) */
        .mode = icr >> 8 & 7,
        .vector = (uint8_t)icr,
    };
    bool is_level = icr >> 15 & 1, asserts = icr >> 14 & 1;
    if (message.mode == DELIVERY_INIT && is_level && !asserts) {
        return; /* INIT level de-assert: not supported by integrated APICs of today (10.6.1) */
    }
    bool has_vector = message.mode == DELIVERY_FIXED || message.mode == DELIVERY_LOWEST;
    if (has_vector && message.vector < 16) {
        lapic_lock(lapic);
        lapic_error(lapic, ESR_SEND_VECTOR);
        lapic_unlock(lapic);
        return;
    }
    lapic->board->send(lapic->board->owner, lapic->id, icr >> 18 & 3, &message);
}

static void icr_write(struct lapic *lapic, uint64_t icr, bool is_wide)
{
    lapic_lock(lapic);
    lapic->icr = icr;
    lapic_unlock(lapic);
    icr_send(lapic, icr, is_wide);
}

static void eoi_write(struct lapic *lapic)
{
    uint8_t vector;
    lapic_lock(lapic);
    bool tell = lapic_complete(lapic, &vector);
    lapic_unlock(lapic);
    if (tell) {
        lapic->board->eoi(lapic->board->owner, vector);
    }
}

bool lapic_claims(struct lapic *lapic, uint64_t address)
{
    lapic_lock(lapic);
    bool is_mapped = lapic_is_enabled(lapic) && !lapic_is_x2apic(lapic) &&
                     align_down(address, 0x1000) == align_down(lapic->base_msr, 0x1000);
    lapic_unlock(lapic);
    return is_mapped;
}

uint32_t lapic_mmio_read(struct lapic *lapic, unsigned offset)
{
    lapic_lock(lapic);
    uint32_t value = register_read(lapic, offset >> 4);
    lapic_unlock(lapic);
    return value;
}

void lapic_mmio_write(struct lapic *lapic, unsigned offset, uint32_t value)
{
    unsigned number = offset >> 4;
    if (number == REGISTER_EOI) {
        eoi_write(lapic);
    } else if (number == REGISTER_ICR) {
        icr_write(lapic, (lapic->icr & ~0xffffffffull) | (value & ICR_WRITABLE), false);
    } else {
        lapic_lock(lapic);
        register_write(lapic, number, value);
        lapic_unlock(lapic);
    }
}

/* Bits that may be set by WRMSR to an x2APIC register; a set bit outside is #GP. */
static bool x2apic_writable(unsigned number, uint64_t *ret_mask)
{
    switch (number) {
    case REGISTER_TPR:
    case REGISTER_SELF_IPI:
        *ret_mask = 0xff;
        return true;
    case REGISTER_EOI:
    case REGISTER_ESR:
        *ret_mask = 0;
        return true;
    case REGISTER_SVR:
        *ret_mask = SVR_WRITABLE;
        return true;
    case REGISTER_ICR:
        *ret_mask = ICR_WRITABLE | 0xffffffff00000000;
        return true;
    case REGISTER_LVT ... REGISTER_LVT + LVT_COUNT - 1:
        *ret_mask = lvt_writable[number - REGISTER_LVT] | LVT_READ_ONLY;
        return true;
    case REGISTER_INITIAL:
        *ret_mask = UINT32_MAX;
        return true;
    case REGISTER_DIVIDE:
        *ret_mask = 0xb;
        return true;
    default:
        return false;
    }
}

static bool x2apic_write(struct lapic *lapic, unsigned number, uint64_t value)
{
    uint64_t mask;
    if (!x2apic_writable(number, &mask) || (value & ~mask)) {
        return false;
    }
    if (number == REGISTER_EOI) {
        eoi_write(lapic);
    } else if (number == REGISTER_ICR) {
        icr_write(lapic, value, true);
    } else if (number == REGISTER_SELF_IPI) {
        icr_send(lapic, value | SHORTHAND_SELF << 18, true);
    } else {
        lapic_lock(lapic);
        register_write(lapic, number, (uint32_t)value);
        lapic_unlock(lapic);
    }
    return true;
}

static bool x2apic_readable(unsigned number)
{
    switch (number) {
    case REGISTER_ID ... REGISTER_VERSION:
    case REGISTER_TPR:
    case REGISTER_PPR:
    case REGISTER_LDR:
    case REGISTER_SVR ... REGISTER_ESR:
    case REGISTER_ICR:
    case REGISTER_LVT ... REGISTER_CURRENT:
    case REGISTER_DIVIDE:
        return true;
    default:
        return false;
    }
}

/* The modes and the ways between them: SDM volume 3, figure 10-27. */
static bool base_write(struct lapic *lapic, uint64_t value)
{
    const uint64_t mode = APIC_BASE_ENABLE | APIC_BASE_X2APIC;
    const uint64_t allowed = 0x000ffffffffff000 | mode | APIC_BASE_BSP;
    uint64_t old = lapic->base_msr & mode, new = value &mode;
    bool is_legal = !(value & ~allowed) && new != APIC_BASE_X2APIC &&
                    !(old == mode && new == APIC_BASE_ENABLE) && !(old == 0 && new == mode);
    if (!is_legal) {
        return false;
    }
    lapic->base_msr = (value & ~(uint64_t)APIC_BASE_BSP) | (lapic->base_msr & APIC_BASE_BSP);
    if (old != new &&new == 0) {
        lapic_clear(lapic);
    } else if (old != new &&new == mode) {
        lapic->ldr = (lapic->id >> 4) << 16 | 1u << (lapic->id & 0xf);
    }
    lapic_update(lapic);
    return true;
}

bool lapic_msr_read(struct lapic *lapic, uint32_t index, uint64_t *ret_value)
{
    bool is_ok = true;
    unsigned number = index - MSR_X2APIC_FIRST;
    lapic_lock(lapic);
    if (index == MSR_APIC_BASE) {
        *ret_value = lapic->base_msr;
    } else if (index == MSR_TSC_DEADLINE) {
        *ret_value = lapic->tsc_deadline;
    } else if (lapic_is_x2apic(lapic) && x2apic_readable(number)) {
        *ret_value = number == REGISTER_ICR ? lapic->icr : register_read(lapic, number);
    } else {
        is_ok = false;
    }
    lapic_unlock(lapic);
    return is_ok;
}

bool lapic_msr_write(struct lapic *lapic, uint32_t index, uint64_t value)
{
    if (index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST) {
        /* The mode needs no lock: it is changed by this thread only, or while nobody runs. */
        return lapic_is_x2apic(lapic) && x2apic_write(lapic, index - MSR_X2APIC_FIRST, value);
    }
    bool is_ok = index == MSR_TSC_DEADLINE;
    lapic_lock(lapic);
    if (index == MSR_APIC_BASE) {
        is_ok = base_write(lapic, value);
    } else if (index == MSR_TSC_DEADLINE) {
        lapic_timer_set_deadline(lapic, value);
    }
    lapic_unlock(lapic);
    return is_ok;
}

uint32_t lapic_tpr(struct lapic *lapic)
{
    lapic_lock(lapic);
    uint32_t tpr = lapic->tpr;
    lapic_unlock(lapic);
    return tpr;
}

void lapic_set_tpr(struct lapic *lapic, uint32_t tpr)
{
    lapic_lock(lapic);
    lapic->tpr = tpr & 0xff;
    lapic_update(lapic);
    lapic_unlock(lapic);
}

void lapic_tsc_changed(struct lapic *lapic)
{
    lapic_lock(lapic);
    if (lapic_timer_is_deadline(lapic)) {
        lapic_timer_set_deadline(lapic, lapic->tsc_deadline);
    }
    lapic_unlock(lapic);
}
