/* Which format a disk image is in, by its first bytes. */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { DISK_MAGIC_SIZE = 512 }; /* bytes to look at */

/* The name of the format, or NULL if the bytes are no known image but may be a disk's contents. */
const char *disk_magic(const uint8_t *bytes, size_t size);
