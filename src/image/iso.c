/*
 * The volume of iso.h: 16 sectors that belong to the system, the primary volume descriptor, the
 * end of descriptors, two path tables, the root folder, and the files. Clauses are ECMA-119's.
 */
#include "image/iso.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"

enum {
    SECTOR = 2048,
    AT_DESCRIPTOR = 16,
    AT_END,
    AT_PATHS_LITTLE,
    AT_PATHS_BIG,
    AT_ROOT,
    AT_FILES,
    RECORD = 33, /* a directory record without its identifier */
    FLAG_FOLDER = 2,
    PATH_TABLE = 10, /* bytes: the root alone */
    MODE_FILE = 0100444,
    MODE_FOLDER = 0040555,
};

/* Clause 7.2.3 and 7.3.3: a number in both byte orders. */
static void both16(uint8_t *to, uint16_t value)
{
    store_le16(to, value);
    store_le16(to + 2, __builtin_bswap16(value));
}

static void both32(uint8_t *to, uint32_t value)
{
    store_le32(to, value);
    store_le32(to + 4, __builtin_bswap32(value));
}

/* ---- Rock Ridge ---- */

static size_t add_field(uint8_t *to, const char signature[2], size_t length)
{
    memcpy(to, signature, 2);
    to[2] = (uint8_t)length;
    to[3] = 1;
    return length;
}

/* P1282, 4.1.1: mode, links, owner, group, serial number. */
static size_t add_attributes(uint8_t *to, uint32_t mode, uint32_t serial)
{
    size_t length = add_field(to, "PX", 44);
    both32(to + 4, mode);
    both32(to + 12, 1);
    both32(to + 36, serial);
    return length;
}

/* P1281, 5.3 and 5.5: the root's first record says that the fields are there, and whose. */
static size_t add_announcement(uint8_t *to)
{
    static const char id[] = "RRIP_1991A", version = 1;
    size_t length = add_field(to, "SP", 7);
    to[4] = 0xbe;
    to[5] = 0xef;
    uint8_t *reference = to + length;
    length += add_field(reference, "ER", 8 + strlen(id));
    reference[4] = (uint8_t)strlen(id);
    reference[7] = (uint8_t)version;
    memcpy(reference + 8, id, strlen(id));
    return length;
}

/* P1282, 4.1.4 */
static size_t add_name(uint8_t *to, const char *name)
{
    size_t length = add_field(to, "NM", 5 + strlen(name));
    memcpy(to + 5, name, strlen(name));
    return length;
}

/* ---- records ---- */

/* Clause 9.1; the date is the first of January 1980. What follows the identifier is the caller's.
 */
static size_t write_record(uint8_t *to, const char *identifier, size_t length, uint32_t sector,
                           uint32_t size, bool is_folder)
{
    static const uint8_t date[7] = {80, 1, 1, 0, 0, 0, 0};
    both32(to + 2, sector);
    both32(to + 10, size);
    memcpy(to + 18, date, sizeof date);
    to[25] = is_folder ? FLAG_FOLDER : 0;
    both16(to + 28, 1);
    to[32] = (uint8_t)length;
    memcpy(to + RECORD, identifier, length);
    return RECORD + length + (length % 2 == 0); /* fields behind it begin at an even offset */
}

static size_t end_record(uint8_t *record, size_t length)
{
    length += length % 2;
    ASSERT(length <= 255);
    record[0] = (uint8_t)length;
    return length;
}

/* The names that only old readers see: FILE0000.;1 and so on. */
static size_t write_file(uint8_t *to, const struct iso_file *file, unsigned index, uint32_t sector)
{
    char identifier[16];
    ASSERT(strlen(file->name) <= ISO_NAME_MAX && file->size <= ISO_FILE_MAX);
    snprintf(identifier, sizeof identifier, "FILE%04u.;1", index);
    size_t length =
        write_record(to, identifier, strlen(identifier), sector, (uint32_t)file->size, false);
    length += add_attributes(to + length, MODE_FILE, index + 2);
    length += add_name(to + length, file->name);
    return end_record(to, length);
}

static void write_root(uint8_t *sector, const struct iso_file *files, size_t count)
{
    size_t at = write_record(sector, "\0", 1, AT_ROOT, SECTOR, true);
    at += add_announcement(sector + at);
    at += add_attributes(sector + at, MODE_FOLDER, 1);
    at = end_record(sector, at);
    uint8_t *parent = sector + at;
    size_t length = write_record(parent, "\1", 1, AT_ROOT, SECTOR, true);
    length += add_attributes(parent + length, MODE_FOLDER, 1);
    at += end_record(parent, length);
    uint32_t place = AT_FILES;
    for (unsigned i = 0; i < count; i++) {
        at += write_file(sector + at, &files[i], i, place);
        place += (uint32_t)((files[i].size + SECTOR - 1) / SECTOR);
    }
    ASSERT(at <= SECTOR);
}

/* ---- descriptors ---- */

static void put_text(uint8_t *to, size_t room, const char *text)
{
    memset(to, ' ', room);
    memcpy(to, text, strlen(text) < room ? strlen(text) : room);
}

/* Clause 8.4 */
static void write_descriptor(uint8_t *sector, const char *label, uint32_t sectors)
{
    static const uint16_t texts[][2] = {{190, 128}, {318, 128}, {446, 128}, {574, 128},
                                        {702, 37},  {739, 37},  {776, 37}};
    memcpy(sector, "\1CD001\1", 7);
    put_text(sector + 8, 32, "");
    put_text(sector + 40, 32, label);
    both32(sector + 80, sectors);
    both16(sector + 120, 1);
    both16(sector + 124, 1);
    both16(sector + 128, SECTOR);
    both32(sector + 132, PATH_TABLE);
    store_le32(sector + 140, AT_PATHS_LITTLE);
    store_le32(sector + 148, __builtin_bswap32(AT_PATHS_BIG));
    sector[156] = (uint8_t)write_record(sector + 156, "\0", 1, AT_ROOT, SECTOR, true);
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        put_text(sector + texts[i][0], texts[i][1], "");
    }
    for (size_t i = 0; i < 4; i++) { /* clause 8.4.26.1: dates that are not given */
        memset(sector + 813 + 17 * i, '0', 16);
    }
    sector[881] = 1;
}

uint8_t *iso_write(const char *label, const struct iso_file *files, size_t count, size_t *ret_size)
{
    ASSERT(count <= ISO_FILES_MAX && strlen(label) <= 32);
    size_t sectors = AT_FILES;
    for (size_t i = 0; i < count; i++) {
        sectors += (files[i].size + SECTOR - 1) / SECTOR;
    }
    uint8_t *volume = calloc(sectors, SECTOR);
    ASSERT(volume);
    write_descriptor(volume + AT_DESCRIPTOR * SECTOR, label, (uint32_t)sectors);
    memcpy(volume + AT_END * SECTOR, "\377CD001\1", 7);
    /* clause 9.4: the root, at its sector, child of itself */
    memcpy(volume + AT_PATHS_LITTLE * SECTOR,
           "\1\0"
           "\0\0\0\0"
           "\1\0"
           "\0\0",
           PATH_TABLE);
    memcpy(volume + AT_PATHS_BIG * SECTOR,
           "\1\0"
           "\0\0\0\0"
           "\0\1"
           "\0\0",
           PATH_TABLE);
    store_le32(volume + AT_PATHS_LITTLE * SECTOR + 2, AT_ROOT);
    store_le32(volume + AT_PATHS_BIG * SECTOR + 2, __builtin_bswap32(AT_ROOT));
    write_root(volume + AT_ROOT * SECTOR, files, count);
    size_t at = (size_t)AT_FILES * SECTOR;
    for (size_t i = 0; i < count; i++) {
        if (files[i].size) {
            memcpy(volume + at, files[i].bytes, files[i].size);
        }
        at += (files[i].size + SECTOR - 1) / SECTOR * SECTOR;
    }
    *ret_size = sectors * SECTOR;
    return volume;
}
