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

static void entry_clear(struct tlb_entry *entry, unsigned index)
{
    entry->read_tag = tlb_invalid_tag(index);
    entry->write_tag = tlb_invalid_tag(index);
    entry->host = 0;
    entry->page = 0;
}

void tlb_flush_all(struct tlb *tlb)
{
    for (unsigned privilege = 0; privilege < TLB_PRIVILEGES; privilege++) {
        for (unsigned i = 0; i < TLB_ENTRIES; i++) {
            entry_clear(&tlb->entries[privilege][i], i);
        }
    }
}

void tlb_flush_non_global(struct tlb *tlb)
{
    for (unsigned privilege = 0; privilege < TLB_PRIVILEGES; privilege++) {
        for (unsigned i = 0; i < TLB_ENTRIES; i++) {
            if (!(tlb->entries[privilege][i].page & TLB_GLOBAL)) {
                entry_clear(&tlb->entries[privilege][i], i);
            }
        }
    }
}

void tlb_flush_page(struct tlb *tlb, gva_t gva)
{
    unsigned index = tlb_index(gva);

    for (unsigned privilege = 0; privilege < TLB_PRIVILEGES; privilege++) {
        entry_clear(&tlb->entries[privilege][index], index);
    }
}

void tlb_drop_physical(struct tlb *tlb, uint64_t first_page, uint64_t count, bool write_only)
{
    for (unsigned privilege = 0; privilege < TLB_PRIVILEGES; privilege++) {
        for (unsigned i = 0; i < TLB_ENTRIES; i++) {
            struct tlb_entry *entry = &tlb->entries[privilege][i];

            if ((entry->page & ~TLB_GLOBAL) - first_page >= count) {
                continue;
            }
            if (write_only) {
                entry->write_tag = tlb_invalid_tag(i);
            } else {
                entry_clear(entry, i);
            }
        }
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
    return walk(vcpu->memory, &vcpu->walk_mode, gva, access, ret_result);
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

    uint8_t *frame;
    if (memory_frame(vcpu->memory, result.gpa >> PAGE_SHIFT, write, &frame) != FRAME_OK) {
        return TLB_SLOW;
    }
    unsigned index = tlb_index(gva);
    struct tlb_entry *entry = &vcpu->tlb->entries[privilege][index];
    entry->read_tag = align_down(gva, PAGE_SIZE);
    entry->write_tag = write && result.dirty ? entry->read_tag : tlb_invalid_tag(index);
    entry->host = (uintptr_t)frame;
    entry->page = (result.gpa >> PAGE_SHIFT) | (result.global ? TLB_GLOBAL : 0);
    return write && !result.dirty ? TLB_SLOW : TLB_FILLED;
}

enum tlb_fill tlb_fill(struct vcpu *vcpu, gva_t gva, uint32_t access)
{
    gpa_t gpa;

    return tlb_translate(vcpu, gva, access & (PF_WRITE | PF_USER), &gpa);
}
