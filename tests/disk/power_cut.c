/*
 * power_cut SEED STATES [FOLDER]   qcow2 images after power cuts. All that a series of random
 * requests does to an image's file is noted; then states of the file are made as a power cut may
 * leave them: everything up to the last flush, and any part of what came later. Each must open,
 * hold what was flushed, and in each other sector what was there or what was written since; and
 * checking it finds nothing but lost space, which a repair gives back. With FOLDER each state is
 * left there as a file, for another program to judge. Ends with "N passed, N failed".
 */
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/disk/memory_file.h"
#include "backend/disk/qcow2.h"
#include "base/bytes.h"
#include "base/error.h"

enum { SIZE = 1 << 20, SECTORS = SIZE / 512, STEPS = 120, LIMIT = 24 << 20, PER_RUN = 25 };

/* What a guest did: from now on these sectors have this tag, or (discard) perhaps. */
struct step {
    enum disk_operation operation;
    uint32_t first, count;
    uint64_t tag;
    size_t begin, end; /* notes of the file before it began, and when it was done */
};

struct run {
    struct qcow2_create create;
    struct memory_file *file;
    void *before;
    uint64_t before_size;
    struct step steps[STEPS];
};

static uint64_t random_state;

static unsigned chance(void *owner, unsigned below)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (unsigned)(random_state >> 33) % below;
}

static struct disk *open_image(struct memory_file *file, bool repair)
{
    struct disk *disk;
    const struct disk_options options = {
        .format = DISK_FORMAT_QCOW2, .synchronous = true, .repair = repair};
    trail_clear();
    if (qcow2_open(&file->disk, "image", &options, &disk)) {
        return NULL;
    }
    return disk;
}

static void choose(struct step *step, uint64_t tag)
{
    static const enum disk_operation kinds[] = {DISK_WRITE, DISK_WRITE,   DISK_WRITE,
                                                DISK_WRITE, DISK_DISCARD, DISK_WRITE_ZEROES,
                                                DISK_FLUSH};
    *step = (struct step){.operation = kinds[chance(NULL, ARRAY_SIZE(kinds))],
                          .first = chance(NULL, SECTORS)};
    uint32_t left = SECTORS - step->first, most = chance(NULL, 4) ? 24 : 400;
    step->count = 1 + chance(NULL, most < left ? most : left);
    step->tag = step->operation == DISK_WRITE ? tag : 0;
}

static void carry_out(struct disk *disk, struct step *step)
{
    static uint64_t words[SIZE / 8];
    struct iovec vector = {.iov_base = words, .iov_len = (size_t)step->count * 512};
    struct disk_request request = {.operation = step->operation,
                                   .offset = (uint64_t)step->first * 512,
                                   .length = (uint64_t)step->count * 512};
    for (size_t i = 0; i < (size_t)step->count * 64; i++) {
        words[i] = step->tag;
    }
    if (step->operation == DISK_WRITE) {
        request.vectors = &vector;
        request.vector_count = 1;
    } else if (step->operation == DISK_FLUSH) {
        request.offset = request.length = 0;
    }
    if (disk_perform(disk, &request)) {
        errx(1, "a request failed: %s", trail_text());
    }
}

/* The requests, with what they did to the file noted. */
static void record(struct run *run)
{
    static const unsigned clusters[] = {512, 4096, 65536, 4096};
    struct memory_file *file = memory_file_new(NULL, 0, LIMIT, false);
    run->create = (struct qcow2_create){
        .size = SIZE, .cluster_size = clusters[chance(NULL, 4)], .version = 2 + chance(NULL, 2)};
    run->create.lazy_refcounts = run->create.version == 3 && chance(NULL, 3) == 0;
    if (qcow2_create(&file->disk, &run->create)) {
        errx(1, "%s", trail_text());
    }
    run->file = file;
    struct disk *disk = open_image(file, false);
    if (!disk) {
        errx(1, "%s", trail_text());
    }
    run->before = malloc(file->end);
    run->before_size = file->end;
    memcpy(run->before, file->bytes, file->end);
    file->takes_notes = true;
    for (uint64_t i = 0; i < STEPS; i++) {
        struct step *step = &run->steps[i];
        choose(step, (i + 1) * UINT64_C(0x0101010101010101) + 1);
        step->begin = file->note_count;
        carry_out(disk, step);
        step->end = file->note_count;
    }
    /* left as a power cut would: the file outlives the disk, which is not closed */
}

/* May `sector` have `tag` if power was cut after `cut` notes? */
static bool is_allowed(const struct run *run, uint32_t sector, uint64_t tag, size_t cut)
{
    uint64_t now = 0;
    bool found = tag == 0;
    for (unsigned i = 0; i < STEPS && run->steps[i].begin <= cut; i++) {
        const struct step *step = &run->steps[i];
        if (step->operation == DISK_FLUSH) {
            if (step->end <= cut) { /* what was before is no more */
                found = found && tag == now;
                found = tag == now;
            }
            continue;
        }
        if (sector < step->first || sector - step->first >= step->count) {
            continue;
        }
        bool is_same = step->tag == tag;
        found |= is_same;
        if (step->operation != DISK_DISCARD) {
            now = step->tag;
        } else if (is_same || tag != now) {
            now = step->tag; /* taken as followed, unless the sector shows that it was not */
        }
    }
    return found;
}

static const char *check_contents(const struct run *run, struct disk *disk, size_t cut)
{
    static uint64_t words[SIZE / 8];
    static char text[120];
    if (disk_read(disk, 0, words, SIZE)) {
        return "cannot be read";
    }
    for (uint32_t sector = 0; sector < SECTORS; sector++) {
        const uint64_t *at = words + (size_t)sector * 64;
        for (unsigned i = 1; i < 64; i++) {
            if (at[i] != at[0]) {
                return "a sector is torn";
            }
        }
        if (!is_allowed(run, sector, at[0], cut)) {
            snprintf(text, sizeof text, "sector %u has %llx", sector, (unsigned long long)at[0]);
            return text;
        }
    }
    return NULL;
}

static void save(const struct memory_file *file, const char *folder, unsigned number)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%u.qcow2", folder, number);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || write(fd, file->bytes, file->end) != (ssize_t)file->end || close(fd)) {
        err(1, "write '%s'", path);
    }
}

/* What is wrong with one state; NULL: nothing. */
static const char *judge(const struct run *run, struct memory_file *state, size_t cut)
{
    struct qcow2_report report;
    struct memory_file *copy = memory_file_new(state->bytes, state->end, LIMIT, false);
    struct disk *disk = open_image(copy, true);
    if (!disk) {
        disk_free(&state->disk);
        return "cannot be opened to be checked";
    }
    const char *wrong = qcow2_check(disk, false, NULL, NULL, &report) ? "cannot be checked" : NULL;
    if (!wrong && (report.bad || (report.errors && !report.was_dirty))) {
        wrong = "has errors";
    }
    if (!wrong && (qcow2_check(disk, true, NULL, NULL, &report) ||
                   qcow2_check(disk, false, NULL, NULL, &report) || report.errors || report.leaks ||
                   report.bad)) {
        wrong = "is not sound after a repair";
    }
    disk_free(disk);
    disk = open_image(state, false);
    if (!disk) {
        return wrong ? wrong : "cannot be opened";
    }
    const char *contents = check_contents(run, disk, cut);
    disk_free(disk);
    return wrong ? wrong : contents;
}

int main(int argc, char **argv)
{
    static struct run run;
    unsigned failed = 0, states;
    if (argc < 3) {
        errx(2, "power_cut SEED STATES [FOLDER]");
    }
    random_state = strtoull(argv[1], NULL, 10);
    states = (unsigned)strtoul(argv[2], NULL, 10);
    for (unsigned i = 0; i < states; i++) {
        if (i % PER_RUN == 0) {
            run = (struct run){0};
            record(&run);
        }
        size_t cut = chance(NULL, (unsigned)run.file->note_count + 1);
        struct memory_file *state =
            memory_file_after_cut(run.file, run.before, run.before_size, cut, chance, NULL);
        if (argc > 3) {
            save(state, argv[3], i);
        }
        const char *wrong = judge(&run, state, cut);
        if (wrong) {
            printf("FAILED state %u (version %u, clusters of %llu%s, after %zu notes): %s %s\n", i,
                   run.create.version, (unsigned long long)run.create.cluster_size,
                   run.create.lazy_refcounts ? ", lazy" : "", cut, wrong, trail_text());
            failed++;
        }
    }
    printf("%u passed, %u failed\n", states - failed, failed);
    return failed != 0;
}
