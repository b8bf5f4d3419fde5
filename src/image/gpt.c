/* GUID partition tables: see gpt.h. Section numbers are those of the UEFI Specification 2.10. */
#include "image/gpt.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <zlib.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"

/* Table 5.5: the header. */
enum header_field {
    HEADER_REVISION = 8,
    HEADER_SIZE = 12,
    HEADER_CRC = 16,
    HEADER_MY_LBA = 24,
    HEADER_OTHER_LBA = 32,
    HEADER_FIRST_LBA = 40,
    HEADER_LAST_LBA = 48,
    HEADER_DISK_GUID = 56,
    HEADER_TABLE_LBA = 72,
    HEADER_TABLE_COUNT = 80,
    HEADER_ENTRY_SIZE = 84,
    HEADER_TABLE_CRC = 88,
    HEADER_BYTES = 92,
};
/* Table 5.6: an entry. */
enum entry_field {
    ENTRY_TYPE = 0,
    ENTRY_ID = 16,
    ENTRY_FIRST_LBA = 32,
    ENTRY_LAST_LBA = 40,
    ENTRY_BYTES = 128,
};
enum {
    TABLE_BYTES = GPT_ENTRIES * ENTRY_BYTES,
    REVISION_1_0 = 0x10000,
    MBR_PARTITION = 446,
    MBR_PROTECTIVE = 0xee,
};
static const char signature[8] = "EFI PART";

const struct gpt_guid gpt_type_efi = {{0xc1, 0x2a, 0x73, 0x28, 0xf8, 0x1f, 0x11, 0xd2, 0xba, 0x4b,
                                       0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}};
const struct gpt_guid gpt_type_linux = {{0x0f, 0xc6, 0x3d, 0xaf, 0x84, 0x83, 0x47, 0x72, 0x8e, 0x79,
                                         0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4}};
const struct gpt_guid gpt_type_root = {{0x4f, 0x68, 0xbc, 0xe3, 0xe8, 0xcd, 0x4d, 0xb1, 0x96, 0xe7,
                                        0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09}};

/* Which byte of the text's order is where on the disk (appendix A). */
static const uint8_t disk_order[GPT_GUID] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};

static void guid_store(uint8_t *to, const struct gpt_guid *guid)
{
    for (size_t i = 0; i < GPT_GUID; i++) {
        to[i] = guid->bytes[disk_order[i]];
    }
}

static void guid_load(struct gpt_guid *guid, const uint8_t *from)
{
    for (size_t i = 0; i < GPT_GUID; i++) {
        guid->bytes[disk_order[i]] = from[i];
    }
}

void gpt_guid_print(const struct gpt_guid *guid, char ret_text[GPT_GUID_TEXT])
{
    char *at = ret_text;
    for (size_t i = 0; i < GPT_GUID; i++) {
        at += sprintf(at, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", guid->bytes[i]);
    }
}

static uint32_t checksum(const uint8_t *bytes, size_t size)
{
    return (uint32_t)crc32(0, bytes, (uInt)size);
}

/* Section 5.2.3: one partition over all of the disk, for programs that know no GPT. */
static void write_mbr(uint8_t *sector, uint64_t sectors)
{
    uint8_t *entry = sector + MBR_PARTITION;
    entry[2] = 2; /* CHS 0/0/2, which is sector 1 */
    entry[4] = MBR_PROTECTIVE;
    memset(entry + 5, 0xff, 3);
    store_le32(entry + 8, 1);
    store_le32(entry + 12, sectors - 1 > UINT32_MAX ? UINT32_MAX : (uint32_t)(sectors - 1));
    sector[510] = 0x55;
    sector[511] = 0xaa;
}

static void write_header(const struct gpt *gpt, uint64_t sectors, bool is_copy, uint32_t table_crc,
                         uint8_t *sector)
{
    uint64_t last = sectors - 1;
    memcpy(sector, signature, sizeof signature);
    store_le32(sector + HEADER_REVISION, REVISION_1_0);
    store_le32(sector + HEADER_SIZE, HEADER_BYTES);
    store_le64(sector + HEADER_MY_LBA, is_copy ? last : 1);
    store_le64(sector + HEADER_OTHER_LBA, is_copy ? 1 : last);
    store_le64(sector + HEADER_FIRST_LBA, GPT_HEAD / GPT_SECTOR);
    store_le64(sector + HEADER_LAST_LBA, last - GPT_TAIL / GPT_SECTOR);
    guid_store(sector + HEADER_DISK_GUID, &gpt->disk);
    store_le64(sector + HEADER_TABLE_LBA, is_copy ? sectors - GPT_TAIL / GPT_SECTOR : 2);
    store_le32(sector + HEADER_TABLE_COUNT, GPT_ENTRIES);
    store_le32(sector + HEADER_ENTRY_SIZE, ENTRY_BYTES);
    store_le32(sector + HEADER_TABLE_CRC, table_crc);
    store_le32(sector + HEADER_CRC, checksum(sector, HEADER_BYTES));
}

void gpt_write(const struct gpt *gpt, uint64_t disk_size, uint8_t head[GPT_HEAD],
               uint8_t tail[GPT_TAIL])
{
    uint64_t sectors = disk_size / GPT_SECTOR;
    memset(head, 0, GPT_HEAD);
    memset(tail, 0, GPT_TAIL);
    uint8_t *table = head + 2 * GPT_SECTOR;
    for (size_t i = 0; i < gpt->count; i++) {
        const struct gpt_partition *partition = &gpt->partitions[i];
        ASSERT(partition->number >= 1 && partition->number <= GPT_ENTRIES);
        ASSERT(partition->offset >= GPT_HEAD && partition->size &&
               range_fits(partition->offset, partition->size, disk_size - GPT_TAIL));
        uint8_t *entry = table + (partition->number - 1) * ENTRY_BYTES;
        guid_store(entry + ENTRY_TYPE, &partition->type);
        guid_store(entry + ENTRY_ID, &partition->id);
        store_le64(entry + ENTRY_FIRST_LBA, partition->offset / GPT_SECTOR);
        store_le64(entry + ENTRY_LAST_LBA, (partition->offset + partition->size) / GPT_SECTOR - 1);
    }
    uint32_t table_crc = checksum(table, TABLE_BYTES);
    write_mbr(head, sectors);
    write_header(gpt, sectors, false, table_crc, head + GPT_SECTOR);
    memcpy(tail, table, TABLE_BYTES);
    write_header(gpt, sectors, true, table_crc, tail + TABLE_BYTES);
}

bool gpt_recognize(const uint8_t *head, size_t size)
{
    return size >= 2 * GPT_SECTOR && !memcmp(head + GPT_SECTOR, signature, sizeof signature);
}

/* Section 5.3.2: what makes a header valid. */
static int check_header(const uint8_t *header, const uint8_t *table)
{
    uint8_t copy[HEADER_BYTES];
    if (load_le32(header + HEADER_SIZE) != HEADER_BYTES ||
        load_le32(header + HEADER_TABLE_COUNT) != GPT_ENTRIES ||
        load_le32(header + HEADER_ENTRY_SIZE) != ENTRY_BYTES ||
        load_le64(header + HEADER_TABLE_LBA) != 2) {
        return fail(-EINVAL, "a partition table of an unusual size or place, which is not read");
    }
    memcpy(copy, header, sizeof copy);
    store_le32(copy + HEADER_CRC, 0);
    if (checksum(copy, sizeof copy) != load_le32(header + HEADER_CRC) ||
        load_le64(header + HEADER_MY_LBA) != 1) {
        return fail(-EINVAL, "the header of the partition table is damaged");
    }
    if (checksum(table, TABLE_BYTES) != load_le32(header + HEADER_TABLE_CRC)) {
        return fail(-EINVAL, "the partition table is damaged");
    }
    return 0;
}

int gpt_read(const uint8_t head[GPT_HEAD], uint64_t disk_size, struct gpt *ret_gpt)
{
    static const uint8_t unused[GPT_GUID];
    const uint8_t *header = head + GPT_SECTOR, *table = head + 2 * GPT_SECTOR;
    if (!gpt_recognize(head, GPT_HEAD)) {
        return fail(-EINVAL, "there is no GUID partition table");
    }
    int r = check_header(header, table);
    if (r) {
        return r;
    }
    *ret_gpt = (struct gpt){0};
    guid_load(&ret_gpt->disk, header + HEADER_DISK_GUID);
    uint64_t sectors = disk_size / GPT_SECTOR;
    for (unsigned i = 0; i < GPT_ENTRIES; i++) {
        const uint8_t *entry = table + i * ENTRY_BYTES;
        uint64_t first = load_le64(entry + ENTRY_FIRST_LBA);
        uint64_t last = load_le64(entry + ENTRY_LAST_LBA);
        if (!memcmp(entry + ENTRY_TYPE, unused, sizeof unused) || first > last || last >= sectors) {
            continue;
        }
        struct gpt_partition *partition = &ret_gpt->partitions[ret_gpt->count++];
        *partition = (struct gpt_partition){
            .offset = first * GPT_SECTOR, .size = (last - first + 1) * GPT_SECTOR, .number = i + 1};
        guid_load(&partition->type, entry + ENTRY_TYPE);
        guid_load(&partition->id, entry + ENTRY_ID);
    }
    return 0;
}
