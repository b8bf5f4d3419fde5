/*
 * The volume of fat.h: boot sector, two tables, the root folder, then clusters: \EFI, \EFI\BOOT,
 * and the file.
 */
#include "image/fat.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"

enum {
    SECTOR = 512,
    CLUSTER = 2048,
    TABLE_SECTORS = 128, /* 32,768 clusters: more than the volume has */
    ROOT_ENTRIES = 512,
    ENTRY = 32,
    TABLE_AT = SECTOR,
    ROOT_AT = TABLE_AT + 2 * TABLE_SECTORS * SECTOR,
    CLUSTERS_AT = ROOT_AT + ROOT_ENTRIES * ENTRY,
    FIRST_CLUSTER = 2,
    CLUSTER_EFI = FIRST_CLUSTER,
    CLUSTER_BOOT,
    CLUSTER_FILE,
    MEDIA_FIXED = 0xf8,
    ATTRIBUTE_FOLDER = 0x10,
    ATTRIBUTE_ARCHIVE = 0x20,
    END_OF_CHAIN = 0xffff,
    DATE = 1 << 5 | 1, /* the first of January 1980 */
};
_Static_assert((FAT_SIZE - CLUSTERS_AT) / CLUSTER < 65525, "more clusters would be FAT32");
_Static_assert((FAT_SIZE - CLUSTERS_AT) / CLUSTER >= 4085, "fewer clusters would be FAT12");
_Static_assert(TABLE_SECTORS *SECTOR / 2 >= (FAT_SIZE - CLUSTERS_AT) / CLUSTER + FIRST_CLUSTER,
               "the table has an entry for each cluster");

static void write_boot_sector(uint8_t *sector, uint32_t volume_id)
{
    memcpy(sector, "\xeb\x3c\x90MSWIN4.1", 11);
    store_le16(sector + 11, SECTOR);
    sector[13] = CLUSTER / SECTOR;
    store_le16(sector + 14, TABLE_AT / SECTOR);
    sector[16] = 2;
    store_le16(sector + 17, ROOT_ENTRIES);
    sector[21] = MEDIA_FIXED;
    store_le16(sector + 22, TABLE_SECTORS);
    store_le16(sector + 24, 63); /* sectors for each track, and heads: no geometry */
    store_le16(sector + 26, 255);
    store_le32(sector + 32, FAT_SIZE / SECTOR);
    sector[36] = 0x80;
    sector[38] = 0x29; /* the next three fields are there */
    store_le32(sector + 39, volume_id);
    memcpy(sector + 43, "NO NAME    FAT16   ", 19);
    sector[510] = 0x55;
    sector[511] = 0xaa;
}

static void write_entry(uint8_t *entry, const char name[11], uint8_t attributes, unsigned cluster,
                        size_t size)
{
    memcpy(entry, name, 11);
    entry[11] = attributes;
    store_le16(entry + 16, DATE);
    store_le16(entry + 18, DATE);
    store_le16(entry + 24, DATE);
    store_le16(entry + 26, (uint16_t)cluster);
    store_le32(entry + 28, (uint32_t)size);
}

static uint8_t *cluster_at(uint8_t *volume, unsigned cluster)
{
    return volume + CLUSTERS_AT + (size_t)(cluster - FIRST_CLUSTER) * CLUSTER;
}

static void write_table(uint8_t *table, size_t file_clusters)
{
    store_le16(table, 0xff00 | MEDIA_FIXED);
    store_le16(table + 2, END_OF_CHAIN);
    store_le16(table + 2 * CLUSTER_EFI, END_OF_CHAIN);
    store_le16(table + 2 * CLUSTER_BOOT, END_OF_CHAIN);
    for (size_t i = 0; i < file_clusters; i++) {
        bool is_last = i + 1 == file_clusters;
        store_le16(table + 2 * (CLUSTER_FILE + i),
                   is_last ? END_OF_CHAIN : (uint16_t)(CLUSTER_FILE + i + 1));
    }
}

uint8_t *fat_write(const uint8_t *data, size_t size, uint32_t volume_id, size_t *ret_size)
{
    ASSERT(size <= FAT_FILE_MAX);
    size_t file_clusters = (size + CLUSTER - 1) / CLUSTER;
    *ret_size = CLUSTERS_AT + (CLUSTER_FILE - FIRST_CLUSTER + file_clusters) * CLUSTER;
    uint8_t *volume = calloc(1, *ret_size);
    ASSERT(volume);
    write_boot_sector(volume, volume_id);
    write_table(volume + TABLE_AT, file_clusters);
    memcpy(volume + TABLE_AT + TABLE_SECTORS * SECTOR, volume + TABLE_AT, TABLE_SECTORS * SECTOR);
    write_entry(volume + ROOT_AT, "EFI        ", ATTRIBUTE_FOLDER, CLUSTER_EFI, 0);
    uint8_t *folder = cluster_at(volume, CLUSTER_EFI);
    write_entry(folder, ".          ", ATTRIBUTE_FOLDER, CLUSTER_EFI, 0);
    write_entry(folder + ENTRY, "..         ", ATTRIBUTE_FOLDER, 0, 0);
    write_entry(folder + 2 * ENTRY, "BOOT       ", ATTRIBUTE_FOLDER, CLUSTER_BOOT, 0);
    folder = cluster_at(volume, CLUSTER_BOOT);
    write_entry(folder, ".          ", ATTRIBUTE_FOLDER, CLUSTER_BOOT, 0);
    write_entry(folder + ENTRY, "..         ", ATTRIBUTE_FOLDER, CLUSTER_EFI, 0);
    write_entry(folder + 2 * ENTRY, "BOOTX64 EFI", ATTRIBUTE_ARCHIVE,
                file_clusters ? CLUSTER_FILE : 0, size);
    memcpy(cluster_at(volume, CLUSTER_FILE), data, size);
    return volume;
}
