/*
 * Address spaces: what is looked up for one is there again when the guest comes back to it, and is
 * gone when the guest says that its mappings changed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/test_engine.h"
#include "engine/translate/internal.h"
#include "x86/cpuid.h"

enum { RAM_SIZE = 1 << 20, JUMP = 7, LINK = 3, BOUND = 9, HOST = 0x1234 };
#define USER_PAGE   0x400000ull
#define KERNEL_PAGE 0xffffffff81000000ull

struct fixture {
    struct test_engine engine;
    struct cpuid_table *cpuid;
    struct block *block;
    uint64_t unresolved[PRIVILEGES]; /* what a link slot holds that is not filled */
};

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
    fixture.block->vcpu.state.cr4 |= CR4_PCIDE;
    links_prepare(fixture.block->vm);
    const struct translate_vm *vm = fixture.block->vm;
    fixture.unresolved[PRIVILEGE_KERNEL] = cache_address(vm, vm->stubs.link);
    fixture.unresolved[PRIVILEGE_USER] = cache_address(vm, vm->stubs.fill);
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    test_engine_close(&fixture->engine);
    cpuid_table_free(fixture->cpuid);
    return 0;
}

static void switch_to(struct block *block, uint16_t pcid)
{
    block->vcpu.state.cr3 = 0x10000ull * (pcid + 1u) | pcid;
    translate_hooks.flush(&block->vcpu, FLUSH_SWITCH, 0, 0);
}

static void flush(struct block *block, enum flush_kind kind, gva_t gva, uint16_t pcid)
{
    translate_hooks.flush(&block->vcpu, kind, gva, pcid);
}

static void fill(struct block *block, enum privilege privilege, uint32_t link)
{
    uint16_t mode = block->mode;
    block->mode = privilege == PRIVILEGE_USER ? MODE_CODE64 | MODE_USER : MODE_CODE64;
    link_fill(block, link, HOST);
    block->mode = mode;
}

/* As the helpers fill in what they have looked up. */
static void fill_user(struct block *block)
{
    jump_fill(block, PRIVILEGE_USER, USER_PAGE + JUMP, HOST);
    block->plain_jumps[PRIVILEGE_USER][JUMP] = (struct jump_entry){USER_PAGE + JUMP, HOST};
    block->plain_filled = true;
    fill(block, PRIVILEGE_USER, LINK);
    page_bind(block, &block->vm->pages[BOUND], USER_PAGE + JUMP);
    block->exec_pages[PRIVILEGE_USER][exec_page_bit(USER_PAGE) >> 6] |=
        1ull << (exec_page_bit(USER_PAGE) & 63);
}

static void fill_kernel(struct block *block)
{
    jump_fill(block, PRIVILEGE_KERNEL, KERNEL_PAGE + JUMP, HOST);
    fill(block, PRIVILEGE_KERNEL, LINK);
    block->exec_pages[PRIVILEGE_KERNEL][exec_page_bit(KERNEL_PAGE) >> 6] |=
        1ull << (exec_page_bit(KERNEL_PAGE) & 63);
}

static void check_user(const struct fixture *fixture, bool there)
{
    const struct space_data *data = fixture->block->space->data;
    assert_int_equal(data->jumps[jump_index(USER_PAGE + JUMP)].gva == USER_PAGE + JUMP, there);
    const struct jump_entry *plain = &fixture->block->plain_jumps[PRIVILEGE_USER][JUMP];
    assert_true(there || plain->gva != USER_PAGE + JUMP);
    assert_int_equal(data->links[LINK], there ? HOST : fixture->unresolved[PRIVILEGE_USER]);
    assert_int_equal(data->bindings[BOUND], there ? binding_of(USER_PAGE) : 0);
}

static void check_kernel(const struct fixture *fixture, bool there)
{
    const struct block *block = fixture->block;
    assert_int_equal(block->kernel_jumps[jump_index(KERNEL_PAGE + JUMP)].gva == KERNEL_PAGE + JUMP,
                     there);
    assert_int_equal(block->kernel_links[LINK],
                     there ? HOST : fixture->unresolved[PRIVILEGE_KERNEL]);
}

/* The top frame of a private stack must not be one that was pushed before. */
/* Who returns by the bottom frame is looked up; an address that is not canonical never does. */
static bool stack_is_empty(const struct block *block, enum privilege privilege)
{
    const uint64_t *top =
        (const uint64_t *)(privilege == mode_privilege(block->mode) ? block->stack
                                                                    : block->stacks[privilege]);
    return top[0] == cache_address(block->vm, block->vm->stubs.indirect[privilege]) &&
           is_canonical(top[1]);
}

static void the_last_ones_are_kept(void **state)
{
    struct fixture *fixture = *state;
    struct block *block = fixture->block;
    for (uint16_t pcid = 1; pcid <= SPACES_MAX; pcid++) {
        switch_to(block, pcid);
        check_user(fixture, false);
        fill_user(block);
    }
    for (uint16_t pcid = 1; pcid <= SPACES_MAX; pcid++) {
        switch_to(block, pcid);
        check_user(fixture, true);
        assert_ptr_equal(block->vcpu.tlb, &block->space->data->tlb);
    }
    switch_to(block, SPACES_MAX + 1); /* takes the place of 1 */
    check_user(fixture, false);
    switch_to(block, 2);
    check_user(fixture, true);
    switch_to(block, 1);
    check_user(fixture, false);
}

static void without_pcids_there_is_one(void **state)
{
    struct fixture *fixture = *state;
    struct block *block = fixture->block;
    block->vcpu.state.cr4 &= ~(uint64_t)CR4_PCIDE;
    switch_to(block, 1);
    struct space *space = block->space;
    fill_user(block);
    switch_to(block, 2);
    assert_ptr_equal(block->space, space);
    /* A load of CR3 is a flush, then. */
    flush(block, FLUSH_NON_GLOBAL, 0, 0);
    check_user(fixture, false);
}

static void one_pcid_can_be_flushed(void **state)
{
    struct fixture *fixture = *state;
    struct block *block = fixture->block;
    fill_kernel(block);
    switch_to(block, 1);
    fill_user(block);
    switch_to(block, 2);
    fill_user(block);
    flush(block, FLUSH_NON_GLOBAL, 0, 1);
    check_user(fixture, true);
    switch_to(block, 1);
    check_user(fixture, false);
    check_kernel(fixture, true);
    flush(block, FLUSH_ALL, 0, 0);
    check_kernel(fixture, false);
    switch_to(block, 2);
    check_user(fixture, false);
}

static void one_page_can_be_flushed(void **state)
{
    struct fixture *fixture = *state;
    struct block *block = fixture->block;
    switch_to(block, 1);
    fill_user(block);
    fill_kernel(block);
    const gva_t elsewhere = 0x500000;
    assert_int_not_equal(exec_page_bit(elsewhere), exec_page_bit(USER_PAGE));
    assert_int_not_equal(exec_page_bit(elsewhere), exec_page_bit(KERNEL_PAGE));
    flush(block, FLUSH_PAGE, elsewhere, 0);
    check_user(fixture, true);
    check_kernel(fixture, true);
    switch_to(block, 2);
    flush(block, FLUSH_PAGE, USER_PAGE, 0); /* it may be global: in every space */
    check_kernel(fixture, true);
    switch_to(block, 1);
    check_user(fixture, false);
    flush(block, FLUSH_PAGE, KERNEL_PAGE, 0);
    check_kernel(fixture, false);
}

static bool are_unresolved(const struct fixture *fixture, enum privilege privilege,
                           const uint64_t *links, uint32_t end)
{
    for (uint32_t i = 0; i < end; i++) {
        if (links[i] != fixture->unresolved[privilege]) {
            return false;
        }
    }
    return true;
}

/* A large program has more links than can be noted one by one. */
static void any_number_of_links_is_forgotten(void **state)
{
    struct fixture *fixture = *state;
    struct block *block = fixture->block;
    const uint32_t numbers[] = {1, FILLED_NOTED - 1, FILLED_NOTED, FILLED_NOTED + 1,
                                3 * FILLED_NOTED};
    block->vm->link_count[PRIVILEGE_KERNEL] = 3 * FILLED_NOTED;
    block->vm->link_count[PRIVILEGE_USER] = 3 * FILLED_NOTED;
    links_prepare(block->vm);
    for (unsigned p = 0; p < PRIVILEGES; p++) {
        const uint64_t *links =
            p == PRIVILEGE_USER ? block->space->data->links : block->kernel_links;
        for (unsigned i = 0; i < ARRAY_SIZE(numbers); i++) {
            for (uint32_t n = numbers[i]; n-- > 0;) {
                fill(block, (enum privilege)p, n); /* the last one first */
            }
            assert_int_equal(links[numbers[i] - 1], HOST);
            space_forget_lookups(block, (enum privilege)p);
            assert_true(are_unresolved(fixture, (enum privilege)p, links, 3 * FILLED_NOTED));
        }
    }
}

/* And more pages with code. */
static void any_number_of_bindings_is_forgotten(void **state)
{
    struct fixture *fixture = *state;
    struct block *block = fixture->block;
    const uint32_t numbers[] = {1, FILLED_NOTED - 1, FILLED_NOTED, FILLED_NOTED + 1,
                                3 * FILLED_NOTED};
    const uint64_t *bindings = block->space->data->bindings;
    for (unsigned i = 0; i < ARRAY_SIZE(numbers); i++) {
        for (uint32_t n = numbers[i]; n > 0; n--) { /* the last one first */
            page_bind(block, &block->vm->pages[n], USER_PAGE + n * PAGE_SIZE);
            assert_int_equal(bindings[n], binding_of(USER_PAGE + n * PAGE_SIZE));
        }
        space_forget_lookups(block, PRIVILEGE_USER);
        for (uint32_t n = 0; n <= 3 * FILLED_NOTED; n++) {
            assert_int_equal(bindings[n], 0);
        }
    }
}

/* A page may be mapped twice: the slots of its links are for one of its addresses. */
static void pages_are_bound_where_they_were_first(void **state)
{
    struct fixture *fixture = *state;
    struct block *block = fixture->block;
    const struct page_units *page = &block->vm->pages[BOUND];
    switch_to(block, 1);
    assert_false(page_is_bound_elsewhere(block, page, USER_PAGE));
    page_bind(block, page, USER_PAGE + 5);
    assert_false(page_is_bound_elsewhere(block, page, USER_PAGE + 6));
    assert_true(page_is_bound_elsewhere(block, page, USER_PAGE + PAGE_SIZE));
    page_bind(block, page, USER_PAGE + PAGE_SIZE);
    assert_false(page_is_bound_elsewhere(block, page, USER_PAGE));
    assert_true(page_is_bound_elsewhere(block, page, USER_PAGE + PAGE_SIZE));
    switch_to(block, 2); /* every space for itself */
    assert_false(page_is_bound_elsewhere(block, page, USER_PAGE + PAGE_SIZE));
    switch_to(block, 1);
    assert_true(page_is_bound_elsewhere(block, page, USER_PAGE + PAGE_SIZE));
    flush(block, FLUSH_NON_GLOBAL, 0, 1);
    assert_false(page_is_bound_elsewhere(block, page, USER_PAGE + PAGE_SIZE));
}

static void links_are_ready_before_they_are_used(void **state)
{
    struct fixture *fixture = *state;
    struct translate_vm *vm = fixture->block->vm;
    const uint32_t limits[PRIVILEGES] = {KERNEL_LINKS_MAX, USER_LINKS_MAX};
    for (unsigned p = 0; p < PRIVILEGES; p++) {
        for (; !units_are_full(vm); vm->link_count[p] += UNIT_MAX_INSTRUCTIONS) {
            links_prepare(vm);
            assert_true(vm->links_ready[p] >= vm->link_count[p] + UNIT_MAX_LINKS);
            assert_true(vm->links_ready[p] <= limits[p]);
        }
        vm->link_count[p] = 0;
    }
    assert_true(are_unresolved(fixture, PRIVILEGE_KERNEL, fixture->block->kernel_links,
                               vm->links_ready[PRIVILEGE_KERNEL]));
    for (unsigned i = 0; i < SPACES_MAX; i++) {
        assert_true(are_unresolved(fixture, PRIVILEGE_USER, fixture->block->spaces[i].data->links,
                                   vm->links_ready[PRIVILEGE_USER]));
    }
}

static void kernel_code_is_kept_if_it_is_global(void **state)
{
    struct fixture *fixture = *state;
    struct block *block = fixture->block;
    switch_to(block, 1);
    fill_kernel(block);
    switch_to(block, 2);
    check_kernel(fixture, true);
    block->kernel_is_local = true;
    switch_to(block, 2); /* the same one */
    check_kernel(fixture, true);
    switch_to(block, 1);
    check_kernel(fixture, false);
    assert_false(block->kernel_is_local);
}

static void returns_do_not_cross_a_switch(void **state)
{
    struct fixture *fixture = *state;
    struct block *block = fixture->block;
    for (unsigned p = 0; p < PRIVILEGES; p++) {
        block->mode = p == PRIVILEGE_USER ? MODE_CODE64 | MODE_USER : MODE_CODE64;
        switch_to(block, 1);
        uint64_t *top = (uint64_t *)block->stack - 2;
        top[0] = HOST;
        top[1] = USER_PAGE;
        block->stack = (uint64_t)top;
        switch_to(block, 2);
        /* Kernel code is the same on the other side. */
        assert_int_equal(stack_is_empty(block, (enum privilege)p), p == PRIVILEGE_USER);
        stack_reset(block, (enum privilege)p);
        assert_true(stack_is_empty(block, (enum privilege)p));
    }
}

/* Whatever the guest jumps to: an entry that holds nothing says nothing of it. */
static void empty_jump_entries_never_hit(void **state)
{
    struct fixture *fixture = *state;
    const struct block *block = fixture->block;
    for (unsigned p = 0; p < PRIVILEGES; p++) {
        const struct jump_entry *jumps =
            p == PRIVILEGE_USER ? block->space->data->jumps : block->kernel_jumps;
        for (unsigned i = 0; i < JUMP_ENTRIES; i++) {
            assert_int_not_equal(jump_index(jumps[i].gva), i);
        }
        for (unsigned i = 0; i < PLAIN_ENTRIES; i++) {
            uint64_t gva = block->plain_jumps[p][i].gva;
            assert_int_not_equal(jump_index(gva) & (PLAIN_ENTRIES - 1), i);
        }
    }
}

static void a_block_is_the_same_through_all_spaces(void **state)
{
    struct fixture *fixture = *state;
    struct block *block = fixture->block;
    for (unsigned i = 0; i < SPACES_MAX; i++) {
        struct block *alias = block->spaces[i].alias;
        alias->vcpu.state.gpr[RBX] = 100 + i;
        assert_int_equal(block->vcpu.state.gpr[RBX], 100 + i);
        assert_ptr_equal(alias->self, block);
        assert_ptr_equal(block->spaces[i].data, (uint8_t *)alias + SPACE_OFFSET);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(the_last_ones_are_kept),
        TEST(without_pcids_there_is_one),
        TEST(one_pcid_can_be_flushed),
        TEST(one_page_can_be_flushed),
        TEST(any_number_of_links_is_forgotten),
        TEST(any_number_of_bindings_is_forgotten),
        TEST(pages_are_bound_where_they_were_first),
        TEST(links_are_ready_before_they_are_used),
        TEST(kernel_code_is_kept_if_it_is_global),
        TEST(returns_do_not_cross_a_switch),
        TEST(empty_jump_entries_never_hit),
        TEST(a_block_is_the_same_through_all_spaces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
