/* The session: versions, and each message to its handler. */
#include "backend/share/server.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "backend/share/server_internal.h"
#include "base/assert.h"
#include "base/error.h"

enum {
    REPLY_ERROR = 7,
    MESSAGE_VERSION = 100,
    MESSAGE_FLUSH = 108,
    MESSAGE_MIN = 4096, /* what a client must be able to take */
    ERROR_SIZE = P9_HEADER + 4,
    VERSION_MAX = 32,
};

/* A version begins a session, and ends the one before. */
static int version(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    char text[VERSION_MAX + 1];
    uint32_t size = p9_take32(in);
    p9_take_text(in, text, VERSION_MAX);
    if (!p9_is_whole(in) || size < MESSAGE_MIN) {
        return -EPROTO;
    }
    bool is_known = !strcmp(text, "9P2000.L");
    p9_fid_drop_all(server);
    size = size < P9_MESSAGE_MAX ? size : P9_MESSAGE_MAX;
    server->message_size = is_known ? size : 0;
    p9_put32(out, size);
    p9_put_text(out, is_known ? text : "unknown");
    return 0;
}

/* Messages are answered one after the other: what is to be flushed was answered before. */
static int flush(struct p9_server *server, struct p9_reader *in, struct p9_writer *out)
{
    p9_take16(in);
    return p9_is_whole(in) ? 0 : -EPROTO;
}

/* By type; an answer's type is one more. Those that are missing are not supported. */
static p9_handler *const handlers[256] = {
    [8] = p9_statfs,    [12] = p9_open,          [14] = p9_create,
    [16] = p9_symlink,  [18] = p9_mknod,         [20] = p9_rename,
    [22] = p9_readlink, [24] = p9_getattr,       [26] = p9_setattr,
    [40] = p9_readdir,  [50] = p9_fsync,         [52] = p9_lock,
    [54] = p9_getlock,  [70] = p9_link,          [72] = p9_mkdir,
    [74] = p9_renameat, [76] = p9_unlinkat,      [MESSAGE_VERSION] = version,
    [104] = p9_attach,  [MESSAGE_FLUSH] = flush, [110] = p9_walk,
    [116] = p9_read,    [118] = p9_write,        [120] = p9_clunk,
    [122] = p9_remove,
};

/* 0 or a negative errno; the answer's body is in `out`. */
static int handle(struct p9_server *server, uint8_t type, uint32_t size, struct p9_reader *in,
                  struct p9_writer *out)
{
    if (size != in->left + P9_HEADER) {
        return -EPROTO;
    }
    if (server->message_size == 0 && type != MESSAGE_VERSION) {
        return -EPROTO;
    }
    int r = handlers[type] ? handlers[type](server, in, out) : -EOPNOTSUPP;
    return r ? r : out->full ? -EMSGSIZE : 0;
}

size_t p9_server_answer(struct p9_server *server, const uint8_t *message, size_t size,
                        uint8_t *reply, size_t room)
{
    if (size < P9_HEADER || room < ERROR_SIZE) {
        return 0;
    }
    uint8_t type = message[4];
    uint16_t tag = load_le16(message + 5);
    if (type != MESSAGE_VERSION && server->message_size && room > server->message_size) {
        room = server->message_size;
    }
    struct p9_reader in = {.at = message + P9_HEADER, .left = size - P9_HEADER};
    struct p9_writer out = {.bytes = reply, .used = P9_HEADER, .room = room};
    int r = handle(server, type, load_le32(message), &in, &out);
    if (r) {
        type = REPLY_ERROR - 1;
        out = (struct p9_writer){.bytes = reply, .used = P9_HEADER, .room = room};
        p9_put32(&out, (uint32_t)-r);
    }
    store_le32(reply, (uint32_t)out.used);
    reply[4] = (uint8_t)(type + 1);
    store_le16(reply + 5, tag);
    return out.used;
}

uint32_t p9_server_fids(const struct p9_server *server)
{
    return server->fid_count;
}

int p9_server_new(int root, bool readonly, struct p9_server **ret_server)
{
    struct stat status;
    struct p9_server *server = calloc(1, sizeof *server);
    ASSERT(server);
    server->root = root;
    server->readonly = readonly;
    server->self = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
    int r = server->self < 0 ? fail(-errno, "open /proc/self/fd: %m") : 0;
    if (!r) {
        r = p9_status(server, "", &status);
        if (r == -ENOSYS) {
            r = fail(r, "this host's kernel has no openat2(2), which keeps the guest in the "
                        "folder (Linux 5.6 has it)");
        } else if (r) {
            r = fail(r, "look at the folder: %s", strerror(-r));
        }
    }
    if (r) {
        p9_server_free(server);
        return r;
    }
    server->root_device = status.st_dev;
    *ret_server = server;
    return 0;
}

void p9_server_free(struct p9_server *server)
{
    if (server) {
        p9_fid_drop_all(server);
        if (server->self >= 0) {
            close(server->self);
        }
        close(server->root);
        free(server);
    }
}
