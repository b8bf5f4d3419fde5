/*
 * The console of a machine as a client of its control socket sees it, after {"command": "console"}
 * was answered: frames in both directions, each a byte for its kind, two for the size of what
 * follows (little-endian), and that.
 *
 *     from the machine                           from the client
 *     'o'  what the guest writes                 'i'  what is typed
 *     'h'  the same, from before the client came 's'  the window's size: columns, rows (16 bits
 * each) 'l'  bytes were lost: how many, in digits  'b'  a break 'w'  may this client type? 1 or 0
 * 'q'  end the machine, at once 'e'  the machine has ended: an exit status (one byte) and a
 * sentence
 *
 * Of a client that may not type (console/hub.h), 'i', 'b' and 'q' are ignored. A frame that is none
 * ends the connection.
 *
 * Bounded: what the client does not take waits in the hub's ring, what the device does not take in
 * the client's socket. Threads: the loop's.
 */
#pragma once

#include <stdint.h>

#include "control/session.h"

enum { CONSOLE_FRAME_HEAD = 3, CONSOLE_FRAME_MAX = 4096 };

struct console_hub;

struct console_stream_config {
    struct console_hub *hub;
    struct session_waker waker;
    void (*quit)(void *owner); /* 'q' */
    void *owner;
};
void console_stream_open(const struct console_stream_config *config,
                         struct session_stream *ret_stream);
/* The last frame of a machine that ends. */
size_t console_stream_last_words(char bytes[CONSOLE_FRAME_MAX], uint8_t status, const char *text);
