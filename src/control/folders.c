/* The folders and files of folders.h. */
#include "control/folders.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"

enum { DEPTH_MAX = 4 };

static int base_path(enum folder_kind kind, char path[FOLDER_PATH])
{
    const char *variable = kind == FOLDER_DATA ? "XDG_DATA_HOME" : "XDG_CACHE_HOME";
    const char *given = getenv(variable), *home = getenv("HOME");
    int length;
    if (given && given[0] == '/') {
        length = snprintf(path, FOLDER_PATH, "%s/doppel", given);
    } else if (home && home[0] == '/') {
        length = snprintf(path, FOLDER_PATH, "%s/%s/doppel", home,
                          kind == FOLDER_DATA ? ".local/share" : ".cache");
    } else {
        return fail(-ENOENT, "neither $HOME nor $%s names a folder", variable);
    }
    return length < FOLDER_PATH - 64 ? 0 : fail(-ENAMETOOLONG, "$%s is too long", variable);
}

/* Make what is missing of a path, from its beginning on. */
static int make_path(char *path)
{
    for (char *end = path + 1;; end++) {
        if (*end && *end != '/') {
            continue;
        }
        char before = *end;
        *end = '\0';
        if (mkdir(path, 0700) && errno != EEXIST) {
            return fail(-errno, "make the folder %s: %m", path);
        }
        *end = before;
        if (!before) {
            return 0;
        }
    }
}

int folder_open(enum folder_kind kind, const char *part, char ret_path[FOLDER_PATH], int *ret_fd)
{
    struct stat facts;
    int r = base_path(kind, ret_path);
    if (r) {
        return r;
    }
    strcat(strcat(ret_path, "/"), part);
    r = make_path(ret_path);
    if (r) {
        return r;
    }
    CLEANUP_FD int fd = open(ret_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &facts)) {
        return fail(-errno, "open the folder %s: %m", ret_path);
    }
    if (facts.st_uid != geteuid() || facts.st_mode & 022) {
        return fail(-EPERM, "other users may write to the folder %s", ret_path);
    }
    *ret_fd = TAKE_FD(fd);
    return 0;
}

static int write_all(int fd, const char *bytes, size_t size)
{
    while (size) {
        ssize_t written = write(fd, bytes, size);
        if (written < 0 && errno != EINTR) {
            return -errno;
        }
        if (written > 0) {
            bytes += written;
            size -= (size_t)written;
        }
    }
    return fsync(fd) ? -errno : 0;
}

int file_replace(int folder, const char *name, const void *bytes, size_t size)
{
    char aside[128];
    snprintf(aside, sizeof aside, ".%s.%ld", name, (long)getpid());
    unlinkat(folder, aside, 0);
    CLEANUP_FD int fd = openat(folder, aside, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) {
        return fail(-errno, "make the file %s: %m", name);
    }
    int r = write_all(fd, bytes, size);
    if (!r && (renameat(folder, aside, folder, name) || fsync(folder))) {
        r = -errno;
    }
    if (r) {
        unlinkat(folder, aside, 0);
        return fail(r, "write the file %s: %s", name, strerror(-r));
    }
    return 0;
}

/* Read until the end or the limit: how many bytes, or a negative errno. */
static ssize_t read_all(int fd, char *bytes, size_t limit)
{
    size_t size = 0;
    while (size < limit) {
        ssize_t got = read(fd, bytes + size, limit - size);
        if (got < 0 && errno != EINTR) {
            return -errno;
        }
        if (got == 0) {
            break;
        }
        size += got > 0 ? (size_t)got : 0;
    }
    return (ssize_t)size;
}

int file_load(int folder, const char *name, size_t limit, char **ret_bytes, size_t *ret_size)
{
    struct stat facts;
    CLEANUP_FD int fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &facts)) {
        return fail(-errno, "open the file %s: %m", name);
    }
    if (!S_ISREG(facts.st_mode) || (uint64_t)facts.st_size > limit) {
        return fail(-EFBIG, "%s is no file of at most %zu bytes", name, limit);
    }
    size_t room = (size_t)facts.st_size;
    char *bytes = malloc(room + 1);
    ASSERT(bytes);
    ssize_t size = read_all(fd, bytes, room);
    if (size < 0) {
        free(bytes);
        return fail((int)size, "read the file %s: %s", name, strerror((int)-size));
    }
    bytes[size] = '\0';
    *ret_bytes = bytes;
    *ret_size = (size_t)size;
    return 0;
}

static int remove_level(int parent, const char *name, const char *last, unsigned depth)
{
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *folder = fd >= 0 ? fdopendir(fd) : NULL;
    if (!folder) {
        int error = errno;
        cleanup_close(&fd);
        return fail(-error, "open the folder %s: %s", name, strerror(error));
    }
    int r = 0;
    for (const struct dirent *entry; !r && (entry = readdir(folder));) {
        const char *own = entry->d_name;
        if (!strcmp(own, ".") || !strcmp(own, "..") || (last && !strcmp(own, last))) {
            continue;
        }
        if (!unlinkat(fd, own, 0) || errno == ENOENT) {
            continue;
        }
        r = errno == EISDIR && depth < DEPTH_MAX ? remove_level(fd, own, NULL, depth + 1)
                                                 : fail(-errno, "remove %s: %m", own);
    }
    if (!r && last) {
        unlinkat(fd, last, 0);
    }
    closedir(folder);
    if (!r && unlinkat(parent, name, AT_REMOVEDIR) && errno != ENOENT) {
        r = fail(-errno, "remove the folder %s: %m", name);
    }
    return r;
}

int folder_remove(int parent, const char *name, const char *last)
{
    return remove_level(parent, name, last, 1);
}
