/*
 * A 9P2000.L server for one folder of the host: a message in, a message out.
 *
 * Knows:    names that a client gives. Each is looked up beneath the folder with openat2(2), which
 *           follows no symbolic link and leaves the folder by no way; a file is pinned before
 *           anything is done with it. Only regular files and folders are opened.
 * Promises: whatever the messages say, at most P9_FIDS_MAX names and P9_PATH_BYTES_MAX bytes of
 *           them are kept, as many files are open as the process may have, and nothing outside of
 *           the folder is read, changed or told of.
 * Owners:   files are made and changed with the rights of the process. Owners are shown as they
 *           are; a change of owner that the host forbids is left undone and reported as done, as
 *           tools that unpack archives expect it. Set-user-id and set-group-id bits of files are
 *           never set, and devices are not made.
 * Threads:  one at a time.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    P9_MESSAGE_MAX = 512 << 10, /* bytes in a message, the header included */
    P9_FIDS_MAX = 65536,
    P9_PATH_BYTES_MAX = 32 << 20,
};

struct p9_server;

/* `root`: the folder, opened with O_PATH; owned from now on. -errno with a sentence. */
int p9_server_new(int root, bool readonly, struct p9_server **ret_server)
    __attribute__((warn_unused_result));
void p9_server_free(struct p9_server *server);
/*
 * Answer a message. `room` is at most P9_MESSAGE_MAX. Returns the answer's size; 0 if the message
 * has not even a header, or the answer no room for an error.
 */
size_t p9_server_answer(struct p9_server *server, const uint8_t *message, size_t size,
                        uint8_t *reply, size_t room);
/* How many names the client holds: 0 when it has unmounted, or not mounted yet. */
uint32_t p9_server_fids(const struct p9_server *server);
