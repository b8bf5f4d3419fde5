/*
 * The page walk. One loop serves all paging modes: they differ in the number of levels, the size
 * of an entry and the reserved bits. Entries are read once and remembered; accessed and dirty
 * bits are set when the access is known to be allowed, by compare-exchange against what was read,
 * and an entry that changed meanwhile starts the walk again. A walk
 * through the cache only reads the leaf: where that does not do, the whole walk decides.
 */
#include "x86/walk.h"

enum {
    LEVELS_MAX = 4,
    /* Another CPU can change entries under a walk again and again; after that many times the
     * access faults instead, as it may when tables change without a flush (SDM 3, 4.10.4.3). */
    TRIES_MAX = 128,
};

/* One walk: what is asked for, the paging mode in numbers, and what was met on the way. */
struct walker {
    struct memory *memory;
    const struct walk_mode *mode;
    gva_t gva;
    uint32_t access;
    unsigned entry_size;   /* 4 or 8 bytes */
    unsigned index_bits;   /* of one level: 10 or 9 */
    uint64_t address_mask; /* the address bits of an entry */
    uint64_t reserved;     /* bits reserved in every entry */
    uint64_t large_levels; /* bit n: an entry that translates n address bits may be a leaf */
    unsigned shift;        /* of the level at hand */
    gpa_t table;           /* of the level at hand */
    unsigned levels;       /* met so far */
    gpa_t at[LEVELS_MAX];
    uint64_t entry[LEVELS_MAX];
    uint64_t rights;     /* AND of all levels: W, U */
    uint64_t no_execute; /* OR of all levels: NX */
    /* Both without the level at hand, for the cache. */
    uint64_t rights_above;
    uint64_t no_execute_above;
};

/* Bits `low` to `high` - 1. */
static uint64_t bit_range(unsigned low, unsigned high)
{
    return low < high ? UINT64_MAX >> (64 - (high - low)) << low : 0;
}

struct walk_mode walk_mode(const struct cpu_state *state, unsigned physical_bits, bool gib_pages)
{
    return (struct walk_mode){
        .cr3 = state->cr3,
        .cr4 = state->cr4,
        .rflags = state->rflags,
        .cr0 = state->cr0,
        .efer = state->efer,
        .pdpte = {state->pdpte[0], state->pdpte[1], state->pdpte[2], state->pdpte[3]},
        .physical_bits = physical_bits,
        .gib_pages = gib_pages,
    };
}

/* How one try of a walk ended. */
enum attempt { ATTEMPT_DONE, ATTEMPT_AGAIN, ATTEMPT_FAULT };

/* The error code of the #PF. SDM volume 3, 4.7. */
static enum attempt refuse(const struct walker *w, uint32_t why, struct walk_result *ret_result)
{
    const struct walk_mode *mode = w->mode;
    bool has_nx = (mode->cr4 & CR4_PAE) && (mode->efer & EFER_NXE);
    uint32_t reported = PF_WRITE | PF_USER;
    if (has_nx || mode->cr4 & CR4_SMEP) {
        reported |= PF_FETCH;
    }
    ret_result->error_code = why | (w->access & reported);
    return ATTEMPT_FAULT;
}

/* A table outside RAM reads as all ones. */
static uint64_t entry_load(struct memory *memory, gpa_t at, unsigned size)
{
    uint64_t entry;
    if (memory_load(memory, at, size, &entry)) {
        return size == 4 ? UINT32_MAX : UINT64_MAX;
    }
    return entry;
}

bool walk_load_pdpte(struct memory *memory, uint64_t cr3, unsigned physical_bits,
                     uint64_t ret_pdpte[4])
{
    uint64_t reserved = bit_range(1, 3) | bit_range(5, 9) | bit_range(physical_bits, 64);
    uint64_t pdpte[4];
    for (unsigned i = 0; i < 4; i++) {
        pdpte[i] = entry_load(memory, (cr3 & 0xffffffe0) + i * 8, 8);
        if (pdpte[i] & PTE_P && pdpte[i] & reserved) {
            return false;
        }
    }
    for (unsigned i = 0; i < 4; i++) {
        ret_pdpte[i] = pdpte[i];
    }
    return true;
}

/* Prepare a walk through 4-byte entries. SDM volume 3, 4.3. */
static void begin_32bit(struct walker *w)
{
    w->gva &= UINT32_MAX;
    w->entry_size = 4;
    w->index_bits = 10;
    w->address_mask = 0xfffff000;
    w->reserved = 0;
    w->shift = 22;
    w->table = w->mode->cr3 & 0xfffff000;
    w->large_levels = w->mode->cr4 & CR4_PSE ? 1u << 22 : 0;
}

/* Prepare a walk through 8-byte entries; false if a PAE directory is not there. 4.4 and 4.5. */
static bool begin_64bit(struct walker *w)
{
    const struct walk_mode *mode = w->mode;
    w->entry_size = 8;
    w->index_bits = 9;
    w->address_mask = bit_range(12, 52);
    w->reserved = mode->efer & EFER_NXE ? 0 : PTE_NX;
    w->large_levels = 1u << 21;
    if (mode->efer & EFER_LMA) {
        w->reserved |= bit_range(mode->physical_bits, 52);
        w->large_levels |= mode->gib_pages ? 1u << 30 : 0;
        w->shift = 39;
        w->table = mode->cr3 & w->address_mask;
        return true;
    }
    w->gva &= UINT32_MAX;
    w->reserved |= bit_range(mode->physical_bits, 63);
    w->shift = 21;
    w->table = mode->pdpte[w->gva >> 30] & bit_range(12, mode->physical_bits);
    return mode->pdpte[w->gva >> 30] & PTE_P;
}

/* The bits that are reserved in this entry of the level at hand. */
static uint64_t entry_reserved(const struct walker *w, bool is_large)
{
    if (w->entry_size == 4) {
        /* PSE-36: bits 13..20 are bits 32..39 of the address (SDM volume 3, table 4-4). */
        unsigned physical_bits = w->mode->physical_bits < 40 ? w->mode->physical_bits : 40;
        return is_large ? bit_range(physical_bits < 32 ? 13 : physical_bits - 19, 22) : 0;
    }
    if (is_large) {
        return w->reserved | bit_range(13, w->shift);
    }
    /* PS must be zero where no large page can be; in the last level it is PAT. */
    return w->reserved | (w->shift > 12 ? PTE_PS : 0);
}

enum descent { DESCENT_LEAF, DESCENT_ABSENT, DESCENT_RESERVED };

/* Go down to the leaf; nothing is changed. */
static enum descent descend(struct walker *w)
{
    for (w->levels = 0;;) {
        unsigned index = (w->gva >> w->shift) & ((1u << w->index_bits) - 1);
        gpa_t at = w->table + index * w->entry_size;
        uint64_t entry = entry_load(w->memory, at, w->entry_size);
        if (!(entry & PTE_P)) {
            return DESCENT_ABSENT;
        }
        bool is_large = (entry & PTE_PS) && w->large_levels >> w->shift & 1;
        if (entry & entry_reserved(w, is_large)) {
            return DESCENT_RESERVED;
        }
        w->at[w->levels] = at;
        w->entry[w->levels] = entry;
        w->levels++;
        w->rights_above = w->rights;
        w->no_execute_above = w->no_execute;
        w->rights &= entry;
        w->no_execute |= entry & PTE_NX;
        if (is_large || w->shift == 12) {
            return DESCENT_LEAF;
        }
        w->table = entry & w->address_mask;
        w->shift -= w->index_bits;
    }
}

/* Is the access allowed by what the levels said? SDM volume 3, 4.6.1. */
static bool is_allowed(const struct walk_mode *mode, uint32_t access, uint64_t rights,
                       uint64_t no_execute)
{
    bool is_user_page = rights & PTE_U;
    bool is_write = access & PF_WRITE;
    if ((access & PF_FETCH) && no_execute) {
        return false;
    }
    if (access & PF_USER) {
        return is_user_page && (!is_write || rights & PTE_W);
    }
    if (is_user_page && (access & PF_FETCH)) {
        return !(mode->cr4 & CR4_SMEP);
    }
    bool overridden = (mode->rflags & FLAG_AC) && !(access & WALK_IMPLICIT);
    if (is_user_page && (mode->cr4 & CR4_SMAP) && !overridden) {
        return false;
    }
    return !is_write || rights & PTE_W || !(mode->cr0 & CR0_WP);
}

/* Set the A bits of all levels and the D bit of the leaf; false if an entry has changed. */
static bool mark(struct walker *w)
{
    for (unsigned i = 0; i < w->levels; i++) {
        bool is_leaf = i + 1 == w->levels;
        uint64_t bits = PTE_A | (is_leaf && (w->access & PF_WRITE) ? PTE_D : 0);
        uint64_t entry = w->entry[i];
        if ((entry & bits) == bits) {
            continue;
        }
        uint64_t found = entry;
        /* A table outside RAM swallows the write. */
        if (memory_compare_exchange(w->memory, w->at[i], w->entry_size, entry, entry | bits,
                                    &found) == 0 &&
            found != entry) {
            return false;
        }
        w->entry[i] = entry | bits;
    }
    return true;
}

/* Where the leaf entry of a level points to. */
static gpa_t leaf_base(unsigned shift, uint64_t entry)
{
    if (shift == 22) {
        return (entry & 0xffc00000) | (entry & 0x1fe000) << 19;
    }
    return entry & bit_range(shift, 52);
}

/*
 * Field by field: a struct that is built and then copied is read in wider pieces than it was
 * written in, and such a load waits for every store before it, which may be the guest's copying.
 */
static inline void result_fill(struct walk_result *ret_result, const struct walk_mode *mode,
                               uint32_t access, gva_t gva, unsigned shift, uint64_t leaf,
                               uint64_t rights, uint64_t no_execute)
{
    uint64_t page_size = 1ull << shift;
    bool ignores_write_protection = !(access & PF_USER) && !(mode->cr0 & CR0_WP);
    ret_result->gpa = leaf_base(shift, leaf) | (gva & (page_size - 1));
    ret_result->page_size = page_size;
    ret_result->writable = rights & PTE_W || ignores_write_protection;
    ret_result->user = rights & PTE_U;
    ret_result->executable = !no_execute;
    ret_result->global = leaf & PTE_G && mode->cr4 & CR4_PGE;
    ret_result->dirty = leaf & PTE_D;
    ret_result->error_code = 0;
}

static void result_without_paging(gva_t gva, struct walk_result *ret_result)
{
    *ret_result = (struct walk_result){
        .gpa = gva & UINT32_MAX,
        .page_size = PAGE_SIZE,
        .writable = true,
        .user = true,
        .executable = true,
        .dirty = true,
    };
}

/* ---- the cache of last tables ---- */

void walk_cache_flush(struct walk_cache *cache)
{
    cache->generation++;
}

static struct walk_cache_entry *cache_entry(struct walk_cache *cache, gva_t gva)
{
    return &cache->entries[(gva >> 21) % WALK_CACHE_ENTRIES];
}

/* The A bits above the leaf are set now: the next walk need not look there. */
static void cache_remember(struct walk_cache *cache, const struct walker *w)
{
    if (cache && (w->mode->efer & EFER_LMA) && w->shift <= 21) {
        bool is_large = w->shift == 21;
        *cache_entry(cache, w->gva) = (struct walk_cache_entry){
            .generation = cache->generation,
            .region = w->gva >> 21,
            .table = w->table,
            .rights = w->rights_above,
            .no_execute = w->no_execute_above,
            .shift = w->shift,
            .must_be_clear = entry_reserved(w, is_large),
            .must_be_set = PTE_P | PTE_A | (is_large ? PTE_PS : 0),
        };
    }
}

/* The whole way is known but for the leaf, and the leaf needs no change. */
static bool walk_cached(struct memory *memory, const struct walk_mode *mode,
                        struct walk_cache *cache, gva_t gva, uint32_t access,
                        struct walk_result *ret_result)
{
    const struct walk_cache_entry *last = cache_entry(cache, gva);
    uint64_t leaf;
    gpa_t at = last->table + (gva >> last->shift & 511) * 8;
    uint64_t must_be_set = last->must_be_set | (access & PF_WRITE ? PTE_D : 0);
    if (last->generation != cache->generation || last->region != gva >> 21 ||
        memory_load(memory, at, 8, &leaf) || leaf & last->must_be_clear ||
        (leaf & must_be_set) != must_be_set) {
        return false;
    }
    uint64_t rights = last->rights & leaf;
    uint64_t no_execute = last->no_execute | (leaf & PTE_NX);
    if (!is_allowed(mode, access, rights, no_execute)) {
        return false;
    }
    result_fill(ret_result, mode, access, gva, last->shift, leaf, rights, no_execute);
    return true;
}

/* Prepare a walk in the paging mode; false if a PAE directory is not there. */
static bool begin(struct walker *w)
{
    w->rights = PTE_W | PTE_U;
    w->no_execute = 0;
    if (!(w->mode->cr4 & CR4_PAE)) {
        begin_32bit(w);
        return true;
    }
    return begin_64bit(w);
}

static enum attempt attempt(struct walker *w, struct walk_result *ret_result)
{
    switch (descend(w)) {
    case DESCENT_ABSENT:
        return refuse(w, 0, ret_result);
    case DESCENT_RESERVED:
        return refuse(w, PF_PRESENT | PF_RESERVED, ret_result);
    case DESCENT_LEAF:
        break;
    }
    if (!is_allowed(w->mode, w->access, w->rights, w->no_execute)) {
        return refuse(w, PF_PRESENT, ret_result);
    }
    if (!mark(w)) {
        return ATTEMPT_AGAIN;
    }
    result_fill(ret_result, w->mode, w->access, w->gva, w->shift, w->entry[w->levels - 1],
                w->rights, w->no_execute);
    return ATTEMPT_DONE;
}

bool walk(struct memory *memory, const struct walk_mode *mode, struct walk_cache *cache, gva_t gva,
          uint32_t access, struct walk_result *ret_result)
{
    if (!(mode->cr0 & CR0_PG)) {
        result_without_paging(gva, ret_result);
        return true;
    }
    if (cache && walk_cached(memory, mode, cache, gva, access, ret_result)) {
        return true;
    }
    struct walker w; /* not cleared: begin() and descend() set the rest */
    w.memory = memory;
    w.mode = mode;
    w.gva = gva;
    w.access = access;
    for (int tries = 0; tries < TRIES_MAX; tries++) {
        if (!begin(&w)) {
            refuse(&w, 0, ret_result);
            return false;
        }
        switch (attempt(&w, ret_result)) {
        case ATTEMPT_DONE:
            cache_remember(cache, &w);
            return true;
        case ATTEMPT_FAULT:
            return false;
        case ATTEMPT_AGAIN:
            break;
        }
    }
    refuse(&w, PF_PRESENT, ret_result);
    return false;
}

bool walk_look(struct memory *memory, const struct walk_mode *mode, gva_t gva, gpa_t *ret_gpa)
{
    struct walker w; /* as in walk(); an access of no kind */
    w.memory = memory;
    w.mode = mode;
    w.gva = gva;
    w.access = 0;
    if (!(mode->cr0 & CR0_PG)) {
        *ret_gpa = gva & UINT32_MAX;
        return true;
    }
    if (((mode->efer & EFER_LMA) && !is_canonical(gva)) || !begin(&w) ||
        descend(&w) != DESCENT_LEAF) {
        return false;
    }
    *ret_gpa = leaf_base(w.shift, w.entry[w.levels - 1]) | (w.gva & ((1ull << w.shift) - 1));
    return true;
}
