/* Inside the 9P server: fids, pins, and the handlers of messages. */
#pragma once

#include <limits.h>
#include <sys/stat.h>

#include "backend/share/message.h"
#include "backend/share/server.h"

enum { P9_BUCKETS = 4096, P9_NO_FID = -1, P9_DIRECTORY_BYTES = 32768 };

/* A name that the client holds. */
struct p9_fid {
    struct p9_fid *next; /* in the bucket */
    uint32_t id;
    int fd;     /* -1: not open */
    char *path; /* beneath the root, without a slash at either end; "" is the root */
};

struct p9_server {
    int root;
    int self; /* /proc/self/fd: opens what is pinned */
    bool readonly;
    uint32_t message_size; /* 0: there was no version message yet */
    uint64_t root_device;
    uint32_t fid_count;
    size_t path_bytes;
    struct p9_fid *buckets[P9_BUCKETS];
    uint8_t directory[P9_DIRECTORY_BYTES]; /* what getdents64(2) tells */
};

/* Handlers: all fields are taken before anything is done. 0 or a negative errno. */
typedef int p9_handler(struct p9_server *server, struct p9_reader *in, struct p9_writer *out);
p9_handler p9_statfs, p9_open, p9_create, p9_readlink, p9_getattr, p9_setattr, p9_readdir, p9_fsync,
    p9_lock, p9_getlock, p9_read, p9_write;
p9_handler p9_attach, p9_walk, p9_clunk, p9_remove, p9_symlink, p9_mknod, p9_rename, p9_link,
    p9_mkdir, p9_renameat, p9_unlinkat;

/* Were all fields there, and nothing else? */
static inline bool p9_is_whole(const struct p9_reader *in)
{
    return !in->bad && in->left == 0;
}

/* server_fid.c */

/* NULL: there is none. */
struct p9_fid *p9_fid_find(const struct p9_server *server, uint32_t id);
/* -EBADF: there is one already. -ENFILE, -ENOMEM: too many. */
int p9_fid_add(struct p9_server *server, uint32_t id, const char *path, struct p9_fid **ret_fid);
int p9_fid_set_path(struct p9_server *server, struct p9_fid *fid, const char *path);
void p9_fid_drop(struct p9_server *server, uint32_t id);
void p9_fid_drop_all(struct p9_server *server);
/* What was below `from` is now below `to`. */
void p9_fids_moved(struct p9_server *server, const char *from, const char *to);

/* A name of one step: not empty, no slash, neither "." nor "..". */
bool p9_is_name(const char *name);
/* -ENAMETOOLONG; -EINVAL if the name is none. */
int p9_join(const char *folder, const char *name, char ret_path[PATH_MAX]);

/*
 * A descriptor that only names the file (O_PATH), and keeps naming it when names change: so that
 * what was looked at is what is used then. A symbolic link at the end is named itself.
 */
int p9_pin(const struct p9_server *server, const char *path);
/* The same for a folder. */
int p9_pin_folder(const struct p9_server *server, const char *path);
/* Open what is pinned, if it is a regular file or a folder. */
int p9_open_pinned(const struct p9_server *server, int pin, int flags);

/* What identifies a file to the client (13 bytes). */
void p9_put_qid(const struct p9_server *server, struct p9_writer *out, const struct stat *status);
/* Status of a name, by looking it up. */
int p9_status(const struct p9_server *server, const char *path, struct stat *ret_status);
