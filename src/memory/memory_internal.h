/*
 * The pmap entry: one 64-bit word for each guest-physical page, changed by atomic operations only.
 *
 *   bits  0..3   the state, counted from PAGE_ZERO so that fresh, untouched table memory means ZERO
 *   bits  4..11  flags
 *   bits 12..31  pins: doors and borrows that use the frame right now
 *   bits 32..47  write pins: those among them that are borrows for writing
 *   bits 48..63  the generation: tells a thread that comes back from a grace period whether the
 *                page had another fate meanwhile
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "memory/memory.h"

#define ENTRY_STATE 0xfull
/* A thread is about to exchange the frame, and waits for nobody; see entry_wait(). */
#define ENTRY_BUSY (1ull << 4)
/* Wanted back: fine to use, but who hands out a mapping calls that off (clears the flag). */
#define ENTRY_CLOSING (1ull << 5)
/* Mappings of the frame that the page had before may be in use: no store before they are gone. */
#define ENTRY_STALE (1ull << 6)
#define ENTRY_CODE  (1ull << 7)
/* Mappings for reading, for writing, have been handed out since they were last dropped. */
#define ENTRY_MAPPED_READ     (1ull << 8)
#define ENTRY_MAPPED_WRITE    (1ull << 9)
#define ENTRY_DIRTY(consumer) (1ull << (10 + (consumer)))
#define ENTRY_DIRTY_ALL       (ENTRY_DIRTY(DIRTY_MIGRATION) | ENTRY_DIRTY(DIRTY_SNAPSHOT))
#define ENTRY_PIN             (1ull << 12)
#define ENTRY_PINS            (0xfffffull << 12)
#define ENTRY_WRITE_PIN       (1ull << 32)
#define ENTRY_WRITE_PINS      (0xffffull << 32)
#define ENTRY_GENERATION      (0xffffull << 48)
#define ENTRY_NEXT_GENERATION (1ull << 48) /* add: it wraps around by itself */

#define ENTRY_ZERO    0ull
#define ENTRY_PRIVATE 1ull
#define ENTRY_NONE    15ull

enum { RANGES_MAX = 16 };

struct memory {
    _Atomic uint64_t *entries; /* of pages 0 to page_limit - 1 */
    uint8_t *frames;           /* the memory file: offset = guest-physical address */
    uint8_t *zero_page;        /* read-only for the CPU too */
    uint64_t page_limit;
    uint64_t size;
    struct memory_range ranges[RANGES_MAX]; /* sorted, neighbours joined */
    size_t range_count;
    struct memory_listener listeners[MEMORY_LISTENERS];
    size_t listener_count;
    _Atomic uint64_t became_private, settled, code_set, code_cleared, discarded; /* events so far */
    int fd;
    pthread_mutex_t busy_lock; /* held by the thread that has set ENTRY_BUSY anywhere */
};

/* The entry of a page, or NULL beyond the last RAM. */
static inline _Atomic uint64_t *entry_of(const struct memory *memory, uint64_t page)
{
    return page < memory->page_limit ? &memory->entries[page] : NULL;
}

static inline uint8_t *frame_of(const struct memory *memory, uint64_t page)
{
    return memory->frames + (page << PAGE_SHIFT);
}

/* On failure `*value` is what the entry holds now. */
static inline bool entry_exchange(_Atomic uint64_t *entry, uint64_t *value, uint64_t desired)
{
    return atomic_compare_exchange_weak(entry, value, desired);
}

/*
 * Bring a page nearer to PRIVATE without BUSY, and without STALE if `for_store`: one step, after
 * which the caller looks again. -EFAULT if it is not RAM. May wait.
 */
int page_approach_private(struct memory *memory, uint64_t page, uint64_t value, bool for_store);

static inline void event_count(_Atomic uint64_t *event)
{
    atomic_fetch_add_explicit(event, 1, memory_order_relaxed);
}

/* Tell the listeners. */
void listeners_drop(struct memory *memory, uint64_t first, uint64_t count, bool write_only);
void listeners_quiesce(struct memory *memory);
void listeners_code_written(struct memory *memory, gpa_t gpa, uint64_t length);
