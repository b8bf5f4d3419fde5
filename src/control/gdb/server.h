/*
 * The door for a debugger: a socket at which one GDB at a time debugs a machine.
 *
 * Where:    a Unix socket that only its owner can open, or a TCP port on the loopback interface
 *           (another address has to be asked for by name).
 * Rules:    a peer that comes finds the machine stopped. One that detaches lets it go on. One that
 *           is lost leaves it as it is, without its points. A TCP peer that does not begin as GDB
 *           does (a browser that was led here) is turned away unheard.
 * Order:    gdb_server_open() before paths and sockets are closed to the process,
 *           gdb_server_attach() before vm_run(). Loop thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"

struct gdb_server;
struct vm;

/*
 * Listen where `text` says: `PATH[,wait=on]` or `PORT[,address=A][,wait=on]`. -EINVAL for a text
 * that makes no sense, -EADDRINUSE if somebody listens there.
 */
int gdb_server_open(const char *text, struct gdb_server **ret_server)
    __attribute__((warn_unused_result));
/* Say only whether the text makes sense. */
int gdb_server_check(const char *text) __attribute__((warn_unused_result));
/* NULL is fine. */
void gdb_server_free(struct gdb_server *server);
CLEANUP_DEFINE(struct gdb_server, gdb_server_free)

/* Serve this machine, which outlives the server's use of it. With wait=on it starts paused. */
int gdb_server_attach(struct gdb_server *server, struct vm *vm) __attribute__((warn_unused_result));
/* The socket that is listened at. */
int gdb_server_descriptor(const struct gdb_server *server);
/* What to give GDB's `target remote`, and whether the machine waits for it. */
const char *gdb_server_name(const struct gdb_server *server);
bool gdb_server_waits(const struct gdb_server *server);
/* The machine has ended: tell the peer, and leave the loop. */
void gdb_server_end(struct gdb_server *server, uint8_t status);
