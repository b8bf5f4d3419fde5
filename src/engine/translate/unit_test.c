/*
 * The tables of units: what is found by which key, what a write retires, where chains lead, and
 * that they say that they are full before they are.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/test_engine.h"
#include "engine/translate/internal.h"
#include "x86/cpuid.h"

enum { RAM_PAGES = 16, HOST_BYTES = 64, PAGE = 3, NEXT = 4, OTHER = 5 };
#define VIRTUAL 0x400000ull

struct fixture {
    struct memory *memory;
    struct cpuid_table *cpuid;
    struct translate_vm *vm;
};

static int setup(void **state)
{
    static struct fixture fixture;
    const struct memory_range ram = {0, RAM_PAGES * PAGE_SIZE};
    const struct cpuid_config model = {.model = CPU_MODEL_V2, .cpus = 1, .tsc_hz = 1000000000};
    struct engine_vm *vm;
    if (memory_new(&ram, 1, "unit_test", &fixture.memory) ||
        cpuid_table_new(&model, &fixture.cpuid)) {
        return -1;
    }
    const struct engine_config config = {.memory = fixture.memory,
                                         .cpuid = fixture.cpuid,
                                         .host = test_host(NULL),
                                         .cpus = 1,
                                         .cache_size = MIB(4)};
    int r = translate_engine.vm_new(&config, &vm);
    fixture.vm = (struct translate_vm *)vm;
    *state = &fixture;
    return r;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    translate_engine.vm_free((struct engine_vm *)fixture->vm);
    cpuid_table_free(fixture->cpuid);
    memory_free(fixture->memory);
    return 0;
}

/* A unit as compile() leaves it: its code next in the cache, its pages marked. */
static struct unit *add(struct fixture *fixture, uint64_t page, uint64_t second, uint16_t offset)
{
    struct translate_vm *vm = fixture->vm;
    struct unit *unit = &vm->units[vm->unit_count++];
    uint32_t start = vm->cache.used;
    *unit = (struct unit){
        .page = page,
        .virtual_page = VIRTUAL,
        .second_page = second,
        .lines = 1ull << (offset >> 6),
        .start = start,
        .saved_entry = start,
        .host_entry = start + 16,
        .end = start + HOST_BYTES,
        .offset = offset,
        .mode = MODE_CODE64,
    };
    vm->cache.used += HOST_BYTES;
    pages_begin_compile(vm, page, second);
    assert_int_equal(memory_set_code(fixture->memory, page), 0);
    if (second != NO_PAGE) {
        assert_int_equal(memory_set_code(fixture->memory, second), 0);
    }
    unit_add(vm, unit);
    pages_end_compile(vm, page, second);
    return unit;
}

static struct unit *look(struct fixture *fixture, uint64_t second, uint16_t offset)
{
    return unit_find(fixture->vm, PAGE, second, offset, VIRTUAL, MODE_CODE64);
}

/* Do stores to the page go through memory, which tells of them? */
static bool is_watched(struct fixture *fixture, uint64_t page)
{
    uint8_t *frame;
    return memory_frame(fixture->memory, page, true, &frame) == FRAME_CODE;
}

static bool retire(struct fixture *fixture, uint64_t page, unsigned offset, unsigned length)
{
    return units_retire(fixture->vm, page << PAGE_SHIFT | offset, length);
}

static void every_part_of_the_key_counts(void **state)
{
    struct fixture *fixture = *state;
    struct translate_vm *vm = fixture->vm;
    struct unit *unit = add(fixture, PAGE, NO_PAGE, 0x123);
    assert_ptr_equal(look(fixture, NO_PAGE, 0x123), unit);
    assert_ptr_equal(look(fixture, NEXT, 0x123), unit);
    assert_null(look(fixture, NO_PAGE, 0x124));
    assert_null(unit_find(vm, NEXT, NO_PAGE, 0x123, VIRTUAL, MODE_CODE64));
    assert_null(unit_find(vm, PAGE, NO_PAGE, 0x123, VIRTUAL + PAGE_SIZE, MODE_CODE64));
    assert_null(unit_find(vm, PAGE, NO_PAGE, 0x123, VIRTUAL, MODE_CODE64 | MODE_USER));
    /* One that goes on in the next page counts only where that page still is the next one. */
    struct unit *across = add(fixture, PAGE, NEXT, 0xffe);
    assert_ptr_equal(look(fixture, NEXT, 0xffe), across);
    assert_null(look(fixture, OTHER, 0xffe));
    assert_null(look(fixture, NO_PAGE, 0xffe));
}

static void writes_retire_by_lines(void **state)
{
    struct fixture *fixture = *state;
    struct unit *first = add(fixture, PAGE, NO_PAGE, 0x40),
                *last = add(fixture, PAGE, NO_PAGE, 0xfc0);
    assert_false(retire(fixture, PAGE, 0, 0x40));
    assert_false(retire(fixture, PAGE, 0x80, 0xf40));
    assert_false(retire(fixture, OTHER, 0x40, 1));
    assert_true(retire(fixture, PAGE, 0x7f, 1));
    assert_true(first->is_retired);
    assert_false(last->is_retired);
    assert_null(look(fixture, NO_PAGE, 0x40));
    assert_true(is_watched(fixture, PAGE));
    /* From the page before. */
    assert_true(retire(fixture, PAGE - 1, 0xfff, 0xfc2));
    assert_true(last->is_retired);
    assert_false(is_watched(fixture, PAGE));
}

static void writes_retire_what_ends_in_the_page(void **state)
{
    struct fixture *fixture = *state;
    struct unit *across = add(fixture, PAGE, NEXT, 0xffe);
    assert_false(retire(fixture, NEXT, INSN_MAX_LENGTH, 1));
    assert_false(across->is_retired);
    assert_true(retire(fixture, NEXT, INSN_MAX_LENGTH - 1, 1));
    assert_true(across->is_retired);
    assert_null(look(fixture, NEXT, 0xffe));
    assert_false(is_watched(fixture, NEXT));
}

static void pages_stay_watched_while_their_bytes_are_read(void **state)
{
    struct fixture *fixture = *state;
    add(fixture, PAGE, NO_PAGE, 0);
    pages_begin_compile(fixture->vm, PAGE, NEXT);
    assert_int_equal(memory_set_code(fixture->memory, NEXT), 0);
    assert_true(retire(fixture, PAGE, 0, 1));
    assert_true(is_watched(fixture, PAGE));
    assert_true(is_watched(fixture, NEXT));
    pages_end_compile(fixture->vm, PAGE, NEXT);
    assert_false(is_watched(fixture, PAGE));
    assert_false(is_watched(fixture, NEXT));
}

/* Where the jump at a place in the cache goes. */
static uint32_t jump_target(const struct translate_vm *vm, uint32_t patch)
{
    return patch + 4 + load_le32(vm->cache.write + patch);
}

static void chains_end_with_their_target(void **state)
{
    struct fixture *fixture = *state;
    struct translate_vm *vm = fixture->vm;
    struct unit *from = add(fixture, PAGE, NO_PAGE, 0), *to = add(fixture, PAGE, NO_PAGE, 0x800);
    uint32_t sites[2];
    for (unsigned i = 0; i < 2; i++) {
        sites[i] = vm->site_count++;
        vm->sites[sites[i]] = (struct site){
            .kind = SITE_CHAIN,
            .flags_home = i == 0 ? FLAGS_HOST : FLAGS_SAVED,
            .patch = from->start + 8 * i,
            .resume = from->start + 32 + 8 * i,
        };
        site_link(vm, sites[i], to);
    }
    assert_int_equal(jump_target(vm, from->start), to->host_entry);
    assert_int_equal(jump_target(vm, from->start + 8), to->saved_entry);
    assert_true(retire(fixture, PAGE, 0x800, 1));
    assert_int_equal(jump_target(vm, from->start), from->start + 32);
    assert_int_equal(jump_target(vm, from->start + 8), from->start + 40);
    /* Nothing is chained to what is retired. */
    site_link(vm, sites[0], to);
    assert_int_equal(jump_target(vm, from->start), from->start + 32);
    /* And what takes its place can be chained to. */
    struct unit *again = add(fixture, PAGE, NO_PAGE, 0x800);
    site_link(vm, sites[0], again);
    assert_int_equal(jump_target(vm, from->start), again->host_entry);
}

static void host_addresses_have_owners(void **state)
{
    struct fixture *fixture = *state;
    struct translate_vm *vm = fixture->vm;
    assert_null(unit_at(vm, cache_address(vm, vm->cache.used)));
    struct unit *units[3];
    for (unsigned i = 0; i < 3; i++) {
        units[i] = add(fixture, PAGE, NO_PAGE, (uint16_t)(0x40 * i));
        vm->cache.used += 16; /* a gap */
    }
    assert_null(unit_at(vm, cache_address(vm, units[0]->start) - 1)); /* stubs */
    for (unsigned i = 0; i < 3; i++) {
        assert_ptr_equal(unit_at(vm, cache_address(vm, units[i]->start)), units[i]);
        assert_ptr_equal(unit_at(vm, cache_address(vm, units[i]->end) - 1), units[i]);
        assert_null(unit_at(vm, cache_address(vm, units[i]->end)));
    }
    assert_null(unit_at(vm, (uint64_t)vm->cache.run - 1));
    assert_null(unit_at(vm, (uint64_t)vm->cache.write));
}

static void all_can_be_forgotten(void **state)
{
    struct fixture *fixture = *state;
    struct translate_vm *vm = fixture->vm;
    uint32_t generation = vm->generation;
    add(fixture, PAGE, NEXT, 0xffe);
    units_forget(vm);
    assert_int_equal(vm->generation, generation + 1);
    assert_null(look(fixture, NEXT, 0xffe));
    assert_false(is_watched(fixture, PAGE));
    assert_false(is_watched(fixture, NEXT));
    assert_false(retire(fixture, PAGE, 0, PAGE_SIZE));
    assert_ptr_equal(add(fixture, PAGE, NO_PAGE, 0), &vm->units[1]);
}

/* A guest chooses how many pages it runs code in. */
static void tables_are_full_before_they_overflow(void **state)
{
    struct fixture *fixture = *state;
    struct translate_vm *vm = fixture->vm;
    uint64_t page = 0;
    for (; !units_are_full(vm); page++) {
        pages_begin_compile(vm, page, NO_PAGE);
    }
    assert_true(page > 1 << 16);
    for (unsigned vcpu = 0; vcpu < ARRAY_SIZE(vm->blocks); vcpu++, page += 2) {
        pages_begin_compile(vm, page, page + 1); /* others that have looked already */
    }
    units_forget(vm);
    assert_false(units_are_full(vm));
    vm->cache.used = vm->cache.size - UNIT_MAX_HOST_BYTES;
    assert_true(units_are_full(vm));
}

static void the_cache_is_one_memory_with_two_rights(void **state)
{
    struct cache cache;
    assert_int_equal(cache_init(&cache, KIB(64)), 0);
    static const uint8_t code[] = {0x8d, 0x47, 0x01, 0xc3}; /* lea eax, [rdi + 1]; ret */
    bytes_copy(cache.write + 100, code, sizeof code);
    int (*function)(int) = (int (*)(int))(uintptr_t)(cache.run + 100);
    assert_int_equal(function(41), 42);
    assert_ptr_not_equal(cache.write, cache.run);
    cache_fini(&cache);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(every_part_of_the_key_counts),
        TEST(writes_retire_by_lines),
        TEST(writes_retire_what_ends_in_the_page),
        TEST(pages_stay_watched_while_their_bytes_are_read),
        TEST(chains_end_with_their_target),
        TEST(host_addresses_have_owners),
        TEST(all_can_be_forgotten),
        TEST(tables_are_full_before_they_overflow),
        cmocka_unit_test(the_cache_is_one_memory_with_two_rights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
