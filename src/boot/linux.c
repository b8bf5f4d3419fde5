/*
 * The common end of loading a Linux kernel, compressed or not. The kernel gets the facts of the
 * board in the zero page and the address of that page in RSI.
 */
#include "boot/linux.h"

#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "boot/entry.h"

static int place_initrd(struct layout *layout, const struct boot_file *initrd,
                        struct linux_boot *boot)
{
    if (initrd->size == 0) {
        return 0;
    }
    gpa_t base;
    int error = layout_find_high(layout, initrd->size, MIB(1), boot->initrd_limit, &base);
    if (error < 0 && boot->initrd_above_4g) {
        error = layout_find_high(layout, initrd->size, MIB(1), PHYSICAL_LIMIT, &base);
    }
    if (error < 0) {
        return fail(error,
                    "no room for initrd '%s' (%zu bytes) beside the kernel below address "
                    "0x%" PRIx64 ": give the guest more memory",
                    initrd->name, initrd->size, boot->initrd_limit);
    }
    error = layout_take(layout, base, initrd->size, "the initrd");
    if (error < 0) {
        return error;
    }
    store_le32(boot->params + LINUX_RAMDISK_IMAGE, (uint32_t)base);
    store_le32(boot->params + LINUX_RAMDISK_SIZE, (uint32_t)initrd->size);
    store_le32(boot->params + LINUX_EXT_RAMDISK_IMAGE, (uint32_t)(base >> 32));
    store_le32(boot->params + LINUX_EXT_RAMDISK_SIZE, (uint32_t)(initrd->size >> 32));
    return layout_write(layout, base, initrd->data, initrd->size);
}

static int place_command_line(struct layout *layout, const char *command_line,
                              struct linux_boot *boot)
{
    command_line = command_line ? command_line : "";
    size_t length = strlen(command_line);
    if (length > boot->command_line_max) {
        return fail(-E2BIG,
                    "the command line has %zu characters, this kernel takes at most %" PRIu64,
                    length, boot->command_line_max);
    }
    gpa_t gpa;
    int error = layout_scratch(layout, command_line, length + 1, 16, &gpa);
    if (error < 0) {
        return error;
    }
    store_le32(boot->params + LINUX_CMD_LINE_PTR, (uint32_t)gpa);
    return 0;
}

static void fill_memory_map(uint8_t *params, const struct boot_board *board)
{
    size_t count = board->e820_count < E820_MAX ? board->e820_count : E820_MAX;
    params[LINUX_E820_ENTRIES] = (uint8_t)count;
    for (size_t i = 0; i < count; i++) {
        uint8_t *entry = params + LINUX_E820_TABLE + 20 * i;
        store_le64(entry, board->e820[i].base);
        store_le64(entry + 8, board->e820[i].size);
        store_le32(entry + 16, board->e820[i].type);
    }
}

int linux_finish(struct layout *layout, const struct boot_request *request, struct linux_boot *boot,
                 struct cpu_state *state)
{
    int error = place_initrd(layout, &request->initrd, boot);
    if (error < 0) {
        return error;
    }
    error = place_command_line(layout, request->command_line, boot);
    if (error < 0) {
        return error;
    }
    fill_memory_map(boot->params, layout->board);
    store_le64(boot->params + LINUX_ACPI_RSDP, layout->board->rsdp);
    boot->params[LINUX_TYPE_OF_LOADER] = LINUX_LOADER_UNDEFINED;

    gpa_t params;
    error = layout_scratch(layout, boot->params, sizeof boot->params, PAGE_SIZE, &params);
    if (error < 0) {
        return error;
    }
    error = boot->is_64bit ? entry_long(layout, boot->entry, state)
                           : entry_protected(layout, (uint32_t)boot->entry, state);
    if (error < 0) {
        return error;
    }
    state->gpr[RSI] = params;
    return 0;
}
