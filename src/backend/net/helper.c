/*
 * Starting the helper, and its messages: see pass.h. The wire is net_wire; this file only keeps it
 * connected.
 */
#include "backend/net/helper.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/net/pass.h"
#include "backend/net/wire.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/loop.h"

enum { ARGUMENTS_MAX = 64, START_LIMIT_MS = 10000, HELPER_CHANNEL = 3 };

/* Belongs to its wire. */
struct net_helper {
    struct net_helper_config config;
    struct net *wire;
    int channel;
    struct watch *watch;
};

/* The program lies beside ours. */
static int find_program(char path[PATH_MAX])
{
    ssize_t length = readlink("/proc/self/exe", path, PATH_MAX - 1);
    if (length < 0) {
        return fail(-errno, "find our own program: %m");
    }
    path[length] = 0;
    char *slash = strrchr(path, '/');
    size_t used = slash ? (size_t)(slash - path) + 1 : 0;
    if (snprintf(path + used, PATH_MAX - used, "doppel-net") >= (int)(PATH_MAX - used)) {
        return fail(-ENAMETOOLONG, "find the network helper");
    }
    return access(path, X_OK) ? fail(-errno, "the network helper '%s': %m", path) : 0;
}

/* In the child: only calls that are safe after a fork. */
static void become(const char *path, char *const *argv, int channel)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    int fd = channel == HELPER_CHANNEL ? fcntl(channel, F_SETFD, 0) : dup2(channel, HELPER_CHANNEL);
    if (fd >= 0) {
        execv(path, argv);
    }
    _exit(127);
}

static int start_program(const struct net_helper_config *config, int *ret_channel)
{
    char path[PATH_MAX];
    char *argv[ARGUMENTS_MAX + 2] = {(char *)"doppel-net"};
    for (size_t i = 0; config->arguments[i]; i++) {
        ASSERT(i < ARGUMENTS_MAX);
        argv[i + 1] = (char *)config->arguments[i];
    }
    int r = find_program(path), pair[2];
    if (r) {
        return r;
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
        return fail(-errno, "make a socket for the network helper: %m");
    }
    pid_t child = fork();
    if (child == 0) {
        become(path, argv, pair[1]);
    }
    int error = errno;
    close(pair[1]);
    if (child < 0) {
        close(pair[0]);
        return fail(-error, "start the network helper: %s", strerror(error));
    }
    *ret_channel = pair[0];
    return 0;
}

static void tell(const struct net_helper *helper, const char *text)
{
    if (helper->config.report) {
        helper->config.report(helper->config.owner, text);
    }
}

static void give_up(struct net_helper *helper)
{
    watch_free(helper->watch);
    helper->watch = NULL;
    tell(helper, "the network helper is gone for good; the network stays down");
}

static int take_message(struct net_helper *helper, struct passed *passed)
{
    int r = 0;
    switch (passed->kind) {
    case PASS_WIRE:
        if (passed->fd >= 0) {
            r = net_wire_attach(helper->wire, passed->fd);
            passed->fd = -1;
        }
        break;
    case PASS_NOTE:
    case PASS_ERROR:
        tell(helper, passed->text);
        break;
    }
    if (passed->fd >= 0) {
        close(passed->fd);
    }
    return r;
}

static void on_message(void *owner, unsigned events)
{
    struct net_helper *helper = owner;
    struct passed passed;
    int r = pass_receive(helper->channel, &passed);
    if (r < 0) {
        give_up(helper);
    } else if (r > 0 && take_message(helper, &passed)) {
        tell(helper, trail_text());
        trail_clear();
    }
}

/* The helper finds out by itself, if it is its own socket; if it is another's, from us. */
static void on_lost(void *owner)
{
    const struct net_helper *helper = owner;
    const char kind = PASS_LOST;
    ssize_t ignored = write(helper->channel, &kind, 1);
    (void)ignored;
}

static void helper_free(void *owner)
{
    struct net_helper *helper = owner;
    watch_free(helper->watch);
    if (helper->channel >= 0) {
        close(helper->channel); /* which ends the helper */
    }
    free(helper);
}

/* The first message: the wire, or why there is none. */
static int await_wire(struct net_helper *helper)
{
    struct pollfd wait = {.fd = helper->channel, .events = POLLIN};
    int ready = poll(&wait, 1, START_LIMIT_MS);
    if (ready <= 0) {
        return fail(ready ? -errno : -ETIMEDOUT, "the network helper does not answer");
    }
    struct passed passed;
    int r = pass_receive(helper->channel, &passed);
    if (r <= 0) {
        return fail(-EIO, "the network helper ended at its start");
    }
    if (passed.kind == PASS_ERROR) {
        return fail(-EIO, "%s", passed.text);
    }
    return take_message(helper, &passed);
}

int net_helper_open(const struct net_helper_config *config, struct net **ret_net, int *ret_channel)
{
    struct net_helper *helper = calloc(1, sizeof *helper);
    ASSERT(helper);
    helper->config = *config;
    helper->channel = -1;
    const struct net_wire_config wire = {
        .loop = config->loop,
        .is_checked = config->is_checked,
        .mtu = config->mtu,
        .lost = on_lost,
        .freed = helper_free,
        .owner = helper,
    };
    helper->wire = net_wire_new(&wire);
    CLEANUP(net_free) struct net *net = helper->wire;
    int r = start_program(config, &helper->channel);
    if (!r) {
        r = await_wire(helper);
    }
    if (!r) {
        r = watch_new(config->loop, helper->channel, LOOP_READABLE, on_message, helper,
                      &helper->watch);
    }
    if (!r) {
        *ret_channel = helper->channel;
        *ret_net = TAKE(net);
    }
    return r;
}
