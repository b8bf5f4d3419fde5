/*
 * Files that the user named, read whole. Kernel files are hostile bytes in a file that may change
 * under us: they are copied into memory once, never mapped.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "boot/boot.h"

enum { FIRST_CAPACITY = 65536 };

static void bytes_free(uint8_t *bytes)
{
    free(bytes);
}
CLEANUP_DEFINE(uint8_t, bytes_free)

/* Open for reading; regular files and pipes (from a shell's process substitution) are fine. */
static int open_file(const char *path, int *ret_fd, uint64_t *ret_size)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) {
        return fail(-errno, "open '%s': %s", path, strerror(errno));
    }
    struct stat status;
    if (fstat(fd, &status) < 0) {
        return fail(-errno, "look at '%s': %s", path, strerror(errno));
    }
    if (!S_ISREG(status.st_mode) && !S_ISFIFO(status.st_mode)) {
        return fail(-EINVAL, "'%s' is %s, not a file", path,
                    S_ISDIR(status.st_mode) ? "a directory" : "a device or socket");
    }
    *ret_size = S_ISREG(status.st_mode) ? (uint64_t)status.st_size : 0;
    *ret_fd = TAKE_FD(fd);
    return 0;
}

/* Read until the end, or until the buffer is full. */
static int read_some(int fd, const char *path, uint8_t *buffer, uint64_t capacity, uint64_t *size)
{
    while (*size < capacity) {
        ssize_t count = read(fd, buffer + *size, capacity - *size);
        if (count < 0 && errno == EINTR) {
            continue;
        }
        if (count < 0) {
            return fail(-errno, "read '%s': %s", path, strerror(errno));
        }
        if (count == 0) {
            return 0;
        }
        *size += (uint64_t)count;
    }
    return 0;
}

static int too_large(const char *path, uint64_t limit)
{
    return fail(-EFBIG, "'%s' is larger than the limit of %llu bytes", path,
                (unsigned long long)limit);
}

int boot_file_read(const char *path, uint64_t limit, struct boot_file *ret_file)
{
    CLEANUP_FD int fd = -1;
    uint64_t expected = 0;
    int error = open_file(path, &fd, &expected);
    if (error < 0) {
        return error;
    }
    limit = limit < INT64_MAX ? limit : INT64_MAX - 1;
    if (expected > limit) {
        return too_large(path, limit);
    }
    CLEANUP(bytes_free) uint8_t *buffer = NULL;
    uint64_t size = 0;
    /* One byte more than expected shows the end of the file in one round. */
    uint64_t capacity = expected ? expected : FIRST_CAPACITY - 1;
    for (;;) {
        capacity = (capacity < limit ? capacity : limit) + 1;
        uint8_t *larger = realloc(buffer, capacity);
        if (!larger) {
            return fail(-ENOMEM, "no memory for the %llu bytes of '%s'",
                        (unsigned long long)capacity, path);
        }
        buffer = larger;
        error = read_some(fd, path, buffer, capacity, &size);
        if (error < 0) {
            return error;
        }
        if (size > limit) {
            return too_large(path, limit);
        }
        if (size < capacity) {
            break;
        }
        capacity *= 2;
    }
    *ret_file = (struct boot_file){.name = path, .data = TAKE(buffer), .size = size};
    return 0;
}

void boot_file_free(struct boot_file *file)
{
    if (file) {
        free((uint8_t *)file->data);
        *file = (struct boot_file){0};
    }
}
