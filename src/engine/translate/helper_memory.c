/*
 * Helpers of memory accesses: misses of the soft TLB, the FXSAVE image, and REP MOVS and REP STOS
 * a page piece at a time.
 */
#include "engine/mmu.h"
#include "engine/translate/helper.h"

/* ---- misses ---- */

static uint64_t deliver_fault(struct block *block, const struct place *place)
{
    block_gather(block);
    block->vcpu.state.rip = place->rip;
    block->vcpu.instructions += (uint64_t)place->uncounted;
    enum step step = interp_deliver_exception(&block->vcpu);
    if (step != STEP_NEXT) {
        return block_leave_step(block, step);
    }
    return block_resume(block, 0);
}

/* At this place again, without the group of operands that does not fit here. */
static uint64_t place_start_over_plain(struct block *block, const struct place *place)
{
    block->vcpu.state.rip = place->rip;
    block->vcpu.instructions += (uint64_t)place->uncounted;
    return block_go_on(block, block->mode | MODE_PLAIN);
}

static void count_miss(struct block *block, bool writes)
{
    bool user = block->mode & MODE_USER;
    vcpu_count(&block->vcpu, COUNT_EXIT_MEMORY);
    vcpu_count(&block->vcpu, writes ? user ? COUNT_TLB_WRITE_USER : COUNT_TLB_WRITE_KERNEL
                             : user ? COUNT_TLB_READ_USER
                                    : COUNT_TLB_READ_KERNEL);
    block_trace(block, TRACE_EXITS, writes ? "write" : "read", "of", block->address);
}

/* The check succeeds now: make it again, unless this is not the unit any more. */
static uint64_t goes_on_filled(struct block *block, const struct place *place, bool writes)
{
    if (writes && block->poll_now) {
        /* The page may be one that is not watched any more: hear of it before the store. */
        place_save_flags(block, place);
        block_gather(block);
        block->vcpu.state.rip = place->rip;
        block->vcpu.instructions += (uint64_t)place->uncounted;
        return block_resume(block, 0);
    }
    if (place_is_current(block, place)) {
        return place->retry_address;
    }
    place_save_flags(block, place);
    return place_start_over(block, place);
}

uint64_t helper_memory(struct block *block, uint32_t number)
{
    const struct site *site = &block->vm->sites[number];
    struct place place = place_at(block, number);
    bool is_group = site->is_group;
    gva_t gva = block->address;
    bool is_ordered = site->is_ordered || (gva & site->alignment);
    bool crosses = (gva & (PAGE_SIZE - 1)) + site->size > PAGE_SIZE || site->size == 255;
    uint32_t access =
        (site->kind == SITE_WRITE ? PF_WRITE : 0) | (block->mode & MODE_USER ? PF_USER : 0);
    enum tlb_fill fill = TLB_SLOW;
    count_miss(block, site->kind == SITE_WRITE);
    if (!crosses && is_canonical(gva) && !site->is_masked) {
        fill = tlb_fill(&block->vcpu, gva, access);
    }
    vcpu_count(&block->vcpu, crosses              ? COUNT_TLB_MISS_CROSS
                             : fill == TLB_FILLED ? COUNT_TLB_MISS_FILLED
                             : fill == TLB_FAULT  ? COUNT_TLB_MISS_FAULT
                                                  : COUNT_TLB_MISS_SLOW);
    if (fill == TLB_FILLED) {
        return goes_on_filled(block, &place, access & PF_WRITE);
    }
    place_save_flags(block, &place);
    if (fill == TLB_FAULT && !is_group && !is_ordered) {
        return deliver_fault(block, &place);
    }
    return is_group ? place_start_over_plain(block, &place) : place_execute(block, &place);
}

/* ---- FXSAVE64 and FXRSTOR64 on the live registers ---- */

enum { FX_IMAGE_WRITTEN = 416, FX_MXCSR = 24, FX_MXCSR_MASK = 28 };

/* What is odd about the operand, or watched by a debugger, is for interp. */
static bool is_plain_fx_image(const struct block *block, gva_t gva)
{
    return !block->vcpu.debug && !(gva & 15) && is_canonical(gva) &&
           is_canonical(gva + sizeof block->fx_image - 1);
}

uint64_t helper_fxsave(struct block *block, uint32_t number)
{
    struct place place = place_of(block, number);
    vcpu_count(&block->vcpu, COUNT_EXIT_FX_IMAGE);
    uint32_t user = block->mode & MODE_USER ? PF_USER : 0;
    gva_t gva = block->address;
    if (!is_plain_fx_image(block, gva) ||
        mmu_check_write(&block->vcpu, gva, sizeof block->fx_image, user) != STEP_NEXT) {
        return place_execute(block, &place);
    }
    __asm__ volatile("fxsave64 %0" : "=m"(block->fx_image));
    store_le32(block->fx_image + FX_MXCSR_MASK, MXCSR_WRITABLE); /* not the host's */
    x87_pointers_hide(block, block->fx_image);
    if (mmu_write(&block->vcpu, gva, block->fx_image, FX_IMAGE_WRITTEN, user) != STEP_NEXT) {
        return place_execute(block, &place);
    }
    block->vcpu.state.rip = place.rip + place.length;
    if (block->poll_now) { /* the image may have overwritten code */
        block_gather(block);
        return block_resume(block, 0);
    }
    return place_is_current(block, &place) ? place.inline_address : block_continue(block);
}

uint64_t helper_fxrstor(struct block *block, uint32_t number)
{
    struct place place = place_of(block, number);
    vcpu_count(&block->vcpu, COUNT_EXIT_FX_IMAGE);
    uint32_t user = block->mode & MODE_USER ? PF_USER : 0;
    gva_t gva = block->address;
    if (!is_plain_fx_image(block, gva) ||
        mmu_read(&block->vcpu, gva, block->fx_image, sizeof block->fx_image, user) != STEP_NEXT ||
        (load_le32(block->fx_image + FX_MXCSR) & ~(uint32_t)MXCSR_WRITABLE)) {
        return place_execute(block, &place);
    }
    __asm__ volatile("fxrstor64 %0" : : "m"(block->fx_image));
    block->vcpu.state.rip = place.rip + place.length;
    return place_is_current(block, &place) ? place.inline_address : block_continue(block);
}

/* ---- REP MOVS and REP STOS ---- */

/* clang-format off */
#define REPEAT(instruction, to, from, value, count)                                                \
    __asm__ volatile("rep " instruction                                                            \
                     : "+D"(to), "+S"(from), "+c"(count) : "a"(value) : "memory")
/* clang-format on */

static void repeat_move(uint64_t to, uint64_t from, uint64_t count, unsigned size)
{
    switch (size) {
    case 1:
        REPEAT("movsb", to, from, 0, count);
        break;
    case 2:
        REPEAT("movsw", to, from, 0, count);
        break;
    case 4:
        REPEAT("movsl", to, from, 0, count);
        break;
    default:
        REPEAT("movsq", to, from, 0, count);
        break;
    }
}

static void repeat_store(uint64_t to, uint64_t value, uint64_t count, unsigned size)
{
    uint64_t from = 0;
    switch (size) {
    case 1:
        REPEAT("stosb", to, from, value, count);
        break;
    case 2:
        REPEAT("stosw", to, from, value, count);
        break;
    case 4:
        REPEAT("stosl", to, from, value, count);
        break;
    default:
        REPEAT("stosq", to, from, value, count);
        break;
    }
}

/* A run inside one page will hit inline the next time. */
static void remember_page(struct block *block, gva_t gva, uint32_t access)
{
    enum tlb_privilege privilege = access & PF_USER ? TLB_USER : TLB_KERNEL;
    const struct tlb_entry *entry =
        &block->vcpu.tlb->entries[privilege][!!(access & PF_WRITE)][tlb_index(gva)];
    if (gva - entry->tag >= PAGE_SIZE) {
        tlb_fill(&block->vcpu, gva, access); /* if it cannot be, the span says so */
    }
}

/*
 * Do one piece: what lies in one range of host memory on both sides, or the largest piece after
 * which a kick is looked at. Large pieces matter: the stores behind a REP MOVS wait until all of
 * its own are visible. True: go on with the next piece. False: what is left at state's registers
 * is for interp (a fault, a device, an element across pages).
 */
static bool string_piece(struct block *block, unsigned size, bool is_store)
{
    enum { PIECE_MAX = 256 << 10 };
    uint64_t *gpr = block->vcpu.state.gpr;
    gva_t to = gpr[RDI], from = gpr[RSI];
    uint32_t user = block->mode & MODE_USER ? PF_USER : 0;
    uint64_t elements = PIECE_MAX / size, drops = block->drops;
    uint64_t bytes = (gpr[RCX] < elements ? gpr[RCX] : elements) * size;
    bool is_short = bytes <= PAGE_SIZE;
    uint8_t *to_host, *from_host = NULL;

    if (!is_store) {
        if (is_short) {
            remember_page(block, from, user);
        }
        bytes = tlb_span(&block->vcpu, from, bytes, user, &from_host);
        if (bytes < size) {
            return false; /* nothing is written: the other page does not become dirty */
        }
    }
    if (is_short) {
        remember_page(block, to, user | PF_WRITE);
    }
    bytes = tlb_span(&block->vcpu, to, bytes, user | PF_WRITE, &to_host);
    uint64_t count = bytes / size;
    if (count == 0) {
        return false;
    }
    if (block->drops != drops) {
        return true; /* again: what was found first may be void */
    }
    if (is_store) {
        repeat_store((uint64_t)to_host, gpr[RAX], count, size);
    } else {
        repeat_move((uint64_t)to_host, (uint64_t)from_host, count, size);
        gpr[RSI] += count * size;
    }
    gpr[RDI] += count * size;
    gpr[RCX] -= count;
    return true;
}

uint64_t helper_string(struct block *block, uint32_t number)
{
    const struct site *site = &block->vm->sites[number];
    struct place place = place_of(block, number);
    uint64_t *gpr = block->vcpu.state.gpr;
    unsigned size = site->size;
    bool is_store = site->is_store;
    vcpu_count(&block->vcpu, COUNT_EXIT_STRING);
    block_trace(block, TRACE_EXITS, "string", "count", gpr[RCX]);
    if (block->vcpu.state.rflags & FLAG_DF) {
        return place_execute(block, &place);
    }
    while (gpr[RCX] && !block->poll_now) {
        if (!string_piece(block, size, is_store)) {
            return place_execute(block, &place);
        }
    }
    /* Also behind the last piece: it may be new code, in a page that is not watched any more. */
    if (block->poll_now) {
        block_gather(block);
        block->vcpu.state.rip = place.rip;
        return block_resume(block, 0);
    }
    /* With a count of zero. */
    return place_is_current(block, &place) ? place.inline_address : place_start_over(block, &place);
}
