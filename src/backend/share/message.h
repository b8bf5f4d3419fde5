/*
 * Bytes of 9P messages (9P2000.L): taken with one check at the end, put with one check at the end.
 * Inside the share.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/bytes.h"

enum { P9_HEADER = 7, P9_NAME_MAX = 255, P9_TEXT_MAX = 4095 };

/* What is left of a message. `bad`: more was taken than there was. */
struct p9_reader {
    const uint8_t *at;
    size_t left;
    bool bad;
};

static inline const uint8_t *p9_take(struct p9_reader *reader, size_t size)
{
    static const uint8_t nothing[8];
    if (reader->left < size) {
        reader->bad = true;
        return nothing;
    }
    const uint8_t *at = reader->at;
    reader->at += size;
    reader->left -= size;
    return at;
}

static inline uint8_t p9_take8(struct p9_reader *reader)
{
    return *p9_take(reader, 1);
}

static inline uint16_t p9_take16(struct p9_reader *reader)
{
    return load_le16(p9_take(reader, 2));
}

static inline uint32_t p9_take32(struct p9_reader *reader)
{
    return load_le32(p9_take(reader, 4));
}

static inline uint64_t p9_take64(struct p9_reader *reader)
{
    return load_le64(p9_take(reader, 8));
}

/* A string of at most `max` bytes without a NUL, into `text` with one. */
static inline void p9_take_text(struct p9_reader *reader, char *text, size_t max)
{
    size_t size = p9_take16(reader);
    text[0] = 0;
    if (size > max || size > reader->left || memchr(reader->at, 0, size)) {
        reader->bad = true;
        return;
    }
    memcpy(text, p9_take(reader, size), size);
    text[size] = 0;
}

/* A message in the making. `full`: more was put than there was room for. */
struct p9_writer {
    uint8_t *bytes;
    size_t used, room;
    bool full;
};

/* Where the next `size` bytes go; NULL if there is no room. */
static inline uint8_t *p9_put(struct p9_writer *writer, size_t size)
{
    if (writer->room - writer->used < size) {
        writer->full = true;
        return NULL;
    }
    uint8_t *at = writer->bytes + writer->used;
    writer->used += size;
    return at;
}

static inline void p9_put_bytes(struct p9_writer *writer, const void *bytes, size_t size)
{
    uint8_t *at = p9_put(writer, size);
    if (at) {
        memcpy(at, bytes, size);
    }
}

static inline void p9_put8(struct p9_writer *writer, uint8_t value)
{
    p9_put_bytes(writer, &value, sizeof value);
}

static inline void p9_put16(struct p9_writer *writer, uint16_t value)
{
    p9_put_bytes(writer, &value, sizeof value);
}

static inline void p9_put32(struct p9_writer *writer, uint32_t value)
{
    p9_put_bytes(writer, &value, sizeof value);
}

static inline void p9_put64(struct p9_writer *writer, uint64_t value)
{
    p9_put_bytes(writer, &value, sizeof value);
}

static inline void p9_put_text(struct p9_writer *writer, const char *text)
{
    size_t size = strlen(text);
    p9_put16(writer, (uint16_t)size);
    p9_put_bytes(writer, text, size);
}
