/*
 * Multiboot 1 (specification 0.6.96), with what `qemu -kernel` offers: memory sizes, boot device,
 * command line (the kernel's name, a space, the arguments), modules behind the kernel, memory map,
 * loader name. A kernel that asks for a video mode is started without one and sees so in the
 * flags.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "boot/boot_internal.h"
#include "boot/elf.h"
#include "boot/entry.h"

enum {
    HEADER_SEARCH = 8192, /* the header lies in the first 8192 bytes, 4-byte aligned */
    HEADER_SIZE = 12,
    HEADER_SIZE_WITH_ADDRESSES = 32,
    HEADER_MAGIC = 0x1badb002,
    HEADER_KNOWN = 7, /* page-aligned modules, memory information, video mode */
    HEADER_REQUIRED = 0xffff,
    HEADER_HAS_ADDRESSES = 1u << 16,

    LOADER_MAGIC = 0x2badb002,
    INFO_SIZE = 120,
    INFO_MEMORY = 1u << 0,
    INFO_BOOT_DEVICE = 1u << 1,
    INFO_COMMAND_LINE = 1u << 2,
    INFO_MODULES = 1u << 3,
    INFO_MEMORY_MAP = 1u << 6,
    INFO_LOADER_NAME = 1u << 9,
    MODULE_SIZE = 16,
    MEMORY_MAP_ENTRY_SIZE = 24,
    MODULES_MAX = 64,
};
#define BOOT_DEVICE_FIRST_DISK 0x8000ffffu /* BIOS drive 80H, no partition */

CLEANUP_DEFINE(char, free)

/* Find the header: its offset, or -1. */
static int64_t find_header(const struct boot_file *file)
{
    uint64_t end = file->size < HEADER_SEARCH ? file->size : HEADER_SEARCH;
    for (uint64_t offset = 0; range_fits(offset, HEADER_SIZE, end); offset += 4) {
        const uint8_t *header = file->data + offset;
        uint32_t sum = load_le32(header) + load_le32(header + 4) + load_le32(header + 8);
        if (load_le32(header) == HEADER_MAGIC && sum == 0) {
            return (int64_t)offset;
        }
    }
    return -1;
}

bool multiboot_recognize(const struct boot_file *file)
{
    return find_header(file) >= 0;
}

/* Load by the addresses in the header (the "a.out kludge"). */
static int load_by_addresses(struct layout *layout, const struct boot_file *file,
                             uint64_t header_offset, gpa_t *ret_entry, gpa_t *ret_end)
{
    if (!range_fits(header_offset, HEADER_SIZE_WITH_ADDRESSES, file->size)) {
        return fail(-EINVAL, "kernel '%s' is truncated within its Multiboot header", file->name);
    }
    const uint8_t *header = file->data + header_offset;
    uint64_t header_address = load_le32(header + 12);
    uint64_t load_address = load_le32(header + 16);
    uint64_t load_end = load_le32(header + 20);
    uint64_t bss_end = load_le32(header + 24);
    *ret_entry = load_le32(header + 28);
    if (header_address < load_address || header_address - load_address > header_offset) {
        return fail(-EINVAL,
                    "kernel '%s': header_addr 0x%" PRIx64 " and load_addr 0x%" PRIx64
                    " of its Multiboot header do not fit the file",
                    file->name, header_address, load_address);
    }
    uint64_t offset = header_offset - (header_address - load_address);
    uint64_t load_size = load_end ? load_end - load_address : file->size - offset;
    if ((load_end && load_end < load_address) || !range_fits(offset, load_size, file->size)) {
        return fail(-EINVAL,
                    "kernel '%s': load_end_addr 0x%" PRIx64
                    " of its Multiboot header lies outside of the file (truncated?)",
                    file->name, load_end);
    }
    uint64_t end = bss_end ? bss_end : load_address + load_size;
    if (end < load_address + load_size || end == load_address) {
        return fail(-EINVAL,
                    "kernel '%s': bss_end_addr 0x%" PRIx64
                    " of its Multiboot header lies below the end of what is loaded",
                    file->name, bss_end);
    }
    if (*ret_entry < load_address || *ret_entry >= end) {
        return fail(-EINVAL, "kernel '%s': its Multiboot entry 0x%" PRIx64 " is not in the kernel",
                    file->name, *ret_entry);
    }
    int error = layout_take(layout, load_address, end - load_address, "the Multiboot kernel");
    if (error < 0) {
        return error;
    }
    error = layout_write(layout, load_address, file->data + offset, load_size);
    if (error < 0) {
        return error;
    }
    *ret_end = end;
    return layout_zero(layout, load_address + load_size, end - load_address - load_size);
}

static int load_elf(struct layout *layout, const struct boot_file *file, gpa_t *ret_entry,
                    gpa_t *ret_end)
{
    struct elf_image image;
    if (!elf_recognize(file)) {
        return fail(-EINVAL,
                    "kernel '%s' has a Multiboot header without load addresses, and is not ELF",
                    file->name);
    }
    int error = elf_parse(file, &image);
    if (error < 0) {
        return error;
    }
    if (image.is_64bit) {
        return fail(-EINVAL,
                    "kernel '%s' is a 64-bit ELF file: Multiboot 1 starts 32-bit ELF files, or "
                    "files with load addresses in their Multiboot header",
                    file->name);
    }
    error = elf_load_segments(layout, file, &image, ret_end);
    if (error < 0) {
        return error;
    }
    return elf_entry(file, &image, ret_entry);
}

/* Put a string into the scratch range. */
static int put_string(struct layout *layout, const char *string, uint8_t *ret_pointer)
{
    gpa_t gpa;
    int error = layout_scratch(layout, string, strlen(string) + 1, 1, &gpa);
    if (error < 0) {
        return error;
    }
    store_le32(ret_pointer, (uint32_t)gpa);
    return 0;
}

/* The modules in the order given; an initrd is the first one, its name is its string. */
struct module_list {
    struct {
        const struct boot_file *file;
        const char *command;
    } modules[MODULES_MAX];
    size_t count;
    uint64_t size; /* each rounded up to pages */
};

static int list_modules(const struct boot_request *request, struct module_list *ret_list)
{
    ret_list->count = 0;
    ret_list->size = 0;
    if (request->initrd.size > 0) {
        ret_list->modules[0].file = &request->initrd;
        ret_list->modules[0].command = request->initrd.name;
        ret_list->count = 1;
    }
    if (request->module_count > MODULES_MAX - ret_list->count) {
        return fail(-EINVAL, "%zu Multiboot modules are too many: %d are possible",
                    request->module_count, MODULES_MAX);
    }
    for (size_t i = 0; i < request->module_count; i++) {
        ret_list->modules[ret_list->count].file = &request->modules[i];
        ret_list->modules[ret_list->count].command = request->module_commands[i];
        ret_list->count++;
    }
    for (size_t i = 0; i < ret_list->count; i++) {
        uint64_t size = ret_list->modules[i].file->size;
        if (size >= GIB(4)) {
            return fail(-EFBIG, "module '%s' is too large", ret_list->modules[i].file->name);
        }
        ret_list->size += align_up(size, PAGE_SIZE);
    }
    return 0;
}

/* Load the modules at the first free place behind the kernel, and describe them in `info`. */
static int put_modules(struct layout *layout, const struct boot_request *request, gpa_t kernel_end,
                       uint8_t *info)
{
    struct module_list list;
    int error = list_modules(request, &list);
    if (error < 0) {
        return error;
    }
    gpa_t base = kernel_end;
    if (list.size > 0 &&
        layout_find_low(layout, list.size, PAGE_SIZE, kernel_end, GIB(4), &base) < 0) {
        return fail(-ENOMEM,
                    "no room for the modules (%" PRIu64 " bytes) behind the kernel at 0x%" PRIx64
                    ": give the guest more memory",
                    list.size, kernel_end);
    }
    error = layout_take(layout, base, list.size, "the modules");
    if (error < 0) {
        return error;
    }
    uint8_t table[MODULES_MAX * MODULE_SIZE] = {0};
    for (size_t i = 0; i < list.count; i++) {
        const struct boot_file *file = list.modules[i].file;
        uint8_t *entry = table + i * MODULE_SIZE;
        error = layout_write(layout, base, file->data, file->size);
        if (error < 0) {
            return error;
        }
        store_le32(entry, (uint32_t)base);
        store_le32(entry + 4, (uint32_t)(base + file->size));
        error = put_string(layout, list.modules[i].command, entry + 8);
        if (error < 0) {
            return error;
        }
        base += align_up(file->size, PAGE_SIZE);
    }
    gpa_t gpa;
    error = layout_scratch(layout, table, list.count * MODULE_SIZE, 4, &gpa);
    if (error < 0) {
        return error;
    }
    store_le32(info + 20, (uint32_t)list.count);
    store_le32(info + 24, (uint32_t)gpa);
    return 0;
}

/* mem_lower, mem_upper (KiB, below 640 KiB and above 1 MiB) and the memory map. */
static int put_memory_map(struct layout *layout, uint8_t *info)
{
    uint8_t map[E820_MAX * MEMORY_MAP_ENTRY_SIZE] = {0};
    const struct boot_board *board = layout->board;
    size_t count = board->e820_count < E820_MAX ? board->e820_count : E820_MAX;
    for (size_t i = 0; i < count; i++) {
        uint8_t *entry = map + i * MEMORY_MAP_ENTRY_SIZE;
        store_le32(entry, MEMORY_MAP_ENTRY_SIZE - 4); /* the size does not count itself */
        store_le64(entry + 4, board->e820[i].base);
        store_le64(entry + 12, board->e820[i].size);
        store_le32(entry + 20, board->e820[i].type);
    }
    gpa_t gpa;
    int error = layout_scratch(layout, map, count * MEMORY_MAP_ENTRY_SIZE, 4, &gpa);
    if (error < 0) {
        return error;
    }
    store_le32(info + 44, (uint32_t)(count * MEMORY_MAP_ENTRY_SIZE));
    store_le32(info + 48, (uint32_t)gpa);

    gpa_t lower = layout_ram_end(layout, 0);
    gpa_t upper = layout_ram_end(layout, MIB(1)) - MIB(1);
    upper = upper < GIB(4) ? upper : GIB(4) - MIB(1);
    store_le32(info + 4, (uint32_t)((lower < KIB(640) ? lower : KIB(640)) >> 10));
    store_le32(info + 8, (uint32_t)(upper >> 10));
    return 0;
}

static int put_command_line(struct layout *layout, const struct boot_request *request,
                            uint8_t *info)
{
    CLEANUP(free) char *command_line = NULL;
    if (asprintf(&command_line, "%s %s", request->kernel.name,
                 request->command_line ? request->command_line : "") < 0) {
        command_line = NULL;
        return fail(-ENOMEM, "no memory for the command line");
    }
    return put_string(layout, command_line, info + 16);
}

static int load_kernel(struct layout *layout, const struct boot_file *file, gpa_t *ret_entry,
                       gpa_t *ret_end)
{
    int64_t offset = find_header(file);
    if (offset < 0) {
        return fail(-EINVAL, "kernel '%s' has no Multiboot header", file->name);
    }
    uint32_t flags = load_le32(file->data + offset + 4);
    if (flags & HEADER_REQUIRED & ~HEADER_KNOWN) {
        return fail(-EINVAL,
                    "kernel '%s' requires Multiboot features that are unknown here (flags 0x%x)",
                    file->name, flags & HEADER_REQUIRED);
    }
    if (flags & HEADER_HAS_ADDRESSES) {
        return load_by_addresses(layout, file, (uint64_t)offset, ret_entry, ret_end);
    }
    return load_elf(layout, file, ret_entry, ret_end);
}

int multiboot_load(struct layout *layout, const struct boot_request *request,
                   struct cpu_state *state)
{
    uint8_t info[INFO_SIZE] = {0};
    gpa_t entry;
    gpa_t end;
    int error = load_kernel(layout, &request->kernel, &entry, &end);
    if (error < 0) {
        return error;
    }
    error = put_modules(layout, request, end, info);
    if (error < 0) {
        return error;
    }
    error = put_memory_map(layout, info);
    if (error < 0) {
        return error;
    }
    error = put_command_line(layout, request, info);
    if (error < 0) {
        return error;
    }
    error = put_string(layout, "doppel", info + 64);
    if (error < 0) {
        return error;
    }
    store_le32(info, INFO_MEMORY | INFO_BOOT_DEVICE | INFO_COMMAND_LINE | INFO_MODULES |
                         INFO_MEMORY_MAP | INFO_LOADER_NAME);
    store_le32(info + 12, BOOT_DEVICE_FIRST_DISK);
    gpa_t info_address;
    error = layout_scratch(layout, info, sizeof info, 4, &info_address);
    if (error < 0) {
        return error;
    }
    error = entry_protected(layout, (uint32_t)entry, state);
    if (error < 0) {
        return error;
    }
    state->gpr[RAX] = LOADER_MAGIC;
    state->gpr[RBX] = info_address;
    return 0;
}
