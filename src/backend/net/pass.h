/*
 * Short messages, each perhaps with a descriptor, over a socket between a machine and its helper
 * processes: a kind (a letter), and a text for people or nothing.
 *
 * The socket is of type SOCK_SEQPACKET, so that messages stay whole and the end of the other side
 * is seen. What comes may be hostile: it is bounded, and a text is always terminated.
 */
#pragma once

enum { PASS_TEXT_MAX = 256 };

enum {
    PASS_WIRE = 'W', /* helper to machine: a connected socket; after PASS_CONNECT with the token */
    PASS_REFUSED = 'X', /* helper to machine: PASS_CONNECT failed; the token */
    PASS_ERROR = 'E',   /* helper to machine: it cannot be done, and why */
    PASS_NOTE = 'N',    /* helper to machine: something that the user may want to know */
    PASS_CONNECT = 'C', /* machine to helper: a port and a token, in digits */
    PASS_LOST = 'L',    /* machine to helper: the socket is at its end */
    PASS_READY = 'R',   /* worker to keeper: all is set up */
    PASS_FILE = 'F',    /* worker to keeper: the one file it may read, please; and back, with it */
};

struct passed {
    char kind;
    char text[PASS_TEXT_MAX];
    int fd; /* the receiver's own from here on; -1: none */
};

/* `fd` -1: none; it stays the caller's. A negative errno, with nothing on the trail. */
int pass_send(int socket, char kind, const char *text, int fd) __attribute__((warn_unused_result));
/* 1: a message; 0: none now (a socket that does not wait); -ENOTCONN: the other side is gone. */
int pass_receive(int socket, struct passed *ret_passed) __attribute__((warn_unused_result));
