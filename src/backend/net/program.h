/* Starting the helper program, `doppel-net`, which lies beside our own. Before the jail closes. */
#pragma once

/*
 * `arguments` begins with the program's first one and ends with NULL. `ret_channel` is our end of a
 * socket for the messages of pass.h; the program ends when it is closed.
 */
int program_start(const char *const *arguments, int *ret_channel)
    __attribute__((warn_unused_result));
/* Wait for its first message, at most ten seconds; an error that it tells is on the trail. */
struct passed;
int program_await(int channel, struct passed *ret_passed) __attribute__((warn_unused_result));
