/*
 * Decoding of ports and physical addresses.
 *
 * An access finds the region's slot without a lock and holds it while the owner answers; removal
 * takes the region out of its slot and then waits for the holders. Slots are never freed, so a
 * reader that lost the race touches memory that is still a slot, sees that it no longer answers
 * for the address, and looks again. Any number of removals may go on inside accesses to other
 * regions (a BAR moves inside an access to the configuration ports).
 */
#include "bus/bus.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"

enum { SLOTS = 512, PORTS = 65536 };

/* One region in use. `region` is NULL while the slot is free or its region is leaving. */
struct slot {
    struct region *_Atomic region;
    _Atomic uint64_t base, last; /* copies: a region's owner may rewrite it once removed */
    _Atomic bool is_port;
    _Atomic unsigned users; /* accesses in progress */
    bool taken;             /* guarded by the bus's lock */
};

struct bus {
    pthread_mutex_t lock; /* guards changes */
    struct slot slots[SLOTS];
    /* the slot that answers a port, plus one; 0: nobody */
    _Atomic uint16_t ports[PORTS];
    /* Slots with physical addresses in ascending order; `version` is odd while it changes. */
    _Atomic uint32_t version;
    _Atomic unsigned mmio_count;
    _Atomic uint16_t mmio[SLOTS];
};

struct bus *bus_new(void)
{
    struct bus *bus = calloc(1, sizeof *bus);
    ASSERT(bus);
    pthread_mutex_init(&bus->lock, NULL);
    return bus;
}

void bus_free(struct bus *bus)
{
    if (bus) {
        pthread_mutex_destroy(&bus->lock);
        free(bus);
    }
}

/* Put the region into a free slot; NULL if there is none. With the lock held. */
static struct slot *slot_take(struct bus *bus, struct region *region, bool is_port)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        struct slot *slot = &bus->slots[i];
        if (!slot->taken) {
            slot->taken = true;
            atomic_store(&slot->base, region->base);
            atomic_store(&slot->last, region->base + (region->size - 1));
            atomic_store(&slot->is_port, is_port);
            atomic_store(&slot->region, region);
            return slot;
        }
    }
    return NULL;
}

static uint16_t slot_number(const struct bus *bus, const struct slot *slot)
{
    return (uint16_t)(slot - bus->slots);
}

static int fail_overlap(const struct region *region, const struct region *other)
{
    return fail(-EBUSY, "region '%s' (%#llx, size %#llx) overlaps '%s' (%#llx, size %#llx)",
                region->name, (unsigned long long)region->base, (unsigned long long)region->size,
                other->name, (unsigned long long)other->base, (unsigned long long)other->size);
}

static int port_add_locked(struct bus *bus, struct region *region)
{
    if (region->size == 0 || !range_fits(region->base, region->size, PORTS)) {
        return fail(-EINVAL, "region '%s' is not within the 64 Ki ports", region->name);
    }
    for (uint64_t port = region->base; port < region->base + region->size; port++) {
        unsigned taken = atomic_load(&bus->ports[port]);
        if (taken) {
            return fail_overlap(region, atomic_load(&bus->slots[taken - 1].region));
        }
    }
    const struct slot *slot = slot_take(bus, region, true);
    if (!slot) {
        return fail(-ENOSPC, "no room for region '%s': %d regions exist", region->name, SLOTS);
    }
    for (uint64_t port = region->base; port < region->base + region->size; port++) {
        atomic_store(&bus->ports[port], (uint16_t)(slot_number(bus, slot) + 1));
    }
    return 0;
}

int bus_add_port(struct bus *bus, struct region *region)
{
    pthread_mutex_lock(&bus->lock);
    int result = port_add_locked(bus, region);
    pthread_mutex_unlock(&bus->lock);
    return result;
}

/* The table is about to change, or has changed: readers that overlap look again. */
static void mmio_table_turn(struct bus *bus)
{
    atomic_fetch_add(&bus->version, 1);
}

static int mmio_add_locked(struct bus *bus, struct region *region)
{
    if (region->size == 0 || region->base + (region->size - 1) < region->base) {
        return fail(-EINVAL, "region '%s' is empty or wraps around", region->name);
    }
    uint64_t last = region->base + (region->size - 1);
    unsigned count = atomic_load(&bus->mmio_count), place = 0;
    for (unsigned i = 0; i < count; i++) {
        const struct slot *slot = &bus->slots[atomic_load(&bus->mmio[i])];
        if (atomic_load(&slot->base) <= last && region->base <= atomic_load(&slot->last)) {
            return fail_overlap(region, atomic_load(&slot->region));
        }
        place += atomic_load(&slot->base) < region->base;
    }
    const struct slot *slot = slot_take(bus, region, false);
    if (!slot) {
        return fail(-ENOSPC, "no room for region '%s': %d regions exist", region->name, SLOTS);
    }
    mmio_table_turn(bus);
    for (unsigned i = count; i > place; i--) {
        atomic_store(&bus->mmio[i], atomic_load(&bus->mmio[i - 1]));
    }
    atomic_store(&bus->mmio[place], slot_number(bus, slot));
    atomic_store(&bus->mmio_count, count + 1);
    mmio_table_turn(bus);
    return 0;
}

int bus_add_mmio(struct bus *bus, struct region *region)
{
    pthread_mutex_lock(&bus->lock);
    int result = mmio_add_locked(bus, region);
    pthread_mutex_unlock(&bus->lock);
    return result;
}

/* Take the slot out of both tables. With the lock held. */
static void tables_forget(struct bus *bus, const struct slot *slot)
{
    uint16_t number = slot_number(bus, slot);
    uint64_t last = atomic_load(&slot->last);
    for (uint64_t port = atomic_load(&slot->base); port <= last && port < PORTS; port++) {
        if (atomic_load(&bus->ports[port]) == number + 1) {
            atomic_store(&bus->ports[port], 0);
        }
    }
    unsigned count = atomic_load(&bus->mmio_count), kept = 0;
    mmio_table_turn(bus);
    for (unsigned i = 0; i < count; i++) {
        uint16_t other = atomic_load(&bus->mmio[i]);
        if (other != number) {
            atomic_store(&bus->mmio[kept++], other);
        }
    }
    atomic_store(&bus->mmio_count, kept);
    mmio_table_turn(bus);
}

void bus_remove(struct bus *bus, struct region *region)
{
    struct slot *slot = NULL;
    pthread_mutex_lock(&bus->lock);
    for (unsigned i = 0; i < SLOTS && !slot; i++) {
        if (bus->slots[i].taken && atomic_load(&bus->slots[i].region) == region) {
            slot = &bus->slots[i];
        }
    }
    if (slot) {
        tables_forget(bus, slot);
        atomic_store(&slot->region, NULL);
    }
    pthread_mutex_unlock(&bus->lock);
    if (!slot) {
        return;
    }
    while (atomic_load(&slot->users) != 0) {
        sched_yield();
    }
    pthread_mutex_lock(&bus->lock);
    slot->taken = false;
    pthread_mutex_unlock(&bus->lock);
}

/*
 * Hold the slot if it answers for the address; NULL otherwise. The order matters: count first, then
 * look. bus_remove() empties the slot first and then looks at the count, so one sees the other.
 */
static struct region *slot_hold(struct slot *slot, bool is_port, uint64_t address)
{
    atomic_fetch_add(&slot->users, 1);
    struct region *region = atomic_load(&slot->region);
    if (region && atomic_load(&slot->is_port) == is_port && address >= atomic_load(&slot->base) &&
        address <= atomic_load(&slot->last)) {
        return region;
    }
    atomic_fetch_sub(&slot->users, 1);
    return NULL;
}

static void slot_release(struct slot *slot)
{
    if (slot) {
        atomic_fetch_sub(&slot->users, 1);
    }
}

/* The region that owns the port, held through `ret_slot`; NULL if there is none. */
static struct region *port_find(struct bus *bus, uint16_t port, struct slot **ret_slot)
{
    for (;;) {
        unsigned number = atomic_load_explicit(&bus->ports[port], memory_order_acquire);
        *ret_slot = number ? &bus->slots[number - 1] : NULL;
        if (!number) {
            return NULL;
        }
        struct region *region = slot_hold(*ret_slot, true, port);
        if (region) {
            return region;
        }
    }
}

/* One look at the sorted table; it may be changing under us. */
static struct slot *mmio_search(struct bus *bus, uint64_t address)
{
    unsigned low = 0, high = atomic_load_explicit(&bus->mmio_count, memory_order_acquire);
    while (low < high) {
        unsigned middle = (low + high) / 2;
        struct slot *slot =
            &bus->slots[atomic_load_explicit(&bus->mmio[middle], memory_order_acquire)];
        if (address < atomic_load_explicit(&slot->base, memory_order_acquire)) {
            high = middle;
        } else if (address > atomic_load_explicit(&slot->last, memory_order_acquire)) {
            low = middle + 1;
        } else {
            return slot;
        }
    }
    return NULL;
}

static struct region *mmio_find(struct bus *bus, uint64_t address, struct slot **ret_slot)
{
    for (;;) {
        uint32_t version = atomic_load(&bus->version);
        *ret_slot = mmio_search(bus, address);
        if (*ret_slot) {
            struct region *region = slot_hold(*ret_slot, false, address);
            if (region) {
                return region;
            }
        } else if (!(version & 1) && atomic_load(&bus->version) == version) {
            return NULL;
        }
    }
}

/* All ones of `size` bytes: what an access reads that nobody answers. */
static uint64_t ones(unsigned size)
{
    return size >= 8 ? UINT64_MAX : (1ull << (8 * size)) - 1;
}

/* Can the region answer the access in one piece? */
static bool region_holds(const struct region *region, uint64_t address, unsigned size)
{
    return !region->is_byte_wide && range_fits(address - region->base, size, region->size);
}

static void access_count(_Atomic uint64_t *count)
{
    atomic_fetch_add_explicit(count, 1, memory_order_relaxed);
}

uint32_t bus_port_read(struct bus *bus, uint16_t port, unsigned size)
{
    struct slot *slot;
    struct region *region = port_find(bus, port, &slot);
    if (size > 1 && (!region || !region_holds(region, port, size))) {
        slot_release(slot);
        uint32_t value = 0;
        for (unsigned i = 0; i < size; i++) {
            value |= bus_port_read(bus, (uint16_t)(port + i), 1) << (8 * i);
        }
        return value;
    }
    if (!region) {
        return 0xff;
    }
    access_count(&region->reads);
    uint64_t value = region->ops->read(region->owner, port - region->base, size);
    slot_release(slot);
    return (uint32_t)(value & ones(size));
}

void bus_port_write(struct bus *bus, uint16_t port, unsigned size, uint32_t value)
{
    struct slot *slot;
    struct region *region = port_find(bus, port, &slot);
    if (size > 1 && (!region || !region_holds(region, port, size))) {
        slot_release(slot);
        for (unsigned i = 0; i < size; i++) {
            bus_port_write(bus, (uint16_t)(port + i), 1, (uint8_t)(value >> (8 * i)));
        }
        return;
    }
    if (region) {
        access_count(&region->writes);
        region->ops->write(region->owner, port - region->base, size, value & ones(size));
        slot_release(slot);
    }
}

uint64_t bus_mmio_read(struct bus *bus, uint64_t address, unsigned size)
{
    struct slot *slot;
    struct region *region = mmio_find(bus, address, &slot);
    if (size > 1 && (!region || !region_holds(region, address, size))) {
        slot_release(slot);
        uint64_t value = 0;
        for (unsigned i = 0; i < size; i++) {
            value |= bus_mmio_read(bus, address + i, 1) << (8 * i);
        }
        return value;
    }
    if (!region) {
        return 0xff;
    }
    access_count(&region->reads);
    uint64_t value = region->ops->read(region->owner, address - region->base, size);
    slot_release(slot);
    return value & ones(size);
}

void bus_mmio_write(struct bus *bus, uint64_t address, unsigned size, uint64_t value)
{
    struct slot *slot;
    struct region *region = mmio_find(bus, address, &slot);
    if (size > 1 && (!region || !region_holds(region, address, size))) {
        slot_release(slot);
        for (unsigned i = 0; i < size; i++) {
            bus_mmio_write(bus, address + i, 1, (uint8_t)(value >> (8 * i)));
        }
        return;
    }
    if (region) {
        access_count(&region->writes);
        region->ops->write(region->owner, address - region->base, size, value & ones(size));
        slot_release(slot);
    }
}

void bus_visit(struct bus *bus,
               void (*tell)(void *owner, const struct region *region, bool is_port), void *owner)
{
    pthread_mutex_lock(&bus->lock);
    for (unsigned i = 0; i < SLOTS; i++) {
        const struct region *region = atomic_load(&bus->slots[i].region);
        if (bus->slots[i].taken && region) {
            tell(owner, region, atomic_load(&bus->slots[i].is_port));
        }
    }
    pthread_mutex_unlock(&bus->lock);
}
