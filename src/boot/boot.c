/*
 * Recognition of kernel files. What is not a kernel that we load gets an answer that says what the
 * file seems to be, because "unknown format" helps nobody.
 */
#include "boot/boot.h"

#include <ctype.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "boot/boot_internal.h"

/* Formats that are taken for kernels by mistake. The first match counts. */
static const struct {
    size_t offset;
    const char *magic;
    size_t length;
    const char *description;
} foreign_formats[] = {
#define FOREIGN(offset, magic, description)                                                        \
    {                                                                                              \
        offset, magic, sizeof(magic) - 1, description                                              \
    }
    FOREIGN(0, "\x1f\x8b", "gzip-compressed data; decompress it first"),
    FOREIGN(0, "\x28\xb5\x2f\xfd", "zstd-compressed data; decompress it first"),
    FOREIGN(0, "\xfd\x37zXZ", "xz-compressed data; decompress it first"),
    FOREIGN(0, "BZh", "bzip2-compressed data; decompress it first"),
    FOREIGN(0, "\x02\x21\x4c\x18", "lz4-compressed data; decompress it first"),
    FOREIGN(0, "\x04\x22\x4d\x18", "lz4-compressed data; decompress it first"),
    FOREIGN(0, "\x89LZO", "lzop-compressed data; decompress it first"),
    FOREIGN(0x38, "ARM\x64", "a Linux kernel for 64-bit ARM"),
    FOREIGN(0x38, "RSC\x05", "a Linux kernel for RISC-V"),
    FOREIGN(0x24, "\x18\x28\x6f\x01", "a Linux kernel for 32-bit ARM"),
    FOREIGN(0, "MZ", "an EFI or Windows program (PE)"),
    FOREIGN(0, "\x27\x05\x19\x56", "a U-Boot image"),
    FOREIGN(0, "\xd0\x0d\xfe\xed", "a device tree or FIT image"),
    FOREIGN(0, "\xd6\x50\x52\xe8", "a Multiboot 2 kernel"),
    FOREIGN(0, "QFI\xfb", "a qcow2 disk image"),
    FOREIGN(0, "070701", "a cpio archive (an initrd?)"),
    FOREIGN(0, "hsqs", "a squashfs file system"),
    FOREIGN(0, "!<arch>\n", "a package or library archive (ar, deb)"),
    FOREIGN(0, "#!", "a script"),
    FOREIGN(0x8001, "CD001", "an ISO 9660 image"),
    FOREIGN(510, "\x55\xaa", "a boot sector or disk image"),
#undef FOREIGN
};

static bool is_text(const struct boot_file *file)
{
    size_t length = file->size < 512 ? file->size : 512;
    for (size_t i = 0; i < length; i++) {
        if (!isprint(file->data[i]) && !isspace(file->data[i])) {
            return false;
        }
    }
    return true;
}

static const char *describe_foreign(const struct boot_file *file)
{
    for (size_t i = 0; i < ARRAY_SIZE(foreign_formats); i++) {
        if (range_fits(foreign_formats[i].offset, foreign_formats[i].length, file->size) &&
            memcmp(file->data + foreign_formats[i].offset, foreign_formats[i].magic,
                   foreign_formats[i].length) == 0) {
            return foreign_formats[i].description;
        }
    }
    return is_text(file) ? "text" : "of no format that is known here";
}

int boot_refuse_modules(const struct boot_request *request)
{
    if (request->module_count > 0) {
        return fail(-EINVAL,
                    "kernel '%s' takes no modules, only an initrd: modules are for "
                    "Multiboot kernels",
                    request->kernel.name);
    }
    return 0;
}

int boot_load(struct memory *memory, const struct boot_board *board,
              const struct boot_request *request, struct cpu_state *state)
{
    const struct boot_file *kernel = &request->kernel;
    struct layout layout;
    layout_init(&layout, memory, board);
    if (kernel->size == 0) {
        return fail(-ENOEXEC, "kernel '%s' is empty", kernel->name);
    }
    if (bzimage_recognize(kernel)) {
        return bzimage_load(&layout, request, state);
    }
    if (elf_recognize(kernel)) {
        return elf_load(&layout, request, state);
    }
    if (multiboot_recognize(kernel)) {
        return multiboot_load(&layout, request, state);
    }
    return fail(-ENOEXEC,
                "'%s' is no kernel that can be loaded (it seems to be %s); known formats: Linux "
                "bzImage, ELF (PVH, Linux vmlinux), Multiboot 1",
                kernel->name, describe_foreign(kernel));
}
