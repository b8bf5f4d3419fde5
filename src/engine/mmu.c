/*
 * Guest-virtual memory access from C. An access inside one page uses the host address in the
 * soft TLB; everything else (watched pages, devices, page crossings) goes by guest-physical
 * address through memory's doors or to the machine.
 *
 * Promises: a fault is found before anything is written. No host address is held across a call
 *           that could make memory take a frame away.
 */
#include "engine/mmu.h"

#include "base/bytes.h"

/* One page's part of an access, as a place in guest-physical space. */
struct piece {
    gpa_t gpa;
    unsigned size;
};

/* Numbers in guest memory, which need not be aligned. */
typedef uint16_t unaligned_u16 __attribute__((aligned(1), may_alias));
typedef uint32_t unaligned_u32 __attribute__((aligned(1), may_alias));
typedef uint64_t unaligned_u64 __attribute__((aligned(1), may_alias));

/* Small accesses are single loads and stores: the guest relies on their atomicity. */
static inline void copy_small(void *to, const void *from, unsigned size)
{
    switch (size) {
    case 1:
        *(volatile uint8_t *)to = *(const volatile uint8_t *)from;
        break;
    case 2:
        *(volatile unaligned_u16 *)to = *(const volatile unaligned_u16 *)from;
        break;
    case 4:
        *(volatile unaligned_u32 *)to = *(const volatile unaligned_u32 *)from;
        break;
    case 8:
        *(volatile unaligned_u64 *)to = *(const volatile unaligned_u64 *)from;
        break;
    default:
        bytes_copy(to, from, size);
    }
}

static inline uint8_t *tlb_lookup(struct vcpu *vcpu, gva_t gva, unsigned size, uint32_t access)
{
    enum tlb_privilege privilege = access & PF_USER ? TLB_USER : TLB_KERNEL;
    enum tlb_access kind = access & PF_WRITE ? TLB_WRITE : TLB_READ;
    const struct tlb_entry *entry = &vcpu->tlb->entries[privilege][kind][tlb_index(gva)];
    uint64_t distance = gva - entry->tag;

    return distance <= PAGE_SIZE - size ? (uint8_t *)(entry->host + distance) : NULL;
}

/*
 * An explicit kernel access to a user page with SMAP and AC: what the user may do, the kernel may
 * do too, so the user's half of the TLB serves it.
 */
static bool may_use_user_half(const struct vcpu *vcpu, uint32_t access)
{
    return !(access & PF_USER) && (vcpu->walk_mode.cr4 & CR4_SMAP) &&
           (vcpu->state.rflags & FLAG_AC) && cpu_state_cpl(&vcpu->state) < 3;
}

/* The host address of an access inside one page, or its guest-physical address, or a fault. */
static enum step locate(struct vcpu *vcpu, gva_t gva, unsigned size, uint32_t access,
                        uint8_t **ret_host, gpa_t *ret_gpa)
{
    *ret_host = NULL;
    if (may_use_user_half(vcpu, access)) {
        *ret_host = tlb_lookup(vcpu, gva, size, access | PF_USER);
        if (*ret_host) {
            return STEP_NEXT;
        }
    }
    switch (tlb_translate(vcpu, gva, access, ret_gpa)) {
    case TLB_FILLED:
        *ret_host = tlb_lookup(vcpu, gva, size, access);
        return STEP_NEXT;
    case TLB_FAULT:
        return STEP_EXCEPTION;
    case TLB_SLOW:
        break;
    }
    gpa_t gpa;
    if (may_use_user_half(vcpu, access) &&
        tlb_translate(vcpu, gva, access | PF_USER, &gpa) == TLB_FILLED) {
        *ret_host = tlb_lookup(vcpu, gva, size, access | PF_USER);
    }
    return STEP_NEXT;
}

/* The part of a device access that can go at once: naturally aligned, 8 bytes at most. */
static unsigned device_part(gpa_t gpa, unsigned size)
{
    if (size == 1 || size == 2 || size == 4 || size == 8) {
        return size;
    }
    unsigned part = 8;
    while (part > size || (part > 1 && size < 8 && (gpa & (part - 1)))) {
        part /= 2;
    }
    return part;
}

static void device_read(struct vcpu *vcpu, struct piece piece, uint8_t *buffer)
{
    const struct engine_host *host = vcpu->host;

    while (piece.size > 0) {
        unsigned part = device_part(piece.gpa, piece.size);
        uint64_t value = host->mmio_read(host->owner, vcpu->index, piece.gpa, part);
        copy_small(buffer, &value, part);
        buffer += part;
        piece.gpa += part;
        piece.size -= part;
    }
}

static void device_write(struct vcpu *vcpu, struct piece piece, const uint8_t *buffer)
{
    const struct engine_host *host = vcpu->host;

    while (piece.size > 0) {
        unsigned part = device_part(piece.gpa, piece.size);
        uint64_t value = 0;
        copy_small(&value, buffer, part);
        host->mmio_write(host->owner, vcpu->index, piece.gpa, part, value);
        buffer += part;
        piece.gpa += part;
        piece.size -= part;
    }
}

static void physical_read(struct vcpu *vcpu, struct piece piece, uint8_t *buffer)
{
    if (memory_read(vcpu->memory, piece.gpa, buffer, piece.size) != 0) {
        device_read(vcpu, piece, buffer);
    }
}

static void physical_write(struct vcpu *vcpu, struct piece piece, const uint8_t *buffer)
{
    if (memory_write(vcpu->memory, piece.gpa, buffer, piece.size) != 0) {
        device_write(vcpu, piece, buffer);
    }
}

/* The linear address behind a page boundary: 32 bits wide outside IA-32e mode. */
static gva_t next_page(const struct vcpu *vcpu, gva_t gva)
{
    gva_t next = align_down(gva, PAGE_SIZE) + PAGE_SIZE;

    return cpu_state_is_long(&vcpu->state) ? next : (uint32_t)next;
}

/* Both parts of an access across a page boundary; nothing is accessed yet. */
static enum step split(struct vcpu *vcpu, gva_t gva, unsigned size, uint32_t access,
                       struct piece pieces[2])
{
    pieces[0].size = PAGE_SIZE - (unsigned)(gva & (PAGE_SIZE - 1));
    pieces[1].size = size - pieces[0].size;
    if (tlb_translate(vcpu, gva, access, &pieces[0].gpa) == TLB_FAULT ||
        tlb_translate(vcpu, next_page(vcpu, gva), access, &pieces[1].gpa) == TLB_FAULT) {
        return STEP_EXCEPTION;
    }
    return STEP_NEXT;
}

static bool crosses_page(gva_t gva, unsigned size)
{
    return (gva & (PAGE_SIZE - 1)) + size > PAGE_SIZE;
}

/* Where the bytes of an access are: at a host address, or in one or two pieces. */
struct target {
    uint8_t *host; /* NULL: not plain RAM in one page */
    struct piece pieces[2];
};

static enum step find_slowly(struct vcpu *vcpu, gva_t gva, unsigned size, uint32_t access,
                             struct target *ret_target)
{
    if (crosses_page(gva, size)) {
        return split(vcpu, gva, size, access, ret_target->pieces);
    }
    ret_target->pieces[0].size = size;
    ret_target->pieces[1].size = 0;
    return locate(vcpu, gva, size, access, &ret_target->host, &ret_target->pieces[0].gpa);
}

/* Find the target of an access, or its fault; nothing is accessed yet. */
static inline enum step find(struct vcpu *vcpu, gva_t gva, unsigned size, uint32_t access,
                             struct target *ret_target)
{
    ret_target->host = tlb_lookup(vcpu, gva, size, access);
    if (__builtin_expect(ret_target->host != NULL, 1)) {
        return STEP_NEXT;
    }
    return find_slowly(vcpu, gva, size, access, ret_target);
}

enum step mmu_read(struct vcpu *vcpu, gva_t gva, void *buffer, unsigned size, uint32_t access)
{
    struct target target;
    enum step step = find(vcpu, gva, size, access & PF_USER, &target);
    if (step != STEP_NEXT) {
        return step;
    }
    if (target.host) {
        copy_small(buffer, target.host, size);
        return STEP_NEXT;
    }
    physical_read(vcpu, target.pieces[0], buffer);
    if (target.pieces[1].size) {
        physical_read(vcpu, target.pieces[1], (uint8_t *)buffer + target.pieces[0].size);
    }
    if (__builtin_expect(vcpu->debug != NULL, 0)) {
        debug_note_access(vcpu, gva, size, false);
    }
    return STEP_NEXT;
}

enum step mmu_write(struct vcpu *vcpu, gva_t gva, const void *buffer, unsigned size,
                    uint32_t access)
{
    struct target target;
    enum step step = find(vcpu, gva, size, (access & PF_USER) | PF_WRITE, &target);
    if (step != STEP_NEXT) {
        return step;
    }
    if (target.host) {
        copy_small(target.host, buffer, size);
        return STEP_NEXT;
    }
    physical_write(vcpu, target.pieces[0], buffer);
    if (target.pieces[1].size) {
        physical_write(vcpu, target.pieces[1], (const uint8_t *)buffer + target.pieces[0].size);
    }
    if (__builtin_expect(vcpu->debug != NULL, 0)) {
        debug_note_access(vcpu, gva, size, true);
    }
    return STEP_NEXT;
}

enum step mmu_check_write(struct vcpu *vcpu, gva_t gva, unsigned size, uint32_t access)
{
    struct target target;
    return find(vcpu, gva, size, (access & PF_USER) | PF_WRITE, &target);
}

enum step mmu_host(struct vcpu *vcpu, gva_t gva, unsigned size, uint32_t access, uint8_t **ret_host)
{
    struct target target;
    enum step step = find(vcpu, gva, size, access & (PF_USER | PF_WRITE), &target);
    *ret_host = target.host;
    return step;
}

enum step mmu_translate_fetch(struct vcpu *vcpu, gva_t rip, struct walk_result *ret_result)
{
    uint32_t user = cpu_state_cpl(&vcpu->state) == 3 ? PF_USER : 0;

    if (cpu_state_is_long(&vcpu->state) && !is_canonical(rip)) {
        vcpu->exception = (struct exception){.vector = EXCEPTION_GP, .has_error_code = true};
        return STEP_EXCEPTION;
    }
    if (!walk(vcpu->memory, &vcpu->walk_mode, &vcpu->tlb->walk_cache, rip, PF_FETCH | user,
              ret_result)) {
        vcpu->exception = (struct exception){
            .vector = EXCEPTION_PF,
            .has_error_code = true,
            .error_code = ret_result->error_code,
            .cr2 = rip,
        };
        return STEP_EXCEPTION;
    }
    return STEP_NEXT;
}

enum step mmu_fetch(struct vcpu *vcpu, gva_t rip, uint8_t *buffer, unsigned *ret_count)
{
    enum { LONGEST = 15 };
    struct walk_result result;
    struct piece piece;

    *ret_count = 0;
    enum step step = mmu_translate_fetch(vcpu, rip, &result);
    if (step != STEP_NEXT) {
        return step;
    }
    piece.gpa = result.gpa;
    piece.size = PAGE_SIZE - (unsigned)(rip & (PAGE_SIZE - 1));
    if (piece.size > LONGEST) {
        piece.size = LONGEST;
    }
    physical_read(vcpu, piece, buffer);
    *ret_count = piece.size;
    if (piece.size == LONGEST ||
        mmu_translate_fetch(vcpu, next_page(vcpu, rip), &result) != STEP_NEXT) {
        return STEP_NEXT;
    }
    piece.gpa = result.gpa;
    piece.size = LONGEST - *ret_count;
    physical_read(vcpu, piece, buffer + *ret_count);
    *ret_count = LONGEST;
    return STEP_NEXT;
}
