/*
 * Guest-physical memory: the pmap.
 *
 * Purpose: one entry for each guest-physical page says where its contents are and who depends on
 *          them. Every memory technique is a state of that entry (docs/memory.md).
 * Knows:   pages, frames, states, listeners. Knows no CPU, no device, no guest-virtual address.
 * Doors:   memory_read/write for a few bytes; memory_borrow/return for direct memory access by
 *          devices; memory_frame for engines, which map pages into their soft TLBs; the atomic
 *          door memory_compare_exchange for page-table bits. There is no other way in.
 * Threads: any thread may call any door. Waiting (a transition of a page) happens only inside
 *          doors that say so, and never while the caller may hold another room's lock.
 * Start reading at: struct memory_listener, then pmap.c.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PAGE_SHIFT = 12, PAGE_SIZE = 1 << PAGE_SHIFT };

typedef uint64_t gpa_t; /* a guest-physical address */
typedef uint64_t gva_t; /* a guest-virtual (linear) address */

/* Where the contents of a page are. The order is part of the saved format. */
enum page_state {
    PAGE_NONE,          /* no RAM at this address */
    PAGE_ZERO,          /* all zeros, no frame */
    PAGE_PRIVATE,       /* in the VM's memory file at offset = guest-physical address */
    PAGE_SHARED,        /* in a frame of the page store, read-only, copied on write */
    PAGE_FROZEN,        /* in an immutable layer, copied on write */
    PAGE_ABSENT_FILE,   /* in a snapshot file */
    PAGE_ABSENT_REMOTE, /* at a migration source */
    PAGE_SWAPPED,       /* in the VM's swap file */
    PAGE_BALLOONED,     /* given back by the guest: contents undefined, no frame */
};

/* A range of RAM in guest-physical space; both fields multiples of PAGE_SIZE. */
struct memory_range {
    gpa_t base;
    uint64_t size;
};

struct memory;

/*
 * What an engine (or any holder of derived mappings) tells memory about itself.
 *
 * A transition of a page has two phases. First its entry changes so that no new mapping of the
 * old kind is handed out. Then drop() runs on every listener, and quiesce() after it: it returns
 * when no use of what was dropped is in progress. Only then does the new state count.
 *
 * Memory holds no lock during the two calls, any number of threads may be in them at once, and no
 * door ever waits for another thread's transition to end: whoever finds a page in one either goes
 * along with it, calls it off, or runs the same two calls itself. So quiesce() is the only place
 * where a door waits for a vCPU, and it cannot deadlock if the engine keeps these rules:
 * - A vCPU is quiet while it is outside of guest code: halted, in a call of the machine (where it
 *   may wait for locks of devices), or inside quiesce() itself.
 * - A vCPU that stops being quiet looks for drops that it missed before it uses any mapping.
 * - So each door that says that it may wait is a safe point of the vCPU that calls it: frames and
 *   TLB entries that were looked up before the call are void after it, and have to be looked up
 *   again. Between memory_frame() and the entry of its frame into a TLB there is no safe point.
 */
struct memory_listener {
    /* Forget every mapping of these pages (writable ones only, if `write_only`). Any thread. */
    void (*drop)(void *owner, uint64_t first_page, uint64_t count, bool write_only);
    /* Wait until no vCPU uses a mapping whose drop() was called before. Any thread. */
    void (*quiesce)(void *owner);
    /*
     * Bytes of a page marked as code have just changed by a store that went through a door:
     * translations of them must go before this call returns. The bytes are in memory already, so
     * a translator takes note of its interest in a page before it reads the page's bytes, and
     * throws its unit away if this call came in between. Any thread.
     */
    void (*code_written)(void *owner, gpa_t gpa, uint64_t length);
    void *owner;
};

/*
 * Make the RAM of a VM. Nothing is reserved or touched: pages begin as ZERO. Ranges must not
 * overlap, and end below 1 TiB. `name` is that of the memory file in /proc/PID/maps.
 */
int memory_new(const struct memory_range *ranges, size_t count, const char *name,
               struct memory **ret_memory) __attribute__((warn_unused_result));
void memory_free(struct memory *memory);

/* One listener for each engine; at most MEMORY_LISTENERS. Before any vCPU runs; it is copied. */
enum { MEMORY_LISTENERS = 4 };
void memory_listen(struct memory *memory, const struct memory_listener *listener);

/* The highest guest-physical page number of RAM, plus one. */
uint64_t memory_page_limit(const struct memory *memory);
/* Bytes of RAM in all. */
uint64_t memory_size(const struct memory *memory);
/* Is all of [gpa, gpa + length) RAM? Overflow is answered with no. */
bool memory_is_ram(const struct memory *memory, gpa_t gpa, uint64_t length);
enum page_state memory_page_state(const struct memory *memory, uint64_t page);

/*
 * The doors for a few bytes (and for many: no length is too long). -EFAULT if the range is not all
 * RAM: then nothing was copied. 1, 2, 4 or 8 aligned bytes are one access. A write to a code page
 * runs code_written() after the bytes are in memory. A write may wait, a read does not. General
 * registers only.
 */
int memory_read(struct memory *memory, gpa_t gpa, void *buffer, uint64_t length)
    __attribute__((warn_unused_result));
int memory_write(struct memory *memory, gpa_t gpa, const void *buffer, uint64_t length)
    __attribute__((warn_unused_result));
/*
 * An aligned load, and an atomic compare-exchange, of 4 or 8 bytes (page-table entries). The
 * exchange behaves as a store for dirty and code tracking, and may wait. Returns -EFAULT outside
 * RAM, -EINVAL if not aligned; otherwise 0, with the value found in `ret_found`.
 */
int memory_load(struct memory *memory, gpa_t gpa, unsigned size, uint64_t *ret_value)
    __attribute__((warn_unused_result));
int memory_compare_exchange(struct memory *memory, gpa_t gpa, unsigned size, uint64_t expected,
                            uint64_t desired, uint64_t *ret_found)
    __attribute__((warn_unused_result));

/* What memory_frame() found. */
enum frame_result {
    FRAME_OK,   /* map it with the asked-for access */
    FRAME_CODE, /* a page with translations, now or a moment ago: store through memory_write() */
    FRAME_NONE, /* not RAM */
};
/*
 * The engine's door: the host address of a page's frame for reading, or for reading and writing.
 * The caller may use it until its drop() runs. A writable frame marks the page dirty. Asking for
 * writing may wait. For threads that quiesce() knows (vCPUs) only. General registers only.
 */
enum frame_result memory_frame(struct memory *memory, uint64_t page, bool write,
                               uint8_t **ret_frame);

/*
 * Mark a page as code: from the return of this call on, each store to it runs code_written(). May
 * wait: mappings for writing, if any were handed out, are dropped and waited for. -EBUSY while a
 * device has borrowed the page for writing: what is translated now may not be kept. -EFAULT if
 * not RAM. A memory_clear_code() during this call is undone by it; the caller sees to it that none
 * comes after, between this call and the unit that it is for.
 */
int memory_set_code(struct memory *memory, uint64_t page) __attribute__((warn_unused_result));
/* No translation depends on the page any more: stores to it may go the fast way. */
void memory_clear_code(struct memory *memory, uint64_t page);

/*
 * Direct memory access. A span is one host-contiguous piece; guest-physical ranges are not
 * host-contiguous in general. Borrow pins the pages (no transition, no sharing, and no lasting
 * translation while borrowed for writing); return unpins, marks written pages dirty and runs
 * code_written(): do it before the completion becomes visible to the guest.
 */
struct memory_span {
    uint8_t *host;
    uint64_t length;
    gpa_t gpa;
    bool is_write; /* memory_return() needs to know */
};
/*
 * Returns the number of spans used (at most `max`), -EFAULT if the range is not all RAM, -E2BIG
 * if `max` spans do not reach, -EBUSY if a page is borrowed very many times already; on failure
 * nothing stays borrowed. Borrowing for writing may wait. `written` of the return tells whether a
 * borrow for writing was made use of.
 */
int memory_borrow(struct memory *memory, gpa_t gpa, uint64_t length, bool write,
                  struct memory_span *spans, size_t max) __attribute__((warn_unused_result));
void memory_return(struct memory *memory, const struct memory_span *spans, size_t count,
                   bool written);

/*
 * The contents of these pages are no longer needed: PRIVATE pages become ZERO and their frames go
 * back to the host. Pages in use by a door or a device meanwhile are left alone. May wait. -EFAULT
 * if not all RAM; partial pages are refused with -EINVAL.
 */
int memory_discard(struct memory *memory, gpa_t gpa, uint64_t length)
    __attribute__((warn_unused_result));

/* How many pages are in each state (indexed by enum page_state). */
struct memory_census {
    uint64_t pages[PAGE_BALLOONED + 1];
    uint64_t code_pages;
};
void memory_count(const struct memory *memory, struct memory_census *ret_census);

/* How often pages changed since the memory was made. Any thread. */
struct memory_events {
    uint64_t became_private; /* got a frame */
    uint64_t settled;        /* old mappings had to be outwaited for that */
    uint64_t code_set;       /* stores that were mapped had to be outwaited for a mark as code */
    uint64_t code_cleared;
    uint64_t discarded; /* frames given back to the host */
};
void memory_events(const struct memory *memory, struct memory_events *ret_events);

/* Consumers of dirty bits; each has its own bit for every page. */
enum dirty_consumer { DIRTY_MIGRATION, DIRTY_SNAPSHOT, DIRTY_CONSUMERS };
/*
 * Take and clear the dirty bits of `count` pages from `first` (both multiples of 64) into
 * `bitmap`; pages that are not RAM are clean. Write mappings of the dirty pages are dropped and
 * waited for: every store that the bits tell of is in memory on return. One thread for each
 * consumer.
 */
void memory_take_dirty(struct memory *memory, enum dirty_consumer consumer, uint64_t first,
                       uint64_t count, uint64_t *bitmap);
