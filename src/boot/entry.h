/*
 * The CPU at a kernel's first instruction: 32-bit flat protected mode, or 64-bit mode with
 * identity-mapped tables, each with a GDT and a small stack in the scratch range.
 */
#pragma once

#include <stdint.h>

#include "boot/layout.h"

/* Selectors of the GDT that the guest finds. Linux calls the first two __BOOT_CS and __BOOT_DS. */
enum { ENTRY_CODE = 0x10, ENTRY_DATA = 0x18, ENTRY_TASK = 0x20 };

/*
 * Protected mode, paging off, flat 4 GiB segments, a busy 32-bit TSS with base 0 and limit 67H
 * (as PVH wants it), interrupts off. General registers other than ESP are zero.
 */
int entry_protected(struct layout *layout, uint32_t entry, struct cpu_state *state)
    __attribute__((warn_unused_result));

/* 64-bit mode, the first 4 GiB identity-mapped by 2 MiB pages, interrupts off. */
int entry_long(struct layout *layout, uint64_t entry, struct cpu_state *state)
    __attribute__((warn_unused_result));
