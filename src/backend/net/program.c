/* Starting the helper program. */
#include "backend/net/program.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/net/pass.h"
#include "base/assert.h"
#include "base/error.h"

enum { ARGUMENTS_MAX = 64, START_LIMIT_MS = 10000, HELPER_CHANNEL = 3 };

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

int program_start(const char *const *arguments, int *ret_channel)
{
    char path[PATH_MAX];
    char *argv[ARGUMENTS_MAX + 2] = {(char *)"doppel-net"};
    for (size_t i = 0; arguments[i]; i++) {
        ASSERT(i < ARGUMENTS_MAX);
        argv[i + 1] = (char *)arguments[i];
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
    /* The loop writes to it, and the helper to us: neither may wait for the other. */
    fcntl(pair[0], F_SETFL, O_NONBLOCK);
    *ret_channel = pair[0];
    return 0;
}

int program_await(int channel, struct passed *ret_passed)
{
    struct pollfd wait = {.fd = channel, .events = POLLIN};
    int ready = poll(&wait, 1, START_LIMIT_MS);
    if (ready <= 0) {
        return fail(ready ? -errno : -ETIMEDOUT, "the network helper does not answer");
    }
    if (pass_receive(channel, ret_passed) <= 0) {
        return fail(-EIO, "the network helper ended at its start");
    }
    return ret_passed->kind == PASS_ERROR ? fail(-EIO, "%s", ret_passed->text) : 0;
}
