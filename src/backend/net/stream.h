/*
 * A byte stream: one connected socket of the host that does not wait. And a hub, where such streams
 * come from: programs of the host connect to a Unix socket, or the hub connects to one of theirs.
 *
 * Threads: all on the loop's thread, or before it runs; hub_wake() from any.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct loop;

struct stream {
    struct loop *loop;
    int fd;
    unsigned events;
    struct watch *watch; /* NULL: nothing is watched, not even for a hangup */
    void (*ready)(void *owner, unsigned events);
    void *owner;
};

/* Takes the descriptor. `ready` gets LOOP_* bits (base/loop.h) that stream_watch() asked for. */
void stream_open(struct stream *stream, struct loop *loop, int fd,
                 void (*ready)(void *owner, unsigned events), void *owner);
void stream_close(struct stream *stream);
/* Like read(2) and write(2): a negative errno on failure, -EAGAIN for nothing now. */
ssize_t stream_read(struct stream *stream, void *bytes, size_t count);
ssize_t stream_write(struct stream *stream, const void *bytes, size_t count);
/* Is it over in both directions, and not only in one? */
bool stream_is_over(const struct stream *stream);
/* Nothing more will be written. */
void stream_end(struct stream *stream);
/* LOOP_READABLE, LOOP_WRITABLE; a hangup comes with either. 0: nothing. */
void stream_watch(struct stream *stream, unsigned events);

/* What a device gives to the hub. */
struct hub_receiver {
    /* Somebody connected to us. The descriptor is the receiver's. */
    void (*arrived)(void *owner, int fd);
    /* hub_connect() came to its end: a descriptor, or -1. */
    void (*connected)(void *owner, uint32_t token, int fd);
    /* Somebody called hub_wake(). */
    void (*work)(void *owner);
    void *owner;
};

struct hub;
struct hub_ops {
    void (*connect)(struct hub *hub, uint32_t port, uint32_t token);
    void (*wake)(struct hub *hub);
    void (*free)(struct hub *hub);
};

/* Embedded first in every hub. */
struct hub {
    const struct hub_ops *ops;
    struct hub_receiver receiver; /* set once, before the loop runs */
    struct loop *loop;
};

static inline void hub_connect(struct hub *hub, uint32_t port, uint32_t token)
{
    hub->ops->connect(hub, port, token);
}

static inline void hub_wake(struct hub *hub)
{
    hub->ops->wake(hub);
}

static inline void hub_free(struct hub *hub)
{
    if (hub) {
        hub->ops->free(hub);
    }
}

/*
 * The hub of a path: it listens at PATH, and connects to PATH_PORT through a helper process,
 * because the jail lets no process of ours connect. `ret_listener` and `ret_channel` are for the
 * jail.
 */
int hub_unix_open(struct loop *loop, const char *path, struct hub **ret_hub, int *ret_listener,
                  int *ret_channel) __attribute__((warn_unused_result));
