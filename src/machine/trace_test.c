/* What --trace, --symbols and --perf-map make of their options and files. */
#include "machine/trace.h"

#include <elf.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "machine/config.h"
#include "machine/symbols.h"

static char path[] = "/tmp/doppel-trace-test-XXXXXX";

static int setup(void **state)
{
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int teardown(void **state)
{
    return unlink(path);
}

static void test_list(void **state)
{
    uint32_t kinds = 0;
    assert_int_equal(trace_list_parse("units", &kinds), 0);
    assert_int_equal(kinds, 1u << TRACE_UNITS);
    assert_int_equal(trace_list_parse("flush,stats,exits", &kinds), 0);
    assert_int_equal(kinds, 1u << TRACE_FLUSH | 1u << TRACE_STATS | 1u << TRACE_EXITS);
    static const char *const wrong[] = {"", "unit", "unitss", "units,", ",units", "units, flush"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(trace_list_parse(wrong[i], &kinds), -EINVAL);
        assert_non_null(strstr(trail_text(), "known: units, code, chains"));
        trail_clear();
    }
}

/* The names in help are those that are known. */
static void test_help_names_all(void **state)
{
    for (const struct vm_option *option = vm_options(); option->name; option++) {
        char list[128] = "";
        uint32_t kinds = 0;
        if (strcmp(option->name, "trace")) {
            continue;
        }
        for (const char *at = option->help; *at; at++) {
            strncat(list, *at == ' ' ? "" : at, 1);
        }
        assert_int_equal(trace_list_parse(list, &kinds), 0);
        assert_int_equal(kinds, (2u << TRACE_STATS) - 1);
        return;
    }
    assert_true(false);
}

static void put(const void *bytes, size_t size)
{
    FILE *file = fopen(path, "w");
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

static void expect(const struct symbols *symbols, uint64_t address, uint64_t system_call,
                   const char *name, uint64_t offset)
{
    uint64_t found_offset = 0;
    const char *found = symbols_find(symbols, address, system_call, &found_offset);
    if (!name) {
        assert_null(found);
        return;
    }
    assert_non_null(found);
    assert_string_equal(found, name);
    assert_int_equal(found_offset, offset);
}

static void test_system_map(void **state)
{
    static const char text[] = "0000000000000000 A fixed_percpu_data\n"
                               "ffffffff81000100 T second\n"
                               "ffffffff81000000 T _text\n"
                               "ffffffff81a00000 T entry_SYSCALL_64\n"
                               "ffffffff81000200 D data\n"
                               "\n"
                               "ffffffffc0000000 t of_module\t[module]";
    struct symbols *symbols = NULL;
    put(text, sizeof text - 1);
    assert_int_equal(symbols_load(path, &symbols), 0);
    expect(symbols, 0xffffffff81000000, 0, "_text", 0);
    expect(symbols, 0xffffffff810000ff, 0, "_text", 0xff);
    expect(symbols, 0xffffffff81000208, 0, "second", 0x108);
    expect(symbols, 0xffffffff80ffffff, 0, NULL, 0);
    expect(symbols, 0xffffffff81100100, 0, NULL, 0); /* too far behind anything */
    expect(symbols, 0xffffffffc0000010, 0, "of_module", 0x10);
    /* the kernel stands 2000000H higher than it was linked */
    expect(symbols, 0xffffffff83000104, 0xffffffff83a00000, "second", 4);
    symbols_free(symbols);
    expect(NULL, 1, 0, NULL, 0);
}

/* A header, a symbol table of two, its strings. */
struct elf_file {
    Elf64_Ehdr header;
    Elf64_Shdr sections[2];
    Elf64_Sym symbols[2];
    char strings[16];
};

static struct elf_file elf_file(void)
{
    struct elf_file file = {
        .header = {.e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB},
                   .e_shoff = offsetof(struct elf_file, sections),
                   .e_shentsize = sizeof(Elf64_Shdr),
                   .e_shnum = 2},
        .sections = {{.sh_type = SHT_SYMTAB,
                      .sh_link = 1,
                      .sh_offset = offsetof(struct elf_file, symbols),
                      .sh_size = sizeof file.symbols},
                     {.sh_type = SHT_STRTAB,
                      .sh_offset = offsetof(struct elf_file, strings),
                      .sh_size = sizeof file.strings}},
        .symbols = {{.st_name = 1,
                     .st_info = ELF64_ST_INFO(STB_GLOBAL, STT_FUNC),
                     .st_shndx = 1,
                     .st_value = 0x1000},
                    {.st_name = 7,
                     .st_info = ELF64_ST_INFO(STB_GLOBAL, STT_FUNC),
                     .st_shndx = 1,
                     .st_value = 0x2000}},
        .strings = "\0first\0second",
    };
    return file;
}

static void test_elf(void **state)
{
    struct symbols *symbols = NULL;
    struct elf_file good = elf_file();
    put(&good, sizeof good);
    assert_int_equal(symbols_load(path, &symbols), 0);
    expect(symbols, 0x1fff, 0, "first", 0xfff);
    expect(symbols, 0x2000, 0, "second", 0);
    symbols_free(symbols);
    /* each prefix, and each field as large as it can be: refused or read, never followed outside */
    for (size_t size = 0; size < sizeof good; size++) {
        put(&good, size);
        if (!symbols_load(path, &symbols)) {
            symbols_free(symbols);
        }
        trail_clear();
    }
    for (size_t at = 0; at < sizeof good; at += 4) {
        struct elf_file bad = good;
        memset((uint8_t *)&bad + at, 0xff, 4);
        put(&bad, sizeof bad);
        if (!symbols_load(path, &symbols)) {
            symbols_free(symbols);
        }
        trail_clear();
    }
    good.header.e_shnum = 0;
    put(&good, sizeof good);
    assert_int_equal(symbols_load(path, &symbols), -EINVAL);
    assert_non_null(strstr(trail_text(), "without a symbol table"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_list),
        cmocka_unit_test(test_help_names_all),
        cmocka_unit_test(test_system_map),
        cmocka_unit_test(test_elf),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
