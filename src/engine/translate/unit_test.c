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

enum { RAM_PAGES = 16, HOST_BYTES = 64, OUTLINE_BYTES = 40, PAGE = 3, NEXT = 4, OTHER = 5 };
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
    uint32_t start = vm->cache.parts[PART_STRAIGHT].start;
    uint32_t outlines = vm->cache.parts[PART_OUTLINES].start;
    *unit = (struct unit){
        .page = page,
        .virtual_page = VIRTUAL,
        .second_page = second,
        .parts = {{start, start + HOST_BYTES}, {outlines, outlines + OUTLINE_BYTES}},
        .saved_entry = start,
        .host_entry = start + 16,
        .link_entry = start + 24,
        .inner_saved_entry = start + 4,
        .inner_host_entry = start + 20,
        .displaced = DISPLACED,
        .offset = offset,
        .length = second == NO_PAGE ? 2 : (uint16_t)(PAGE_SIZE - offset),
        .mode = MODE_CODE64,
    };
    vm->cache.parts[PART_STRAIGHT].start += HOST_BYTES;
    vm->cache.parts[PART_OUTLINES].start += OUTLINE_BYTES;
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

static unsigned count_retired(const struct translate_vm *vm)
{
    unsigned count = 0;
    for (uint32_t n = 1; n < vm->unit_count; n++) {
        count += vm->units[n].is_retired;
    }
    return count;
}

/* A store; true if it has retired something. */
static bool retire(struct fixture *fixture, uint64_t page, unsigned offset, unsigned length)
{
    unsigned before = count_retired(fixture->vm);
    units_retire(fixture->vm, page << PAGE_SHIFT | offset, length);
    return count_retired(fixture->vm) != before;
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

static void writes_retire_what_was_made_from_them(void **state)
{
    struct fixture *fixture = *state;
    struct unit *first = add(fixture, PAGE, NO_PAGE, 0x40),
                *last = add(fixture, PAGE, NO_PAGE, 0xfc0);
    assert_false(retire(fixture, PAGE, 0, 0x40));
    assert_false(retire(fixture, PAGE, 0x42, 0xf7e)); /* in the same line, too */
    assert_false(retire(fixture, OTHER, 0x40, 1));
    assert_true(retire(fixture, PAGE, 0x41, 1));
    assert_true(first->is_retired);
    assert_false(last->is_retired);
    assert_null(look(fixture, NO_PAGE, 0x40));
    assert_true(is_watched(fixture, PAGE));
    /* From the page before. */
    assert_false(retire(fixture, PAGE - 1, 0xfff, 0xfc1));
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

/* Stores that hit a unit again and again, until its page is not watched any more. */
static void change_often(struct fixture *fixture, uint64_t page)
{
    unsigned rounds = 0;
    while (!page_is_checked(fixture->vm, page)) {
        assert_true(++rounds < 1000);
        add(fixture, page, NO_PAGE, 0x100);
        assert_true(retire(fixture, page, 0x100, 1));
    }
    assert_true(rounds > 2);
}

/* A unit that checks itself, made from the four bytes that are in memory now. */
static struct unit *add_checked(struct fixture *fixture, uint16_t offset)
{
    struct translate_vm *vm = fixture->vm;
    struct unit *unit = add(fixture, PAGE, NO_PAGE, offset);
    memory_clear_code(fixture->memory, PAGE); /* which compile() would not have asked for */
    uint32_t *outlines = &vm->cache.parts[PART_OUTLINES].start;
    unit->source = (uint32_t)align_up(*outlines, alignof(struct source));
    *outlines = unit->source + sizeof(struct source);
    struct source *source = unit_source(vm, unit);
    uint8_t *frame;
    assert_int_equal(memory_frame(fixture->memory, PAGE, false, &frame), FRAME_OK);
    *source = (struct source){.first = frame + offset, .length = 4, .first_length = 4};
    bytes_copy(source->bytes, source->first, 4);
    bytes_fill(source->mask, 0xff, 4);
    return unit;
}

static void put_number(struct fixture *fixture, unsigned offset, uint32_t value)
{
    gpa_t gpa = (uint64_t)PAGE << PAGE_SHIFT | offset;
    assert_int_equal(memory_write(fixture->memory, gpa, &value, sizeof value), 0);
}

static void pages_that_keep_changing_are_not_watched(void **state)
{
    struct fixture *fixture = *state;
    struct translate_vm *vm = fixture->vm;
    struct unit *other = add(fixture, PAGE, NO_PAGE, 0x800);
    change_often(fixture, PAGE);
    assert_true(other->is_retired);
    assert_false(is_watched(fixture, PAGE));
    assert_false(page_is_checked(vm, OTHER));
    assert_false(page_is_checked(vm, NO_PAGE));
    /* They stay so while new code comes, and are watched again later. */
    struct unit *unit = add_checked(fixture, 0x200);
    vm->next_review = 0;
    units_review(vm);
    assert_true(page_is_checked(vm, PAGE));
    uint64_t hold = vm->pages[vm->checked_pages[0]].hold;
    vm->pages[vm->checked_pages[0]].hold_until = 0;
    page_hold_checked(vm, PAGE);
    vm->next_review = 0;
    units_review(vm);
    assert_true(page_is_checked(vm, PAGE));
    vm->pages[vm->checked_pages[0]].hold_until = 0;
    units_review(vm); /* not so soon */
    assert_true(page_is_checked(vm, PAGE));
    vm->next_review = 0;
    units_review(vm);
    assert_false(page_is_checked(vm, PAGE));
    assert_true(unit->is_retired);
    assert_int_equal(vm->checked_count, 0);
    /* For longer, the next time. */
    change_often(fixture, PAGE);
    assert_int_equal(vm->pages[vm->checked_pages[0]].hold, 2 * hold);
}

static void data_beside_code_is_not_watched_for_long(void **state)
{
    struct fixture *fixture = *state;
    unsigned rounds = 0;
    add(fixture, PAGE, NO_PAGE, 0x100);
    for (; !page_is_checked(fixture->vm, PAGE); rounds++) {
        assert_true(rounds < 100000);
        units_retire(fixture->vm, (uint64_t)PAGE << PAGE_SHIFT | 0x108, 8);
    }
    assert_true(rounds > 50);
}

static void versions_are_found_by_their_bytes(void **state)
{
    struct fixture *fixture = *state;
    struct translate_vm *vm = fixture->vm;
    struct unit *units[VERSIONS_MAX + 1];
    change_often(fixture, PAGE);
    for (uint32_t i = 0; i < VERSIONS_MAX; i++) {
        put_number(fixture, 0x200, i);
        assert_null(look(fixture, NO_PAGE, 0x200));
        units[i] = add_checked(fixture, 0x200);
        assert_ptr_equal(look(fixture, NO_PAGE, 0x200), units[i]);
        assert_ptr_equal(unit_version(vm, units[i]), i ? units[i - 1] : NULL);
    }
    for (uint32_t i = 0; i < VERSIONS_MAX; i++) {
        put_number(fixture, 0x200, i);
        assert_ptr_equal(look(fixture, NO_PAGE, 0x200), units[i]);
    }
    unit_source(vm, units[1])->mask[0] = 0; /* a variable */
    put_number(fixture, 0x200, 99);
    assert_ptr_equal(look(fixture, NO_PAGE, 0x200), units[1]);
    /* The oldest one makes room. */
    struct unit *next = &vm->units[vm->unit_count];
    *next = *units[0];
    next->offset++;
    unit_limit_versions(vm, next);
    assert_false(units[0]->is_retired); /* of another key */
    next->offset--;
    unit_limit_versions(vm, next);
    assert_true(units[0]->is_retired);
    assert_false(units[1]->is_retired);
}

static void units_go_with_their_frames(void **state)
{
    struct fixture *fixture = *state;
    change_often(fixture, PAGE);
    struct unit *unit = add_checked(fixture, 0x200), *across = add(fixture, PAGE - 1, PAGE, 0xffe);
    units_drop(fixture->vm, PAGE + 1, 100);
    assert_false(unit->is_retired);
    units_drop(fixture->vm, PAGE, 1);
    assert_true(unit->is_retired);
    assert_true(across->is_retired);
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
            .unit = unit_number(vm, from),
            .kind = SITE_CHAIN,
            .flags_home = i == 0 ? FLAGS_HOST : FLAGS_SAVED,
            .patch = from->parts[PART_STRAIGHT].start + 8 * i,
            .resume = from->parts[PART_STRAIGHT].start + 32 + 8 * i,
        };
        site_link(vm, sites[i], to);
    }
    assert_int_equal(jump_target(vm, from->parts[PART_STRAIGHT].start), to->inner_host_entry);
    assert_int_equal(jump_target(vm, from->parts[PART_STRAIGHT].start + 8), to->inner_saved_entry);
    assert_true(retire(fixture, PAGE, 0x800, 1));
    assert_int_equal(jump_target(vm, from->parts[PART_STRAIGHT].start),
                     from->parts[PART_STRAIGHT].start + 32);
    assert_int_equal(jump_target(vm, from->parts[PART_STRAIGHT].start + 8),
                     from->parts[PART_STRAIGHT].start + 40);
    /* Nothing is chained to what is retired. */
    site_link(vm, sites[0], to);
    assert_int_equal(jump_target(vm, from->parts[PART_STRAIGHT].start),
                     from->parts[PART_STRAIGHT].start + 32);
    /* And what takes its place can be chained to. */
    struct unit *again = add(fixture, PAGE, NO_PAGE, 0x800);
    site_link(vm, sites[0], again);
    assert_int_equal(jump_target(vm, from->parts[PART_STRAIGHT].start), again->inner_host_entry);
}

/* What a chain leads to is entered with the registers that its end leaves. */
static void chains_keep_to_their_registers(void **state)
{
    enum { OTHERS = 1u << RBX | 1u << RSI | 1u << R10 };
    struct fixture *fixture = *state;
    struct translate_vm *vm = fixture->vm;
    struct unit *usual = add(fixture, PAGE, NO_PAGE, 0), *own = add(fixture, PAGE, NO_PAGE, 0x100);
    struct unit *same = add(fixture, PAGE, NO_PAGE, 0x200);
    own->displaced = same->displaced = OTHERS;
    const struct {
        struct unit *from, *to;
        uint8_t kind, flags_home;
        uint32_t entry, far_entry;
    } chains[] = {
        {own, same, SITE_CHAIN, FLAGS_HOST, same->inner_host_entry, vm->stubs.link},
        {own, usual, SITE_CHAIN, FLAGS_HOST, 0, usual->saved_entry},
        {usual, own, SITE_CHAIN, FLAGS_HOST, own->host_entry, 0},
        {usual, own, SITE_CHAIN, FLAGS_SAVED, own->saved_entry, 0},
        {own, usual, SITE_PLAIN, FLAGS_SAVED, usual->inner_saved_entry, 0},
    };
    uint32_t *straight = &vm->cache.parts[PART_STRAIGHT].start;
    uint32_t starts[ARRAY_SIZE(chains)];
    for (unsigned i = 0; i < ARRAY_SIZE(chains); i++) {
        uint32_t number = vm->site_count++, start = *straight;
        bool has_far = chains[i].kind == SITE_CHAIN && chains[i].from == own;
        *straight += HOST_BYTES;
        store_le32(vm->cache.write + start, 28); /* to its end out of line */
        store_le32(vm->cache.write + start + 40, vm->stubs.link - (start + 44));
        vm->sites[number] = (struct site){
            .unit = unit_number(vm, chains[i].from),
            .kind = chains[i].kind,
            .flags_home = chains[i].flags_home,
            .patch = start,
            .resume = start + 32,
            .far = has_far ? start + 40 : 0,
        };
        site_link(vm, number, chains[i].to);
        assert_int_equal(jump_target(vm, start),
                         chains[i].entry ? chains[i].entry : vm->sites[number].resume);
        assert_int_equal(jump_target(vm, start + 40),
                         has_far ? chains[i].far_entry : vm->stubs.link);
        starts[i] = start;
    }
    assert_true(retire(fixture, PAGE, 0, PAGE_SIZE));
    for (unsigned i = 0; i < ARRAY_SIZE(chains); i++) {
        assert_int_equal(jump_target(vm, starts[i]), starts[i] + 32);
        assert_int_equal(jump_target(vm, starts[i] + 40), vm->stubs.link);
    }
}

static void links_know_their_target_until_it_ends(void **state)
{
    struct fixture *fixture = *state;
    struct translate_vm *vm = fixture->vm;
    struct unit *to = add(fixture, NEXT, NO_PAGE, 0x800);
    struct unit *across = add(fixture, NEXT, PAGE, 0xffe);
    uint32_t number = vm->site_count++;
    struct site *site = &vm->sites[number];
    *site = (struct site){.kind = SITE_LINK, .link = 5};
    site_remember(vm, number, across); /* where its second half is may change alone */
    assert_int_equal(site->target_unit, 0);
    site_remember(vm, number, to);
    assert_int_equal(site->target_unit, unit_number(vm, to));
    assert_int_equal(site->target_page, to->page_number);
    assert_int_equal(site->resume, to->link_entry);
    uint32_t first = load_le32(vm->cache.write + site->link);
    assert_true(retire(fixture, NEXT, 0x800, 1));
    assert_int_equal(site->target_unit, 0);
    assert_int_equal(site->resume, 0);
    assert_int_equal(site->link, 5); /* no code was patched */
    assert_int_equal(load_le32(vm->cache.write + site->link), first);
    struct unit *again = add(fixture, NEXT, NO_PAGE, 0x800);
    struct unit *elsewhere = add(fixture, PAGE, NO_PAGE, 0x800);
    site_remember(vm, number, elsewhere); /* units may have read the page's number just now */
    assert_int_equal(site->target_unit, 0);
    site_remember(vm, number, again);
    assert_int_equal(site->target_unit, unit_number(vm, again));
}

/* A link that may run anywhere knows only what may, too; one of one address knows both. */
static void links_know_what_may_be_where_they_are(void **state)
{
    struct fixture *fixture = *state;
    struct translate_vm *vm = fixture->vm;
    struct unit *from = add(fixture, PAGE, NO_PAGE, 0x100);
    struct unit *to[] = {add(fixture, NEXT, NO_PAGE, 0x800), add(fixture, NEXT, NO_PAGE, 0x800)};
    to[1]->mode |= MODE_ANYWHERE;
    for (unsigned i = 0; i < 4; i++) {
        uint32_t number = vm->site_count++;
        struct site *site = &vm->sites[number];
        *site = (struct site){.kind = SITE_LINK, .unit = unit_number(vm, from)};
        from->mode = MODE_CODE64 | MODE_USER | (i & 2 ? MODE_ANYWHERE : 0);
        site_remember(vm, number, to[i & 1]);
        assert_int_equal(site->target_unit, i == 2 ? 0 : unit_number(vm, to[i & 1]));
        assert_int_equal(site->target_page, i == 2 ? 0 : to[0]->page_number);
    }
    uint32_t number = vm->site_count++;
    vm->sites[number] = (struct site){.kind = SITE_LINK, .unit = unit_number(vm, from)};
    to[1]->source = 1;
    site_remember(vm, number, to[1]); /* its bytes may be others */
    assert_int_equal(vm->sites[number].target_unit, 0);
}

/* A page's home is where its code ran first; where it is not, units for any address run. */
static void pages_have_a_home(void **state)
{
    enum { PLACE = 0x40 };
    struct fixture *fixture = *state;
    struct translate_vm *vm = fixture->vm;
    pages_begin_compile(vm, PAGE, NO_PAGE);
    struct page_units *page = page_find(vm, PAGE);
    page_settle(vm, PAGE, VIRTUAL);
    page_settle(vm, PAGE, VIRTUAL + PAGE_SIZE); /* there is no unit yet */
    assert_true(page_is_away(page, VIRTUAL));
    page_settle(vm, PAGE, VIRTUAL);
    add(fixture, PAGE, NO_PAGE, PLACE);
    page_settle(vm, PAGE, VIRTUAL + PAGE_SIZE);
    assert_false(page_is_away(page, VIRTUAL));
    assert_false(page_is_away(page, VIRTUAL + PAGE_SIZE - 1));
    assert_true(page_is_away(page, VIRTUAL + PAGE_SIZE));
    assert_true(page_is_away(page, VIRTUAL - 1));
    page->is_checked = true; /* such units have constants */
    assert_false(page_is_away(page, VIRTUAL + PAGE_SIZE));
    page->is_checked = false;
    assert_true(retire(fixture, PAGE, PLACE, 1));
    page_settle(vm, PAGE, VIRTUAL + PAGE_SIZE); /* all are gone: a new home */
    assert_true(page_is_away(page, VIRTUAL));
    assert_false(page_is_away(page, VIRTUAL + PAGE_SIZE));
}

static void units_for_any_address_are_found_at_all(void **state)
{
    struct fixture *fixture = *state;
    struct translate_vm *vm = fixture->vm;
    const uint16_t mode = MODE_CODE64 | MODE_ANYWHERE;
    struct unit *unit = add(fixture, PAGE, NO_PAGE, 0x123), *one = add(fixture, PAGE, NEXT, 0xffe);
    unit->mode = one->mode = mode;
    unit->virtual_page = one->virtual_page = 0;
    assert_null(look(fixture, NO_PAGE, 0x123));
    assert_ptr_equal(unit_find(vm, PAGE, NO_PAGE, 0x123, VIRTUAL, mode), unit);
    assert_ptr_equal(unit_find(vm, PAGE, OTHER, 0x123, VIRTUAL + PAGE_SIZE, mode), unit);
    assert_ptr_equal(unit_find(vm, PAGE, NEXT, 0xffe, VIRTUAL, mode), one);
    assert_null(unit_find(vm, PAGE, OTHER, 0xffe, VIRTUAL, mode));
}

/* Breakpoints are at addresses: what may be at any address may be at one of them. */
static void breakpoints_retire_what_may_be_at_them(void **state)
{
    struct fixture *fixture = *state;
    struct translate_vm *vm = fixture->vm;
    struct debug_points points = {.break_count = 0, .breaks = {VIRTUAL + 0x101}};
    struct unit *before = add(fixture, PAGE, NO_PAGE, 0xfe);
    struct unit *at = add(fixture, PAGE, NO_PAGE, 0x100);
    struct unit *behind = add(fixture, PAGE, NO_PAGE, 0x102);
    struct unit *anywhere = add(fixture, OTHER, NO_PAGE, 0x800);
    anywhere->mode |= MODE_ANYWHERE;
    anywhere->virtual_page = 0;
    units_retire_breaks(vm, &points);
    assert_int_equal(count_retired(vm), 0);
    points.break_count = 1;
    units_retire_breaks(vm, &points);
    assert_true(at->is_retired && anywhere->is_retired);
    assert_false(before->is_retired || behind->is_retired);
}

static void host_addresses_have_owners(void **state)
{
    struct fixture *fixture = *state;
    struct translate_vm *vm = fixture->vm;
    struct unit *units[3];
    for (unsigned part = 0; part < PARTS; part++) {
        assert_null(unit_at(vm, cache_address(vm, vm->cache.parts[part].start)));
    }
    for (unsigned i = 0; i < 3; i++) {
        units[i] = add(fixture, PAGE, NO_PAGE, (uint16_t)(0x40 * i));
        vm->cache.parts[PART_STRAIGHT].start += 16; /* gaps */
        vm->cache.parts[PART_OUTLINES].start += 3;
    }
    for (unsigned part = 0; part < PARTS; part++) {
        assert_null(unit_at(vm, cache_address(vm, units[0]->parts[part].start) - 1));
        for (unsigned i = 0; i < 3; i++) {
            const struct extent *extent = &units[i]->parts[part];
            assert_ptr_equal(unit_at(vm, cache_address(vm, extent->start)), units[i]);
            assert_ptr_equal(unit_at(vm, cache_address(vm, extent->end) - 1), units[i]);
            assert_null(unit_at(vm, cache_address(vm, extent->end)));
        }
    }
    assert_null(unit_at(vm, (uint64_t)vm->cache.run - 1));
    assert_null(unit_at(vm, (uint64_t)vm->cache.run + vm->cache.size));
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
    for (unsigned part = 0; part < PARTS; part++) {
        vm->cache.parts[part].start = vm->cache.parts[part].end - UNIT_MAX_HOST_BYTES;
        assert_true(units_are_full(vm));
        units_forget(vm);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(every_part_of_the_key_counts),
        TEST(writes_retire_what_was_made_from_them),
        TEST(writes_retire_what_ends_in_the_page),
        TEST(pages_stay_watched_while_their_bytes_are_read),
        TEST(pages_that_keep_changing_are_not_watched),
        TEST(data_beside_code_is_not_watched_for_long),
        TEST(versions_are_found_by_their_bytes),
        TEST(units_go_with_their_frames),
        TEST(chains_end_with_their_target),
        TEST(links_know_their_target_until_it_ends),
        TEST(links_know_what_may_be_where_they_are),
        TEST(pages_have_a_home),
        TEST(units_for_any_address_are_found_at_all),
        TEST(breakpoints_retire_what_may_be_at_them),
        TEST(chains_keep_to_their_registers),
        TEST(host_addresses_have_owners),
        TEST(all_can_be_forgotten),
        TEST(tables_are_full_before_they_overflow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
