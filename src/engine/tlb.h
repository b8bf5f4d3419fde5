/*
 * The soft TLB: from a page of guest-virtual addresses to the host address of its frame.
 *
 * Reads and writes have tables of their own, for each privilege. A lookup computes
 *
 *     distance = address - entry.tag
 *     hit      = distance <= PAGE_SIZE - access size
 *     host     = entry.host + distance
 *
 * so that one unsigned comparison answers "same page?", "allowed?" and "does it stay inside the
 * page?" at once. An entry that must not hit carries a tag whose index bits differ from its own
 * index: no address that is looked up there can be within a page of it, nor can a run of up to a
 * page that begins at one reach it. Two tables also keep the source and the destination of a copy
 * from evicting each other.
 *
 * Behind the tables stands a second level of more entries, which units ask before they call C. What
 * it holds is in no other way different; it is forgotten as a whole, by a new generation.
 *
 * Beside the tables there are slots: copies of single entries, each for one place in hot code that
 * mostly comes back to the same page. Nothing has to be computed to find one. Places may have to
 * share one, but only those that an entry of the same table serves.
 *
 * Threads: a TLB belongs to its vCPU's thread. Other threads ask for drops by kicks.
 */
#pragma once

#include <stdint.h>

#include "memory/memory.h"
#include "x86/walk.h"

enum { TLB_BITS = 12, TLB_ENTRIES = 1 << TLB_BITS };
/* Entries are looked after by blocks: most are empty most of the time. */
enum { TLB_BLOCK_BITS = 6, TLB_BLOCK = 1 << TLB_BLOCK_BITS, TLB_BLOCKS = TLB_ENTRIES / TLB_BLOCK };
enum tlb_block_flags { TLB_BLOCK_USED = 1, TLB_BLOCK_LOCAL = 2 };

struct tlb_entry {
    uint64_t tag;
    uint64_t host; /* host address of the frame */
};

/* An access hits if address - tag <= PAGE_SIZE - size, as with an entry. */
struct tlb_slot {
    uint64_t tag;
    uint64_t host;
    uint64_t since;       /* host TSC when changes_left was set */
    int32_t changes_left; /* of its page, until somebody asks whether it changes too often */
};
/*
 * What an empty slot holds: only addresses that are not canonical hit it, and what they find on
 * the host is not canonical either, so the access faults.
 */
#define TLB_SLOT_EMPTY   (1ull << 63)
#define TLB_SLOT_NOWHERE (1ull << 62)
enum { TLB_SLOTS = 512 }; /* for each table */

enum tlb_privilege { TLB_KERNEL, TLB_USER, TLB_PRIVILEGES };
enum tlb_access { TLB_READ, TLB_WRITE, TLB_ACCESSES };

#define TLB_GLOBAL (1ull << 63)

/*
 * A large page is entered in pieces, and INVLPG anywhere in it is for all of them (SDM volume 3,
 * 4.10.2.3). Regions where there may be such pieces are noted; of pages above 4 MiB only the half
 * of the addresses that they are in.
 */
enum { TLB_REGION_SHIFT = 22, TLB_REGION_BITS = 8, TLB_REGIONS = 2 << TLB_REGION_BITS };

/* A page of this size lies in one region of the size returned. */
static inline uint64_t tlb_region_size(uint64_t page_size)
{
    return page_size > 1ull << TLB_REGION_SHIFT ? page_size : 1ull << TLB_REGION_SHIFT;
}

/* An entry of the second level; a TLB_USER page and a TLB_KERNEL page may share its place. */
struct tlb_second {
    uint64_t key; /* the page's address, and the second_key of those who may use it */
    uint64_t host;
    uint64_t page; /* as in tlb.pages */
};
enum { TLB_SECOND_BITS = 13, TLB_SECOND_ENTRIES = 1 << TLB_SECOND_BITS };
/* Generations begin at 1, and stand above the privilege in the lower bits of a key. */
enum { TLB_GENERATION_SHIFT = 1, TLB_GENERATIONS = 1 << (PAGE_SHIFT - TLB_GENERATION_SHIFT) };

struct tlb {
    struct tlb_entry entries[TLB_PRIVILEGES][TLB_ACCESSES][TLB_ENTRIES];
    /* The guest-physical page of each entry, and TLB_GLOBAL: looked at only to drop entries. */
    uint64_t pages[TLB_PRIVILEGES][TLB_ACCESSES][TLB_ENTRIES];
    /* Does a block hold any entries, any that are not global? enum tlb_block_flags. */
    uint8_t blocks[TLB_PRIVILEGES][TLB_ACCESSES][TLB_BLOCKS];
    /* The region of each place that has pieces of large pages (0: none has, 1: several have). */
    uint64_t large_local[TLB_REGIONS], large_global[TLB_REGIONS];
    bool huge[2];
    struct tlb_second second[TLB_ACCESSES][TLB_SECOND_ENTRIES];
    uint64_t second_key[TLB_PRIVILEGES][TLB_ACCESSES]; /* generation and privilege */
    bool slots_used[TLB_PRIVILEGES];                   /* some may not be empty */
    struct tlb_slot slots[TLB_PRIVILEGES][TLB_ACCESSES][TLB_SLOTS];
    struct walk_cache walk_cache;
};

static inline unsigned tlb_index(gva_t gva)
{
    return (gva >> PAGE_SHIFT) & (TLB_ENTRIES - 1);
}

static inline unsigned tlb_second_index(gva_t gva)
{
    uint32_t page = (uint32_t)(gva >> PAGE_SHIFT);
    return (page ^ page >> TLB_SECOND_BITS) & (TLB_SECOND_ENTRIES - 1);
}

/* A tag that no address of this index is within a page of, on either side. */
static inline uint64_t tlb_invalid_tag(unsigned index)
{
    return (uint64_t)(index ^ 2) << PAGE_SHIFT;
}

/* Make an empty one of zeroed memory, most of which it does not touch. */
void tlb_init(struct tlb *tlb);
void tlb_flush_all(struct tlb *tlb);
void tlb_flush_non_global(struct tlb *tlb);
void tlb_flush_page(struct tlb *tlb, gva_t gva);
/* Drop what maps these guest-physical pages (only the right to write, if `write_only`). */
void tlb_drop_physical(struct tlb *tlb, uint64_t first_page, uint64_t count, bool write_only);

struct vcpu;

/* The outcome of a fill. */
enum tlb_fill {
    TLB_FILLED, /* the entry hits now, for this access */
    TLB_FAULT,  /* vcpu->exception holds the #PF (or #GP, #SS for a non-canonical address) */
    TLB_SLOW,   /* RAM that is watched (code), not RAM, or across a page: use mmu_read/mmu_write */
};

/*
 * Walk and enter the page of `gva` for an access (PF_WRITE, PF_USER). Never fills across a page.
 * General registers only.
 */
enum tlb_fill tlb_fill(struct vcpu *vcpu, gva_t gva, uint32_t access);
/* The same, and where the byte at `gva` is in guest-physical space (unless TLB_FAULT). */
enum tlb_fill tlb_translate(struct vcpu *vcpu, gva_t gva, uint32_t access, gpa_t *ret_gpa);

/*
 * How many of the `size` bytes from `gva` on lie in one piece of host memory that may be used for
 * an access (PF_WRITE, PF_USER), and where. 0: not even the first, mmu_read() and mmu_write() say
 * why. All pages of the piece count as accessed. Void after the vCPU's next safe point, which may
 * be inside the call itself. General registers only.
 */
uint64_t tlb_span(struct vcpu *vcpu, gva_t gva, uint64_t size, uint32_t access, uint8_t **ret_host);
