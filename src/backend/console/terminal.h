/*
 * The user's terminal in raw mode, and back on every way out of the process: normal exit, and the
 * signals that kill, as far as nobody else handles them. There is one for a process.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* Is `fd` a terminal that this process may read now (it is not in the background)? */
bool terminal_is_ours(int fd);
/* Raw input; output is still processed, so that messages of the program look right. */
int terminal_enter(int fd) __attribute__((warn_unused_result));
/* Async-signal-safe; does nothing if the terminal was not entered. */
void terminal_leave(void);
bool terminal_is_entered(void);
/* After a stop, in which the shell has set the mode that it likes: raw again, if it was entered. */
void terminal_return(void);
/* False if `fd` is no terminal. */
bool terminal_size(int fd, uint16_t *ret_columns, uint16_t *ret_rows);
