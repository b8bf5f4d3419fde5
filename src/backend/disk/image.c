/* Whole images as files; see image.h. */
#include "backend/disk/image.h"

#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/disk/magic.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"

enum { CHUNK = 1 << 20, GRAIN = 1 << 12, ALIGNMENT = 4096 };

CLEANUP_DEFINE(char, free)

static const char *const formats[] = {
    [DISK_FORMAT_RAW] = "raw",
    [DISK_FORMAT_QCOW2] = "qcow2",
};
static const char *const caches[] = {
    [DISK_CACHE_WRITEBACK] = "writeback",
    [DISK_CACHE_NONE] = "none",
    [DISK_CACHE_WRITETHROUGH] = "writethrough",
    [DISK_CACHE_DIRECTSYNC] = "directsync",
    [DISK_CACHE_UNSAFE] = "unsafe",
};

int disk_format_parse(const char *text, enum disk_format *ret_format)
{
    for (size_t i = DISK_FORMAT_RAW; i < ARRAY_SIZE(formats); i++) {
        if (!strcmp(text, formats[i])) {
            *ret_format = (enum disk_format)i;
            return 0;
        }
    }
    return fail(-EINVAL, "format '%s' is not known (known: raw, qcow2)", text);
}

int disk_cache_parse(const char *text, enum disk_cache *ret_cache)
{
    for (size_t i = 0; i < ARRAY_SIZE(caches); i++) {
        if (!strcmp(text, caches[i])) {
            *ret_cache = (enum disk_cache)i;
            return 0;
        }
    }
    return fail(-EINVAL,
                "cache '%s' is not one of writeback, none, writethrough, directsync, unsafe", text);
}

const char *disk_format_name(enum disk_format format)
{
    return format == DISK_FORMAT_UNKNOWN ? "unknown" : formats[format];
}

int disk_format_find(const char *path, enum disk_format *ret_format)
{
    uint8_t bytes[DISK_MAGIC_SIZE];
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t count = fd < 0 ? -1 : pread(fd, bytes, sizeof bytes, 0);
    if (count < 0) {
        return fail(-errno, "read '%s': %s", path, strerror(errno));
    }
    const char *name = disk_magic(bytes, (size_t)count);
    *ret_format = !name                    ? DISK_FORMAT_RAW
                  : !strcmp(name, "qcow2") ? DISK_FORMAT_QCOW2
                                           : DISK_FORMAT_UNKNOWN;
    return 0;
}

/* A file that is to have the name `path`, and has another one until it is whole. */
struct aside {
    const char *path;
    char *temporary;
    bool replace;
};

/* Somebody uses the file that would be replaced: they would go on with one that has no name. */
static int check_unused(const char *path)
{
    struct stat status;
    struct disk *disk;
    if (stat(path, &status)) {
        return 0;
    }
    if (!S_ISREG(status.st_mode)) {
        return fail(-EINVAL, "'%s' is no regular file and is not replaced", path);
    }
    const struct disk_options options = {.synchronous = true};
    int error = disk_file_open(path, &options, &disk);
    if (!error) {
        disk_free(disk);
    }
    return error;
}

static int aside_open(const char *path, bool replace, struct aside *ret_aside)
{
    struct aside aside = {.path = path, .replace = replace};
    if (!replace && !access(path, F_OK)) {
        return fail(-EEXIST, "'%s' exists (--force replaces it)", path);
    }
    int error = replace ? check_unused(path) : 0;
    if (error) {
        return error;
    }
    ASSERT(asprintf(&aside.temporary, "%s.XXXXXX", path) >= 0);
    CLEANUP_FD int fd = mkostemp(aside.temporary, O_CLOEXEC);
    if (fd < 0) {
        error = fail(-errno, "create '%s': %s", path, strerror(errno));
        free(aside.temporary);
        return error;
    }
    mode_t mask = umask(0);
    umask(mask);
    if (fchmod(fd, 0666 & ~mask)) {
        trail_clear(); /* where files have no such rights */
    }
    *ret_aside = aside;
    return 0;
}

/* The name in its folder is durable, too. */
static int sync_folder(const char *path)
{
    CLEANUP(free) char *copy = strdup(path);
    ASSERT(copy);
    CLEANUP_FD int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 || fsync(fd) ? fail(-errno, "sync the folder of '%s': %s", path, strerror(errno))
                               : 0;
}

static int give_name(const struct aside *aside)
{
    int flags = aside->replace ? 0 : RENAME_NOREPLACE;
    int failed = renameat2(AT_FDCWD, aside->temporary, AT_FDCWD, aside->path, flags);
    if (failed && errno == EINVAL && flags) { /* a file system without it: a link does the same */
        failed = link(aside->temporary, aside->path) || unlink(aside->temporary);
    }
    if (failed) {
        return fail(-errno, "name the new file '%s': %s", aside->path, strerror(errno));
    }
    return sync_folder(aside->path);
}

/* `error`: it is not to be. */
static int aside_close(struct aside *aside, int error)
{
    if (!error) {
        error = give_name(aside);
    }
    if (error) {
        unlink(aside->temporary);
    }
    free(aside->temporary);
    return error;
}

/* An empty image in a file of its own. */
static int make_empty(const char *path, const struct disk_image_new *image)
{
    struct disk *file;
    const struct disk_options options = {.synchronous = true};
    int error = disk_file_open(path, &options, &file);
    if (error) {
        return error;
    }
    if (image->format == DISK_FORMAT_RAW) {
        error = disk_truncate(file, image->qcow2.size);
        if (!error && disk_flush(file)) {
            error = fail(-EIO, "make '%s' durable", path);
        }
    } else {
        error = qcow2_create(file, &image->qcow2);
    }
    disk_free(file);
    return error;
}

static int check_new(const struct disk_image_new *image)
{
    if (image->format == DISK_FORMAT_QCOW2) {
        return qcow2_create_check(&image->qcow2);
    }
    return image->qcow2.size == 0 || image->qcow2.size % 512 || image->qcow2.size > INT64_MAX / 2
               ? fail(-EINVAL, "the size of a disk is a multiple of 512 bytes")
               : 0;
}

int disk_image_create(const char *path, const struct disk_image_new *image)
{
    struct aside aside;
    int error = check_new(image);
    if (!error) {
        error = aside_open(path, image->replace, &aside);
    }
    if (error) {
        return error;
    }
    return aside_close(&aside, make_empty(aside.temporary, image));
}

static bool is_zero(const uint8_t *bytes, size_t length)
{
    return length == 0 || (bytes[0] == 0 && !memcmp(bytes, bytes + 1, length - 1));
}

/* Write what is not zero of a chunk: the image holds zeros already. */
static int write_chunk(struct disk *disk, uint64_t offset, const uint8_t *bytes, size_t length)
{
    size_t at = 0;
    while (at < length) {
        size_t start = at;
        while (at < length && !is_zero(bytes + at, length - at < GRAIN ? length - at : GRAIN)) {
            at += GRAIN;
        }
        at = at < length ? at : length;
        if (at > start) {
            int error = disk_write(disk, offset + start, bytes + start, at - start);
            if (error) {
                return fail(error, "write at byte %llu: %s", (unsigned long long)(offset + start),
                            strerror(-error));
            }
        }
        while (at < length && is_zero(bytes + at, length - at < GRAIN ? length - at : GRAIN)) {
            at += GRAIN;
        }
    }
    return 0;
}

static int copy_extent(struct disk *source, struct disk *target, uint64_t offset, uint64_t length,
                       uint8_t *bytes)
{
    for (uint64_t done = 0; done < length;) {
        size_t now = length - done < CHUNK ? (size_t)(length - done) : CHUNK;
        int error = disk_read(source, offset + done, bytes, now);
        if (error) {
            return fail(error, "read at byte %llu: %s", (unsigned long long)(offset + done),
                        strerror(-error));
        }
        error = write_chunk(target, offset + done, bytes, now);
        if (error) {
            return error;
        }
        done += now;
    }
    return 0;
}

struct telling {
    void (*progress)(void *owner, uint64_t done, uint64_t total);
    void *owner;
};

static int copy(struct disk *source, struct disk *target, const struct telling *telling)
{
    uint8_t *bytes = NULL;
    int error = 0;
    ASSERT(!posix_memalign((void **)&bytes, ALIGNMENT, CHUNK));
    for (uint64_t done = 0; done < source->size && !error;) {
        struct disk_extent extent = {0};
        /* in pieces, so that progress is told */
        uint64_t left = source->size - done, most = MIB(64);
        error = disk_extent(source, done, left < most ? left : most, &extent);
        bool has_data = extent.kind == DISK_EXTENT_DATA || extent.kind == DISK_EXTENT_COMPRESSED;
        if (!error && has_data) {
            error = copy_extent(source, target, done, extent.length, bytes);
        }
        done += extent.length;
        if (telling->progress) {
            telling->progress(telling->owner, done, source->size);
        }
    }
    free(bytes);
    if (!error) {
        error = disk_flush(target);
        error = error ? fail(error, "make it durable: %s", strerror(-error)) : 0;
    }
    return error;
}

int disk_image_convert(struct disk *source, const char *path, const struct disk_image_new *image,
                       void (*progress)(void *owner, uint64_t done, uint64_t total), void *owner)
{
    struct aside aside;
    struct disk_image_new empty = *image;
    const struct telling telling = {progress, owner};
    empty.qcow2.size = source->size;
    int error = check_new(&empty);
    if (!error) {
        error = aside_open(path, image->replace, &aside);
    }
    if (error) {
        return error;
    }
    struct disk *target = NULL;
    const struct disk_options options = {.format = image->format, .synchronous = true};
    error = make_empty(aside.temporary, &empty);
    if (!error) {
        error = disk_open(aside.temporary, &options, &target);
    }
    if (!error) {
        error = copy(source, target, &telling);
    }
    disk_free(target);
    return aside_close(&aside, error);
}

int disk_image_resize(struct disk *disk, enum disk_format format, uint64_t size, bool shrink)
{
    if (size < disk->size && !shrink) {
        return fail(-EINVAL,
                    "this makes the disk smaller, and what is behind %llu bytes is lost: say "
                    "--shrink if that is what you want",
                    (unsigned long long)size);
    }
    if (size == 0 || size % 512 || size > INT64_MAX / 2) {
        return fail(-EINVAL, "the size of a disk is a multiple of 512 bytes");
    }
    int error = format == DISK_FORMAT_QCOW2 ? qcow2_resize(disk, size) : disk_truncate(disk, size);
    if (!error) {
        error = disk_flush(disk);
    }
    return error && !*trail_text() ? fail(error, "resize the disk: %s", strerror(-error)) : error;
}
