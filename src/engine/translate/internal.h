/*
 * The inside of translate: what its files share.
 *
 * A guest basic block and what follows it becomes a *unit* of host code. Units run with
 *
 *     GS base  the vCPU block (struct block), aliased once for each cached address space
 *     RSP      a private stack of {host return address, guest return address} frames, one for
 *              each privilege, so that host CALL and RET predict the guest's
 *     R9       the guest's RSP
 *     R10 R11  scratch; the guest's R9, R10 and R11 live in the block
 *     others   the guest's own registers (hot code may have others of them in the block:
 *              compile_assign.c); vector state stays in the CPU
 *     flags    the guest's arithmetic flags, or saved in the block (enum flags_home)
 *
 * docs/translate.md tells the whole story.
 */
#pragma once

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "engine/interp/interp.h"
#include "engine/translate/block.h"
#include "engine/translate/unit.h"

struct translate_vm {
    struct engine_config config;
    struct cache cache;
    struct stubs stubs;
    pthread_mutex_t lock; /* guards units, sites, pages, cache */
    struct unit *units;
    uint32_t unit_count;
    uint32_t *unit_hash;
    struct site *sites;
    uint32_t site_count;
    uint32_t link_count[PRIVILEGES];
    uint32_t links_ready[PRIVILEGES]; /* slots below hold an address in every vCPU */
    /* Slots given out so far; they are used in turn. */
    uint32_t slot_count[PRIVILEGES][TLB_ACCESSES];
    uint64_t shunned[SHUNNED_ENTRIES]; /* guest-physical addresses of instructions: heat.c */
    _Atomic uint32_t generation;       /* counts units_forget(): older site numbers mean nothing */
    struct page_units *pages;
    uint32_t page_count;
    uint32_t *page_hash;
    uint32_t checked_pages[CHECKED_PAGES_MAX]; /* numbers in `pages` */
    _Atomic uint32_t checked_count;
    bool had_checked_units; /* since units_forget(): stale look-ups may lead to some */
    uint64_t next_review;   /* of the checked pages: cycles of the host */
    struct block *blocks[8];
    unsigned block_count;
    struct engine_counters counters; /* of threads that are no vCPU's; guarded by a lock each */

    /* stop the world: see world.c */
    pthread_mutex_t world_lock;
    pthread_cond_t world_changed;
    pthread_mutex_t stopper; /* held by whoever has stopped the world */
    bool world_stopping;
    struct drop {
        uint64_t first, count;
        bool write_only;
    } drops[64];
    unsigned drop_count;
    bool drop_everything;
};

/*
 * Between two looks at units_until no more instructions than these are executed: a unit's, and one
 * in the shadow of another.
 */
enum { DEADLINE_REACH = UNIT_MAX_INSTRUCTIONS + 2 };

/* Of kernel code: some 10 us, longer than most locks are held by who runs. */
enum { PAUSES_UNTIL_YIELD = 256 };

/* How long a halted vCPU may look for a kick before it sleeps: what sleep and wake-up cost. */
enum { POLL_FIRST_NS = 10000, POLL_MOST_NS = 50000 };

/* Kick bits of this engine. */
enum {
    KICK_WORLD = 1u << 8,     /* come to a safe point */
    KICK_CODE = 1u << 9,      /* units were retired: forget jump caches, links, private stacks */
    KICK_DEADLINE = 1u << 10, /* a near deadline was set: leave units */
    KICK_HOT = 1u << 11,      /* hot_page is to be compiled anew */
};

/* ---- cache.c ---- */
int cache_init(struct cache *cache, uint32_t size);
void cache_fini(struct cache *cache);
/* The first `stubs` bytes are in use by all: units have the rest, in two parts. */
void cache_divide(struct cache *cache, uint32_t stubs);
/* All code of units is forgotten. */
void cache_clear(struct cache *cache);
/*
 * The code of a part goes up to here now. What is complete is not kept mapped for writing, which
 * would count its memory twice; who patches it maps it again.
 */
void cache_advance(struct cache *cache, enum part part, uint32_t end);
/* Are there `size` bytes left in each part? */
bool cache_has_room(const struct cache *cache, uint32_t size);

/* ---- unit.c: call with vm->lock held ---- */
int units_init(struct translate_vm *vm);
void units_fini(struct translate_vm *vm);
/* `second_page` is where the next virtual page is now (NO_PAGE if it is not mapped). */
struct unit *unit_find(struct translate_vm *vm, uint64_t page, uint64_t second_page,
                       uint16_t offset, uint64_t virtual_page, uint16_t mode);
/* Is there no room for one more unit of any size? Then everything is to be forgotten first. */
bool units_are_full(const struct translate_vm *vm);
/*
 * Keep pages marked as code while their bytes are read, from before memory_set_code() on. All is
 * void if the generation has changed between the two.
 */
void pages_begin_compile(struct translate_vm *vm, uint64_t page, uint64_t second_page);
void pages_end_compile(struct translate_vm *vm, uint64_t page, uint64_t second_page);
void unit_add(struct translate_vm *vm, struct unit *unit);
/* Does user code of the page run as MODE_ANYWHERE units at this address? */
bool page_is_away(const struct page_units *page, gva_t gva);
/* The page is being compiled for user code at this address, maybe for the first time. */
void page_settle(struct translate_vm *vm, uint64_t page, gva_t virtual_page);
/* Before a unit that checks itself is added: make room among its versions. */
void unit_limit_versions(struct translate_vm *vm, const struct unit *unit);
/* The youngest unit with the key of `unit` that is older than it, or NULL. */
struct unit *unit_version(struct translate_vm *vm, const struct unit *unit);
/* A version that another one replaces: not found any more; who runs it goes on to its end. */
void unit_retire(struct translate_vm *vm, struct unit *unit);
static inline struct source *unit_source(const struct translate_vm *vm, const struct unit *unit)
{
    return (struct source *)(vm->cache.write + unit->source);
}
/*
 * These bytes have changed: retire what was made from them, and tell all vCPUs. A page where that
 * happens often gets units that check themselves (page_is_checked()), and is not watched then.
 */
void units_retire(struct translate_vm *vm, gpa_t gpa, uint64_t length);
/* Do units of the page check themselves? (Of no page: no.) */
bool page_is_checked(struct translate_vm *vm, uint64_t page);
/* New code has come to a page: its units go on to check themselves. */
void page_hold_checked(struct translate_vm *vm, uint64_t page);
/* These pages have other frames from now on: retire units that read them. */
void units_drop(struct translate_vm *vm, uint64_t first, uint64_t count);
/* Now and then: pages whose code does not change any more are watched again. */
void units_review(struct translate_vm *vm);
/* Retire the units that have a breakpoint among their bytes. */
void units_retire_breaks(struct translate_vm *vm, const struct debug_points *points);
/* Retire one unit, and tell all vCPUs: it is to be made anew. */
void unit_renew(struct translate_vm *vm, struct unit *unit);
/* The page's user code is hot from now on: its units are made anew. */
void page_make_hot(struct translate_vm *vm, uint64_t page);
/* What is known of a page, or NULL. */
struct page_units *page_find(struct translate_vm *vm, uint64_t page);
/* Forget everything: the cache is full. The world is stopped. */
void units_forget(struct translate_vm *vm);
void site_link(struct translate_vm *vm, uint32_t site, struct unit *target);
/*
 * A SITE_LINK leads to this unit as long as it is not retired and its page is where the link says.
 */
void site_remember(struct translate_vm *vm, uint32_t site, struct unit *target);
/* The unit that owns a host address, or NULL. Async-signal-safe. */
struct unit *unit_at(struct translate_vm *vm, uint64_t host);
/* Of a SITE_READ or SITE_WRITE. */
static inline enum tlb_access site_access(const struct site *site)
{
    return site->kind == SITE_WRITE ? TLB_WRITE : TLB_READ;
}
/* May the unit or page of this number be optimized so? */
static inline bool optimizes(const struct translate_vm *vm, uint32_t number, enum optimization what)
{
    const struct code_policy *policy = &vm->config.code;
    if (policy->without & 1u << what) {
        return false;
    }
    return !policy->random ||
           ((number + policy->random) * 0x9e3779b97f4a7c15ull >> (32 + what) & 1);
}
static inline bool is_anywhere(const struct unit *unit)
{
    return unit->mode & MODE_ANYWHERE;
}
static inline uint32_t unit_number(const struct translate_vm *vm, const struct unit *unit)
{
    return (uint32_t)(unit - vm->units);
}

/* ---- stubs.c ---- */
void stubs_make(struct translate_vm *vm);

/* ---- compile.c ---- */
/*
 * Translate at gva, which is at gpa; the next virtual page is at second_page (or NO_PAGE). The
 * unit `checks` itself, or its pages are watched. False if a page is not RAM.
 */
bool compile(struct block *block, gva_t gva, gpa_t gpa, uint64_t second_page, uint16_t mode,
             bool checks);

/* ---- compile_assign.c ---- */
/*
 * The three guest registers that are to live in the block where code uses registers like this: the
 * usual ones, unless others are worth the exchange.
 */
uint16_t registers_choose(const struct register_use *use);
/* Some three, chosen by a number alone: so tests meet all of them. */
uint16_t registers_choose_any(const struct register_use *use, uint32_t number);

/* ---- space.c ---- */
int spaces_init(struct block *block);
/* Fill in what never may be zero: links and invalid entries. */
void spaces_reset(struct block *block);
/* Make the slots ready that the next unit may use: they are touched no earlier. With vm->lock. */
void links_prepare(struct translate_vm *vm);
/* A slot of the block's current privilege and space gets the address of what it leads to. */
void link_fill(struct block *block, uint32_t link, uint64_t host);
/* Enter a place in the jump cache. */
void jump_fill(struct block *block, enum privilege privilege, uint64_t gva, uint64_t host);
void spaces_fini(struct block *block);
/* A page with user code is at this address in the current space. What it was bound to first stays.
 */
void page_bind(struct block *block, const struct page_units *page, gva_t gva);
/*
 * Is the page at another address than this one, too? A MODE_ANYWHERE unit runs at one address of a
 * space only: there is one slot in it for each of its links.
 */
bool page_is_bound_elsewhere(const struct block *block, const struct page_units *page, gva_t gva);
/* Forget the look-ups of one privilege in the current space. */
void space_forget_lookups(struct block *block, enum privilege privilege);
void spaces_forget_code(struct block *block);
void spaces_drop(struct block *block, uint64_t first, uint64_t count, bool write_only);
/* Empty a private stack: no landing pad of before may be returned to. */
void stack_reset(struct block *block, enum privilege privilege);
void space_activate(struct block *block); /* for the CR3 in state; also after set_state */
extern const struct vcpu_hooks translate_hooks;

enum { DECODED_ENTRIES = 256 };
struct decoded {
    uint64_t key;  /* guest-physical address */
    unsigned form; /* where its form is counted (slow_form_find()) */
    struct insn insn;
};

/* ---- helper.c, helper_memory.c: what stubs call; each returns where to go on ---- */
uint64_t helper_memory(struct block *block, uint32_t site);
uint64_t helper_execute(struct block *block, uint32_t site);
uint64_t helper_link(struct block *block, uint32_t site);
uint64_t helper_poll(struct block *block, uint32_t site);
uint64_t helper_deadline(struct block *block, uint32_t site);
uint64_t helper_fault(struct block *block, uint32_t site);
uint64_t helper_stale(struct block *block, uint32_t site);
uint64_t helper_indirect(struct block *block, uint32_t unused);
uint64_t helper_string(struct block *block, uint32_t site);
uint64_t helper_slot(struct block *block, uint32_t site);
uint64_t helper_fxsave(struct block *block, uint32_t site);
uint64_t helper_fxrstor(struct block *block, uint32_t site);
uint64_t helper_pause(struct block *block, uint32_t site);

/* ---- block.c ---- */
/* Between units and C: bring state together, or take it apart. */
void block_gather(struct block *block);
void block_scatter(struct block *block);
void vectors_save(struct block *block);
void vectors_restore(struct block *block);
/* Renew block->mode from the state. */
void block_renew_mode(struct block *block);

/* ---- wait.c ---- */
/* As engine_ops.kick and engine_ops.wait. */
void block_kick(struct block *block, unsigned kicks, uint8_t sipi_vector);
void block_wait(struct block *block, uint64_t deadline_ns);
/* Can the vCPU, as it stands, answer one of its kicks? */
bool block_has_work(const struct block *block);
/* Give the host CPU to other threads, at a safe point. */
void block_yield(struct block *block);

/* ---- host.c ---- */
/* The machine's calls for this vCPU. */
struct engine_host block_host(struct block *block);

/* ---- lookup.c ---- */
enum step block_translate_fetch(struct block *block, gva_t rip, gpa_t *ret_gpa);
/* Where an instruction at rip would go on, if it can reach the next page; else NO_PAGE. */
uint64_t block_second_page(struct block *block, gva_t rip);
/* Host address of the unit for state.rip, or of the leave stub with the reason set. */
uint64_t block_continue(struct block *block);
/*
 * The same for a unit of some mode: MODE_PLAIN, and MODE_ANYWHERE also where units of that address
 * would run else.
 */
uint64_t block_go_on(struct block *block, uint16_t mode);
/* The mode of the units that run at rip, which is in this page. With vm->lock. */
uint16_t block_variant(struct block *block, uint64_t page, uint64_t rip, uint16_t mode);

/* ---- trace.c ---- */
/* Tell an event, if engine_traces() says that somebody wants it. Any thread; keeps vector state. */
void trace_event(struct translate_vm *vm, struct block *block, enum engine_trace_kind kind,
                 const char *what, const char *detail, uint64_t value);
static inline void block_trace(struct block *block, enum engine_trace_kind kind, const char *what,
                               const char *detail, uint64_t value)
{
    if (engine_traces(&block->vm->config.trace, kind)) {
        trace_event(block->vm, block, kind, what, detail, value);
    }
}
/*
 * Where the host code of each guest instruction begins, noted while a unit is compiled if somebody
 * wants to see units; NULL otherwise.
 */
struct trace_marks *trace_marks_begin(struct translate_vm *vm);
void trace_mark(struct trace_marks *marks, uint32_t host, uint16_t guest, bool is_outline);
void trace_unit_made(struct block *block, const struct unit *unit, const struct trace_marks *marks,
                     const uint8_t *page, uint32_t guest_size, uint32_t instructions);

/* What this thread does outside of units counts as `activity` in samples; returns what it was. */
static inline uint32_t block_set_activity(struct block *block, uint32_t activity)
{
    uint32_t before = atomic_load_explicit(&block->activity, memory_order_relaxed);
    atomic_store_explicit(&block->activity, activity, memory_order_relaxed);
    return before;
}

/* ---- world.c ---- */
void world_init(struct translate_vm *vm);
void world_fini(struct translate_vm *vm);
/*
 * Stop all other vCPUs at safe points (self may be NULL), until world_resume(). `why` is one of
 * COUNT_WORLD_*.
 */
void world_stop(struct translate_vm *vm, struct block *self, enum engine_counter why);
void world_resume(struct translate_vm *vm);
/* A vCPU comes to, or leaves, a safe point. */
void world_park(struct block *block);
void world_unpark(struct block *block);
void world_listen(struct translate_vm *vm);

/* ---- heat.c ---- */
/*
 * Begin to sample this thread, which is the vCPU's. A host that refuses the timer
 * (RLIMIT_SIGPENDING counts them) costs speed only: no code is hot then.
 */
void heat_start(struct block *block);
void heat_stop(struct block *block);
/* The thread was interrupted at this host address. Async-signal-safe; true: raise KICK_HOT. */
bool heat_sample(struct block *block, uint64_t host);
/* KICK_HOT came. */
void heat_answer(struct block *block);
/* Has a slot not paid for the instruction at this place? */
bool slot_is_shunned(const struct translate_vm *vm, gpa_t gpa);

/* ---- signal.c ---- */
enum { KICK_SIGNAL = SIGUSR1 }; /* of kicks and of the sampler's timer */
int signals_init(void);
/* This thread runs units of `block` from now on (NULL: no more). */
void signals_attach(struct block *block);
void signals_kick(struct block *block);
/* The block that this thread runs, or NULL. */
struct block *signals_current(void);

static inline uint64_t cache_address(const struct translate_vm *vm, uint32_t offset)
{
    return (uint64_t)vm->cache.run + offset;
}
static inline enum privilege mode_privilege(uint16_t mode)
{
    return mode & MODE_USER ? PRIVILEGE_USER : PRIVILEGE_KERNEL;
}
/* The tables of the soft TLB for a privilege. */
static inline enum tlb_privilege tlb_privilege(enum privilege privilege)
{
    return privilege == PRIVILEGE_USER ? TLB_USER : TLB_KERNEL;
}
/* Where units of a privilege find their jump cache and links, from the GS base. */
static inline size_t jumps_offset(enum privilege privilege)
{
    return privilege == PRIVILEGE_USER ? SPACE_OFFSET + offsetof(struct space_data, jumps)
                                       : offsetof(struct block, kernel_jumps);
}
static inline size_t links_offset(enum privilege privilege)
{
    return privilege == PRIVILEGE_USER ? SPACE_OFFSET + offsetof(struct space_data, links)
                                       : offsetof(struct block, kernel_links);
}
/* The bit of a page in exec_pages. */
static inline unsigned exec_page_bit(gva_t gva)
{
    return (unsigned)((gva >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 49);
}
/* What stands there for all of a large page: no canonical address. */
static inline gva_t exec_large_page(gva_t gva, uint64_t size)
{
    uint64_t region = tlb_region_size(size);
    return align_down(gva, region) ^ (1ull << 62 | region >> 1);
}
/* The guest-virtual address of a unit that runs, or of a site's target. */
static inline gva_t block_unit_page(const struct block *block, const struct unit *unit)
{
    return is_anywhere(unit) ? block->code_page - 1 : unit->virtual_page;
}
static inline gva_t block_target(const struct block *block, const struct site *site)
{
    const struct unit *unit = &block->vm->units[site->unit];
    return site->target + (is_anywhere(unit) ? block->code_page - 1 : 0);
}
static inline struct jump_entry *block_jumps(struct block *block, enum privilege privilege)
{
    return privilege == PRIVILEGE_USER ? block->space->data->jumps : block->kernel_jumps;
}
