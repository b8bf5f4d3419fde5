/*
 * The user's terminal in raw mode, and back on every way out of the process: normal exit, and the
 * signals that kill, as far as nobody else handles them. There is one for a process.
 *
 * A shell with job control decides whose the terminal is: only its foreground process group may
 * read it or set its mode, and whoever else does is stopped (SIGTTIN, SIGTTOU). Nobody is told of
 * the change: bash sends no SIGCONT when it brings a running job to the front. So we ask. In the
 * background, and of a terminal that does not control this process, nothing is read and no mode is
 * set, and the machine runs on. (Output stops it where the user said so, with 'stty tostop'.)
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* Keep the terminal `fd` in mind, and enter it if it is ours now. */
int terminal_open(int fd) __attribute__((warn_unused_result));
/* Raw input; output is still processed, so that messages of the program look right. */
int terminal_enter(void) __attribute__((warn_unused_result));
/* Async-signal-safe; does nothing if the terminal was not entered, or is another's now. */
void terminal_leave(void);
bool terminal_is_entered(void);
/* Enter the terminal if it has become ours. Returns whether it is, and may be read. */
bool terminal_follow(void);
/* After a stop, in which the shell has set the mode that it likes: the same, and raw again. */
void terminal_continued(void);
/* False if `fd` is no terminal. */
bool terminal_size(int fd, uint16_t *ret_columns, uint16_t *ret_rows);
