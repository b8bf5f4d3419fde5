/* The protocol of session.h: lines in, answers out. */
#include "control/session.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/error.h"

struct session {
    const struct session_command *commands;
    void *owner;
    char input[SESSION_LINE_MAX];
    size_t input_size;
    char *output; /* the answer that is being sent, or NULL */
    size_t output_size, output_sent;
    bool is_over;
    struct session_waker waker;
    struct session_stream stream; /* once it has an object: nothing else is talked */
};

void session_prepare(void)
{
    json_object_seed(0); /* by itself it would read /dev/urandom at the first object */
}

struct session *session_new(const struct session_command *commands, void *owner)
{
    struct session *session = malloc(sizeof *session);
    ASSERT(session);
    *session = (struct session){.commands = commands, .owner = owner};
    return session;
}

void session_free(struct session *session)
{
    if (session) {
        if (session->stream.object) {
            session->stream.free(session->stream.object);
        }
        free(session->output);
        free(session);
    }
}

void session_set_waker(struct session *session, const struct session_waker *waker)
{
    session->waker = *waker;
}

bool session_is_stream(const struct session *session)
{
    return session->stream.object;
}

/* ---- answers ---- */

static void answer(struct session *session, json_t *object)
{
    char *text = object ? json_dumps(object, JSON_COMPACT) : NULL;
    json_decref(object);
    ASSERT(text); /* the texts in it are UTF-8: parsed, or our own */
    size_t size = strlen(text);
    text = realloc(text, size + 1);
    ASSERT(text);
    text[size] = '\n';
    session->output = text;
    session->output_size = size + 1;
    session->output_sent = 0;
}

/* A copy of the request's id, so that clients can tell answers apart. */
static json_t *with_id(json_t *object, const json_t *request)
{
    json_t *id = json_object_get(request, "id");
    if (id) {
        json_object_set(object, "id", id);
    }
    return object;
}

static void refuse(struct session *session, const json_t *request, const char *code,
                   const char *message)
{
    json_t *text = json_string(message);
    if (!text) {
        text = json_string("(a message that is not UTF-8)");
    }
    answer(session, with_id(json_pack("{s:b, s:{s:s, s:o}}", "ok", 0, "error", "code", code,
                                      "message", text),
                            request));
}

/* ---- requests ---- */

static const struct session_command *command_find(const struct session *session, const char *name)
{
    for (const struct session_command *at = session->commands; at->name; at++) {
        if (!strcmp(at->name, name)) {
            return at;
        }
    }
    return NULL;
}

static void refuse_command(struct session *session, const json_t *request)
{
    char known[512] = "";
    for (const struct session_command *at = session->commands; at->name; at++) {
        strncat(known, *known ? ", " : "", sizeof known - strlen(known) - 1);
        strncat(known, at->name, sizeof known - strlen(known) - 1);
    }
    fail(-ENOENT, "there is no such command (known: %s)", known);
    refuse(session, request, "unknown_command", trail_text());
    trail_clear();
}

static bool is_known_key(const struct session_command *command, const char *key)
{
    if (!strcmp(key, "command") || !strcmp(key, "id")) {
        return true;
    }
    for (const char *const *at = command->keys; at && *at; at++) {
        if (!strcmp(*at, key)) {
            return true;
        }
    }
    return false;
}

/* The first key that the command does not know, or NULL. */
static const char *unknown_key(const struct session_command *command, json_t *request)
{
    for (void *at = json_object_iter(request); at; at = json_object_iter_next(request, at)) {
        if (!is_known_key(command, json_object_iter_key(at))) {
            return json_object_iter_key(at);
        }
    }
    return NULL;
}

static void run_request(struct session *session, json_t *request)
{
    const char *name = json_string_value(json_object_get(request, "command"));
    const json_t *id = json_object_get(request, "id");
    if (!json_is_object(request) || !name) {
        refuse(session, NULL, "invalid_request",
               "a request is an object with the string \"command\"");
        return;
    }
    if (id && !json_is_string(id) && !json_is_integer(id)) {
        refuse(session, NULL, "invalid_request", "\"id\" is a string or a whole number");
        return;
    }
    const struct session_command *command = command_find(session, name);
    if (!command) {
        refuse_command(session, request);
        return;
    }
    const char *key = unknown_key(command, request);
    if (key) {
        fail(-EINVAL, "%s has no key \"%.64s\"", command->name, key);
        refuse(session, request, "unknown_key", trail_text());
        trail_clear();
        return;
    }
    trail_clear();
    json_t *result = command->turn
                         ? command->turn(session->owner, request, &session->waker, &session->stream)
                         : command->run(session->owner, request);
    if (!result) {
        refuse(session, request, "failed", trail_text());
        trail_clear();
        return;
    }
    answer(session, with_id(json_pack("{s:b, s:o}", "ok", 1, "result", result), request));
}

static void run_line(struct session *session, const char *line, size_t size)
{
    json_error_t error;
    json_t *request = json_loadb(line, size, JSON_REJECT_DUPLICATES, &error);
    if (!request) {
        fail(-EINVAL, "no JSON: %s (column %d)", error.text, error.column);
        refuse(session, NULL, "invalid_json", trail_text());
        trail_clear();
        return;
    }
    run_request(session, request);
    json_decref(request);
}

/* What came behind the command that turned the connection over. */
static void pass_on(struct session *session)
{
    size_t room = session->stream.room(session->stream.object);
    size_t size = session->input_size < room ? session->input_size : room;
    if (size) {
        session->stream.receive(session->stream.object, session->input, size);
        session->input_size -= size;
        memmove(session->input, session->input + size, session->input_size);
    }
}

/* Run what is complete, one request at a time: the next when its answer has been taken. */
static void advance(struct session *session)
{
    while (!session->output && !session->is_over && !session->stream.object) {
        char *end = memchr(session->input, '\n', session->input_size);
        if (!end) {
            break;
        }
        size_t size = (size_t)(end - session->input);
        bool is_blank = size == 0 || (size == 1 && session->input[0] == '\r');
        if (!is_blank) {
            run_line(session, session->input, size);
        }
        session->input_size -= size + 1;
        memmove(session->input, end + 1, session->input_size);
    }
    if (session->stream.object) {
        pass_on(session);
    } else if (!session->output && !session->is_over && session->input_size == SESSION_LINE_MAX) {
        session->is_over = true;
        refuse(session, NULL, "too_long", "a request has at most 65536 bytes");
    }
}

size_t session_room(const struct session *session)
{
    if (session->stream.object) {
        return session->input_size ? 0 : session->stream.room(session->stream.object);
    }
    return session->output || session->is_over ? 0 : SESSION_LINE_MAX - session->input_size;
}

void session_receive(struct session *session, const char *bytes, size_t size)
{
    ASSERT(size <= session_room(session));
    if (session->stream.object) {
        session->stream.receive(session->stream.object, bytes, size);
        return;
    }
    memcpy(session->input + session->input_size, bytes, size);
    session->input_size += size;
    advance(session);
}

const char *session_output(struct session *session, size_t *ret_size)
{
    if (!session->output && session->stream.object) {
        pass_on(session); /* it may have room now */
        return session->stream.output(session->stream.object, ret_size);
    }
    *ret_size = session->output_size - session->output_sent;
    return session->output ? session->output + session->output_sent : "";
}

void session_sent(struct session *session, size_t size)
{
    if (!session->output && session->stream.object) {
        session->stream.sent(session->stream.object, size);
        return;
    }
    session->output_sent += size;
    ASSERT(session->output_sent <= session->output_size);
    if (session->output && session->output_sent == session->output_size) {
        free(session->output);
        session->output = NULL;
        session->output_size = session->output_sent = 0;
        advance(session);
    }
}

bool session_is_over(const struct session *session)
{
    return session->is_over ||
           (session->stream.object && session->stream.is_over(session->stream.object));
}
