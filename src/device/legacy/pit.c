/*
 * 8254 (Intel 231164-005). A channel is not stepped: from the tick at which it was started follow
 * its count and output at any later time. Channel 0's alarm is set for its next rising edge.
 */
#include "device/legacy/pit.h"

#include <errno.h>
#include <stdlib.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "persist/visitor.h"

enum { CHANNELS = 3, PORT_CONTROL = 3, PORT_SPEAKER = 0x61 };
enum { ACCESS_LOW = 1, ACCESS_HIGH = 2, ACCESS_BOTH = 3 };
enum { SPEAKER_GATE = 1, SPEAKER_DATA = 2, SPEAKER_REFRESH = 0x10, SPEAKER_OUT = 0x20 };
enum {
    REFRESH_NS = 15085,       /* half a period of the memory refresh bit in port 61h */
    ALARM_MINIMUM_NS = 50000, /* a guest cannot make the host wake up more often */
};

struct channel {
    uint8_t mode, access; /* 0..5; ACCESS_* */
    bool is_bcd, gate;
    bool is_loaded;      /* a count was written since the control word */
    bool runs;           /* counting (loaded, triggered, and not held by the gate) */
    uint64_t start;      /* tick at which `count` was whole, if it runs */
    uint64_t elapsed;    /* ticks counted so far, if it does not run */
    uint32_t count;      /* 1..65536 */
    uint32_t next_count; /* modes 2 and 3: takes over at the end of the period; 0: none */
    uint64_t next_from;  /* when it does: ticks since `start` */
    uint16_t latch;
    uint8_t status_latch, write_low;
    uint8_t latched; /* bytes of `latch` still to be read */
    bool status_latched;
    bool write_high_next, read_high_next;
};

struct pit {
    struct device device;
    struct bus *bus;
    struct region ports, speaker_port;
    struct irq_line irq;
    struct clock clock;
    void *alarm;
    uint64_t edge_tick; /* the next rising edge of channel 0; UINT64_MAX: none */
    uint8_t speaker;    /* port 61h, bits 0 and 1 */
    struct channel channels[CHANNELS];
};

static struct pit *pit_of(struct device *device)
{
    return CONTAINER_OF(device, struct pit, device);
}

static uint64_t ticks_now(const struct pit *pit)
{
    return (uint64_t)((unsigned __int128)clock_now(pit->clock) * PIT_HZ / 1000000000);
}

/* The first nanosecond at which ticks_now() is `tick`. */
static uint64_t tick_ns(uint64_t tick)
{
    return (uint64_t)(((unsigned __int128)tick * 1000000000 + PIT_HZ - 1) / PIT_HZ);
}

static bool is_periodic(const struct channel *c)
{
    return c->mode == 2 || c->mode == 3;
}

/* Ticks since the count was whole. A new count of a periodic channel takes over when it is time. */
static uint64_t channel_elapsed(struct channel *c, uint64_t now)
{
    if (!c->runs) {
        return c->elapsed;
    }
    if (c->next_count && now - c->start >= c->next_from) {
        c->start += c->next_from;
        c->count = c->next_count;
        c->next_count = 0;
    }
    return now - c->start;
}

static bool channel_output(struct channel *c, uint64_t now)
{
    uint64_t elapsed = channel_elapsed(c, now);
    if (!c->is_loaded) {
        return c->mode != 0;
    }
    switch (c->mode) {
    case 0:
        return elapsed >= c->count;
    case 1:
        return !(c->runs && elapsed < c->count);
    case 2:
        return !c->runs || elapsed % c->count != c->count - 1;
    case 3:
        return !c->runs || elapsed % c->count < (c->count + 1) / 2;
    default:
        return !(c->runs && elapsed == c->count);
    }
}

/* The tick of the next rising edge after `now`, UINT64_MAX if there is none. */
static uint64_t channel_next_edge(struct channel *c, uint64_t now)
{
    uint64_t elapsed = channel_elapsed(c, now);
    if (!c->runs) {
        return UINT64_MAX;
    }
    if (is_periodic(c)) {
        return c->start + (elapsed / c->count + 1) * c->count;
    }
    uint64_t edge = c->count + (c->mode >= 4 ? 1 : 0);
    return elapsed < edge ? c->start + edge : UINT64_MAX;
}

/* The counting element. */
static uint16_t channel_count(struct channel *c, uint64_t now)
{
    uint64_t elapsed = channel_elapsed(c, now), phase = elapsed % c->count;
    uint64_t half = (c->count + 1) / 2, wrap = c->is_bcd ? 10000 : 65536, value;
    switch (c->mode) {
    case 2:
        value = c->count - phase;
        break;
    case 3: /* counts down by two, twice in a period */
        value = (c->count & ~1u) - 2 * (phase < half ? phase : phase - half);
        break;
    default:
        value = (c->count + wrap - elapsed % wrap) % wrap;
        break;
    }
    value %= wrap;
    if (c->is_bcd) {
        value = value % 10 | value / 10 % 10 << 4 | value / 100 % 10 << 8 | value / 1000 << 12;
    }
    return (uint16_t)value;
}

static uint32_t count_decode(const struct channel *c, uint16_t value)
{
    if (!c->is_bcd) {
        return value ? value : 65536;
    }
    uint32_t count = (value & 0xfu) + (value >> 4 & 0xfu) * 10 + (value >> 8 & 0xfu) * 100 +
                     (value >> 12) * 1000u;
    return count ? count : 10000;
}

static void channel_start(struct channel *c, uint64_t now)
{
    c->runs = true;
    c->start = now;
    c->elapsed = 0;
}

/* A whole count was written. */
static void channel_load(struct channel *c, uint16_t value, uint64_t now)
{
    uint64_t elapsed = channel_elapsed(c, now);
    uint32_t count = count_decode(c, value);
    if (is_periodic(c) && c->runs) {
        c->next_count = count;
        c->next_from = (elapsed / c->count + 1) * c->count;
        return;
    }
    c->count = count;
    c->is_loaded = true;
    if (c->mode == 1 || c->mode == 5) {
        return; /* the gate's rising edge starts it */
    }
    channel_start(c, now);
    c->runs = c->gate;
}

static void channel_set_gate(struct channel *c, bool gate, uint64_t now)
{
    bool rises = gate && !c->gate, falls = !gate && c->gate;
    uint64_t elapsed = channel_elapsed(c, now);
    c->gate = gate;
    if (!c->is_loaded) {
        return;
    }
    bool is_triggered = c->mode == 1 || c->mode == 5 || is_periodic(c);
    if (rises && is_triggered) {
        c->count = c->next_count ? c->next_count : c->count;
        c->next_count = 0;
        channel_start(c, now);
    } else if (rises) {
        c->runs = true;
        c->start = now - elapsed;
    } else if (falls && c->mode != 1 && c->mode != 5) {
        c->runs = false;
        c->elapsed = elapsed;
    }
}

static void channel_latch(struct channel *c, uint64_t now)
{
    if (c->latched == 0) {
        c->latch = channel_count(c, now);
        c->latched = c->access == ACCESS_BOTH ? 2 : 1;
    }
}

static void channel_latch_status(struct channel *c, uint64_t now)
{
    if (!c->status_latched) {
        bool is_null = !c->is_loaded || c->next_count;
        c->status_latch = (uint8_t)(channel_output(c, now) << 7 | is_null << 6 | c->access << 4 |
                                    c->mode << 1 | c->is_bcd);
        c->status_latched = true;
    }
}

/* Which byte of a count the next access is about; alternates with both. */
static bool takes_high(const struct channel *c, bool *toggle)
{
    bool high = c->access == ACCESS_HIGH || (c->access == ACCESS_BOTH && *toggle);
    *toggle = c->access == ACCESS_BOTH && !*toggle;
    return high;
}

static uint8_t channel_read(struct channel *c, uint64_t now)
{
    if (c->status_latched) {
        c->status_latched = false;
        return c->status_latch;
    }
    uint16_t value = c->latched ? c->latch : channel_count(c, now);
    c->latched = c->latched ? c->latched - 1 : 0;
    return (uint8_t)(takes_high(c, &c->read_high_next) ? value >> 8 : value);
}

static void channel_write(struct channel *c, uint8_t value, uint64_t now)
{
    bool high = takes_high(c, &c->write_high_next);
    if (c->access == ACCESS_BOTH && !high) {
        c->write_low = value;
        if (c->mode == 0) { /* the first byte stops the count and lowers the output */
            c->elapsed = 0;
            c->runs = false;
        }
        return;
    }
    uint16_t count = value;
    if (high) {
        count = (uint16_t)(value << 8 | (c->access == ACCESS_BOTH ? c->write_low : 0));
    }
    channel_load(c, count, now);
}

static void channel_control(struct channel *c, uint8_t value)
{
    uint8_t mode = value >> 1 & 7;
    bool gate = c->gate;
    *c = (struct channel){
        .mode = mode > 5 ? mode & 3 : mode, /* 6 and 7 are 2 and 3 */
        .access = value >> 4 & 3,
        .is_bcd = value & 1,
        .gate = gate,
        .count = 65536,
    };
}

static void read_back(struct pit *pit, uint8_t value, uint64_t now)
{
    for (unsigned i = 0; i < CHANNELS; i++) {
        if (value & (2u << i)) {
            if (!(value & 0x20)) {
                channel_latch(&pit->channels[i], now);
            }
            if (!(value & 0x10)) {
                channel_latch_status(&pit->channels[i], now);
            }
        }
    }
}

static void control_write(struct pit *pit, uint8_t value, uint64_t now)
{
    unsigned which = value >> 6;
    if (which == CHANNELS) {
        read_back(pit, value, now);
    } else if ((value >> 4 & 3) == 0) {
        channel_latch(&pit->channels[which], now);
    } else {
        channel_control(&pit->channels[which], value);
    }
}

/* Look for the next edge of channel 0 and set the alarm for it. */
static void pit_arm(struct pit *pit, uint64_t now)
{
    pit->edge_tick = channel_next_edge(&pit->channels[0], now);
    uint64_t due = UINT64_MAX;
    if (pit->edge_tick != UINT64_MAX) {
        uint64_t ns = clock_now(pit->clock), earliest = ns + ALARM_MINIMUM_NS;
        due = tick_ns(pit->edge_tick);
        /* in the past only by a state that no guest can make, but a file can */
        bool is_rushed = due <= ns || (is_periodic(&pit->channels[0]) && due < earliest);
        due = is_rushed ? earliest : due;
    }
    clock_alarm_set(pit->clock, pit->alarm, due);
}

/* Channel 0 was programmed: its output may have changed, and its edges come at other times. */
static void pit_update(struct pit *pit, uint64_t now)
{
    irq_line_set(&pit->irq, channel_output(&pit->channels[0], now));
    pit_arm(pit, now);
}

/* Edges that were missed are one. */
static void alarm_expired(void *argument)
{
    struct pit *pit = argument;
    pthread_mutex_lock(&pit->device.lock);
    uint64_t now = ticks_now(pit);
    if (now >= pit->edge_tick) {
        irq_line_set(&pit->irq, false);
        irq_line_set(&pit->irq, true);
    }
    pit_arm(pit, now);
    pthread_mutex_unlock(&pit->device.lock);
}

static uint64_t ports_read(void *owner, uint64_t offset, unsigned size)
{
    struct pit *pit = owner;
    if (offset == PORT_CONTROL) {
        return UINT64_MAX; /* write-only */
    }
    pthread_mutex_lock(&pit->device.lock);
    uint8_t value = channel_read(&pit->channels[offset], ticks_now(pit));
    pthread_mutex_unlock(&pit->device.lock);
    return value;
}

static void ports_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    struct pit *pit = owner;
    pthread_mutex_lock(&pit->device.lock);
    uint64_t now = ticks_now(pit);
    if (offset == PORT_CONTROL) {
        control_write(pit, (uint8_t)value, now);
    } else {
        channel_write(&pit->channels[offset], (uint8_t)value, now);
    }
    if (offset == 0 || (offset == PORT_CONTROL && value >> 6 == 0 && (value >> 4 & 3) != 0)) {
        pit_update(pit, now);
    }
    pthread_mutex_unlock(&pit->device.lock);
}

static const struct region_ops ports_ops = {.read = ports_read, .write = ports_write};

static uint64_t speaker_read(void *owner, uint64_t offset, unsigned size)
{
    struct pit *pit = owner;
    pthread_mutex_lock(&pit->device.lock);
    uint8_t value = pit->speaker;
    value |= clock_now(pit->clock) / REFRESH_NS & 1 ? SPEAKER_REFRESH : 0;
    value |= channel_output(&pit->channels[2], ticks_now(pit)) ? SPEAKER_OUT : 0;
    pthread_mutex_unlock(&pit->device.lock);
    return value;
}

static void speaker_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    struct pit *pit = owner;
    pthread_mutex_lock(&pit->device.lock);
    pit->speaker = value & (SPEAKER_GATE | SPEAKER_DATA);
    channel_set_gate(&pit->channels[2], value & SPEAKER_GATE, ticks_now(pit));
    pthread_mutex_unlock(&pit->device.lock);
}

static const struct region_ops speaker_ops = {.read = speaker_read, .write = speaker_write};

static void pit_reset(struct device *device)
{
    struct pit *pit = pit_of(device);
    pthread_mutex_lock(&device->lock);
    for (unsigned i = 0; i < CHANNELS; i++) {
        pit->channels[i] = (struct channel){.access = ACCESS_BOTH, .gate = i != 2, .count = 65536};
    }
    pit->speaker = 0;
    pit_update(pit, ticks_now(pit));
    pthread_mutex_unlock(&device->lock);
}

static void channel_visit(struct channel *c, struct visitor *v)
{
    visit_u8_max(v, "mode", &c->mode, 5);
    visit_u8_max(v, "access", &c->access, ACCESS_BOTH);
    visit_bool(v, "is_bcd", &c->is_bcd);
    visit_bool(v, "gate", &c->gate);
    visit_bool(v, "is_loaded", &c->is_loaded);
    visit_bool(v, "runs", &c->runs);
    visit_u64(v, "start", &c->start);
    visit_u64(v, "elapsed", &c->elapsed);
    visit_u32_max(v, "count", &c->count, 65536);
    visit_u32_max(v, "next_count", &c->next_count, 65536);
    visit_u64(v, "next_from", &c->next_from);
    visit_u16(v, "latch", &c->latch);
    visit_u8(v, "status_latch", &c->status_latch);
    visit_u8(v, "write_low", &c->write_low);
    visit_u8_max(v, "latched", &c->latched, 2);
    visit_bool(v, "status_latched", &c->status_latched);
    visit_bool(v, "write_high_next", &c->write_high_next);
    visit_bool(v, "read_high_next", &c->read_high_next);
    if (c->count == 0) {
        visitor_fail(v, -EINVAL, "a timer channel counts from nothing");
        c->count = 65536;
    }
}

static void pit_visit(struct device *device, struct visitor *v)
{
    struct pit *pit = pit_of(device);
    pthread_mutex_lock(&device->lock);
    visit_begin(v, "pit", 1);
    for (unsigned i = 0; i < CHANNELS; i++) {
        channel_visit(&pit->channels[i], v);
    }
    visit_u64(v, "edge_tick", &pit->edge_tick);
    visit_u8_max(v, "speaker", &pit->speaker, SPEAKER_GATE | SPEAKER_DATA);
    visit_bool(v, "irq_level", &pit->irq.level);
    visit_end(v);
    if (visitor_mode(v) == VISITOR_READ) { /* an edge that was due before the save still comes */
        clock_alarm_set(pit->clock, pit->alarm,
                        pit->edge_tick == UINT64_MAX ? UINT64_MAX : tick_ns(pit->edge_tick));
    }
    pthread_mutex_unlock(&device->lock);
}

static void pit_free(struct device *device)
{
    struct pit *pit = pit_of(device);
    bus_remove(pit->bus, &pit->ports);
    bus_remove(pit->bus, &pit->speaker_port);
    clock_alarm_free(pit->clock, pit->alarm);
    device_fini(device);
    free(pit);
}

static const struct device_ops pit_ops = {
    .name = "pit",
    .reset = pit_reset,
    .visit = pit_visit,
    .free = pit_free,
};
CLEANUP_DEFINE(struct device, device_free)

int pit_new(const struct pit_config *config, struct device **ret_device)
{
    struct pit *pit = calloc(1, sizeof *pit);
    ASSERT(pit);
    CLEANUP(device_free) struct device *device = &pit->device;
    device_init(device, &pit_ops, "pit");
    pit->bus = config->bus;
    pit->irq = config->irq;
    pit->clock = config->clock;
    pit->alarm = clock_alarm_new(pit->clock, alarm_expired, pit);
    pit_reset(device);
    pit->ports = (struct region){.name = "interval timer",
                                 .base = 0x40,
                                 .size = 4,
                                 .ops = &ports_ops,
                                 .owner = pit,
                                 .is_byte_wide = true};
    pit->speaker_port = (struct region){
        .name = "speaker", .base = PORT_SPEAKER, .size = 1, .ops = &speaker_ops, .owner = pit};
    int result = bus_add_port(pit->bus, &pit->ports);
    if (result == 0) {
        result = bus_add_port(pit->bus, &pit->speaker_port);
    }
    if (result == 0) {
        *ret_device = TAKE(device);
    }
    return result;
}
