/*
 * exercise MODEL IMAGE FORMAT SEED COUNT [key=value...]   changes a disk image by random requests,
 * many in flight at once, and a raw file, the model, in the same way: afterwards both have the same
 * contents. What was discarded may read as anything, and is copied to the model as it reads.
 *
 *   backing=[raw:|qcow2:]FILE   as in --disk
 *   cache=MODE
 *   size=BYTES                  only the first BYTES of the disk
 */
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/disk/image.h"
#include "base/bytes.h"
#include "base/error.h"

enum { LANES = 16, LENGTH_MAX = 1 << 18 };

/* Each has a part of the disk of its own, so that what is left there is known. */
struct lane {
    struct disk_request request;
    struct iovec vector;
    uint8_t *bytes;
    uint64_t start, size;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static unsigned running;
static uint64_t random_state;

static uint64_t chance(uint64_t below)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (random_state >> 20) % below;
}

static void lane_done(struct disk_request *request, int result)
{
    if (result) {
        errx(1, "a request of kind %d at %llu failed: %s", request->operation,
             (unsigned long long)request->offset, strerror(-result));
    }
    pthread_mutex_lock(&lock);
    running--;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
}

static void choose(struct lane *lane)
{
    static const enum disk_operation kinds[] = {DISK_READ,  DISK_WRITE,   DISK_WRITE,
                                                DISK_WRITE, DISK_FLUSH,   DISK_WRITE,
                                                DISK_WRITE, DISK_DISCARD, DISK_WRITE_ZEROES};
    enum disk_operation operation = kinds[chance(ARRAY_SIZE(kinds))];
    uint64_t sectors = lane->size / 512, first = chance(sectors);
    uint64_t count = 1 + chance(chance(3) ? 32 : LENGTH_MAX / 512);
    count = count < sectors - first ? count : sectors - first;
    lane->request = (struct disk_request){.operation = operation,
                                          .offset = lane->start + first * 512,
                                          .length = operation == DISK_FLUSH ? 0 : count * 512,
                                          .done = lane_done};
    uint64_t seed = chance(UINT64_MAX);
    for (uint64_t i = 0; i < lane->request.length / 8; i++) {
        store_le64(lane->bytes + i * 8, seed + i);
    }
    lane->vector = (struct iovec){lane->bytes, lane->request.length};
    if (operation == DISK_READ || operation == DISK_WRITE) {
        lane->request.vectors = &lane->vector;
        lane->request.vector_count = 1;
    }
}

static void settle(struct disk *disk, int model, struct lane *lane)
{
    static uint8_t expected[LENGTH_MAX];
    const struct disk_request *request = &lane->request;
    uint64_t length = request->length;
    if (request->operation == DISK_READ) {
        if (pread(model, expected, length, (off_t)request->offset) != (ssize_t)length) {
            err(1, "read the model");
        }
        if (memcmp(expected, lane->bytes, length)) {
            errx(1, "what is read at %llu is wrong", (unsigned long long)request->offset);
        }
        return;
    }
    if (request->operation == DISK_FLUSH) {
        return;
    }
    if (request->operation != DISK_WRITE) {
        memset(lane->bytes, 0, length);
    }
    if (request->operation == DISK_DISCARD &&
        disk_read(disk, request->offset, lane->bytes, length)) {
        errx(1, "read what was discarded: %s", trail_text());
    }
    if (pwrite(model, lane->bytes, length, (off_t)request->offset) != (ssize_t)length) {
        err(1, "write the model");
    }
}

static void round_of(struct disk *disk, int model, struct lane *lanes)
{
    running = LANES;
    for (unsigned i = 0; i < LANES; i++) {
        choose(&lanes[i]);
    }
    for (unsigned i = 0; i < LANES; i++) {
        if (disk_submit(disk, &lanes[i].request)) {
            errx(1, "submit: %s", trail_text());
        }
    }
    pthread_mutex_lock(&lock);
    while (running) {
        pthread_cond_wait(&changed, &lock);
    }
    pthread_mutex_unlock(&lock);
    disk_drain(disk);
    for (unsigned i = 0; i < LANES; i++) {
        settle(disk, model, &lanes[i]);
    }
}

int main(int argc, char **argv)
{
    const char *backing[DISK_BACKING_MAX];
    struct disk_options options = {.backing = backing};
    struct disk *disk;
    uint64_t size = UINT64_MAX;
    if (argc < 6 || disk_format_parse(argv[3], &options.format)) {
        errx(2, "exercise MODEL IMAGE FORMAT SEED COUNT [key=value...]");
    }
    for (int i = 6; i < argc; i++) {
        if (!strncmp(argv[i], "backing=", 8)) {
            backing[options.backing_count++] = argv[i] + 8;
        } else if (!strncmp(argv[i], "size=", 5)) {
            size = strtoull(argv[i] + 5, NULL, 10);
        } else if (strncmp(argv[i], "cache=", 6) || disk_cache_parse(argv[i] + 6, &options.cache)) {
            errx(2, "'%s'? %s", argv[i], trail_text());
        }
    }
    random_state = strtoull(argv[4], NULL, 10);
    int model = open(argv[1], O_RDWR);
    if (model < 0) {
        err(1, "open '%s'", argv[1]);
    }
    if (disk_open(argv[2], &options, &disk)) {
        errx(1, "%s", trail_text());
    }
    size = size < disk->size ? size : disk->size;
    static struct lane lanes[LANES];
    for (unsigned i = 0; i < LANES; i++) {
        lanes[i].size = size / LANES / 512 * 512;
        lanes[i].start = lanes[i].size * i;
        if (posix_memalign((void **)&lanes[i].bytes, 4096, LENGTH_MAX)) {
            errx(1, "no memory");
        }
    }
    for (unsigned long round = strtoul(argv[5], NULL, 10); round; round--) {
        round_of(disk, model, lanes);
    }
    disk_free(disk);
    return 0;
}
