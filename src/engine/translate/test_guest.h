/*
 * Tests only: the smallest guest that is translated. 64-bit mode at CPL 0, the first 2 MiB of
 * addresses mapped to themselves.
 */
#pragma once

#include "memory/memory.h"
#include "x86/cpu_state.h"
#include "x86/descriptor.h"
#include "x86/walk.h"

enum { TEST_GUEST_RAM = 1 << 20, TEST_GUEST_ROOT = 0x1000, TEST_GUEST_STACK = 0x8000 };

static inline int test_guest_map(struct memory *memory)
{
    static const uint64_t entries[] = {(TEST_GUEST_ROOT + 0x1000) | PTE_P | PTE_W,
                                       (TEST_GUEST_ROOT + 0x2000) | PTE_P | PTE_W,
                                       PTE_P | PTE_W | PTE_PS};
    int r = 0;
    for (unsigned i = 0; i < 3; i++) {
        r = r ? r : memory_write(memory, TEST_GUEST_ROOT + 0x1000 * i, &entries[i], 8);
    }
    return r;
}

static inline void test_guest_state(struct cpu_state *ret_state, uint64_t rip)
{
    cpu_state_reset(ret_state, true);
    ret_state->cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_WP | CR0_ET;
    ret_state->cr3 = TEST_GUEST_ROOT;
    ret_state->cr4 = CR4_PAE | CR4_OSFXSR;
    ret_state->efer = EFER_LME | EFER_LMA;
    ret_state->segment[CS] = segment_flat(8, true, true, 0);
    ret_state->segment[SS] = segment_flat(16, false, true, 0);
    ret_state->rip = rip;
    ret_state->gpr[RSP] = TEST_GUEST_STACK;
}
