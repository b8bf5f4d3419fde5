/* Messages about names: walking, making, moving, removing. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "backend/share/server_internal.h"
#include "base/cleanup.h"

enum { STEPS_MAX = 16, QID_SIZE = 13, REMOVE_FOLDER = 0x200, FOLDER_BITS = 0777 | S_ISVTX };

int p9_attach(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    char user[P9_NAME_MAX + 1], name[P9_TEXT_MAX + 1];
    uint32_t id = p9_take32(in), authentication = p9_take32(in);
    p9_take_text(in, user, P9_NAME_MAX);
    p9_take_text(in, name, P9_TEXT_MAX);
    p9_take32(in); /* the user's number: all have the rights of our process */
    struct p9_fid *fid;
    struct stat status;
    if (!p9_is_whole(in)) {
        return -EPROTO;
    }
    if (authentication != (uint32_t)P9_NO_FID) {
        return -EOPNOTSUPP;
    }
    if (*name && strcmp(name, "/")) {
        return -ENOENT; /* there is one tree */
    }
    int r = p9_status(server, "", &status);
    r = r ? r : p9_fid_add(server, id, "", &fid);
    if (!r) {
        p9_put_qid(server, out, &status);
    }
    return r;
}

/* One step; up at the root stays there. */
static int step(char path[PATH_MAX], const char *name)
{
    char next[PATH_MAX];
    if (!strcmp(name, "..")) {
        char *slash = strrchr(path, '/');
        *(slash ? slash : path) = 0;
        return 0;
    }
    int r = p9_join(path, name, next);
    if (!r) {
        memcpy(path, next, PATH_MAX);
    }
    return r;
}

/*
 * The steps from `path`, with a qid for each that there is. 0 if all of them are there, 1 if some,
 * -errno if not even the first.
 */
static int walk_steps(const struct p9_server *server, char path[PATH_MAX],
                      char (*names)[P9_NAME_MAX + 1], unsigned count, struct p9_writer *out)
{
    for (unsigned i = 0; i < count; i++) {
        struct stat status;
        int r = step(path, names[i]);
        r = r ? r : p9_status(server, path, &status);
        if (r) {
            return i ? 1 : r;
        }
        p9_put_qid(server, out, &status);
    }
    return 0;
}

int p9_walk(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    char names[STEPS_MAX][P9_NAME_MAX + 1], path[PATH_MAX];
    struct p9_fid *fid = p9_fid_find(server, p9_take32(in)), *made;
    uint32_t id = p9_take32(in);
    unsigned count = p9_take16(in);
    if (count > STEPS_MAX) {
        return -EPROTO;
    }
    for (unsigned i = 0; i < count; i++) {
        p9_take_text(in, names[i], P9_NAME_MAX);
    }
    if (!p9_is_whole(in) || !fid) {
        return in->bad ? -EPROTO : -EBADF;
    }
    bool is_same = fid->id == id;
    if ((is_same && fid->fd >= 0) || (!is_same && p9_fid_find(server, id))) {
        return -EBADF;
    }
    snprintf(path, sizeof path, "%s", fid->path);
    p9_put16(out, 0);
    size_t before = out->used;
    int r = walk_steps(server, path, names, count, out);
    if (r < 0 || out->full) {
        return r < 0 ? r : -EMSGSIZE;
    }
    store_le16(out->bytes + before - 2, (uint16_t)((out->used - before) / QID_SIZE));
    if (r == 0) {
        r = is_same ? p9_fid_set_path(server, fid, path) : p9_fid_add(server, id, path, &made);
    }
    return r < 0 ? r : 0;
}

int p9_clunk(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    const struct p9_fid *fid = p9_fid_find(server, p9_take32(in));
    if (!p9_is_whole(in) || !fid) {
        return in->bad ? -EPROTO : -EBADF;
    }
    p9_fid_drop(server, fid->id);
    return 0;
}

/* Cut a path into the folder, which takes its place, and the name in it. Not the root's. */
static const char *cut(char path[PATH_MAX])
{
    char *slash = strrchr(path, '/');
    if (!slash) {
        memmove(path + 1, path, strlen(path) + 1);
        path[0] = 0;
        return path + 1;
    }
    *slash = 0;
    return slash + 1;
}

/* The fid is gone in any case. */
int p9_remove(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    const struct p9_fid *fid = p9_fid_find(server, p9_take32(in));
    char path[PATH_MAX + 1];
    struct stat status;
    if (!p9_is_whole(in) || !fid) {
        return in->bad ? -EPROTO : -EBADF;
    }
    snprintf(path, PATH_MAX, "%s", fid->path);
    p9_fid_drop(server, fid->id);
    if (server->readonly || !*path) {
        return server->readonly ? -EROFS : -EBUSY;
    }
    int r = p9_status(server, path, &status);
    if (r) {
        return r;
    }
    const char *name = cut(path);
    CLEANUP_FD int folder = p9_pin_folder(server, path);
    if (folder < 0) {
        return folder;
    }
    return unlinkat(folder, name, S_ISDIR(status.st_mode) ? AT_REMOVEDIR : 0) ? -errno : 0;
}

/* What the four messages that make a name have in common: the folder, and the name in it. */
struct place {
    int folder; /* pinned */
    char name[P9_NAME_MAX + 1], path[PATH_MAX];
};

static int find_place(const struct p9_server *server, const struct p9_fid *fid, const char *name,
                      struct place *ret_place)
{
    ret_place->folder = -1;
    if (!fid) {
        return -EBADF;
    }
    if (server->readonly) {
        return -EROFS;
    }
    int r = p9_join(fid->path, name, ret_place->path);
    if (r) {
        return r;
    }
    ret_place->folder = p9_pin_folder(server, fid->path);
    return ret_place->folder < 0 ? ret_place->folder : 0;
}

/* Tell of what was made, or why not. */
static int tell_made(const struct p9_server *server, struct place *place, int r,
                     struct p9_writer *out)
{
    struct stat status;
    cleanup_close(&place->folder);
    r = r ? r : p9_status(server, place->path, &status);
    if (!r) {
        p9_put_qid(server, out, &status);
    }
    return r;
}

int p9_mkdir(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    struct place place;
    const struct p9_fid *fid = p9_fid_find(server, p9_take32(in));
    p9_take_text(in, place.name, P9_NAME_MAX);
    uint32_t mode = p9_take32(in);
    p9_take32(in);
    if (!p9_is_whole(in)) {
        return -EPROTO;
    }
    int r = find_place(server, fid, place.name, &place);
    if (!r && mkdirat(place.folder, place.name, mode & FOLDER_BITS)) {
        r = -errno;
    }
    return tell_made(server, &place, r, out);
}

int p9_symlink(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    struct place place;
    char target[P9_TEXT_MAX + 1];
    const struct p9_fid *fid = p9_fid_find(server, p9_take32(in));
    p9_take_text(in, place.name, P9_NAME_MAX);
    p9_take_text(in, target, P9_TEXT_MAX);
    p9_take32(in);
    if (!p9_is_whole(in)) {
        return -EPROTO;
    }
    int r = find_place(server, fid, place.name, &place);
    if (!r && symlinkat(target, place.folder, place.name)) {
        r = -errno;
    }
    return tell_made(server, &place, r, out);
}

/* Pipes and sockets, which are the guest's own affair; no devices. */
int p9_mknod(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    struct place place;
    const struct p9_fid *fid = p9_fid_find(server, p9_take32(in));
    p9_take_text(in, place.name, P9_NAME_MAX);
    uint32_t mode = p9_take32(in);
    p9_take(in, 4 + 4);
    p9_take32(in);
    if (!p9_is_whole(in)) {
        return -EPROTO;
    }
    int r = find_place(server, fid, place.name, &place);
    if (!r && !S_ISREG(mode) && !S_ISFIFO(mode) && !S_ISSOCK(mode)) {
        r = -EPERM;
    }
    if (!r && mknodat(place.folder, place.name, mode & (S_IFMT | 0777), 0)) {
        r = -errno;
    }
    return tell_made(server, &place, r, out);
}

int p9_link(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    struct place place;
    char self[16];
    const struct p9_fid *folder = p9_fid_find(server, p9_take32(in));
    const struct p9_fid *fid = p9_fid_find(server, p9_take32(in));
    p9_take_text(in, place.name, P9_NAME_MAX);
    if (!p9_is_whole(in) || !fid) {
        return in->bad ? -EPROTO : -EBADF;
    }
    int r = find_place(server, folder, place.name, &place);
    CLEANUP_FD int pin = r ? -1 : p9_pin(server, fid->path);
    if (!r && pin < 0) {
        r = pin;
    }
    snprintf(self, sizeof self, "%d", pin);
    if (!r && linkat(server->self, self, place.folder, place.name, AT_SYMLINK_FOLLOW)) {
        r = -errno;
    }
    cleanup_close(&place.folder);
    return r;
}

/* Move a name, and the fids that go through it. */
static int move(struct p9_server *server, const struct p9_fid *from, const char *name,
                const struct p9_fid *to, const char *new_name)
{
    struct place old = {.folder = -1}, new = {.folder = -1};
    int r = find_place(server, from, name, &old);
    r = r ? r : find_place(server, to, new_name, &new);
    if (!r && renameat(old.folder, name, new.folder, new_name)) {
        r = -errno;
    }
    cleanup_close(&old.folder);
    cleanup_close(&new.folder);
    if (!r) {
        p9_fids_moved(server, old.path, new.path);
    }
    return r;
}

int p9_renameat(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    char name[P9_NAME_MAX + 1], new_name[P9_NAME_MAX + 1];
    const struct p9_fid *from = p9_fid_find(server, p9_take32(in));
    p9_take_text(in, name, P9_NAME_MAX);
    const struct p9_fid *to = p9_fid_find(server, p9_take32(in));
    p9_take_text(in, new_name, P9_NAME_MAX);
    return p9_is_whole(in) ? move(server, from, name, to, new_name) : -EPROTO;
}

int p9_rename(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    char path[PATH_MAX + 1], new_name[P9_NAME_MAX + 1];
    const struct p9_fid *fid = p9_fid_find(server, p9_take32(in));
    const struct p9_fid *to = p9_fid_find(server, p9_take32(in));
    p9_take_text(in, new_name, P9_NAME_MAX);
    if (!p9_is_whole(in) || !fid) {
        return in->bad ? -EPROTO : -EBADF;
    }
    if (!*fid->path) {
        return -EBUSY;
    }
    snprintf(path, PATH_MAX, "%s", fid->path);
    const char *name = cut(path);
    struct p9_fid folder = {.fd = -1, .path = path};
    return move(server, &folder, name, to, new_name);
}

int p9_unlinkat(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    struct place place;
    const struct p9_fid *fid = p9_fid_find(server, p9_take32(in));
    p9_take_text(in, place.name, P9_NAME_MAX);
    uint32_t flags = p9_take32(in);
    if (!p9_is_whole(in)) {
        return -EPROTO;
    }
    int r = find_place(server, fid, place.name, &place);
    if (!r && unlinkat(place.folder, place.name, flags & REMOVE_FOLDER ? AT_REMOVEDIR : 0)) {
        r = -errno;
    }
    cleanup_close(&place.folder);
    return r;
}
