/*
 * doppel-net: the network helper of one machine, started by doppel before its jail closes.
 *
 *     doppel-net user mtu=N [forward=tcp|udp:ADDRESS:PORT:GUEST-PORT]...
 *     doppel-net socket PATH
 *     doppel-net vsock PATH
 *
 * What runs here is the keeper: it sees no byte of the guest's. It gives the machine a stream
 * socket with frames (backend/net/frames.h): one end of a pair, whose other end belongs to a worker
 * process that is the network; or one that is connected to PATH. When the worker or the peer is
 * gone it gives another. For a vsock it connects to PATH_PORT when it is asked to. It ends with the
 * machine.
 *
 * A program of its own, so that the process that runs the guest holds no code of the user-mode
 * network (libslirp, GLib), and starts no slower for it.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "backend/net/pass.h"
#include "net.h"

enum {
    CHANNEL = 3,
    WIRE_BUFFER = 4 << 20, /* asked for; the host allows less */
    PAUSE_MIN_MS = 50,     /* before a worker that ended soon is started again */
    PAUSE_MAX_MS = 5000,
    LONG_LIFE_MS = 10000,
};

struct keeper {
    struct user_network user;
    const char *path; /* of the socket; NULL: the user-mode network */
    bool is_vsock;
    pid_t worker; /* 0: none */
    int control;  /* to the worker; -1: none */
    long long started_ms;
    int pause_ms;
};

static long long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* The machine is gone if it cannot be told. */
static void tell(char kind, const char *text, int fd)
{
    if (pass_send(CHANNEL, kind, text, fd)) {
        exit(0);
    }
}

static void be_worker(const struct keeper *keeper, int wire, int control)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NAME, "doppel-net-user");
    close(CHANNEL);
    user_network_run(&keeper->user, wire, control);
    _exit(1);
}

static void end_worker(struct keeper *keeper, int *ret_status)
{
    *ret_status = 0;
    if (keeper->worker) {
        kill(keeper->worker, SIGKILL);
        waitpid(keeper->worker, ret_status, 0);
        close(keeper->control);
        keeper->worker = 0;
        keeper->control = -1;
    }
}

/* The worker is set up, or says why not. */
static bool await_ready(struct keeper *keeper, char text[PASS_TEXT_MAX])
{
    struct passed passed;
    int r = pass_receive(keeper->control, &passed);
    if (r > 0 && passed.kind == PASS_READY) {
        return true;
    }
    snprintf(text, PASS_TEXT_MAX, "%s",
             r > 0 ? passed.text : "the user-mode network ended at its start");
    int status;
    end_worker(keeper, &status);
    return false;
}

static void grow_buffers(const int pair[2])
{
    const int size = WIRE_BUFFER;
    for (unsigned i = 0; i < 2; i++) {
        if (setsockopt(pair[i], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size)) {
            setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
        }
    }
}

/* A new worker; the machine's end of its wire, or -1 with the reason in `text`. */
static int start_worker(struct keeper *keeper, char text[PASS_TEXT_MAX])
{
    int wire[2], control[2];
    keeper->started_ms = now_ms();
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, wire)) {
        snprintf(text, PASS_TEXT_MAX, "make a socket: %s", strerror(errno));
        return -1;
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control)) {
        snprintf(text, PASS_TEXT_MAX, "make a socket: %s", strerror(errno));
        close(wire[0]);
        close(wire[1]);
        return -1;
    }
    grow_buffers(wire);
    keeper->worker = fork();
    if (keeper->worker == 0) {
        close(wire[0]);
        close(control[0]);
        be_worker(keeper, wire[1], control[1]);
    }
    close(wire[1]);
    close(control[1]);
    keeper->control = control[0];
    if (keeper->worker < 0) {
        snprintf(text, PASS_TEXT_MAX, "start a process: %s", strerror(errno));
        keeper->worker = 0;
        close(control[0]);
        keeper->control = -1;
    }
    if (!keeper->worker || !await_ready(keeper, text)) {
        close(wire[0]);
        return -1;
    }
    return wire[0];
}

/* A descriptor, or a negative errno. Who listens without taking anybody does not hold us up. */
static int connect_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        return -ENAMETOOLONG;
    }
    memcpy(address.sun_path, path, strlen(path));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) {
        int error = errno;
        if (fd >= 0) {
            close(fd);
        }
        return -error;
    }
    return fd;
}

static int connect_socket(const char *path, char text[PASS_TEXT_MAX])
{
    int fd = connect_unix(path);
    if (fd < 0) {
        snprintf(text, PASS_TEXT_MAX, "--net socket: connect to '%s': %s", path, strerror(-fd));
    }
    return fd;
}

/* Try to give the machine a wire. */
static bool supply(struct keeper *keeper, char failure_kind)
{
    char text[PASS_TEXT_MAX] = "";
    int fd = keeper->path ? connect_socket(keeper->path, text) : start_worker(keeper, text);
    if (fd < 0) {
        if (failure_kind) {
            tell(failure_kind, text, -1);
        }
        return false;
    }
    tell(PASS_WIRE, "", fd);
    close(fd);
    return true;
}

/* What the worker asks for, or its end. True: it has ended. */
static bool serve_worker(struct keeper *keeper)
{
    struct passed passed;
    int r = pass_receive(keeper->control, &passed);
    if (r > 0 && passed.kind == PASS_FILE) {
        int file = open("/etc/resolv.conf", O_RDONLY | O_CLOEXEC);
        r = pass_send(keeper->control, PASS_FILE, "", file);
        if (file >= 0) {
            close(file);
        }
    }
    if (passed.fd >= 0) {
        close(passed.fd);
    }
    return r < 0;
}

static void note_end(struct keeper *keeper)
{
    char text[PASS_TEXT_MAX];
    int status;
    /* it has closed its sockets; give it time to end by itself, to see how */
    for (unsigned i = 0; i < 100; i++) {
        siginfo_t info = {0};
        if (waitid(P_PID, (id_t)keeper->worker, &info, WEXITED | WNOHANG | WNOWAIT) ||
            info.si_pid) {
            break;
        }
        usleep(1000);
    }
    end_worker(keeper, &status);
    if (WIFSIGNALED(status)) {
        snprintf(text, sizeof text,
                 "the user-mode network was ended by signal %d; it is started "
                 "again",
                 WTERMSIG(status));
    } else {
        snprintf(text, sizeof text, "the user-mode network ended (status %d); it is started again",
                 WEXITSTATUS(status));
    }
    tell(PASS_NOTE, text, -1);
}

/* Give a wire again, sooner if the last one held long. */
static void supply_again(struct keeper *keeper)
{
    bool was_long = now_ms() - keeper->started_ms >= LONG_LIFE_MS;
    keeper->pause_ms = was_long || !keeper->pause_ms ? PAUSE_MIN_MS : keeper->pause_ms * 2;
    for (;;) {
        keeper->pause_ms = keeper->pause_ms < PAUSE_MAX_MS ? keeper->pause_ms : PAUSE_MAX_MS;
        struct pollfd channel = {.fd = CHANNEL, .events = POLLRDHUP};
        if (poll(&channel, 1, keeper->pause_ms) > 0 && (channel.revents & (POLLHUP | POLLRDHUP))) {
            exit(0);
        }
        keeper->started_ms = now_ms();
        if (supply(keeper, 0)) {
            return;
        }
        keeper->pause_ms *= 2;
    }
}

/* The guest wants a port of the host: "PORT TOKEN". */
static void connect_port(const struct keeper *keeper, const char *text)
{
    unsigned port, token;
    char path[PASS_TEXT_MAX], answer[16];
    if (!keeper->is_vsock || sscanf(text, "%u %u", &port, &token) != 2) {
        return;
    }
    snprintf(path, sizeof path, "%s_%u", keeper->path, port);
    snprintf(answer, sizeof answer, "%u", token);
    int fd = connect_unix(path);
    tell(fd >= 0 ? PASS_WIRE : PASS_REFUSED, answer, fd);
    if (fd >= 0) {
        close(fd);
    }
}

/* What the machine says. True: its wire is lost. */
static bool serve_machine(const struct keeper *keeper)
{
    struct passed passed;
    int r = pass_receive(CHANNEL, &passed);
    if (r < 0) {
        if (keeper->is_vsock) {
            unlink(keeper->path); /* which the machine could not, in its jail */
        }
        exit(0);
    }
    if (passed.fd >= 0) {
        close(passed.fd);
    }
    if (passed.kind == PASS_CONNECT) {
        connect_port(keeper, passed.text);
    }
    return passed.kind == PASS_LOST && keeper->path && !keeper->is_vsock;
}

static void keep(struct keeper *keeper)
{
    for (;;) {
        struct pollfd sources[2] = {
            {.fd = CHANNEL, .events = POLLIN},
            {.fd = keeper->control, .events = POLLIN}, /* -1 is left out */
        };
        if (poll(sources, 2, -1) < 0) {
            if (errno == EINTR) {
                continue;
            }
            exit(1);
        }
        if (sources[0].revents && serve_machine(keeper)) {
            supply_again(keeper);
        }
        if (keeper->worker && sources[1].revents && serve_worker(keeper)) {
            note_end(keeper);
            supply_again(keeper);
        }
    }
}

/* forward=tcp:127.0.0.1:8080:80; doppel has checked what the user wrote. */
static bool parse_forward(const char *text, struct user_network *user)
{
    char protocol[4], address[16];
    struct forward forward;
    int end = 0;
    if (sscanf(text, "%3[a-z]:%15[0-9.]:%u:%u%n", protocol, address, &forward.host_port,
               &forward.guest_port, &end) != 4 ||
        text[end] || inet_pton(AF_INET, address, &forward.address) != 1 ||
        user->forward_count == FORWARDS_MAX) {
        return false;
    }
    forward.is_udp = !strcmp(protocol, "udp");
    user->forwards[user->forward_count++] = forward;
    return true;
}

static bool parse(int argc, char **argv, struct keeper *keeper)
{
    if (argc == 3 && (!strcmp(argv[1], "socket") || !strcmp(argv[1], "vsock"))) {
        keeper->path = argv[2];
        keeper->is_vsock = argv[1][0] == 'v';
        return true;
    }
    if (argc < 2 || strcmp(argv[1], "user")) {
        return false;
    }
    for (int i = 2; i < argc; i++) {
        if (!strncmp(argv[i], "mtu=", 4)) {
            keeper->user.mtu = (unsigned)atoi(argv[i] + 4);
        } else if (strncmp(argv[i], "forward=", 8) || !parse_forward(argv[i] + 8, &keeper->user)) {
            return false;
        }
    }
    return keeper->user.mtu > 0;
}

/*
 * Nobody's output stays open because of us, and what a guest makes libslirp say about it is not for
 * the user's terminal.
 */
static void be_silent(void)
{
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int standard = 0; standard <= STDERR_FILENO && fd >= 0; standard++) {
        dup2(fd, standard);
    }
    if (fd > CHANNEL) {
        close(fd);
    }
}

int main(int argc, char **argv)
{
    struct keeper keeper = {.control = -1};
    int type = 0;
    socklen_t size = sizeof type;
    if (!parse(argc, argv, &keeper) || getsockopt(CHANNEL, SOL_SOCKET, SO_TYPE, &type, &size) ||
        type != SOCK_SEQPACKET) {
        fputs("doppel-net is the network helper of doppel, which starts it.\n", stderr);
        return 2;
    }
    close_range(CHANNEL + 1, ~0u, 0);
    be_silent();
    setsid(); /* the terminal's signals are for the machine */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    fcntl(CHANNEL, F_SETFD, FD_CLOEXEC);
    if (keeper.is_vsock) {
        tell(PASS_READY, "", -1);
    } else if (!supply(&keeper, PASS_ERROR)) {
        return 1;
    }
    keep(&keeper);
}
