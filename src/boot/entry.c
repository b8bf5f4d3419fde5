/* The CPU at a kernel's first instruction. SDM volume 3, 3.4.5 (descriptors) and 4.5 (tables). */
#include "boot/entry.h"

#include <string.h>

#include "base/bytes.h"
#include "x86/descriptor.h"
#include "x86/walk.h"

enum {
    TASK_LIMIT = 0x67,
    GDT_ENTRIES = 6, /* two unused, code, data, and two for a TSS (16 bytes in IA-32e mode) */
    STACK_SIZE = PAGE_SIZE,
    IDENTITY_GIB = 4,
    LARGE_PAGE_SHIFT = 21,
    /* IA32_MTRR_DEF_TYPE: enabled, write-back, as a firmware leaves it (SDM volume 3, 11.11.2.1) */
    MTRR_ENABLED_WRITE_BACK = 0x800 | 6,
};

/* Everything that both modes share: segments, GDT, stack, flags. */
static int enter(struct layout *layout, uint64_t entry, bool is_64bit, struct cpu_state *state)
{
    struct segment code = segment_flat(ENTRY_CODE, true, is_64bit, 0);
    struct segment data = segment_flat(ENTRY_DATA, false, is_64bit, 0);
    struct segment task = {
        .limit = TASK_LIMIT, .selector = ENTRY_TASK, .attributes = SYSTEM_TSS_BUSY | SEGMENT_P};
    uint64_t gdt[GDT_ENTRIES] = {
        [ENTRY_CODE / 8] = descriptor_pack(&code),
        [ENTRY_DATA / 8] = descriptor_pack(&data),
        [ENTRY_TASK / 8] = descriptor_pack(&task),
    };
    gpa_t gdt_address;
    int error = layout_scratch(layout, gdt, sizeof gdt, 16, &gdt_address);
    if (error < 0) {
        return error;
    }
    gpa_t stack;
    error = layout_scratch(layout, NULL, STACK_SIZE, 16, &stack);
    if (error < 0) {
        return error;
    }

    memset(state->gpr, 0, sizeof state->gpr);
    state->gpr[RSP] = stack + STACK_SIZE;
    state->rip = entry;
    state->rflags = FLAG_FIXED;
    for (int i = 0; i < SEGMENT_COUNT; i++) {
        state->segment[i] = data;
    }
    state->segment[CS] = code;
    state->tr = task;
    state->gdtr = (struct descriptor_table){.base = gdt_address, .limit = sizeof gdt - 1};
    state->idtr = (struct descriptor_table){.base = 0, .limit = 0};
    state->mtrr_def_type = MTRR_ENABLED_WRITE_BACK;
    state->activity = ACTIVITY_RUNNING;
    return 0;
}

int entry_protected(struct layout *layout, uint32_t entry, struct cpu_state *state)
{
    int error = enter(layout, entry, false, state);
    if (error < 0) {
        return error;
    }
    state->cr0 = CR0_PE | CR0_ET;
    state->cr3 = 0;
    state->cr4 = 0;
    state->efer = 0;
    return 0;
}

/* One PML4, one page-directory-pointer table, and a page directory for each GiB. */
static int write_identity_tables(struct layout *layout, gpa_t *ret_root)
{
    enum { ENTRIES = PAGE_SIZE / 8 };
    uint64_t table[ENTRIES];
    gpa_t base;
    int error = layout_scratch(layout, NULL, (2 + IDENTITY_GIB) * PAGE_SIZE, PAGE_SIZE, &base);
    if (error < 0) {
        return error;
    }
    for (uint64_t i = 0; i < 2 + IDENTITY_GIB; i++) {
        memset(table, 0, sizeof table);
        if (i == 0) {
            table[0] = (base + PAGE_SIZE) | PTE_P | PTE_W;
        } else if (i == 1) {
            for (uint64_t gib = 0; gib < IDENTITY_GIB; gib++) {
                table[gib] = (base + (2 + gib) * PAGE_SIZE) | PTE_P | PTE_W;
            }
        } else {
            for (uint64_t page = 0; page < ENTRIES; page++) {
                table[page] =
                    ((i - 2) * ENTRIES + page) << LARGE_PAGE_SHIFT | PTE_P | PTE_W | PTE_PS;
            }
        }
        error = layout_write(layout, base + i * PAGE_SIZE, table, sizeof table);
        if (error < 0) {
            return error;
        }
    }
    *ret_root = base;
    return 0;
}

int entry_long(struct layout *layout, uint64_t entry, struct cpu_state *state)
{
    gpa_t root;
    int error = write_identity_tables(layout, &root);
    if (error < 0) {
        return error;
    }
    error = enter(layout, entry, true, state);
    if (error < 0) {
        return error;
    }
    state->cr0 = CR0_PE | CR0_ET | CR0_PG;
    state->cr3 = root;
    state->cr4 = CR4_PAE;
    state->efer = EFER_LME | EFER_LMA;
    return 0;
}
