/*
 * The soft TLB: filling from the page walk, and forgetting.
 *
 * Promises: an entry for writing exists only for a page whose D bit is set in the guest's tables
 *           and whose frame memory gave for writing; a user page never enters the kernel's half
 *           while SMAP is on, because the right to use it comes and goes with RFLAGS.AC.
 */
#include "engine/tlb.h"

#include "base/bytes.h"
#include "engine/vcpu.h"

static void entry_clear(struct tlb *tlb, unsigned privilege, unsigned access, unsigned index)
{
    tlb->entries[privilege][access][index].tag = tlb_invalid_tag(index);
    tlb->entries[privilege][access][index].host = 0;
    tlb->pages[privilege][access][index] = 0;
}

static void slots_empty(struct tlb *tlb, unsigned privilege)
{
    for (unsigned access = 0; access < TLB_ACCESSES; access++) {
        for (unsigned i = 0; i < TLB_SLOTS; i++) {
            tlb->slots[privilege][access][i].tag = TLB_SLOT_EMPTY;
            tlb->slots[privilege][access][i].host = TLB_SLOT_NOWHERE;
        }
    }
    tlb->slots_used[privilege] = false;
}

static void slots_forget(struct tlb *tlb)
{
    for (unsigned privilege = 0; privilege < TLB_PRIVILEGES; privilege++) {
        if (tlb->slots_used[privilege]) {
            slots_empty(tlb, privilege);
        }
    }
}

/* A new generation; keys of the first one are found again after all have been used. */
static void second_forget(struct tlb *tlb, unsigned access)
{
    uint64_t generation = tlb->second_key[TLB_KERNEL][access] >> TLB_GENERATION_SHIFT;
    if (++generation == TLB_GENERATIONS) {
        bytes_fill(tlb->second[access], 0, sizeof tlb->second[access]);
        generation = 1;
    }
    for (unsigned privilege = 0; privilege < TLB_PRIVILEGES; privilege++) {
        tlb->second_key[privilege][access] = generation << TLB_GENERATION_SHIFT | privilege;
    }
}

static void second_forget_page(struct tlb *tlb, unsigned access, gva_t gva)
{
    struct tlb_second *second = &tlb->second[access][tlb_second_index(gva)];
    if (align_down(second->key, PAGE_SIZE) == align_down(gva, PAGE_SIZE)) {
        second->key = 0;
    }
}

static void block_clear(struct tlb *tlb, unsigned privilege, unsigned access, unsigned block)
{
    for (unsigned i = block * TLB_BLOCK; i < (block + 1) * TLB_BLOCK; i++) {
        entry_clear(tlb, privilege, access, i);
    }
    tlb->blocks[privilege][access][block] = 0;
}

static void flush_blocks(struct tlb *tlb, unsigned privilege, unsigned access)
{
    for (unsigned block = 0; block < TLB_BLOCKS; block++) {
        if (tlb->blocks[privilege][access][block]) {
            block_clear(tlb, privilege, access, block);
        }
    }
}

void tlb_flush_all(struct tlb *tlb)
{
    for (unsigned privilege = 0; privilege < TLB_PRIVILEGES; privilege++) {
        flush_blocks(tlb, privilege, TLB_READ);
        flush_blocks(tlb, privilege, TLB_WRITE);
    }
    slots_forget(tlb);
    second_forget(tlb, TLB_READ);
    second_forget(tlb, TLB_WRITE);
    bytes_fill(tlb->large_local, 0, sizeof tlb->large_local);
    bytes_fill(tlb->large_global, 0, sizeof tlb->large_global);
    bytes_fill(tlb->huge, 0, sizeof tlb->huge);
    walk_cache_flush(&tlb->walk_cache);
}

void tlb_init(struct tlb *tlb)
{
    for (unsigned privilege = 0; privilege < TLB_PRIVILEGES; privilege++) {
        for (unsigned access = 0; access < TLB_ACCESSES; access++) {
            /* A tag of 0 is an invalid one but around address 0. */
            block_clear(tlb, privilege, access, 0);
            block_clear(tlb, privilege, access, TLB_BLOCKS - 1);
        }
        slots_empty(tlb, privilege);
    }
    tlb_flush_all(tlb);
}

static void flush_local(struct tlb *tlb, unsigned privilege, unsigned access)
{
    for (unsigned block = 0; block < TLB_BLOCKS; block++) {
        uint8_t *flags = &tlb->blocks[privilege][access][block];
        if (!(*flags & TLB_BLOCK_LOCAL)) {
            continue;
        }
        for (unsigned i = block * TLB_BLOCK; i < (block + 1) * TLB_BLOCK; i++) {
            if (!(tlb->pages[privilege][access][i] & TLB_GLOBAL)) {
                entry_clear(tlb, privilege, access, i);
            }
        }
        *flags = TLB_BLOCK_USED;
    }
}

void tlb_flush_non_global(struct tlb *tlb)
{
    for (unsigned privilege = 0; privilege < TLB_PRIVILEGES; privilege++) {
        flush_local(tlb, privilege, TLB_READ);
        flush_local(tlb, privilege, TLB_WRITE);
    }
    second_forget(tlb, TLB_READ);
    second_forget(tlb, TLB_WRITE);
    bytes_fill(tlb->large_local, 0, sizeof tlb->large_local);
    slots_forget(tlb);
    walk_cache_flush(&tlb->walk_cache);
}

/* ---- pieces of large pages ---- */

enum { NO_REGION, SEVERAL_REGIONS, FIRST_REGION };

static uint64_t region_number(gva_t gva)
{
    return (gva >> TLB_REGION_SHIFT) + FIRST_REGION;
}

static unsigned region_place(gva_t gva)
{
    unsigned low = gva >> TLB_REGION_SHIFT & ((1 << TLB_REGION_BITS) - 1);
    return (unsigned)(gva >> 63) << TLB_REGION_BITS | low;
}

static void note_large(struct tlb *tlb, gva_t gva, const struct walk_result *result)
{
    if (result->page_size <= PAGE_SIZE) {
        return;
    }
    if (result->page_size > 1ull << TLB_REGION_SHIFT) {
        tlb->huge[gva >> 63] = true;
        return;
    }
    uint64_t *regions = result->global ? tlb->large_global : tlb->large_local;
    uint64_t *region = &regions[region_place(gva)], number = region_number(gva);
    *region = *region == NO_REGION || *region == number ? number : SEVERAL_REGIONS;
}

/* May there be pieces of large pages here? They are about to be forgotten. */
static bool take_region(uint64_t *regions, gva_t gva)
{
    uint64_t *region = &regions[region_place(gva)];
    if (*region == region_number(gva)) {
        *region = NO_REGION;
        return true;
    }
    return *region == SEVERAL_REGIONS;
}

static void forget_page(struct tlb *tlb, gva_t page)
{
    unsigned index = tlb_index(page);
    for (unsigned access = 0; access < TLB_ACCESSES; access++) {
        for (unsigned privilege = 0; privilege < TLB_PRIVILEGES; privilege++) {
            if (tlb->entries[privilege][access][index].tag == page) {
                entry_clear(tlb, privilege, access, index);
            }
        }
        second_forget_page(tlb, access, page);
    }
}

void tlb_flush_page(struct tlb *tlb, gva_t gva)
{
    if (tlb->huge[gva >> 63]) {
        tlb_flush_all(tlb);
        return;
    }
    bool is_local = take_region(tlb->large_local, gva);
    bool is_global = take_region(tlb->large_global, gva);
    uint64_t size = is_local || is_global ? 1ull << TLB_REGION_SHIFT : PAGE_SIZE;
    gva_t first = align_down(gva, size);
    for (uint64_t offset = 0; offset < size; offset += PAGE_SIZE) {
        forget_page(tlb, first + offset);
    }
    slots_forget(tlb);
    walk_cache_flush(&tlb->walk_cache);
}

static void drop_in_block(struct tlb *tlb, unsigned privilege, unsigned access, unsigned block,
                          uint64_t first_page, uint64_t count)
{
    for (unsigned i = block * TLB_BLOCK; i < (block + 1) * TLB_BLOCK; i++) {
        if ((tlb->pages[privilege][access][i] & ~TLB_GLOBAL) - first_page < count) {
            entry_clear(tlb, privilege, access, i);
        }
    }
}

static void drop_physical(struct tlb *tlb, unsigned access, uint64_t first_page, uint64_t count)
{
    for (unsigned privilege = 0; privilege < TLB_PRIVILEGES; privilege++) {
        for (unsigned block = 0; block < TLB_BLOCKS; block++) {
            if (tlb->blocks[privilege][access][block]) {
                drop_in_block(tlb, privilege, access, block, first_page, count);
            }
        }
    }
}

void tlb_drop_physical(struct tlb *tlb, uint64_t first_page, uint64_t count, bool write_only)
{
    slots_forget(tlb);
    drop_physical(tlb, TLB_WRITE, first_page, count);
    second_forget(tlb, TLB_WRITE);
    if (!write_only) {
        second_forget(tlb, TLB_READ);
        drop_physical(tlb, TLB_READ, first_page, count);
    }
}

static void raise_page_fault(struct vcpu *vcpu, gva_t gva, uint32_t error_code)
{
    vcpu->exception = (struct exception){
        .vector = EXCEPTION_PF,
        .has_error_code = true,
        .error_code = error_code,
        .cr2 = gva,
    };
}

/* The walk for an access; accesses of the CPU itself at CPL 3 have no use of AC (SMAP). */
static bool walk_for(struct vcpu *vcpu, gva_t gva, uint32_t access, struct walk_result *ret_result)
{
    if (__builtin_expect((vcpu->walk_mode.cr4 & CR4_SMAP) && !(access & PF_USER), 0)) {
        vcpu->walk_mode.rflags = vcpu->state.rflags;
        if (cpu_state_cpl(&vcpu->state) == 3) {
            vcpu->walk_mode.rflags &= ~(uint64_t)FLAG_AC;
        }
    }
    return walk(vcpu->memory, &vcpu->walk_mode, &vcpu->tlb->walk_cache, gva, access, ret_result);
}

static void entry_set(struct tlb *tlb, enum tlb_privilege privilege, enum tlb_access access,
                      gva_t gva, const uint8_t *frame, const struct walk_result *result)
{
    unsigned index = tlb_index(gva);
    uint64_t page = (result->gpa >> PAGE_SHIFT) | (result->global ? TLB_GLOBAL : 0);
    gva_t tag = align_down(gva, PAGE_SIZE);
    tlb->entries[privilege][access][index] =
        (struct tlb_entry){.tag = tag, .host = (uintptr_t)frame};
    tlb->pages[privilege][access][index] = page;
    tlb->blocks[privilege][access][index / TLB_BLOCK] |=
        result->global ? TLB_BLOCK_USED : TLB_BLOCK_USED | TLB_BLOCK_LOCAL;
    tlb->second[access][tlb_second_index(gva)] = (struct tlb_second){
        .key = tag | tlb->second_key[privilege][access], .host = (uintptr_t)frame, .page = page};
    note_large(tlb, gva, result);
}

static inline bool is_watched(const struct vcpu *vcpu, gva_t gva)
{
    return __builtin_expect(vcpu->debug != NULL, 0) && debug_is_watched(vcpu->debug, gva);
}

enum tlb_fill tlb_translate(struct vcpu *vcpu, gva_t gva, uint32_t access, gpa_t *ret_gpa)
{
    enum tlb_privilege privilege = access & PF_USER ? TLB_USER : TLB_KERNEL;
    bool write = access & PF_WRITE;
    struct walk_result result;

    if (cpu_state_is_long(&vcpu->state) && !is_canonical(gva)) {
        vcpu->exception = (struct exception){.vector = EXCEPTION_GP, .has_error_code = true};
        return TLB_FAULT;
    }
    if (!walk_for(vcpu, gva, access, &result)) {
        raise_page_fault(vcpu, gva, result.error_code);
        return TLB_FAULT;
    }
    *ret_gpa = result.gpa;
    if (privilege == TLB_KERNEL && result.user && (vcpu->walk_mode.cr4 & CR4_SMAP)) {
        return TLB_SLOW;
    }
    if (is_watched(vcpu, gva)) {
        return TLB_SLOW;
    }

    uint8_t *frame;
    if (memory_frame(vcpu->memory, result.gpa >> PAGE_SHIFT, write, &frame) != FRAME_OK) {
        return TLB_SLOW;
    }
    entry_set(vcpu->tlb, privilege, TLB_READ, gva, frame, &result);
    if (write && result.dirty) {
        entry_set(vcpu->tlb, privilege, TLB_WRITE, gva, frame, &result);
    }
    return write && !result.dirty ? TLB_SLOW : TLB_FILLED;
}

enum tlb_fill tlb_fill(struct vcpu *vcpu, gva_t gva, uint32_t access)
{
    gpa_t gpa;

    return tlb_translate(vcpu, gva, access & (PF_WRITE | PF_USER), &gpa);
}

/* The page of the guest's that was walked last for a span, which may be a large one. */
struct walked {
    gva_t gva; /* its start */
    struct walk_result result;
};

/* The frame of one page of a span: from the soft TLB, the large page that is known, or a walk. */
static uint8_t *span_page(struct vcpu *vcpu, gva_t gva, uint32_t access, struct walked *walked)
{
    enum tlb_privilege privilege = access & PF_USER ? TLB_USER : TLB_KERNEL;
    bool write = access & PF_WRITE;
    const struct tlb_entry *entry = &vcpu->tlb->entries[privilege][write][tlb_index(gva)];
    struct walk_result *result = &walked->result;
    uint8_t *frame;

    if (entry->tag == gva) {
        return (uint8_t *)entry->host;
    }
    if (is_watched(vcpu, gva)) {
        return NULL;
    }
    if (gva - walked->gva >= result->page_size) {
        if (!is_canonical(gva) || !walk_for(vcpu, gva, access, result)) {
            result->page_size = 0;
            return NULL;
        }
        walked->gva = align_down(gva, result->page_size);
    }
    uint64_t page =
        (align_down(result->gpa, result->page_size) + (gva - walked->gva)) >> PAGE_SHIFT;
    if ((write && !result->dirty) || memory_frame(vcpu->memory, page, write, &frame) != FRAME_OK) {
        return NULL;
    }
    return frame;
}

uint64_t tlb_span(struct vcpu *vcpu, gva_t gva, uint64_t size, uint32_t access, uint8_t **ret_host)
{
    struct walked walked = {.result.page_size = 0};
    gva_t page = align_down(gva, PAGE_SIZE);
    uint64_t length = PAGE_SIZE - (gva - page);
    uint8_t *first = span_page(vcpu, page, access, &walked);

    if (!first) {
        return 0;
    }
    *ret_host = first + (gva - page);
    while (length < size && span_page(vcpu, gva + length, access, &walked) == *ret_host + length) {
        length += PAGE_SIZE;
    }
    return length < size ? length : size;
}
