/*
 * For this room's fuzzers: one small machine that every input is loaded into. Whatever the file,
 * the outcome is a refusal with a sentence, or an entry point in RAM.
 */
#pragma once

#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"
#include "boot/boot_internal.h"

enum { FUZZ_RAM_SIZE = 32 << 20 };

typedef int fuzz_load(struct layout *layout, const struct boot_request *request,
                      struct cpu_state *state);

static inline void fuzz_one(const uint8_t *data, size_t size, fuzz_load *load)
{
    static const struct memory_range ram[] = {{0, FUZZ_RAM_SIZE}};
    static const struct e820_entry e820[] = {
        {0, 0xa0000, E820_RAM},
        {0xa0000, 0x60000, E820_RESERVED},
        {0x100000, FUZZ_RAM_SIZE - 0x100000, E820_RAM},
    };
    static const struct boot_board board = {
        .e820 = e820,
        .e820_count = ARRAY_SIZE(e820),
        .rsdp = 0xe0000,
        .scratch_base = 0x1000,
        .scratch_size = 0x20000,
    };
    static struct memory *memory;
    if (!memory) {
        ASSERT(memory_new(ram, 1, "fuzz", &memory) == 0);
    }
    static const uint8_t initrd[100];
    struct boot_request request = {
        .kernel = {.name = "kernel", .data = data, .size = size},
        .initrd = {.name = "initrd", .data = initrd, .size = sizeof initrd},
        .command_line = "console=ttyS0",
    };
    struct cpu_state state = {0};
    struct layout layout;
    layout_init(&layout, memory, &board);
    trail_clear();
    int error = load(&layout, &request, &state);
    ASSERT(error < 0 ? trail_text()[0] != 0 : layout_ram_end(&layout, state.rip) > state.rip);
}
