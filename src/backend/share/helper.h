/*
 * The helper process of a share: a 9P server behind a socket, in a jail of its own. It has no
 * capabilities, two descriptors besides the socket (the folder and its own /proc/self/fd), system
 * calls for files only, and, where the host has Landlock of version 2, nothing but the folder.
 *
 * The wire, both ways: struct share_frame, then the message.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct share_frame {
    uint32_t length; /* of the message that follows */
    uint32_t room;   /* to the helper: for the answer. From it: names that the client holds */
};

/* The first that comes from the helper: it is ready (0), or a negative errno and why. */
struct share_hello {
    int32_t error;
    char text[252];
};

/*
 * Become the helper, after a fork: takes both descriptors, never returns. Ends when the socket's
 * other end is closed.
 */
_Noreturn void share_helper_run(int root, int socket, bool readonly);
