/* For tests and fuzzers of the 9P server: messages are put together, sent, and taken apart. */
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/share/message.h"
#include "backend/share/server.h"
#include "base/assert.h"

struct client {
    struct p9_server *server;
    char folder[64]; /* the share is "root" in it */
    uint8_t message[P9_MESSAGE_MAX], reply[P9_MESSAGE_MAX];
    size_t room;
    struct p9_writer out;
    struct p9_reader in; /* the body of the answer */
};

static inline void client_path(const struct client *client, const char *name, char path[128])
{
    snprintf(path, 128, "%s/%s", client->folder, name);
}

static inline void client_init(struct client *client, bool readonly)
{
    char path[128];
    snprintf(client->folder, sizeof client->folder, "/tmp/share_test.XXXXXX");
    ASSERT(mkdtemp(client->folder));
    client_path(client, "root", path);
    ASSERT(!mkdir(path, 0777));
    int root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    ASSERT(root >= 0 && !p9_server_new(root, readonly, &client->server));
    client->room = sizeof client->reply;
}

/* Remove what is in a folder, whatever it may be. */
static inline void client_empty(int folder)
{
    DIR *entries = fdopendir(folder);
    ASSERT(entries);
    for (struct dirent *entry; (entry = readdir(entries));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) {
            continue;
        }
        if (unlinkat(dirfd(entries), entry->d_name, 0)) {
            if (fchmodat(dirfd(entries), entry->d_name, 0700, 0)) {
                continue;
            }
            int below = openat(dirfd(entries), entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
            if (below >= 0) {
                client_empty(below);
            }
            unlinkat(dirfd(entries), entry->d_name, AT_REMOVEDIR);
        }
    }
    closedir(entries);
}

static inline void client_fini(struct client *client)
{
    p9_server_free(client->server);
    client_empty(open(client->folder, O_RDONLY | O_DIRECTORY));
    ASSERT(!rmdir(client->folder));
}

/* Begin a message; the fields are put to client->out. */
static inline struct p9_writer *client_begin(struct client *client, uint8_t type)
{
    client->out = (struct p9_writer){.bytes = client->message, .room = sizeof client->message};
    p9_put32(&client->out, 0);
    p9_put8(&client->out, type);
    p9_put16(&client->out, 77);
    return &client->out;
}

/* Send it as it is: 0 and the answer in client->in, or a negative errno. */
static inline int client_send(struct client *client)
{
    size_t size = p9_server_answer(client->server, client->message, client->out.used, client->reply,
                                   client->room);
    ASSERT(size >= P9_HEADER && size <= client->room && load_le32(client->reply) == size);
    ASSERT(load_le16(client->reply + 5) == load_le16(client->message + 5));
    client->in = (struct p9_reader){.at = client->reply + P9_HEADER, .left = size - P9_HEADER};
    if (client->reply[4] == 7) {
        ASSERT(size == P9_HEADER + 4);
        return -(int)load_le32(client->reply + P9_HEADER);
    }
    ASSERT(client->reply[4] == (uint8_t)(client->message[4] + 1));
    return 0;
}

static inline int client_call(struct client *client)
{
    store_le32(client->message, (uint32_t)client->out.used);
    return client_send(client);
}

static inline int client_version(struct client *client, uint32_t size, const char *version)
{
    struct p9_writer *out = client_begin(client, 100);
    p9_put32(out, size);
    p9_put_text(out, version);
    return client_call(client);
}

static inline int client_attach(struct client *client, uint32_t fid)
{
    struct p9_writer *out = client_begin(client, 104);
    p9_put32(out, fid);
    p9_put32(out, UINT32_MAX);
    p9_put_text(out, "user");
    p9_put_text(out, "");
    p9_put32(out, 0);
    return client_call(client);
}

/* Walk to a path of names between slashes. */
static inline int client_walk(struct client *client, uint32_t fid, uint32_t new, const char *path)
{
    struct p9_writer *out = client_begin(client, 110);
    p9_put32(out, fid);
    p9_put32(out, new);
    p9_put16(out, 0);
    uint8_t *count = out->bytes + out->used - 2;
    while (path) {
        const char *slash = strchrnul(path, '/');
        p9_put16(out, (uint16_t)(slash - path));
        p9_put_bytes(out, path, (size_t)(slash - path));
        store_le16(count, (uint16_t)(load_le16(count) + 1));
        path = *slash ? slash + 1 : NULL;
    }
    return client_call(client);
}
