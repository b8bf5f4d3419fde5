/*
 * What a guest writes, made harmless for the terminal of whoever looks at it. Terminals answer some
 * sequences as if the answer had been typed (where the cursor is, what the title says, what is in
 * the clipboard), and obey others that reach beyond the window. A guest that ends, or is left, at
 * the right moment could so type into the user's shell; and answers to what is replayed from the
 * history were meant for another time.
 *
 *   FILTER_LIVE    the window of who may type: questions whose answers are only digits of the
 *                  terminal's own choosing (cursor, device status, kind of terminal) go through,
 *                  because shells and editors ask them
 *   FILTER_STRICT  history, viewers and logs: no question goes through, nor what makes the terminal
 *                  send something later (mouse, focus)
 *
 * In both, device control, application and privacy strings, operating system commands other than
 * the window's title, window reports, and 8-bit control characters are left out. What is left out
 * vanishes whole; a sequence cut in two is put together first.
 *
 * Promises: the output is no longer than what came in, and does not depend on the pieces in which
 * it came (but for what waits for its end, at most FILTER_HELD bytes). Threads: one.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { FILTER_HELD = 256 };

enum filter_mode { FILTER_LIVE, FILTER_STRICT };

/* A text of others within a line of ours: control characters become question marks. */
void terminal_make_printable(char *text);

struct terminal_filter {
    enum filter_mode mode;
    int state;                 /* of the parser, see the source */
    uint8_t held[FILTER_HELD]; /* a sequence that has not ended */
    size_t held_count;
    unsigned continuations; /* bytes of a UTF-8 character that are to come */
};

void terminal_filter_init(struct terminal_filter *filter, enum filter_mode mode);
/* How many bytes went to `out`, which has room for FILTER_HELD more than `size`. */
size_t terminal_filter(struct terminal_filter *filter, const uint8_t *bytes, size_t size,
                       uint8_t *out);
