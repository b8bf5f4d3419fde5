/*
 * MC146818A with the century byte at 32h. Time is never stepped: it is the wall clock plus an
 * offset, read out into the time bytes when they are looked at. While the guest holds the clock
 * (register B, SET) the bytes stand still, and the offset is taken from them when it lets go.
 */
#include "device/legacy/rtc.h"

#include <stdlib.h>
#include <time.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "persist/visitor.h"

enum { CMOS_SIZE = 128, PORT_INDEX = 0, NS_PER_S = 1000000000 };
enum cmos_byte {
    SECOND,
    SECOND_ALARM,
    MINUTE,
    MINUTE_ALARM,
    HOUR,
    HOUR_ALARM,
    WEEKDAY,
    DAY,
    MONTH,
    YEAR,
    REGISTER_A,
    REGISTER_B,
    REGISTER_C,
    REGISTER_D,
    EQUIPMENT = 0x14,
    BASE_MEMORY = 0x15,
    EXTENDED_MEMORY = 0x17,
    EXTENDED_MEMORY_AGAIN = 0x30,
    CENTURY = 0x32,
    MEMORY_ABOVE_16M = 0x34,
    MEMORY_ABOVE_4G = 0x5b,
};
enum { A_UPDATING = 0x80, A_DIVIDER = 0x20, A_RATE = 0x0f };
enum {
    B_SET = 0x80,
    B_PERIODIC = 0x40,
    B_ALARM = 0x20,
    B_UPDATE = 0x10,
    B_SQUARE = 0x08,
    B_BINARY = 0x04,
    B_24H = 0x02
};
enum { C_REQUEST = 0x80, C_FLAGS = B_PERIODIC | B_ALARM | B_UPDATE };
enum { HOUR_PM = 0x80, ALARM_ANY = 0xc0, UPDATE_NS = 244000 + 1984000 };

struct rtc {
    struct device device;
    struct bus *bus;
    struct region region;
    struct irq_line irq;
    struct clock clock;
    void *alarm;
    uint64_t (*wall_now)(void *owner);
    void *owner;
    uint8_t index;
    uint8_t cmos[CMOS_SIZE];
    uint64_t offset;       /* added to the wall clock, modulo 2^64 nanoseconds */
    uint64_t seen_second;  /* updates and alarms up to here are in register C */
    uint64_t seen_periods; /* so are periodic interrupts up to this cycle of 32768 Hz */
};

static struct rtc *rtc_of(struct device *device)
{
    return CONTAINER_OF(device, struct rtc, device);
}

static uint64_t rtc_now(const struct rtc *rtc)
{
    return rtc->wall_now(rtc->owner) + rtc->offset;
}

static uint8_t encode(const struct rtc *rtc, int value)
{
    return (uint8_t)(rtc->cmos[REGISTER_B] & B_BINARY ? value : value / 10 << 4 | value % 10);
}

static int decode(const struct rtc *rtc, uint8_t byte)
{
    return rtc->cmos[REGISTER_B] & B_BINARY ? byte : (byte >> 4) * 10 + (byte & 0xf);
}

static uint8_t encode_hour(const struct rtc *rtc, int hour)
{
    if (rtc->cmos[REGISTER_B] & B_24H) {
        return encode(rtc, hour);
    }
    int twelve = hour % 12 ? hour % 12 : 12;
    return (uint8_t)(encode(rtc, twelve) | (hour >= 12 ? HOUR_PM : 0));
}

static int decode_hour(const struct rtc *rtc, uint8_t byte)
{
    if (rtc->cmos[REGISTER_B] & B_24H) {
        return decode(rtc, byte);
    }
    int hour = decode(rtc, byte & (uint8_t)~HOUR_PM) % 12;
    return byte & HOUR_PM ? hour + 12 : hour;
}

/* Bring the time bytes up to date, unless the guest holds them. */
static void time_load(struct rtc *rtc)
{
    if (rtc->cmos[REGISTER_B] & B_SET) {
        return;
    }
    time_t seconds = (time_t)(rtc_now(rtc) / NS_PER_S);
    struct tm tm;
    gmtime_r(&seconds, &tm);
    rtc->cmos[SECOND] = encode(rtc, tm.tm_sec);
    rtc->cmos[MINUTE] = encode(rtc, tm.tm_min);
    rtc->cmos[HOUR] = encode_hour(rtc, tm.tm_hour);
    rtc->cmos[WEEKDAY] = encode(rtc, tm.tm_wday + 1);
    rtc->cmos[DAY] = encode(rtc, tm.tm_mday);
    rtc->cmos[MONTH] = encode(rtc, tm.tm_mon + 1);
    rtc->cmos[YEAR] = encode(rtc, tm.tm_year % 100);
    rtc->cmos[CENTURY] = encode(rtc, (tm.tm_year + 1900) / 100);
}

/* Go on from what the time bytes say. Dates that do not exist become ones that do. */
static void time_store(struct rtc *rtc)
{
    struct tm tm = {
        .tm_sec = decode(rtc, rtc->cmos[SECOND]),
        .tm_min = decode(rtc, rtc->cmos[MINUTE]),
        .tm_hour = decode_hour(rtc, rtc->cmos[HOUR]),
        .tm_mday = decode(rtc, rtc->cmos[DAY]),
        .tm_mon = decode(rtc, rtc->cmos[MONTH]) - 1,
        .tm_year = decode(rtc, rtc->cmos[CENTURY]) * 100 + decode(rtc, rtc->cmos[YEAR]) - 1900,
    };
    time_t seconds = timegm(&tm);
    uint64_t since_1970 = seconds > 0 ? (uint64_t)seconds : 0;
    uint64_t fraction = rtc_now(rtc) % NS_PER_S;
    rtc->offset = since_1970 * NS_PER_S + fraction - rtc->wall_now(rtc->owner);
    rtc->seen_second = since_1970;
}

static bool alarm_field_matches(const struct rtc *rtc, enum cmos_byte which, int value)
{
    uint8_t byte = rtc->cmos[which];
    if ((byte & ALARM_ANY) == ALARM_ANY) {
        return true;
    }
    return value == (which == HOUR_ALARM ? decode_hour(rtc, byte) : decode(rtc, byte));
}

/* The first second after `after` at which the alarm matches, UINT64_MAX if it never does. */
static uint64_t alarm_next(const struct rtc *rtc, uint64_t after)
{
    uint64_t candidate = after + 1, limit = candidate + 86400 + 3600;
    while (candidate < limit) {
        if (!alarm_field_matches(rtc, HOUR_ALARM, (int)(candidate / 3600 % 24))) {
            candidate = (candidate / 3600 + 1) * 3600;
        } else if (!alarm_field_matches(rtc, MINUTE_ALARM, (int)(candidate / 60 % 60))) {
            candidate = (candidate / 60 + 1) * 60;
        } else if (!alarm_field_matches(rtc, SECOND_ALARM, (int)(candidate % 60))) {
            candidate++;
        } else {
            return candidate;
        }
    }
    return UINT64_MAX;
}

/* Cycles of 32768 Hz in a periodic interrupt's period; 0: off. Rates 1 and 2 repeat 8 and 9. */
static uint64_t period_cycles(const struct rtc *rtc)
{
    unsigned rate = rtc->cmos[REGISTER_A] & A_RATE;
    if (rate == 0) {
        return 0;
    }
    return 1ull << ((rate < 3 ? rate + 7 : rate) - 1);
}

static uint64_t cycles_now(const struct rtc *rtc)
{
    return (uint64_t)((unsigned __int128)clock_now(rtc->clock) * 32768 / NS_PER_S);
}

/* Put into register C what has happened since the last look. */
static void flags_update(struct rtc *rtc)
{
    uint64_t cycles = cycles_now(rtc), period = period_cycles(rtc);
    if (period && cycles / period != rtc->seen_periods / period) {
        rtc->cmos[REGISTER_C] |= B_PERIODIC;
    }
    rtc->seen_periods = cycles;
    if (rtc->cmos[REGISTER_B] & B_SET) {
        return; /* no updates, so no alarms */
    }
    uint64_t second = rtc_now(rtc) / NS_PER_S;
    if (second > rtc->seen_second) {
        rtc->cmos[REGISTER_C] |= B_UPDATE;
        rtc->cmos[REGISTER_C] |= alarm_next(rtc, rtc->seen_second) <= second ? B_ALARM : 0;
    }
    rtc->seen_second = second;
}

/* When the next enabled event happens, on the clock; UINT64_MAX: none. */
static uint64_t next_event(const struct rtc *rtc)
{
    uint8_t enabled = rtc->cmos[REGISTER_B] & (uint8_t)~rtc->cmos[REGISTER_C];
    uint64_t due = UINT64_MAX, period = period_cycles(rtc);
    if ((enabled & B_PERIODIC) && period) {
        uint64_t cycle = (rtc->seen_periods / period + 1) * period;
        due = (uint64_t)(((unsigned __int128)cycle * NS_PER_S + 32767) / 32768);
    }
    if ((enabled & (B_UPDATE | B_ALARM)) && !(rtc->cmos[REGISTER_B] & B_SET)) {
        uint64_t second =
            enabled & B_UPDATE ? rtc->seen_second + 1 : alarm_next(rtc, rtc->seen_second);
        uint64_t now = rtc_now(rtc);
        if (second < UINT64_MAX / NS_PER_S) {
            uint64_t wait = second * NS_PER_S > now ? second * NS_PER_S - now : 0;
            uint64_t event = clock_now(rtc->clock) + wait;
            due = event < due ? event : due;
        }
    }
    return due;
}

/* Flags, interrupt line and host alarm follow the time and the registers. */
static void rtc_update(struct rtc *rtc)
{
    flags_update(rtc);
    uint8_t *flags = &rtc->cmos[REGISTER_C];
    bool is_requested = *flags & rtc->cmos[REGISTER_B] & C_FLAGS;
    *flags = (uint8_t)((*flags & C_FLAGS) | (is_requested ? C_REQUEST : 0));
    irq_line_set(&rtc->irq, is_requested);
    clock_alarm_set(rtc->clock, rtc->alarm, next_event(rtc));
}

static void alarm_expired(void *argument)
{
    struct rtc *rtc = argument;
    pthread_mutex_lock(&rtc->device.lock);
    rtc_update(rtc);
    pthread_mutex_unlock(&rtc->device.lock);
}

static uint8_t cmos_read(struct rtc *rtc, unsigned index)
{
    uint8_t value;
    switch (index) {
    case REGISTER_A: {
        bool is_held = rtc->cmos[REGISTER_B] & B_SET;
        bool is_updating = !is_held && rtc_now(rtc) % NS_PER_S >= NS_PER_S - UPDATE_NS;
        return rtc->cmos[REGISTER_A] | (is_updating ? A_UPDATING : 0);
    }
    case REGISTER_C:
        rtc_update(rtc);
        value = rtc->cmos[REGISTER_C];
        rtc->cmos[REGISTER_C] = 0;
        rtc_update(rtc);
        return value;
    default:
        time_load(rtc);
        return rtc->cmos[index];
    }
}

/* A change of the data format changes how the same time is written down. */
static void register_b_write(struct rtc *rtc, uint8_t value)
{
    bool was_held = rtc->cmos[REGISTER_B] & B_SET, is_held = value & B_SET;
    time_load(rtc);
    if (is_held) {
        value &= (uint8_t)~B_UPDATE; /* SET clears the update-ended interrupt enable */
    }
    rtc->cmos[REGISTER_B] = value;
    if (was_held && !is_held) {
        time_store(rtc);
    }
}

static bool is_time(unsigned index)
{
    return index == SECOND || index == MINUTE ||
           (index >= HOUR && index != HOUR_ALARM && index <= YEAR) || index == CENTURY;
}

static void cmos_write(struct rtc *rtc, unsigned index, uint8_t value)
{
    rtc_update(rtc);
    if (is_time(index)) {
        time_load(rtc);
        rtc->cmos[index] = value;
        if (!(rtc->cmos[REGISTER_B] & B_SET)) {
            time_store(rtc);
        }
    } else if (index == REGISTER_A) {
        rtc->cmos[index] = value & (uint8_t)~A_UPDATING;
    } else if (index == REGISTER_B) {
        register_b_write(rtc, value);
    } else if (index != REGISTER_C && index != REGISTER_D) {
        rtc->cmos[index] = value;
    }
    rtc_update(rtc);
}

static uint64_t rtc_read(void *owner, uint64_t offset, unsigned size)
{
    struct rtc *rtc = owner;
    if (offset == PORT_INDEX) {
        return UINT64_MAX; /* write-only */
    }
    pthread_mutex_lock(&rtc->device.lock);
    uint8_t value = cmos_read(rtc, rtc->index);
    pthread_mutex_unlock(&rtc->device.lock);
    return value;
}

/* Bit 7 of the index would mask NMIs; nothing raises any through that gate. */
static void rtc_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    struct rtc *rtc = owner;
    pthread_mutex_lock(&rtc->device.lock);
    if (offset == PORT_INDEX) {
        rtc->index = value & 0x7f;
    } else {
        cmos_write(rtc, rtc->index, (uint8_t)value);
    }
    pthread_mutex_unlock(&rtc->device.lock);
}

static const struct region_ops rtc_region_ops = {.read = rtc_read, .write = rtc_write};

/* The battery keeps time and memory; the reset pin clears interrupts (MC146818A, RESET). */
static void rtc_reset(struct device *device)
{
    struct rtc *rtc = rtc_of(device);
    pthread_mutex_lock(&device->lock);
    rtc->index = 0;
    rtc->cmos[REGISTER_B] &= (uint8_t) ~(C_FLAGS | B_SQUARE);
    flags_update(rtc);
    rtc->cmos[REGISTER_C] = 0;
    rtc_update(rtc);
    pthread_mutex_unlock(&device->lock);
}

static void rtc_visit(struct device *device, struct visitor *v)
{
    struct rtc *rtc = rtc_of(device);
    pthread_mutex_lock(&device->lock);
    visit_begin(v, "rtc", 1);
    visit_u8_max(v, "index", &rtc->index, CMOS_SIZE - 1);
    visit_bytes(v, "cmos", rtc->cmos, sizeof rtc->cmos);
    visit_u64(v, "offset", &rtc->offset);
    visit_u64(v, "seen_second", &rtc->seen_second);
    visit_u64(v, "seen_periods", &rtc->seen_periods);
    visit_bool(v, "irq_level", &rtc->irq.level);
    visit_end(v);
    if (visitor_mode(v) == VISITOR_READ) { /* at once: time went on while the state was saved */
        clock_alarm_set(rtc->clock, rtc->alarm, clock_now(rtc->clock));
    }
    pthread_mutex_unlock(&device->lock);
}

static void rtc_free(struct device *device)
{
    struct rtc *rtc = rtc_of(device);
    bus_remove(rtc->bus, &rtc->region);
    clock_alarm_free(rtc->clock, rtc->alarm);
    device_fini(device);
    free(rtc);
}

static const struct device_ops rtc_ops = {
    .name = "rtc",
    .reset = rtc_reset,
    .visit = rtc_visit,
    .free = rtc_free,
};
CLEANUP_DEFINE(struct device, device_free)

static uint16_t clamp16(uint64_t value)
{
    return value < UINT16_MAX ? (uint16_t)value : UINT16_MAX;
}

/* The memory sizes that firmware and old systems look for. */
static void memory_sizes_set(struct rtc *rtc, const struct rtc_config *config)
{
    uint64_t below = config->memory_below_4g;
    uint16_t extended = clamp16(below > MIB(1) ? (below - MIB(1)) / KIB(1) : 0);
    uint64_t above_4g = config->memory_above_4g / KIB(64);
    store_le16(&rtc->cmos[BASE_MEMORY], 640);
    store_le16(&rtc->cmos[EXTENDED_MEMORY], extended);
    store_le16(&rtc->cmos[EXTENDED_MEMORY_AGAIN], extended);
    store_le16(&rtc->cmos[MEMORY_ABOVE_16M],
               clamp16(below > MIB(16) ? (below - MIB(16)) / KIB(64) : 0));
    store_le16(&rtc->cmos[MEMORY_ABOVE_4G], (uint16_t)above_4g);
    rtc->cmos[MEMORY_ABOVE_4G + 2] = (uint8_t)(above_4g >> 16);
}

int rtc_new(const struct rtc_config *config, struct device **ret_device)
{
    struct rtc *rtc = calloc(1, sizeof *rtc);
    ASSERT(rtc);
    CLEANUP(device_free) struct device *device = &rtc->device;
    device_init(device, &rtc_ops, "rtc");
    rtc->bus = config->bus;
    rtc->irq = config->irq;
    rtc->clock = config->clock;
    rtc->wall_now = config->wall_now;
    rtc->owner = config->owner;
    rtc->alarm = clock_alarm_new(rtc->clock, alarm_expired, rtc);
    rtc->cmos[REGISTER_A] = A_DIVIDER | 6; /* 32768 Hz, 1024 Hz */
    rtc->cmos[REGISTER_B] = B_24H;
    rtc->cmos[REGISTER_D] = 0x80; /* the battery is good */
    rtc->cmos[EQUIPMENT] = 0x02;  /* a coprocessor */
    memory_sizes_set(rtc, config);
    rtc_reset(device);
    rtc->region = (struct region){.name = "real-time clock",
                                  .base = 0x70,
                                  .size = 2,
                                  .ops = &rtc_region_ops,
                                  .owner = rtc,
                                  .is_byte_wide = true};
    int result = bus_add_port(rtc->bus, &rtc->region);
    if (result == 0) {
        *ret_device = TAKE(device);
    }
    return result;
}
