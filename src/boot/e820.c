/*
 * Building the E820 table: all ends of all ranges cut the address space into pieces, and each
 * piece has one type.
 */
#include "boot/e820.h"

#include <stdlib.h>

#include "base/error.h"

enum { EDGES_MAX = 4 * E820_MAX };

static int compare_edges(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left;
    uint64_t b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

/* The type at an address: 0 if there is nothing. */
static unsigned type_at(uint64_t address, const struct memory_range *ram, size_t ram_count,
                        const struct e820_entry *reserved, size_t reserved_count)
{
    for (size_t i = reserved_count; i-- > 0;) {
        if (address >= reserved[i].base && address - reserved[i].base < reserved[i].size) {
            return reserved[i].type;
        }
    }
    for (size_t i = 0; i < ram_count; i++) {
        if (address >= ram[i].base && address - ram[i].base < ram[i].size) {
            return E820_RAM;
        }
    }
    return 0;
}

int e820_build(const struct memory_range *ram, size_t ram_count, const struct e820_entry *reserved,
               size_t reserved_count, struct e820_entry ret_entries[static E820_MAX],
               size_t *ret_count)
{
    if (ram_count > E820_MAX || reserved_count > E820_MAX) {
        return fail(-E2BIG, "the memory map has more than %d ranges", E820_MAX);
    }
    uint64_t edges[EDGES_MAX];
    size_t edge_count = 0;
    for (size_t i = 0; i < ram_count; i++) {
        edges[edge_count++] = ram[i].base;
        edges[edge_count++] = ram[i].base + ram[i].size;
    }
    for (size_t i = 0; i < reserved_count; i++) {
        edges[edge_count++] = reserved[i].base;
        edges[edge_count++] = reserved[i].base + reserved[i].size;
    }
    qsort(edges, edge_count, sizeof edges[0], compare_edges);

    size_t count = 0;
    for (size_t i = 0; i + 1 < edge_count; i++) {
        uint64_t base = edges[i];
        uint64_t size = edges[i + 1] - base;
        unsigned type = type_at(base, ram, ram_count, reserved, reserved_count);
        if (size == 0 || type == 0) {
            continue;
        }
        struct e820_entry *last = count > 0 ? &ret_entries[count - 1] : NULL;
        if (last && last->type == type && last->base + last->size == base) {
            last->size += size;
            continue;
        }
        if (count == E820_MAX) {
            return fail(-E2BIG, "the memory map needs more than %d entries", E820_MAX);
        }
        ret_entries[count++] = (struct e820_entry){.base = base, .size = size, .type = type};
    }
    *ret_count = count;
    return 0;
}
