/* Asking a machine: see client.h. */
#include "control/client.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "control/registry.h"
#include "control/terminal_filter.h"

enum { WAIT_SECONDS = 10, ANSWER_MAX = 16 << 20 };

struct control_connection {
    int fd;
    char bytes[16384]; /* read, and not looked at yet */
    size_t first, count;
};

CLEANUP_DEFINE(struct control_connection, control_disconnect)

static int open_socket(const char *path)
{
    const struct timeval limit = {.tv_sec = WAIT_SECONDS};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        return fail(-ENAMETOOLONG, "the path %s is too long for a socket", path);
    }
    memcpy(address.sun_path, path, strlen(path) + 1);
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return fail(-errno, "make a socket: %m");
    }
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (connect(fd, (const struct sockaddr *)&address, sizeof address)) {
        return fail(-errno, "connect to %s: %m", path);
    }
    return TAKE_FD(fd);
}

int control_connect(const char *name, struct control_connection **ret_connection)
{
    char path[REGISTRY_SOCKET];
    int r = registry_find(name, path);
    if (r) {
        return r;
    }
    CLEANUP_FD int fd = open_socket(path);
    if (fd < 0) {
        return fail(fd, "machine '%s' cannot be asked", name);
    }
    CLEANUP(control_disconnect)
    struct control_connection *connection = calloc(1, sizeof *connection);
    ASSERT(connection);
    connection->fd = TAKE_FD(fd);
    *ret_connection = TAKE(connection);
    return 0;
}

void control_be_patient(struct control_connection *connection, unsigned seconds)
{
    const struct timeval limit = {.tv_sec = seconds};
    setsockopt(connection->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
}

void control_disconnect(struct control_connection *connection)
{
    if (connection) {
        cleanup_close(&connection->fd);
        free(connection);
    }
}

/* No SIGPIPE from a machine that has ended: who asks wants to know, and its output is another's. */
static int send_all(int fd, const char *bytes, size_t size)
{
    while (size) {
        ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) {
            continue;
        }
        if (sent < 0) {
            return -errno;
        }
        bytes += sent;
        size -= (size_t)sent;
    }
    return 0;
}

static int send_request(struct control_connection *connection, json_t *request)
{
    char *text = json_dumps(request, JSON_COMPACT);
    json_decref(request);
    ASSERT(text);
    size_t size = strlen(text);
    text[size] = '\n'; /* in the place of the NUL */
    int r = send_all(connection->fd, text, size + 1);
    free(text);
    if (r == -EAGAIN) {
        return fail(-ETIMEDOUT, "the machine does not answer");
    }
    return r ? fail(r == -ECONNRESET ? -EPIPE : r, "the machine has ended") : 0;
}

/* Have something to look at: 1, or 0 at the end, or a negative errno. */
static int fill(struct control_connection *connection)
{
    while (!connection->count) {
        ssize_t size = read(connection->fd, connection->bytes, sizeof connection->bytes);
        if (size < 0 && errno == EINTR) {
            continue;
        }
        if (size <= 0) {
            return size ? -errno : 0;
        }
        connection->first = 0;
        connection->count = (size_t)size;
    }
    return 1;
}

/* A line of at most ANSWER_MAX bytes: 1, or 0 at the end, or a negative errno. free() it. */
static int read_line(struct control_connection *connection, char **text, size_t *size)
{
    for (bool is_whole = false; !is_whole;) {
        int r = fill(connection);
        if (r <= 0) {
            return r;
        }
        const char *from = connection->bytes + connection->first;
        const char *end = memchr(from, '\n', connection->count);
        size_t piece = end ? (size_t)(end - from) : connection->count;
        if (*size + piece > ANSWER_MAX) {
            return -EMSGSIZE;
        }
        *text = realloc(*text, *size + piece + 1);
        ASSERT(*text);
        memcpy(*text + *size, from, piece);
        *size += piece;
        is_whole = end;
        connection->first += piece + is_whole;
        connection->count -= piece + is_whole;
    }
    return 1;
}

static int read_answer(struct control_connection *connection, json_t **ret_answer)
{
    char *text = NULL;
    size_t size = 0;
    int r = read_line(connection, &text, &size);
    *ret_answer = r > 0 ? json_loadb(text, size, 0, NULL) : NULL;
    free(text);
    if (r == -EAGAIN) {
        return fail(-ETIMEDOUT, "the machine does not answer");
    }
    if (r == 0 || r == -ECONNRESET) { /* the latter: it had not read all that was sent */
        return fail(-EPIPE, "the machine has ended");
    }
    if (r < 0) {
        return fail(r, "read the machine's answer: %s", strerror(-r));
    }
    return *ret_answer ? 0 : fail(-EPROTO, "the machine's answer is no JSON");
}

int control_descriptor(struct control_connection *connection)
{
    int flags = fcntl(connection->fd, F_GETFL);
    fcntl(connection->fd, F_SETFL, flags | O_NONBLOCK);
    return connection->fd;
}

ssize_t control_read(struct control_connection *connection, void *bytes, size_t size)
{
    int r = fill(connection);
    if (r <= 0) {
        return r;
    }
    size_t count = connection->count < size ? connection->count : size;
    memcpy(bytes, connection->bytes + connection->first, count);
    connection->first += count;
    connection->count -= count;
    return (ssize_t)count;
}

static bool is_printable(const char *text)
{
    char *copy = strdup(text);
    ASSERT(copy);
    terminal_make_printable(copy);
    bool is_same = !strcmp(copy, text);
    free(copy);
    return is_same;
}

/* All texts; members with names that nobody would give vanish. The library bounds the depth. */
static void make_printable(json_t *value)
{
    const char *key;
    json_t *member;
    void *next;
    size_t i;
    if (json_is_string(value) && !is_printable(json_string_value(value))) {
        char *text = strdup(json_string_value(value));
        ASSERT(text);
        terminal_make_printable(text);
        json_string_set(value, text);
        free(text);
    }
    json_array_foreach(value, i, member)
    {
        make_printable(member);
    }
    json_object_foreach_safe(value, next, key, member)
    {
        if (is_printable(key)) {
            make_printable(member);
        } else {
            json_object_del(value, key);
        }
    }
}

int control_call(struct control_connection *connection, json_t *request, json_t **ret_result)
{
    json_t *answer = NULL;
    int r = send_request(connection, request);
    if (!r) {
        r = read_answer(connection, &answer);
    }
    if (r) {
        return r;
    }
    make_printable(answer);
    json_t *result = json_object_get(answer, "result");
    if (result && json_is_true(json_object_get(answer, "ok"))) {
        *ret_result = json_incref(result);
    } else {
        const char *message =
            json_string_value(json_object_get(json_object_get(answer, "error"), "message"));
        r = fail(-EPROTO, "%s", message ? message : "the machine refuses without a reason");
    }
    json_decref(answer);
    return r;
}
