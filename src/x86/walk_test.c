/* The page walk: all paging modes, rights, reserved bits, accessed and dirty bits, error codes. */
#include "x86/walk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/bytes.h"

enum {
    RAM_SIZE = 1 << 20,
    ROOT = 0x1000, /* tables of the walk under test lie at ROOT, ROOT + 1 page... */
    ALL = PTE_P | PTE_W | PTE_U,
};

/* A machine with tables for one linear address. */
struct fixture {
    struct memory *memory;
    struct walk_mode mode;
};

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof *fixture);
    struct memory_range ram = {0, RAM_SIZE};
    *state = fixture;
    return memory_new(&ram, 1, "walk_test", &fixture->memory);
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    memory_free(fixture->memory);
    free(fixture);
    return 0;
}

static void entry_store(struct fixture *fixture, gpa_t at, unsigned size, uint64_t entry)
{
    assert_int_equal(memory_write(fixture->memory, at, &entry, size), 0);
}

static uint64_t entry_of(struct fixture *fixture, gpa_t at, unsigned size)
{
    uint64_t entry;
    assert_int_equal(memory_load(fixture->memory, at, size, &entry), 0);
    return entry;
}

/* Page-table modes of the tests. */
static const struct walk_mode mode_32bit = {
    .cr0 = CR0_PE | CR0_PG | CR0_WP, .cr3 = ROOT, .physical_bits = 40};
static const struct walk_mode mode_pae = {.cr0 = CR0_PE | CR0_PG | CR0_WP,
                                          .cr3 = ROOT,
                                          .cr4 = CR4_PAE,
                                          .efer = EFER_NXE,
                                          .physical_bits = 40};
static const struct walk_mode mode_long = {.cr0 = CR0_PE | CR0_PG | CR0_WP,
                                           .cr3 = ROOT,
                                           .cr4 = CR4_PAE | CR4_PGE,
                                           .efer = EFER_NXE | EFER_LME | EFER_LMA,
                                           .physical_bits = 40,
                                           .gib_pages = true};

/* Build 4-level tables for `gva`: entries[0] is the PML4E. Stops behind the last given one. */
static void build_long(struct fixture *fixture, gva_t gva, const uint64_t *entries, unsigned count)
{
    for (unsigned level = 0; level < count; level++) {
        unsigned index = gva >> (39 - 9 * level) & 511;
        entry_store(fixture, ROOT + level * PAGE_SIZE + index * 8, 8, entries[level]);
    }
}

static uint64_t long_entry(struct fixture *fixture, gva_t gva, unsigned level)
{
    return entry_of(fixture, ROOT + level * PAGE_SIZE + (gva >> (39 - 9 * level) & 511) * 8, 8);
}

#define TABLE(n) (ROOT + (n) * (uint64_t)PAGE_SIZE)
static const gva_t gva_long = 0xffff812345678123;

/* Four entries down to a page at 0x42000, with these bits in the last one and in all above. */
static void build_page(struct fixture *fixture, uint64_t upper, uint64_t leaf)
{
    fixture->mode = mode_long;
    const uint64_t entries[] = {TABLE(1) | upper, TABLE(2) | upper, TABLE(3) | upper,
                                0x42000 | leaf};
    build_long(fixture, gva_long, entries, 4);
}

static void test_no_paging(void **state)
{
    struct fixture *fixture = *state;
    struct walk_result result;
    assert_true(walk(fixture->memory, &fixture->mode, NULL, 0xfffffff0, PF_WRITE, &result));
    assert_int_equal(result.gpa, 0xfffffff0);
    assert_true(result.writable && result.user && result.executable && result.dirty);
    assert_false(result.global);
}

static void test_accessed_and_dirty(void **state)
{
    struct fixture *fixture = *state;
    struct walk_result result;
    build_page(fixture, ALL, ALL | PTE_G);
    assert_true(walk(fixture->memory, &fixture->mode, NULL, gva_long, PF_USER, &result));
    assert_int_equal(result.gpa, 0x42123);
    assert_int_equal(result.page_size, 4096);
    assert_true(result.writable && result.user && result.executable && result.global);
    assert_false(result.dirty);
    for (unsigned level = 0; level < 4; level++) {
        assert_int_equal(long_entry(fixture, gva_long, level) & (PTE_A | PTE_D), PTE_A);
    }
    assert_true(walk(fixture->memory, &fixture->mode, NULL, gva_long, PF_WRITE, &result));
    assert_true(result.dirty);
    assert_int_equal(long_entry(fixture, gva_long, 3) & (PTE_A | PTE_D), PTE_A | PTE_D);
    assert_int_equal(long_entry(fixture, gva_long, 2) & PTE_D, 0);
}

/* A walk that faults changes nothing. */
static void test_fault_leaves_entries(void **state)
{
    struct fixture *fixture = *state;
    struct walk_result result;
    build_page(fixture, ALL, PTE_P | PTE_U);
    assert_false(
        walk(fixture->memory, &fixture->mode, NULL, gva_long, PF_WRITE | PF_USER, &result));
    assert_int_equal(result.error_code, PF_PRESENT | PF_WRITE | PF_USER);
    for (unsigned level = 0; level < 4; level++) {
        assert_int_equal(long_entry(fixture, gva_long, level) & (PTE_A | PTE_D), 0);
    }
}

/* Whoever only looks finds a page that is closed to everybody, and leaves no trace. */
static void test_looking(void **state)
{
    struct fixture *fixture = *state;
    gpa_t gpa;
    build_page(fixture, PTE_P, PTE_P | PTE_NX);
    assert_true(walk_look(fixture->memory, &fixture->mode, gva_long, &gpa));
    assert_int_equal(gpa, 0x42123);
    for (unsigned level = 0; level < 4; level++) {
        assert_int_equal(long_entry(fixture, gva_long, level) & (PTE_A | PTE_D), 0);
    }
    assert_false(walk_look(fixture->memory, &fixture->mode, gva_long ^ 1ull << 47, &gpa));
    assert_false(walk_look(fixture->memory, &fixture->mode, gva_long + PAGE_SIZE, &gpa));
    const uint64_t large[] = {TABLE(1) | ALL, TABLE(2) | ALL, 0x40000000 | ALL | PTE_PS};
    build_long(fixture, gva_long, large, 3);
    assert_true(walk_look(fixture->memory, &fixture->mode, gva_long, &gpa));
    assert_int_equal(gpa, 0x40000000 | (gva_long & 0x1fffff));
    fixture->mode.cr0 = CR0_PE;
    assert_true(walk_look(fixture->memory, &fixture->mode, 0x1fffffffff, &gpa));
    assert_int_equal(gpa, 0xffffffff);
}

/* Rights: SDM volume 3, 4.6.1, as a table. */
struct right {
    uint64_t upper, leaf;
    uint32_t cr0, cr4, efer, rflags; /* added to CR0.PE, PG; CR4.PAE; EFER.LMA */
    uint32_t access;
    uint32_t error_code; /* 0: allowed */
};

static const struct right rights[] = {
    /* user and supervisor */
    {ALL, ALL, CR0_WP, 0, EFER_NXE, 0, PF_USER | PF_WRITE, 0},
    {ALL, PTE_P | PTE_W, CR0_WP, 0, EFER_NXE, 0, PF_USER, PF_PRESENT | PF_USER},
    {PTE_P | PTE_W, ALL, CR0_WP, 0, EFER_NXE, 0, PF_USER, PF_PRESENT | PF_USER},
    {PTE_P | PTE_W, PTE_P | PTE_W, CR0_WP, 0, EFER_NXE, 0, PF_WRITE, 0},
    /* write protection, for the supervisor only with WP, by any level */
    {ALL, PTE_P | PTE_U, CR0_WP, 0, EFER_NXE, 0, PF_WRITE, PF_PRESENT | PF_WRITE},
    {ALL, PTE_P | PTE_U, 0, 0, EFER_NXE, 0, PF_WRITE, 0},
    {ALL, PTE_P | PTE_U, 0, 0, EFER_NXE, 0, PF_WRITE | PF_USER, PF_PRESENT | PF_WRITE | PF_USER},
    {PTE_P | PTE_U, ALL, CR0_WP, 0, EFER_NXE, 0, PF_WRITE, PF_PRESENT | PF_WRITE},
    {PTE_P | PTE_U, ALL, CR0_WP, 0, EFER_NXE, 0, 0, 0},
    /* execution: the I/D bit is reported only with NXE or SMEP */
    {ALL, ALL | PTE_NX, CR0_WP, 0, EFER_NXE, 0, PF_FETCH | PF_USER,
     PF_PRESENT | PF_USER | PF_FETCH},
    {ALL | PTE_NX, ALL, CR0_WP, 0, EFER_NXE, 0, PF_FETCH, PF_PRESENT | PF_FETCH},
    {ALL, ALL | PTE_NX, CR0_WP, 0, EFER_NXE, 0, PF_USER, 0},
    {ALL, ALL | PTE_NX, CR0_WP, 0, 0, 0, PF_USER, PF_PRESENT | PF_RESERVED | PF_USER},
    {ALL, ALL | PTE_NX, CR0_WP, 0, 0, 0, PF_FETCH, PF_PRESENT | PF_RESERVED},
    {ALL, ALL | PTE_NX, CR0_WP, CR4_SMEP, 0, 0, PF_FETCH, PF_PRESENT | PF_RESERVED | PF_FETCH},
    {ALL, ALL, CR0_WP, CR4_SMEP, EFER_NXE, 0, PF_FETCH, PF_PRESENT | PF_FETCH},
    {ALL, ALL, CR0_WP, CR4_SMEP, EFER_NXE, 0, PF_FETCH | PF_USER, 0},
    {ALL, PTE_P, CR0_WP, CR4_SMEP, EFER_NXE, 0, PF_FETCH, 0},
    {ALL, ALL, CR0_WP, 0, EFER_NXE, 0, PF_FETCH, 0},
    /* supervisor access prevention: AC overrides it, but not for implicit accesses */
    {ALL, ALL, CR0_WP, CR4_SMAP, EFER_NXE, 0, 0, PF_PRESENT},
    {ALL, ALL, CR0_WP, CR4_SMAP, EFER_NXE, 0, PF_WRITE, PF_PRESENT | PF_WRITE},
    {ALL, ALL, CR0_WP, CR4_SMAP, EFER_NXE, FLAG_AC, PF_WRITE, 0},
    {ALL, ALL, CR0_WP, CR4_SMAP, EFER_NXE, FLAG_AC, WALK_IMPLICIT, PF_PRESENT},
    {ALL, PTE_P | PTE_W, CR0_WP, CR4_SMAP, EFER_NXE, 0, PF_WRITE, 0},
    {ALL, ALL, CR0_WP, CR4_SMAP, EFER_NXE, 0, PF_USER, 0},
    /* not present, at the leaf and above; other bits do not matter then */
    {ALL, PTE_W, CR0_WP, 0, EFER_NXE, 0, PF_WRITE, PF_WRITE},
    {0, ALL, CR0_WP, 0, EFER_NXE, 0, PF_USER | PF_FETCH, PF_USER | PF_FETCH},
    /* reserved bits: above MAXPHYADDR, PS in a PML4E */
    {ALL, ALL | 1ull << 40, CR0_WP, 0, EFER_NXE, 0, 0, PF_PRESENT | PF_RESERVED},
    {ALL, ALL | 1ull << 51, CR0_WP, 0, EFER_NXE, 0, PF_USER, PF_PRESENT | PF_RESERVED | PF_USER},
    {ALL, ALL | 1ull << 52, CR0_WP, 0, EFER_NXE, 0, PF_USER, 0},
    {ALL, ALL | 1ull << 62, CR0_WP, 0, EFER_NXE, 0, PF_USER, 0},
    {ALL | PTE_PS, ALL, CR0_WP, 0, EFER_NXE, 0, 0, PF_PRESENT | PF_RESERVED},
};

static void test_rights(void **state)
{
    struct fixture *fixture = *state;
    for (size_t i = 0; i < ARRAY_SIZE(rights); i++) {
        const struct right *right = &rights[i];
        build_page(fixture, right->upper, right->leaf);
        fixture->mode.cr0 = CR0_PE | CR0_PG | right->cr0;
        fixture->mode.cr4 = CR4_PAE | right->cr4;
        fixture->mode.efer = EFER_LME | EFER_LMA | right->efer;
        fixture->mode.rflags = right->rflags;
        struct walk_result result;
        bool allowed =
            walk(fixture->memory, &fixture->mode, NULL, gva_long, right->access, &result);
        bool expected = right->error_code == 0 && (right->leaf & right->upper & PTE_P);
        if (allowed != expected || (!allowed && result.error_code != right->error_code)) {
            print_error("right %zu: %d, error code %#x\n", i, allowed, result.error_code);
        }
        assert_int_equal(allowed, expected);
        if (!allowed) {
            assert_int_equal(result.error_code, right->error_code);
        }
    }
}

static void test_large_pages(void **state)
{
    struct fixture *fixture = *state;
    struct walk_result result;
    fixture->mode = mode_long;
    /* 2 MiB: PAT is bit 12, bits 13 to 20 are reserved */
    uint64_t entries[] = {TABLE(1) | ALL, TABLE(2) | ALL, 0x40200000 | 1u << 12 | ALL | PTE_PS};
    build_long(fixture, gva_long, entries, 3);
    assert_true(walk(fixture->memory, &fixture->mode, NULL, gva_long, PF_WRITE, &result));
    assert_int_equal(result.gpa, 0x40200000 | (gva_long & 0x1fffff));
    assert_int_equal(result.page_size, MIB(2));
    assert_int_equal(long_entry(fixture, gva_long, 2) & (PTE_A | PTE_D), PTE_A | PTE_D);
    entries[2] |= 1u << 13;
    build_long(fixture, gva_long, entries, 3);
    assert_false(walk(fixture->memory, &fixture->mode, NULL, gva_long, 0, &result));
    assert_int_equal(result.error_code, PF_PRESENT | PF_RESERVED);
    /* 1 GiB, where the model has them */
    entries[1] = 0x1c0000000 | ALL | PTE_PS;
    build_long(fixture, gva_long, entries, 2);
    assert_true(walk(fixture->memory, &fixture->mode, NULL, gva_long, 0, &result));
    assert_int_equal(result.gpa, 0x1c0000000 | (gva_long & 0x3fffffff));
    assert_int_equal(result.page_size, GIB(1));
    fixture->mode.gib_pages = false;
    assert_false(walk(fixture->memory, &fixture->mode, NULL, gva_long, 0, &result));
    assert_int_equal(result.error_code, PF_PRESENT | PF_RESERVED);
    fixture->mode.gib_pages = true;
    entries[1] |= 1u << 29;
    build_long(fixture, gva_long, entries, 2);
    assert_false(walk(fixture->memory, &fixture->mode, NULL, gva_long, 0, &result));
    assert_int_equal(result.error_code, PF_PRESENT | PF_RESERVED);
}

static void test_32bit(void **state)
{
    struct fixture *fixture = *state;
    struct walk_result result;
    const gva_t gva = 0xc0801abc;
    fixture->mode = mode_32bit;
    entry_store(fixture, ROOT + (gva >> 22) * 4, 4, TABLE(1) | ALL | PTE_PS);
    entry_store(fixture, TABLE(1) + (gva >> 12 & 1023) * 4, 4, 0xfedcb000 | ALL);
    /* without CR4.PSE, PS is ignored; the bits above 32 of the address too */
    assert_true(walk(fixture->memory, &fixture->mode, NULL, gva | 1ull << 40, PF_WRITE, &result));
    assert_int_equal(result.gpa, 0xfedcbabc);
    assert_int_equal(entry_of(fixture, TABLE(1) + (gva >> 12 & 1023) * 4, 4) & 0xff,
                     ALL | PTE_A | PTE_D);
    assert_int_equal(entry_of(fixture, ROOT + (gva >> 22) * 4, 4) & (PTE_A | PTE_D), PTE_A);
    /* 4 MiB, PSE-36: bits 13 to 20 are address bits 32 to 39 */
    fixture->mode.cr4 = CR4_PSE;
    entry_store(fixture, ROOT + (gva >> 22) * 4, 4, 0x00c00000 | 0x81 << 13 | ALL | PTE_PS);
    assert_true(walk(fixture->memory, &fixture->mode, NULL, gva, 0, &result));
    assert_int_equal(result.gpa, 0x8100c00000 | (gva & 0x3fffff));
    assert_int_equal(result.page_size, MIB(4));
    assert_true(result.executable);
    /* bit 21 is reserved, and with 36 physical bits also 17 to 20 */
    entry_store(fixture, ROOT + (gva >> 22) * 4, 4, 0x00e00000 | ALL | PTE_PS);
    assert_false(walk(fixture->memory, &fixture->mode, NULL, gva, PF_FETCH, &result));
    assert_int_equal(result.error_code, PF_PRESENT | PF_RESERVED);
    fixture->mode.physical_bits = 36;
    entry_store(fixture, ROOT + (gva >> 22) * 4, 4, 1u << 17 | ALL | PTE_PS);
    assert_false(walk(fixture->memory, &fixture->mode, NULL, gva, PF_FETCH, &result));
    entry_store(fixture, ROOT + (gva >> 22) * 4, 4, 1u << 16 | ALL | PTE_PS);
    assert_true(walk(fixture->memory, &fixture->mode, NULL, gva, PF_FETCH, &result));
    assert_int_equal(result.gpa, 0x800000000 | (gva & 0x3fffff));
}

static void test_pae(void **state)
{
    struct fixture *fixture = *state;
    struct walk_result result;
    const gva_t gva = 0xc0801abc;
    fixture->mode = mode_pae;
    fixture->mode.pdpte[3] = TABLE(1) | PTE_P;
    unsigned pde = (gva >> 21 & 511) * 8, pte = (gva >> 12 & 511) * 8;
    entry_store(fixture, TABLE(1) + pde, 8, TABLE(2) | ALL);
    entry_store(fixture, TABLE(2) + pte, 8, 0xabcdef0000 | ALL | PTE_NX);
    assert_true(walk(fixture->memory, &fixture->mode, NULL, gva, PF_WRITE | PF_USER, &result));
    assert_int_equal(result.gpa, 0xabcdef0abc);
    assert_false(result.executable);
    /* bits up to 62 are reserved here, unlike in 4-level paging */
    entry_store(fixture, TABLE(2) + pte, 8, 0x10000 | ALL | 1ull << 52);
    assert_false(walk(fixture->memory, &fixture->mode, NULL, gva, 0, &result));
    assert_int_equal(result.error_code, PF_PRESENT | PF_RESERVED);
    entry_store(fixture, TABLE(1) + pde, 8, 0x600000 | ALL | PTE_PS);
    assert_true(walk(fixture->memory, &fixture->mode, NULL, gva, 0, &result));
    assert_int_equal(result.gpa, 0x600000 | (gva & 0x1fffff));
    fixture->mode.pdpte[3] = 0;
    assert_false(walk(fixture->memory, &fixture->mode, NULL, gva, PF_WRITE, &result));
    assert_int_equal(result.error_code, PF_WRITE);
}

static void test_pdpte_load(void **state)
{
    struct fixture *fixture = *state;
    uint64_t pdpte[4] = {7, 7, 7, 7};
    entry_store(fixture, 0x2020, 8, TABLE(1) | PTE_P);
    entry_store(fixture, 0x2028, 8, 0x1e6); /* not present: anything */
    entry_store(fixture, 0x2038, 8, 0xffff000000 | PTE_P | PTE_PWT | PTE_PCD);
    assert_true(walk_load_pdpte(fixture->memory, 0x2020, 40, pdpte));
    assert_int_equal(pdpte[0], TABLE(1) | PTE_P);
    assert_int_equal(pdpte[1], 0x1e6);
    assert_int_equal(pdpte[2], 0);
    assert_int_equal(pdpte[3], 0xffff000000 | PTE_P | PTE_PWT | PTE_PCD);
    static const uint64_t bad[] = {PTE_W, PTE_U, 1 << 5, 1 << 8, 1ull << 40, 1ull << 63};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        entry_store(fixture, 0x2030, 8, PTE_P | bad[i]);
        assert_false(walk_load_pdpte(fixture->memory, 0x2020, 40, pdpte));
        assert_int_equal(pdpte[1], 0x1e6);
    }
}

/* Tables outside RAM read as all ones: reserved bits in long mode, a mapping in 32-bit paging. */
static void test_outside_ram(void **state)
{
    struct fixture *fixture = *state;
    struct walk_result result;
    fixture->mode = mode_long;
    fixture->mode.cr3 = 0x80000000;
    assert_false(walk(fixture->memory, &fixture->mode, NULL, gva_long, 0, &result));
    assert_int_equal(result.error_code, PF_PRESENT | PF_RESERVED);
    fixture->mode = mode_32bit;
    fixture->mode.cr3 = 0x80000000;
    assert_true(walk(fixture->memory, &fixture->mode, NULL, 0x1234, PF_WRITE, &result));
    assert_int_equal(result.gpa, 0xfffff234);
}

/* A cached walk reads the last table only, until the owner empties the cache. */
static void test_cache(void **state)
{
    struct fixture *fixture = *state;
    struct walk_result result;
    struct walk_cache cache = {0};
    walk_cache_flush(&cache);
    build_page(fixture, ALL, ALL & ~PTE_W);
    const gva_t next = gva_long + PAGE_SIZE;
    entry_store(fixture, TABLE(3) + (next >> 12 & 511) * 8, 8, 0x43000 | ALL | PTE_A | PTE_D);
    assert_true(walk(fixture->memory, &fixture->mode, &cache, gva_long, PF_USER, &result));
    entry_store(fixture, TABLE(0) + (gva_long >> 39 & 511) * 8, 8, 0);
    assert_true(walk(fixture->memory, &fixture->mode, &cache, next, PF_WRITE | PF_USER, &result));
    assert_int_equal(result.gpa, 0x43123);
    assert_true(result.dirty && result.user);
    /* What the cached table refuses is for the whole walk to judge. */
    assert_false(
        walk(fixture->memory, &fixture->mode, &cache, gva_long, PF_WRITE | PF_USER, &result));
    assert_int_equal(result.error_code, PF_WRITE | PF_USER);
    walk_cache_flush(&cache);
    assert_false(walk(fixture->memory, &fixture->mode, &cache, next, 0, &result));
    /* Rights and NX of the levels above count. */
    build_page(fixture, ALL | PTE_NX, ALL);
    assert_true(walk(fixture->memory, &fixture->mode, &cache, gva_long, 0, &result));
    assert_false(walk(fixture->memory, &fixture->mode, &cache, next, PF_FETCH, &result));
    build_page(fixture, PTE_P | PTE_W, ALL);
    walk_cache_flush(&cache);
    assert_true(walk(fixture->memory, &fixture->mode, &cache, gva_long, 0, &result));
    assert_false(walk(fixture->memory, &fixture->mode, &cache, next, PF_USER, &result));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_no_paging),   TEST(test_accessed_and_dirty),
        TEST(test_rights),      TEST(test_fault_leaves_entries),
        TEST(test_large_pages), TEST(test_32bit),
        TEST(test_pae),         TEST(test_pdpte_load),
        TEST(test_outside_ram), TEST(test_cache),
        TEST(test_looking),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
