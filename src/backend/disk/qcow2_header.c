/*
 * The header of a qcow2 image: read with every value checked before it is used, and changed one
 * sector at a time, which the host's disk writes wholly or not at all.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_internal.h"
#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"

enum {
    EXTENSION_END = 0,
    FEATURE_NAME_SIZE = 48, /* type, bit, and 46 bytes of name */
};
#define EXTENSION_BACKING_FORMAT UINT32_C(0xe2792aca)
#define EXTENSION_FEATURE_NAMES  UINT32_C(0x6803f857)

/* Names go into sentences for people: no control characters. */
static void make_printable(char *text)
{
    for (; *text; text++) {
        if ((unsigned char)*text < ' ' || *text == 0x7f) {
            *text = '?';
        }
    }
}

/* The name that the image itself has for an incompatible feature. */
static void find_feature_name(const uint8_t *table, size_t size, unsigned bit, char ret_name[47])
{
    snprintf(ret_name, 47, "bit %u", bit);
    for (size_t at = 0; at + FEATURE_NAME_SIZE <= size; at += FEATURE_NAME_SIZE) {
        if (table[at] == 0 && table[at + 1] == bit && table[at + 2]) {
            memcpy(ret_name, table + at + 2, 46);
            ret_name[46] = '\0';
            make_printable(ret_name);
            return;
        }
    }
}

/* Which features we refuse, and why. */
static int check_features(const struct qcow2_header *header, const char *name,
                          const uint8_t *feature_names, size_t feature_names_size)
{
    uint64_t known =
        QCOW2_INCOMPATIBLE_DIRTY | QCOW2_INCOMPATIBLE_CORRUPT | QCOW2_INCOMPATIBLE_COMPRESSION;
    uint64_t unknown = header->incompatible & ~known;
    if (unknown & QCOW2_INCOMPATIBLE_EXTERNAL) {
        return fail(-ENOTSUP,
                    "disk '%s' keeps its data in another file (external data file), which is not "
                    "supported: convert it with 'qemu-img convert -O qcow2'",
                    name);
    }
    if (unknown & QCOW2_INCOMPATIBLE_EXTENDED_L2) {
        return fail(-ENOTSUP,
                    "disk '%s' has subclusters (extended L2 entries), which are not supported: "
                    "convert it with 'qemu-img convert -O qcow2'",
                    name);
    }
    if (unknown) {
        char feature[47];
        find_feature_name(feature_names, feature_names_size, (unsigned)__builtin_ctzll(unknown),
                          feature);
        return fail(-ENOTSUP, "disk '%s' needs the qcow2 feature '%s', which is not supported",
                    name, feature);
    }
    bool has_type = header->incompatible & QCOW2_INCOMPATIBLE_COMPRESSION;
    if (has_type != (header->compression != 0)) {
        return fail(-EINVAL, "disk '%s': its header contradicts itself about compression", name);
    }
    if (header->compression > 1) {
        return fail(-ENOTSUP,
                    "disk '%s': its compression has number %u; known are 0 (zlib) and 1 "
                    "(zstd)",
                    name, header->compression);
    }
    return 0;
}

/* Sizes and places of the tables. */
static int check_tables(const struct qcow2_header *header, const char *name)
{
    uint64_t cluster = UINT64_C(1) << header->cluster_bits;
    unsigned l2_bits = header->cluster_bits - 3;
    uint64_t limit = UINT64_C(1) << 56;
    uint64_t l1_bytes = (uint64_t)header->l1_size * 8;
    uint64_t reftable_bytes = header->reftable_clusters * cluster;
    if (header->size > (UINT64_C(1) << 61)) {
        return fail(-EFBIG, "disk '%s': its size is beyond what can be addressed", name);
    }
    uint64_t wanted = (header->size + (cluster << l2_bits) - 1) >> (header->cluster_bits + l2_bits);
    if (l1_bytes > QCOW2_L1_BYTES_MAX || wanted * 8 > QCOW2_L1_BYTES_MAX) {
        return fail(-EFBIG, "disk '%s': its L1 table is larger than %d MiB", name,
                    QCOW2_L1_BYTES_MAX >> 20);
    }
    if (header->l1_size < wanted) {
        return fail(-EINVAL, "disk '%s': its L1 table is too small for its size", name);
    }
    if (header->l1_offset % cluster || !range_fits(header->l1_offset, l1_bytes, limit) ||
        (l1_bytes && !header->l1_offset)) {
        return fail(-EINVAL, "disk '%s': its L1 table is at an impossible place", name);
    }
    if (!header->reftable_clusters || reftable_bytes > QCOW2_REFTABLE_BYTES_MAX) {
        return fail(-EINVAL, "disk '%s': its refcount table is empty or larger than %d MiB", name,
                    QCOW2_REFTABLE_BYTES_MAX >> 20);
    }
    if (header->reftable_offset % cluster || !header->reftable_offset ||
        !range_fits(header->reftable_offset, reftable_bytes, limit)) {
        return fail(-EINVAL, "disk '%s': its refcount table is at an impossible place", name);
    }
    if (header->snapshot_count > QCOW2_SNAPSHOTS_MAX || header->snapshots_offset % cluster ||
        header->snapshots_offset >= limit) {
        return fail(-EINVAL, "disk '%s': its snapshot table is impossible", name);
    }
    return 0;
}

/* What is between the header and the end of its cluster. */
static int parse_extensions(struct qcow2_header *header, const char *name, const uint8_t *bytes,
                            size_t size, size_t at)
{
    const uint8_t *names = NULL;
    size_t names_size = 0;
    while (size - at >= 8) {
        uint32_t type = load_be32(bytes + at), length = load_be32(bytes + at + 4);
        at += 8;
        if (type == EXTENSION_END) {
            break;
        }
        if (length > size - at) {
            return fail(-EINVAL,
                        "disk '%s': a header extension is longer than the header's cluster", name);
        }
        if (type == EXTENSION_BACKING_FORMAT) {
            if (length >= sizeof header->backing_format) {
                return fail(-EINVAL, "disk '%s': the name of its backing file's format is too long",
                            name);
            }
            memcpy(header->backing_format, bytes + at, length);
            header->backing_format[length] = '\0';
            make_printable(header->backing_format);
        } else if (type == EXTENSION_FEATURE_NAMES) {
            names = bytes + at;
            names_size = length;
        }
        uint64_t step = align_up(length, 8);
        if (step > size - at) {
            break;
        }
        at += step;
    }
    return check_features(header, name, names, names_size);
}

static int parse_backing(struct qcow2_header *header, const char *name, const uint8_t *bytes,
                         size_t size)
{
    uint64_t offset = load_be64(bytes + 8);
    uint32_t length = load_be32(bytes + 16);
    if (!offset) {
        return 0;
    }
    if (length == 0 || length > QCOW2_NAME_MAX || !range_fits(offset, length, size)) {
        return fail(-EINVAL, "disk '%s': the name of its backing file is not in its header", name);
    }
    memcpy(header->backing, bytes + offset, length);
    header->backing[length] = '\0';
    make_printable(header->backing);
    return 0;
}

static int parse(struct qcow2_header *header, const char *name, const uint8_t *bytes, size_t size)
{
    size_t length = QCOW2_HEADER_SIZE_2;
    header->size = load_be64(bytes + QCOW2_AT_SIZE);
    header->l1_size = load_be32(bytes + QCOW2_AT_L1_SIZE);
    header->l1_offset = load_be64(bytes + QCOW2_AT_L1_OFFSET);
    header->reftable_offset = load_be64(bytes + QCOW2_AT_REFTABLE_OFFSET);
    header->reftable_clusters = load_be32(bytes + QCOW2_AT_REFTABLE_CLUSTERS);
    header->snapshot_count = load_be32(bytes + 60);
    header->snapshots_offset = load_be64(bytes + 64);
    header->refcount_order = 4;
    if (load_be32(bytes + 32)) {
        return fail(-ENOTSUP,
                    "disk '%s' is encrypted, which is not supported: convert it with "
                    "'qemu-img convert'",
                    name);
    }
    if (header->version >= 3) {
        header->incompatible = load_be64(bytes + QCOW2_AT_INCOMPATIBLE);
        header->compatible = load_be64(bytes + 80);
        header->autoclear = load_be64(bytes + QCOW2_AT_AUTOCLEAR);
        header->refcount_order = load_be32(bytes + 96);
        length = load_be32(bytes + 100);
        if (length < QCOW2_HEADER_SIZE_3 || length > size || length % 8) {
            return fail(-EINVAL, "disk '%s': its header has an impossible length", name);
        }
        header->compression = length > 104 ? bytes[104] : 0;
        if (header->refcount_order > 6) {
            return fail(-EINVAL, "disk '%s': its refcounts are wider than 64 bits", name);
        }
    }
    int error = parse_extensions(header, name, bytes, size, length);
    if (!error) {
        error = parse_backing(header, name, bytes, size);
    }
    return error ? error : check_tables(header, name);
}

int qcow2_header_read(struct disk *file, const char *name, struct qcow2_header *ret_header,
                      uint8_t ret_sector[QCOW2_SECTOR])
{
    int error = disk_read(file, 0, ret_sector, QCOW2_SECTOR);
    if (error) {
        return fail(error, "disk '%s': read its header: %s", name, strerror(-error));
    }
    struct qcow2_header header = {.version = load_be32(ret_sector + 4),
                                  .cluster_bits = load_be32(ret_sector + 20)};
    if (load_be32(ret_sector) != 0x514649fb) {
        return fail(-EINVAL, "disk '%s' is no qcow2 image", name);
    }
    if (header.version != 2 && header.version != 3) {
        return fail(-ENOTSUP, "disk '%s' is a qcow image of version %u; supported are 2 and 3",
                    name, header.version);
    }
    if (header.cluster_bits < QCOW2_CLUSTER_BITS_MIN ||
        header.cluster_bits > QCOW2_CLUSTER_BITS_MAX) {
        return fail(-EINVAL, "disk '%s': its clusters are not of 512 bytes to 2 MiB", name);
    }
    size_t size = (size_t)1 << header.cluster_bits;
    CLEANUP_BUFFER uint8_t *bytes = qcow2_buffer(size);
    error = disk_read(file, 0, bytes, size);
    if (error) {
        return fail(error, "disk '%s': read its header: %s", name, strerror(-error));
    }
    error = parse(&header, name, bytes, size);
    if (!error) {
        *ret_header = header;
    }
    return error;
}

int qcow2_header_write(struct qcow2 *q)
{
    CLEANUP_BUFFER uint8_t *bytes = qcow2_buffer(sizeof q->sector);
    memcpy(bytes, q->sector, sizeof q->sector);
    int error = disk_write(q->file, 0, bytes, sizeof q->sector);
    return error ? error : disk_flush(q->file);
}

int qcow2_header_set_incompatible(struct qcow2 *q, uint64_t set, uint64_t clear)
{
    uint64_t before = q->header.incompatible, after = (before | set) & ~clear;
    if (before == after || q->header.version < 3) {
        return 0;
    }
    store_be64(q->sector + QCOW2_AT_INCOMPATIBLE, after);
    int error = qcow2_header_write(q);
    if (error) {
        store_be64(q->sector + QCOW2_AT_INCOMPATIBLE, before);
    } else {
        q->header.incompatible = after;
    }
    return error;
}

void *qcow2_buffer(size_t size)
{
    void *buffer = NULL;
    ASSERT(!posix_memalign(&buffer, 4096, size ? size : 1));
    return buffer;
}
