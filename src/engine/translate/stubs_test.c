/*
 * Stubs that do without C what C would do: the slot of a link is filled only with what is where the
 * link says, and an entry of the second-level soft TLB is moved with all that belongs to it. They
 * run as units call them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/test_engine.h"
#include "engine/translate/emit.h"
#include "x86/cpuid.h"

enum { RAM_SIZE = 1 << 20, LINK = 3, SITE = 5, PAGE = 7, FROM = 1 };
#define TARGET 0x7000123456ull

struct fixture {
    struct test_engine engine;
    struct cpuid_table *cpuid;
    struct block *block;
    struct translate_vm *vm;
    struct site *site;
    uint32_t target; /* cache offset of what the link leads to */
};

/* Host code behind what there is: afterwards it begins at the offset returned. */
static struct emitter emit_begin(struct fixture *fixture)
{
    struct cache *cache = &fixture->vm->cache;
    return (struct emitter){.at = cache->write + cache->parts[PART_STRAIGHT].start,
                            .base = cache->write};
}

static uint32_t emit_end(struct fixture *fixture, struct emitter *e)
{
    struct extent *room = &fixture->vm->cache.parts[PART_STRAIGHT];
    uint32_t start = room->start;
    room->start = emit_offset(e);
    return start;
}

/* What shows the registers that it was entered with, and leaves. */
static uint32_t emit_target(struct fixture *fixture)
{
    struct emitter e = emit_begin(fixture);
    emit_store(&e, RAX, gpr_slot(RBX));
    emit_store(&e, RCX, gpr_slot(RBP));
    emit_store(&e, SCRATCH, gpr_slot(RSI));
    emit_jump(&e, fixture->vm->stubs.leave);
    return emit_end(fixture, &e);
}

static int setup(void **state)
{
    static struct fixture fixture;
    const struct memory_range ram = {0, RAM_SIZE};
    const struct cpuid_config model = {.model = CPU_MODEL_V2, .cpus = 1, .tsc_hz = 1000000000};
    if (cpuid_table_new(&model, &fixture.cpuid)) {
        return -1;
    }
    const struct engine_config config = {
        .cpuid = fixture.cpuid, .host = test_host(NULL), .cpus = 1, .cache_size = MIB(4)};
    int r = test_engine_open(&fixture.engine, &translate_engine, &ram, 1, config, 0);
    *state = &fixture;
    if (r) {
        return r;
    }
    fixture.block = (struct block *)fixture.engine.vcpu;
    fixture.vm = fixture.block->vm;
    fixture.block->mode = MODE_CODE64 | MODE_USER;
    fixture.vm->link_count[PRIVILEGE_USER] = 3 * FILLED_NOTED;
    links_prepare(fixture.vm);
    stack_reset(fixture.block, PRIVILEGE_USER);
    space_activate(fixture.block);
    fixture.target = emit_target(&fixture);
    fixture.vm->units[FROM] = (struct unit){.mode = MODE_CODE64 | MODE_USER};
    fixture.site = &fixture.vm->sites[SITE];
    *fixture.site = (struct site){.kind = SITE_LINK,
                                  .unit = FROM,
                                  .link = LINK,
                                  .target = TARGET,
                                  .target_page = PAGE,
                                  .resume = fixture.target};
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    test_engine_close(&fixture->engine);
    cpuid_table_free(fixture->cpuid);
    return 0;
}

/* SCRATCH = address, SCRATCH2 = the site: run the code at a cache offset until it leaves. */
static void enter(struct fixture *fixture, uint32_t host, uint64_t address)
{
    struct translate_vm *vm = fixture->vm;
    struct block *block = fixture->block;
    void (*stub)(struct block *, uint64_t) = (void *)cache_address(vm, vm->stubs.enter);
    block->address = address;
    block->vcpu.state.gpr[RAX] = 0x1111;
    block->vcpu.state.gpr[RCX] = 0x2222;
    stub(block, cache_address(vm, host));
}

/* ---- links ---- */

static uint32_t emit_link_use(struct fixture *fixture)
{
    struct emitter e = emit_begin(fixture);
    emit_constant(&e, SCRATCH2, SITE);
    emit_jump(&e, fixture->vm->stubs.fill);
    return emit_end(fixture, &e);
}

static uint64_t slot(const struct fixture *fixture, uint32_t link)
{
    return fixture->block->space->data->links[link];
}

static bool is_empty(const struct fixture *fixture, uint32_t link)
{
    return slot(fixture, link) == cache_address(fixture->vm, fixture->vm->stubs.fill);
}

/* Use the link. True if it was the stub that knew where it leads. */
static bool uses_stub(struct fixture *fixture, uint32_t use, uint64_t address)
{
    struct block *block = fixture->block;
    uint64_t *gpr = block->vcpu.state.gpr;
    gpr[RBX] = gpr[RBP] = gpr[RSI] = 0;
    block->reason = LEAVE_AGAIN;
    uint64_t asked = block->counters.values[COUNT_EXIT_LINK];
    enter(fixture, use, address);
    bool has_asked = block->counters.values[COUNT_EXIT_LINK] != asked;
    if (has_asked) { /* with what the unit had in the registers */
        assert_int_equal(block->vcpu.state.rip, TARGET);
        assert_int_equal(gpr[RAX], 0x1111);
        assert_int_equal(gpr[RCX], 0x2222);
        assert_int_equal(block->reason, LEAVE_TRANSLATE);
        return false;
    }
    assert_int_equal(gpr[RBX], 0x1111);
    assert_int_equal(gpr[RBP], 0x2222);
    assert_int_equal(gpr[RSI], address);
    return true;
}

static void links_are_filled_where_their_page_is(void **state)
{
    struct fixture *fixture = *state;
    struct block *block = fixture->block;
    struct page_units *pages = fixture->vm->pages;
    uint32_t use = emit_link_use(fixture);
    assert_false(uses_stub(fixture, use, TARGET)); /* nobody knows where the page is */
    page_bind(block, &pages[PAGE + 1], TARGET);
    assert_false(uses_stub(fixture, use, TARGET)); /* another page is there */
    page_bind(block, &pages[PAGE], TARGET + PAGE_SIZE);
    assert_false(uses_stub(fixture, use, TARGET)); /* it is elsewhere */
    assert_true(is_empty(fixture, LINK));
    space_forget_lookups(block, PRIVILEGE_USER);
    page_bind(block, &pages[PAGE], align_down(TARGET, PAGE_SIZE));
    assert_true(uses_stub(fixture, use, TARGET));
    assert_int_equal(slot(fixture, LINK), cache_address(fixture->vm, fixture->target));
    assert_true(is_empty(fixture, LINK - 1));
    assert_true(is_empty(fixture, LINK + 1));
    space_forget_lookups(block, PRIVILEGE_USER);
    assert_true(is_empty(fixture, LINK));
}

static void links_to_nothing_are_not_filled(void **state)
{
    struct fixture *fixture = *state;
    uint32_t use = emit_link_use(fixture);
    page_bind(fixture->block, &fixture->vm->pages[PAGE], TARGET);
    fixture->site->target_page = 0; /* it has never led anywhere */
    assert_false(uses_stub(fixture, use, TARGET));
    fixture->site->target_page = PAGE;
    fixture->site->resume = 0; /* the unit is retired */
    assert_false(uses_stub(fixture, use, TARGET));
    assert_true(is_empty(fixture, LINK));
}

/* A large program has more links than can be noted one by one. */
static void any_number_of_filled_links_is_forgotten(void **state)
{
    struct fixture *fixture = *state;
    const uint32_t numbers[] = {1, FILLED_NOTED - 1, FILLED_NOTED, FILLED_NOTED + 1,
                                3 * FILLED_NOTED};
    uint32_t use = emit_link_use(fixture);
    for (unsigned i = 0; i < 2 * ARRAY_SIZE(numbers); i++) {
        uint32_t count = numbers[i / 2];
        page_bind(fixture->block, &fixture->vm->pages[PAGE], TARGET);
        for (uint32_t n = 0; n < count; n++) { /* the last one last, or first */
            fixture->site->link = i & 1 ? n : count - 1 - n;
            assert_true(uses_stub(fixture, use, TARGET));
        }
        const struct filled *filled = &fixture->block->space->data->links_filled;
        assert_int_equal(filled->count, count < FILLED_NOTED + 1 ? count : FILLED_NOTED + 1);
        space_forget_lookups(fixture->block, PRIVILEGE_USER);
        for (uint32_t n = 0; n < 3 * FILLED_NOTED; n++) {
            assert_true(is_empty(fixture, n));
        }
    }
}

/* ---- the second level of the soft TLB ---- */

/* Call the stub of a miss as a check does, and go on behind it. */
static uint32_t emit_miss_use(struct fixture *fixture, enum privilege privilege,
                              enum tlb_access access)
{
    struct emitter e = emit_begin(fixture);
    emit_constant(&e, SCRATCH2, SITE);
    emit_call(&e, fixture->vm->stubs.memory[privilege][access]);
    emit_store(&e, RAX, gpr_slot(RBX));
    emit_store(&e, RCX, gpr_slot(RBP));
    emit_store(&e, SCRATCH, gpr_slot(RSI));
    emit_store(&e, SCRATCH2, gpr_slot(RDI));
    emit_jump(&e, fixture->vm->stubs.leave);
    return emit_end(fixture, &e);
}

static void test_move(struct fixture *fixture, enum privilege p, enum tlb_access access)
{
    enum { FRAME = 0x1234, HOST_FRAME = 0x5678000 };
    enum tlb_privilege privilege = tlb_privilege(p);
    struct tlb *tlb = fixture->block->vcpu.tlb;
    const uint64_t *gpr = fixture->block->vcpu.state.gpr;
    unsigned index = tlb_index(TARGET);
    const struct tlb_entry *entry = &tlb->entries[privilege][access][index];
    tlb->second[access][tlb_second_index(TARGET)] = (struct tlb_second){
        .key = align_down(TARGET, PAGE_SIZE) | tlb->second_key[privilege][access],
        .host = HOST_FRAME,
        .page = FRAME | TLB_GLOBAL};
    enter(fixture, emit_miss_use(fixture, p, access), TARGET);
    assert_int_equal(gpr[RBX], 0x1111);
    assert_int_equal(gpr[RBP], 0x2222);
    assert_int_equal(gpr[RSI], TARGET);
    assert_int_equal(gpr[RDI], SITE);
    assert_int_equal(entry->tag, align_down(TARGET, PAGE_SIZE));
    assert_int_equal(entry->host, HOST_FRAME);
    /* Whoever drops entries finds it by its page. */
    assert_int_equal(tlb->pages[privilege][access][index], FRAME | TLB_GLOBAL);
    assert_int_equal(tlb->blocks[privilege][access][index / TLB_BLOCK],
                     TLB_BLOCK_USED | TLB_BLOCK_LOCAL);
    tlb_drop_physical(tlb, FRAME + 1, 1, false);
    assert_int_equal(entry->host, HOST_FRAME);
    tlb_drop_physical(tlb, FRAME, 1, false);
    assert_int_equal(entry->tag, tlb_invalid_tag(index));
}

static void entries_are_moved_with_their_page(void **state)
{
    for (unsigned p = 0; p < PRIVILEGES; p++) {
        test_move(*state, (enum privilege)p, TLB_READ);
        test_move(*state, (enum privilege)p, TLB_WRITE);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(links_are_filled_where_their_page_is),
        TEST(links_to_nothing_are_not_filled),
        TEST(any_number_of_filled_links_is_forgotten),
        TEST(entries_are_moved_with_their_page),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
