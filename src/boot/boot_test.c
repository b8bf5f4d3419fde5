/* What is around the formats: recognition of foreign files, reading files, the E820 table. */
#include "boot/test_board.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "boot/e820.h"
#include "boot/layout.h"

static void names_foreign_files(void **unused)
{
    static const struct {
        size_t offset;
        const char *bytes;
        const char *sentence;
    } cases[] = {
        {0, "\x1f\x8b\x08", "gzip"},
        {0, "\x28\xb5\x2f\xfd", "zstd"},
        {0, "MZ", "EFI"},
        {0x38, "ARM\x64", "64-bit ARM"},
        {0, "#!/bin/sh\n", "script"},
        {0, "QFI\xfb", "qcow2"},
        {510, "\x55\xaa", "boot sector"},
        {0x8001, "CD001", "ISO 9660"},
        {0, "\x01\x02\x03", "no format that is known"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        uint8_t *file = calloc(1, 0x9000);
        assert_non_null(file);
        memcpy(file + cases[i].offset, cases[i].bytes, strlen(cases[i].bytes));
        assert_int_equal(test_load_bytes(file, 0x9000), -ENOEXEC);
        assert_non_null(strstr(trail_text(), cases[i].sentence));
        assert_non_null(strstr(trail_text(), "bzImage"));
        free(file);
    }
    assert_int_equal(test_load_bytes("just words\n", 11), -ENOEXEC);
    assert_non_null(strstr(trail_text(), "seems to be text"));
    assert_int_equal(test_load_bytes("", 0), -ENOEXEC);
    assert_non_null(strstr(trail_text(), "is empty"));
}

static void reads_files(void **unused)
{
    char folder[] = "/tmp/boot-test-XXXXXX";
    char path[64];
    struct boot_file file;
    assert_non_null(mkdtemp(folder));
    assert_int_equal(boot_file_read(folder, 100, &file), -EINVAL);
    assert_non_null(strstr(trail_text(), "a directory"));
    assert_int_equal(boot_file_read("/dev/null", 100, &file), -EINVAL);
    snprintf(path, sizeof path, "%s/file", folder);
    assert_int_equal(boot_file_read(path, 100, &file), -ENOENT);

    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    assert_int_equal(write(fd, "0123456789", 10), 10);
    close(fd);
    assert_int_equal(boot_file_read(path, 9, &file), -EFBIG);
    assert_int_equal(boot_file_read(path, 10, &file), 0);
    assert_int_equal(file.size, 10);
    assert_memory_equal(file.data, "0123456789", 10);
    assert_string_equal(file.name, path);
    boot_file_free(&file);
    boot_file_free(&file);
    boot_file_free(NULL);
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(boot_file_read(path, UINT64_MAX, &file), 0);
    assert_int_equal(file.size, 0);
    boot_file_free(&file);
    unlink(path);
    rmdir(folder);
}

static void reads_pipes(void **unused)
{
    static uint8_t bytes[60000];
    int ends[2];
    char path[64];
    struct boot_file file;
    memset(bytes, 0x5a, sizeof bytes);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pipe(ends), 0);
        assert_int_equal(write(ends[1], bytes, sizeof bytes), sizeof bytes);
        snprintf(path, sizeof path, "/dev/fd/%d", ends[0]);
        close(ends[1]);
        if (i == 0) {
            assert_int_equal(boot_file_read(path, sizeof bytes, &file), 0);
            assert_int_equal(file.size, sizeof bytes);
            boot_file_free(&file);
        } else {
            assert_int_equal(boot_file_read(path, sizeof bytes - 1, &file), -EFBIG);
        }
        close(ends[0]);
    }
}

static void builds_e820_tables(void **unused)
{
    static const struct memory_range ram[] = {{0, 0x10000000}, {0x100000000, 0x10000000}};
    static const struct e820_entry reserved[] = {
        {0xa0000, 0x60000, E820_RESERVED},
        {0xe0000, 0x1000, E820_ACPI}, /* inside the one before */
        {0xfffc000, 0x4000, E820_NVS},
        {0xe0000000, 0x100000, E820_RESERVED},
        {0xe0100000, 0x100000, E820_RESERVED}, /* joined with its neighbour */
    };
    static const struct e820_entry expected[] = {
        {0, 0xa0000, E820_RAM},
        {0xa0000, 0x40000, E820_RESERVED},
        {0xe0000, 0x1000, E820_ACPI},
        {0xe1000, 0x1f000, E820_RESERVED},
        {0x100000, 0xfefc000, E820_RAM},
        {0xfffc000, 0x4000, E820_NVS},
        {0xe0000000, 0x200000, E820_RESERVED},
        {0x100000000, 0x10000000, E820_RAM},
    };
    struct e820_entry entries[E820_MAX];
    size_t count;
    assert_int_equal(e820_build(ram, 2, reserved, 5, entries, &count), 0);
    assert_int_equal(count, ARRAY_SIZE(expected));
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(entries[i].base, expected[i].base);
        assert_int_equal(entries[i].size, expected[i].size);
        assert_int_equal(entries[i].type, expected[i].type);
    }
    assert_int_equal(e820_build(NULL, 0, NULL, 0, entries, &count), 0);
    assert_int_equal(count, 0);

    struct e820_entry holes[E820_MAX];
    for (size_t i = 0; i < E820_MAX; i++) {
        holes[i] = (struct e820_entry){0x10000 * (2 * i + 1), 0x1000, E820_RESERVED};
    }
    assert_int_equal(e820_build(ram, 1, holes, E820_MAX, entries, &count), -E2BIG);
    assert_int_equal(e820_build(ram, 1, holes, E820_MAX + 1, entries, &count), -E2BIG);
}

static void finds_places(void **unused)
{
    struct test_board test;
    struct layout layout;
    gpa_t base;
    test_board_init(&test);
    layout_init(&layout, test.memory, &test.board);
    assert_int_equal(layout_ram_end(&layout, 0x5000), TEST_RAM_LOW_END);
    assert_int_equal(layout_ram_end(&layout, TEST_RSDP), TEST_RSDP);
    assert_int_equal(layout_scratch(&layout, NULL, 100, 16, &base), 0);
    assert_int_equal(base, TEST_SCRATCH);
    assert_int_equal(layout_take(&layout, TEST_SCRATCH + 0x1000, 0x1000, "low"), 0);
    assert_int_equal(layout_scratch(&layout, NULL, TEST_SCRATCH_SIZE, 16, &base), -ENOSPC);
    assert_int_equal(layout_scratch(&layout, NULL, TEST_SCRATCH_SIZE - 0x2000, 16, &base), 0);
    assert_int_equal(base, TEST_SCRATCH + 0x2000);
    assert_int_equal(layout_find_low(&layout, 0x1000, 0x1000, 0x10000, GIB(4), &base), 0);
    assert_int_equal(base, TEST_SCRATCH + TEST_SCRATCH_SIZE);
    assert_int_equal(layout_find_low(&layout, 0x80000, 0x1000, 0, GIB(4), &base), 0);
    assert_int_equal(base, TEST_RAM_BASE);
    assert_int_equal(layout_find_low(&layout, 1, 1, UINT64_MAX, GIB(4), &base), -ENOMEM);
    assert_int_equal(layout_take(&layout, TEST_RAM_END - 0x1000, 0x1000, "top"), 0);
    assert_int_equal(layout_find_high(&layout, 0x1000, 0, GIB(4), &base), 0);
    assert_int_equal(base, TEST_RAM_END - 0x2000);
    assert_int_equal(layout_find_high(&layout, 0x10001, 0, TEST_RAM_BASE, &base), 0);
    assert_int_equal(base, TEST_RAM_LOW_END - 0x11000);
    assert_int_equal(layout_find_high(&layout, UINT64_MAX, 0, GIB(4), &base), -ENOMEM);
    assert_int_equal(layout_take(&layout, UINT64_MAX, 2, "nonsense"), -EINVAL);
    test_board_fini(&test);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_foreign_files), cmocka_unit_test(reads_files),
        cmocka_unit_test(reads_pipes),         cmocka_unit_test(builds_e820_tables),
        cmocka_unit_test(finds_places),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
