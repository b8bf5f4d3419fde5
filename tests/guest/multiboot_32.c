/*
 * What a Multiboot 1 loader owes its kernel: the magic value, the machine state, the memory map,
 * the command line and modules. Built twice: as an ELF file and as a flat binary with the a.out
 * kludge. With two modules their contents are checked: module n holds the bytes (i * 7 + n),
 * 5000 + n of them, and its string ends with "module n".
 */
#include "runtime.h"

extern const uint32_t multiboot_magic, multiboot_information;

struct information {
    uint32_t flags, memory_lower, memory_upper, boot_device, command_line;
    uint32_t module_count, modules;
    uint32_t symbols[4];
    uint32_t map_length, map;
    uint32_t drives[2], configuration, loader_name;
};
struct module {
    uint32_t start, end, string, reserved;
};
struct map_entry {
    uint32_t size;
    uint64_t base, length;
    uint32_t type;
} __attribute__((packed));

extern char end[];

static uint64_t zeroed_bss[16];

static void test_map(const struct information *info)
{
    check("memory map", info->flags >> 6 & 1, 1);
    uint64_t upper = 0;
    bool kernel_is_ram = false;
    for (uintptr_t at = info->map; at < info->map + info->map_length;) {
        const struct map_entry *entry = (const struct map_entry *)at;
        if (entry->type == 1 && entry->base <= 0x100000 &&
            entry->base + entry->length >= (uintptr_t)end) {
            kernel_is_ram = true;
            upper = entry->base + entry->length - 0x100000;
        }
        at += entry->size + 4;
    }
    check("the kernel stands in RAM", kernel_is_ram, 1);
    check("mem_upper agrees with the map", info->memory_upper, upper / 1024);
    check("mem_lower", info->memory_lower >= 512 && info->memory_lower <= 640, 1);
}

static bool ends_with(const char *text, char last)
{
    const char *tail = "module ";
    unsigned length = 0;
    while (text[length]) {
        length++;
    }
    if (length < 8 || text[length - 1] != last) {
        return false;
    }
    for (unsigned i = 0; i < 7; i++) {
        if (text[length - 8 + i] != tail[i]) {
            return false;
        }
    }
    return true;
}

static void test_modules(const struct information *info)
{
    if (!(info->flags & 8) || !info->module_count) {
        skip("modules", "none were given");
        return;
    }
    check("two modules", info->module_count, 2);
    const struct module *modules = (const struct module *)info->modules;
    for (unsigned n = 0; n < info->module_count; n++) {
        check("module size", modules[n].end - modules[n].start, 5000 + n);
        check("module is page-aligned", modules[n].start & 4095, 0);
        check("module is behind the kernel", modules[n].start >= (uintptr_t)end, 1);
        const uint8_t *bytes = (const uint8_t *)modules[n].start;
        unsigned wrong = 0;
        for (unsigned i = 0; i < 5000 + n; i++) {
            wrong += bytes[i] != (uint8_t)(i * 7 + n);
        }
        check("module bytes", wrong, 0);
        check("module string", ends_with((const char *)modules[n].string, (char)('0' + n)), 1);
    }
}

void test_main(void)
{
    const struct information *info = (const struct information *)multiboot_information;
    check("magic", multiboot_magic, 0x2badb002);
    check("memory sizes", info->flags & 1, 1);
    check("command line", info->flags >> 2 & 1, 1);
    print("command line: ");
    print((const char *)info->command_line);
    print("\n");
    test_map(info);
    test_modules(info);
    check("BSS is zero", zeroed_bss[0] | zeroed_bss[15], 0);
    check("paging is off", read_cr0() & 0x80000001, 1);
}
