/* ACPI power management: PM1a blocks, PM timer, power button, soft-off. ACPI 6.3, 4.8.3. */
#include "device/legacy/pm.h"

#include <stdlib.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "persist/visitor.h"

/* PM1 status and enable. */
enum {
    PM1_TIMER = 1u << 0,
    PM1_GLOBAL = 1u << 5,
    PM1_POWER_BUTTON = 1u << 8,
    PM1_SLEEP_BUTTON = 1u << 9,
    PM1_RTC = 1u << 10,
    PM1_WAKE = 1u << 15,
    STATUS_CLEARABLE =
        PM1_TIMER | PM1_GLOBAL | PM1_POWER_BUTTON | PM1_SLEEP_BUTTON | PM1_RTC | PM1_WAKE,
    ENABLE_WRITABLE = PM1_TIMER | PM1_GLOBAL | PM1_POWER_BUTTON | PM1_SLEEP_BUTTON | PM1_RTC,
};
/* PM1 control. SCI_EN is always one: there is no legacy mode to come from. */
enum {
    CONTROL_SCI = 1u << 0,
    CONTROL_SLEEP_TYPE_SHIFT = 10,
    CONTROL_SLEEP_TYPE = 7u << CONTROL_SLEEP_TYPE_SHIFT,
    CONTROL_SLEEP = 1u << 13, /* write-only */
    CONTROL_WRITABLE = CONTROL_SLEEP_TYPE | 1u << 1,
};

enum { REGISTER_BYTES = 8 };
/* The timer has 24 bits; its status bit is set when the highest of them changes. */
#define TIMER_HALF (1ull << 23)
#define TIMER_MASK (2 * TIMER_HALF - 1)

struct pm {
    struct device device;
    struct bus *bus;
    struct region region;
    struct irq_line sci;
    struct clock clock;
    void *alarm; /* the next change of the timer's highest bit, while its event is enabled */
    void (*power_off)(void *owner);
    void *owner;
    uint16_t status, enable, control;
    uint64_t timer_seen; /* ticks up to which changes of the highest bit are in `status` */
};

static struct pm *pm_of(struct device *device)
{
    return CONTAINER_OF(device, struct pm, device);
}

/* Nanoseconds to ticks and back, exact over centuries. */
static uint64_t scale(uint64_t value, uint64_t numerator, uint64_t denominator)
{
    return (uint64_t)((unsigned __int128)value * numerator / denominator);
}

static uint64_t timer_ticks(const struct pm *pm)
{
    return scale(clock_now(pm->clock), PM_TIMER_HZ, 1000000000);
}

/* Be called when the timer's highest bit changes, if the guest wants to know. */
static void alarm_arm(struct pm *pm)
{
    uint64_t due = UINT64_MAX;
    if ((pm->enable & PM1_TIMER) && !(pm->status & PM1_TIMER)) {
        due = scale((pm->timer_seen / TIMER_HALF + 1) * TIMER_HALF, 1000000000, PM_TIMER_HZ) + 1;
    }
    clock_alarm_set(pm->clock, pm->alarm, due);
}

/* Bring the timer's status up to date, the SCI and the alarm. With the lock held. */
static void pm_update(struct pm *pm)
{
    uint64_t now = timer_ticks(pm);
    if (now / TIMER_HALF != pm->timer_seen / TIMER_HALF) {
        pm->status |= PM1_TIMER;
    }
    pm->timer_seen = now;
    irq_line_set(&pm->sci, (pm->status & pm->enable) != 0);
    alarm_arm(pm);
}

static void alarm_expired(void *argument)
{
    struct pm *pm = argument;
    pthread_mutex_lock(&pm->device.lock);
    pm_update(pm);
    pthread_mutex_unlock(&pm->device.lock);
}

/* The three registers as one little-endian image, so that any width reads right. */
static uint64_t pm_read(void *owner, uint64_t offset, unsigned size)
{
    struct pm *pm = owner;
    uint64_t value = 0;
    pthread_mutex_lock(&pm->device.lock);
    if (offset >= PM_PORT_TIMER) {
        value = (timer_ticks(pm) & TIMER_MASK) >> (8 * (offset - PM_PORT_TIMER));
    } else {
        pm_update(pm);
        uint64_t image =
            pm->status | (uint64_t)pm->enable << 16 | (uint64_t)(pm->control | CONTROL_SCI) << 32;
        value = image >> (8 * offset);
    }
    pthread_mutex_unlock(&pm->device.lock);
    return value;
}

/* Returns true if the guest switched itself off. */
static bool control_write(struct pm *pm, uint16_t mask, uint16_t value)
{
    uint16_t writable = mask & CONTROL_WRITABLE;
    pm->control = (uint16_t)((pm->control & ~writable) | (value & writable));
    unsigned type = (pm->control & CONTROL_SLEEP_TYPE) >> CONTROL_SLEEP_TYPE_SHIFT;
    return (value & mask & CONTROL_SLEEP) && type == PM_SLEEP_TYPE_S5;
}

static void pm_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    struct pm *pm = owner;
    if (offset >= REGISTER_BYTES) {
        return; /* the timer is read-only */
    }
    uint64_t mask = (size >= 8 ? UINT64_MAX : (1ull << (8 * size)) - 1) << (8 * offset);
    value <<= 8 * offset;
    pthread_mutex_lock(&pm->device.lock);
    pm_update(pm);
    pm->status &= (uint16_t) ~(value & mask & STATUS_CLEARABLE);
    uint16_t enable_mask = (uint16_t)(mask >> 16) & ENABLE_WRITABLE;
    pm->enable = (uint16_t)((pm->enable & ~enable_mask) | ((value >> 16) & enable_mask));
    bool is_off = control_write(pm, (uint16_t)(mask >> 32), (uint16_t)(value >> 32));
    pm_update(pm);
    pthread_mutex_unlock(&pm->device.lock);
    if (is_off) {
        pm->power_off(pm->owner);
    }
}

static const struct region_ops pm_region_ops = {.read = pm_read, .write = pm_write};

void pm_press_power_button(struct device *device)
{
    struct pm *pm = pm_of(device);
    pthread_mutex_lock(&device->lock);
    pm->status |= PM1_POWER_BUTTON;
    pm_update(pm);
    pthread_mutex_unlock(&device->lock);
}

bool pm_power_button_enabled(struct device *device)
{
    pthread_mutex_lock(&device->lock);
    bool is_enabled = pm_of(device)->enable & PM1_POWER_BUTTON;
    pthread_mutex_unlock(&device->lock);
    return is_enabled;
}

static void pm_reset(struct device *device)
{
    struct pm *pm = pm_of(device);
    pthread_mutex_lock(&device->lock);
    pm->status = pm->enable = pm->control = 0;
    pm->timer_seen = timer_ticks(pm);
    pm_update(pm);
    pthread_mutex_unlock(&device->lock);
}

static void pm_visit(struct device *device, struct visitor *v)
{
    struct pm *pm = pm_of(device);
    pthread_mutex_lock(&device->lock);
    visit_begin(v, "pm", 1);
    visit_u16(v, "status", &pm->status);
    visit_u16(v, "enable", &pm->enable);
    visit_u16(v, "control", &pm->control);
    visit_u64(v, "timer_seen", &pm->timer_seen);
    visit_bool(v, "sci_level", &pm->sci.level);
    visit_end(v);
    if (visitor_mode(v) == VISITOR_READ) {
        pm->status &= STATUS_CLEARABLE;
        pm->enable &= ENABLE_WRITABLE;
        pm->control &= CONTROL_WRITABLE;
        alarm_arm(pm);
    }
    pthread_mutex_unlock(&device->lock);
}

static void pm_free(struct device *device)
{
    struct pm *pm = pm_of(device);
    bus_remove(pm->bus, &pm->region);
    clock_alarm_free(pm->clock, pm->alarm);
    device_fini(device);
    free(pm);
}

static const struct device_ops pm_ops = {
    .name = "pm",
    .reset = pm_reset,
    .visit = pm_visit,
    .free = pm_free,
};
CLEANUP_DEFINE(struct device, device_free)

int pm_new(const struct pm_config *config, struct device **ret_device)
{
    struct pm *pm = calloc(1, sizeof *pm);
    ASSERT(pm);
    CLEANUP(device_free) struct device *device = &pm->device;
    device_init(device, &pm_ops, "pm");
    pm->bus = config->bus;
    pm->sci = config->sci;
    pm->clock = config->clock;
    pm->power_off = config->power_off;
    pm->owner = config->owner;
    pm->alarm = clock_alarm_new(pm->clock, alarm_expired, pm);
    pm_reset(device);
    pm->region = (struct region){.name = "power management",
                                 .base = config->port,
                                 .size = PM_PORT_COUNT,
                                 .ops = &pm_region_ops,
                                 .owner = pm};
    int result = bus_add_port(pm->bus, &pm->region);
    if (result == 0) {
        *ret_device = TAKE(device);
    }
    return result;
}
