/*
 * Fuzzer of the control socket's protocol. The input: the size of the pieces in which it comes,
 * then what a client sends. Every answer must be one line of JSON with "ok". Seeds:
 * tests/corpus/session.
 *
 * Guards: src/control/session.c
 */
#include "control/session.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

static json_t *run_echo(void *owner, const json_t *request)
{
    json_t *text = json_object_get(request, "text");
    if (!text) {
        fail(-EINVAL, "no text");
    }
    return json_incref(text);
}

/* A stream that takes seven bytes, then is over, and gives back how many are left. */
struct turned {
    size_t left;
    char output[1];
    bool is_sent;
};

static size_t turned_room(void *object)
{
    return ((struct turned *)object)->left;
}

static void turned_receive(void *object, const char *bytes, size_t size)
{
    struct turned *turned = object;
    if (size > turned->left) {
        abort();
    }
    turned->left -= size;
    turned->output[0] = (char)('0' + turned->left);
    turned->is_sent = false;
}

static const char *turned_output(void *object, size_t *ret_size)
{
    struct turned *turned = object;
    *ret_size = !turned->is_sent;
    return turned->output;
}

static void turned_sent(void *object, size_t size)
{
    ((struct turned *)object)->is_sent |= size > 0;
}

static bool turned_is_over(void *object)
{
    return ((struct turned *)object)->left == 0;
}

static json_t *turn(void *owner, const json_t *request, const struct session_waker *waker,
                    struct session_stream *ret_stream)
{
    struct turned *turned = calloc(1, sizeof *turned);
    *turned = (struct turned){.left = 7, .is_sent = true};
    *ret_stream = (struct session_stream){.room = turned_room,
                                          .receive = turned_receive,
                                          .output = turned_output,
                                          .sent = turned_sent,
                                          .is_over = turned_is_over,
                                          .free = free,
                                          .object = turned};
    return json_true();
}

static const char *const echo_keys[] = {"text", NULL};
static const struct session_command commands[] = {
    {"echo", run_echo, echo_keys, NULL}, {"turn", NULL, NULL, turn}, {NULL, NULL, NULL, NULL}};

/* Take some bytes of the answer; a whole one is looked at. */
static void take(struct session *session, size_t piece)
{
    static char line[1 << 20];
    static size_t used;
    size_t size;
    const char *output = session_output(session, &size);
    size = size < piece ? size : piece;
    if (used + size > sizeof line) {
        abort();
    }
    memcpy(line + used, output, size);
    used += size;
    session_sent(session, size);
    if (used && line[used - 1] == '\n') {
        json_t *answer = json_loadb(line, used - 1, 0, NULL);
        if (!json_is_boolean(json_object_get(answer, "ok")) || memchr(line, '\n', used - 1)) {
            abort();
        }
        json_decref(answer);
        used = 0;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1) {
        return 0;
    }
    size_t piece = (data[0] + 1u) * (data[0] + 1u);
    struct session *session = session_new(commands, NULL);
    for (size_t at = 1;;) {
        size_t waiting;
        const char *output = session_output(session, &waiting);
        size_t room = session_room(session);
        bool is_streamed = session_is_stream(session) && waiting == 1 && *output != '\n';
        if (is_streamed) { /* what ends an answer is a line's end */
            session_sent(session, 1);
            continue;
        }
        if (waiting) {
            take(session, piece);
            continue;
        }
        size_t next = size - at < piece ? size - at : piece;
        next = next < room ? next : room;
        if (!next) {
            break;
        }
        session_receive(session, (const char *)data + at, next);
        at += next;
    }
    session_free(session);
    return 0;
}
