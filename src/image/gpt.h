/*
 * GUID partition tables (UEFI Specification 2.10, chapter 5), of disks with sectors of 512 bytes:
 * written for images of ours, and read from hostile ones.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    GPT_SECTOR = 512,
    GPT_ENTRIES = 128,
    GPT_HEAD = 34 * GPT_SECTOR, /* the protective MBR, the header, and the table */
    GPT_TAIL = 33 * GPT_SECTOR, /* the copies at the disk's end: the table, then the header */
    GPT_GUID = 16,
    GPT_GUID_TEXT = 37,
};

/* As the text has them, first byte first; the disk has the first three groups the other way. */
struct gpt_guid {
    uint8_t bytes[GPT_GUID];
};

struct gpt_partition {
    struct gpt_guid type, id;
    uint64_t offset, size; /* bytes */
    unsigned number;       /* from 1: its place in the table */
};

struct gpt {
    struct gpt_guid disk;
    struct gpt_partition partitions[GPT_ENTRIES];
    size_t count;
};

extern const struct gpt_guid gpt_type_efi;   /* EFI system partition */
extern const struct gpt_guid gpt_type_linux; /* Linux file system data */
extern const struct gpt_guid gpt_type_root;  /* Linux root, x86-64 (Discoverable Partitions) */

void gpt_guid_print(const struct gpt_guid *guid, char ret_text[GPT_GUID_TEXT]);

/*
 * The bytes of the tables of a disk of `disk_size` bytes (a multiple of a sector): its first
 * GPT_HEAD and its last GPT_TAIL bytes. The partitions lie between and do not overlap.
 */
void gpt_write(const struct gpt *gpt, uint64_t disk_size, uint8_t head[GPT_HEAD],
               uint8_t tail[GPT_TAIL]);

/* Does the disk begin with a GPT header? */
bool gpt_recognize(const uint8_t *head, size_t size);
/*
 * Read the first GPT_HEAD bytes of a disk. Tables of other sizes than usual are refused;
 * partitions that do not lie in the disk are left out. -EINVAL with a sentence.
 */
int gpt_read(const uint8_t head[GPT_HEAD], uint64_t disk_size, struct gpt *ret_gpt)
    __attribute__((warn_unused_result));
