/*
 * The timer of the local APIC: one-shot, periodic, TSC deadline. SDM volume 3, 10.5.4.
 *
 * `timer_due` is the whole truth; the host alarm only makes sure that somebody looks at it. While
 * the local vector is masked the timer runs on, but no alarm is set.
 */
#include "device/irqchip/lapic_internal.h"

enum timer_mode { TIMER_ONE_SHOT, TIMER_PERIODIC, TIMER_DEADLINE };

enum {
    TIMER_MODE_SHIFT = 17,
    TICK_NS = 1000000000 / IRQCHIP_TIMER_HZ, /* with divide value 1 */
    /* A guest cannot make the host wake up more often than this for a periodic timer. */
    PERIOD_MINIMUM_NS = 50000,
};

_Static_assert(1000000000 % IRQCHIP_TIMER_HZ == 0, "the timer ticks in whole nanoseconds");

static unsigned timer_mode(const struct lapic *lapic)
{
    return lapic->lvt[LVT_TIMER] >> TIMER_MODE_SHIFT & 3;
}

bool lapic_timer_is_deadline(const struct lapic *lapic)
{
    return timer_mode(lapic) == TIMER_DEADLINE;
}

/* Bits 3, 1, 0 of the divide register: 2, 4, 8... 128, and 111b for 1. */
static unsigned timer_shift(const struct lapic *lapic)
{
    unsigned code = (lapic->timer_divide & 3) | (lapic->timer_divide >> 1 & 4);
    return (code + 1) & 7;
}

static uint64_t timer_period(const struct lapic *lapic)
{
    return ((uint64_t)lapic->timer_initial << timer_shift(lapic)) * TICK_NS;
}

/* What is due has happened: fire once, however many periods were missed. */
static void timer_catch_up(struct lapic *lapic, uint64_t now)
{
    if (lapic->timer_due > now) {
        return;
    }
    uint64_t period = timer_period(lapic);
    if (timer_mode(lapic) == TIMER_PERIODIC && period) {
        lapic->timer_due += ((now - lapic->timer_due) / period + 1) * period;
    } else {
        lapic->timer_due = UINT64_MAX;
        lapic->tsc_deadline = 0;
    }
    lapic_fire(lapic, LVT_TIMER);
}

void lapic_timer_arm(struct lapic *lapic)
{
    uint64_t due = lapic->timer_due;
    if (lapic->lvt[LVT_TIMER] & LVT_MASKED) {
        due = UINT64_MAX;
    }
    if (due != UINT64_MAX && timer_mode(lapic) == TIMER_PERIODIC &&
        timer_period(lapic) < PERIOD_MINIMUM_NS) {
        due += PERIOD_MINIMUM_NS;
    }
    clock_alarm_set(lapic->clock, lapic->alarm, due);
}

void lapic_timer_expired(void *argument)
{
    struct lapic *lapic = argument;
    lapic_lock(lapic);
    timer_catch_up(lapic, clock_now(lapic->clock));
    lapic_timer_arm(lapic);
    lapic_unlock(lapic);
}

static void timer_start(struct lapic *lapic, uint64_t now)
{
    uint64_t period = timer_period(lapic);
    lapic->timer_due = period ? now + period : UINT64_MAX;
}

void lapic_timer_set_initial(struct lapic *lapic, uint32_t initial)
{
    if (lapic_timer_is_deadline(lapic)) {
        return; /* "ignored in TSC-deadline mode" */
    }
    lapic->timer_initial = initial;
    timer_start(lapic, clock_now(lapic->clock));
    lapic_timer_arm(lapic);
}

/* The count goes on from where it is, at the new rate. */
void lapic_timer_set_divide(struct lapic *lapic, uint32_t divide)
{
    uint64_t now = clock_now(lapic->clock);
    timer_catch_up(lapic, now);
    uint32_t left = lapic_timer_current(lapic);
    lapic->timer_divide = divide & 0xb;
    if (lapic->timer_due != UINT64_MAX && !lapic_timer_is_deadline(lapic)) {
        lapic->timer_due = now + ((uint64_t)left << timer_shift(lapic)) * TICK_NS;
    }
    lapic_timer_arm(lapic);
}

void lapic_timer_set_vector(struct lapic *lapic, uint32_t lvt)
{
    timer_catch_up(lapic, clock_now(lapic->clock));
    bool was_deadline = lapic_timer_is_deadline(lapic);
    lapic->lvt[LVT_TIMER] = lvt;
    if (was_deadline != lapic_timer_is_deadline(lapic)) {
        lapic->timer_due = UINT64_MAX; /* a change from or to TSC deadline disarms */
        lapic->timer_initial = 0;
        lapic->tsc_deadline = 0;
    }
    lapic_timer_arm(lapic);
}

void lapic_timer_set_deadline(struct lapic *lapic, uint64_t tsc)
{
    if (!lapic_timer_is_deadline(lapic)) {
        return;
    }
    const struct irqchip_wire *wire = lapic->wire;
    lapic->tsc_deadline = tsc;
    lapic->timer_due = UINT64_MAX;
    if (tsc != 0 && tsc <= wire->tsc_now(wire->owner, lapic->id)) {
        lapic->timer_due = 0;
        timer_catch_up(lapic, 0);
    } else if (tsc != 0) {
        lapic->timer_due = wire->tsc_to_deadline_ns(wire->owner, lapic->id, tsc);
    }
    lapic_timer_arm(lapic);
}

uint32_t lapic_timer_current(struct lapic *lapic)
{
    uint64_t now = clock_now(lapic->clock);
    if (lapic_timer_is_deadline(lapic)) {
        return 0;
    }
    timer_catch_up(lapic, now);
    if (lapic->timer_due == UINT64_MAX) {
        return 0;
    }
    uint64_t left = (lapic->timer_due - now) / TICK_NS >> timer_shift(lapic);
    return left < lapic->timer_initial ? (uint32_t)left : lapic->timer_initial;
}
