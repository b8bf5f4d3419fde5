/*
 * bzImage: the compressed Linux kernel with its setup header, entered by the 64-bit boot protocol
 * (or the 32-bit one, for 32-bit kernels). Documentation/arch/x86/boot.rst. Protocol 2.12 (Linux
 * 3.8) and later.
 */
#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "boot/boot_internal.h"
#include "boot/linux.h"

enum {
    SECTOR_SIZE = 512,
    SETUP_SECTS_DEFAULT = 4, /* what 0 means */
    ENTRY_64_OFFSET = 0x200,
    LOAD_MINIMUM = 0x100000, /* below it are the loader's tables and ACPI */
};

bool bzimage_recognize(const struct boot_file *file)
{
    return range_fits(LINUX_MAGIC, 4, file->size) &&
           load_le32(file->data + LINUX_MAGIC) == LINUX_MAGIC_VALUE &&
           load_le16(file->data + LINUX_BOOT_FLAG) == LINUX_BOOT_FLAG_VALUE;
}

/* Check that the header is whole and of a version that we speak, and copy it to the zero page. */
static int read_header(const struct boot_file *file, uint8_t *params)
{
    size_t end = LINUX_MAGIC + (size_t)file->data[LINUX_HEADER_END];
    if (end > file->size) {
        return fail(-EINVAL, "kernel '%s' is truncated within its setup header", file->name);
    }
    unsigned version = end >= LINUX_VERSION + 2 ? load_le16(file->data + LINUX_VERSION) : 0;
    if (version < LINUX_VERSION_MINIMUM) {
        return fail(-EINVAL,
                    "kernel '%s' speaks boot protocol %u.%02u; 2.12 (Linux 3.8) or later is needed",
                    file->name, version >> 8, version & 0xff);
    }
    if (end < LINUX_HEADER_MINIMUM) {
        return fail(-EINVAL, "kernel '%s': its setup header ends at 0x%zx, before init_size",
                    file->name, end);
    }
    if (!(file->data[LINUX_LOADFLAGS] & LINUX_LOADED_HIGH)) {
        return fail(-EINVAL, "kernel '%s' is a zImage that loads below 1 MiB; use a bzImage",
                    file->name);
    }
    end = end < LINUX_HEADER_LIMIT ? end : LINUX_HEADER_LIMIT;
    memcpy(params + LINUX_SETUP_SECTS, file->data + LINUX_SETUP_SECTS, end - LINUX_SETUP_SECTS);
    return 0;
}

/* The protected-mode part of the file: what is behind the real-mode sectors. */
static int find_code(const struct boot_file *file, const uint8_t *params, uint64_t *ret_offset)
{
    uint64_t sectors = params[LINUX_SETUP_SECTS] ? params[LINUX_SETUP_SECTS] : SETUP_SECTS_DEFAULT;
    uint64_t offset = (1 + sectors) * SECTOR_SIZE;
    if (offset >= file->size) {
        return fail(-EINVAL, "kernel '%s' is truncated: it ends before its 32-bit code at %" PRIu64,
                    file->name, offset);
    }
    /* syssize is rounded up to 16 bytes, the file need not be. */
    uint64_t code_size = (uint64_t)load_le32(params + LINUX_SYSSIZE) * 16;
    if (code_size > align_up(file->size - offset, 16)) {
        return fail(-EINVAL,
                    "kernel '%s' is truncated: its header promises %" PRIu64
                    " bytes of code, the file has %" PRIu64,
                    file->name, code_size, file->size - offset);
    }
    if (code_size <= ENTRY_64_OFFSET) {
        return fail(-EINVAL, "kernel '%s' has %" PRIu64 " bytes of code, too few for its entry",
                    file->name, code_size);
    }
    *ret_offset = offset;
    return 0;
}

/*
 * Choose the address: the preferred one if init_size bytes are free there, otherwise (relocatable
 * kernels) the lowest free place above it. A kernel below its preferred address would only move
 * itself up again.
 */
static int place_kernel(struct layout *layout, const struct boot_file *file, const uint8_t *params,
                        uint64_t code_size, gpa_t *ret_base)
{
    uint64_t preferred = load_le64(params + LINUX_PREF_ADDRESS);
    uint64_t alignment = load_le32(params + LINUX_KERNEL_ALIGNMENT);
    uint64_t size = load_le32(params + LINUX_INIT_SIZE);
    size = size > code_size ? size : code_size;
    if (preferred < LOAD_MINIMUM || preferred >= GIB(4)) {
        return fail(-EINVAL,
                    "kernel '%s' prefers load address 0x%" PRIx64
                    ", outside of what can be used (1 MiB to 4 GiB)",
                    file->name, preferred);
    }
    if (!params[LINUX_RELOCATABLE]) {
        *ret_base = preferred;
        return layout_take(layout, preferred, size, "the kernel");
    }
    if (alignment == 0 || (alignment & (alignment - 1)) != 0) {
        return fail(-EINVAL, "kernel '%s' asks for alignment 0x%" PRIx64 ", not a power of two",
                    file->name, alignment);
    }
    if (layout_find_low(layout, size, 1, preferred, preferred + size, ret_base) < 0 &&
        layout_find_low(layout, size, alignment, preferred, GIB(4), ret_base) < 0) {
        return fail(-ENOMEM,
                    "kernel '%s' needs %" PRIu64 " MiB of free memory at %" PRIu64
                    " MiB or above (and below 4 GiB): give the guest more memory",
                    file->name, align_up(size, MIB(1)) >> 20, preferred >> 20);
    }
    return layout_take(layout, *ret_base, size, "the kernel");
}

int bzimage_load(struct layout *layout, const struct boot_request *request, struct cpu_state *state)
{
    const struct boot_file *file = &request->kernel;
    struct linux_boot boot = {0};
    uint8_t *params = boot.params;
    int error = boot_refuse_modules(request);
    if (error < 0) {
        return error;
    }
    error = read_header(file, params);
    if (error < 0) {
        return error;
    }
    uint64_t offset = 0;
    error = find_code(file, params, &offset);
    if (error < 0) {
        return error;
    }
    gpa_t base;
    error = place_kernel(layout, file, params, file->size - offset, &base);
    if (error < 0) {
        return error;
    }
    error = layout_write(layout, base, file->data + offset, file->size - offset);
    if (error < 0) {
        return error;
    }

    unsigned xloadflags = load_le16(params + LINUX_XLOADFLAGS);
    boot.is_64bit = xloadflags & LINUX_XLF_KERNEL_64;
    boot.entry = base + (boot.is_64bit ? ENTRY_64_OFFSET : 0);
    boot.command_line_max = load_le32(params + LINUX_CMDLINE_SIZE);
    /* 64-bit kernels take an initrd anywhere; their initrd_addr_max is kept low for old loaders. */
    boot.initrd_above_4g = boot.is_64bit && (xloadflags & LINUX_XLF_ABOVE_4G);
    boot.initrd_limit =
        boot.initrd_above_4g ? GIB(4) : (uint64_t)load_le32(params + LINUX_INITRD_ADDR_MAX) + 1;
    store_le32(params + LINUX_CODE32_START, (uint32_t)base);
    /* Both flags speak to the real-mode code, which does not run. */
    params[LINUX_LOADFLAGS] &= (uint8_t) ~(LINUX_KEEP_SEGMENTS | LINUX_CAN_USE_HEAP);
    store_le64(params + LINUX_SETUP_DATA, 0);
    return linux_finish(layout, request, &boot, state);
}
