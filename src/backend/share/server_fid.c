/* The names that a client holds, and how a name becomes a file. */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "backend/share/server_internal.h"
#include "base/assert.h"

static struct p9_fid **bucket_of(const struct p9_server *server, uint32_t id)
{
    return (struct p9_fid **)&server->buckets[(id ^ id >> 12) % P9_BUCKETS];
}

struct p9_fid *p9_fid_find(const struct p9_server *server, uint32_t id)
{
    struct p9_fid *fid = *bucket_of(server, id);
    while (fid && fid->id != id) {
        fid = fid->next;
    }
    return fid;
}

int p9_fid_set_path(struct p9_server *server, struct p9_fid *fid, const char *path)
{
    size_t before = fid->path ? strlen(fid->path) + 1 : 0, now = strlen(path) + 1;
    if (server->path_bytes - before + now > P9_PATH_BYTES_MAX) {
        return -ENOMEM;
    }
    char *copy = strdup(path);
    ASSERT(copy);
    free(fid->path);
    fid->path = copy;
    server->path_bytes += now - before;
    return 0;
}

int p9_fid_add(struct p9_server *server, uint32_t id, const char *path, struct p9_fid **ret_fid)
{
    if (id == (uint32_t)P9_NO_FID || p9_fid_find(server, id)) {
        return -EBADF;
    }
    if (server->fid_count == P9_FIDS_MAX) {
        return -ENFILE;
    }
    struct p9_fid *fid = calloc(1, sizeof *fid);
    ASSERT(fid);
    int r = p9_fid_set_path(server, fid, path);
    if (r) {
        free(fid);
        return r;
    }
    struct p9_fid **bucket = bucket_of(server, id);
    fid->id = id;
    fid->fd = -1;
    fid->next = *bucket;
    *bucket = fid;
    server->fid_count++;
    *ret_fid = fid;
    return 0;
}

static void drop_first(struct p9_server *server, struct p9_fid **link)
{
    struct p9_fid *fid = *link;
    *link = fid->next;
    if (fid->fd >= 0) {
        close(fid->fd);
    }
    server->path_bytes -= strlen(fid->path) + 1;
    server->fid_count--;
    free(fid->path);
    free(fid);
}

void p9_fid_drop(struct p9_server *server, uint32_t id)
{
    struct p9_fid **link = bucket_of(server, id);
    while (*link && (*link)->id != id) {
        link = &(*link)->next;
    }
    if (*link) {
        drop_first(server, link);
    }
}

void p9_fid_drop_all(struct p9_server *server)
{
    for (size_t i = 0; i < P9_BUCKETS; i++) {
        while (server->buckets[i]) {
            drop_first(server, &server->buckets[i]);
        }
    }
}

/* Fids whose new path would be too long, or is more than may be kept, go stale. */
void p9_fids_moved(struct p9_server *server, const char *from, const char *to)
{
    size_t length = strlen(from);
    for (size_t i = 0; i < P9_BUCKETS; i++) {
        for (struct p9_fid *fid = server->buckets[i]; fid; fid = fid->next) {
            char path[PATH_MAX];
            if (strncmp(fid->path, from, length) ||
                (fid->path[length] && fid->path[length] != '/')) {
                continue;
            }
            size_t used = (size_t)snprintf(path, sizeof path, "%s%s", to, fid->path + length);
            if (used >= sizeof path || p9_fid_set_path(server, fid, path)) {
                continue;
            }
        }
    }
}

bool p9_is_name(const char *name)
{
    return *name && strcmp(name, ".") && strcmp(name, "..") && !strchr(name, '/');
}

int p9_join(const char *folder, const char *name, char ret_path[PATH_MAX])
{
    if (!p9_is_name(name)) {
        return -EINVAL;
    }
    int used = snprintf(ret_path, PATH_MAX, "%s%s%s", folder, *folder ? "/" : "", name);
    return used < PATH_MAX ? 0 : -ENAMETOOLONG;
}

static int look_up(const struct p9_server *server, const char *path, unsigned flags)
{
    struct open_how how = {
        .flags = O_PATH | O_NOFOLLOW | O_CLOEXEC | flags,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
    };
    long fd = syscall(SYS_openat2, server->root, *path ? path : ".", &how, sizeof how);
    return fd < 0 ? -errno : (int)fd;
}

int p9_pin(const struct p9_server *server, const char *path)
{
    return look_up(server, path, 0);
}

int p9_pin_folder(const struct p9_server *server, const char *path)
{
    return look_up(server, path, O_DIRECTORY);
}

/* Through the link of our own descriptor, which leads to the very file, whatever its name is now.
 */
int p9_open_pinned(const struct p9_server *server, int pin, int flags)
{
    struct stat status;
    char name[16];
    if (fstat(pin, &status)) {
        return -errno;
    }
    if (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode)) {
        return S_ISLNK(status.st_mode) ? -ELOOP : -ENXIO;
    }
    snprintf(name, sizeof name, "%d", pin);
    int fd = openat(server->self, name, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

int p9_status(const struct p9_server *server, const char *path, struct stat *ret_status)
{
    int pin = p9_pin(server, path);
    if (pin < 0) {
        return pin;
    }
    int r = fstat(pin, ret_status) ? -errno : 0;
    close(pin);
    return r;
}

void p9_put_qid(const struct p9_server *server, struct p9_writer *out, const struct stat *status)
{
    uint8_t type = S_ISDIR(status->st_mode) ? 0x80 : S_ISLNK(status->st_mode) ? 0x02 : 0;
    const struct timespec *changed = &status->st_mtim;
    /* Files of other file systems below the root have numbers of their own. */
    uint64_t other = (uint64_t)status->st_dev - server->root_device;
    p9_put8(out, type);
    p9_put32(out, (uint32_t)changed->tv_sec ^ (uint32_t)changed->tv_nsec << 8);
    p9_put64(out, (uint64_t)status->st_ino ^ other * UINT64_C(0x9e3779b97f4a7c15));
}
