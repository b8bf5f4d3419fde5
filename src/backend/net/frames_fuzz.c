/*
 * The frame wire with a hostile peer: bytes come in pieces of any size, receivers take some frames
 * and then some more. What comes out is what a second, simple reading of the bytes finds.
 * Guards: src/backend/net/frames.c
 */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/net/frames.h"
#include "backend/net/net.h"
#include "base/assert.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The plain way: the frame at `at`, or false. */
static bool expected(const uint8_t *data, size_t size, size_t at, const uint8_t **ret_frame,
                     size_t *ret_length)
{
    if (size - at < FRAMES_PREFIX) {
        return false;
    }
    *ret_length = (size_t)data[at] << 24 | data[at + 1] << 16 | data[at + 2] << 8 | data[at + 3];
    *ret_frame = data + at + FRAMES_PREFIX;
    return *ret_length <= NET_FRAME_MAX && *ret_length <= size - at - FRAMES_PREFIX;
}

/* Take some frames: false at nonsense. */
static bool take_some(struct frame_reader *reader, const uint8_t *data, size_t size, size_t *at,
                      unsigned wanted)
{
    size_t position = 0, length, expected_length;
    const uint8_t *frame, *expected_frame;
    int found = 1;
    while (wanted-- > 0) {
        found = frame_reader_peek(reader, &position, &frame, &length);
        if (found <= 0) {
            break;
        }
        ASSERT(expected(data, size, *at, &expected_frame, &expected_length));
        ASSERT(length == expected_length && !memcmp(frame, expected_frame, length));
        *at += FRAMES_PREFIX + length;
    }
    frame_reader_take(reader, position);
    return found >= 0;
}

/* The frames of the input through the writer into a socket that takes little at a time. */
static void write_back(const uint8_t *data, size_t size)
{
    static struct frame_writer writer;
    int pair[2];
    ASSERT(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair));
    frame_writer_init(&writer);
    size_t at = 0, length, back = 0;
    const uint8_t *frame;
    while (expected(data, size, at, &frame, &length)) {
        ASSERT(frame_writer_put(&writer, frame, length));
        at += FRAMES_PREFIX + length;
        ASSERT(!frame_writer_flush(&writer, pair[0]));
        uint8_t bytes[1000];
        for (ssize_t n; (n = read(pair[1], bytes, sizeof bytes)) > 0; back += (size_t)n) {
            ASSERT(!memcmp(bytes, data + back, (size_t)n));
            ASSERT(!frame_writer_flush(&writer, pair[0]));
        }
    }
    ASSERT(back == at && writer.count == 0);
    frame_writer_fini(&writer);
    close(pair[0]);
    close(pair[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct frame_reader reader;
    int pair[2];
    if (size < 2) {
        return 0;
    }
    unsigned piece = data[0] * 16u + 1, wanted = data[1] % 8 + 1;
    data += 2;
    size -= 2;
    ASSERT(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair));
    frame_reader_init(&reader);
    size_t put = 0, at = 0;
    bool is_good = true;
    while (is_good && put < size) {
        ssize_t n = write(pair[1], data + put, size - put < piece ? size - put : piece);
        put += n > 0 ? (size_t)n : 0;
        int r = frame_reader_fill(&reader, pair[0]);
        ASSERT(r >= 0);
        is_good = take_some(&reader, data, size, &at, wanted);
    }
    while (is_good && frame_reader_fill(&reader, pair[0]) > 0) {
    }
    for (size_t before = SIZE_MAX; is_good && before != at;) {
        before = at;
        is_good = take_some(&reader, data, size, &at, 1000);
        ASSERT(!is_good || frame_reader_fill(&reader, pair[0]) >= 0);
    }
    const uint8_t *frame;
    size_t length;
    ASSERT(!is_good || put < size || !expected(data, size, at, &frame, &length));
    frame_reader_fini(&reader);
    close(pair[0]);
    close(pair[1]);
    write_back(data, size);
    return 0;
}
