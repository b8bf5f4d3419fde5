/*
 * A console that several look at. What the device writes goes to the console of the process itself
 * (`inner`), to a log, and into a bounded history, from which viewers read: first what was before
 * they came, then what comes. One viewer may type: the first, unless the process has a terminal of
 * its own, whose person is first. When that one leaves the next may.
 *
 * Promises: a device waits for the one who types, as for a terminal that is slow, but no more than
 * a second for one who reads nothing at all, and for no other viewer. Who reads too slowly misses a
 * piece, and is told how much. What a device cannot take of what is typed the viewer keeps, and
 * offers again. Threads:  writing from any; viewers on the loop's thread.
 */
#pragma once

#include "backend/console/console.h"
#include "backend/console/log.h"

enum { CONSOLE_HISTORY = 256 << 10 };

struct console_hub_config {
    struct loop *loop;
    struct console *inner; /* owned from here on, also on failure; NULL: none */
    bool inner_types;      /* somebody sits there */
    int log[2];            /* see log.h; -1: none */
};

struct console_hub;
struct console *console_hub_new(const struct console_hub_config *config);
struct console_hub *console_hub_of(struct console *console);

struct console_viewer;
struct console_viewer_config {
    /* There is something to read, room for what is typed, or a change of who types. */
    void (*ready)(void *owner);
    void *owner;
};
struct console_viewer *console_viewer_new(struct console_hub *hub,
                                          const struct console_viewer_config *config);
/* NULL is fine. The hub may be gone before its viewers. */
void console_viewer_free(struct console_viewer *viewer);

/* Take bytes; `ret_lost` is how many were missed before them. */
size_t console_viewer_read(struct console_viewer *viewer, uint8_t *bytes, size_t size,
                           uint64_t *ret_lost);
/* How many of the bytes that console_viewer_read() will give are from before this viewer came. */
uint64_t console_viewer_history(const struct console_viewer *viewer);
bool console_viewer_types(const struct console_viewer *viewer);

/* How many bytes the device took; 0 for who may not type. */
size_t console_viewer_type(struct console_viewer *viewer, const uint8_t *bytes, size_t count);
/* Ignored from who may not type. */
void console_viewer_break(struct console_viewer *viewer);
void console_viewer_resize(struct console_viewer *viewer, uint16_t columns, uint16_t rows);
