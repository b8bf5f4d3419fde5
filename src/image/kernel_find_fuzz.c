/*
 * Fuzzer of what looks for a kernel on a disk: partition tables, ext4 by libext2fs, and the boot
 * loader's configuration. The input is a disk. Seeds: tests/corpus/kernel_find.
 * Guards: src/image/kernel_find.c src/image/gpt.c src/image/blocks.c src/image/version.c
 * Below 85%: gpt.c also writes tables, which only its test does.
 */
#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "image/kernel_find.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *data;
    size_t size;
};

static int read_input(void *owner, uint64_t offset, void *to, size_t size)
{
    const struct input *input = owner;
    if (!range_fits(offset, size, input->size)) {
        return -EINVAL;
    }
    memcpy(to, input->data + offset, size);
    return 0;
}

static int count_bytes(void *owner, const void *bytes, size_t size)
{
    *(uint64_t *)owner += size;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct kernel_files files;
    struct input input = {data, size};
    if (kernel_find(read_input, &input, size, &files)) {
        return 0;
    }
    uint64_t count = 0;
    ASSERT(files.kernel && *files.version && *files.command_line);
    ASSERT(files.kernel_size && files.kernel_size <= KERNEL_SIZE_MAX);
    ASSERT(files.initrd_size <= INITRD_SIZE_MAX);
    ASSERT(strstr(files.command_line, "console=ttyS0"));
    uint64_t wanted = files.kernel_size < MIB(1) ? files.kernel_size : MIB(1);
    ASSERT(kernel_file_read(&files, files.kernel, wanted, count_bytes, &count) || count == wanted);
    kernel_files_close(&files);
    return 0;
}
