/* The control socket of server.h: accepting clients, and moving bytes between them and sessions. */
#include "control/server.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/loop.h"
#include "control/console_stream.h"

enum { SEND_ROUNDS = 64, FAREWELL_MS = 1000 };

struct client {
    struct control_server *server;
    int fd; /* -1: the place is free */
    struct watch *watch;
    struct session *session;
    bool ended; /* it sends nothing more */
};

struct control_server {
    struct loop *loop;
    const struct session_command *commands;
    void *owner;
    uid_t user; /* whose clients are let in */
    int fd;
    struct watch *watch;
    struct client clients[CONTROL_CLIENTS_MAX];
};

CLEANUP_DEFINE(struct control_server, control_server_close)

/* ---- clients ---- */

static void client_close(struct client *client)
{
    watch_free(client->watch);
    session_free(client->session);
    cleanup_close(&client->fd);
    client->fd = -1;
    client->watch = NULL;
    client->session = NULL;
}

/* Send what there is, for a while: others want their turn. False: the client is gone. */
static bool client_send(struct client *client)
{
    size_t size;
    const char *bytes = session_output(client->session, &size);
    for (unsigned round = 0; size && round < SEND_ROUNDS; round++) {
        ssize_t sent = write(client->fd, bytes, size);
        if (sent < 0 && errno == EINTR) {
            continue;
        }
        if (sent < 0) {
            return errno == EAGAIN;
        }
        session_sent(client->session, (size_t)sent);
        bytes = session_output(client->session, &size);
    }
    return true;
}

/* Take what was sent, as far as the session has room. False: the client is gone. */
static bool client_receive(struct client *client)
{
    char bytes[4096];
    size_t room = session_room(client->session);
    if (client->ended || !room) {
        return true;
    }
    ssize_t size = read(client->fd, bytes, room < sizeof bytes ? room : sizeof bytes);
    if (size < 0) {
        return errno == EAGAIN || errno == EINTR;
    }
    client->ended = size == 0;
    session_receive(client->session, bytes, (size_t)size);
    return true;
}

/* What to wait for: 0 if there is nothing more to talk about. */
static unsigned client_wish(struct client *client, unsigned events)
{
    size_t waiting;
    session_output(client->session, &waiting);
    bool listens = !client->ended && session_room(client->session);
    bool is_left = client->ended && session_is_stream(client->session);
    bool is_gone = (events & LOOP_HANGUP) && !listens;
    if (is_left || is_gone || (!waiting && (client->ended || session_is_over(client->session)))) {
        return 0;
    }
    unsigned wish = (waiting ? LOOP_WRITABLE : 0) | (listens ? LOOP_READABLE : 0);
    return wish ? wish : LOOP_HANGUP;
}

/* Level-triggered, so each round does one read: a busy client cannot hold the loop. */
static void on_client(void *owner, unsigned events)
{
    struct client *client = owner;
    bool alive = client_send(client) && client_receive(client) && client_send(client);
    unsigned wish = alive ? client_wish(client, events) : 0;
    if (wish && watch_set(client->watch, wish & (LOOP_READABLE | LOOP_WRITABLE))) {
        trail_clear();
        wish = 0;
    }
    if (!wish) {
        client_close(client);
    }
}

/* Its stream has something new. */
static void wake_client(void *owner)
{
    on_client(owner, 0);
}

static bool is_user(int fd, uid_t user)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) && size == sizeof peer &&
           peer.uid == user;
}

static struct client *free_place(struct control_server *server)
{
    for (size_t i = 0; i < ARRAY_SIZE(server->clients); i++) {
        if (server->clients[i].fd < 0) {
            return &server->clients[i];
        }
    }
    return NULL;
}

/* Turned away with a line, if the socket takes it at once. */
static void turn_away(int fd, const char *line)
{
    ssize_t ignored = write(fd, line, strlen(line));
    (void)ignored;
    close(fd);
}

static void on_connection(void *owner, unsigned events)
{
    struct control_server *server = owner;
    int fd = accept4(server->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
        return;
    }
    if (!is_user(fd, server->user)) {
        turn_away(fd, "{\"ok\":false,\"error\":{\"code\":\"forbidden\",\"message\":"
                      "\"the machine belongs to another user\"}}\n");
        return;
    }
    struct client *client = free_place(server);
    if (!client) {
        turn_away(fd, "{\"ok\":false,\"error\":{\"code\":\"busy\",\"message\":"
                      "\"too many clients are connected\"}}\n");
        return;
    }
    client->fd = fd;
    client->ended = false;
    client->session = session_new(server->commands, server->owner);
    session_set_waker(client->session, &(struct session_waker){wake_client, client});
    if (watch_new(server->loop, fd, LOOP_READABLE, on_client, client, &client->watch)) {
        trail_clear();
        client_close(client);
    }
}

/* ---- life ---- */

static int bind_to(int fd, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        return fail(-ENAMETOOLONG, "the path of the control socket, %s, is over %zu bytes", path,
                    sizeof address.sun_path - 1);
    }
    memcpy(address.sun_path, path, strlen(path) + 1);
    unlink(path);
    mode_t mask = umask(0177);
    int r = bind(fd, (struct sockaddr *)&address, sizeof address);
    int error = errno;
    umask(mask);
    if (r || listen(fd, CONTROL_CLIENTS_MAX)) {
        error = r ? error : errno;
        return fail(-error, "make the control socket %s: %s", path, strerror(error));
    }
    return 0;
}

int control_server_open(struct loop *loop, const char *path, const struct session_command *commands,
                        void *owner, struct control_server **ret_server)
{
    CLEANUP(control_server_close) struct control_server *server = calloc(1, sizeof *server);
    ASSERT(server);
    server->loop = loop;
    server->commands = commands;
    server->owner = owner;
    server->user = geteuid();
    for (size_t i = 0; i < ARRAY_SIZE(server->clients); i++) {
        server->clients[i] = (struct client){.server = server, .fd = -1};
    }
    server->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (server->fd < 0) {
        return fail(-errno, "make the control socket: %m");
    }
    int r = bind_to(server->fd, path);
    if (!r) {
        r = watch_new(loop, server->fd, LOOP_READABLE, on_connection, server, &server->watch);
    }
    if (r) {
        return r;
    }
    *ret_server = TAKE(server);
    return 0;
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Everything that it has not got yet, as long as it takes it. */
static void say_farewell(struct client *client, const char *words, size_t size, int64_t deadline)
{
    size_t waiting = 1;
    while (waiting) {
        int64_t left = deadline - now_ms();
        struct pollfd wish = {.fd = client->fd, .events = POLLOUT};
        if (left <= 0 || poll(&wish, 1, (int)left) <= 0 || !client_send(client)) {
            return;
        }
        session_output(client->session, &waiting);
    }
    ssize_t ignored = write(client->fd, words, size);
    (void)ignored;
}

void control_server_end(struct control_server *server, uint8_t status, const char *text)
{
    char words[CONSOLE_FRAME_MAX];
    size_t size = console_stream_last_words(words, status, text);
    int64_t deadline = now_ms() + FAREWELL_MS;
    for (size_t i = 0; server && i < ARRAY_SIZE(server->clients); i++) {
        struct client *client = &server->clients[i];
        if (client->fd >= 0 && session_is_stream(client->session)) {
            say_farewell(client, words, size, deadline);
        }
    }
}

void control_server_close(struct control_server *server)
{
    if (!server) {
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(server->clients); i++) {
        client_close(&server->clients[i]);
    }
    watch_free(server->watch);
    cleanup_close(&server->fd);
    free(server);
}

int control_server_descriptor(const struct control_server *server)
{
    return server->fd;
}
