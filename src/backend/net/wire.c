/*
 * A network on a stream socket. Senders put frames into the writer and flush it themselves; what
 * the socket does not take waits for the loop, which also reads. The lock guards the writer and the
 * socket; the reader belongs to the loop's thread.
 */
#include "backend/net/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/net/frames.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/loop.h"

enum {
    BATCH = 64, /* frames given to the receiver at once */
    ROUNDS = 8, /* system calls before others on the loop have their turn */
    ROOM_AGAIN = FRAMES_BUFFER / 2,
};

struct net_wire {
    struct net net;
    struct net_wire_config config;
    pthread_mutex_t lock; /* for what follows */
    int fd;               /* -1: the cable is out */
    bool is_broken;       /* a sender saw it; the loop will */
    bool is_starved;      /* a sender was refused */
    bool is_waiting;      /* what is left is sent when the socket is writable */
    bool is_posted;       /* a call of update_posted() is on its way */
    struct frame_writer writer;
    atomic_bool is_held; /* the receiver has no room, or is about to tell; set by the loop */
    /* A call of resume(), of send_again() is on its way: the guest asks for any number. */
    atomic_bool is_resuming, is_sending;
    /* Of the loop's thread. */
    struct watch *watch;
    struct frame_reader reader;
};

static struct net_wire *wire_of(struct net *net)
{
    return CONTAINER_OF(net, struct net_wire, net);
}

/* On the loop's thread: watch for what we wait for. */
static void update_watch(struct net_wire *wire)
{
    if (!wire->watch) {
        return;
    }
    pthread_mutex_lock(&wire->lock);
    unsigned events = (wire->is_held ? 0 : LOOP_READABLE) | (wire->is_waiting ? LOOP_WRITABLE : 0);
    pthread_mutex_unlock(&wire->lock);
    if (watch_set(wire->watch, events)) {
        trail_clear();
    }
}

static void detach(struct net_wire *wire)
{
    pthread_mutex_lock(&wire->lock);
    int fd = wire->fd;
    bool was_starved = wire->is_starved;
    wire->fd = -1;
    wire->is_broken = wire->is_starved = wire->is_waiting = false;
    frame_writer_reset(&wire->writer);
    atomic_store(&wire->net.is_up, false);
    pthread_mutex_unlock(&wire->lock);
    if (fd < 0) {
        return;
    }
    watch_free(wire->watch);
    wire->watch = NULL;
    close(fd);
    frame_reader_reset(&wire->reader);
    wire->is_held = false;
    const struct net_receiver *receiver = &wire->net.receiver;
    if (receiver->link) {
        receiver->link(receiver->owner, false);
    }
    if (was_starved && receiver->sendable) {
        receiver->sendable(receiver->owner); /* into the void: what waited is too old anyway */
    }
}

static void lose(struct net_wire *wire)
{
    detach(wire);
    if (wire->config.lost) {
        wire->config.lost(wire->config.owner);
    }
}

/* Give all frames that are here. False: the peer talks nonsense. */
static bool deliver(struct net_wire *wire)
{
    const struct net_receiver *receiver = &wire->net.receiver;
    for (;;) {
        struct net_frame frames[BATCH];
        size_t ends[BATCH], position = 0, count = 0;
        int found = 0;
        while (count < BATCH) {
            struct net_frame *frame = &frames[count];
            frame->offload = (struct net_offload){0};
            found = frame_reader_peek(&wire->reader, &position, &frame->bytes, &frame->length);
            if (found <= 0) {
                break;
            }
            ends[count++] = position;
        }
        size_t taken = count;
        atomic_store(&wire->is_held, true); /* a net_ready() from here on is not missed */
        if (count > 0 && receiver->receive) {
            taken = receiver->receive(receiver->owner, frames, count);
        }
        ASSERT(taken <= count);
        if (taken > 0) {
            frame_reader_take(&wire->reader, ends[taken - 1]);
        }
        if (taken < count) {
            return true;
        }
        atomic_store(&wire->is_held, false);
        if (found <= 0) {
            return found == 0;
        }
    }
}

/* False: the stream is at its end. */
static bool receive(struct net_wire *wire)
{
    for (unsigned round = 0; round < ROUNDS; round++) {
        if (!deliver(wire)) {
            return false;
        }
        if (wire->is_held) {
            return true;
        }
        int r = frame_reader_fill(&wire->reader, wire->fd);
        if (r <= 0) {
            return r == 0;
        }
    }
    return deliver(wire);
}

/* The lock is held. */
static void flush_locked(struct net_wire *wire)
{
    if (wire->fd >= 0 && !wire->is_broken && frame_writer_flush(&wire->writer, wire->fd)) {
        wire->is_broken = true;
    }
}

/* The socket takes bytes again. False: it is broken. */
static bool send_rest(struct net_wire *wire)
{
    pthread_mutex_lock(&wire->lock);
    flush_locked(wire);
    bool is_broken = wire->is_broken;
    wire->is_waiting = wire->writer.count > 0;
    bool recovered = wire->is_starved && wire->writer.count <= ROOM_AGAIN;
    wire->is_starved = wire->is_starved && !recovered;
    pthread_mutex_unlock(&wire->lock);
    if (!is_broken && recovered && wire->net.receiver.sendable) {
        wire->net.receiver.sendable(wire->net.receiver.owner);
    }
    return !is_broken;
}

static void on_ready(void *owner, unsigned events)
{
    struct net_wire *wire = owner;
    if ((events & LOOP_WRITABLE) && !send_rest(wire)) {
        lose(wire);
        return;
    }
    /* A peer that hangs up may have sent something before; while we are held it stays there. */
    if (events & (LOOP_READABLE | LOOP_HANGUP)) {
        if (!wire->is_held ? !receive(wire) : (events & LOOP_HANGUP) != 0) {
            lose(wire);
            return;
        }
    }
    update_watch(wire);
}

/* Something changed on another thread. */
static void update_posted(void *owner)
{
    struct net_wire *wire = owner;
    pthread_mutex_lock(&wire->lock);
    wire->is_posted = false;
    bool is_broken = wire->is_broken;
    pthread_mutex_unlock(&wire->lock);
    if (is_broken) {
        lose(wire);
        return;
    }
    update_watch(wire);
}

/* The lock is held. */
static void post_update(struct net_wire *wire)
{
    if (!wire->is_posted) {
        wire->is_posted = true;
        loop_post(wire->config.loop, update_posted, wire);
    }
}

static bool wire_send(struct net *net, const struct net_frame *frame)
{
    struct net_wire *wire = wire_of(net);
    pthread_mutex_lock(&wire->lock);
    bool taken = true;
    if (wire->fd >= 0 && !wire->is_broken) {
        taken = frame_writer_put(&wire->writer, frame->bytes, frame->length);
        if (!taken) {
            flush_locked(wire);
            taken = wire->is_broken || frame_writer_put(&wire->writer, frame->bytes, frame->length);
        }
        if (!taken) {
            wire->is_starved = true;
        }
        if ((!taken && !wire->is_waiting) || wire->is_broken) {
            wire->is_waiting = !wire->is_broken;
            post_update(wire);
        }
    }
    pthread_mutex_unlock(&wire->lock);
    return taken;
}

static void wire_flush(struct net *net)
{
    struct net_wire *wire = wire_of(net);
    pthread_mutex_lock(&wire->lock);
    if (!wire->is_waiting) {
        flush_locked(wire);
        if (wire->fd >= 0 && (wire->writer.count > 0 || wire->is_broken)) {
            wire->is_waiting = !wire->is_broken;
            post_update(wire);
        }
    }
    pthread_mutex_unlock(&wire->lock);
}

static void resume(void *owner)
{
    struct net_wire *wire = owner;
    atomic_store(&wire->is_resuming, false);
    if (!wire->is_held) {
        return;
    }
    wire->is_held = false;
    if (wire->fd >= 0 && !receive(wire)) {
        lose(wire);
        return;
    }
    update_watch(wire);
}

static void wire_ready(struct net *net)
{
    struct net_wire *wire = wire_of(net);
    if (atomic_load(&wire->is_held) && !atomic_exchange(&wire->is_resuming, true)) {
        loop_post(wire->config.loop, resume, wire);
    }
}

static void send_again(void *owner)
{
    struct net_wire *wire = owner;
    atomic_store(&wire->is_sending, false);
    if (wire->net.receiver.sendable) {
        wire->net.receiver.sendable(wire->net.receiver.owner);
    }
}

static void wire_again(struct net *net)
{
    struct net_wire *wire = wire_of(net);
    if (!atomic_exchange(&wire->is_sending, true)) {
        loop_post(wire->config.loop, send_again, wire);
    }
}

static void wire_free(struct net *net)
{
    struct net_wire *wire = wire_of(net);
    if (wire->fd >= 0) {
        watch_free(wire->watch);
        close(wire->fd);
    }
    frame_reader_fini(&wire->reader);
    frame_writer_fini(&wire->writer);
    pthread_mutex_destroy(&wire->lock);
    if (wire->config.freed) {
        wire->config.freed(wire->config.owner);
    }
    free(wire);
}

static const struct net_ops wire_ops = {
    .send = wire_send,
    .flush = wire_flush,
    .ready = wire_ready,
    .again = wire_again,
    .free = wire_free,
};

struct net *net_wire_new(const struct net_wire_config *config)
{
    struct net_wire *wire = calloc(1, sizeof *wire);
    ASSERT(wire);
    wire->net.ops = &wire_ops;
    wire->net.is_checked = config->is_checked;
    wire->net.mtu = config->mtu;
    wire->config = *config;
    wire->fd = -1;
    pthread_mutex_init(&wire->lock, NULL);
    frame_reader_init(&wire->reader);
    frame_writer_init(&wire->writer);
    return &wire->net;
}

int net_wire_attach(struct net *net, int fd)
{
    struct net_wire *wire = wire_of(net);
    detach(wire);
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK)) {
        int error = errno;
        close(fd);
        return fail(-error, "prepare the socket of a network: %s", strerror(error));
    }
    int r = watch_new(wire->config.loop, fd, LOOP_READABLE, on_ready, wire, &wire->watch);
    if (r) {
        close(fd);
        return r;
    }
    pthread_mutex_lock(&wire->lock);
    wire->fd = fd;
    atomic_store(&wire->net.is_up, true);
    pthread_mutex_unlock(&wire->lock);
    if (wire->net.receiver.link) {
        wire->net.receiver.link(wire->net.receiver.owner, true);
    }
    return 0;
}
