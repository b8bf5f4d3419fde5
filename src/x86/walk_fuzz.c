/*
 * Fuzzer of the page walk: random tables, modes and accesses, compared with a second walk that is
 * written straight from the tables of SDM volume 3, 4.3 to 4.6, level by level.
 *
 * Input: struct input, then pairs of a slot (which entry of which table) and an entry.
 * Guards: src/x86/walk.c
 */
#include <stdlib.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "x86/walk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { TABLES = 16, RAM_SIZE = TABLES * PAGE_SIZE };

struct input {
    uint64_t gva;
    uint64_t pdpte[4];
    uint8_t cr0, cr4, efer, rflags; /* which of the bits below are set */
    uint8_t access, physical_bits, gib_pages, pages;
};

/* What the second walk finds. */
struct expectation {
    bool allowed;
    uint32_t error_code;
    uint64_t gpa, page_size;
    unsigned levels;
    gpa_t at[4];
};

static uint64_t raw_load(struct memory *memory, gpa_t at, unsigned size)
{
    uint64_t value = 0;
    if (memory_read(memory, at, &value, size)) {
        return size == 4 ? UINT32_MAX : UINT64_MAX;
    }
    return value;
}

/* Is any of the bits low..high set? */
static bool has_bits(uint64_t entry, unsigned low, unsigned high)
{
    for (unsigned bit = low; bit <= high; bit++) {
        if (entry >> bit & 1) {
            return true;
        }
    }
    return false;
}

/* The reserved bits of an entry at this level (1 is the last). SDM volume 3, 4.3 to 4.5. */
static bool is_reserved(const struct walk_mode *mode, unsigned level, uint64_t entry, bool is_large)
{
    bool is_long = mode->efer & EFER_LMA;
    if (!(mode->cr4 & CR4_PAE)) {
        unsigned bits = mode->physical_bits > 40 ? 40 : mode->physical_bits;
        return is_large && has_bits(entry, bits - 19, 21);
    }
    if (!(mode->efer & EFER_NXE) && entry >> 63) {
        return true;
    }
    if (has_bits(entry, mode->physical_bits, is_long ? 51 : 62)) {
        return true;
    }
    switch (level) {
    case 4:
        return entry >> 7 & 1;
    case 3:
        return entry >> 7 & 1 && (!mode->gib_pages || has_bits(entry, 13, 29));
    case 2:
        return is_large && has_bits(entry, 13, 20);
    default:
        return false;
    }
}

static bool rights_allow(const struct walk_mode *mode, uint32_t access, bool write, bool user,
                         bool no_execute)
{
    bool is_fetch = access & PF_FETCH, is_write = access & PF_WRITE, by_user = access & PF_USER;
    if (is_fetch && no_execute) {
        return false;
    }
    if (by_user) {
        return user && (!is_write || write);
    }
    if (user && is_fetch && mode->cr4 & CR4_SMEP) {
        return false;
    }
    bool ac = mode->rflags & FLAG_AC && !(access & WALK_IMPLICIT);
    if (user && !is_fetch && mode->cr4 & CR4_SMAP && !ac) {
        return false;
    }
    return is_fetch || !is_write || write || !(mode->cr0 & CR0_WP);
}

static void expect_fault(const struct walk_mode *mode, uint32_t access, uint32_t why,
                         struct expectation *ret)
{
    bool reports_fetch = (mode->cr4 & CR4_PAE && mode->efer & EFER_NXE) || mode->cr4 & CR4_SMEP;
    ret->allowed = false;
    ret->error_code = why | (access & (PF_WRITE | PF_USER));
    ret->error_code |= reports_fetch ? access & PF_FETCH : 0;
}

static void expect(struct memory *memory, const struct walk_mode *mode, gva_t gva, uint32_t access,
                   struct expectation *ret)
{
    bool is_pae = mode->cr4 & CR4_PAE, is_long = mode->efer & EFER_LMA;
    unsigned size = is_pae ? 8 : 4, level = is_long ? 4 : 2;
    gpa_t table = mode->cr3 & (is_long ? 0xffffffffff000 : 0xfffff000);
    bool write = true, user = true, no_execute = false;
    if (!is_long) {
        gva &= UINT32_MAX;
    }
    if (is_pae && !is_long) {
        uint64_t pdpte = mode->pdpte[gva >> 30];
        if (!(pdpte & 1)) {
            expect_fault(mode, access, 0, ret);
            return;
        }
        table = pdpte & ((1ull << mode->physical_bits) - 1) & ~0xfffull;
    }
    for (;; level--) {
        unsigned shift = is_pae ? 12 + 9 * (level - 1) : 12 + 10 * (level - 1);
        gpa_t at = table + size * (gva >> shift & (is_pae ? 511 : 1023));
        uint64_t entry = raw_load(memory, at, size);
        if (!(entry & 1)) {
            expect_fault(mode, access, 0, ret);
            return;
        }
        bool may_be_large = level == 2 ? is_pae || mode->cr4 & CR4_PSE : level == 3;
        bool is_large = may_be_large && entry >> 7 & 1;
        if (is_reserved(mode, level, entry, is_large)) {
            expect_fault(mode, access, PF_PRESENT | PF_RESERVED, ret);
            return;
        }
        ret->at[ret->levels++] = at;
        write = write && entry & 2;
        user = user && entry & 4;
        no_execute = no_execute || entry >> 63;
        if (level > 1 && !is_large) {
            table = entry & (is_pae ? 0xffffffffff000 : 0xfffff000);
            continue;
        }
        ret->page_size = 1ull << shift;
        ret->gpa = entry & (is_pae ? 0xffffffffff000 : 0xfffff000) & ~(ret->page_size - 1);
        if (!is_pae && is_large) {
            ret->gpa |= (entry >> 13 & 0xff) << 32;
        }
        ret->gpa |= gva & (ret->page_size - 1);
        break;
    }
    ret->allowed = rights_allow(mode, access, write, user, no_execute);
    if (!ret->allowed) {
        expect_fault(mode, access, PF_PRESENT, ret);
    }
}

static struct walk_mode mode_of(const struct input *input)
{
    static const uint64_t cr4_bits[] = {CR4_PAE, CR4_PSE, CR4_PGE, CR4_SMEP, CR4_SMAP};
    struct walk_mode mode = {
        .cr0 = CR0_PE | CR0_PG | (input->cr0 & 1 ? CR0_WP : 0),
        .efer = input->efer & 1 ? EFER_NXE : 0,
        .rflags = input->rflags & 1 ? FLAG_AC : 0,
        .physical_bits = 36 + input->physical_bits % 17,
        .gib_pages = input->gib_pages & 1,
        .cr3 = PAGE_SIZE,
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cr4_bits); i++) {
        mode.cr4 |= input->cr4 >> i & 1 ? cr4_bits[i] : 0;
    }
    if (mode.cr4 & CR4_PAE && input->efer & 2) {
        mode.efer |= EFER_LME | EFER_LMA;
    }
    for (unsigned i = 0; i < 4; i++) {
        /* What walk_load_pdpte() lets through. */
        mode.pdpte[i] = (input->pdpte[i] % RAM_SIZE & ~0xfffull) | (input->pdpte[i] & 0x19);
    }
    return mode;
}

static void tables_fill(struct memory *memory, const struct walk_mode *mode, gva_t gva,
                        const uint8_t *data, size_t size)
{
    /* First the entries on the way of `gva`, from the input in order, then any others. */
    unsigned entry_size = mode->cr4 & CR4_PAE ? 8 : 4;
    for (size_t at = 0; at + 10 <= size; at += 10) {
        uint64_t entry = load_le64(data + at + 2);
        unsigned table = data[at] % TABLES;
        unsigned slot = data[at + 1] & 31;
        /* Most tables lie in RAM, most entries on the way of `gva`. */
        if (data[at + 1] & 0x80) {
            entry = (entry & 0x80000000000000ffull) | (entry >> 8 & 15) << 12;
        }
        if (data[at + 1] & 0x40) {
            unsigned level = slot % 4;
            slot = entry_size == 8 ? gva >> (12 + 9 * level) & 511
                                   : gva >> (12 + 10 * (level & 1)) & 1023;
        }
        ASSERT(memory_write(memory, table * PAGE_SIZE + slot * entry_size, &entry, entry_size) ==
               0);
    }
}

/* Through a cache that holds the way, the walk ends as without one. */
static void check_cached(struct memory *memory, const struct walk_mode *mode, gva_t gva,
                         uint32_t access)
{
    struct walk_cache cache = {0};
    struct walk_result plain = {0}, cached = {0};
    walk_cache_flush(&cache);
    bool allowed = walk(memory, mode, NULL, gva, access, &plain);
    walk(memory, mode, &cache, gva, 0, &cached);
    ASSERT(walk(memory, mode, &cache, gva, access, &cached) == allowed);
    ASSERT(cached.error_code == (allowed ? 0 : plain.error_code));
    ASSERT(!allowed || (cached.gpa == plain.gpa && cached.page_size == plain.page_size &&
                        cached.writable == plain.writable && cached.user == plain.user &&
                        cached.executable == plain.executable && cached.global == plain.global));
}

static void check(struct memory *memory, const struct walk_mode *mode, gva_t gva, uint32_t access)
{
    struct expectation expected = {0};
    uint64_t before[4];
    unsigned entry_size = mode->cr4 & CR4_PAE ? 8 : 4;
    expect(memory, mode, gva, access, &expected);
    for (unsigned i = 0; i < expected.levels; i++) {
        before[i] = raw_load(memory, expected.at[i], entry_size);
    }
    struct walk_result result;
    ASSERT(walk(memory, mode, NULL, gva, access, &result) == expected.allowed);
    if (!expected.allowed) {
        ASSERT(result.error_code == expected.error_code);
    } else {
        ASSERT(result.gpa == expected.gpa && result.page_size == expected.page_size);
        ASSERT(!(access & PF_WRITE) || (result.writable && result.dirty));
        ASSERT(!(access & PF_FETCH) || result.executable);
        ASSERT(!(access & PF_USER) || result.user);
    }
    /* A and D appear only where they must. One entry may stand on several levels. */
    uint64_t may_set = expected.allowed ? PTE_A | (access & PF_WRITE ? PTE_D : 0) : 0;
    for (unsigned i = 0; i < expected.levels; i++) {
        uint64_t after = raw_load(memory, expected.at[i], entry_size);
        ASSERT(!((after ^ before[i]) & ~may_set));
        ASSERT(!expected.allowed || after & PTE_A);
        bool is_leaf = i + 1 == expected.levels;
        ASSERT(!(expected.allowed && is_leaf && access & PF_WRITE) || after & PTE_D);
    }
    check_cached(memory, mode, gva, access);
}

/* What a load of CR3 reads with PAE outside of long mode. SDM volume 3, 4.4.1. */
static void check_pdpte(struct memory *memory, const struct walk_mode *mode, uint64_t cr3)
{
    uint64_t found[4];
    bool expected = true;
    bool loaded = walk_load_pdpte(memory, cr3, mode->physical_bits, found);
    for (unsigned i = 0; i < 4; i++) {
        uint64_t entry = raw_load(memory, (cr3 & 0xffffffe0) + 8 * i, 8);
        expected = expected && !(entry & 1 && (has_bits(entry, 1, 2) || has_bits(entry, 5, 8) ||
                                               has_bits(entry, mode->physical_bits, 63)));
        ASSERT(!loaded || found[i] == entry);
    }
    ASSERT(loaded == expected);
}

static void check_without_paging(struct memory *memory, struct walk_mode mode, gva_t gva,
                                 uint32_t access)
{
    struct walk_result result;
    mode.cr0 &= ~CR0_PG;
    ASSERT(walk(memory, &mode, NULL, gva, access, &result));
    ASSERT(result.gpa == (gva & UINT32_MAX) && result.writable && result.executable);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input;
    if (size < sizeof input || size > 4096) {
        return 0;
    }
    bytes_copy(&input, data, sizeof input);
    static const uint32_t accesses[] = {
        0,        PF_WRITE,           PF_USER,       PF_USER | PF_WRITE,
        PF_FETCH, PF_FETCH | PF_USER, WALK_IMPLICIT, WALK_IMPLICIT | PF_WRITE,
    };
    uint32_t access = accesses[input.access % ARRAY_SIZE(accesses)];
    struct walk_mode mode = mode_of(&input);
    gva_t gva = (uint64_t)((int64_t)(input.gva << 16) >> 16);
    struct memory_range ram = {0, RAM_SIZE};
    struct memory *memory;
    ASSERT(memory_new(&ram, 1, "walk_fuzz", &memory) == 0);
    tables_fill(memory, &mode, gva, data + sizeof input, size - sizeof input);
    check(memory, &mode, gva, access);
    check(memory, &mode, gva, access);
    check_pdpte(memory, &mode, input.pdpte[0] % (RAM_SIZE + PAGE_SIZE));
    check_without_paging(memory, mode, gva, access);
    memory_free(memory);
    return 0;
}
