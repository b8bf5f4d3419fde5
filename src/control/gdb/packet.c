/* Framing of GDB's remote serial protocol; see packet.h. */
#include "control/gdb/packet.h"

#include <string.h>

static const char digits[] = "0123456789abcdef";

static int digit_value(char digit)
{
    if (digit >= '0' && digit <= '9') {
        return digit - '0';
    }
    char small = (char)(digit | 0x20);
    return small >= 'a' && small <= 'f' ? small - 'a' + 10 : -1;
}

/* ---- in ---- */

static void begin(struct gdb_input *input)
{
    input->state = GDB_DATA;
    input->sum = input->sum_said = 0;
    input->is_bad = false;
    input->length = 0;
}

static void put(struct gdb_input *input, uint8_t byte)
{
    if (input->length < GDB_PACKET_MAX) {
        input->data[input->length++] = (char)byte;
    } else {
        input->is_bad = true;
    }
}

static void take_sum_digit(struct gdb_input *input, uint8_t byte)
{
    int value = digit_value((char)byte);
    input->is_bad |= value < 0;
    input->sum_said = (uint8_t)(input->sum_said << 4 | (value & 0xf));
}

static enum gdb_event end(struct gdb_input *input)
{
    input->state = GDB_IDLE;
    input->data[input->length] = '\0';
    return input->is_bad || input->sum != input->sum_said ? GDB_BROKEN : GDB_PACKET;
}

static enum gdb_event take_idle(struct gdb_input *input, uint8_t byte)
{
    switch (byte) {
    case '$':
        begin(input);
        return GDB_NOTHING;
    case '+':
        return GDB_ACK;
    case '-':
        return GDB_RESEND;
    case 3:
        return GDB_INTERRUPT;
    default:
        return GDB_NOTHING;
    }
}

enum gdb_event gdb_input_take(struct gdb_input *input, uint8_t byte)
{
    switch (input->state) {
    case GDB_IDLE:
        return take_idle(input, byte);
    case GDB_DATA:
    case GDB_ESCAPE:
        if (byte == '#') {
            input->state = GDB_SUM_HIGH;
            return GDB_NOTHING;
        }
        if (byte == '$') { /* the rest of the packet before was lost */
            begin(input);
            return GDB_NOTHING;
        }
        input->sum = (uint8_t)(input->sum + byte);
        if (input->state == GDB_ESCAPE) {
            input->state = GDB_DATA;
            put(input, byte ^ 0x20);
        } else if (byte == '}') {
            input->state = GDB_ESCAPE;
        } else {
            put(input, byte);
        }
        return GDB_NOTHING;
    case GDB_SUM_HIGH:
        take_sum_digit(input, byte);
        input->state = GDB_SUM_LOW;
        return GDB_NOTHING;
    default:
        take_sum_digit(input, byte);
        return end(input);
    }
}

/* ---- out ---- */

size_t gdb_output_room(const struct gdb_output *output)
{
    return sizeof output->bytes - 3 - output->length;
}

static void append(struct gdb_output *output, char byte)
{
    if (gdb_output_room(output)) {
        output->bytes[output->length++] = byte;
    }
}

void gdb_output_begin(struct gdb_output *output)
{
    output->bytes[0] = '$';
    output->length = 1;
}

void gdb_output_end(struct gdb_output *output)
{
    uint8_t sum = 0;
    for (size_t i = 1; i < output->length; i++) {
        sum = (uint8_t)(sum + (uint8_t)output->bytes[i]);
    }
    output->bytes[output->length++] = '#';
    output->bytes[output->length++] = digits[sum >> 4];
    output->bytes[output->length++] = digits[sum & 0xf];
}

void gdb_output_text(struct gdb_output *output, const char *text)
{
    while (*text) {
        append(output, *text++);
    }
}

void gdb_output_number(struct gdb_output *output, uint64_t value)
{
    int shift = 60;
    while (shift > 0 && !(value >> shift)) {
        shift -= 4;
    }
    for (; shift >= 0; shift -= 4) {
        append(output, digits[value >> shift & 0xf]);
    }
}

void gdb_output_hex(struct gdb_output *output, const void *bytes, size_t count)
{
    const uint8_t *at = bytes;
    for (size_t i = 0; i < count; i++) {
        append(output, digits[at[i] >> 4]);
        append(output, digits[at[i] & 0xf]);
    }
}

void gdb_output_binary(struct gdb_output *output, const void *bytes, size_t count)
{
    const char *at = bytes;
    for (size_t i = 0; i < count; i++) {
        if (at[i] == '$' || at[i] == '#' || at[i] == '}' || at[i] == '*') {
            append(output, '}');
            append(output, (char)(at[i] ^ 0x20));
        } else {
            append(output, at[i]);
        }
    }
}

/* ---- what is in a packet ---- */

bool gdb_text_word(struct gdb_text *text, const char *word)
{
    size_t length = strlen(word);
    if (gdb_text_left(text) < length || memcmp(text->at, word, length)) {
        return false;
    }
    text->at += length;
    return true;
}

bool gdb_text_number(struct gdb_text *text, uint64_t *ret_value)
{
    uint64_t value = 0;
    unsigned count = 0;
    while (text->at < text->end && digit_value(*text->at) >= 0) {
        if (++count > 16) {
            return false;
        }
        value = value << 4 | (unsigned)digit_value(*text->at++);
    }
    *ret_value = value;
    return count > 0;
}

bool gdb_text_hex(struct gdb_text *text, void *ret_bytes, size_t count)
{
    uint8_t *bytes = ret_bytes;
    if (gdb_text_left(text) / 2 < count) {
        return false;
    }
    for (size_t i = 0; i < 2 * count; i++) {
        if (digit_value(text->at[i]) < 0) {
            return false;
        }
    }
    for (size_t i = 0; i < count; i++, text->at += 2) {
        bytes[i] = (uint8_t)(digit_value(text->at[0]) << 4 | digit_value(text->at[1]));
    }
    return true;
}
