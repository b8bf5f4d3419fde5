/* Raw images: opening, locking, foreign formats, and requests on both ways of being asynchronous.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/disk/magic.h"
#include "backend/disk/raw_internal.h"
#include "base/bytes.h"

enum { SIZE = 1 << 20, CHUNK = 65536 };

static char path[64];

static int set_up(void **state)
{
    snprintf(path, sizeof path, "/tmp/raw_test.XXXXXX");
    int fd = mkstemp(path);
    int bad = fd < 0 || ftruncate(fd, SIZE);
    close(fd);
    return bad;
}

static int tear_down(void **state)
{
    return unlink(path);
}

/* A request that a test waits for. */
struct wait {
    struct disk_request request;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool is_done;
    int result;
};

static void note_done(struct disk_request *request, int result)
{
    struct wait *wait = CONTAINER_OF(request, struct wait, request);
    pthread_mutex_lock(&wait->lock);
    wait->is_done = true;
    wait->result = result;
    pthread_cond_signal(&wait->changed);
    pthread_mutex_unlock(&wait->lock);
}

static bool want_unmap;

static int run(struct disk *disk, enum disk_operation operation, uint64_t offset, uint64_t length,
               struct iovec *vectors, unsigned count)
{
    struct wait wait = {
        .request = {.operation = operation,
                    .offset = offset,
                    .length = length,
                    .vectors = vectors,
                    .vector_count = count,
                    .unmap = want_unmap,
                    .done = note_done},
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .changed = PTHREAD_COND_INITIALIZER,
    };
    int error = disk_submit(disk, &wait.request);
    if (error) {
        return error;
    }
    pthread_mutex_lock(&wait.lock);
    while (!wait.is_done) {
        pthread_cond_wait(&wait.changed, &wait.lock);
    }
    pthread_mutex_unlock(&wait.lock);
    disk_drain(disk); /* the backend has let go of it */
    return wait.result;
}

static int run_one(struct disk *disk, enum disk_operation operation, uint64_t offset,
                   uint8_t *bytes, size_t length)
{
    struct iovec vector = {.iov_base = bytes, .iov_len = length};
    return run(disk, operation, offset, length, &vector, 1);
}

static void requests_do_what_they_say(enum raw_engine engine)
{
    static uint8_t out[CHUNK], in[CHUNK];
    struct disk *disk;
    assert_int_equal(raw_open(path, false, false, engine, &disk), 0);
    assert_int_equal(disk->size, SIZE);
    for (size_t i = 0; i < sizeof out; i++) {
        out[i] = (uint8_t)(i * 7 + i / 256);
    }
    struct iovec pieces[3] = {{out, 100}, {out + 100, 0}, {out + 100, CHUNK - 100}};
    assert_int_equal(run(disk, DISK_WRITE, 4096, CHUNK, pieces, 3), 0);
    assert_int_equal(run(disk, DISK_FLUSH, 0, 0, NULL, 0), 0);
    assert_int_equal(run_one(disk, DISK_READ, 4096, in, CHUNK), 0);
    assert_memory_equal(in, out, CHUNK);
    assert_int_equal(run(disk, DISK_WRITE_ZEROES, 8192, 4096, NULL, 0), 0);
    assert_int_equal(run(disk, DISK_DISCARD, 4096, 4096, NULL, 0), 0);
    assert_int_equal(run_one(disk, DISK_READ, 8192, in, 8192), 0);
    static const uint8_t zeros[4096];
    assert_memory_equal(in, zeros, 4096);
    assert_memory_equal(in + 4096, out + 8192, 4096);
    disk_free(disk);
}

/* Zeros take no space, if that is wanted; on a file system that can tell. */
static void zeroes_give_space_back(void **state)
{
    static const enum raw_engine engines[] = {RAW_AUTO, RAW_WORKER_THREADS};
    for (size_t e = 0; e < ARRAY_SIZE(engines); e++) {
        static uint8_t bytes[CHUNK];
        struct disk *disk;
        struct stat before, after;
        assert_int_equal(raw_open(path, false, false, engines[e], &disk), 0);
        memset(bytes, 0x55, sizeof bytes);
        assert_int_equal(run_one(disk, DISK_WRITE, 0, bytes, sizeof bytes), 0);
        assert_int_equal(run(disk, DISK_FLUSH, 0, 0, NULL, 0), 0);
        assert_int_equal(stat(path, &before), 0);
        want_unmap = true;
        int r = run(disk, DISK_WRITE_ZEROES, 0, CHUNK, NULL, 0);
        want_unmap = false;
        assert_int_equal(r, 0);
        assert_int_equal(stat(path, &after), 0);
        assert_true(after.st_blocks < before.st_blocks);
        assert_int_equal(run_one(disk, DISK_READ, 0, bytes, sizeof bytes), 0);
        static const uint8_t zeros[CHUNK];
        assert_memory_equal(bytes, zeros, CHUNK);
        disk_free(disk);
    }
}

static void ring_does_requests(void **state)
{
    struct disk *disk;
    if (raw_open(path, false, false, RAW_RING, &disk)) {
        print_message("SKIPPED: this host does not allow io_uring\n");
        skip();
    }
    disk_free(disk);
    requests_do_what_they_say(RAW_RING);
}

static void workers_do_requests(void **state)
{
    requests_do_what_they_say(RAW_WORKER_THREADS);
}

/* Many at once, from one thread, half of them held back; drain waits for all of them. */
static void many_requests(void **state)
{
    enum { COUNT = 500 };
    static struct wait waits[COUNT];
    static uint8_t bytes[COUNT][512];
    static struct iovec vectors[COUNT];
    static const enum raw_engine engines[] = {RAW_AUTO, RAW_WORKER_THREADS};
    for (size_t e = 0; e < ARRAY_SIZE(engines); e++) {
        struct disk *disk;
        assert_int_equal(raw_open(path, false, false, engines[e], &disk), 0);
        disk_hold(disk);
        for (unsigned i = 0; i < COUNT; i++) {
            if (i == COUNT / 2) {
                disk_release(disk);
            }
            memset(bytes[i], (int)(i + e), sizeof bytes[i]);
            vectors[i] = (struct iovec){bytes[i], sizeof bytes[i]};
            waits[i] = (struct wait){
                .request = {.operation = DISK_WRITE,
                            .offset = 512 * i,
                            .length = 512,
                            .vectors = &vectors[i],
                            .vector_count = 1,
                            .done = note_done},
                .lock = PTHREAD_MUTEX_INITIALIZER,
                .changed = PTHREAD_COND_INITIALIZER,
                .result = -1,
            };
            assert_int_equal(disk_submit(disk, &waits[i].request), 0);
        }
        disk_drain(disk);
        for (unsigned i = 0; i < COUNT; i++) {
            uint8_t byte = 0;
            assert_true(waits[i].is_done);
            assert_int_equal(waits[i].result, 0);
            assert_int_equal(run_one(disk, DISK_READ, 512 * i + 511, &byte, 1), 0);
            assert_int_equal(byte, (uint8_t)(i + e));
        }
        disk_free(disk);
    }
}

/* Each cache mode does what the others do, aligned or not; where direct I/O exists. */
static void all_cache_modes(void **state)
{
    static uint8_t out[CHUNK] __attribute__((aligned(4096))), in[CHUNK];
    static const enum raw_engine engines[] = {RAW_AUTO, RAW_WORKER_THREADS, RAW_SYNCHRONOUS};
    for (unsigned i = 0; i < 3 * (DISK_CACHE_UNSAFE + 1); i++) {
        const struct disk_options options = {.cache = (enum disk_cache)(i / 3)};
        struct disk *disk;
        int error = raw_open_file(path, &options, false, engines[i % 3], &disk);
        bool is_direct = options.cache == DISK_CACHE_NONE || options.cache == DISK_CACHE_DIRECTSYNC;
        if (error == -EINVAL && is_direct) {
            continue; /* not on this file system */
        }
        assert_int_equal(error, 0);
        memset(out, (int)i + 1, sizeof out);
        struct iovec pieces[2] = {{out, 1000}, {out + 1000, CHUNK - 1000}};
        struct disk_request request = {.operation = DISK_WRITE,
                                       .offset = 512 * 3,
                                       .length = CHUNK,
                                       .vectors = pieces,
                                       .vector_count = 2};
        assert_int_equal(disk_perform(disk, &request), 0);
        assert_int_equal(disk_flush(disk), 0);
        assert_int_equal(disk_read(disk, 512 * 3, in, CHUNK), 0);
        assert_memory_equal(in, out, CHUNK);
        if (engines[i % 3] != RAW_SYNCHRONOUS) {
            memset(out, (int)i + 100, sizeof out);
            assert_int_equal(run(disk, DISK_WRITE, 4096, CHUNK, pieces, 2), 0);
            assert_int_equal(run_one(disk, DISK_WRITE, 4096 + CHUNK, out, CHUNK), 0);
            assert_int_equal(run(disk, DISK_FLUSH, 0, 0, NULL, 0), 0);
            assert_int_equal(run_one(disk, DISK_READ, 4096, in, CHUNK), 0);
            assert_memory_equal(in, out, CHUNK);
            assert_int_equal(run_one(disk, DISK_READ, 4096 + CHUNK, in + 1, CHUNK - 512), 0);
            assert_memory_equal(in + 1, out, CHUNK - 512);
            assert_int_equal(run(disk, DISK_WRITE_ZEROES, 4096, 8192, NULL, 0), 0);
            assert_int_equal(run_one(disk, DISK_READ, 8192, in, 512), 0);
            assert_int_equal(in[0] | in[511], 0);
        }
        disk_free(disk);
    }
}

static void bad_requests_are_refused(void **state)
{
    uint8_t byte = 0;
    struct disk *disk;
    assert_int_equal(disk_raw_open(path, true, false, &disk), 0);
    assert_int_equal(run_one(disk, DISK_READ, SIZE, &byte, 1), -EINVAL);
    assert_int_equal(run_one(disk, DISK_READ, UINT64_MAX, &byte, 1), -EINVAL);
    assert_int_equal(run_one(disk, DISK_WRITE, 0, &byte, 1), -EROFS);
    assert_int_equal(run(disk, DISK_DISCARD, 0, 512, NULL, 0), -EROFS);
    assert_int_equal(run(disk, DISK_FLUSH, 0, 0, NULL, 0), 0);
    disk_free(disk);
}

/* The host takes the file away below us: an error, each time, and no hang. */
static void cut_file_is_an_error(void **state)
{
    static uint8_t bytes[8192];
    static const enum raw_engine engines[] = {RAW_AUTO, RAW_WORKER_THREADS};
    for (size_t e = 0; e < ARRAY_SIZE(engines); e++) {
        struct disk *disk;
        assert_int_equal(truncate(path, SIZE), 0);
        assert_int_equal(raw_open(path, false, false, engines[e], &disk), 0);
        assert_int_equal(truncate(path, 4096 + 1000), 0);
        assert_int_equal(run_one(disk, DISK_READ, 0, bytes, 8192), -EIO);
        assert_int_equal(run_one(disk, DISK_READ, 0, bytes, 4096), 0);
        disk_free(disk);
    }
}

/* A file that may not grow stands for a full disk: partly done, then refused. */
static void full_disk_is_an_error(void **state)
{
    static uint8_t bytes[8192];
    static const enum raw_engine engines[] = {RAW_AUTO, RAW_WORKER_THREADS};
    struct rlimit before, limit;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = 6000;
    for (size_t e = 0; e < ARRAY_SIZE(engines); e++) {
        struct disk *disk;
        assert_int_equal(raw_open(path, false, false, engines[e], &disk), 0);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        int error = run_one(disk, DISK_WRITE, 0, bytes, sizeof bytes);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        assert_int_equal(error, -EFBIG);
        assert_int_equal(run_one(disk, DISK_WRITE, 0, bytes, sizeof bytes), 0);
        disk_free(disk);
    }
}

static void second_writer_is_refused(void **state)
{
    struct disk *first, *second;
    assert_int_equal(disk_raw_open(path, false, false, &first), 0);
    assert_int_equal(disk_raw_open(path, false, false, &second), -EBUSY);
    assert_int_equal(disk_raw_open(path, true, false, &second), -EBUSY);
    disk_free(first);
    assert_int_equal(disk_raw_open(path, true, false, &first), 0);
    assert_int_equal(disk_raw_open(path, true, false, &second), 0);
    disk_free(second);
    assert_int_equal(disk_raw_open(path, false, false, &second), -EBUSY);
    disk_free(first);
}

static void foreign_formats_are_refused(void **state)
{
    static const struct {
        const char *name;
        unsigned offset, length;
        const char *bytes;
    } table[] = {
        {"qcow2", 0, 8, "QFI\xfb\0\0\0\3"}, {"vmdk", 0, 4, "KDMV"},
        {"vdi", 64, 4, "\x7f\x10\xda\xbe"}, {"vhdx", 0, 8, "vhdxfile"},
        {"gzip", 0, 3, "\x1f\x8b\x08"},
    };
    struct disk *disk;
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        uint8_t sector[512] = {0};
        memcpy(sector + table[i].offset, table[i].bytes, table[i].length);
        assert_string_equal(disk_magic(sector, sizeof sector), table[i].name);
        int fd = open(path, O_WRONLY);
        assert_int_equal(write(fd, sector, sizeof sector), sizeof sector);
        close(fd);
        assert_int_equal(disk_raw_open(path, true, false, &disk), -EINVAL);
        assert_int_equal(disk_raw_open(path, true, true, &disk), 0);
        disk_free(disk);
    }
    uint8_t boot_sector[512] = {[0] = 0xeb, [1] = 0x63, [2] = 0x90, [510] = 0x55, [511] = 0xaa};
    assert_null(disk_magic(boot_sector, sizeof boot_sector));
    assert_null(disk_magic(boot_sector, 0));
}

static void what_is_no_disk_is_refused(void **state)
{
    struct disk *disk;
    char fifo[80];
    assert_int_equal(disk_raw_open("/tmp", true, false, &disk), -EINVAL);
    assert_int_equal(disk_raw_open("/dev/null", true, false, &disk), -EINVAL);
    assert_int_equal(disk_raw_open("/nonexistent/disk", true, false, &disk), -ENOENT);
    snprintf(fifo, sizeof fifo, "%s.fifo", path);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(disk_raw_open(fifo, true, false, &disk), -EINVAL);
    unlink(fifo);
    assert_int_equal(truncate(path, 511), 0);
    assert_int_equal(disk_raw_open(path, true, false, &disk), -EINVAL);
    assert_int_equal(truncate(path, 1500), 0);
    assert_int_equal(disk_raw_open(path, true, false, &disk), 0);
    assert_int_equal(disk->size, 1024);
    disk_free(disk);
    disk_free(NULL);
    disk_drain(NULL);
}

/* Give the ring an entry past submit(), as somebody would who has taken over the process. */
static int run_entry(struct raw_disk *raw, void (*prepare)(struct io_uring_sqe *), unsigned flags)
{
    struct wait wait = {
        .request = {.operation = DISK_FLUSH, .done = note_done},
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .changed = PTHREAD_COND_INITIALIZER,
    };
    pthread_mutex_lock(&raw->lock);
    raw->in_flight++;
    struct io_uring_sqe *entry = io_uring_get_sqe(&raw->ring);
    prepare(entry);
    io_uring_sqe_set_flags(entry, flags);
    io_uring_sqe_set_data(entry, &wait.request);
    assert_int_equal(io_uring_submit(&raw->ring), 1);
    pthread_mutex_unlock(&raw->lock);
    disk_drain(&raw->disk);
    assert_true(wait.is_done);
    return wait.result;
}

static void prepare_open(struct io_uring_sqe *entry)
{
    io_uring_prep_openat(entry, AT_FDCWD, path, O_RDONLY, 0);
}

static void prepare_flush(struct io_uring_sqe *entry)
{
    io_uring_prep_fsync(entry, 0, IORING_FSYNC_DATASYNC);
}

/* Only the disk's operations, and only on its file: number 0 of the ring, never a descriptor. */
static void ring_is_restricted(void **state)
{
    struct disk *disk;
    if (raw_open(path, false, false, RAW_RING, &disk)) {
        print_message("SKIPPED: this host does not allow io_uring\n");
        skip();
    }
    struct raw_disk *raw = CONTAINER_OF(disk, struct raw_disk, disk);
    assert_int_equal(run_entry(raw, prepare_flush, IOSQE_FIXED_FILE), 0);
    assert_int_equal(run_entry(raw, prepare_flush, 0), -EACCES);
    assert_int_equal(run_entry(raw, prepare_open, IOSQE_FIXED_FILE), -EACCES);
    assert_int_equal(run_entry(raw, prepare_open, 0), -EACCES);
    disk_free(disk);
}

int main(void)
{
#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(ring_does_requests),          TEST(workers_do_requests),
        TEST(ring_is_restricted),          TEST(many_requests),
        TEST(zeroes_give_space_back),      TEST(all_cache_modes),
        TEST(bad_requests_are_refused),    TEST(cut_file_is_an_error),
        TEST(full_disk_is_an_error),       TEST(second_writer_is_refused),
        TEST(foreign_formats_are_refused), TEST(what_is_no_disk_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
