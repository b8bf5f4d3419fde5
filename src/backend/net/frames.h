/*
 * Frames on a byte stream, each behind its length as a 32-bit big-endian number: what QEMU's
 * `-netdev stream` and passt speak. A reader and a writer for one non-blocking socket, which move
 * as many frames with one system call as there are.
 *
 * Promises: a length that no frame can have ends the stream (-EPROTO) before anything is allocated
 *           or skipped; memory is bounded by the two buffers; a frame is sent whole or not begun.
 * Threads:  none of its own; one caller at a time for each reader or writer.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    FRAMES_PREFIX = 4,
    FRAMES_BUFFER = 512 << 10, /* each way */
};

struct frame_reader {
    uint8_t *buffer;
    size_t start, end; /* bytes that were read and not taken yet */
};

void frame_reader_init(struct frame_reader *reader);
void frame_reader_fini(struct frame_reader *reader);
/* A new stream: forget what was read of the old one. */
void frame_reader_reset(struct frame_reader *reader);
/*
 * Read what the socket has, up to the buffer's end. 1: there is more to take than before; 0: the
 * socket has nothing now, or the buffer is full of frames that were not taken; -ENOTCONN: the
 * stream ended; otherwise a negative errno of the host. Pointers to frames become void.
 */
int frame_reader_fill(struct frame_reader *reader, int fd) __attribute__((warn_unused_result));
/*
 * Look at the frame that is `*position` bytes behind the oldest one (0 at first), and move the
 * position behind it: 1, with the frame in place; 0: it is not complete yet; -EPROTO: the peer
 * speaks nonsense. Nothing is taken before frame_reader_take().
 */
int frame_reader_peek(const struct frame_reader *reader, size_t *position,
                      const uint8_t **ret_frame, size_t *ret_length)
    __attribute__((warn_unused_result));
/* Take all frames before `position`. */
void frame_reader_take(struct frame_reader *reader, size_t position);

struct frame_writer {
    uint8_t *buffer;
    size_t start, count; /* a ring of bytes that were not sent yet */
};

void frame_writer_init(struct frame_writer *writer);
void frame_writer_fini(struct frame_writer *writer);
void frame_writer_reset(struct frame_writer *writer);
/* Collect a frame of at most NET_FRAME_MAX bytes; false: there is no room. */
bool frame_writer_put(struct frame_writer *writer, const void *frame, size_t length);
/* Write what the socket takes: 0, or a negative errno if the stream is broken. */
int frame_writer_flush(struct frame_writer *writer, int fd) __attribute__((warn_unused_result));
