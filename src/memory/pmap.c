/*
 * The pmap: making it, and the transitions of its entries. Each is one compare-exchange from what
 * was seen to what shall be; those that have to outwait old mappings do it between two of them
 * (struct memory_listener says how). Start reading at memory_frame().
 */
#include "memory/memory_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U /* Linux 6.3 */
#endif

static const uint64_t ADDRESS_LIMIT = 1ull << 40;

CLEANUP_DEFINE(struct memory, memory_free)

/* --- life --- */

/* Take over the ranges sorted and with neighbours joined. */
static int take_ranges(struct memory *memory, const struct memory_range *ranges, size_t count)
{
    if (count == 0 || count > RANGES_MAX) {
        return fail(-EINVAL, "RAM of %zu ranges: between 1 and %d are possible", count, RANGES_MAX);
    }
    uint64_t end = 0;
    for (size_t taken = 0; taken < count; taken++) {
        const struct memory_range *next = NULL; /* the lowest that is not below `end` */
        for (size_t i = 0; i < count; i++) {
            if (ranges[i].base >= end && (!next || ranges[i].base < next->base)) {
                next = &ranges[i];
            }
        }
        if (!next) {
            return fail(-EINVAL, "two ranges of RAM overlap");
        }
        if (next->size == 0 || (next->base | next->size) & (PAGE_SIZE - 1) ||
            !range_fits(next->base, next->size, ADDRESS_LIMIT)) {
            return fail(-EINVAL, "RAM of %llu bytes at address 0x%llx is not possible",
                        (unsigned long long)next->size, (unsigned long long)next->base);
        }
        if (memory->range_count > 0 && next->base == end) {
            memory->ranges[memory->range_count - 1].size += next->size;
        } else {
            memory->ranges[memory->range_count].base = next->base;
            memory->ranges[memory->range_count++].size = next->size;
        }
        memory->size += next->size;
        end = next->base + next->size;
    }
    memory->page_limit = end >> PAGE_SHIFT;
    return 0;
}

/* The file that holds the frames; nobody who gets hold of it can cut pages off. */
static int open_file(struct memory *memory, const char *name)
{
    memory->fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (memory->fd < 0 && errno == EINVAL) {
        memory->fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    }
    if (memory->fd < 0) {
        return fail(-errno, "make the memory file: %m");
    }
    uint64_t size = memory->page_limit << PAGE_SHIFT;
    if (ftruncate(memory->fd, (off_t)size) < 0 ||
        fcntl(memory->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0) {
        return fail(-errno, "size the memory file to %llu MiB: %m",
                    (unsigned long long)(size >> 20));
    }
    return 0;
}

static int map(size_t size, int protection, int flags, int fd, void *ret_pointer)
{
    void *mapping = mmap(NULL, size, protection, flags | MAP_NORESERVE, fd, 0);
    if (mapping == MAP_FAILED) {
        return fail(-errno, "map %zu KiB for guest memory: %m", size >> 10);
    }
    *(void **)ret_pointer = mapping;
    return 0;
}

static void mark_holes(struct memory *memory)
{
    uint64_t page = 0;
    for (size_t i = 0; i < memory->range_count; i++) {
        const struct memory_range *range = &memory->ranges[i];
        for (; page < range->base >> PAGE_SHIFT; page++) {
            atomic_init(&memory->entries[page], ENTRY_NONE);
        }
        page = (range->base + range->size) >> PAGE_SHIFT;
    }
}

int memory_new(const struct memory_range *ranges, size_t count, const char *name,
               struct memory **ret_memory)
{
    CLEANUP(memory_free) struct memory *memory = calloc(1, sizeof *memory);
    ASSERT(memory);
    memory->fd = -1;
    pthread_mutex_init(&memory->busy_lock, NULL);
    int r = take_ranges(memory, ranges, count);
    if (r < 0) {
        return r;
    }
    r = open_file(memory, name);
    if (r < 0) {
        return r;
    }
    const int anonymous = MAP_PRIVATE | MAP_ANONYMOUS;
    const int readwrite = PROT_READ | PROT_WRITE;
    uint64_t limit = memory->page_limit;
    if ((r = map(limit << PAGE_SHIFT, readwrite, MAP_SHARED, memory->fd, &memory->frames)) < 0 ||
        (r = map(limit * sizeof(uint64_t), readwrite, anonymous, -1, &memory->entries)) < 0 ||
        (r = map(PAGE_SIZE, PROT_READ, anonymous, -1, &memory->zero_page)) < 0) {
        return r;
    }
    /* A guest's memory is its own business, and too big for a core dump. */
    madvise(memory->frames, limit << PAGE_SHIFT, MADV_DONTDUMP);
    madvise(memory->frames, limit << PAGE_SHIFT, MADV_DONTFORK); /* helpers have no use for it */
    mark_holes(memory);
    *ret_memory = TAKE(memory);
    return 0;
}

void memory_free(struct memory *memory)
{
    if (!memory) {
        return;
    }
    if (memory->frames) {
        munmap(memory->frames, memory->page_limit << PAGE_SHIFT);
    }
    if (memory->entries) {
        munmap(memory->entries, memory->page_limit * sizeof(uint64_t));
    }
    if (memory->zero_page) {
        munmap(memory->zero_page, PAGE_SIZE);
    }
    cleanup_close(&memory->fd);
    pthread_mutex_destroy(&memory->busy_lock);
    free(memory);
}

/* --- listeners --- */

void memory_listen(struct memory *memory, const struct memory_listener *listener)
{
    ASSERT(memory->listener_count < MEMORY_LISTENERS);
    struct memory_listener *copy = &memory->listeners[memory->listener_count++];
    copy->drop = listener->drop;
    copy->quiesce = listener->quiesce;
    copy->code_written = listener->code_written;
    copy->owner = listener->owner;
}

void listeners_drop(struct memory *memory, uint64_t first, uint64_t count, bool write_only)
{
    for (size_t i = 0; i < memory->listener_count; i++) {
        memory->listeners[i].drop(memory->listeners[i].owner, first, count, write_only);
    }
}

void listeners_quiesce(struct memory *memory)
{
    for (size_t i = 0; i < memory->listener_count; i++) {
        memory->listeners[i].quiesce(memory->listeners[i].owner);
    }
}

void listeners_code_written(struct memory *memory, gpa_t gpa, uint64_t length)
{
    for (size_t i = 0; i < memory->listener_count; i++) {
        memory->listeners[i].code_written(memory->listeners[i].owner, gpa, length);
    }
}

/* --- questions --- */

uint64_t memory_page_limit(const struct memory *memory)
{
    return memory->page_limit;
}

uint64_t memory_size(const struct memory *memory)
{
    return memory->size;
}

bool memory_is_ram(const struct memory *memory, gpa_t gpa, uint64_t length)
{
    for (size_t i = 0; i < memory->range_count; i++) {
        const struct memory_range *range = &memory->ranges[i];
        if (gpa >= range->base && range_fits(gpa - range->base, length, range->size)) {
            return true;
        }
    }
    return false;
}

static enum page_state state_of(uint64_t value)
{
    return ((value & ENTRY_STATE) + PAGE_ZERO) & ENTRY_STATE;
}

enum page_state memory_page_state(const struct memory *memory, uint64_t page)
{
    _Atomic uint64_t *entry = entry_of(memory, page);
    return entry ? state_of(atomic_load(entry)) : PAGE_NONE;
}

void memory_count(const struct memory *memory, struct memory_census *ret_census)
{
    bytes_fill(ret_census, 0, sizeof *ret_census);
    for (uint64_t page = 0; page < memory->page_limit; page++) {
        uint64_t value = atomic_load_explicit(&memory->entries[page], memory_order_relaxed);
        ret_census->pages[state_of(value)]++;
        ret_census->code_pages += (value & ENTRY_CODE) != 0;
    }
}

void memory_events(const struct memory *memory, struct memory_events *ret_events)
{
    const memory_order relaxed = memory_order_relaxed;
    ret_events->became_private = atomic_load_explicit(&memory->became_private, relaxed);
    ret_events->settled = atomic_load_explicit(&memory->settled, relaxed);
    ret_events->code_set = atomic_load_explicit(&memory->code_set, relaxed);
    ret_events->code_cleared = atomic_load_explicit(&memory->code_cleared, relaxed);
    ret_events->discarded = atomic_load_explicit(&memory->discarded, relaxed);
}

/* --- becoming PRIVATE --- */

/*
 * Wait for the thread that exchanges frames. It holds the lock for the length of one call of the
 * host and waits for no vCPU, so a vCPU need not be quiet here.
 */
static void entry_wait(struct memory *memory)
{
    pthread_mutex_lock(&memory->busy_lock);
    pthread_mutex_unlock(&memory->busy_lock);
}

static bool is_same_generation(uint64_t a, uint64_t b)
{
    return ((a ^ b) & ENTRY_GENERATION) == 0;
}

/*
 * Outwait the mappings of the frame that a page had before. Several threads may do so for the same
 * page; the first that comes back opens it for stores.
 */
static void page_settle(struct memory *memory, uint64_t page, uint64_t seen)
{
    _Atomic uint64_t *entry = &memory->entries[page];
    listeners_drop(memory, page, 1, false);
    listeners_quiesce(memory);
    uint64_t value = atomic_load(entry);
    while (value & ENTRY_STALE && is_same_generation(value, seen)) {
        if (entry_exchange(entry, &value, value & ~ENTRY_STALE)) {
            return;
        }
    }
}

int page_approach_private(struct memory *memory, uint64_t page, uint64_t value, bool for_store)
{
    _Atomic uint64_t *entry = &memory->entries[page];
    if ((value & ENTRY_STATE) == ENTRY_NONE) {
        return -EFAULT;
    }
    if (value & ENTRY_BUSY) {
        entry_wait(memory);
    } else if ((value & ENTRY_STATE) == ENTRY_ZERO) {
        /* The page's place in the file reads as zeros: a hole, or punched. */
        uint64_t desired = (value & ~ENTRY_STATE) | ENTRY_PRIVATE;
        if (value & ENTRY_MAPPED_READ) {
            desired |= ENTRY_STALE;
        }
        if (entry_exchange(entry, &value, desired)) {
            event_count(&memory->became_private);
        }
    } else if (for_store) {
        event_count(&memory->settled);
        page_settle(memory, page, value);
    }
    return 0;
}

/* --- mappings --- */

static enum frame_result frame_for_reading(struct memory *memory, uint64_t page,
                                           _Atomic uint64_t *entry, uint8_t **ret_frame)
{
    uint64_t value = atomic_load(entry);
    for (;;) {
        uint64_t state = value & ENTRY_STATE;
        if (state == ENTRY_NONE) {
            return FRAME_NONE;
        }
        if (value & ENTRY_BUSY) {
            entry_wait(memory);
            value = atomic_load(entry);
            continue;
        }
        uint64_t desired = value | ENTRY_MAPPED_READ;
        if (value & ENTRY_CLOSING) {
            desired = (desired & ~ENTRY_CLOSING) + ENTRY_NEXT_GENERATION;
        }
        if (desired == value || entry_exchange(entry, &value, desired)) {
            *ret_frame = state == ENTRY_ZERO ? memory->zero_page : frame_of(memory, page);
            return FRAME_OK;
        }
    }
}

static enum frame_result frame_for_writing(struct memory *memory, uint64_t page,
                                           _Atomic uint64_t *entry, uint8_t **ret_frame)
{
    uint64_t value = atomic_load(entry);
    for (;;) {
        if ((value & ENTRY_STATE) == ENTRY_NONE) {
            return FRAME_NONE;
        }
        if (value & ENTRY_CODE) {
            return FRAME_CODE;
        }
        if ((value & (ENTRY_STATE | ENTRY_BUSY | ENTRY_STALE)) != ENTRY_PRIVATE) {
            int r = page_approach_private(memory, page, value, true);
            ASSERT(r == 0);
            value = atomic_load(entry);
            continue;
        }
        /* A frame for writing serves reads as well. */
        uint64_t desired = value | ENTRY_MAPPED_READ | ENTRY_MAPPED_WRITE | ENTRY_DIRTY_ALL;
        if (value & ENTRY_CLOSING) {
            desired = (desired & ~ENTRY_CLOSING) + ENTRY_NEXT_GENERATION;
        }
        if (desired == value || entry_exchange(entry, &value, desired)) {
            *ret_frame = frame_of(memory, page);
            return FRAME_OK;
        }
    }
}

enum frame_result memory_frame(struct memory *memory, uint64_t page, bool write,
                               uint8_t **ret_frame)
{
    _Atomic uint64_t *entry = entry_of(memory, page);
    if (!entry) {
        return FRAME_NONE;
    }
    return write ? frame_for_writing(memory, page, entry, ret_frame)
                 : frame_for_reading(memory, page, entry, ret_frame);
}

/* --- code --- */

/* Set the bit; `*ret_value` is the entry that it was set in. */
static int entry_set_code(_Atomic uint64_t *entry, uint64_t *ret_value)
{
    uint64_t value = atomic_load(entry);
    do {
        if ((value & ENTRY_STATE) == ENTRY_NONE) {
            return -EFAULT;
        }
        if (value & ENTRY_WRITE_PINS) {
            return -EBUSY;
        }
    } while (!(value & ENTRY_CODE) && !entry_exchange(entry, &value, value | ENTRY_CODE));
    *ret_value = value;
    return 0;
}

int memory_set_code(struct memory *memory, uint64_t page)
{
    _Atomic uint64_t *entry = entry_of(memory, page);
    if (!entry) {
        return -EFAULT;
    }
    for (;;) {
        uint64_t seen;
        int r = entry_set_code(entry, &seen);
        if (r < 0 || !(seen & ENTRY_MAPPED_WRITE)) {
            return r;
        }
        event_count(&memory->code_set);
        /* No new mapping for writing is handed out from here on; outwait the old ones. */
        listeners_drop(memory, page, 1, true);
        listeners_quiesce(memory);
        uint64_t value = atomic_load(entry);
        while (value & ENTRY_CODE && is_same_generation(value, seen)) {
            if (entry_exchange(entry, &value, value & ~ENTRY_MAPPED_WRITE)) {
                return 0;
            }
        }
        /* The page had another fate meanwhile, and the bit may be gone: once more. */
    }
}

void memory_clear_code(struct memory *memory, uint64_t page)
{
    _Atomic uint64_t *entry = entry_of(memory, page);
    uint64_t value = entry ? atomic_load(entry) : 0;
    while (value & ENTRY_CODE) {
        if (entry_exchange(entry, &value, (value & ~ENTRY_CODE) + ENTRY_NEXT_GENERATION)) {
            event_count(&memory->code_cleared);
            return;
        }
    }
}

/* --- dirty bits --- */

void memory_take_dirty(struct memory *memory, enum dirty_consumer consumer, uint64_t first,
                       uint64_t count, uint64_t *bitmap)
{
    ASSERT(first % 64 == 0 && count % 64 == 0);
    bytes_fill(bitmap, 0, count / 8);
    bool dropped = false;
    uint64_t run = 0; /* pages before this one whose mappings for writing have to go */
    for (uint64_t i = 0; i <= count; i++) {
        _Atomic uint64_t *entry = i < count ? entry_of(memory, first + i) : NULL;
        uint64_t value = entry ? atomic_load_explicit(entry, memory_order_relaxed) : 0;
        if (value & ENTRY_DIRTY(consumer)) {
            value = atomic_fetch_and(entry, ~ENTRY_DIRTY(consumer));
            bitmap[i / 64] |= 1ull << (i % 64);
        }
        if (value & ENTRY_DIRTY(consumer) && value & ENTRY_MAPPED_WRITE) {
            run++;
        } else if (run > 0) {
            listeners_drop(memory, first + i - run, run, true);
            dropped = true;
            run = 0;
        }
    }
    if (dropped) {
        listeners_quiesce(memory);
    }
}
