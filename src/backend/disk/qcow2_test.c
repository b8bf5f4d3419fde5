/*
 * qcow2 images against a flat model: random requests of all kinds, on one thread and many at once,
 * in every geometry, over a backing file or not; closed, opened and checked in between.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/disk/image.h"
#include "backend/disk/qcow2_internal.h"
#include "base/bytes.h"
#include "base/error.h"

enum { SIZE = 3 << 20, BASE_SIZE = 2 << 20, LENGTH_MAX = 200 << 10 };

static char folder[64], image[80], base[80];
static uint8_t model[SIZE + (1 << 20)], base_bytes[BASE_SIZE];
static uint64_t random_state;

#define give_up(...)                                                                               \
    do {                                                                                           \
        print_error(__VA_ARGS__);                                                                  \
        print_error("\n");                                                                         \
        assert_true(false);                                                                        \
    } while (0)

static uint32_t chance(uint32_t below)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(random_state >> 33) % below;
}

static int set_up(void **state)
{
    snprintf(folder, sizeof folder, "/tmp/qcow2_test.XXXXXX");
    if (!mkdtemp(folder)) {
        return 1;
    }
    snprintf(image, sizeof image, "%s/image", folder);
    snprintf(base, sizeof base, "%s/base", folder);
    random_state = 1;
    for (size_t i = 0; i < sizeof base_bytes; i++) {
        base_bytes[i] = (uint8_t)(i / 512 + i);
    }
    int fd = open(base, O_WRONLY | O_CREAT | O_EXCL, 0600);
    bool bad = fd < 0 || write(fd, base_bytes, sizeof base_bytes) != sizeof base_bytes;
    close(fd);
    return bad;
}

static int tear_down(void **state)
{
    unlink(image);
    unlink(base);
    return rmdir(folder);
}

static struct disk *open_it(bool with_base, bool synchronous, enum disk_cache cache)
{
    struct disk *disk = NULL;
    const char *backing[] = {base};
    const struct disk_options options = {.format = DISK_FORMAT_QCOW2,
                                         .cache = cache,
                                         .backing = backing,
                                         .backing_count = with_base,
                                         .synchronous = synchronous};
    trail_clear();
    if (disk_open(image, &options, &disk)) {
        give_up("open: %s", trail_text());
    }
    return disk;
}

static void create_it(struct qcow2_create create, bool with_base)
{
    create.size = create.size ? create.size : SIZE;
    create.backing = with_base ? base : NULL;
    create.backing_format = "raw";
    const struct disk_image_new new = {
        .format = DISK_FORMAT_QCOW2, .replace = true, .qcow2 = create};
    trail_clear();
    if (disk_image_create(image, &new)) {
        give_up("create: %s", trail_text());
    }
    memset(model, 0, sizeof model);
    if (with_base) {
        memcpy(model, base_bytes, sizeof base_bytes);
    }
}

static struct qcow2_report check_it(bool repair)
{
    struct disk *disk = NULL;
    struct qcow2_report report = {0};
    const struct disk_options options = {.format = DISK_FORMAT_QCOW2,
                                         .synchronous = true,
                                         .repair = true,
                                         .no_backing = true,
                                         .readonly = !repair};
    trail_clear();
    if (disk_open(image, &options, &disk) || qcow2_check(disk, repair, NULL, NULL, &report)) {
        give_up("check: %s", trail_text());
    }
    disk_free(disk);
    return report;
}

static void assert_sound(void)
{
    struct qcow2_report report = check_it(false);
    assert_int_equal(report.errors, 0);
    assert_int_equal(report.bad, 0);
    assert_int_equal(report.leaks, 0);
    assert_false(report.was_dirty);
}

static void assert_contents(struct disk *disk)
{
    static uint8_t bytes[sizeof model];
    assert_true(disk->size <= sizeof model);
    assert_int_equal(disk_read(disk, 0, bytes, disk->size), 0);
    for (size_t i = 0; i < disk->size; i++) {
        if (bytes[i] != model[i]) {
            give_up("byte %zu is %u instead of %u", i, bytes[i], model[i]);
        }
    }
}

/* One random request, and what it does to the model. */
struct step {
    struct disk_request request;
    struct iovec vectors[3];
    uint8_t *bytes;
};

static void make_step(struct step *step, uint64_t size)
{
    static const enum disk_operation kinds[] = {DISK_READ,  DISK_READ,    DISK_WRITE,
                                                DISK_WRITE, DISK_WRITE,   DISK_WRITE,
                                                DISK_FLUSH, DISK_DISCARD, DISK_WRITE_ZEROES};
    enum disk_operation operation = kinds[chance(ARRAY_SIZE(kinds))];
    uint64_t sectors = size / 512, first = chance((uint32_t)sectors);
    uint64_t count = 1 + chance(chance(4) ? 16 : LENGTH_MAX / 512);
    count = count < sectors - first ? count : sectors - first;
    uint64_t length = operation == DISK_FLUSH ? 0 : count * 512;
    bool has_data = operation == DISK_READ || operation == DISK_WRITE;
    *step = (struct step){.request = {.operation = operation,
                                      .offset = first * 512,
                                      .length = length,
                                      .vectors = step->vectors}};
    if (!has_data) {
        return;
    }
    step->bytes = aligned_alloc(4096, align_up(length, 4096));
    assert_non_null(step->bytes);
    uint8_t seed = (uint8_t)(1 + chance(255));
    for (uint64_t i = 0; i < length; i++) {
        step->bytes[i] = (uint8_t)(seed + i / 512);
    }
    uint64_t cut = chance((uint32_t)length + 1); /* seldom aligned for direct I/O */
    cut = chance(2) ? cut : cut / 512 * 512;
    step->vectors[0] = (struct iovec){step->bytes, cut};
    step->vectors[1] = (struct iovec){step->bytes + cut, 0};
    step->vectors[2] = (struct iovec){step->bytes + cut, length - cut};
    step->request.vector_count = 3;
}

/* What was discarded reads as zeros, or as before: the model learns which. */
static void settle_step(struct disk *disk, const struct step *step)
{
    const struct disk_request *request = &step->request;
    uint8_t *at = model + request->offset;
    switch (request->operation) {
    case DISK_READ:
        assert_memory_equal(step->bytes, at, request->length);
        break;
    case DISK_WRITE:
        memcpy(at, step->bytes, request->length);
        break;
    case DISK_WRITE_ZEROES:
        memset(at, 0, request->length);
        break;
    case DISK_DISCARD: {
        static uint8_t now[LENGTH_MAX];
        assert_int_equal(disk_read(disk, request->offset, now, request->length), 0);
        for (uint64_t i = 0; i < request->length; i++) {
            assert_true(now[i] == 0 || now[i] == at[i]);
        }
        memcpy(at, now, request->length);
        break;
    }
    case DISK_FLUSH:
        break;
    }
}

static void some_steps(struct disk *disk, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct step step;
        make_step(&step, disk->size);
        assert_int_equal(disk_perform(disk, &step.request), 0);
        settle_step(disk, &step);
        free(step.bytes);
    }
}

static const struct qcow2_create geometries[] = {
    {.version = 3},
    {.version = 2},
    {.version = 3, .cluster_size = 512},
    {.version = 3, .cluster_size = 512, .refcount_bits = 64},
    {.version = 2, .cluster_size = 1024},
    {.version = 3, .cluster_size = 4096, .refcount_bits = 1},
    {.version = 3, .cluster_size = 4096, .refcount_bits = 2, .lazy_refcounts = true},
    {.version = 3, .cluster_size = 8192, .refcount_bits = 4},
    {.version = 3, .cluster_size = 16384, .refcount_bits = 8},
    {.version = 3, .cluster_size = 32768, .refcount_bits = 32},
    {.version = 3, .cluster_size = 2 << 20, .lazy_refcounts = true},
};

static void requests_agree_with_a_model(void **state)
{
    for (size_t i = 0; i < 2 * ARRAY_SIZE(geometries); i++) {
        bool with_base = i % 2;
        create_it(geometries[i / 2], with_base);
        assert_sound();
        for (unsigned round = 0; round < 3; round++) {
            struct disk *disk = open_it(with_base, true, DISK_CACHE_WRITEBACK);
            assert_contents(disk);
            some_steps(disk, 120);
            assert_contents(disk);
            disk_free(disk);
            assert_sound();
        }
    }
}

/* Does the file system go past the page cache, in sectors? */
static bool can_be_direct(void)
{
    struct disk *disk;
    const struct disk_options options = {.cache = DISK_CACHE_NONE};
    int error = disk_open(base, &options, &disk);
    if (!error) {
        disk_free(disk);
    }
    return !error;
}

/* Many requests at once, each in a part of the disk of its own so that the model knows the end. */
enum { LANES = 16 };
struct lane {
    struct step step;
    struct disk *disk;
    pthread_mutex_t *lock;
    pthread_cond_t *changed;
    unsigned *running;
    int result;
};

static void lane_done(struct disk_request *request, int result)
{
    struct lane *lane =
        CONTAINER_OF(CONTAINER_OF(request, struct step, request), struct lane, step);
    pthread_mutex_lock(lane->lock);
    lane->result = result;
    --*lane->running;
    pthread_cond_signal(lane->changed);
    pthread_mutex_unlock(lane->lock);
}

static void rounds_of_many(struct disk *disk, unsigned rounds)
{
    static struct lane lanes[LANES];
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
    uint64_t part = disk->size / LANES / 512 * 512;
    for (unsigned round = 0; round < rounds; round++) {
        unsigned running = LANES;
        for (unsigned i = 0; i < LANES; i++) {
            lanes[i] = (struct lane){
                .disk = disk, .lock = &lock, .changed = &changed, .running = &running};
            make_step(&lanes[i].step, part);
            lanes[i].step.request.vectors = lanes[i].step.vectors;
            lanes[i].step.request.offset += part * i;
            lanes[i].step.request.done = lane_done;
        }
        for (unsigned i = 0; i < LANES; i++) {
            assert_int_equal(disk_submit(disk, &lanes[i].step.request), 0);
        }
        pthread_mutex_lock(&lock);
        while (running) {
            pthread_cond_wait(&changed, &lock);
        }
        pthread_mutex_unlock(&lock);
        disk_drain(disk);
        for (unsigned i = 0; i < LANES; i++) {
            assert_int_equal(lanes[i].result, 0);
            settle_step(disk, &lanes[i].step);
            free(lanes[i].step.bytes);
        }
    }
}

static void many_at_once(void **state)
{
    static const enum disk_cache caches[] = {DISK_CACHE_WRITEBACK, DISK_CACHE_UNSAFE,
                                             DISK_CACHE_WRITETHROUGH, DISK_CACHE_NONE,
                                             DISK_CACHE_DIRECTSYNC};
    unsigned count = can_be_direct() ? 5 : 3;
    for (size_t i = 0; i < 2 * ARRAY_SIZE(geometries); i++) {
        bool with_base = i % 2;
        create_it(geometries[i / 2], with_base);
        for (unsigned round = 0; round < 2; round++) {
            struct disk *disk = open_it(with_base, false, caches[(i + round) % count]);
            rounds_of_many(disk, 8);
            assert_contents(disk);
            disk_free(disk);
            assert_sound();
        }
    }
}

/* Longer than one refcount table of 512 bytes counts: it is replaced by a larger one, twice. */
static void refcount_table_grows(void **state)
{
    create_it((struct qcow2_create){.size = 64 << 20, .cluster_size = 512, .refcount_bits = 64},
              false);
    struct disk *disk = open_it(false, true, DISK_CACHE_UNSAFE);
    uint64_t before = qcow2_of(disk)->reftable_count;
    static uint8_t bytes[1 << 20];
    for (unsigned i = 0; i < 24; i++) {
        memset(bytes, (int)(i + 1), sizeof bytes);
        assert_int_equal(disk_write(disk, (uint64_t)i << 20, bytes, sizeof bytes), 0);
    }
    assert_true(qcow2_of(disk)->reftable_count > before);
    disk_free(disk);
    assert_sound();
    disk = open_it(false, true, DISK_CACHE_UNSAFE);
    for (unsigned i = 0; i < 24; i++) {
        assert_int_equal(disk_read(disk, (uint64_t)i << 20, bytes, sizeof bytes), 0);
        assert_int_equal(bytes[0], i + 1);
        assert_int_equal(bytes[sizeof bytes - 1], i + 1);
    }
    disk_free(disk);
}

static void discarded_space_is_used_again(void **state)
{
    static uint8_t bytes[1 << 20];
    memset(bytes, 7, sizeof bytes);
    create_it((struct qcow2_create){0}, false);
    struct disk *disk = open_it(false, true, DISK_CACHE_WRITEBACK);
    assert_int_equal(disk_write(disk, 0, bytes, sizeof bytes), 0);
    uint64_t end = disk->ops == NULL ? 0 : qcow2_of(disk)->end;
    for (unsigned i = 0; i < 20; i++) {
        const struct disk_request discard = {.operation = DISK_DISCARD, .length = sizeof bytes};
        assert_int_equal(disk_perform(disk, &discard), 0);
        assert_int_equal(disk_flush(disk), 0);
        assert_int_equal(disk_write(disk, 1 << 20, bytes, sizeof bytes), 0);
        const struct disk_request zeroes = {
            .operation = DISK_WRITE_ZEROES, .offset = 1 << 20, .length = sizeof bytes};
        assert_int_equal(disk_perform(disk, &zeroes), 0);
        assert_int_equal(disk_flush(disk), 0);
        assert_int_equal(disk_write(disk, 0, bytes, sizeof bytes), 0);
    }
    assert_true(qcow2_of(disk)->end <= end + 32);
    disk_free(disk);
    assert_sound();
}

static void resizing(void **state)
{
    for (size_t i = 0; i < 2 * ARRAY_SIZE(geometries); i++) {
        bool with_base = i % 2;
        struct qcow2_create create = geometries[i / 2];
        create.size = 1 << 20; /* smaller than the backing file */
        create_it(create, with_base);
        memset(model + (1 << 20), 0, sizeof model - (1 << 20));
        struct disk *disk = open_it(with_base, true, DISK_CACHE_WRITEBACK);
        some_steps(disk, 40);
        trail_clear();
        if (qcow2_resize(disk, SIZE + (1 << 20))) {
            give_up("grow: %s", trail_text());
        }
        assert_contents(disk);
        some_steps(disk, 40);
        assert_int_equal(qcow2_resize(disk, 100), -EINVAL);
        uint64_t small = 512 * 3001;
        int error = qcow2_resize(disk, small);
        assert_int_equal(error, create.version == 2 && with_base ? -ENOTSUP : 0);
        if (!error) {
            memset(model + small, 0, sizeof model - small);
            assert_contents(disk);
            assert_int_equal(qcow2_resize(disk, SIZE), 0);
        }
        assert_contents(disk);
        disk_free(disk);
        assert_sound();
        disk = open_it(with_base, true, DISK_CACHE_WRITEBACK);
        assert_contents(disk);
        disk_free(disk);
    }
}

static void change_header(unsigned at, uint64_t value, unsigned bytes)
{
    uint8_t swapped[8];
    store_be64(swapped, value);
    int fd = open(image, O_WRONLY);
    assert_int_equal(pwrite(fd, swapped + 8 - bytes, bytes, at), bytes);
    close(fd);
}

static void refuse(const char *part_of_sentence, bool readonly)
{
    struct disk *disk;
    const struct disk_options options = {
        .format = DISK_FORMAT_QCOW2, .synchronous = true, .readonly = readonly};
    trail_clear();
    int error = disk_open(image, &options, &disk);
    assert_true(error < 0);
    if (!strstr(trail_text(), part_of_sentence)) {
        give_up("'%s' lacks '%s'", trail_text(), part_of_sentence);
    }
}

static void what_is_not_supported_is_refused(void **state)
{
    static const struct {
        unsigned at, bytes;
        uint64_t value;
        const char *part_of_sentence;
    } table[] = {
        {0, 4, 1, "no qcow2 image"},
        {4, 4, 1, "version 1"},
        {4, 4, 4, "version 4"},
        {20, 4, 8, "512 bytes to 2 MiB"},
        {20, 4, 22, "512 bytes to 2 MiB"},
        {24, 8, UINT64_MAX, "beyond what can be addressed"},
        {24, 8, UINT64_C(1) << 50, "L1 table is too small"},
        {24, 8, UINT64_C(1) << 60, "L1 table is larger"},
        {32, 4, 2, "encrypted"},
        {36, 4, UINT32_MAX, "L1 table is larger"},
        {36, 4, 0, "L1 table is too small"},
        {40, 8, 1, "impossible place"},
        {40, 8, UINT64_C(1) << 55, "behind its end"},
        {48, 8, 0, "impossible place"},
        {48, 8, 65536 * 3, "two of its tables"},
        {56, 4, 0, "refcount table is empty"},
        {56, 4, UINT32_MAX, "larger than 8 MiB"},
        {60, 4, 1 << 20, "snapshot table"},
        {72, 8, 2, "marked as corrupt"},
        {72, 8, 4, "external data file"},
        {72, 8, 8, "contradicts itself"},
        {72, 8, 16, "subclusters"},
        {72, 8, UINT64_C(1) << 40, "'bit 40'"},
        {88, 8, 1, "dirty bitmaps"},
        {96, 4, 7, "wider than 64 bits"},
        {100, 4, 100, "impossible length"},
        {100, 4, UINT32_MAX, "impossible length"},
        {8, 8, 65530, "backing file is not in its header"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        create_it((struct qcow2_create){0}, false);
        change_header(16, 100, 4);
        change_header(table[i].at, table[i].value, table[i].bytes);
        refuse(table[i].part_of_sentence, false);
    }
    create_it((struct qcow2_create){0}, true);
    refuse("backing=FILE", true);
}

/* What a lost cluster, a wrong count and a table that is no table become. */
static void damage_is_found_and_repaired(void **state)
{
    static uint8_t bytes[1 << 20];
    memset(bytes, 5, sizeof bytes);
    create_it((struct qcow2_create){0}, false);
    struct disk *disk = open_it(false, true, DISK_CACHE_WRITEBACK);
    assert_int_equal(disk_write(disk, 0, bytes, sizeof bytes), 0);
    const struct qcow2 *q = qcow2_of(disk);
    uint64_t table = q->l1[0] & QCOW2_OFFSET_MASK, block = q->reftable[0];
    disk_free(disk);
    assert_sound();
    change_header((unsigned)block + 2 * 6, 0, 2);   /* a cluster that counts as free */
    change_header((unsigned)block + 2 * 500, 1, 2); /* one that counts as used */
    change_header((unsigned)table + 8, 12345, 8);   /* an entry that cannot be */
    struct qcow2_report report = check_it(false);
    assert_int_equal(report.errors, 1);
    assert_int_equal(report.leaks, 2);
    assert_int_equal(report.bad, 1);
    assert_false(report.repaired);
    assert_true(check_it(true).repaired);
    assert_sound();
    memset(model, 5, sizeof bytes);
    memset(model + 65536, 0, 65536);
    disk = open_it(false, true, DISK_CACHE_WRITEBACK);
    assert_contents(disk);
    some_steps(disk, 50);
    disk_free(disk);
    assert_sound();
}

/* Found while it runs: the mark is in the file, reading goes on, writing does not. */
static void damage_is_marked(void **state)
{
    static uint8_t bytes[65536];
    create_it((struct qcow2_create){0}, false);
    struct disk *disk = open_it(false, true, DISK_CACHE_WRITEBACK);
    assert_int_equal(disk_write(disk, 0, bytes, sizeof bytes), 0);
    uint64_t table = qcow2_of(disk)->l1[0] & QCOW2_OFFSET_MASK;
    disk_free(disk);
    change_header((unsigned)table, QCOW2_COPIED | table, 8); /* guest data in the table itself */
    disk = open_it(false, true, DISK_CACHE_WRITEBACK);
    assert_int_equal(disk_write(disk, 512, bytes, 512), -EIO);
    assert_int_equal(disk_write(disk, 1 << 20, bytes, 512), -EIO);
    assert_int_equal(disk_read(disk, 1 << 20, bytes, 512), 0);
    disk_free(disk);
    refuse("marked as corrupt", false);
    assert_true(check_it(true).repaired);
    disk = open_it(false, true, DISK_CACHE_WRITEBACK);
    assert_int_equal(disk_write(disk, 512, bytes, 512), 0);
    disk_free(disk);
    assert_sound();
}

int main(void)
{
#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(requests_agree_with_a_model),
        TEST(many_at_once),
        TEST(refcount_table_grows),
        TEST(discarded_space_is_used_again),
        TEST(resizing),
        TEST(what_is_not_supported_is_refused),
        TEST(damage_is_found_and_repaired),
        TEST(damage_is_marked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
