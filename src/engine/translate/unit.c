/*
 * Units and where they are found: by key (page, offset, virtual page, mode), by guest-physical
 * page (to retire them when its bytes change), by host address (to make faults precise), and the
 * chains between them. All under vm->lock.
 */
#include <sys/mman.h>

#include "base/error.h"
#include "engine/translate/internal.h"

enum { UNIT_HASH = 1 << 18, PAGE_HASH = 1 << 14 };

static void *reserve(size_t size)
{
    void *area = mmap(NULL, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return area == MAP_FAILED ? NULL : area;
}

int units_init(struct translate_vm *vm)
{
    vm->units = reserve(sizeof(struct unit) * UNITS_MAX);
    vm->sites = reserve(sizeof(struct site) * SITES_MAX);
    vm->pages = reserve(sizeof(struct page_units) * PAGES_MAX);
    vm->unit_hash = reserve(sizeof(uint32_t) * UNIT_HASH);
    vm->page_hash = reserve(sizeof(uint32_t) * PAGE_HASH);
    if (!vm->units || !vm->sites || !vm->pages || !vm->unit_hash || !vm->page_hash) {
        return fail(-errno, "reserve addresses for the tables of the translator: %m");
    }
    vm->unit_count = vm->site_count = vm->page_count = 1; /* number 0 means none */
    return 0;
}

static void unreserve(void *area, size_t size)
{
    if (area) {
        munmap(area, size);
    }
}

void units_fini(struct translate_vm *vm)
{
    unreserve(vm->units, sizeof(struct unit) * UNITS_MAX);
    unreserve(vm->sites, sizeof(struct site) * SITES_MAX);
    unreserve(vm->pages, sizeof(struct page_units) * PAGES_MAX);
    unreserve(vm->unit_hash, sizeof(uint32_t) * UNIT_HASH);
    unreserve(vm->page_hash, sizeof(uint32_t) * PAGE_HASH);
}

static uint32_t *unit_bucket(struct translate_vm *vm, uint64_t page, uint16_t offset)
{
    uint64_t key = (page << PAGE_SHIFT | offset) * 0x9e3779b97f4a7c15ull;
    return &vm->unit_hash[key >> 46 & (UNIT_HASH - 1)];
}

static uint32_t *page_bucket(struct translate_vm *vm, uint64_t page)
{
    return &vm->page_hash[(page * 0x9e3779b97f4a7c15ull) >> 50 & (PAGE_HASH - 1)];
}

struct page_units *page_find(struct translate_vm *vm, uint64_t page)
{
    for (uint32_t n = *page_bucket(vm, page); n; n = vm->pages[n].next_in_hash) {
        if (vm->pages[n].page == page) {
            return &vm->pages[n];
        }
    }
    return NULL;
}

static struct page_units *page_make(struct translate_vm *vm, uint64_t number)
{
    struct page_units *page = page_find(vm, number);
    if (!page) {
        ASSERT(vm->page_count < PAGES_MAX);
        page = &vm->pages[vm->page_count];
        uint32_t *bucket = page_bucket(vm, number);
        *page = (struct page_units){.page = number, .next_in_hash = *bucket};
        *bucket = vm->page_count++;
    }
    return page;
}

bool units_are_full(const struct translate_vm *vm)
{
    enum { PAGES_OF_VCPUS = 4 * ARRAY_SIZE(vm->blocks) };
    return !cache_has_room(&vm->cache, 2 * UNIT_MAX_HOST_BYTES) ||
           vm->unit_count + 1 >= UNITS_MAX || vm->site_count + UNIT_MAX_SITES >= SITES_MAX ||
           vm->page_count + PAGES_OF_VCPUS >= PAGES_MAX ||
           vm->link_count[PRIVILEGE_KERNEL] + UNIT_MAX_LINKS >= KERNEL_LINKS_MAX ||
           vm->link_count[PRIVILEGE_USER] + UNIT_MAX_LINKS >= USER_LINKS_MAX;
}

void pages_begin_compile(struct translate_vm *vm, uint64_t page, uint64_t second_page)
{
    page_make(vm, page)->compiling++;
    if (second_page != NO_PAGE) {
        page_make(vm, second_page)->compiling++;
    }
}

/* No unit and no compiler needs the page's bytes to be watched any more. */
static void page_release(struct translate_vm *vm, const struct page_units *page)
{
    if (!page->first && !page->first_across && !page->compiling) {
        memory_clear_code(vm->config.memory, page->page);
    }
}

static void page_end_compile(struct translate_vm *vm, uint64_t number)
{
    struct page_units *page = page_find(vm, number);
    page->compiling--;
    page_release(vm, page);
}

void pages_end_compile(struct translate_vm *vm, uint64_t page, uint64_t second_page)
{
    page_end_compile(vm, page);
    if (second_page != NO_PAGE) {
        page_end_compile(vm, second_page);
    }
}

/* Are the bytes in memory those that the unit was made from? */
static bool source_is_current(const struct source *source)
{
    unsigned i = 0;
    for (; i + 8 <= source->first_length; i += 8) {
        uint64_t differ = load_le64(source->first + i) ^ load_le64(source->bytes + i);
        if (differ & load_le64(source->mask + i)) {
            return false;
        }
    }
    for (; i < source->length; i++) {
        const uint8_t *at = i < source->first_length ? source->first + i
                                                     : source->second + i - source->first_length;
        if ((*(const volatile uint8_t *)at ^ source->bytes[i]) & source->mask[i]) {
            return false;
        }
    }
    return true;
}

static bool is_version_of(const struct unit *a, const struct unit *b)
{
    return a->page == b->page && a->offset == b->offset && a->mode == b->mode &&
           a->virtual_page == b->virtual_page && a->second_page == b->second_page;
}

struct unit *unit_find(struct translate_vm *vm, uint64_t page, uint64_t second_page,
                       uint16_t offset, uint64_t virtual_page, uint16_t mode)
{
    for (uint32_t n = *unit_bucket(vm, page, offset); n; n = vm->units[n].next_in_hash) {
        struct unit *unit = &vm->units[n];
        if (unit->page == page && unit->offset == offset && unit->mode == mode &&
            (is_anywhere(unit) || unit->virtual_page == virtual_page) &&
            (unit->second_page == NO_PAGE || unit->second_page == second_page) &&
            (!unit->source || source_is_current(unit_source(vm, unit)))) {
            return unit;
        }
    }
    return NULL;
}

struct unit *unit_version(struct translate_vm *vm, const struct unit *unit)
{
    /* The youngest come first. */
    for (uint32_t n = *unit_bucket(vm, unit->page, unit->offset); n;
         n = vm->units[n].next_in_hash) {
        if (is_version_of(&vm->units[n], unit) && &vm->units[n] < unit) {
            return &vm->units[n];
        }
    }
    return NULL;
}

void unit_limit_versions(struct translate_vm *vm, const struct unit *unit)
{
    unsigned count = 0;
    struct unit *oldest = unit_version(vm, unit), *next;
    if (!oldest) {
        return;
    }
    while ((next = unit_version(vm, oldest))) {
        oldest = next;
        count++;
    }
    if (count + 1 >= VERSIONS_MAX) {
        unit_retire(vm, oldest);
    }
}

/* The 64-byte lines of a page that [first, last] of its bytes touch. */
static uint64_t lines_of(unsigned first, unsigned last)
{
    uint64_t from = ~0ull << (first >> 6);
    uint64_t to = last >> 6 == 63 ? ~0ull : (1ull << ((last >> 6) + 1)) - 1;
    return from & to;
}

static uint64_t unit_lines(const struct unit *unit)
{
    return unit->length ? lines_of(unit->offset, unit->offset + unit->length - 1u) : 0;
}

void unit_add(struct translate_vm *vm, struct unit *unit)
{
    uint32_t number = unit_number(vm, unit);
    uint32_t *bucket = unit_bucket(vm, unit->page, unit->offset);
    unit->next_in_hash = *bucket;
    *bucket = number;

    struct page_units *page = page_make(vm, unit->page);
    unit->page_number = (uint32_t)(page - vm->pages);
    unit->next_in_page = page->first;
    page->first = number;
    page->lines |= unit_lines(unit);
    if (unit->second_page != NO_PAGE) {
        page = page_make(vm, unit->second_page);
        unit->next_in_second = page->first_across;
        page->first_across = number;
    }
}

static void patch(struct translate_vm *vm, uint32_t at, uint32_t target)
{
    __atomic_store_n((uint32_t *)(vm->cache.write + at), target - (at + 4), __ATOMIC_RELEASE);
}

/* The entry that takes flags and registers as a site leaves them. */
static uint32_t entry_for(const struct site *site, bool is_inner, const struct unit *target)
{
    if (site->flags_home != FLAGS_HOST) {
        return is_inner ? target->inner_saved_entry : target->saved_entry;
    }
    if (!is_inner) {
        return target->host_entry;
    }
    bool loops = target->loop_entry && is_same_recipe(&site->recipe, &target->loop_recipe);
    return loops ? target->loop_entry : target->inner_host_entry;
}

void site_link(struct translate_vm *vm, uint32_t number, struct unit *target)
{
    struct site *site = &vm->sites[number];
    if (site->target_unit || target->is_retired) {
        return;
    }
    site->target_unit = unit_number(vm, target);
    site->next_incoming = target->incoming;
    target->incoming = number;
    uint16_t displaced = site->kind == SITE_CHAIN ? vm->units[site->unit].displaced : DISPLACED;
    if (displaced == target->displaced || displaced == DISPLACED) {
        patch(vm, site->patch, entry_for(site, displaced == target->displaced, target));
    } else {
        patch(vm, site->far, target->saved_entry);
    }
}

void site_remember(struct translate_vm *vm, uint32_t number, struct unit *target)
{
    struct site *site = &vm->sites[number];
    /*
     * Units read page and host address one after the other: the page stays what it is, and what is
     * more than its page, or made for one address while the link is not, decides for itself.
     */
    if (site->target_unit || target->source || target->second_page != NO_PAGE ||
        (site->target_page && site->target_page != target->page_number) ||
        (is_anywhere(&vm->units[site->unit]) && !is_anywhere(target))) {
        return;
    }
    site->target_unit = unit_number(vm, target);
    site->resume = target->link_entry;
    __atomic_store_n(&site->target_page, target->page_number, __ATOMIC_RELEASE);
    site->next_incoming = target->incoming;
    target->incoming = number;
}

/* Send everything that is chained to this unit back to its own out-of-line exit. */
static void unit_unlink(struct translate_vm *vm, struct unit *unit)
{
    for (uint32_t n = unit->incoming; n;) {
        struct site *site = &vm->sites[n];
        uint32_t next = site->next_incoming;
        if (site->kind == SITE_LINK) {
            site->resume = 0;
        } else {
            patch(vm, site->patch, site->resume);
        }
        if (site->kind == SITE_CHAIN && site->far) {
            patch(vm, site->far, vm->stubs.link);
        }
        site->target_unit = 0;
        site->next_incoming = 0;
        n = next;
    }
    unit->incoming = 0;
}

/* It is not found any more, and nothing leads to it but what vCPUs have looked up. */
static void unit_end(struct translate_vm *vm, struct unit *unit)
{
    if (unit->is_retired) {
        return; /* by way of its other page */
    }
    uint32_t number = unit_number(vm, unit);
    uint32_t *link = unit_bucket(vm, unit->page, unit->offset);
    while (*link != number) {
        link = &vm->units[*link].next_in_hash;
    }
    *link = unit->next_in_hash;
    unit->is_retired = true;
    counter_add(&vm->counters.values[COUNT_RETIRED_OTHERWISE], 1); /* unless code_written() knows */
    unit_unlink(vm, unit);
}

void unit_retire(struct translate_vm *vm, struct unit *unit)
{
    uint32_t number = unit_number(vm, unit);
    struct page_units *page = page_find(vm, unit->page);
    uint32_t *link = &page->first;
    while (*link && *link != number) {
        link = &vm->units[*link].next_in_page;
    }
    *link = unit->next_in_page;
    if (unit->second_page != NO_PAGE) {
        page = page_find(vm, unit->second_page);
        link = &page->first_across;
        while (*link && *link != number) {
            link = &vm->units[*link].next_in_second;
        }
        *link = unit->next_in_second;
    }
    unit_end(vm, unit);
}

/*
 * Ask all vCPUs to forget what leads to retired units. Before the page is free for stores that
 * nobody sees: a vCPU that makes such a store has heard of it then. Others must see new code at
 * their next serializing event; they are sent a signal all the same, since a loop of indirect
 * branches might not come to one.
 */
static void tell_vcpus(struct translate_vm *vm)
{
    for (unsigned i = 0; i < vm->block_count; i++) {
        struct block *block = vm->blocks[i];
        if (!block) {
            continue;
        }
        uint32_t before = atomic_fetch_or(&block->vcpu.kicks, KICK_CODE);
        block->poll_now = 1;
        if (!(before & KICK_CODE) && block != signals_current()) {
            signals_kick(block);
        }
    }
}

void unit_renew(struct translate_vm *vm, struct unit *unit)
{
    if (!unit->is_retired) {
        unit_retire(vm, unit);
        tell_vcpus(vm);
    }
}

/* Retire what was made from bytes [first, last] of a page. */
static bool page_retire(struct translate_vm *vm, struct page_units *page, unsigned first,
                        unsigned last)
{
    bool retired = false;
    uint32_t *link = &page->first;
    page->lines = 0;
    while (*link) {
        struct unit *unit = &vm->units[*link];
        bool is_hit = unit->offset <= last && unit->offset + unit->length > first;
        if (unit->is_retired || is_hit) {
            retired |= !unit->is_retired;
            unit_end(vm, unit);
            *link = unit->next_in_page;
        } else {
            page->lines |= unit_lines(unit);
            link = &unit->next_in_page;
        }
    }
    return retired;
}

/* Retire the units whose last instruction ends at the start of this page. */
static bool page_retire_across(struct translate_vm *vm, struct page_units *page)
{
    bool retired = page->first_across;
    for (uint32_t n = page->first_across; n; n = vm->units[n].next_in_second) {
        unit_end(vm, &vm->units[n]);
    }
    page->first_across = 0;
    return retired;
}

static void page_retire_all(struct translate_vm *vm, struct page_units *page)
{
    page_retire(vm, page, 0, PAGE_SIZE - 1);
    page_retire_across(vm, page);
    tell_vcpus(vm);
}

/* ---- units for any address ---- */

bool page_is_away(const struct page_units *page, gva_t gva)
{
    return page->home != align_down(gva, PAGE_SIZE) && !page->is_checked;
}

void page_settle(struct translate_vm *vm, uint64_t number, gva_t virtual_page)
{
    struct page_units *page = page_find(vm, number);
    if (!page->first) {
        bool is_homeless = vm->config.code.hot == HOT_ALL && (number & 1); /* tests meet both */
        page->home = is_homeless ? NO_PAGE : virtual_page;
    }
}

/* ---- pages whose units check themselves ---- */

/*
 * A store to a watched page costs `heat`, which goes away with time. Where it comes to more than
 * making all of the page's units again, stores to the page are too frequent to be watched.
 */
enum { HEAT_STORE = 1, HEAT_RETIRE = 16, HEAT_MAX = 64, HEAT_UNIT = 32, HEAT_CYCLES = 1 << 15 };
/* How long a page stays checked when no new code comes: twice as long each time. */
#define HOLD_FIRST (1ull << 25)
#define HOLD_LAST  (1ull << 33)
#define REVIEW     (1ull << 24)

bool page_is_checked(struct translate_vm *vm, uint64_t page)
{
    struct page_units *units = page == NO_PAGE ? NULL : page_find(vm, page);
    return units && units->is_checked;
}

static void page_check(struct translate_vm *vm, struct page_units *page, uint64_t now)
{
    if (page->is_checked || vm->checked_count == CHECKED_PAGES_MAX ||
        !optimizes(vm, (uint32_t)(page - vm->pages), OPTIMIZE_VERSIONS)) {
        return;
    }
    page_retire_all(vm, page);
    counter_add(&vm->counters.values[COUNT_CHECKED_PAGES], 1);
    page->is_checked = true;
    page->hold = page->hold ? page->hold : HOLD_FIRST;
    page->hold_until = now + page->hold;
    vm->checked_pages[vm->checked_count++] = (uint32_t)(page - vm->pages);
    memory_clear_code(vm->config.memory, page->page);
}

static void page_heat(struct translate_vm *vm, struct page_units *page, uint32_t heat)
{
    uint64_t now = __builtin_ia32_rdtsc();
    uint64_t cooled = (now - page->heated) / HEAT_CYCLES;
    uint32_t limit = HEAT_MAX;
    page->heat = (page->heat > cooled ? page->heat - (uint32_t)cooled : 0) + heat;
    page->heated = now;
    if (page->heat <= limit) {
        return;
    }
    for (uint32_t n = page->first; n; n = vm->units[n].next_in_page) {
        limit += HEAT_UNIT;
    }
    if (page->heat > limit) {
        page_check(vm, page, now);
    }
}

void units_review(struct translate_vm *vm)
{
    if (!vm->checked_count || __builtin_ia32_rdtsc() < vm->next_review) {
        return;
    }
    pthread_mutex_lock(&vm->lock);
    uint64_t now = __builtin_ia32_rdtsc();
    vm->next_review = now + REVIEW;
    for (unsigned i = 0; i < vm->checked_count;) {
        struct page_units *page = &vm->pages[vm->checked_pages[i]];
        if (now < page->hold_until) {
            i++;
            continue;
        }
        page_retire_all(vm, page);
        page->is_checked = false;
        page->heat = 0;
        page->hold = page->hold < HOLD_LAST ? page->hold * 2 : HOLD_LAST;
        vm->checked_pages[i] = vm->checked_pages[--vm->checked_count];
    }
    pthread_mutex_unlock(&vm->lock);
}

void page_hold_checked(struct translate_vm *vm, uint64_t number)
{
    struct page_units *page = number == NO_PAGE ? NULL : page_find(vm, number);
    if (page && page->is_checked) {
        page->hold_until = __builtin_ia32_rdtsc() + page->hold;
    }
}

void units_drop(struct translate_vm *vm, uint64_t first, uint64_t count)
{
    for (uint32_t n = 1; n < vm->page_count; n++) {
        if (vm->pages[n].page - first < count) {
            page_retire_all(vm, &vm->pages[n]);
            page_release(vm, &vm->pages[n]);
        }
    }
}

/* ---- stores ---- */

static void page_written(struct translate_vm *vm, struct page_units *page, unsigned first,
                         unsigned last)
{
    bool retired = (page->lines & lines_of(first, last)) && page_retire(vm, page, first, last);
    retired |= first < INSN_MAX_LENGTH && page_retire_across(vm, page);
    if (retired) {
        tell_vcpus(vm);
    }
    page_heat(vm, page, retired ? HEAT_RETIRE : HEAT_STORE);
    page_release(vm, page);
}

void units_retire(struct translate_vm *vm, gpa_t gpa, uint64_t length)
{
    gpa_t end = gpa + length;
    while (gpa < end) {
        uint64_t page_end = align_down(gpa, PAGE_SIZE) + PAGE_SIZE;
        gpa_t stop = end < page_end ? end : page_end;
        struct page_units *page = page_find(vm, gpa >> PAGE_SHIFT);
        if (page) {
            page_written(vm, page, gpa & (PAGE_SIZE - 1), (stop - 1) & (PAGE_SIZE - 1));
        }
        gpa = stop;
    }
}

void units_retire_breaks(struct translate_vm *vm, const struct debug_points *points)
{
    for (uint32_t n = 1; n < vm->unit_count && points->break_count; n++) {
        struct unit *unit = &vm->units[n];
        gva_t first = unit->virtual_page + unit->offset;
        if (!unit->is_retired &&
            (is_anywhere(unit) ||
             debug_has_break_within(points, first, first + unit->length - 1))) {
            unit_retire(vm, unit);
        }
    }
}

void page_make_hot(struct translate_vm *vm, uint64_t number)
{
    struct page_units *page = page_find(vm, number);
    if (page && !page->is_hot) {
        page->is_hot = true;
        page->displaced = registers_choose(&page->use);
        page_retire_all(vm, page);
    }
}

void units_forget(struct translate_vm *vm)
{
    for (uint32_t n = 1; n < vm->page_count; n++) {
        if (vm->pages[n].first || vm->pages[n].first_across || vm->pages[n].compiling) {
            memory_clear_code(vm->config.memory, vm->pages[n].page);
        }
    }
    bytes_fill(vm->unit_hash, 0, sizeof(uint32_t) * UNIT_HASH);
    bytes_fill(vm->page_hash, 0, sizeof(uint32_t) * PAGE_HASH);
    vm->unit_count = vm->site_count = vm->page_count = 1;
    vm->link_count[PRIVILEGE_KERNEL] = vm->link_count[PRIVILEGE_USER] = 0;
    vm->checked_count = 0;
    vm->had_checked_units = false;
    cache_clear(&vm->cache);
    vm->generation++;
}

struct unit *unit_at(struct translate_vm *vm, uint64_t host)
{
    const struct cache *cache = &vm->cache;
    uint64_t offset = host - (uint64_t)cache->run;
    enum part part = offset >= cache->first[PART_OUTLINES] ? PART_OUTLINES : PART_STRAIGHT;
    if (offset >= cache->parts[part].start) {
        return NULL;
    }
    /* Units are numbered in the order of their addresses. */
    uint32_t low = 1, high = vm->unit_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (vm->units[middle].parts[part].end <= offset) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low >= vm->unit_count || vm->units[low].parts[part].start > offset) {
        return NULL;
    }
    return &vm->units[low];
}
