/*
 * The soft TLB: what a fill enters, what each way of forgetting forgets and what it leaves, and the
 * cache of walks below it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/test_paging.h"

#define PAGE 0x400000ull
#define HIGH 0xffff800000000000ull
enum { FRAME = 0x200000, OTHER_FRAME = 0x300000 };

static bool hits(struct paging *p, gva_t gva, uint32_t access)
{
    const struct tlb_entry *entry =
        &p->tlb.entries[access & PF_USER ? TLB_USER : TLB_KERNEL]
                       [access & PF_WRITE ? TLB_WRITE : TLB_READ][tlb_index(gva)];
    return gva - entry->tag < PAGE_SIZE;
}

static void expect_fill(struct paging *p, gva_t gva, uint32_t access, enum tlb_fill wanted)
{
    p->vcpu.exception = (struct exception){0};
    assert_int_equal(tlb_fill(&p->vcpu, gva, access), wanted);
}

static void expect_fault(struct paging *p, gva_t gva, uint32_t access, uint32_t error_code)
{
    expect_fill(p, gva, access, TLB_FAULT);
    assert_int_equal(p->vcpu.exception.vector, EXCEPTION_PF);
    assert_true(p->vcpu.exception.has_error_code);
    assert_int_equal(p->vcpu.exception.error_code, error_code);
    assert_int_equal(p->vcpu.exception.cr2, gva);
}

/* Without entries nothing hits, whatever the address and the size. */
static void empty_entries_never_hit(void **state)
{
    struct paging *p = *state;
    for (unsigned i = 0; i < TLB_ENTRIES; i++) {
        const struct tlb_entry *entry = &p->tlb.entries[TLB_KERNEL][TLB_READ][i];
        for (unsigned offset = 0; offset < PAGE_SIZE; offset += PAGE_SIZE - 1) {
            gva_t low = (gva_t)i << PAGE_SHIFT | offset;
            assert_true(low - entry->tag > PAGE_SIZE - 1);
            assert_true((HIGH | low) - entry->tag > PAGE_SIZE - 1);
            assert_true((~0ull << 22 | low) - entry->tag > PAGE_SIZE - 1);
            /* Nor does a run of a page: the distance of its end counts, too. */
            assert_true(low + PAGE_SIZE - entry->tag > PAGE_SIZE);
        }
    }
}

static void fill_enters_what_was_allowed(void **state)
{
    struct paging *p = *state;
    gpa_t leaf = paging_entry(p, PAGE, 12);
    paging_fill(p, FRAME, PAGE_SIZE);
    paging_map(p, PAGE, FRAME, PAGING_USER);
    expect_fill(p, PAGE + 5, 0, TLB_FILLED);
    assert_true(hits(p, PAGE, 0));
    assert_true(hits(p, PAGE + PAGE_SIZE - 1, 0));
    assert_false(hits(p, PAGE + PAGE_SIZE, 0));
    assert_false(hits(p, PAGE, PF_WRITE)); /* D is not set yet */
    assert_false(hits(p, PAGE, PF_USER));
    assert_int_equal(paging_load(p, leaf) & (PTE_A | PTE_D), PTE_A);
    expect_fill(p, PAGE, PF_WRITE | PF_USER, TLB_FILLED);
    assert_true(hits(p, PAGE, PF_USER));
    assert_true(hits(p, PAGE, PF_WRITE | PF_USER));
    assert_false(hits(p, PAGE, PF_WRITE));
    assert_int_equal(paging_load(p, leaf) & (PTE_A | PTE_D), PTE_A | PTE_D);
    const struct tlb_entry *entry = &p->tlb.entries[TLB_USER][TLB_WRITE][tlb_index(PAGE)];
    assert_int_equal(*(uint64_t *)entry->host, FRAME * 0x9e3779b97f4a7c15ull);
}

static void faults(void **state)
{
    struct paging *p = *state;
    expect_fault(p, PAGE + 7, PF_WRITE, PF_WRITE);
    paging_map(p, PAGE, FRAME, PTE_P);
    expect_fault(p, PAGE + 7, PF_WRITE, PF_PRESENT | PF_WRITE);
    expect_fault(p, PAGE + 7, PF_USER, PF_PRESENT | PF_USER);
    assert_false(hits(p, PAGE, 0) || hits(p, PAGE, PF_USER) || hits(p, PAGE, PF_WRITE));
    expect_fill(p, 1ull << 47, 0, TLB_FAULT);
    assert_int_equal(p->vcpu.exception.vector, EXCEPTION_GP);
    assert_int_equal(p->vcpu.exception.error_code, 0);
}

/* What is not plain RAM is never entered. */
static void slow_pages(void **state)
{
    struct paging *p = *state;
    paging_map(p, PAGE, PAGING_DEVICE, PAGING_KERNEL);
    expect_fill(p, PAGE, 0, TLB_SLOW);
    assert_false(hits(p, PAGE, 0));
    paging_fill(p, FRAME, PAGE_SIZE);
    paging_map(p, PAGE, FRAME, PAGING_KERNEL);
    assert_int_equal(memory_set_code(p->memory, FRAME >> PAGE_SHIFT), 0);
    expect_fill(p, PAGE, 0, TLB_FILLED);
    expect_fill(p, PAGE, PF_WRITE, TLB_SLOW);
    assert_false(hits(p, PAGE, PF_WRITE));
}

/* The right to use a user page comes and goes with AC: the kernel's half never has it. */
static void smap_keeps_user_pages_out_of_the_kernels_half(void **state)
{
    struct paging *p = *state;
    paging_map(p, PAGE, FRAME, PAGING_USER);
    p->vcpu.state.cr4 |= CR4_SMAP;
    vcpu_mode_changed(&p->vcpu);
    expect_fault(p, PAGE, 0, PF_PRESENT);
    p->vcpu.state.rflags |= FLAG_AC;
    expect_fill(p, PAGE, 0, TLB_SLOW);
    assert_false(hits(p, PAGE, 0));
    p->vcpu.state.rflags &= ~(uint64_t)FLAG_AC;
    expect_fault(p, PAGE, 0, PF_PRESENT);
    /* the CPU's own accesses at CPL 3 (to the IDT, say) have no use of AC */
    p->vcpu.state.rflags |= FLAG_AC;
    p->vcpu.state.segment[SS].attributes |= SEGMENT_DPL;
    expect_fault(p, PAGE, 0, PF_PRESENT);
}

/* Pages at both ends and around the borders of blocks, local and global in turn. */
static const unsigned places[] = {0, 1, 63, 64, 127, 512, 1022, 1023};

static gva_t place(unsigned i)
{
    return HIGH + (gva_t)places[i] * PAGE_SIZE;
}

static void fill_places(struct paging *p)
{
    for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
        uint64_t global = i % 2 ? PTE_G : 0;
        paging_map(p, place(i), FRAME + i * PAGE_SIZE, PAGING_USER | global);
        expect_fill(p, place(i), PF_WRITE, TLB_FILLED);
        expect_fill(p, place(i), PF_WRITE | PF_USER, TLB_FILLED);
    }
}

/* How many of the four entries of an address there are. */
static unsigned entries_of(struct paging *p, gva_t gva)
{
    return hits(p, gva, 0) + hits(p, gva, PF_WRITE) + hits(p, gva, PF_USER) +
           hits(p, gva, PF_USER | PF_WRITE);
}

static void flushes(void **state)
{
    struct paging *p = *state;
    for (unsigned round = 0; round < 2; round++) { /* what is entered again is flushed again */
        fill_places(p);
        tlb_flush_non_global(&p->tlb);
        for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
            assert_int_equal(entries_of(p, place(i)), i % 2 ? 4 : 0);
        }
    }
    fill_places(p);
    tlb_flush_page(&p->tlb, place(3) + 123);
    for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
        assert_int_equal(entries_of(p, place(i)), i == 3 ? 0 : 4);
    }
    tlb_flush_all(&p->tlb);
    for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
        assert_int_equal(entries_of(p, place(i)), 0);
    }
    fill_places(p);
    p->vcpu.state.cr4 &= ~(uint64_t)CR4_PGE; /* then no page is global */
    vcpu_mode_changed(&p->vcpu);
    tlb_flush_all(&p->tlb);
    fill_places(p);
    tlb_flush_non_global(&p->tlb);
    for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
        assert_int_equal(entries_of(p, place(i)), 0);
    }
}

static void physical_pages_are_dropped(void **state)
{
    struct paging *p = *state;
    fill_places(p);
    tlb_drop_physical(&p->tlb, (FRAME >> PAGE_SHIFT) + 2, 3, true);
    for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
        bool is_dropped = i >= 2 && i < 5;
        assert_int_equal(entries_of(p, place(i)), is_dropped ? 2 : 4);
        assert_true(hits(p, place(i), 0) && hits(p, place(i), PF_USER));
    }
    tlb_drop_physical(&p->tlb, (FRAME >> PAGE_SHIFT) + 4, 2, false);
    for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
        unsigned left = i == 4 || i == 5 ? 0 : i == 2 || i == 3 ? 2 : 4;
        assert_int_equal(entries_of(p, place(i)), left);
    }
    tlb_drop_physical(&p->tlb, 0, UINT64_MAX, false);
    for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
        assert_int_equal(entries_of(p, place(i)), 0);
    }
}

/* As units look: stubs.c. */
static bool second_hits(struct paging *p, gva_t gva, uint32_t access)
{
    enum tlb_privilege privilege = access & PF_USER ? TLB_USER : TLB_KERNEL;
    enum tlb_access kind = access & PF_WRITE ? TLB_WRITE : TLB_READ;
    const struct tlb_second *second = &p->tlb.second[kind][tlb_second_index(gva)];
    return second->key == (align_down(gva, PAGE_SIZE) | p->tlb.second_key[privilege][kind]);
}

static void the_second_level_has_what_the_tables_lost(void **state)
{
    struct paging *p = *state;
    const gva_t same_place = PAGE + TLB_ENTRIES * PAGE_SIZE;
    paging_fill(p, FRAME, PAGE_SIZE);
    paging_map(p, PAGE, FRAME, PAGING_USER);
    paging_map(p, same_place, OTHER_FRAME, PAGING_USER);
    expect_fill(p, PAGE + 9, PF_USER, TLB_FILLED);
    expect_fill(p, same_place, PF_USER, TLB_FILLED);
    assert_false(hits(p, PAGE, PF_USER));
    assert_true(second_hits(p, PAGE, PF_USER) && second_hits(p, same_place, PF_USER));
    assert_false(second_hits(p, PAGE, 0) || second_hits(p, PAGE, PF_USER | PF_WRITE));
    const struct tlb_second *second = &p->tlb.second[TLB_READ][tlb_second_index(PAGE)];
    assert_int_equal(*(uint64_t *)second->host, FRAME * 0x9e3779b97f4a7c15ull);
    assert_int_equal(second->page, FRAME >> PAGE_SHIFT);
}

static void the_second_level_forgets_what_the_tables_forget(void **state)
{
    struct paging *p = *state;
    paging_map(p, PAGE, FRAME, PAGING_USER | PTE_G);
    paging_map(p, PAGE + PAGE_SIZE, OTHER_FRAME, PAGING_USER);
    for (unsigned round = 0; round < TLB_GENERATIONS + 2; round++) { /* all are used, and again */
        expect_fill(p, PAGE, PF_USER | PF_WRITE, TLB_FILLED);
        expect_fill(p, PAGE + PAGE_SIZE, PF_USER | PF_WRITE, TLB_FILLED);
        assert_true(second_hits(p, PAGE, PF_USER) && second_hits(p, PAGE, PF_USER | PF_WRITE));
        switch (round % 4) {
        case 0:
            tlb_flush_all(&p->tlb);
            break;
        case 1:
            tlb_flush_non_global(&p->tlb); /* global pages, too: it may */
            break;
        case 2:
            tlb_flush_page(&p->tlb, PAGE + 77);
            assert_true(second_hits(p, PAGE + PAGE_SIZE, PF_USER));
            break;
        default:
            tlb_drop_physical(&p->tlb, FRAME >> PAGE_SHIFT, 1, true);
            assert_true(second_hits(p, PAGE, PF_USER));
            assert_false(second_hits(p, PAGE, PF_USER | PF_WRITE));
            tlb_drop_physical(&p->tlb, FRAME >> PAGE_SHIFT, 1, false);
            break;
        }
        assert_false(second_hits(p, PAGE, PF_USER) || second_hits(p, PAGE, PF_USER | PF_WRITE));
    }
}

/* Pieces of two regions that share a place, of a neighbour, and of small pages beside them. */
static void large_pages_are_flushed_as_a_whole(void **state)
{
    struct paging *p = *state;
    const gva_t large = HIGH + 0x40000000, same_place = large + (4ull << 30), small = PAGE;
    const gva_t pages[] = {large + 0x1000, large + 0x1ff000, same_place + 0x3000,
                           same_place + 0x5000, small};
    for (unsigned round = 0; round < 6; round++) {
        uint64_t global = round & 1 ? PTE_G : 0, leaf = FRAME | PAGING_KERNEL | PTE_PS | global;
        paging_store(p, paging_entry(p, large, 21), leaf);
        paging_store(p, paging_entry(p, same_place, 21), leaf);
        paging_map(p, small, OTHER_FRAME, PAGING_KERNEL | global);
        bool both = round < 4;
        for (unsigned i = both ? 0 : 2; i < ARRAY_SIZE(pages); i++) {
            expect_fill(p, pages[i], PF_WRITE, TLB_FILLED);
        }
        gva_t flushed = round & 2 ? same_place : large;
        tlb_flush_page(&p->tlb, flushed + 0x7123);
        for (unsigned i = both ? 0 : 2; i < ARRAY_SIZE(pages); i++) {
            bool is_there = pages[i] == small || (i < 2) != (flushed == large);
            assert_int_equal(entries_of(p, pages[i]), is_there ? 2 : 0);
            assert_int_equal(second_hits(p, pages[i], 0), is_there);
            assert_int_equal(second_hits(p, pages[i], PF_WRITE), is_there);
        }
        tlb_flush_page(&p->tlb, small);
        assert_int_equal(entries_of(p, small), 0);
        tlb_flush_all(&p->tlb);
    }
}

static gpa_t translated(struct paging *p, gva_t gva)
{
    gpa_t gpa = 0;
    assert_int_equal(tlb_translate(&p->vcpu, gva, 0, &gpa), TLB_FILLED);
    return gpa;
}

/*
 * The way to a table is remembered until any flush, as the CPU may; a right that is missing there
 * is looked for again.
 */
static void ways_are_remembered_until_a_flush(void **state)
{
    struct paging *p = *state;
    const gva_t other_way = PAGE + (2ull << 30); /* its table is what the way will lead to */
    void (*const flush[])(struct tlb *) = {tlb_flush_all, tlb_flush_non_global};
    for (unsigned i = 0; i < 3; i++) {
        paging_map(p, PAGE, FRAME, PAGING_USER);
        paging_map(p, other_way, OTHER_FRAME, PAGING_USER);
        gpa_t directory = paging_entry(p, PAGE, 21);
        uint64_t before = paging_load(p, directory);
        uint64_t after = paging_load(p, paging_entry(p, other_way, 21));
        assert_int_equal(translated(p, PAGE + 1), FRAME + 1);
        paging_store(p, directory, after);
        assert_int_equal(translated(p, PAGE + 2), FRAME + 2); /* stale, as it may be */
        if (i < 2) {
            flush[i](&p->tlb);
        } else {
            tlb_flush_page(&p->tlb, 0x1000); /* of any page: SDM volume 3, 4.10.4.1 */
        }
        assert_int_equal(translated(p, PAGE + 3), OTHER_FRAME + 3);
        paging_store(p, directory, before);
        tlb_flush_all(&p->tlb);
    }
    gpa_t directory = paging_entry(p, PAGE, 21);
    uint64_t entry = paging_load(p, directory);
    paging_store(p, directory, entry & ~(uint64_t)PTE_W);
    assert_int_equal(translated(p, PAGE), FRAME);
    expect_fault(p, PAGE, PF_WRITE, PF_PRESENT | PF_WRITE);
    paging_store(p, directory, entry);
    expect_fill(p, PAGE, PF_WRITE, TLB_FILLED);
}

/* Regions that share a place in the cache are not taken for each other; large pages neither. */
static void ways_of_other_regions(void **state)
{
    struct paging *p = *state;
    const gva_t same_place = PAGE + ((gva_t)WALK_CACHE_ENTRIES << 21);
    paging_map(p, PAGE, FRAME, PAGING_USER);
    paging_map(p, same_place, OTHER_FRAME, PAGING_USER);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(translated(p, PAGE), FRAME);
        assert_int_equal(translated(p, same_place), OTHER_FRAME);
    }
    const gva_t large = PAGE + (4 << 20);
    paging_store(p, paging_entry(p, large, 21), 0x400000 | PAGING_USER | PTE_PS);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(translated(p, large + 0x12345), 0x412345);
    }
    /* the region gets a table instead: the bit that says so is looked at each time */
    paging_store(p, paging_entry(p, large, 21), 0);
    expect_fault(p, large + 0x12345, 0, 0);
    paging_map(p, large + 0x12000, FRAME, PAGING_USER);
    assert_int_equal(translated(p, large + 0x12345), FRAME + 0x345);
}

static uint64_t span(struct paging *p, gva_t gva, uint64_t size, uint32_t access, gpa_t gpa)
{
    uint8_t *host = NULL, byte;
    uint64_t length = tlb_span(&p->vcpu, gva, size, access, &host);
    for (uint64_t i = 0; i < length; i += 4093) {
        assert_int_equal(memory_read(p->memory, gpa + i, &byte, 1), 0);
        assert_int_equal(host[i], byte);
    }
    return length;
}

static void spans(void **state)
{
    enum { COUNT = 8 };
    struct paging *p = *state;
    paging_fill(p, FRAME, COUNT * PAGE_SIZE);
    for (unsigned i = 0; i < COUNT; i++) {
        paging_map(p, PAGE + i * PAGE_SIZE, FRAME + i * PAGE_SIZE, PAGING_USER);
    }
    for (unsigned i = 0; i < COUNT; i++) {
        assert_int_equal(span(p, PAGE + i * PAGE_SIZE, 1, PF_WRITE, FRAME + i * PAGE_SIZE), 1);
    }
    const uint64_t all = COUNT * PAGE_SIZE - 100;
    assert_int_equal(span(p, PAGE + 100, 1 << 20, 0, FRAME + 100), all); /* the end is absent */
    assert_int_equal(span(p, PAGE + 100, 1 << 20, PF_WRITE | PF_USER, FRAME + 100), all);
    assert_int_equal(span(p, PAGE + 100, 5000, 0, FRAME + 100), 5000);
    assert_int_equal(span(p, PAGE + 100, 3996, 0, FRAME + 100), 3996);
    assert_int_equal(span(p, PAGE + 100, 3997, 0, FRAME + 100), 3997);
    assert_int_equal(span(p, PAGE - 1, 5, 0, 0), 0);
    /* beyond the last canonical address there is nothing, though the tables go on */
    paging_map(p, (1ull << 47) - PAGE_SIZE, FRAME, PAGING_USER);
    paging_map(p, HIGH, FRAME + PAGE_SIZE, PAGING_USER);
    assert_int_equal(span(p, (1ull << 47) - PAGE_SIZE, 2 * PAGE_SIZE, 0, FRAME), PAGE_SIZE);

    paging_map(p, PAGE + 5 * PAGE_SIZE, FRAME + 7 * PAGE_SIZE, PAGING_USER); /* elsewhere */
    tlb_flush_all(&p->tlb);
    assert_int_equal(span(p, PAGE, 1 << 20, 0, FRAME), 5 * PAGE_SIZE);
    paging_map(p, PAGE + 4 * PAGE_SIZE, FRAME + 4 * PAGE_SIZE, PAGING_KERNEL);
    tlb_flush_all(&p->tlb);
    assert_int_equal(span(p, PAGE, 1 << 20, PF_USER, FRAME), 4 * PAGE_SIZE);
    paging_map(p, PAGE + 3 * PAGE_SIZE, FRAME + 3 * PAGE_SIZE, PTE_P | PTE_U);
    tlb_flush_all(&p->tlb);
    assert_int_equal(span(p, PAGE, 1 << 20, PF_WRITE, FRAME), 3 * PAGE_SIZE);
    assert_int_equal(span(p, PAGE, 1 << 20, 0, FRAME), 5 * PAGE_SIZE);
    assert_int_equal(memory_set_code(p->memory, (FRAME >> PAGE_SHIFT) + 2), 0);
    assert_int_equal(span(p, PAGE, 1 << 20, PF_WRITE, FRAME), 2 * PAGE_SIZE);
    assert_int_equal(span(p, PAGE + 2 * PAGE_SIZE, 9, PF_WRITE, 0), 0);
    assert_int_equal(span(p, PAGE, 1 << 20, 0, FRAME), 5 * PAGE_SIZE);
    paging_map(p, PAGE, PAGING_DEVICE, PAGING_USER);
    tlb_flush_all(&p->tlb);
    assert_int_equal(span(p, PAGE, 9, 0, 0), 0);
}

/* One walk serves a large page; a span goes on in the next one. */
static void spans_of_large_pages(void **state)
{
    enum { LARGE = 2 << 20 };
    struct paging *p = *state;
    paging_fill(p, LARGE, 2 * LARGE);
    paging_store(p, paging_entry(p, PAGE, 21), LARGE | PAGING_USER | PTE_PS);
    paging_store(p, paging_entry(p, PAGE + LARGE, 21), 2 * LARGE | PAGING_USER | PTE_PS);
    assert_int_equal(span(p, PAGE + 5, 8 << 20, PF_WRITE, LARGE + 5), 2 * LARGE - 5);
    assert_true(paging_load(p, paging_entry(p, PAGE + LARGE, 21)) & PTE_D);
    /* the way back: the second lies before the first */
    paging_store(p, paging_entry(p, PAGE, 21), 2 * LARGE | PAGING_USER | PTE_PS);
    paging_store(p, paging_entry(p, PAGE + LARGE, 21), LARGE | PAGING_USER | PTE_PS);
    tlb_flush_all(&p->tlb);
    assert_int_equal(span(p, PAGE + 5, 8 << 20, 0, 2 * LARGE + 5), LARGE - 5);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, paging_setup, paging_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(empty_entries_never_hit),
        TEST(fill_enters_what_was_allowed),
        TEST(faults),
        TEST(slow_pages),
        TEST(smap_keeps_user_pages_out_of_the_kernels_half),
        TEST(flushes),
        TEST(physical_pages_are_dropped),
        TEST(the_second_level_has_what_the_tables_lost),
        TEST(large_pages_are_flushed_as_a_whole),
        TEST(the_second_level_forgets_what_the_tables_forget),
        TEST(ways_are_remembered_until_a_flush),
        TEST(ways_of_other_regions),
        TEST(spans),
        TEST(spans_of_large_pages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
