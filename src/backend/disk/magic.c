/*
 * Magic numbers of disk image formats and of compressed files. What also occurs as the beginning
 * of a real disk (boot sectors, LUKS, file systems) is not listed.
 */
#include "backend/disk/magic.h"

#include <string.h>

#include "base/bytes.h"

struct magic {
    const char *name;
    size_t offset, length;
    const char *bytes;
};

static const struct magic magics[] = {
    {"qcow2", 0, 8, "QFI\xfb\0\0\0\2"},
    {"qcow2", 0, 8, "QFI\xfb\0\0\0\3"},
    {"qcow", 0, 4, "QFI\xfb"}, /* version 1, and none that we know */
    {"qed", 0, 4, "QED\0"},
    {"vmdk", 0, 4, "KDMV"},
    {"vmdk", 0, 4, "COWD"},
    {"vmdk", 0, 21, "# Disk DescriptorFile"},
    {"vdi", 64, 4, "\x7f\x10\xda\xbe"},
    {"vhdx", 0, 8, "vhdxfile"},
    {"vhd", 0, 8, "conectix"},
    {"parallels", 0, 16, "WithoutFreeSpace"},
    {"parallels", 0, 16, "WithouFreSpacExt"},
    {"bochs", 0, 22, "Bochs Virtual HD Image"},
    {"gzip", 0, 3, "\x1f\x8b\x08"},
    {"xz", 0, 6,
     "\xfd"
     "7zXZ\0"},
    {"bzip2", 0, 3, "BZh"},
    {"zstd", 0, 4, "\x28\xb5\x2f\xfd"},
    {"zip", 0, 4, "PK\x03\x04"},
};

const char *disk_magic(const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < ARRAY_SIZE(magics); i++) {
        const struct magic *magic = &magics[i];
        if (range_fits(magic->offset, magic->length, size) &&
            memcmp(bytes + magic->offset, magic->bytes, magic->length) == 0) {
            return magic->name;
        }
    }
    return NULL;
}
