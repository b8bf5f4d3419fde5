/*
 * mutate SEED COUNT IMAGE...   qcow2 images with random damage, most of it in their tables: each is
 * opened and read, opened and written, checked, repaired and checked again. Each must end in an
 * error with a sentence, or go on; what a repair leaves is sound; no image takes longer than 20
 * seconds or the process beyond 256 MiB. Ends with "N passed, N failed".
 */
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "backend/disk/memory_file.h"
#include "backend/disk/qcow2.h"
#include "base/bytes.h"
#include "base/error.h"

enum { LIMIT = 24 << 20, REQUESTS = 60, LENGTH_MAX = 1 << 17, MEMORY_MAX = 256 << 10 };

static uint64_t random_state;

static uint64_t chance(uint64_t below)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (random_state >> 20) % below;
}

static uint64_t be64(uint64_t value)
{
    return __builtin_bswap64(value);
}

/* What might be believed in place of a table's entry. */
static uint64_t strange_value(uint64_t size)
{
    uint64_t cluster = chance(size / 512 + 2) * 512;
    switch (chance(8)) {
    case 0:
        return 0;
    case 1:
        return UINT64_MAX >> chance(64);
    case 2:
        return cluster | UINT64_C(1) << 63;
    case 3:
        return align_down(cluster, 65536) | UINT64_C(1) << 63;
    case 4:
        return UINT64_C(1) << chance(64);
    case 5:
        return cluster | UINT64_C(1) << 62;
    case 6:
        return cluster;
    }
    return chance(UINT64_MAX);
}

/* Tables have clusters of their own: one is found by chance, and the first one often. */
static void damage(uint8_t *bytes, uint64_t size)
{
    for (uint64_t left = 1 + chance(6); left; left--) {
        uint64_t at = chance(3) ? align_down(chance(size - 8), 8) : chance(112);
        if (chance(2)) { /* where a table begins */
            at = align_down(at, 512) + 8 * chance(8);
        }
        at = at + 8 <= size ? at : 0;
        if (chance(3) == 0) {
            bytes[at] ^= (uint8_t)(1u << chance(8));
            continue;
        }
        store_le64(bytes + at, be64(strange_value(size)));
    }
}

static struct disk *open_image(const uint8_t *bytes, uint64_t size, bool readonly, bool repair)
{
    struct disk *disk;
    const struct disk_options options = {.format = DISK_FORMAT_QCOW2,
                                         .synchronous = true,
                                         .no_backing = true,
                                         .readonly = readonly,
                                         .repair = repair};
    trail_clear();
    struct memory_file *file = memory_file_new(bytes, size, LIMIT, readonly);
    if (qcow2_open(&file->disk, "image", &options, &disk)) {
        return NULL;
    }
    return disk;
}

static void use(struct disk *disk)
{
    static uint8_t buffer[LENGTH_MAX];
    uint64_t sectors = disk->size / 512;
    for (unsigned i = 0; i < REQUESTS && sectors; i++) {
        uint64_t first = chance(sectors), count = 1 + chance(LENGTH_MAX / 512);
        count = count < sectors - first ? count : sectors - first;
        struct iovec vector = {.iov_base = buffer, .iov_len = count * 512};
        struct disk_request request = {.operation =
                                           (enum disk_operation)chance(DISK_WRITE_ZEROES + 1),
                                       .offset = first * 512,
                                       .length = count * 512};
        request.vectors = &vector;
        request.vector_count =
            request.operation == DISK_READ || request.operation == DISK_WRITE ? 1 : 0;
        if (disk_perform(disk, &request)) {
            trail_clear(); /* as it may */
        }
    }
}

static const char *try_image(const uint8_t *bytes, uint64_t size)
{
    struct qcow2_report report;
    struct qcow2_facts facts;
    struct disk *disk = open_image(bytes, size, true, false);
    if (!disk && !*trail_text()) {
        return "an error without a sentence";
    }
    if (disk) {
        use(disk);
        disk_free(disk);
    }
    disk = open_image(bytes, size, false, false);
    if (disk) {
        use(disk);
        disk_free(disk);
    }
    disk = open_image(bytes, size, false, true);
    if (!disk) {
        return NULL;
    }
    const char *wrong = NULL;
    int error = qcow2_check(disk, true, NULL, NULL, &report);
    if (error && !*trail_text()) {
        wrong = "an error of check without a sentence";
    } else if (!error && qcow2_check(disk, false, NULL, NULL, &report)) {
        wrong = "cannot be checked after a repair";
    } else if (!error && qcow2_facts(disk, &facts) && !facts.snapshots &&
               (report.errors || report.leaks || report.bad)) {
        wrong = "is not sound after a repair"; /* of snapshots nothing is changed */
    }
    disk_free(disk);
    return wrong;
}

static uint8_t *load(const char *path, uint64_t *ret_size)
{
    uint8_t *bytes = malloc(LIMIT);
    int fd = open(path, O_RDONLY);
    ssize_t size = fd < 0 || !bytes ? -1 : read(fd, bytes, LIMIT / 2);
    if (size < 512) {
        err(1, "read '%s'", path);
    }
    close(fd);
    *ret_size = (uint64_t)size;
    return bytes;
}

int main(int argc, char **argv)
{
    unsigned long passed = 0, failed = 0, count = argc > 3 ? strtoul(argv[2], NULL, 10) : 0;
    if (argc < 4) {
        errx(2, "mutate SEED COUNT IMAGE...");
    }
    for (unsigned long i = 0; i < count; i++) {
        uint64_t size, seed = strtoull(argv[1], NULL, 10) + i;
        random_state = seed * UINT64_C(0x9e3779b97f4a7c15);
        const char *path = argv[3 + i % (unsigned)(argc - 3)];
        uint8_t *bytes = load(path, &size);
        damage(bytes, size);
        alarm(20);
        const char *wrong = try_image(bytes, size);
        alarm(0);
        free(bytes);
        if (wrong) {
            printf("FAILED seed %llu of %s: %s %s\n", (unsigned long long)seed, path, wrong,
                   trail_text());
        }
        passed += !wrong;
        failed += wrong != NULL;
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    if (usage.ru_maxrss > MEMORY_MAX) {
        printf("FAILED memory: %ld KiB\n", usage.ru_maxrss);
        failed++;
    }
    printf("%lu passed, %lu failed\n", passed, failed);
    return failed != 0;
}
