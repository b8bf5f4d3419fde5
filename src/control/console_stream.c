/* Frames between a viewer of the hub and a client: see console_stream.h. */
#include "control/console_stream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/console/hub.h"
#include "base/assert.h"
#include "base/bytes.h"

struct stream {
    struct console_stream_config config;
    struct console_viewer *viewer;
    uint8_t input[CONSOLE_FRAME_HEAD + CONSOLE_FRAME_MAX]; /* the frame that is coming */
    size_t input_size, typed;                              /* how much of its text was taken */
    uint8_t output[2 * (CONSOLE_FRAME_HEAD + CONSOLE_FRAME_MAX)];
    size_t output_size, output_sent;
    bool was_told, may_type; /* what the last 'w' said */
    uint16_t columns, rows;  /* of the client's window; 0: not known */
    bool is_over;
};

/* ---- to the client ---- */

static void put(struct stream *stream, char kind, const void *bytes, size_t size)
{
    uint8_t *to = stream->output + stream->output_size;
    to[0] = (uint8_t)kind;
    store_le16(to + 1, (uint16_t)size);
    memcpy(to + CONSOLE_FRAME_HEAD, bytes, size);
    stream->output_size += CONSOLE_FRAME_HEAD + size;
}

static void resize(struct stream *stream)
{
    if (stream->columns && stream->rows) {
        console_viewer_resize(stream->viewer, stream->columns, stream->rows);
    }
}

static void put_role(struct stream *stream)
{
    bool may_type = console_viewer_types(stream->viewer);
    if (!stream->was_told || may_type != stream->may_type) {
        stream->was_told = true;
        stream->may_type = may_type;
        put(stream, 'w', may_type ? "1" : "0", 1);
        resize(stream);
    }
}

static void put_output(struct stream *stream)
{
    uint8_t bytes[CONSOLE_FRAME_MAX];
    uint64_t lost, history = console_viewer_history(stream->viewer);
    size_t most = history && history < sizeof bytes ? (size_t)history : sizeof bytes;
    size_t size = console_viewer_read(stream->viewer, bytes, most, &lost);
    if (lost) {
        char text[24];
        put(stream, 'l', text,
            (size_t)snprintf(text, sizeof text, "%llu", (unsigned long long)lost));
    }
    if (size) {
        put(stream, history ? 'h' : 'o', bytes, size);
    }
}

static const char *stream_output(void *object, size_t *ret_size)
{
    struct stream *stream = object;
    if (stream->output_sent == stream->output_size && !stream->is_over) {
        stream->output_sent = stream->output_size = 0;
        put_role(stream);
        put_output(stream);
    }
    *ret_size = stream->output_size - stream->output_sent;
    return (const char *)stream->output + stream->output_sent;
}

static void stream_sent(void *object, size_t size)
{
    struct stream *stream = object;
    ASSERT(size <= stream->output_size - stream->output_sent);
    stream->output_sent += size;
}

/* ---- from the client ---- */

/* Is all of the frame's text with the device, or nothing that anybody wants? */
static bool type(struct stream *stream, size_t size)
{
    const uint8_t *text = stream->input + CONSOLE_FRAME_HEAD;
    stream->typed +=
        console_viewer_type(stream->viewer, text + stream->typed, size - stream->typed);
    return stream->typed == size || !console_viewer_types(stream->viewer);
}

/* Returns false while the frame has to wait. */
static bool obey(struct stream *stream, size_t size)
{
    const uint8_t *text = stream->input + CONSOLE_FRAME_HEAD;
    switch (stream->input[0]) {
    case 'i':
        return type(stream, size);
    case 's':
        if (size == 4) {
            stream->columns = load_le16(text);
            stream->rows = load_le16(text + 2);
            resize(stream);
            return true;
        }
        break;
    case 'b':
        console_viewer_break(stream->viewer);
        return true;
    case 'q':
        if (console_viewer_types(stream->viewer)) {
            stream->config.quit(stream->config.owner);
        }
        return true;
    }
    stream->is_over = true;
    return true;
}

/* How many bytes the frame that is coming has, as far as that is known yet. */
static size_t frame_size(const struct stream *stream)
{
    return stream->input_size < CONSOLE_FRAME_HEAD
               ? CONSOLE_FRAME_HEAD
               : CONSOLE_FRAME_HEAD + (size_t)load_le16(stream->input + 1);
}

static void advance(struct stream *stream)
{
    size_t size = frame_size(stream);
    if (size > sizeof stream->input) {
        stream->is_over = true;
    } else if (!stream->is_over && stream->input_size >= CONSOLE_FRAME_HEAD &&
               stream->input_size == size && obey(stream, size - CONSOLE_FRAME_HEAD)) {
        stream->input_size = stream->typed = 0;
    }
}

static size_t stream_room(void *object)
{
    const struct stream *stream = object;
    return stream->is_over ? 0 : frame_size(stream) - stream->input_size;
}

static void stream_receive(void *object, const char *bytes, size_t size)
{
    struct stream *stream = object;
    ASSERT(size <= stream_room(stream));
    memcpy(stream->input + stream->input_size, bytes, size);
    stream->input_size += size;
    advance(stream);
}

static bool stream_is_over(void *object)
{
    return ((const struct stream *)object)->is_over;
}

static void on_ready(void *owner)
{
    struct stream *stream = owner;
    advance(stream); /* the device may have room for what waits */
    stream->config.waker.wake(stream->config.waker.owner);
}

/* ---- life ---- */

static void stream_free(void *object)
{
    struct stream *stream = object;
    console_viewer_free(stream->viewer);
    free(stream);
}

void console_stream_open(const struct console_stream_config *config,
                         struct session_stream *ret_stream)
{
    struct stream *stream = calloc(1, sizeof *stream);
    ASSERT(stream);
    stream->config = *config;
    const struct console_viewer_config viewer = {.ready = on_ready, .owner = stream};
    stream->viewer = console_viewer_new(config->hub, &viewer);
    *ret_stream = (struct session_stream){
        .room = stream_room,
        .receive = stream_receive,
        .output = stream_output,
        .sent = stream_sent,
        .is_over = stream_is_over,
        .free = stream_free,
        .object = stream,
    };
}

size_t console_stream_last_words(char bytes[CONSOLE_FRAME_MAX], uint8_t status, const char *text)
{
    size_t length = strnlen(text, CONSOLE_FRAME_MAX - CONSOLE_FRAME_HEAD - 1);
    bytes[0] = 'e';
    store_le16(bytes + 1, (uint16_t)(length + 1));
    bytes[CONSOLE_FRAME_HEAD] = (char)status;
    memcpy(bytes + CONSOLE_FRAME_HEAD + 1, text, length);
    return CONSOLE_FRAME_HEAD + 1 + length;
}
