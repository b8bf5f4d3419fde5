/*
 * An ISO 9660 volume (ECMA-119) of a few files in its root folder, with their names as they are by
 * the Rock Ridge extensions (IEEE P1282, SUSP P1281): what cloud-init's NoCloud reads.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { ISO_FILES_MAX = 8, ISO_NAME_MAX = 31, ISO_FILE_MAX = 16 << 20 };

struct iso_file {
    const char *name; /* up to ISO_NAME_MAX characters */
    const void *bytes;
    size_t size;
};

enum { ISO_SYSTEM_AREA = 16 * 2048 };

/*
 * The bytes of a volume called `label` (up to 32 characters), a multiple of 2048; free() them.
 * The same files give the same bytes.
 */
uint8_t *iso_write(const char *label, const struct iso_file *files, size_t count, size_t *ret_size);
