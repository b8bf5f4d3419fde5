/*
 * The other end of the control socket: what commands of the program ask running machines.
 *
 * A machine's process may have been taken over by its guest: what it answers is bounded, and
 * control characters in its texts become question marks.
 *
 * Threads: a connection belongs to one thread. Calls wait, at most ten seconds for a silent
 * machine.
 */
#pragma once

#include <jansson.h>
#include <sys/types.h>

struct control_connection;

/* Connect to a machine by its name. */
int control_connect(const char *name, struct control_connection **ret_connection)
    __attribute__((warn_unused_result));
/* Wait at most so long for an answer from here on. */
void control_be_patient(struct control_connection *connection, unsigned seconds);
void control_disconnect(struct control_connection *connection);
/*
 * Send a request (like {"command": "stats"}; its reference is taken) and wait for the result, a new
 * reference. What the machine refuses is -EPROTO with its sentence; -EPIPE: the machine has ended.
 */
int control_call(struct control_connection *connection, json_t *request, json_t **ret_result)
    __attribute__((warn_unused_result));

/*
 * For a connection that a command has turned over (session.h): its descriptor, without blocking
 * from here on, and what was read from it already, and then what comes. -EAGAIN: nothing now; 0:
 * the end.
 */
int control_descriptor(struct control_connection *connection);
ssize_t control_read(struct control_connection *connection, void *bytes, size_t size);
