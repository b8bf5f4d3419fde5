/*
 * Address spaces: each page-table root that the guest switches between (by PCID) keeps its soft
 * TLB, jump caches and links. The vCPU block is mapped once in front of each of them, so that a
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

static void jumps_clear(struct space *space)
{
    for (unsigned p = 0; p < PRIVILEGES; p++) {
        for (unsigned i = 0; i < JUMP_ENTRIES; i++) {
            space->data->jumps[p][i].gva = tlb_invalid_tag(0) | 1ull << 63; /* not canonical */
        }
    }
}

static void links_clear(struct block *block, struct space *space, uint32_t count)
{
    uint64_t unresolved = cache_address(block->vm, block->vm->stubs.link);
    for (uint32_t i = 0; i < count; i++) {
        space->data->links[i] = unresolved;
    }
    space->links_filled = 0;
}

int spaces_init(struct block *first)
{
    /* `first` is only a template: the block proper lives in the memory file. */
    size_t total = (size_t)SPACES_MAX * ALIAS_SIZE;
    uint8_t *area = mmap(NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) {
        return fail(-errno, "no address space for the soft TLBs");
    }
    for (unsigned i = 0; i < SPACES_MAX; i++) {
        struct space *space = &first->spaces[i];
        space->alias = (struct block *)(area + i * (size_t)ALIAS_SIZE);
        space->data = (struct space_data *)((uint8_t *)space->alias + SPACE_OFFSET);
        if (mmap(space->alias, SPACE_OFFSET, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                 first->memory_fd, 0) == MAP_FAILED ||
            mmap(space->data, SPACE_DATA_SIZE, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED) {
            return fail(-errno, "cannot map the vCPU block");
        }
    }
    return 0;
}

void spaces_fini(struct block *block)
{
    munmap(block->spaces[0].alias, (size_t)SPACES_MAX * ALIAS_SIZE);
}

/* Forget everything that a space holds. */
static void space_clear(struct block *block, struct space *space)
{
    tlb_flush_all(&space->data->tlb);
    jumps_clear(space);
    links_clear(block, space, space->links_filled ? space->links_filled : LINKS_MAX);
}

void stacks_reset(struct block *block)
{
    for (unsigned p = 0; p < PRIVILEGES; p++) {
        /*
         * The bottom frame: its guest half is not canonical, so no return address equals it; if
         * one did, its host half is the look-up.
         */
        uint64_t *top = (uint64_t *)(block->stack_base[p] + PRIVATE_STACK_SIZE) - 4;
        top[0] = cache_address(block->vm, block->vm->stubs.indirect[p]);
        top[1] = 1ull << 63;
        block->stacks[p] = (uint64_t)top;
    }
    block->stack = block->stacks[mode_privilege(block->mode)];
}

static void exec_clear(struct block *block)
{
    for (unsigned p = 0; p < PRIVILEGES; p++) {
        for (unsigned i = 0; i < ARRAY_SIZE(block->exec_tlb[p]); i++) {
            block->exec_tlb[p][i].gva_page = 1; /* never page-aligned */
        }
    }
    for (unsigned i = 0; i < ARRAY_SIZE(block->exec_pages); i++) {
        block->exec_pages[i] = 0;
    }
}

/* The mapping of code may have changed: forget what was looked up in the current space. */
static void space_forget_mappings(struct block *block, struct space *space)
{
    jumps_clear(space);
    links_clear(block, space, space->links_filled);
    if (space == block->space) {
        exec_clear(block);
        stacks_reset(block);
    }
}

void space_flush_jumps(struct block *block)
{
    jumps_clear(block->space);
    stacks_reset(block);
}

void spaces_forget_code(struct block *block)
{
    for (unsigned i = 0; i < SPACES_MAX; i++) {
        struct space *space = &block->spaces[i];
        if (space->in_use) {
            jumps_clear(space);
            links_clear(block, space, space->links_filled);
        }
    }
    stacks_reset(block);
}

void spaces_drop(struct block *block, uint64_t first, uint64_t count, bool write_only)
{
    for (unsigned i = 0; i < SPACES_MAX; i++) {
        if (block->spaces[i].in_use) {
            tlb_drop_physical(&block->spaces[i].data->tlb, first, count, write_only);
        }
    }
    exec_clear(block);
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
        if (!oldest || (oldest->in_use &&
                        (!space->in_use || space->last_used < oldest->last_used))) {
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
    if (is_new) {
        space_clear(block, space);
    }
    if (space != block->space || is_new) {
        block->space = space;
        block->vcpu.tlb = &space->data->tlb;
        exec_clear(block);
        stacks_reset(block);
    }
    set_gs_base((uint64_t)space->alias);
}

static bool may_hold_code(const struct block *block, gva_t gva)
{
    uint64_t bit = gva >> PAGE_SHIFT & 4095;
    return block->exec_pages[bit >> 6] & 1ull << (bit & 63);
}

static void flush_page(struct block *block, gva_t gva)
{
    /* A global entry may sit in every space. */
    for (unsigned i = 0; i < SPACES_MAX; i++) {
        if (block->spaces[i].in_use) {
            tlb_flush_page(&block->spaces[i].data->tlb, gva);
        }
    }
    if (may_hold_code(block, gva)) {
        for (unsigned i = 0; i < SPACES_MAX; i++) {
            if (block->spaces[i].in_use) {
                space_forget_mappings(block, &block->spaces[i]);
            }
        }
    }
}

static void flush(struct vcpu *vcpu, enum flush_kind kind, gva_t gva, uint16_t pcid)
{
    struct block *block = vcpu->engine;
    switch (kind) {
    case FLUSH_PAGE:
        flush_page(block, gva);
        break;
    case FLUSH_NON_GLOBAL:
        if (vcpu->state.cr4 & CR4_PCIDE) {
            for (unsigned i = 0; i < SPACES_MAX; i++) {
                struct space *space = &block->spaces[i];
                if (space->in_use && space->pcid == pcid) {
                    tlb_flush_non_global(&space->data->tlb);
                    space_forget_mappings(block, space);
                }
            }
        } else {
            tlb_flush_non_global(&block->space->data->tlb);
            space_forget_mappings(block, block->space);
            block->space->root = vcpu->state.cr3 & ~0xfffull;
        }
        space_activate(block);
        break;
    case FLUSH_ALL:
        for (unsigned i = 0; i < SPACES_MAX; i++) {
            if (block->spaces[i].in_use) {
                tlb_flush_all(&block->spaces[i].data->tlb);
                space_forget_mappings(block, &block->spaces[i]);
            }
        }
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
    world_stop(block->vm, block);
    function(argument);
    world_resume(block->vm);
}

const struct vcpu_hooks translate_hooks = {.flush = flush, .exclusive = exclusive};
