/*
 * Fuzzer of the ELF loaders. The input is a kernel file. Seeds: tests/corpus/elf.
 * Guards: src/boot/elf.c src/boot/elf_kernel.c
 */
#include "boot/fuzz_board.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct boot_file file = {.name = "kernel", .data = data, .size = size};
    if (elf_recognize(&file)) {
        fuzz_one(data, size, elf_load);
    }
    return 0;
}
