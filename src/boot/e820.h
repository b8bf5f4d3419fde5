/* The E820 table: RAM with the reserved spans cut out of it. */
#pragma once

#include "boot/boot.h"

/*
 * Build the table from ranges of RAM and from spans that are reserved for something, inside RAM
 * or outside of it. Where spans overlap, the later one counts. The result is sorted, without
 * overlaps, and neighbours of one type are joined. -E2BIG if more than E820_MAX entries are
 * needed (or given).
 */
int e820_build(const struct memory_range *ram, size_t ram_count, const struct e820_entry *reserved,
               size_t reserved_count, struct e820_entry ret_entries[static E820_MAX],
               size_t *ret_count) __attribute__((warn_unused_result));
