/*
 * Address spaces: each page-table root that the guest switches between (by PCID) keeps its soft
 * TLB, jump cache and links. The vCPU block is mapped once in front of each of them, so that a
 * switch is one write of the GS base.
 */
#include <asm/prctl.h>
#include <immintrin.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"
#include "engine/translate/internal.h"

enum { SPACE_DATA_SIZE = (sizeof(struct space_data) + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1) };
enum { ALIAS_SIZE = SPACE_OFFSET + SPACE_DATA_SIZE };
enum { HWCAP2_FSGSBASE_BIT = 1 << 1 };

static void filled_note(struct filled *filled, uint32_t entry)
{
    if (filled->count < FILLED_NOTED) {
        filled->noted[filled->count] = entry;
    }
    filled->count += filled->count <= FILLED_NOTED;
    filled->end = entry >= filled->end ? entry + 1 : filled->end;
}

/*
 * Take entries that hold something out of the record, to be emptied: large programs have very many,
 * and flushes are frequent, so that few are filled between two. False: there are none.
 */
static bool filled_take(struct filled *filled, uint32_t *ret_first, uint32_t *ret_end)
{
    if (filled->count == 0) {
        filled->end = 0;
        return false;
    }
    if (filled->count > FILLED_NOTED) {
        *ret_first = 0;
        *ret_end = filled->end;
        filled->count = 0;
        return true;
    }
    *ret_first = filled->noted[--filled->count];
    *ret_end = *ret_first + 1;
    return true;
}

static void jumps_empty(struct jump_entry *jumps, uint32_t first, uint32_t end)
{
    for (uint32_t i = first; i < end; i++) {
        jumps[i].gva = jump_nowhere(i);
    }
}

/* In zeroed memory only the entry of address 0 seems to hold something. */
static void jumps_init(struct jump_entry *jumps)
{
    jumps_empty(jumps, 0, 1);
}

static void jumps_clear(struct jump_entry *jumps, struct filled *filled)
{
    uint32_t first, end;
    while (filled_take(filled, &first, &end)) {
        jumps_empty(jumps, first, end);
    }
}

static void plain_jumps_clear(struct block *block)
{
    if (!block->plain_filled) {
        return;
    }
    block->plain_filled = false;
    for (unsigned p = 0; p < PRIVILEGES; p++) {
        jumps_empty(block->plain_jumps[p], 0, PLAIN_ENTRIES);
    }
}

static void links_empty(struct block *block, uint64_t *links, uint32_t first, uint32_t end)
{
    bool is_kernel = links == block->kernel_links;
    const struct stubs *stubs = &block->vm->stubs;
    uint64_t unresolved = cache_address(block->vm, is_kernel ? stubs->link : stubs->fill);
    for (uint32_t i = first; i < end; i++) {
        links[i] = unresolved;
    }
}

static void links_clear(struct block *block, uint64_t *links, struct filled *filled)
{
    uint32_t first, end;
    while (filled_take(filled, &first, &end)) {
        links_empty(block, links, first, end);
    }
}

void link_fill(struct block *block, uint32_t link, uint64_t host)
{
    bool is_user = block->mode & MODE_USER;
    filled_note(is_user ? &block->space->data->links_filled : &block->kernel_links_filled, link);
    *(is_user ? &block->space->data->links[link] : &block->kernel_links[link]) = host;
}

static void bindings_clear(struct space *space)
{
    uint32_t first, end;
    while (filled_take(&space->bindings_filled, &first, &end)) {
        bytes_fill(&space->data->bindings[first], 0, (end - first) * sizeof(uint64_t));
    }
}

static uint64_t *binding(const struct block *block, const struct page_units *page)
{
    return &block->space->data->bindings[page - block->vm->pages];
}

void page_bind(struct block *block, const struct page_units *page, gva_t gva)
{
    uint64_t *bound = binding(block, page);
    if (!*bound) {
        filled_note(&block->space->bindings_filled, (uint32_t)(page - block->vm->pages));
        *bound = binding_of(gva);
    }
}

bool page_is_bound_elsewhere(const struct block *block, const struct page_units *page, gva_t gva)
{
    uint64_t bound = *binding(block, page);
    return bound && bound != binding_of(gva);
}

void jump_fill(struct block *block, enum privilege privilege, uint64_t gva, uint64_t host)
{
    bool is_user = privilege == PRIVILEGE_USER;
    unsigned index = jump_index(gva);
    filled_note(is_user ? &block->space->jumps_filled : &block->kernel_jumps_filled, index);
    block_jumps(block, privilege)[index] = (struct jump_entry){.gva = gva, .host = host};
}

static void block_prepare_links(struct block *block, enum privilege privilege, uint32_t first,
                                uint32_t end)
{
    if (privilege == PRIVILEGE_KERNEL) {
        links_empty(block, block->kernel_links, first, end);
        return;
    }
    for (unsigned i = 0; i < SPACES_MAX; i++) {
        links_empty(block, block->spaces[i].data->links, first, end);
    }
}

void links_prepare(struct translate_vm *vm)
{
    enum { PIECE = 512 }; /* slots of a page */
    static const uint32_t limits[PRIVILEGES] = {KERNEL_LINKS_MAX, USER_LINKS_MAX};
    for (unsigned p = 0; p < PRIVILEGES; p++) {
        while (vm->links_ready[p] < limits[p] &&
               vm->links_ready[p] < vm->link_count[p] + UNIT_MAX_LINKS) {
            uint32_t first = vm->links_ready[p];
            for (unsigned i = 0; i < vm->block_count; i++) {
                if (vm->blocks[i]) {
                    block_prepare_links(vm->blocks[i], (enum privilege)p, first, first + PIECE);
                }
            }
            vm->links_ready[p] = first + PIECE;
        }
    }
}

int spaces_init(struct block *first)
{
    /* `first` is only a template: the block proper lives in the memory file. */
    size_t total = (size_t)SPACES_MAX * ALIAS_SIZE;
    uint8_t *area =
        mmap(NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) {
        return fail(-errno, "reserve %zu MiB of addresses for the soft TLBs of a vCPU: %m",
                    total >> 20);
    }
    for (unsigned i = 0; i < SPACES_MAX; i++) {
        struct space *space = &first->spaces[i];
        space->alias = (struct block *)(area + i * (size_t)ALIAS_SIZE);
        space->data = (struct space_data *)((uint8_t *)space->alias + SPACE_OFFSET);
        if (mmap(space->alias, SPACE_OFFSET, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                 first->memory_fd, 0) == MAP_FAILED ||
            mmap(space->data, SPACE_DATA_SIZE, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED) {
            int error = fail(-errno, "map the memory file of a vCPU: %m");
            munmap(area, total);
            return error;
        }
        tlb_init(&space->data->tlb);
        jumps_init(space->data->jumps);
    }
    return 0;
}

void spaces_fini(struct block *block)
{
    munmap(block->spaces[0].alias, (size_t)SPACES_MAX * ALIAS_SIZE);
}

void stack_reset(struct block *block, enum privilege privilege)
{
    /*
     * The bottom frame: who returns to its guest half comes to the look-up. That has no use for
     * the place of the return, since the address is canonical.
     */
    uint64_t *top = (uint64_t *)(block->stack_base[privilege] + PRIVATE_STACK_SIZE) - 4;
    top[0] = cache_address(block->vm, block->vm->stubs.indirect[privilege]);
    top[1] = 0;
    block->stacks[privilege] = (uint64_t)top;
    if (privilege == mode_privilege(block->mode)) {
        block->stack = (uint64_t)top;
    }
}

static void exec_clear(struct block *block, enum privilege privilege)
{
    for (unsigned i = 0; i < ARRAY_SIZE(block->exec_tlb[privilege]); i++) {
        block->exec_tlb[privilege][i].gva_page = 1; /* never page-aligned */
    }
}

static void exec_pages_clear(struct block *block, enum privilege privilege)
{
    bytes_fill(block->exec_pages[privilege], 0, sizeof block->exec_pages[privilege]);
}

/* The mappings of a space's user code may have changed. */
static void user_forget(struct block *block, struct space *space)
{
    jumps_clear(space->data->jumps, &space->jumps_filled);
    plain_jumps_clear(block);
    links_clear(block, space->data->links, &space->data->links_filled);
    bindings_clear(space);
    if (space == block->space) {
        exec_clear(block, PRIVILEGE_USER);
        stack_reset(block, PRIVILEGE_USER);
    }
}

static void kernel_forget(struct block *block)
{
    jumps_clear(block->kernel_jumps, &block->kernel_jumps_filled);
    plain_jumps_clear(block);
    links_clear(block, block->kernel_links, &block->kernel_links_filled);
    block->kernel_is_local = false;
    exec_pages_clear(block, PRIVILEGE_KERNEL);
    exec_clear(block, PRIVILEGE_KERNEL);
    stack_reset(block, PRIVILEGE_KERNEL);
    block->drops++; /* the kernel's unit that runs may be mapped elsewhere now, too */
}

void space_forget_lookups(struct block *block, enum privilege privilege)
{
    vcpu_count(&block->vcpu, COUNT_LOOKUPS_FORGOTTEN);
    if (privilege == PRIVILEGE_USER) {
        user_forget(block, block->space);
    } else {
        kernel_forget(block);
    }
}

void spaces_reset(struct block *block)
{
    block->plain_filled = true;
    for (unsigned p = 0; p < PRIVILEGES; p++) {
        block_prepare_links(block, (enum privilege)p, 0, block->vm->links_ready[p]);
    }
    for (unsigned i = 0; i < SPACES_MAX; i++) {
        jumps_clear(block->spaces[i].data->jumps, &block->spaces[i].jumps_filled);
        tlb_flush_all(&block->spaces[i].data->tlb);
    }
    jumps_init(block->kernel_jumps);
    kernel_forget(block);
}

void spaces_forget_code(struct block *block)
{
    vcpu_count(&block->vcpu, COUNT_LOOKUPS_FORGOTTEN);
    for (unsigned i = 0; i < SPACES_MAX; i++) {
        if (block->spaces[i].in_use) {
            user_forget(block, &block->spaces[i]);
        }
    }
    exec_pages_clear(block, PRIVILEGE_USER);
    kernel_forget(block);
    block->decoded_valid = false;
}

void spaces_drop(struct block *block, uint64_t first, uint64_t count, bool write_only)
{
    block->drops++;
    /* The world is stopped: whoever does this is alone with the block. */
    vcpu_count(&block->vcpu, COUNT_FLUSH_TRANSITION);
    for (unsigned i = 0; i < SPACES_MAX; i++) {
        if (block->spaces[i].in_use) {
            tlb_drop_physical(&block->spaces[i].data->tlb, first, count, write_only);
        }
    }
    exec_clear(block, PRIVILEGE_KERNEL);
    exec_clear(block, PRIVILEGE_USER);
}

static void set_gs_base(uint64_t base)
{
    if (getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE_BIT) {
        __asm__ volatile("wrgsbase %0" : : "r"(base) : "memory");
    } else {
        syscall(SYS_arch_prctl, ARCH_SET_GS, base);
    }
}

static struct space *space_choose(struct block *block, uint64_t root, uint16_t pcid, bool *ret_new)
{
    struct space *oldest = NULL;
    for (unsigned i = 0; i < SPACES_MAX; i++) {
        struct space *space = &block->spaces[i];
        if (space->in_use && space->pcid == pcid) {
            /* The tag of cached translations is the PCID alone (SDM volume 3, 4.10.1). */
            *ret_new = false;
            space->root = root;
            return space;
        }
        if (!oldest ||
            (oldest->in_use && (!space->in_use || space->last_used < oldest->last_used))) {
            oldest = space;
        }
    }
    *ret_new = true;
    oldest->root = root;
    oldest->pcid = pcid;
    oldest->in_use = true;
    return oldest;
}

void space_activate(struct block *block)
{
    const struct cpu_state *state = &block->vcpu.state;
    uint16_t pcid = state->cr4 & CR4_PCIDE ? state->cr3 & 0xfff : 0;
    bool is_new = false;
    struct space *space = space_choose(block, state->cr3 & ~0xfffull, pcid, &is_new);
    space->last_used = ++block->space_clock;
    if (space != block->space) {
        vcpu_count(&block->vcpu, COUNT_SPACE_SWITCHES);
    }
    if (is_new) {
        vcpu_count(&block->vcpu, COUNT_SPACE_EVICTIONS);
        tlb_flush_all(&space->data->tlb);
        user_forget(block, space);
    }
    if (space != block->space || is_new) {
        block->space = space;
        block->vcpu.tlb = &space->data->tlb;
        exec_clear(block, PRIVILEGE_USER);
        plain_jumps_clear(block);
        stack_reset(block, PRIVILEGE_USER);
        if (block->kernel_is_local) {
            kernel_forget(block);
        }
    }
    set_gs_base((uint64_t)space->alias);
}

static bool is_exec_page(const struct block *block, enum privilege privilege, gva_t gva)
{
    unsigned bit = exec_page_bit(gva);
    return block->exec_pages[privilege][bit >> 6] & 1ull << (bit & 63);
}

/* Was code looked up in the page of `gva`, of whatever size? */
static bool may_hold_code(const struct block *block, enum privilege privilege, gva_t gva)
{
    return is_exec_page(block, privilege, gva) ||
           is_exec_page(block, privilege, exec_large_page(gva, MIB(2))) ||
           is_exec_page(block, privilege, exec_large_page(gva, GIB(1)));
}

static void flush_page(struct block *block, gva_t gva)
{
    /* A global entry may sit in every space. */
    for (unsigned i = 0; i < SPACES_MAX; i++) {
        if (block->spaces[i].in_use) {
            tlb_flush_page(&block->spaces[i].data->tlb, gva);
        }
    }
    if (may_hold_code(block, PRIVILEGE_USER, gva)) {
        for (unsigned i = 0; i < SPACES_MAX; i++) {
            if (block->spaces[i].in_use) {
                user_forget(block, &block->spaces[i]);
            }
        }
    }
    if (may_hold_code(block, PRIVILEGE_KERNEL, gva)) {
        kernel_forget(block);
    }
}

/* All that is cached for a PCID (or for the one space, without PCIDs), but global pages. */
static void flush_non_global(struct block *block, uint16_t pcid)
{
    bool has_pcid = block->vcpu.state.cr4 & CR4_PCIDE;
    for (unsigned i = 0; i < SPACES_MAX; i++) {
        struct space *space = &block->spaces[i];
        if (space->in_use && (!has_pcid || space->pcid == pcid)) {
            tlb_flush_non_global(&space->data->tlb);
            user_forget(block, space);
        }
    }
    if (block->kernel_is_local) {
        kernel_forget(block);
    }
}

static void flush(struct vcpu *vcpu, enum flush_kind kind, gva_t gva, uint16_t pcid)
{
    static const char *const names[] = {[FLUSH_PAGE] = "page",
                                        [FLUSH_NON_GLOBAL] = "non-global",
                                        [FLUSH_ALL] = "all",
                                        [FLUSH_SWITCH] = "switch"};
    struct block *block = vcpu->engine;
    block_trace(block, TRACE_FLUSH, names[kind], kind == FLUSH_PAGE ? "of" : "to",
                kind == FLUSH_PAGE ? gva : vcpu->state.cr3);
    switch (kind) {
    case FLUSH_PAGE:
        vcpu_count(vcpu, COUNT_FLUSH_ONE_PAGE);
        flush_page(block, gva);
        break;
    case FLUSH_NON_GLOBAL:
        vcpu_count(vcpu, COUNT_FLUSH_LOCAL);
        flush_non_global(block, pcid);
        space_activate(block);
        break;
    case FLUSH_ALL:
        vcpu_count(vcpu, COUNT_FLUSH_EVERYTHING);
        for (unsigned i = 0; i < SPACES_MAX; i++) {
            if (block->spaces[i].in_use) {
                tlb_flush_all(&block->spaces[i].data->tlb);
            }
        }
        spaces_forget_code(block);
        space_activate(block);
        break;
    case FLUSH_SWITCH:
        space_activate(block);
        break;
    }
}

static void exclusive(struct vcpu *vcpu, void (*function)(void *argument), void *argument)
{
    struct block *block = vcpu->engine;
    world_stop(block->vm, block, COUNT_WORLD_LOCKED);
    function(argument);
    world_resume(block->vm);
}

static void yield(struct vcpu *vcpu)
{
    block_yield(vcpu->engine);
}

const struct vcpu_hooks translate_hooks = {.flush = flush, .exclusive = exclusive, .yield = yield};
