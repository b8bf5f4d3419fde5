/*
 * The page walk: from a linear to a guest-physical address through the guest's page tables, for
 * no paging, 32-bit, PAE and 4-level paging. SDM volume 3, chapter 4. General registers only.
 */
#pragma once

#include "memory/memory.h"
#include "x86/cpu_state.h"

/* Page-table entry bits. SDM volume 3, table 4-20. */
enum {
    PTE_P = 1u << 0,
    PTE_W = 1u << 1,
    PTE_U = 1u << 2,
    PTE_PWT = 1u << 3,
    PTE_PCD = 1u << 4,
    PTE_A = 1u << 5,
    PTE_D = 1u << 6,
    PTE_PS = 1u << 7,
    PTE_G = 1u << 8,
};
#define PTE_NX (1ull << 63)

/* Bits of the #PF error code. SDM volume 3, 4.7. They also name the access that is asked for. */
enum {
    PF_PRESENT = 1u << 0,
    PF_WRITE = 1u << 1,
    PF_USER = 1u << 2,
    PF_RESERVED = 1u << 3,
    PF_FETCH = 1u << 4,
    /* Not in error codes: an access to the GDT, IDT, TSS...; SMAP holds although AC is set. */
    WALK_IMPLICIT = 1u << 31,
};

/* What decides the meaning of a walk, taken from cpu_state by walk_mode(). */
struct walk_mode {
    uint64_t cr3;
    uint64_t cr4;
    uint64_t rflags; /* AC matters with SMAP */
    uint32_t cr0;
    uint32_t efer;
    uint64_t pdpte[4];     /* PAE: the four registers loaded by MOV CR3 */
    uint8_t physical_bits; /* MAXPHYADDR of the guest's CPU model */
    bool gib_pages;
};

struct walk_result {
    gpa_t gpa;          /* of the byte asked for */
    uint64_t page_size; /* 4096, 2 MiB, 4 MiB or 1 GiB as the tables say */
    bool writable;      /* for the privilege that asked, with CR0.WP as it is */
    bool user;          /* U/S set at every level */
    bool executable;
    bool global;
    bool dirty;          /* the D bit is set (or there is no paging): stores need no walk */
    uint32_t error_code; /* of the #PF, if the walk failed */
};

/* The mode that `state` is in, on a CPU with this MAXPHYADDR, with or without 1 GiB pages. */
struct walk_mode walk_mode(const struct cpu_state *state, unsigned physical_bits, bool gib_pages);

/*
 * The four page-directory pointers that MOV CR3 loads in PAE paging. False if one of them has a
 * reserved bit: then the instruction is #GP(0) and nothing changes. SDM volume 3, 4.4.1.
 */
bool walk_load_pdpte(struct memory *memory, uint64_t cr3, unsigned physical_bits,
                     uint64_t ret_pdpte[4]);

/*
 * Where walks in IA-32e mode ended: the last table of the way to each of some 2 MiB regions, as the
 * CPU's own paging-structure caches have it. Its owner empties it wherever the CPU would (MOV CR3,
 * INVLPG, INVPCID, changes of the paging mode). SDM volume 3, 4.10.3 and 4.10.4.
 */
enum { WALK_CACHE_ENTRIES = 64 };
struct walk_cache {
    uint64_t generation; /* entries of others are void */
    struct walk_cache_entry {
        uint64_t generation;
        uint64_t region;                     /* the linear address >> 21, and WALK_CACHE_VALID */
        gpa_t table;                         /* that has the leaf */
        uint64_t rights;                     /* AND of the levels above: W, U */
        uint64_t no_execute;                 /* OR of the levels above: NX */
        unsigned shift;                      /* of the table's level: 12 or 21 */
        uint64_t must_be_clear, must_be_set; /* bits of a leaf that needs no second look */
    } entries[WALK_CACHE_ENTRIES];
};

/* Empty it; also how it begins. */
void walk_cache_flush(struct walk_cache *cache);

/*
 * Walk for `access` (PF_WRITE, PF_USER, PF_FETCH, WALK_IMPLICIT). Sets A bits, and D bits for a
 * write, with a locked compare-exchange as the CPU does, once the access is known to be allowed.
 * Returns true and fills the result, or false with error_code set for #PF. `gva` must be
 * canonical. A table outside RAM reads as all ones, like a bus without a device. A walk that has
 * to set a bit may wait, as memory_compare_exchange() does. `cache` may be NULL; a fault is never
 * found from it.
 */
bool walk(struct memory *memory, const struct walk_mode *mode, struct walk_cache *cache, gva_t gva,
          uint32_t access, struct walk_result *ret_result);

/*
 * Where a linear address leads, for somebody who only looks (a debugger): no right is asked for and
 * no bit is set, so it never waits. False if nothing is mapped there. Any address, any thread.
 */
bool walk_look(struct memory *memory, const struct walk_mode *mode, gva_t gva, gpa_t *ret_gpa)
    __attribute__((warn_unused_result));
