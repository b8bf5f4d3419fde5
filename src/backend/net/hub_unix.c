/*
 * The hub of a path. Whoever connects there is handed on as he comes; PATH_PORT is connected by the
 * helper, which answers with the token that we gave.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "backend/net/pass.h"
#include "backend/net/program.h"
#include "backend/net/stream.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/loop.h"

enum { BACKLOG = 64, SUFFIX_MAX = 11 /* "_4294967295" */ };

struct hub_unix {
    struct hub hub;
    int listener, channel;
    atomic_bool is_woken; /* a call of work_posted() is on its way: the guest asks for any number */
    struct watch *listener_watch, *channel_watch;
};

static struct hub_unix *unix_of(struct hub *hub)
{
    return CONTAINER_OF(hub, struct hub_unix, hub);
}

static void on_client(void *owner, unsigned events)
{
    struct hub_unix *self = owner;
    int fd = accept4(self->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) {
        self->hub.receiver.arrived(self->hub.receiver.owner, fd);
    }
}

static void on_message(void *owner, unsigned events)
{
    struct hub_unix *self = owner;
    struct passed passed;
    int r = pass_receive(self->channel, &passed);
    if (r < 0) { /* the helper is gone: the guest's connections get no answer any more */
        watch_free(self->channel_watch);
        self->channel_watch = NULL;
        return;
    }
    bool is_answer = r > 0 && (passed.kind == PASS_WIRE || passed.kind == PASS_REFUSED);
    if (is_answer) {
        uint32_t token = (uint32_t)strtoul(passed.text, NULL, 10);
        self->hub.receiver.connected(self->hub.receiver.owner, token, passed.fd);
    } else if (passed.fd >= 0) {
        close(passed.fd);
    }
}

static void unix_connect(struct hub *hub, uint32_t port, uint32_t token)
{
    char text[48];
    int length = snprintf(text, sizeof text, "%c%u %u", PASS_CONNECT, port, token);
    struct hub_unix *self = unix_of(hub);
    if (!self->channel_watch || write(self->channel, text, (size_t)length) != length) {
        hub->receiver.connected(hub->receiver.owner, token, -1);
    }
}

static void work_posted(void *owner)
{
    struct hub *hub = owner;
    atomic_store(&unix_of(hub)->is_woken, false); /* before the work: whoever wakes now is heard */
    hub->receiver.work(hub->receiver.owner);
}

static void unix_wake(struct hub *hub)
{
    if (!atomic_exchange(&unix_of(hub)->is_woken, true)) {
        loop_post(hub->loop, work_posted, hub);
    }
}

static void unix_free(struct hub *hub)
{
    struct hub_unix *self = unix_of(hub);
    watch_free(self->listener_watch);
    watch_free(self->channel_watch);
    if (self->listener >= 0) {
        close(self->listener);
    }
    if (self->channel >= 0) {
        close(self->channel); /* the helper then removes the path */
    }
    free(self);
}

static const struct hub_ops unix_ops = {
    .connect = unix_connect,
    .wake = unix_wake,
    .free = unix_free,
};

/* A socket that an ended process left there may go; one at which somebody listens may not. */
static int remove_stale(const struct sockaddr_un *address)
{
    struct stat status;
    if (lstat(address->sun_path, &status) || !S_ISSOCK(status.st_mode)) {
        return 0; /* bind() will say what there is to say */
    }
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)address, sizeof *address) &&
        errno == ECONNREFUSED) {
        unlink(address->sun_path);
        return 0;
    }
    return fail(-EADDRINUSE, "--vsock: somebody listens at '%s' already", address->sun_path);
}

static int listen_at(const char *path, int *ret_listener)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) + SUFFIX_MAX >= sizeof address.sun_path) {
        return fail(-ENAMETOOLONG, "--vsock: the path '%s' is longer than %zu bytes", path,
                    sizeof address.sun_path - SUFFIX_MAX - 1);
    }
    memcpy(address.sun_path, path, strlen(path));
    int r = remove_stale(&address);
    if (r) {
        return r;
    }
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mode_t mask = umask(0177);
    bool bound = fd >= 0 && !bind(fd, (struct sockaddr *)&address, sizeof address);
    int error = errno;
    umask(mask);
    if (!bound || listen(fd, BACKLOG)) {
        error = bound ? errno : error;
        return fail(-error, "--vsock: listen at '%s': %s", path, strerror(error));
    }
    *ret_listener = TAKE_FD(fd);
    return 0;
}

int hub_unix_open(struct loop *loop, const char *path, struct hub **ret_hub, int *ret_listener,
                  int *ret_channel)
{
    struct hub_unix *self = calloc(1, sizeof *self);
    ASSERT(self);
    self->hub.ops = &unix_ops;
    self->hub.loop = loop;
    self->listener = self->channel = -1;
    const char *const arguments[] = {"vsock", path, NULL};
    struct passed passed;
    int r = listen_at(path, &self->listener);
    r = r ? r : program_start(arguments, &self->channel);
    r = r ? r : program_await(self->channel, &passed);
    r = r ? r
          : watch_new(loop, self->listener, LOOP_READABLE, on_client, self, &self->listener_watch);
    r = r ? r
          : watch_new(loop, self->channel, LOOP_READABLE, on_message, self, &self->channel_watch);
    if (r) {
        unix_free(&self->hub);
        return r;
    }
    *ret_hub = &self->hub;
    *ret_listener = self->listener;
    *ret_channel = self->channel;
    return 0;
}
