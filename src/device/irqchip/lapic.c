/* The local APIC's heart: accepting, prioritizing and completing interrupts. */
#include "device/irqchip/lapic_internal.h"

#include <errno.h>

#include "base/bytes.h"
#include "persist/visitor.h"

enum { VECTOR_FIRST = 16 }; /* 0..15 are illegal in messages (SDM volume 3, 10.5.2) */

static void bit_set(uint32_t *bits, unsigned n)
{
    bits[n / 32] |= 1u << (n % 32);
}

static void bit_clear(uint32_t *bits, unsigned n)
{
    bits[n / 32] &= ~(1u << (n % 32));
}

static bool bit_test(const uint32_t *bits, unsigned n)
{
    return bits[n / 32] >> (n % 32) & 1;
}

/* The highest vector in a 256-bit register, -1 if it is empty. */
static int bit_highest(const uint32_t *bits)
{
    for (int word = 7; word >= 0; word--) {
        if (bits[word]) {
            return word * 32 + 31 - __builtin_clz(bits[word]);
        }
    }
    return -1;
}

bool lapic_is_enabled(const struct lapic *lapic)
{
    return lapic->base_msr & APIC_BASE_ENABLE;
}

bool lapic_is_x2apic(const struct lapic *lapic)
{
    return lapic->base_msr & APIC_BASE_X2APIC;
}

/* SDM volume 3, 10.8.3.1: the higher of task priority and the class in service. */
uint32_t lapic_ppr(const struct lapic *lapic)
{
    int in_service = bit_highest(lapic->isr);
    uint32_t class = in_service < 0 ? 0 : (uint32_t)in_service & 0xf0;
    return (lapic->tpr & 0xf0) >= class ? lapic->tpr : class;
}

/* The highest request whose class is above the processor's priority, or -1. */
static int deliverable(const struct lapic *lapic)
{
    int vector = lapic_is_enabled(lapic) ? bit_highest(lapic->irr) : -1;
    return vector >= 0 && ((uint32_t)vector & 0xf0) > (lapic_ppr(lapic) & 0xf0) ? vector : -1;
}

static unsigned lvt_mode(uint32_t lvt)
{
    return lvt >> LVT_MODE_SHIFT & 7;
}

/* With the APIC disabled by its MSR, LINT0 is the CPU's INTR pin (SDM volume 3, 10.4.3). */
static bool passes_extint(const struct lapic *lapic)
{
    uint32_t lvt = lapic->lvt[LVT_LINT0];
    if (!lapic_is_enabled(lapic)) {
        return lapic->id == 0;
    }
    return !(lvt & LVT_MASKED) && lvt_mode(lvt) == DELIVERY_EXTINT;
}

static void kick(struct lapic *lapic, enum irqchip_event event)
{
    lapic->kicks |= 1u << event;
}

void lapic_lock(struct lapic *lapic)
{
    pthread_mutex_lock(&lapic->lock);
}

void lapic_unlock(struct lapic *lapic)
{
    uint32_t kicks = lapic->kicks;
    uint8_t sipi_vector = lapic->sipi_vector;
    lapic->kicks = 0;
    pthread_mutex_unlock(&lapic->lock);
    for (unsigned event = 0; kicks >> event; event++) {
        if (kicks >> event & 1) {
            lapic->wire->kick(lapic->wire->owner, lapic->id, (enum irqchip_event)event,
                              event == IRQCHIP_SIPI ? sipi_vector : 0);
        }
    }
}

void lapic_update(struct lapic *lapic)
{
    if (deliverable(lapic) >= 0 || (lapic->lint0 && passes_extint(lapic))) {
        kick(lapic, IRQCHIP_INTERRUPT);
    }
}

static void request(struct lapic *lapic, uint8_t vector, bool is_level)
{
    if (!lapic_is_enabled(lapic) || !(lapic->svr & SVR_ENABLE)) {
        return;
    }
    if (vector < VECTOR_FIRST) {
        lapic_error(lapic, ESR_RECEIVE_VECTOR);
        return;
    }
    (is_level ? bit_set : bit_clear)(lapic->tmr, vector);
    bit_set(lapic->irr, vector);
    lapic_update(lapic);
}

void lapic_fire(struct lapic *lapic, enum lapic_vector which)
{
    uint32_t lvt = lapic->lvt[which];
    if (lvt & LVT_MASKED) {
        return;
    }
    switch (which == LVT_TIMER || which == LVT_ERROR ? DELIVERY_FIXED : lvt_mode(lvt)) {
    case DELIVERY_FIXED:
        request(lapic, (uint8_t)lvt, false);
        break;
    case DELIVERY_NMI:
        kick(lapic, IRQCHIP_NMI);
        break;
    case DELIVERY_INIT:
        kick(lapic, IRQCHIP_INIT);
        break;
    default: /* SMI: there is no system management mode; ExtINT is a level, see lapic_update() */
        break;
    }
}

/* The error vector itself may be illegal: that is recorded, and does not fire again. */
void lapic_error(struct lapic *lapic, uint32_t bits)
{
    bool is_new = bits & ~lapic->esr_pending;
    lapic->esr_pending |= bits;
    if (is_new) {
        lapic_fire(lapic, LVT_ERROR);
    }
}

static bool matches_logical(const struct lapic *lapic, uint32_t destination)
{
    if (lapic_is_x2apic(lapic)) {
        return destination >> 16 == lapic->ldr >> 16 && (destination & lapic->ldr & 0xffff);
    }
    uint32_t own = lapic->ldr >> 24;
    if (lapic->dfr >> 28 == 0xf) { /* flat */
        return destination & own & 0xff;
    }
    if (lapic->dfr >> 28 == 0) { /* cluster */
        return (destination & 0xf0) == (own & 0xf0) && (destination & own & 0xf);
    }
    return false;
}

bool lapic_matches(struct lapic *lapic, const struct apic_message *message)
{
    if (message->destination == (message->is_wide ? UINT32_MAX : 0xff)) {
        return true;
    }
    if (!message->is_logical) {
        return message->destination == lapic->id;
    }
    lapic_lock(lapic);
    bool result = matches_logical(lapic, message->destination);
    lapic_unlock(lapic);
    return result;
}

int lapic_priority(struct lapic *lapic)
{
    lapic_lock(lapic);
    int priority = -1;
    if (lapic_is_enabled(lapic) && (lapic->svr & SVR_ENABLE)) {
        int requested = bit_highest(lapic->irr);
        priority = (int)(lapic_ppr(lapic) >> 4);
        priority = requested >> 4 > priority ? requested >> 4 : priority;
    }
    lapic_unlock(lapic);
    return priority;
}

void lapic_accept(struct lapic *lapic, const struct apic_message *message)
{
    lapic_lock(lapic);
    switch (lapic_is_enabled(lapic) ? message->mode : DELIVERY_SMI) {
    case DELIVERY_FIXED:
    case DELIVERY_LOWEST:
        request(lapic, message->vector, message->is_level);
        break;
    case DELIVERY_NMI:
        kick(lapic, IRQCHIP_NMI);
        break;
    case DELIVERY_INIT:
        kick(lapic, IRQCHIP_INIT);
        break;
    case DELIVERY_SIPI:
        lapic->sipi_vector = message->vector;
        kick(lapic, IRQCHIP_SIPI);
        break;
    default: /* SMI: there is no system management mode; ExtINT comes by LINT0 only */
        break;
    }
    lapic_unlock(lapic);
}

void lapic_set_lint0(struct lapic *lapic, bool level)
{
    lapic_lock(lapic);
    bool rises = level && !lapic->lint0;
    lapic->lint0 = level;
    if (rises && passes_extint(lapic)) {
        kick(lapic, IRQCHIP_INTERRUPT);
    } else if (rises && lapic_is_enabled(lapic)) {
        lapic_fire(lapic, LVT_LINT0);
    }
    lapic_unlock(lapic);
}

bool lapic_passes_extint(struct lapic *lapic)
{
    lapic_lock(lapic);
    bool result = lapic->lint0 && passes_extint(lapic);
    lapic_unlock(lapic);
    return result;
}

int lapic_acknowledge(struct lapic *lapic)
{
    lapic_lock(lapic);
    int vector = deliverable(lapic);
    if (vector >= 0) {
        bit_clear(lapic->irr, (unsigned)vector);
        bit_set(lapic->isr, (unsigned)vector);
    }
    lapic_unlock(lapic);
    return vector;
}

bool lapic_has_interrupt(struct lapic *lapic)
{
    lapic_lock(lapic);
    bool result = deliverable(lapic) >= 0 || (lapic->lint0 && passes_extint(lapic));
    lapic_unlock(lapic);
    return result;
}

bool lapic_complete(struct lapic *lapic, uint8_t *ret_vector)
{
    int vector = bit_highest(lapic->isr);
    if (vector < 0) {
        return false;
    }
    bit_clear(lapic->isr, (unsigned)vector);
    *ret_vector = (uint8_t)vector;
    lapic_update(lapic);
    return bit_test(lapic->tmr, (unsigned)vector) && !(lapic->svr & SVR_NO_EOI_BROADCAST);
}

void lapic_clear(struct lapic *lapic)
{
    lapic->tpr = lapic->esr = lapic->esr_pending = 0;
    lapic->ldr = lapic_is_x2apic(lapic) ? (lapic->id >> 4) << 16 | 1u << (lapic->id & 0xf) : 0;
    lapic->dfr = UINT32_MAX;
    lapic->svr = 0xff;
    lapic->icr = 0;
    for (unsigned i = 0; i < LVT_COUNT; i++) {
        lapic->lvt[i] = LVT_MASKED;
    }
    if (lapic->id == 0) {
        lapic->lvt[LVT_LINT0] = DELIVERY_EXTINT << LVT_MODE_SHIFT;
    }
    bytes_fill(lapic->irr, 0, sizeof lapic->irr);
    bytes_fill(lapic->isr, 0, sizeof lapic->isr);
    bytes_fill(lapic->tmr, 0, sizeof lapic->tmr);
    lapic->timer_initial = lapic->timer_divide = 0;
    lapic->timer_due = UINT64_MAX;
    lapic->tsc_deadline = 0;
    lapic_timer_arm(lapic);
}

void lapic_init_ipi(struct lapic *lapic)
{
    lapic_lock(lapic);
    lapic_clear(lapic);
    lapic_unlock(lapic);
}

void lapic_reset(struct lapic *lapic)
{
    lapic_lock(lapic);
    lapic->base_msr = IRQCHIP_LOCAL_APIC_BASE | (uint64_t)APIC_BASE_ENABLE;
    lapic->base_msr |= lapic->id == 0 ? APIC_BASE_BSP : 0;
    lapic->lint0 = false;
    lapic_clear(lapic);
    lapic_unlock(lapic);
}

void lapic_init(struct lapic *lapic, unsigned id, const struct irqchip_wire *wire,
                const struct lapic_board *board, struct clock clock)
{
    bytes_fill(lapic, 0, sizeof *lapic);
    lapic->id = id;
    lapic->wire = wire;
    lapic->board = board;
    lapic->clock = clock;
    pthread_mutex_init(&lapic->lock, NULL);
    lapic->alarm = clock_alarm_new(clock, lapic_timer_expired, lapic);
    lapic_reset(lapic);
}

void lapic_fini(struct lapic *lapic)
{
    clock_alarm_free(lapic->clock, lapic->alarm);
    pthread_mutex_destroy(&lapic->lock);
}

static void visit_bits(struct visitor *v, const char *name, uint32_t *bits)
{
    visit_bytes(v, name, bits, 8 * sizeof *bits);
}

void lapic_visit(struct lapic *lapic, struct visitor *v)
{
    lapic_lock(lapic);
    visit_begin(v, "lapic", 1);
    visit_u64(v, "base_msr", &lapic->base_msr);
    visit_u32_max(v, "tpr", &lapic->tpr, 0xff);
    visit_u32(v, "ldr", &lapic->ldr);
    visit_u32(v, "dfr", &lapic->dfr);
    visit_u32(v, "svr", &lapic->svr);
    visit_u32(v, "esr", &lapic->esr);
    visit_u32(v, "esr_pending", &lapic->esr_pending);
    visit_u64(v, "icr", &lapic->icr);
    for (unsigned i = 0; i < LVT_COUNT; i++) {
        visit_u32(v, "lvt", &lapic->lvt[i]);
    }
    visit_bits(v, "irr", lapic->irr);
    visit_bits(v, "isr", lapic->isr);
    visit_bits(v, "tmr", lapic->tmr);
    visit_u32(v, "timer_initial", &lapic->timer_initial);
    visit_u32_max(v, "timer_divide", &lapic->timer_divide, 0xb);
    visit_u64(v, "timer_due", &lapic->timer_due);
    visit_u64(v, "tsc_deadline", &lapic->tsc_deadline);
    visit_bool(v, "lint0", &lapic->lint0);
    visit_end(v);
    if (visitor_mode(v) == VISITOR_READ) {
        if (lapic_is_x2apic(lapic) && !lapic_is_enabled(lapic)) {
            visitor_fail(v, -EINVAL, "a local APIC is in an impossible mode");
            lapic->base_msr &= ~(uint64_t)APIC_BASE_X2APIC;
        }
        lapic_timer_arm(lapic);
        lapic_update(lapic);
    }
    lapic_unlock(lapic);
}
