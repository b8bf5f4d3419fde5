/* Byte streams on sockets. */
#include "backend/net/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "base/loop.h"

void stream_open(struct stream *stream, struct loop *loop, int fd,
                 void (*ready)(void *owner, unsigned events), void *owner)
{
    *stream = (struct stream){.loop = loop, .fd = fd, .ready = ready, .owner = owner};
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && !(flags & O_NONBLOCK)) {
        fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    }
}

void stream_close(struct stream *stream)
{
    watch_free(stream->watch);
    stream->watch = NULL;
    if (stream->fd >= 0) {
        close(stream->fd);
        stream->fd = -1;
    }
}

ssize_t stream_read(struct stream *stream, void *bytes, size_t count)
{
    ssize_t got;
    do {
        got = read(stream->fd, bytes, count);
    } while (got < 0 && errno == EINTR);
    return got < 0 ? -errno : got;
}

ssize_t stream_write(struct stream *stream, const void *bytes, size_t count)
{
    ssize_t put;
    do {
        put = write(stream->fd, bytes, count);
    } while (put < 0 && errno == EINTR);
    return put < 0 ? -errno : put;
}

bool stream_is_over(const struct stream *stream)
{
    struct pollfd state = {.fd = stream->fd};
    return poll(&state, 1, 0) > 0 && (state.revents & (POLLHUP | POLLERR));
}

void stream_end(struct stream *stream)
{
    shutdown(stream->fd, SHUT_WR);
}

static void on_ready(void *owner, unsigned events)
{
    struct stream *stream = owner;
    stream->ready(stream->owner, events);
}

/* A hangup is always told to whoever watches; so whoever waits for nothing does not watch at all.
 */
void stream_watch(struct stream *stream, unsigned events)
{
    if (events == stream->events && (stream->watch || !events)) {
        return;
    }
    stream->events = events;
    if (!events) {
        watch_free(stream->watch);
        stream->watch = NULL;
    } else if (stream->watch) {
        if (watch_set(stream->watch, events)) {
            trail_clear();
        }
    } else if (watch_new(stream->loop, stream->fd, events, on_ready, stream, &stream->watch)) {
        trail_clear();
    }
}
