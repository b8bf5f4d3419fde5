/*
 * The control socket of a machine: a Unix socket on its event loop, whose clients speak the
 * protocol of session.h.
 *
 * Promises: a client of another user is turned away; a client that is slow, silent or gone costs
 *           its session and nothing else: no call here waits.
 * Threads:  the loop's thread. control_server_open() comes before the jail: it binds the socket.
 */
#pragma once

#include <stdint.h>

#include "control/session.h"

struct loop;
struct control_server;

enum { CONTROL_CLIENTS_MAX = 16 };

/* `path` is bound (an old socket there is replaced). `commands` and `owner` go to each session. */
int control_server_open(struct loop *loop, const char *path, const struct session_command *commands,
                        void *owner, struct control_server **ret_server)
    __attribute__((warn_unused_result));
/* The socket at which it accepts clients, for the jail. */
int control_server_descriptor(const struct control_server *server);
/*
 * The machine has ended: viewers of its console get what it still wrote, and these last words. At
 * most a second for clients that are slow.
 */
void control_server_end(struct control_server *server, uint8_t status, const char *text);
/* Clients are cut off. The path stays: nothing in the jail can remove it. NULL is fine. */
void control_server_close(struct control_server *server);
