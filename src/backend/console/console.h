/*
 * Console backends: a two-way stream of bytes between a character device and the outside.
 *
 * Threads: write() from any thread, never blocks long; the receiver runs on the loop's thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

/* What a device gives to the console it is connected to. */
struct console_receiver {
    /* Bytes from outside; returns how many were taken. Call console_ready() when there is room. */
    size_t (*receive)(void *owner, const uint8_t *bytes, size_t count);
    /* A break condition was asked for. NULL: ignored. */
    void (*send_break)(void *owner);
    /* The window's size changed. NULL: ignored. */
    void (*resized)(void *owner, uint16_t columns, uint16_t rows);
    /* There is room for output again after console_room() was 0. NULL: ignored. */
    void (*drained)(void *owner);
    void *owner;
};

struct console;
struct console_ops {
    /* The machine is about to run. NULL: nobody wants to know. */
    int (*start)(struct console *console);
    void (*write)(struct console *console, const uint8_t *bytes, size_t count);
    /* Write out what is gathered. NULL: nothing ever is. */
    void (*flush)(struct console *console);
    /* The device has room again. */
    void (*ready)(struct console *console);
    /* How many bytes write() takes now without waiting. NULL: any number. */
    size_t (*room)(struct console *console);
    /* The receiver was set. NULL: nobody wants to know. */
    void (*connected)(struct console *console);
    void (*free)(struct console *console);
};

/* Embedded first in every backend. */
struct console {
    const struct console_ops *ops;
    struct console_receiver receiver;
};

/*
 * NULL is a valid, silent console for all of these.
 *
 * Output of few bytes is gathered for up to a millisecond, or until console_flush();
 * console_free() writes out what is left.
 *
 * Flow control: output goes into a bounded buffer when the outside reads slowly. A device that can
 * wait asks console_room() and, at 0, holds its output back until receiver.drained(): nothing is
 * lost. A device that writes without room is held for a short time (at most 50 ms for each call,
 * without needing the loop, so nothing can deadlock); what does not fit even then is lost, like on
 * a serial line without flow control.
 */
void console_write(struct console *console, const uint8_t *bytes, size_t count);
/* Once, when all else is ready: from here on the machine may write. */
int console_start(struct console *console) __attribute__((warn_unused_result));
/* Do not gather any longer what was written so far. Any thread. */
void console_flush(struct console *console);
size_t console_room(struct console *console);
void console_ready(struct console *console);
/* The struct is copied. From the loop's thread, or before it runs. */
void console_connect(struct console *console, const struct console_receiver *receiver);
/* From the loop's thread, or when it does not run. */
void console_free(struct console *console);

CLEANUP_DEFINE(struct console, console_free)

struct loop;

/* What the user asked for with the escape character on a terminal. */
enum console_command {
    CONSOLE_QUIT,   /* Ctrl-a x */
    CONSOLE_DETACH, /* Ctrl-a d, where that is possible */
};

struct console_stdio_config {
    struct loop *loop;
    /* Runs on the loop's thread. */
    void (*command)(void *owner, enum console_command command);
    bool can_detach;    /* the machine is another process */
    bool is_introduced; /* somebody else tells of the keys */
    void *owner;
};
/*
 * Standard input and output. A terminal is set to raw mode and restored on every way out but
 * SIGKILL (also the jail's); Ctrl-a x quits, Ctrl-a h helps, Ctrl-a b sends a break, Ctrl-a Ctrl-a
 * a literal Ctrl-a. Pipes and files pass bytes unchanged. A closed or ended standard input is no
 * error. In the background of a shell the terminal is left alone and the machine runs on; once in
 * the foreground it is raw and is read, at the latest a moment later.
 */
int console_stdio_open(const struct console_stdio_config *config, struct console **ret_console)
    __attribute__((warn_unused_result));
/* Is standard input a terminal that this process reads (so that the escape keys work)? */
bool console_stdio_is_terminal(void);
/* Restore the terminal now: the process ends without exit(). Any thread. */
void console_stdio_leave(void);
/* The process was stopped and goes on (SIGCONT): in the foreground the terminal is raw again. */
void console_stdio_continued(void);

/*
 * Output into a file, no input. A full disk loses output. The file is created, and is emptied by
 * console_start() only: a machine that cannot start destroys no log. `path` is borrowed.
 */
int console_file_open(const char *path, struct loop *loop, struct console **ret_console)
    __attribute__((warn_unused_result));
