/*
 * Packets of GDB's remote serial protocol: `$data#checksum`, acknowledgements, the interrupt byte.
 * The one place where bytes of a peer become packets. GDB manual, appendix E.1.
 *
 * Promises: a packet that is given out has the right checksum, no escapes any more, and at most
 *           GDB_PACKET_MAX bytes. What is longer is dropped as a whole.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { GDB_PACKET_MAX = 16384 };

struct gdb_input {
    enum { GDB_IDLE, GDB_DATA, GDB_ESCAPE, GDB_SUM_HIGH, GDB_SUM_LOW } state;
    uint8_t sum;      /* of the bytes as they came */
    uint8_t sum_said; /* by the peer */
    bool is_bad;      /* too long, or the checksum is no number */
    size_t length;
    char data[GDB_PACKET_MAX + 1]; /* ended by a zero, and may contain some */
};

enum gdb_event {
    GDB_NOTHING,   /* more is needed */
    GDB_PACKET,    /* data and length are valid until the next byte */
    GDB_BROKEN,    /* to be asked for again */
    GDB_ACK,       /* the peer has our last packet */
    GDB_RESEND,    /* the peer wants it once more */
    GDB_INTERRUPT, /* stop the machine */
};

/* Take one byte. Begin with a zeroed struct. */
enum gdb_event gdb_input_take(struct gdb_input *input, uint8_t byte);

/*
 * A packet to send, in the form that it has on the wire. What does not fit is left out, so callers
 * who answer with much ask gdb_output_room() first.
 */
struct gdb_output {
    size_t length;
    char bytes[GDB_PACKET_MAX + 4];
};

void gdb_output_begin(struct gdb_output *output);
void gdb_output_end(struct gdb_output *output);
/* How many bytes fit still. */
size_t gdb_output_room(const struct gdb_output *output);
void gdb_output_text(struct gdb_output *output, const char *text);
/* A number as GDB writes them: most significant digit first, no leading zeros. */
void gdb_output_number(struct gdb_output *output, uint64_t value);
/* Bytes as two digits each. */
void gdb_output_hex(struct gdb_output *output, const void *bytes, size_t count);
/* Bytes with escapes where they need them. */
void gdb_output_binary(struct gdb_output *output, const void *bytes, size_t count);

/* What is left of a packet that is being read. */
struct gdb_text {
    const char *at, *end;
};

static inline size_t gdb_text_left(const struct gdb_text *text)
{
    return (size_t)(text->end - text->at);
}

/* Take a word if it stands here. */
bool gdb_text_word(struct gdb_text *text, const char *word);
/* Take a number of 1 to 16 digits. */
bool gdb_text_number(struct gdb_text *text, uint64_t *ret_value);
/* Take bytes of two digits each: all `count`, or none. */
bool gdb_text_hex(struct gdb_text *text, void *ret_bytes, size_t count);
