/*
 * A FAT16 file system (Microsoft's "FAT: General Overview of On-Disk Format", 1.03) with one file
 * in it: what an EFI system partition needs.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { FAT_SIZE = 63 << 20, FAT_FILE_MAX = 32 << 20 };

/*
 * The first bytes of a volume of FAT_SIZE bytes that holds `data` as \EFI\BOOT\BOOTX64.EFI; behind
 * them are zeroes. Bytes to be freed, and how many. `size` is at most FAT_FILE_MAX.
 */
uint8_t *fat_write(const uint8_t *data, size_t size, uint32_t volume_id, size_t *ret_size);
