/*
 * The protocol of the control socket, without the socket: requests are JSON objects, one on each
 * line; each gets one line of JSON back, in order.
 *
 *     {"command": "stats", "id": 7}
 *     {"ok": true, "id": 7, "result": {...}}
 *     {"ok": false, "error": {"code": "unknown_command", "message": "..."}}
 *
 * Knows:   bytes in and bytes out; what commands do is given by a table. Bounded: a line has at
 * most SESSION_LINE_MAX bytes, and no request is read while an answer waits to be taken. Threads: a
 * session belongs to one thread. Before the jail: session_prepare(), once.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

enum { SESSION_LINE_MAX = 64 << 10 };

/*
 * What the connection carries instead of lines once a command has turned it over: after the answer
 * to that command, bytes of a protocol of their own. The functions are as those of the session
 * below.
 */
struct session_stream {
    size_t (*room)(void *object);
    void (*receive)(void *object, const char *bytes, size_t size);
    const char *(*output)(void *object, size_t *ret_size);
    void (*sent)(void *object, size_t size);
    bool (*is_over)(void *object);
    void (*free)(void *object);
    void *object;
};

/* Somebody to tell that there is output, or room, that no call of a session has made. */
struct session_waker {
    void (*wake)(void *owner);
    void *owner;
};

struct session_command {
    const char *name;
    /* The result (a new reference), or NULL with a sentence on the trail. */
    json_t *(*run)(void *owner, const json_t *request);
    const char *const *keys; /* that a request may have beside command and id; ends with NULL */
    /* Instead of `run`: the same, and the connection is turned over to *ret_stream. */
    json_t *(*turn)(void *owner, const json_t *request, const struct session_waker *waker,
                    struct session_stream *ret_stream);
};

/* `commands` ends with a NULL name and is borrowed. */
struct session *session_new(const struct session_command *commands, void *owner);
void session_free(struct session *session);

/* Whom streams wake; without it there are none. Before the first byte. */
void session_set_waker(struct session *session, const struct session_waker *waker);
/* Is the connection turned over, so that both directions are served at once? */
bool session_is_stream(const struct session *session);

/* How many bytes session_receive() takes now; 0 while an answer waits, or after a fatal error. */
size_t session_room(const struct session *session);
void session_receive(struct session *session, const char *bytes, size_t size);

/* The bytes to send, and how many of them have been sent. */
const char *session_output(struct session *session, size_t *ret_size);
void session_sent(struct session *session, size_t size);
/* A line was too long, or the stream ended: after the output there is nothing more to talk about.
 */
bool session_is_over(const struct session *session);

/* What the JSON library wants to open files for. */
void session_prepare(void);
