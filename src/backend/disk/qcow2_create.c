/* Making an empty qcow2 image. The header is written last, so that half an image is none. */
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_internal.h"
#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"

enum { HEADER_SIZE = 112, FORMAT_ROOM = 8 };

/* Clusters, in this order behind the header. */
struct layout {
    unsigned cluster_bits, refcount_order;
    uint64_t reftable, blocks, l1; /* how many */
    uint64_t l1_entries;
};

static uint64_t round_up(uint64_t bytes, unsigned bits)
{
    return (bytes + (UINT64_C(1) << bits) - 1) >> bits;
}

static unsigned refcount_order(const struct qcow2_create *create)
{
    return create->refcount_bits ? (unsigned)__builtin_ctz(create->refcount_bits) : 4;
}

static void plan(const struct qcow2_create *create, struct layout *ret_layout)
{
    uint64_t cluster = create->cluster_size ? create->cluster_size : KIB(64);
    struct layout layout = {.cluster_bits = (unsigned)__builtin_ctzll(cluster),
                            .refcount_order = refcount_order(create),
                            .reftable = 1,
                            .blocks = 1};
    unsigned block_bits = layout.cluster_bits + 3 - layout.refcount_order;
    layout.l1_entries = round_up(create->size, 2 * layout.cluster_bits - 3);
    layout.l1 = round_up(layout.l1_entries * 8, layout.cluster_bits);
    for (;;) {
        uint64_t blocks = round_up(1 + layout.reftable + layout.blocks + layout.l1, block_bits);
        uint64_t table = round_up(blocks * 8, layout.cluster_bits);
        if (blocks <= layout.blocks && table <= layout.reftable) {
            break;
        }
        layout.blocks = blocks > layout.blocks ? blocks : layout.blocks;
        layout.reftable = table > layout.reftable ? table : layout.reftable;
    }
    *ret_layout = layout;
}

int qcow2_create_check(const struct qcow2_create *create)
{
    uint64_t cluster = create->cluster_size ? create->cluster_size : KIB(64);
    unsigned bits = create->refcount_bits;
    if (cluster & (cluster - 1) || cluster < 1u << QCOW2_CLUSTER_BITS_MIN ||
        cluster > 1u << QCOW2_CLUSTER_BITS_MAX) {
        return fail(-EINVAL, "clusters have a size of 512 bytes to 2 MiB, a power of two");
    }
    if (create->version == 2 && (create->lazy_refcounts || create->zstd || (bits && bits != 16))) {
        return fail(-EINVAL,
                    "version 2 of qcow2 has no lazy refcounts, zstd, or refcounts of other "
                    "than 16 bits");
    }
    if (create->version != 0 && create->version != 2 && create->version != 3) {
        return fail(-EINVAL, "qcow2 has versions 2 and 3");
    }
    if (bits & (bits - 1) || bits > 64) {
        return fail(-EINVAL, "refcounts have 1, 2, 4, 8, 16, 32 or 64 bits");
    }
    if (create->size == 0 || create->size % QCOW2_SECTOR) {
        return fail(-EINVAL, "the size of a disk is a multiple of %d bytes", QCOW2_SECTOR);
    }
    struct layout layout;
    if (create->size > UINT64_C(1) << 60) {
        return fail(-EFBIG, "this size is too large");
    }
    plan(create, &layout);
    if (layout.l1_entries * 8 > QCOW2_L1_BYTES_MAX) {
        return fail(-EFBIG, "this size is too large for clusters of %llu bytes",
                    (unsigned long long)cluster);
    }
    size_t name = create->backing ? strlen(create->backing) : 0;
    if (name > QCOW2_NAME_MAX || HEADER_SIZE + 8 + FORMAT_ROOM + 8 + name > cluster) {
        return fail(-ENAMETOOLONG, "the backing file's name is too long for the header");
    }
    return 0;
}

static int write_blocks(struct disk *file, const struct layout *layout, uint8_t *bytes)
{
    size_t size = (size_t)1 << layout->cluster_bits;
    uint64_t per_block = UINT64_C(1) << (layout->cluster_bits + 3 - layout->refcount_order);
    uint64_t used = 1 + layout->reftable + layout->blocks + layout->l1;
    int error = 0;
    for (uint64_t i = 0; i < layout->blocks && !error; i++) {
        memset(bytes, 0, size);
        for (uint64_t k = 0; k < per_block && i * per_block + k < used; k++) {
            qcow2_refcount_store(bytes, k, layout->refcount_order, 1);
        }
        error = disk_write(file, (1 + layout->reftable + i) << layout->cluster_bits, bytes, size);
    }
    for (uint64_t i = 0; i < layout->reftable && !error; i++) {
        memset(bytes, 0, size);
        for (uint64_t k = 0; k < size / 8 && i * (size / 8) + k < layout->blocks; k++) {
            store_be64(bytes + k * 8, (1 + layout->reftable + i * (size / 8) + k)
                                          << layout->cluster_bits);
        }
        error = disk_write(file, (1 + i) << layout->cluster_bits, bytes, size);
    }
    memset(bytes, 0, size);
    for (uint64_t i = 0; i < layout->l1 && !error; i++) {
        error = disk_write(
            file, (1 + layout->reftable + layout->blocks + i) << layout->cluster_bits, bytes, size);
    }
    return error ? error : disk_flush(file);
}

static void fill_header(const struct qcow2_create *create, const struct layout *layout,
                        uint8_t *bytes)
{
    unsigned version = create->version ? create->version : 3;
    size_t at = version == 2 ? QCOW2_HEADER_SIZE_2 : HEADER_SIZE;
    store_be32(bytes, 0x514649fb);
    store_be32(bytes + 4, version);
    store_be32(bytes + 20, layout->cluster_bits);
    store_be64(bytes + QCOW2_AT_SIZE, create->size);
    store_be32(bytes + QCOW2_AT_L1_SIZE, (uint32_t)layout->l1_entries);
    store_be64(bytes + QCOW2_AT_L1_OFFSET, (1 + layout->reftable + layout->blocks)
                                               << layout->cluster_bits);
    store_be64(bytes + QCOW2_AT_REFTABLE_OFFSET, UINT64_C(1) << layout->cluster_bits);
    store_be32(bytes + QCOW2_AT_REFTABLE_CLUSTERS, (uint32_t)layout->reftable);
    if (version >= 3) {
        store_be64(bytes + QCOW2_AT_INCOMPATIBLE,
                   create->zstd ? QCOW2_INCOMPATIBLE_COMPRESSION : 0);
        store_be64(bytes + 80, create->lazy_refcounts ? QCOW2_COMPATIBLE_LAZY : 0);
        store_be32(bytes + 96, layout->refcount_order);
        store_be32(bytes + 100, HEADER_SIZE);
        bytes[104] = create->zstd;
    }
    if (create->backing) {
        size_t length = strlen(create->backing_format);
        store_be32(bytes + at, UINT32_C(0xe2792aca));
        store_be32(bytes + at + 4, (uint32_t)length);
        memcpy(bytes + at + 8, create->backing_format, length);
        at += 8 + FORMAT_ROOM + 8; /* the extension that ends them is zeros */
        store_be64(bytes + 8, at);
        store_be32(bytes + 16, (uint32_t)strlen(create->backing));
        memcpy(bytes + at, create->backing, strlen(create->backing));
    }
}

int qcow2_create(struct disk *file, const struct qcow2_create *create)
{
    struct layout layout;
    int error = qcow2_create_check(create);
    if (error) {
        return error;
    }
    ASSERT(!create->backing || strlen(create->backing_format) <= FORMAT_ROOM);
    plan(create, &layout);
    size_t size = (size_t)1 << layout.cluster_bits;
    CLEANUP_BUFFER uint8_t *bytes = qcow2_buffer(size);
    error = write_blocks(file, &layout, bytes);
    if (!error) {
        memset(bytes, 0, size);
        fill_header(create, &layout, bytes);
        error = disk_write(file, 0, bytes, size);
    }
    if (!error) {
        error = disk_flush(file);
    }
    return error ? fail(error, "write an empty image: %s", strerror(-error)) : 0;
}
