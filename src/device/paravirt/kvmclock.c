/*
 * The KVM clock. All vCPUs publish one and the same reference (TSC and nanoseconds taken at one
 * moment), so their times agree and the guest may use it without locks ("TSC stable").
 */
#include "device/paravirt/kvmclock.h"

#include <stdlib.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"
#include "persist/visitor.h"

enum {
    MSR_WALL_CLOCK = 0x11,
    MSR_SYSTEM_TIME = 0x12,
    MSR_WALL_CLOCK_NEW = 0x4b564d00,
    MSR_SYSTEM_TIME_NEW = 0x4b564d01,
    SYSTEM_TIME_ENABLED = 1,
    FLAG_TSC_STABLE = 1,
    FLAG_STOPPED = 2,
    NS_PER_S = 1000000000,
};

/* The page that the guest reads; `version` is odd while it changes. */
struct vcpu_time {
    uint32_t version, pad;
    uint64_t tsc_timestamp, system_time;
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags, pad2[2];
} __attribute__((packed));

struct wall_clock {
    uint32_t version, seconds, nanoseconds;
} __attribute__((packed));

struct kvmclock_vcpu {
    uint64_t system_time_msr;
    uint32_t version; /* last one published, even */
};

struct kvmclock {
    struct device device;
    struct kvmclock_config config;
    uint32_t multiplier; /* ns = (ticks << shift) * multiplier >> 32 */
    int8_t shift;
    uint64_t wall_clock_msr;
    uint32_t wall_version;
    uint64_t reference_tsc, reference_ns;
    struct kvmclock_vcpu *vcpus; /* one for each CPU */
};

static struct kvmclock *kvmclock_of(struct device *device)
{
    return CONTAINER_OF(device, struct kvmclock, device);
}

/* Choose the shift that leaves the multiplier 31 to 32 significant bits. */
static void scale_set(struct kvmclock *k, uint64_t tsc_hz)
{
    unsigned __int128 whole = (unsigned __int128)NS_PER_S << 32;
    int shift = 0;
    while (shift > -31 && (whole << -shift) / tsc_hz < 1ull << 31) {
        shift--;
    }
    while (shift < 31 && shift >= 0 && (whole >> shift) / tsc_hz > UINT32_MAX) {
        shift++;
    }
    k->shift = (int8_t)shift;
    k->multiplier = (uint32_t)((shift < 0 ? whole << -shift : whole >> shift) / tsc_hz);
}

static void reference_take(struct kvmclock *k)
{
    k->reference_tsc = k->config.tsc_now(k->config.owner);
    k->reference_ns = clock_now(k->config.clock);
}

/*
 * Write a structure that starts with its version: odd version, body, even version. A guest that
 * points it at what is not RAM gets nothing.
 */
static void publish(struct kvmclock *k, gpa_t gpa, const void *image, size_t size, uint32_t version)
{
    struct memory *memory = k->config.memory;
    uint32_t changing = version - 1;
    if (memory_write(memory, gpa, &changing, sizeof changing) < 0 ||
        memory_write(memory, gpa + sizeof version, (const uint8_t *)image + sizeof version,
                     size - sizeof version) < 0 ||
        memory_write(memory, gpa, &version, sizeof version) < 0) {
        trail_clear();
    }
}

static void system_time_publish(struct kvmclock *k, unsigned vcpu, uint8_t flags)
{
    pthread_mutex_lock(&k->device.lock);
    struct kvmclock_vcpu *own = &k->vcpus[vcpu];
    uint64_t msr = own->system_time_msr;
    own->version += 2;
    const struct vcpu_time image = {
        .version = own->version,
        .tsc_timestamp = k->reference_tsc,
        .system_time = k->reference_ns,
        .tsc_to_system_mul = k->multiplier,
        .tsc_shift = k->shift,
        .flags = FLAG_TSC_STABLE | flags,
    };
    pthread_mutex_unlock(&k->device.lock);
    if (msr & SYSTEM_TIME_ENABLED) {
        publish(k, msr & ~3ull, &image, sizeof image, image.version);
    }
}

/* The time of day at which the system time was zero. */
static void wall_clock_publish(struct kvmclock *k, gpa_t gpa)
{
    uint64_t wall = k->config.wall_now(k->config.owner) - clock_now(k->config.clock);
    pthread_mutex_lock(&k->device.lock);
    k->wall_clock_msr = gpa;
    k->wall_version += 2;
    const struct wall_clock image = {
        .version = k->wall_version,
        .seconds = (uint32_t)(wall / NS_PER_S),
        .nanoseconds = (uint32_t)(wall % NS_PER_S),
    };
    pthread_mutex_unlock(&k->device.lock);
    publish(k, gpa & ~3ull, &image, sizeof image, image.version);
}

bool kvmclock_owns_msr(uint32_t index)
{
    return index == MSR_WALL_CLOCK || index == MSR_SYSTEM_TIME || index == MSR_WALL_CLOCK_NEW ||
           index == MSR_SYSTEM_TIME_NEW;
}

bool kvmclock_msr_read(struct device *device, unsigned vcpu, uint32_t index, uint64_t *ret_value)
{
    struct kvmclock *k = kvmclock_of(device);
    if (!kvmclock_owns_msr(index)) {
        return false;
    }
    pthread_mutex_lock(&device->lock);
    bool is_wall = index == MSR_WALL_CLOCK || index == MSR_WALL_CLOCK_NEW;
    *ret_value = is_wall ? k->wall_clock_msr : k->vcpus[vcpu].system_time_msr;
    pthread_mutex_unlock(&device->lock);
    return true;
}

bool kvmclock_msr_write(struct device *device, unsigned vcpu, uint32_t index, uint64_t value)
{
    struct kvmclock *k = kvmclock_of(device);
    switch (index) {
    case MSR_WALL_CLOCK:
    case MSR_WALL_CLOCK_NEW:
        wall_clock_publish(k, value);
        return true;
    case MSR_SYSTEM_TIME:
    case MSR_SYSTEM_TIME_NEW:
        pthread_mutex_lock(&device->lock);
        k->vcpus[vcpu].system_time_msr = value;
        pthread_mutex_unlock(&device->lock);
        system_time_publish(k, vcpu, 0);
        return true;
    default:
        return false;
    }
}

void kvmclock_refresh(struct device *device, bool stopped)
{
    struct kvmclock *k = kvmclock_of(device);
    pthread_mutex_lock(&device->lock);
    reference_take(k);
    pthread_mutex_unlock(&device->lock);
    for (unsigned i = 0; i < k->config.cpus; i++) {
        system_time_publish(k, i, stopped ? FLAG_STOPPED : 0);
    }
}

static void kvmclock_reset(struct device *device)
{
    struct kvmclock *k = kvmclock_of(device);
    pthread_mutex_lock(&device->lock);
    k->wall_clock_msr = 0;
    k->wall_version = 0;
    for (unsigned i = 0; i < k->config.cpus; i++) {
        k->vcpus[i] = (struct kvmclock_vcpu){0};
    }
    reference_take(k);
    pthread_mutex_unlock(&device->lock);
}

static void kvmclock_visit(struct device *device, struct visitor *v)
{
    struct kvmclock *k = kvmclock_of(device);
    pthread_mutex_lock(&device->lock);
    visit_begin(v, "kvmclock", 1);
    visit_u64(v, "wall_clock_msr", &k->wall_clock_msr);
    visit_u32(v, "wall_version", &k->wall_version);
    visit_u64(v, "reference_tsc", &k->reference_tsc);
    visit_u64(v, "reference_ns", &k->reference_ns);
    for (unsigned i = 0; i < k->config.cpus; i++) {
        visit_u64(v, "system_time_msr", &k->vcpus[i].system_time_msr);
        visit_u32(v, "version", &k->vcpus[i].version);
    }
    visit_end(v);
    pthread_mutex_unlock(&device->lock);
}

static void kvmclock_free(struct device *device)
{
    struct kvmclock *k = kvmclock_of(device);
    device_fini(device);
    free(k->vcpus);
    free(k);
}

static const struct device_ops kvmclock_ops = {
    .name = "kvmclock",
    .reset = kvmclock_reset,
    .visit = kvmclock_visit,
    .free = kvmclock_free,
};

int kvmclock_new(const struct kvmclock_config *config, struct device **ret_device)
{
    if (config->cpus == 0 || config->tsc_hz < 1000000) {
        return fail(-EINVAL, "a KVM clock needs a CPU and a TSC of at least 1 MHz (it has %llu Hz)",
                    (unsigned long long)config->tsc_hz);
    }
    struct kvmclock *k = calloc(1, sizeof *k);
    ASSERT(k);
    k->vcpus = calloc(config->cpus, sizeof k->vcpus[0]);
    ASSERT(k->vcpus);
    device_init(&k->device, &kvmclock_ops, "kvmclock");
    k->config = *config;
    scale_set(k, config->tsc_hz);
    kvmclock_reset(&k->device);
    *ret_device = &k->device;
    return 0;
}
