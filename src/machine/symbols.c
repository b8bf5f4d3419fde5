/* Symbols of symbols.h: one sorted array of addresses and names. */
#include "machine/symbols.h"

#include <elf.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "boot/boot.h"

enum { NAME_MAX_LENGTH = 200, SYMBOL_REACH = 1 << 20 };
#define FILE_LIMIT  GIB(1)
#define COUNT_LIMIT (4u << 20)

struct symbol {
    uint64_t address;
    char *name;
};

struct symbols {
    struct symbol *list;
    size_t count, room;
    uint64_t system_call; /* entry_SYSCALL_64, or 0 */
};

CLEANUP_DEFINE(struct symbols, symbols_free)

static void add(struct symbols *symbols, uint64_t address, const char *name, size_t length)
{
    if (length == 0 || length > NAME_MAX_LENGTH || symbols->count == COUNT_LIMIT) {
        return;
    }
    if (symbols->count == symbols->room) {
        symbols->room = symbols->room ? 2 * symbols->room : 1024;
        symbols->list = realloc(symbols->list, symbols->room * sizeof *symbols->list);
        ASSERT(symbols->list);
    }
    char *copy = strndup(name, length);
    ASSERT(copy);
    symbols->list[symbols->count++] = (struct symbol){address, copy};
    if (!strcmp(copy, "entry_SYSCALL_64")) {
        symbols->system_call = address;
    }
}

/* ---- System.map: "ffffffff81000000 T name", kallsyms with "[module]" behind it ---- */

static bool is_code(char type)
{
    return type == 't' || type == 'T' || type == 'w' || type == 'W';
}

/* One line; false if it has another form. */
static bool take_line(struct symbols *symbols, const char *line, size_t length)
{
    enum { DIGITS = 16 };
    char number[DIGITS + 1], *end;
    if (length < DIGITS + 4 || line[DIGITS] != ' ' || line[DIGITS + 2] != ' ') {
        return length == 0;
    }
    memcpy(number, line, DIGITS);
    number[DIGITS] = '\0';
    uint64_t address = strtoull(number, &end, 16);
    const char *name = line + DIGITS + 3, *stop = line + length;
    const char *name_end = name;
    while (name_end<stop && * name_end> ' ') {
        name_end++;
    }
    if (is_code(line[DIGITS + 1]) && address) {
        add(symbols, address, name, (size_t)(name_end - name));
    }
    return *end == '\0';
}

static int take_text(struct symbols *symbols, const struct boot_file *file)
{
    const char *at = (const char *)file->data, *end = at + file->size;
    while (at < end) {
        const char *line_end = memchr(at, '\n', (size_t)(end - at));
        size_t length = (size_t)((line_end ? line_end : end) - at);
        if (!take_line(symbols, at, length)) {
            return fail(-EINVAL, "neither an ELF file nor lines like 'ffffffff81000000 T name'");
        }
        at += length + 1;
    }
    return 0;
}

/* ---- ELF ---- */

/* A section's bytes, or NULL if they are not inside the file. */
static const uint8_t *section_bytes(const struct boot_file *file, const Elf64_Shdr *section)
{
    return range_fits(section->sh_offset, section->sh_size, file->size)
               ? file->data + section->sh_offset
               : NULL;
}

static int take_table(struct symbols *symbols, const struct boot_file *file,
                      const Elf64_Shdr *table, const Elf64_Shdr *strings)
{
    const uint8_t *entries = section_bytes(file, table);
    const char *names = (const char *)section_bytes(file, strings);
    if (!entries || !names || strings->sh_size == 0 || names[strings->sh_size - 1]) {
        return fail(-EINVAL, "its symbol table is broken");
    }
    for (uint64_t i = 0; i < table->sh_size / sizeof(Elf64_Sym); i++) {
        Elf64_Sym symbol;
        memcpy(&symbol, entries + i * sizeof symbol, sizeof symbol);
        unsigned type = ELF64_ST_TYPE(symbol.st_info);
        if ((type == STT_FUNC || type == STT_NOTYPE) && symbol.st_value &&
            symbol.st_shndx != SHN_ABS && symbol.st_name < strings->sh_size) {
            add(symbols, symbol.st_value, names + symbol.st_name, strlen(names + symbol.st_name));
        }
    }
    return 0;
}

static bool section_read(const struct boot_file *file, const Elf64_Ehdr *header, uint64_t number,
                         Elf64_Shdr *ret_section)
{
    uint64_t offset = header->e_shoff + number * sizeof *ret_section;
    if (number >= header->e_shnum || header->e_shoff > file->size ||
        !range_fits(offset, sizeof *ret_section, file->size)) {
        return false;
    }
    memcpy(ret_section, file->data + offset, sizeof *ret_section);
    return true;
}

static int take_elf(struct symbols *symbols, const struct boot_file *file)
{
    Elf64_Ehdr header;
    Elf64_Shdr table, strings;
    if (file->size < sizeof header) {
        return fail(-EINVAL, "a truncated ELF file");
    }
    memcpy(&header, file->data, sizeof header);
    if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_shentsize != sizeof table) {
        return fail(-EINVAL, "not a 64-bit ELF file");
    }
    for (unsigned i = 0; section_read(file, &header, i, &table); i++) {
        if (table.sh_type == SHT_SYMTAB && section_read(file, &header, table.sh_link, &strings)) {
            return take_table(symbols, file, &table, &strings);
        }
    }
    return fail(-EINVAL, "an ELF file without a symbol table");
}

/* ---- life ---- */

static int compare(const void *a, const void *b)
{
    uint64_t first = ((const struct symbol *)a)->address;
    uint64_t second = ((const struct symbol *)b)->address;
    return first < second ? -1 : first > second;
}

int symbols_load(const char *path, struct symbols **ret_symbols)
{
    struct boot_file file;
    int r = boot_file_read(path, FILE_LIMIT, &file);
    if (r) {
        return r;
    }
    CLEANUP(symbols_free) struct symbols *symbols = calloc(1, sizeof *symbols);
    ASSERT(symbols);
    bool is_elf = file.size >= SELFMAG && !memcmp(file.data, ELFMAG, SELFMAG);
    r = is_elf ? take_elf(symbols, &file) : take_text(symbols, &file);
    boot_file_free(&file);
    if (!r && !symbols->count) {
        r = fail(-EINVAL, "no symbol of code");
    }
    if (r) {
        return fail(r, "symbols '%s'", path);
    }
    qsort(symbols->list, symbols->count, sizeof *symbols->list, compare);
    *ret_symbols = TAKE(symbols);
    return 0;
}

void symbols_free(struct symbols *symbols)
{
    if (symbols) {
        for (size_t i = 0; i < symbols->count; i++) {
            free(symbols->list[i].name);
        }
        free(symbols->list);
        free(symbols);
    }
}

const char *symbols_find(const struct symbols *symbols, uint64_t address, uint64_t system_call,
                         uint64_t *ret_offset)
{
    if (!symbols) {
        return NULL;
    }
    if (system_call && symbols->system_call) {
        address -= system_call - symbols->system_call;
    }
    size_t low = 0, high = symbols->count; /* the first one behind the address */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (symbols->list[middle].address <= address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low == 0 || address - symbols->list[low - 1].address >= SYMBOL_REACH) {
        return NULL;
    }
    *ret_offset = address - symbols->list[low - 1].address;
    return symbols->list[low - 1].name;
}
