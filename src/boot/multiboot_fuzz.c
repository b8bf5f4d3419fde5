/*
 * Fuzzer of the Multiboot loader. The input is a kernel file. Seeds: tests/corpus/multiboot.
 * Guards: src/boot/multiboot.c
 */
#include "boot/fuzz_board.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct boot_file file = {.name = "kernel", .data = data, .size = size};
    if (multiboot_recognize(&file)) {
        fuzz_one(data, size, multiboot_load);
    }
    return 0;
}
