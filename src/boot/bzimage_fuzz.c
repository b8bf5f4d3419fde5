/*
 * Fuzzer of the bzImage loader. The input is a kernel file. Seeds: tests/corpus/bzimage.
 * Guards: src/boot/bzimage.c
 */
#include "boot/fuzz_board.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct boot_file file = {.name = "kernel", .data = data, .size = size};
    if (bzimage_recognize(&file)) {
        fuzz_one(data, size, bzimage_load);
    }
    return 0;
}
