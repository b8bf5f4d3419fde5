/* The parts of a disk: partition table, EFI system partition, and the seed volume. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/error.h"
#include "image/fat.h"
#include "image/gpt.h"
#include "image/iso.h"

#define DISK MIB(256)

static void make_table(uint8_t head[GPT_HEAD], uint8_t tail[GPT_TAIL])
{
    static struct gpt gpt = {.count = 2};
    gpt.partitions[0] = (struct gpt_partition){
        .type = gpt_type_root, .offset = MIB(64), .size = MIB(100), .number = 1};
    gpt.partitions[1] = (struct gpt_partition){
        .type = gpt_type_efi, .offset = MIB(1), .size = FAT_SIZE, .number = 15};
    gpt.partitions[0].id.bytes[0] = 0x12;
    gpt_write(&gpt, DISK, head, tail);
}

static void what_is_written_can_be_read(void **state)
{
    uint8_t head[GPT_HEAD], tail[GPT_TAIL];
    struct gpt gpt;
    char text[GPT_GUID_TEXT];
    make_table(head, tail);
    assert_int_equal(gpt_read(head, DISK, &gpt), 0);
    assert_int_equal(gpt.count, 2);
    assert_int_equal(gpt.partitions[0].offset, MIB(64));
    assert_int_equal(gpt.partitions[0].size, MIB(100));
    assert_int_equal(gpt.partitions[1].number, 15);
    gpt_guid_print(&gpt.partitions[1].type, text);
    assert_string_equal(text, "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
    gpt_guid_print(&gpt.partitions[0].id, text);
    assert_string_equal(text, "12000000-0000-0000-0000-000000000000");
    /* UEFI 2.10, table 5.7: the first bytes of the type on the disk */
    assert_memory_equal(head + 2 * 512 + 14 * 128, "\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b", 10);
    assert_memory_equal(tail + GPT_TAIL - 512, "EFI PART", 8);
    assert_int_equal(load_le64(tail + GPT_TAIL - 512 + 24), DISK / 512 - 1);
}

static void damaged_tables_are_refused(void **state)
{
    uint8_t head[GPT_HEAD], tail[GPT_TAIL];
    struct gpt gpt;
    static const size_t places[] = {512 + 9, 512 + 16, 512 + 24, 512 + 80, 1024 + 40, GPT_HEAD - 1};
    for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
        make_table(head, tail);
        head[places[i]] ^= 1;
        assert_int_equal(gpt_read(head, DISK, &gpt), -EINVAL);
        trail_clear();
    }
    make_table(head, tail);
    assert_int_equal(gpt_read(head, MIB(100), &gpt), 0); /* a shorter disk has fewer of them */
    assert_int_equal(gpt.count, 1);
    memset(head, 0, sizeof head);
    assert_false(gpt_recognize(head, sizeof head));
    assert_int_equal(gpt_read(head, DISK, &gpt), -EINVAL);
    trail_clear();
}

static void the_efi_volume_holds_the_loader(void **state)
{
    static uint8_t loader[5000];
    size_t size;
    memset(loader, 0x5a, sizeof loader);
    uint8_t *volume = fat_write(loader, sizeof loader, 0x12345678, &size);
    assert_true(size < FAT_SIZE);
    assert_int_equal(load_le16(volume + 510), 0xaa55);
    const uint8_t *table = volume + 512, *root = volume + 512 + 2 * 65536;
    assert_memory_equal(root, "EFI        \x10", 12);
    /* root, EFI, BOOT, then a chain of three clusters */
    const uint8_t *boot = root + 512 * 32 + 2048, *entry = boot + 64;
    assert_memory_equal(entry, "BOOTX64 EFI", 11);
    assert_int_equal(load_le32(entry + 28), sizeof loader);
    unsigned cluster = load_le16(entry + 26), count = 0;
    while (cluster != 0xffff) {
        const uint8_t *bytes = root + 512 * 32 + (size_t)(cluster - 2) * 2048;
        size_t left = sizeof loader - count * 2048;
        assert_memory_equal(bytes, loader, left < 2048 ? left : 2048);
        cluster = load_le16(table + 2 * cluster);
        count++;
    }
    assert_int_equal(count, 3);
    assert_memory_equal(table, table + 65536, 65536);
    free(volume);
}

/* The record of a file by its Rock Ridge name. */
static const uint8_t *find_file(const uint8_t *volume, const char *name)
{
    const uint8_t *root = volume + (size_t)load_le32(volume + 16 * 2048 + 156 + 2) * 2048;
    for (const uint8_t *record = root; record[0]; record += record[0]) {
        size_t at = 33 + record[32] + (record[32] % 2 == 0);
        while (at + 4 <= record[0]) {
            const uint8_t *field = record + at;
            if (!memcmp(field, "NM", 2) && field[2] == 5 + strlen(name) &&
                !memcmp(field + 5, name, strlen(name))) {
                return record;
            }
            at += field[2];
        }
    }
    return NULL;
}

static void the_seed_volume_holds_its_files(void **state)
{
    char large[5000];
    memset(large, 'x', sizeof large);
    const struct iso_file files[] = {{"meta-data", "instance-id: i\n", 15},
                                     {"user-data", large, sizeof large},
                                     {"vendor-data", "", 0},
                                     {"doppel", "user debian\n", 12}};
    size_t size;
    uint8_t *volume = iso_write("cidata", files, ARRAY_SIZE(files), &size);
    assert_memory_equal(volume + 16 * 2048, "\1CD001\1", 7);
    assert_memory_equal(volume + 16 * 2048 + 40, "cidata ", 7);
    assert_int_equal(load_le32(volume + 16 * 2048 + 80) * 2048, size);
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        const uint8_t *record = find_file(volume, files[i].name);
        assert_non_null(record);
        assert_int_equal(load_le32(record + 10), files[i].size);
        assert_memory_equal(volume + (size_t)load_le32(record + 2) * 2048, files[i].bytes,
                            files[i].size);
    }
    assert_null(find_file(volume, "user-dat"));
    free(volume);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_can_be_read),
        cmocka_unit_test(damaged_tables_are_refused),
        cmocka_unit_test(the_efi_volume_holds_the_loader),
        cmocka_unit_test(the_seed_volume_holds_its_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
