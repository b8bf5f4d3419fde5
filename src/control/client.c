/* Asking a machine: see client.h. */
#include "control/client.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
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

enum { WAIT_SECONDS = 10, ANSWER_MAX = 16 << 20 };

struct control_connection {
    FILE *stream;
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
    connection->stream = fdopen(fd, "r");
    if (!connection->stream) {
        return fail(-errno, "talk to machine '%s': %m", name);
    }
    TAKE_FD(fd); /* the stream's now */
    *ret_connection = TAKE(connection);
    return 0;
}

void control_be_patient(struct control_connection *connection, unsigned seconds)
{
    const struct timeval limit = {.tv_sec = seconds};
    setsockopt(fileno(connection->stream), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
}

void control_disconnect(struct control_connection *connection)
{
    if (connection) {
        if (connection->stream) {
            fclose(connection->stream);
        }
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
    int r = send_all(fileno(connection->stream), text, size + 1);
    free(text);
    if (r == -EAGAIN) {
        return fail(-ETIMEDOUT, "the machine does not answer");
    }
    return r ? fail(r == -ECONNRESET ? -EPIPE : r, "the machine has ended") : 0;
}

/* A line of at most ANSWER_MAX bytes, as JSON. */
static int read_answer(struct control_connection *connection, json_t **ret_answer)
{
    size_t size = 0, room = 0;
    char *text = NULL;
    int byte;
    while ((byte = getc_unlocked(connection->stream)) != EOF && byte != '\n' && size < ANSWER_MAX) {
        if (size == room) {
            room = room ? 2 * room : 4096;
            text = realloc(text, room);
            ASSERT(text);
        }
        text[size++] = (char)byte;
    }
    int error = byte == EOF && ferror(connection->stream) ? errno : 0;
    *ret_answer = byte == '\n' ? json_loadb(text, size, 0, NULL) : NULL;
    free(text);
    if (byte == EOF && error == EAGAIN) { /* the stream is of no use any more */
        return fail(-ETIMEDOUT, "the machine does not answer");
    }
    if (byte == EOF) { /* ended, or reset by a machine that had not read all */
        return fail(-EPIPE, "the machine has ended");
    }
    return *ret_answer ? 0 : fail(-EPROTO, "the machine's answer is no JSON");
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
