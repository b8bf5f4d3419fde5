/*
 * Frames on a byte stream. The writer's buffer is a ring. The reader's is flat, so that frames can
 * be used in place: what is left at its end is moved to the front.
 */
#include "backend/net/frames.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "backend/net/net.h"
#include "base/assert.h"

static uint32_t load_be32(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

static uint8_t *allocate_buffer(void)
{
    uint8_t *buffer = malloc(FRAMES_BUFFER);
    ASSERT(buffer);
    return buffer;
}

void frame_reader_init(struct frame_reader *reader)
{
    *reader = (struct frame_reader){.buffer = allocate_buffer()};
}

void frame_reader_fini(struct frame_reader *reader)
{
    free(reader->buffer);
    *reader = (struct frame_reader){0};
}

void frame_reader_reset(struct frame_reader *reader)
{
    reader->start = reader->end = 0;
}

static void move_to_front(uint8_t *buffer, size_t *start, size_t *end)
{
    memmove(buffer, buffer + *start, *end - *start);
    *end -= *start;
    *start = 0;
}

int frame_reader_fill(struct frame_reader *reader, int fd)
{
    /* a whole frame fits behind whatever is there */
    if (reader->start == reader->end ||
        FRAMES_BUFFER - reader->end < FRAMES_PREFIX + NET_FRAME_MAX) {
        move_to_front(reader->buffer, &reader->start, &reader->end);
    }
    if (reader->end == FRAMES_BUFFER) {
        return 0;
    }
    ssize_t got;
    do {
        got = read(fd, reader->buffer + reader->end, FRAMES_BUFFER - reader->end);
    } while (got < 0 && errno == EINTR);
    if (got > 0) {
        reader->end += (size_t)got;
        return 1;
    }
    if (got == 0) {
        return -ENOTCONN;
    }
    return errno == EAGAIN ? 0 : -errno;
}

int frame_reader_peek(const struct frame_reader *reader, size_t *position,
                      const uint8_t **ret_frame, size_t *ret_length)
{
    const uint8_t *at = reader->buffer + reader->start + *position;
    size_t left = reader->end - reader->start - *position;
    if (left < FRAMES_PREFIX) {
        return 0;
    }
    uint32_t length = load_be32(at);
    if (length > NET_FRAME_MAX) {
        return -EPROTO;
    }
    if (left - FRAMES_PREFIX < length) {
        return 0;
    }
    *ret_frame = at + FRAMES_PREFIX;
    *ret_length = length;
    *position += FRAMES_PREFIX + length;
    return 1;
}

void frame_reader_take(struct frame_reader *reader, size_t position)
{
    ASSERT(position <= reader->end - reader->start);
    reader->start += position;
}

void frame_writer_init(struct frame_writer *writer)
{
    *writer = (struct frame_writer){.buffer = allocate_buffer()};
}

void frame_writer_fini(struct frame_writer *writer)
{
    free(writer->buffer);
    *writer = (struct frame_writer){0};
}

void frame_writer_reset(struct frame_writer *writer)
{
    writer->start = writer->count = 0;
}

/* Behind what waits, around the end of the ring. There is room. */
static void append(struct frame_writer *writer, const void *bytes, size_t length)
{
    size_t at = (writer->start + writer->count) % FRAMES_BUFFER;
    size_t first = length < FRAMES_BUFFER - at ? length : FRAMES_BUFFER - at;
    memcpy(writer->buffer + at, bytes, first);
    memcpy(writer->buffer, (const uint8_t *)bytes + first, length - first);
    writer->count += length;
}

bool frame_writer_put(struct frame_writer *writer, const void *frame, size_t length)
{
    ASSERT(length <= NET_FRAME_MAX);
    const uint8_t prefix[FRAMES_PREFIX] = {(uint8_t)(length >> 24), (uint8_t)(length >> 16),
                                           (uint8_t)(length >> 8), (uint8_t)length};
    if (FRAMES_BUFFER - writer->count < sizeof prefix + length) {
        return false;
    }
    append(writer, prefix, sizeof prefix);
    append(writer, frame, length);
    return true;
}

int frame_writer_flush(struct frame_writer *writer, int fd)
{
    while (writer->count > 0) {
        size_t left = FRAMES_BUFFER - writer->start;
        size_t first = writer->count < left ? writer->count : left;
        struct iovec pieces[2] = {{writer->buffer + writer->start, first},
                                  {writer->buffer, writer->count - first}};
        ssize_t put = writev(fd, pieces, pieces[1].iov_len ? 2 : 1);
        if (put < 0 && errno == EAGAIN) {
            return 0;
        }
        if (put < 0 && errno != EINTR) {
            return -errno;
        }
        writer->start = (writer->start + (put > 0 ? (size_t)put : 0)) % FRAMES_BUFFER;
        writer->count -= put > 0 ? (size_t)put : 0;
    }
    writer->start = 0;
    return 0;
}
