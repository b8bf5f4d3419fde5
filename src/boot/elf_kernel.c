/*
 * ELF kernels: which boot protocol a file asks for, and the two that ELF alone decides. PVH: the
 * Xen HVM direct boot ABI (docs/misc/pvh and start_info.h of Xen). vmlinux: the 64-bit Linux
 * boot protocol with a zero page of defaults.
 */
#include <elf.h>
#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "boot/boot_internal.h"
#include "boot/elf.h"
#include "boot/entry.h"
#include "boot/linux.h"

enum {
    XEN_ELFNOTE_PHYS32_ENTRY = 18,
    START_INFO_SIZE = 56,
    START_INFO_VERSION = 1,
    MODULE_SIZE = 32,
    MEMORY_MAP_ENTRY_SIZE = 24,
    LINUX_COMMAND_LINE_MAX = 2047, /* COMMAND_LINE_SIZE of Linux on x86, less the zero */
    LINUX_ALIGNMENT_DEFAULT = 16 * 1024 * 1024, /* CONFIG_PHYSICAL_ALIGN in common builds */
};
#define START_INFO_MAGIC 0x336ec578u

bool elf_recognize(const struct boot_file *file)
{
    return file->size >= SELFMAG && memcmp(file->data, ELFMAG, SELFMAG) == 0;
}

/* The memory map for hvm_start_info: the E820 table with 24-byte entries. */
static int put_memory_map(struct layout *layout, gpa_t *ret_gpa)
{
    uint8_t map[E820_MAX * MEMORY_MAP_ENTRY_SIZE] = {0};
    const struct boot_board *board = layout->board;
    size_t count = board->e820_count < E820_MAX ? board->e820_count : E820_MAX;
    for (size_t i = 0; i < count; i++) {
        uint8_t *entry = map + i * MEMORY_MAP_ENTRY_SIZE;
        store_le64(entry, board->e820[i].base);
        store_le64(entry + 8, board->e820[i].size);
        store_le32(entry + 16, board->e820[i].type);
    }
    return layout_scratch(layout, map, count * MEMORY_MAP_ENTRY_SIZE, 8, ret_gpa);
}

/* Place the initrd as the only module, if there is one. */
static int put_module(struct layout *layout, const struct boot_file *initrd, gpa_t *ret_gpa)
{
    gpa_t base;
    int error = layout_find_high(layout, initrd->size, MIB(1), GIB(4), &base);
    if (error < 0) {
        return fail(error,
                    "no room for initrd '%s' (%zu bytes) beside the kernel below 4 GiB: give the "
                    "guest more memory",
                    initrd->name, initrd->size);
    }
    error = layout_take(layout, base, initrd->size, "the initrd");
    if (error < 0) {
        return error;
    }
    error = layout_write(layout, base, initrd->data, initrd->size);
    if (error < 0) {
        return error;
    }
    uint8_t module[MODULE_SIZE] = {0};
    store_le64(module, base);
    store_le64(module + 8, initrd->size);
    return layout_scratch(layout, module, sizeof module, 8, ret_gpa);
}

static int pvh_start(struct layout *layout, const struct boot_request *request, uint64_t entry,
                     struct cpu_state *state)
{
    uint8_t info[START_INFO_SIZE] = {0};
    store_le32(info, START_INFO_MAGIC);
    store_le32(info + 4, START_INFO_VERSION);
    gpa_t gpa;
    if (request->initrd.size > 0) {
        int error = put_module(layout, &request->initrd, &gpa);
        if (error < 0) {
            return error;
        }
        store_le32(info + 12, 1); /* nr_modules */
        store_le64(info + 16, gpa);
    }
    const char *command_line = request->command_line ? request->command_line : "";
    int error = layout_scratch(layout, command_line, strlen(command_line) + 1, 8, &gpa);
    if (error < 0) {
        return error;
    }
    store_le64(info + 24, gpa);
    store_le64(info + 32, layout->board->rsdp);
    error = put_memory_map(layout, &gpa);
    if (error < 0) {
        return error;
    }
    store_le64(info + 40, gpa);
    store_le32(info + 48, (uint32_t)layout->board->e820_count);
    error = layout_scratch(layout, info, sizeof info, 8, &gpa);
    if (error < 0) {
        return error;
    }
    error = entry_protected(layout, (uint32_t)entry, state);
    if (error < 0) {
        return error;
    }
    state->gpr[RBX] = gpa;
    return 0;
}

/* vmlinux carries no setup header. */
static int vmlinux_start(struct layout *layout, const struct boot_request *request,
                         const struct elf_image *image, struct cpu_state *state)
{
    struct linux_boot boot = {
        .is_64bit = true,
        .command_line_max = LINUX_COMMAND_LINE_MAX,
        .initrd_limit = GIB(4),
    };
    int error = elf_entry(&request->kernel, image, &boot.entry);
    if (error < 0) {
        return error;
    }
    if (boot.entry >= GIB(4)) {
        return fail(-EINVAL, "ELF file '%s': its entry 0x%" PRIx64 " is above 4 GiB",
                    request->kernel.name, boot.entry);
    }
    store_le16(boot.params + LINUX_BOOT_FLAG, LINUX_BOOT_FLAG_VALUE);
    store_le32(boot.params + LINUX_MAGIC, LINUX_MAGIC_VALUE);
    store_le16(boot.params + LINUX_VERSION, LINUX_VERSION_MINIMUM);
    boot.params[LINUX_LOADFLAGS] = LINUX_LOADED_HIGH;
    store_le32(boot.params + LINUX_KERNEL_ALIGNMENT, LINUX_ALIGNMENT_DEFAULT);
    return linux_finish(layout, request, &boot, state);
}

int elf_load(struct layout *layout, const struct boot_request *request, struct cpu_state *state)
{
    const struct boot_file *file = &request->kernel;
    struct elf_image image;
    int error = elf_parse(file, &image);
    if (error < 0) {
        return error;
    }
    uint64_t pvh_entry = 0;
    int pvh = elf_find_note(file, &image, "Xen", XEN_ELFNOTE_PHYS32_ENTRY, &pvh_entry);
    if (pvh < 0) {
        return pvh;
    }
    if (!pvh && multiboot_recognize(file)) {
        return multiboot_load(layout, request, state);
    }
    if (!pvh && (!image.is_64bit || image.type != ET_EXEC || image.machine != EM_X86_64)) {
        return fail(-ENOEXEC,
                    "ELF file '%s' has neither a PVH note nor a Multiboot header and is not a "
                    "64-bit Linux vmlinux: no way is known to start it",
                    file->name);
    }
    error = boot_refuse_modules(request);
    if (error < 0) {
        return error;
    }
    gpa_t end;
    error = elf_load_segments(layout, file, &image, &end);
    if (error < 0) {
        return error;
    }
    if (!pvh) {
        return vmlinux_start(layout, request, &image, state);
    }
    if (pvh_entry > UINT32_MAX || !elf_contains(&image, pvh_entry)) {
        return fail(-EINVAL,
                    "ELF file '%s': its PVH entry 0x%" PRIx64 " lies in none of its segments",
                    file->name, pvh_entry);
    }
    return pvh_start(layout, request, pvh_entry, state);
}
