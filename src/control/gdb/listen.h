/* Making the socket that a debugger connects to. */
#pragma once

#include <stdbool.h>

struct gdb_address {
    char *path;    /* a Unix socket; or NULL, and */
    char *address; /* an IPv4 address */
    unsigned port;
    bool wait;
};

/* `PATH[,wait=on|off]` or `PORT[,address=A][,wait=on|off]`. */
int gdb_address_parse(const char *text, struct gdb_address *ret_address)
    __attribute__((warn_unused_result));
void gdb_address_fini(struct gdb_address *address);

/*
 * A listening socket, or a negative errno. A socket that an ended process left at a path is
 * replaced; nothing else is. The path's mode is 0600 from its first moment on.
 */
int gdb_listen(const struct gdb_address *address) __attribute__((warn_unused_result));
