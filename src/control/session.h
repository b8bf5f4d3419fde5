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

struct session_command {
    const char *name;
    /* The result (a new reference), or NULL with a sentence on the trail. */
    json_t *(*run)(void *owner, const json_t *request);
    const char *const *keys; /* that a request may have beside command and id; ends with NULL */
};

/* `commands` ends with a NULL name and is borrowed. */
struct session *session_new(const struct session_command *commands, void *owner);
void session_free(struct session *session);

/* How many bytes session_receive() takes now; 0 while an answer waits, or after a fatal error. */
size_t session_room(const struct session *session);
void session_receive(struct session *session, const char *bytes, size_t size);

/* The bytes to send, and how many of them have been sent. */
const char *session_output(const struct session *session, size_t *ret_size);
void session_sent(struct session *session, size_t size);
/* A line was too long: when the output is sent there is nothing more to talk about. */
bool session_is_over(const struct session *session);

/* What the JSON library wants to open files for. */
void session_prepare(void);
