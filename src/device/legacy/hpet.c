/*
 * HPET. The counter is not stepped: it follows from the tick at which it was started. Each timer
 * knows the tick of its next match (`due`), and one alarm is set for the earliest.
 */
#include "device/legacy/hpet.h"

#include <errno.h>
#include <stdlib.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "persist/visitor.h"

enum {
    TICK_NS = 10,
    TICK_FS = TICK_NS * 1000000,
    ALARM_MINIMUM_NS = 50000, /* a guest cannot make the host wake up more often */

    REGISTER_CAPABILITIES = 0x000,
    REGISTER_CONFIG = 0x010,
    REGISTER_STATUS = 0x020,
    REGISTER_COUNTER = 0x0f0,
    REGISTER_TIMERS = 0x100, /* 20H bytes for each: configuration, comparator */
    TIMER_SIZE = 0x20,
    TIMER_CONFIG = 0x00,
    TIMER_COMPARATOR = 0x08,

    CONFIG_ENABLE = 1 << 0,
    CONFIG_LEGACY = 1 << 1,

    TIMER_LEVEL = 1 << 1,
    TIMER_INTERRUPT = 1 << 2,
    TIMER_PERIODIC = 1 << 3,
    TIMER_CAN_REPEAT = 1 << 4,
    TIMER_IS_WIDE = 1 << 5,
    TIMER_SET_VALUE = 1 << 6,
    TIMER_32_BIT = 1 << 8,
    TIMER_ROUTE_SHIFT = 9,
    TIMER_ROUTE = 0x1f << TIMER_ROUTE_SHIFT,
    TIMER_STORED = TIMER_LEVEL | TIMER_INTERRUPT | TIMER_PERIODIC | TIMER_SET_VALUE | TIMER_32_BIT |
                   TIMER_ROUTE,
};
static const uint64_t NEVER = UINT64_MAX;
static const uint64_t PIN_MASK = ((1u << HPET_PINS) - 1) << HPET_FIRST_PIN;

struct hpet_timer {
    uint64_t comparator, period;
    uint64_t due; /* the tick of the next match, NEVER: none */
    uint32_t config;
};

struct hpet {
    struct device device;
    struct bus *bus;
    struct region region;
    struct clock clock;
    void *alarm;
    uint32_t config, status;
    uint64_t counter; /* at tick `since` if it runs, else for good */
    uint64_t since;
    bool legacy_input[HPET_LEGACIES];
    struct irq_line legacy[HPET_LEGACIES];
    struct irq_line pins[HPET_PINS];
    struct hpet_timer timers[HPET_TIMERS];
};

static struct hpet *hpet_of(struct device *device)
{
    return CONTAINER_OF(device, struct hpet, device);
}

static uint64_t ticks_now(const struct hpet *h)
{
    return clock_now(h->clock) / TICK_NS;
}

static bool runs(const struct hpet *h)
{
    return h->config & CONFIG_ENABLE;
}

static bool is_legacy(const struct hpet *h)
{
    return runs(h) && (h->config & CONFIG_LEGACY);
}

static uint64_t counter_at(const struct hpet *h, uint64_t tick)
{
    return runs(h) ? h->counter + (tick - h->since) : h->counter;
}

static uint64_t width_mask(const struct hpet_timer *timer)
{
    return timer->config & TIMER_32_BIT ? UINT32_MAX : UINT64_MAX;
}

/* ---- lines ---- */

/* The line that a timer drives, or NULL: the guest has chosen a pin that is not offered. */
static struct irq_line *line_of(struct hpet *h, unsigned n)
{
    unsigned pin = (h->timers[n].config & TIMER_ROUTE) >> TIMER_ROUTE_SHIFT;
    if (is_legacy(h) && n < HPET_LEGACIES) {
        return &h->legacy[n];
    }
    return pin - HPET_FIRST_PIN < HPET_PINS ? &h->pins[pin - HPET_FIRST_PIN] : NULL;
}

static bool timer_asserts(const struct hpet *h, unsigned n)
{
    return (h->status >> n & 1) && (h->timers[n].config & TIMER_INTERRUPT);
}

/* Let all lines have the levels that the state says. */
static void lines_update(struct hpet *h)
{
    bool legacy[HPET_LEGACIES], pins[HPET_PINS] = {false};
    for (unsigned i = 0; i < HPET_LEGACIES; i++) {
        legacy[i] = !is_legacy(h) && h->legacy_input[i];
    }
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        struct irq_line *line = line_of(h, n);
        if (line && line >= h->pins && line < h->pins + HPET_PINS) {
            pins[line - h->pins] |= timer_asserts(h, n);
        } else if (line) {
            legacy[line - h->legacy] |= timer_asserts(h, n);
        }
    }
    for (unsigned i = 0; i < HPET_LEGACIES; i++) {
        irq_line_set(&h->legacy[i], legacy[i]);
    }
    for (unsigned i = 0; i < HPET_PINS; i++) {
        irq_line_set(&h->pins[i], pins[i]);
    }
}

static void timer_fire(struct hpet *h, unsigned n)
{
    struct irq_line *line = line_of(h, n);
    if (h->timers[n].config & TIMER_LEVEL) {
        h->status |= 1u << n;
    } else if (line && (h->timers[n].config & TIMER_INTERRUPT) && !line->level) {
        irq_line_pulse(line);
    }
}

/* ---- time ---- */

static uint64_t tick_after(uint64_t tick, uint64_t distance)
{
    return distance < NEVER / TICK_NS - tick ? tick + distance : NEVER;
}

/* The timer's comparator or the counter has changed: when will they match? */
static void timer_aim(struct hpet *h, unsigned n, uint64_t now)
{
    struct hpet_timer *timer = &h->timers[n];
    timer->due = NEVER;
    if (runs(h) && now < NEVER / TICK_NS) {
        uint64_t distance = (timer->comparator - counter_at(h, now)) & width_mask(timer);
        timer->due = tick_after(now, distance);
    }
}

/* Whatever has matched fires, once for all periods that were missed. */
static void timer_catch_up(struct hpet *h, unsigned n, uint64_t now)
{
    struct hpet_timer *timer = &h->timers[n];
    uint64_t period = timer->config & TIMER_32_BIT ? UINT64_C(1) << 32 : NEVER;
    if (timer->due == NEVER || timer->due > now) {
        return;
    }
    if (timer->config & TIMER_PERIODIC) {
        period = timer->period & width_mask(timer);
    }
    uint64_t passed = now - timer->due;
    uint64_t periods = period ? passed / period + 1 : 0;
    if (timer->config & TIMER_PERIODIC) {
        timer->comparator = (timer->comparator + periods * period) & width_mask(timer);
    }
    timer->due = period ? tick_after(timer->due, passed - passed % period) : NEVER;
    timer->due = timer->due == NEVER ? NEVER : tick_after(timer->due, period);
    timer_fire(h, n);
}

static void catch_up(struct hpet *h, uint64_t now)
{
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        timer_catch_up(h, n, now);
    }
    lines_update(h);
}

static uint64_t alarm_for(const struct hpet_timer *timer)
{
    uint64_t ns = timer->due == NEVER ? NEVER : timer->due * TICK_NS;
    bool repeats_fast =
        (timer->config & TIMER_PERIODIC) && timer->period < ALARM_MINIMUM_NS / TICK_NS;
    return repeats_fast && ns < NEVER - ALARM_MINIMUM_NS ? ns + ALARM_MINIMUM_NS : ns;
}

/* Timers without an interrupt need no alarm: their comparators are brought up to date by reads. */
static void alarm_arm(struct hpet *h)
{
    uint64_t earliest = NEVER;
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        uint64_t ns = h->timers[n].config & TIMER_INTERRUPT ? alarm_for(&h->timers[n]) : NEVER;
        earliest = ns < earliest ? ns : earliest;
    }
    clock_alarm_set(h->clock, h->alarm, earliest);
}

static void alarm_expired(void *argument)
{
    struct hpet *h = argument;
    pthread_mutex_lock(&h->device.lock);
    catch_up(h, ticks_now(h));
    alarm_arm(h);
    pthread_mutex_unlock(&h->device.lock);
}

/* ---- registers ---- */

static uint64_t timer_read(const struct hpet_timer *timer, unsigned offset)
{
    switch (offset) {
    case TIMER_CONFIG:
        return PIN_MASK << 32 | TIMER_CAN_REPEAT | TIMER_IS_WIDE |
               (timer->config & ~(uint32_t)TIMER_SET_VALUE);
    case TIMER_COMPARATOR:
        return timer->comparator;
    default:
        return 0;
    }
}

/* Registers have 64 bits; what is reserved reads as zero. */
static uint64_t register_read(const struct hpet *h, uint64_t offset, uint64_t now)
{
    switch (offset) {
    case REGISTER_CAPABILITIES:
        return (uint64_t)TICK_FS << 32 | (uint32_t)HPET_BLOCK_ID;
    case REGISTER_CONFIG:
        return h->config;
    case REGISTER_STATUS:
        return h->status;
    case REGISTER_COUNTER:
        return counter_at(h, now);
    default:
        break;
    }
    uint64_t n = (offset - REGISTER_TIMERS) / TIMER_SIZE;
    return offset >= REGISTER_TIMERS && n < HPET_TIMERS
               ? timer_read(&h->timers[n], offset % TIMER_SIZE)
               : 0;
}

static void config_write(struct hpet *h, uint32_t value, uint64_t now)
{
    h->counter = counter_at(h, now);
    h->since = now;
    h->config = value & (CONFIG_ENABLE | CONFIG_LEGACY);
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        timer_aim(h, n, now);
    }
}

static void timer_config_write(struct hpet *h, unsigned n, uint32_t value, uint64_t now)
{
    struct hpet_timer *timer = &h->timers[n];
    uint32_t old = timer->config;
    timer->config = value & TIMER_STORED;
    if (!(value & TIMER_LEVEL)) {
        h->status &= ~(1u << n);
    }
    if (timer->config & TIMER_32_BIT) {
        timer->comparator &= UINT32_MAX;
        timer->period &= UINT32_MAX;
    }
    if ((old ^ timer->config) & TIMER_32_BIT) {
        timer_aim(h, n, now);
    }
}

/*
 * A repeating timer takes each value as its period, and as the next match only if it was told so
 * (2.3.9.2.2).
 */
static void comparator_write(struct hpet *h, unsigned n, uint64_t value, uint64_t mask,
                             uint64_t now)
{
    struct hpet_timer *timer = &h->timers[n];
    bool repeats = timer->config & TIMER_PERIODIC;
    mask &= width_mask(timer);
    value &= mask;
    if (repeats) {
        timer->period = (timer->period & ~mask) | value;
    }
    if (!repeats || (timer->config & TIMER_SET_VALUE)) {
        timer->comparator = (timer->comparator & ~mask) | value;
        timer->config &= ~(uint32_t)TIMER_SET_VALUE;
        timer_aim(h, n, now);
    }
}

/* `mask` has ones where the access has bytes. */
static void register_write(struct hpet *h, uint64_t offset, uint64_t value, uint64_t mask,
                           uint64_t now)
{
    uint64_t merged = (register_read(h, offset, now) & ~mask) | (value & mask);
    uint64_t n = (offset - REGISTER_TIMERS) / TIMER_SIZE;
    if (offset == REGISTER_CONFIG) {
        config_write(h, (uint32_t)merged, now);
    } else if (offset == REGISTER_STATUS) {
        h->status &= ~(uint32_t)(value & mask);
    } else if (offset == REGISTER_COUNTER && !runs(h)) {
        h->counter = merged;
    } else if (offset >= REGISTER_TIMERS && n < HPET_TIMERS) {
        if (offset % TIMER_SIZE == TIMER_CONFIG && (mask & UINT32_MAX)) {
            timer_config_write(h, (unsigned)n, (uint32_t)merged, now);
        } else if (offset % TIMER_SIZE == TIMER_COMPARATOR) {
            comparator_write(h, (unsigned)n, value, mask, now);
        }
    }
}

static uint64_t access_mask(uint64_t offset, unsigned size)
{
    return (size < 8 ? (UINT64_C(1) << (8 * size)) - 1 : UINT64_MAX) << (8 * (offset & 7));
}

static uint64_t hpet_read(void *owner, uint64_t offset, unsigned size)
{
    struct hpet *h = owner;
    pthread_mutex_lock(&h->device.lock);
    uint64_t now = ticks_now(h);
    catch_up(h, now);
    uint64_t value = register_read(h, offset & ~UINT64_C(7), now);
    pthread_mutex_unlock(&h->device.lock);
    return (value & access_mask(offset, size)) >> (8 * (offset & 7));
}

static void hpet_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    struct hpet *h = owner;
    pthread_mutex_lock(&h->device.lock);
    uint64_t now = ticks_now(h);
    catch_up(h, now);
    register_write(h, offset & ~UINT64_C(7), value << (8 * (offset & 7)), access_mask(offset, size),
                   now);
    catch_up(h, now); /* a comparator that equals the counter matches at once */
    alarm_arm(h);
    pthread_mutex_unlock(&h->device.lock);
}

static const struct region_ops hpet_region_ops = {.read = hpet_read, .write = hpet_write};

/* ---- the 8254 and the RTC ---- */

static void legacy_set(void *owner, unsigned which, bool level)
{
    struct hpet *h = owner;
    pthread_mutex_lock(&h->device.lock);
    h->legacy_input[which] = level;
    lines_update(h);
    pthread_mutex_unlock(&h->device.lock);
}

struct irq_line hpet_legacy_line(struct device *device, enum hpet_legacy which)
{
    return (struct irq_line){.set = legacy_set, .owner = hpet_of(device), .number = which};
}

/* ---- the device ---- */

static void hpet_reset(struct device *device)
{
    struct hpet *h = hpet_of(device);
    pthread_mutex_lock(&device->lock);
    h->config = h->status = 0;
    h->counter = h->since = 0;
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        h->timers[n] = (struct hpet_timer){
            .comparator = UINT64_MAX, .due = NEVER, .config = HPET_FIRST_PIN << TIMER_ROUTE_SHIFT};
    }
    lines_update(h);
    alarm_arm(h);
    pthread_mutex_unlock(&device->lock);
}

static void timer_visit(struct hpet_timer *timer, struct visitor *v)
{
    visit_u32(v, "config", &timer->config);
    visit_u64(v, "comparator", &timer->comparator);
    visit_u64(v, "period", &timer->period);
    visit_u64(v, "due", &timer->due);
    if ((timer->config & ~(uint32_t)TIMER_STORED) || (timer->comparator & ~width_mask(timer)) ||
        (timer->due != NEVER && timer->due >= NEVER / TICK_NS)) {
        visitor_fail(v, -EINVAL, "an HPET timer is in an impossible state");
        *timer = (struct hpet_timer){.due = NEVER};
    }
}

static void hpet_visit(struct device *device, struct visitor *v)
{
    struct hpet *h = hpet_of(device);
    pthread_mutex_lock(&device->lock);
    visit_begin(v, "hpet", 1);
    visit_u32_max(v, "config", &h->config, CONFIG_ENABLE | CONFIG_LEGACY);
    visit_u32_max(v, "status", &h->status, (1u << HPET_TIMERS) - 1);
    visit_u64(v, "counter", &h->counter);
    visit_u64(v, "since", &h->since);
    for (unsigned i = 0; i < HPET_LEGACIES; i++) {
        visit_bool(v, "legacy_input", &h->legacy_input[i]);
        visit_bool(v, "legacy", &h->legacy[i].level);
    }
    for (unsigned i = 0; i < HPET_PINS; i++) {
        visit_bool(v, "pin", &h->pins[i].level);
    }
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        timer_visit(&h->timers[n], v);
    }
    visit_end(v);
    if (visitor_mode(v) == VISITOR_READ) {
        alarm_arm(h);
    }
    pthread_mutex_unlock(&device->lock);
}

static void hpet_free(struct device *device)
{
    struct hpet *h = hpet_of(device);
    bus_remove(h->bus, &h->region);
    clock_alarm_free(h->clock, h->alarm);
    device_fini(device);
    free(h);
}

static const struct device_ops hpet_ops = {
    .name = "hpet",
    .reset = hpet_reset,
    .visit = hpet_visit,
    .free = hpet_free,
};
CLEANUP_DEFINE(struct device, device_free)

int hpet_new(const struct hpet_config *config, struct device **ret_device)
{
    struct hpet *h = calloc(1, sizeof *h);
    ASSERT(h);
    CLEANUP(device_free) struct device *device = &h->device;
    device_init(device, &hpet_ops, "hpet");
    h->bus = config->bus;
    h->clock = config->clock;
    h->alarm = clock_alarm_new(h->clock, alarm_expired, h);
    for (unsigned i = 0; i < HPET_LEGACIES; i++) {
        h->legacy[i] = config->legacy[i];
    }
    for (unsigned i = 0; i < HPET_PINS; i++) {
        h->pins[i] = config->pins[i];
    }
    hpet_reset(device);
    h->region = (struct region){.name = "hpet",
                                .base = config->base,
                                .size = HPET_SIZE,
                                .ops = &hpet_region_ops,
                                .owner = h};
    int r = bus_add_mmio(h->bus, &h->region);
    if (r == 0) {
        *ret_device = TAKE(device);
    }
    return r;
}
