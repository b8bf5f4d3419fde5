/* Messages about one file: attributes, opening, contents. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "backend/share/server_internal.h"
#include "base/cleanup.h"

/* Bits of Tgetattr and Tsetattr. */
enum {
    GETATTR_BASIC = 0x7ff,
    SET_MODE = 1 << 0,
    SET_UID = 1 << 1,
    SET_GID = 1 << 2,
    SET_SIZE = 1 << 3,
    SET_ATIME = 1 << 4,
    SET_MTIME = 1 << 5,
    SET_ATIME_GIVEN = 1 << 7,
    SET_MTIME_GIVEN = 1 << 8,
};

enum {
    /* Flags of Tlopen, which are Linux's: the others are the client's own business. */
    OPEN_FLAGS = O_ACCMODE | O_TRUNC | O_APPEND | O_DSYNC | O_SYNC | O_DIRECTORY,
    MODE_BITS = 0777 | S_ISVTX,
    LOCK_GRANTED = 0,
    LOCK_NONE = 2,                /* F_UNLCK */
    ENTRY_FIXED = 13 + 8 + 1 + 2, /* of Rreaddir: qid, offset, type, the name's size */
};

int p9_statfs(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    const struct p9_fid *fid = p9_fid_find(server, p9_take32(in));
    struct statfs facts;
    if (!p9_is_whole(in) || !fid) {
        return in->bad ? -EPROTO : -EBADF;
    }
    CLEANUP_FD int pin = p9_pin(server, fid->path);
    if (pin < 0) {
        return pin;
    }
    if (fstatfs(pin, &facts)) {
        return -errno;
    }
    p9_put32(out, (uint32_t)facts.f_type);
    p9_put32(out, (uint32_t)facts.f_bsize);
    p9_put64(out, facts.f_blocks);
    p9_put64(out, facts.f_bfree);
    p9_put64(out, facts.f_bavail);
    p9_put64(out, facts.f_files);
    p9_put64(out, facts.f_ffree);
    p9_put64(out, server->root_device);
    p9_put32(out, (uint32_t)facts.f_namelen);
    return 0;
}

/* An open file may have lost its name. */
static int status_of(const struct p9_server *server, const struct p9_fid *fid,
                     struct stat *ret_status)
{
    if (fid->fd >= 0) {
        return fstat(fid->fd, ret_status) ? -errno : 0;
    }
    return p9_status(server, fid->path, ret_status);
}

static void put_time(struct p9_writer *out, const struct timespec *time)
{
    p9_put64(out, (uint64_t)time->tv_sec);
    p9_put64(out, (uint64_t)time->tv_nsec);
}

int p9_getattr(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    const struct p9_fid *fid = p9_fid_find(server, p9_take32(in));
    uint64_t wanted = p9_take64(in);
    struct stat status;
    if (!p9_is_whole(in) || !fid) {
        return in->bad ? -EPROTO : -EBADF;
    }
    int r = status_of(server, fid, &status);
    if (r) {
        return r;
    }
    p9_put64(out, wanted & GETATTR_BASIC);
    p9_put_qid(server, out, &status);
    p9_put32(out, status.st_mode);
    p9_put32(out, status.st_uid);
    p9_put32(out, status.st_gid);
    p9_put64(out, status.st_nlink);
    p9_put64(out, status.st_rdev);
    p9_put64(out, (uint64_t)status.st_size);
    p9_put64(out, (uint64_t)status.st_blksize);
    p9_put64(out, (uint64_t)status.st_blocks);
    put_time(out, &status.st_atim);
    put_time(out, &status.st_mtim);
    put_time(out, &status.st_ctim);
    for (unsigned i = 0; i < 4; i++) { /* the time of birth, generation, version: not told */
        p9_put64(out, 0);
    }
    return 0;
}

/* Calls that have no form for a pinned file take the name of our descriptor. */
static void self_name(int pin, char name[16])
{
    snprintf(name, 16, "%d", pin);
}

static int set_mode(const struct p9_server *server, int pin, uint32_t mode)
{
    struct stat status;
    char name[16];
    if (fstat(pin, &status)) {
        return -errno;
    }
    if (S_ISLNK(status.st_mode)) {
        return -EOPNOTSUPP;
    }
    self_name(pin, name);
    return fchmodat(server->self, name, mode & MODE_BITS, 0) ? -errno : 0;
}

/* What the host forbids is left undone: see server.h. */
static int set_owner(int pin, uint32_t uid, uint32_t gid)
{
    return fchownat(pin, "", uid, gid, AT_EMPTY_PATH) && errno != EPERM ? -errno : 0;
}

static int set_times(const struct p9_server *server, int pin, uint32_t valid,
                     struct timespec times[2])
{
    char name[16];
    for (unsigned i = 0; i < 2; i++) {
        if (!(valid & SET_ATIME << i)) {
            times[i].tv_nsec = UTIME_OMIT;
        } else if (!(valid & SET_ATIME_GIVEN << i)) {
            times[i].tv_nsec = UTIME_NOW;
        } else if (times[i].tv_nsec < 0 || times[i].tv_nsec > 999999999) {
            return -EINVAL;
        }
    }
    self_name(pin, name);
    return utimensat(server->self, name, times, 0) ? -errno : 0;
}

static int set_size(const struct p9_server *server, const struct p9_fid *fid, int pin,
                    uint64_t size)
{
    if (size > INT64_MAX) {
        return -EINVAL;
    }
    if (fid->fd >= 0 && (fcntl(fid->fd, F_GETFL) & O_ACCMODE) != O_RDONLY) {
        return ftruncate(fid->fd, (off_t)size) ? -errno : 0;
    }
    CLEANUP_FD int fd = p9_open_pinned(server, pin, O_WRONLY);
    if (fd < 0) {
        return fd;
    }
    return ftruncate(fd, (off_t)size) ? -errno : 0;
}

int p9_setattr(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    const struct p9_fid *fid = p9_fid_find(server, p9_take32(in));
    uint32_t valid = p9_take32(in), mode = p9_take32(in);
    uint32_t uid = p9_take32(in), gid = p9_take32(in);
    uint64_t size = p9_take64(in);
    struct timespec times[2];
    for (unsigned i = 0; i < 2; i++) {
        times[i].tv_sec = (time_t)p9_take64(in);
        times[i].tv_nsec = (long)p9_take64(in);
    }
    if (!p9_is_whole(in) || !fid) {
        return in->bad ? -EPROTO : -EBADF;
    }
    if (server->readonly) {
        return -EROFS;
    }
    /* An open file may have lost its name; its descriptor serves as well. */
    CLEANUP_FD int found = fid->fd >= 0 ? -1 : p9_pin(server, fid->path);
    int pin = fid->fd >= 0 ? fid->fd : found, r = pin < 0 ? pin : 0;
    if (!r && (valid & (SET_UID | SET_GID))) {
        r = set_owner(pin, valid & SET_UID ? uid : UINT32_MAX, valid & SET_GID ? gid : UINT32_MAX);
    }
    if (!r && (valid & SET_MODE)) {
        r = set_mode(server, pin, mode);
    }
    if (!r && (valid & SET_SIZE)) {
        r = set_size(server, fid, pin, size);
    }
    if (!r && (valid & (SET_ATIME | SET_MTIME))) {
        r = set_times(server, pin, valid, times);
    }
    return r;
}

int p9_readlink(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    const struct p9_fid *fid = p9_fid_find(server, p9_take32(in));
    char text[P9_TEXT_MAX + 1];
    if (!p9_is_whole(in) || !fid) {
        return in->bad ? -EPROTO : -EBADF;
    }
    CLEANUP_FD int pin = p9_pin(server, fid->path);
    if (pin < 0) {
        return pin;
    }
    ssize_t size = readlinkat(pin, "", text, P9_TEXT_MAX);
    if (size < 0) {
        return errno == ENOENT ? -EINVAL : -errno; /* which says that it is no link */
    }
    text[size] = 0;
    p9_put_text(out, text);
    return 0;
}

static bool is_change(uint32_t flags)
{
    return (flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC);
}

/* The fid is open from now on: what it is, and that any size of transfer will do. */
static int tell_open(const struct p9_server *server, const struct p9_fid *fid,
                     struct p9_writer *out)
{
    struct stat status;
    if (fstat(fid->fd, &status)) {
        return -errno;
    }
    p9_put_qid(server, out, &status);
    p9_put32(out, 0);
    return 0;
}

int p9_open(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    struct p9_fid *fid = p9_fid_find(server, p9_take32(in));
    uint32_t flags = p9_take32(in);
    if (!p9_is_whole(in) || !fid) {
        return in->bad ? -EPROTO : -EBADF;
    }
    if (fid->fd >= 0) {
        return -EINVAL;
    }
    if (server->readonly && is_change(flags)) {
        return -EROFS;
    }
    CLEANUP_FD int pin = p9_pin(server, fid->path);
    if (pin < 0) {
        return pin;
    }
    int fd = p9_open_pinned(server, pin, (int)(flags & OPEN_FLAGS));
    if (fd < 0) {
        return fd;
    }
    fid->fd = fd;
    return tell_open(server, fid, out);
}

/* Make a file, or open the one of that name; only the former needs no look at what it is. */
static int create_file(const struct p9_server *server, const char *folder, const char *name,
                       const char *path, uint32_t flags, uint32_t mode)
{
    CLEANUP_FD int parent = p9_pin_folder(server, folder);
    if (parent < 0) {
        return parent;
    }
    int how = (int)(flags & OPEN_FLAGS & ~(uint32_t)O_DIRECTORY);
    int fd = openat(parent, name, how | O_CREAT | O_EXCL | O_CLOEXEC, mode & MODE_BITS);
    if (fd >= 0 || errno != EEXIST || (flags & O_EXCL)) {
        return fd < 0 ? -errno : fd;
    }
    CLEANUP_FD int pin = p9_pin(server, path);
    return pin < 0 ? pin : p9_open_pinned(server, pin, how);
}

int p9_create(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    struct p9_fid *fid = p9_fid_find(server, p9_take32(in));
    char name[P9_NAME_MAX + 1], path[PATH_MAX];
    p9_take_text(in, name, P9_NAME_MAX);
    uint32_t flags = p9_take32(in), mode = p9_take32(in);
    p9_take32(in); /* the group: that of our process, or of the folder */
    if (!p9_is_whole(in) || !fid) {
        return in->bad ? -EPROTO : -EBADF;
    }
    if (fid->fd >= 0) {
        return -EINVAL;
    }
    if (server->readonly) {
        return -EROFS;
    }
    int r = p9_join(fid->path, name, path);
    if (r) {
        return r;
    }
    int fd = create_file(server, fid->path, name, path, flags, mode);
    r = fd < 0 ? fd : p9_fid_set_path(server, fid, path);
    if (r) {
        if (fd >= 0) {
            close(fd);
        }
        return r;
    }
    fid->fd = fd;
    return tell_open(server, fid, out);
}

int p9_read(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    const struct p9_fid *fid = p9_fid_find(server, p9_take32(in));
    uint64_t offset = p9_take64(in), count = p9_take32(in);
    if (!p9_is_whole(in) || !fid || fid->fd < 0) {
        return in->bad ? -EPROTO : -EBADF;
    }
    if (offset > INT64_MAX - count || out->room - out->used < 4) {
        return -EINVAL;
    }
    uint64_t room = out->room - out->used - 4;
    uint8_t *size = p9_put(out, 4);
    ssize_t got = pread(fid->fd, size + 4, count < room ? count : room, (off_t)offset);
    if (got < 0) {
        return -errno;
    }
    store_le32(size, (uint32_t)got);
    p9_put(out, (size_t)got);
    return 0;
}

int p9_write(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    const struct p9_fid *fid = p9_fid_find(server, p9_take32(in));
    uint64_t offset = p9_take64(in);
    uint32_t count = p9_take32(in), done = 0;
    if (in->bad || in->left != count) {
        return -EPROTO;
    }
    if (!fid || fid->fd < 0) {
        return -EBADF;
    }
    if (offset > (uint64_t)INT64_MAX - count) {
        return -EFBIG;
    }
    const uint8_t *bytes = p9_take(in, count);
    while (done < count) {
        ssize_t put = pwrite(fid->fd, bytes + done, count - done, (off_t)(offset + done));
        if (put <= 0 && done) {
            break; /* what could be written counts; the client finds out with the rest */
        }
        if (put <= 0) {
            return put ? -errno : -EIO;
        }
        done += (uint32_t)put;
    }
    p9_put32(out, done);
    return 0;
}

/* As getdents64(2) tells it. */
struct entry {
    uint64_t inode;
    int64_t next;
    uint16_t size;
    uint8_t type;
    char name[];
};

/* False: there is no room for it. */
static bool put_entry(const struct p9_server *server, struct p9_writer *out,
                      const struct stat *folder, const struct entry *entry)
{
    static const mode_t by_type[16] = {
        [4] = S_IFDIR, [10] = S_IFLNK}; /* DT_DIR, DT_LNK: what a qid tells of */
    struct stat status = {
        .st_dev = folder->st_dev, .st_ino = entry->inode, .st_mode = by_type[entry->type & 15]};
    if (!strcmp(entry->name, "..")) {
        status.st_ino = folder->st_ino; /* what is above the root is nobody's business */
    }
    if (out->room - out->used < ENTRY_FIXED + strlen(entry->name)) {
        return false;
    }
    p9_put_qid(server, out, &status);
    p9_put64(out, (uint64_t)entry->next);
    p9_put8(out, entry->type);
    p9_put_text(out, entry->name);
    return true;
}

/* Entries from where the descriptor stands, as many as there is room for. */
static int put_entries(struct p9_server *server, int fd, const struct stat *folder,
                       struct p9_writer *out)
{
    size_t begin = out->used;
    for (;;) {
        long size = syscall(SYS_getdents64, fd, server->directory, sizeof server->directory);
        if (size <= 0) {
            return size ? -errno : 0;
        }
        for (long at = 0; at < size;) {
            const struct entry *entry = (const void *)(server->directory + at);
            if (!put_entry(server, out, folder, entry)) {
                return out->used == begin ? -EINVAL : 0;
            }
            at += entry->size;
        }
    }
}

int p9_readdir(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    const struct p9_fid *fid = p9_fid_find(server, p9_take32(in));
    uint64_t offset = p9_take64(in), count = p9_take32(in);
    struct stat status;
    if (!p9_is_whole(in) || !fid || fid->fd < 0) {
        return in->bad ? -EPROTO : -EBADF;
    }
    if (fstat(fid->fd, &status) || !S_ISDIR(status.st_mode)) {
        return -ENOTDIR;
    }
    if (out->room - out->used < 4 || lseek(fid->fd, (off_t)offset, SEEK_SET) < 0) {
        return -EINVAL;
    }
    uint8_t *size = p9_put(out, 4);
    struct p9_writer entries = *out;
    entries.room = count < out->room - out->used ? out->used + count : out->room;
    int r = put_entries(server, fid->fd, &status, &entries);
    store_le32(size, (uint32_t)(entries.used - out->used));
    out->used = entries.used;
    return r;
}

int p9_fsync(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    const struct p9_fid *fid = p9_fid_find(server, p9_take32(in));
    bool data_only = in->left && p9_take32(in); /* older clients do not say */
    if (!p9_is_whole(in) || !fid || fid->fd < 0) {
        return in->bad ? -EPROTO : -EBADF;
    }
    return (data_only ? fdatasync(fid->fd) : fsync(fid->fd)) ? -errno : 0;
}

/* Locks hold among the programs of the guest, whose kernel keeps them: every one is granted. */
int p9_lock(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    const struct p9_fid *fid = p9_fid_find(server, p9_take32(in));
    char client[P9_TEXT_MAX + 1];
    p9_take(in, 1 + 4 + 8 + 8 + 4);
    p9_take_text(in, client, P9_TEXT_MAX);
    if (!p9_is_whole(in) || !fid || fid->fd < 0) {
        return in->bad ? -EPROTO : -EBADF;
    }
    p9_put8(out, LOCK_GRANTED);
    return 0;
}

int p9_getlock(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    const struct p9_fid *fid = p9_fid_find(server, p9_take32(in));
    char client[P9_TEXT_MAX + 1];
    p9_take8(in);
    uint64_t start = p9_take64(in), length = p9_take64(in);
    uint32_t process = p9_take32(in);
    p9_take_text(in, client, P9_TEXT_MAX);
    if (!p9_is_whole(in) || !fid || fid->fd < 0) {
        return in->bad ? -EPROTO : -EBADF;
    }
    p9_put8(out, LOCK_NONE);
    p9_put64(out, start);
    p9_put64(out, length);
    p9_put32(out, process);
    p9_put_text(out, client);
    return 0;
}
