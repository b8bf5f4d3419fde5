/*
 * qcow2 images that are hostile, in memory: opened, used, checked, repaired, and used again; or
 * made by us, and then compared with a flat model after the same requests. An input is: one byte of
 * switches, one byte n, n requests of 4 bytes each, and the image.
 * Guards: src/backend/disk/qcow2.c src/backend/disk/qcow2_header.c src/backend/disk/qcow2_map.c
 * src/backend/disk/qcow2_cache.c src/backend/disk/qcow2_refcount.c src/backend/disk/qcow2_read.c
 * src/backend/disk/qcow2_write.c src/backend/disk/qcow2_commit.c src/backend/disk/qcow2_check.c
 * src/backend/disk/qcow2_repair.c src/backend/disk/qcow2_snapshot.c
 * src/backend/disk/qcow2_inflate.c src/backend/disk/qcow2_create.c src/backend/disk/qcow2_resize.c
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk/memory_file.h"
#include "backend/disk/qcow2_internal.h"
#include "base/assert.h"
#include "base/error.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
    SWITCH_OWN = 1, /* an image of our own, with a model */
    SWITCH_READONLY = 2,
    SWITCH_CHECK = 4, /* check and repair before anything else */
    SWITCH_GROW = 8,
    SWITCH_THROUGH = 16,
    SWITCH_SHRINK = 32,
    REQUEST_SIZE = 4,
    LIMIT = 6 << 20, /* of the file */
    MODEL_SIZE = 2 << 20,
    LENGTH_MAX = 64 << 10,
};

struct input {
    uint8_t switches;
    unsigned count;
    const uint8_t *requests, *image;
    size_t image_size;
};

static bool split(const uint8_t *data, size_t size, struct input *ret_input)
{
    if (size < 2 || size - 2 < (size_t)data[1] * REQUEST_SIZE) {
        return false;
    }
    size_t requests = (size_t)data[1] * REQUEST_SIZE;
    *ret_input = (struct input){.switches = data[0],
                                .count = data[1],
                                .requests = data + 2,
                                .image = data + 2 + requests,
                                .image_size = size - 2 - requests};
    return ret_input->image_size <= LIMIT / 2;
}

static struct disk *open_file(struct memory_file *file, const struct input *input, bool repair)
{
    struct disk *disk;
    const struct disk_options options = {
        .format = DISK_FORMAT_QCOW2,
        .synchronous = true,
        .no_backing = true,
        .readonly = input->switches & SWITCH_READONLY && !repair,
        .cache = input->switches & SWITCH_THROUGH ? DISK_CACHE_WRITETHROUGH : DISK_CACHE_WRITEBACK,
        .repair = repair,
    };
    trail_clear();
    int error = qcow2_open(&file->disk, "image", &options, &disk);
    ASSERT(!error || *trail_text());
    return error ? NULL : disk;
}

/* One request by 4 bytes; the model, if there is one, follows. */
static void one_request(struct disk *disk, const uint8_t *bytes, uint8_t *model)
{
    static uint8_t buffer[LENGTH_MAX];
    uint64_t sectors = disk->size / 512, first = load_le16(bytes + 1) % sectors;
    uint64_t count = 1 + bytes[3] % (LENGTH_MAX / 512);
    if (bytes[0] & 0x80) { /* near the end */
        first = sectors - 1 - first;
    }
    count = count < sectors - first ? count : sectors - first;
    struct iovec vector = {.iov_base = buffer, .iov_len = count * 512};
    struct disk_request request = {
        .operation = (enum disk_operation)((bytes[0] & 0x7f) % (DISK_WRITE_ZEROES + 1)),
        .offset = first * 512,
        .length = count * 512,
    };
    bool has_data = request.operation == DISK_READ || request.operation == DISK_WRITE;
    request.vectors = &vector;
    request.vector_count = has_data;
    memset(buffer, bytes[3] ^ bytes[1], count * 512);
    if (request.operation == DISK_FLUSH) {
        request.offset = request.length = 0;
    }
    int error = disk_perform(disk, &request);
    if (!model) {
        return;
    }
    ASSERT(!error);
    uint8_t *at = model + request.offset;
    if (request.operation == DISK_READ) {
        ASSERT(!memcmp(buffer, at, request.length));
    } else if (request.operation == DISK_WRITE) {
        memcpy(at, buffer, request.length);
    } else if (request.operation == DISK_WRITE_ZEROES) {
        memset(at, 0, request.length);
    } else if (request.operation == DISK_DISCARD) {
        ASSERT(!disk_read(disk, request.offset, buffer, request.length));
        for (size_t i = 0; i < request.length; i++) {
            ASSERT(buffer[i] == 0 || buffer[i] == at[i]);
        }
        memcpy(at, buffer, request.length);
    }
}

static void use(struct disk *disk, const struct input *input, uint8_t *model)
{
    uint64_t done = 0;
    for (unsigned i = 0; i < input->count && disk->size; i++) {
        one_request(disk, input->requests + i * REQUEST_SIZE, model);
    }
    for (unsigned i = 0; i < 64 && done < disk->size; i++) {
        struct disk_extent extent;
        if (disk_extent(disk, done, disk->size - done, &extent)) {
            break;
        }
        ASSERT(extent.length && extent.length <= disk->size - done);
        done += extent.length;
    }
}

static void assert_sound(struct memory_file *file, const struct input *input)
{
    struct qcow2_report report;
    struct memory_file *copy = memory_file_new(file->bytes, file->end, LIMIT, false);
    struct disk *disk = open_file(copy, input, true);
    ASSERT(disk && !qcow2_check(disk, false, NULL, NULL, &report));
    ASSERT(!report.errors && !report.bad && !report.leaks);
    disk_free(disk);
}

/* The bytes of the image choose its geometry. */
static void with_model(const struct input *input)
{
    uint8_t bytes[4] = {0};
    memcpy(bytes, input->image, input->image_size < 4 ? input->image_size : 4);
    struct qcow2_create create = {
        .size = ((uint64_t)bytes[0] + 1) * 512 * (1 + bytes[1] % 16),
        .cluster_size = 512u << bytes[2] % 8,
        .version = 2 + (bytes[3] & 1),
        .lazy_refcounts = bytes[3] & 2,
        .refcount_bits = 1u << (bytes[3] >> 2) % 7,
    };
    struct memory_file *file = memory_file_new(NULL, 0, LIMIT, false);
    struct disk *disk = NULL;
    if (!qcow2_create(&file->disk, &create)) {
        disk = open_file(file, &(struct input){0}, false);
        ASSERT(disk);
    } else {
        disk_free(&file->disk);
        return;
    }
    uint8_t *model = calloc(1, 2 * MODEL_SIZE), *now = malloc(2 * MODEL_SIZE);
    ASSERT(model && now && disk->size <= MODEL_SIZE);
    use(disk, input, model);
    if (input->switches & SWITCH_GROW) {
        ASSERT(!qcow2_resize(disk, disk->size + 65536 + 512));
        use(disk, input, model);
    }
    if (input->switches & SWITCH_SHRINK && disk->size > 1024) {
        uint64_t after = align_down(disk->size / 2, 512);
        ASSERT(!qcow2_resize(disk, after));
        ASSERT(!qcow2_resize(disk, after + 2048));
        memset(model + after, 0, 2 * MODEL_SIZE - after);
        use(disk, input, model);
    }
    ASSERT(!disk_read(disk, 0, now, disk->size));
    ASSERT(!memcmp(now, model, disk->size));
    ASSERT(!qcow2_finish(qcow2_of(disk)));
    assert_sound(file, input);
    disk_free(disk);
    free(model);
    free(now);
}

/* Check, and repair; what a repair leaves is sound but for snapshots, which are not changed. */
static void check(struct memory_file *file, const struct input *input)
{
    struct qcow2_report report;
    struct disk *disk = open_file(file, input, true);
    if (!disk) {
        return;
    }
    bool has_snapshots = qcow2_of(disk)->header.snapshot_count;
    if (!qcow2_check(disk, true, NULL, NULL, &report) && !has_snapshots &&
        !qcow2_check(disk, false, NULL, NULL, &report)) {
        ASSERT(!report.errors && !report.bad && !report.leaks);
    }
    disk_free(disk);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input;
    if (!split(data, size, &input)) {
        return 0;
    }
    if (input.switches & SWITCH_OWN) {
        with_model(&input);
        return 0;
    }
    if (input.switches & SWITCH_CHECK) {
        check(memory_file_new(input.image, input.image_size, LIMIT, false), &input);
    }
    struct memory_file *file = memory_file_new(input.image, input.image_size, LIMIT, false);
    struct disk *disk = open_file(file, &input, false);
    if (disk) {
        use(disk, &input, NULL);
        if (input.switches & SWITCH_GROW && !disk->readonly) {
            int error = qcow2_resize(disk, align_down(disk->size, 512) + MIB(1));
            ASSERT(!error || *trail_text());
            use(disk, &input, NULL);
        }
        disk_free(disk);
    }
    trail_clear();
    return 0;
}
