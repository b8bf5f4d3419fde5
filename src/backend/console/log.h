/*
 * What a machine wrote, kept in two files of at most CONSOLE_LOG_HALF bytes each: when one is full
 * the other is emptied and written. The one that was written last is the newer (by its time of
 * change); together they hold the last half to the last whole of the bound.
 *
 * Never fails: what the disk does not take is lost, as on paper that has run out. Threads: one.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { CONSOLE_LOG_HALF = 4 << 20 };

struct console_log {
    int files[2]; /* borrowed, opened for reading and writing; -1: there is no log */
    unsigned current;
    size_t size; /* of the current one */
};

/* Goes on behind what is there. */
void console_log_init(struct console_log *log, const int files[2]);
void console_log_write(struct console_log *log, const uint8_t *bytes, size_t count);
