/* The hub of hub.h: a ring of bytes with a place in it for each viewer and for the log. */
#include "backend/console/hub.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend/console/outlet.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/loop.h"

enum { LOG_PIECE = 4096, PATIENCE_NS = 1000000000 };
/* A device that asks has room for this much, as far as the one who types lags behind. */
enum { LAG_MAX = CONSOLE_HISTORY / 2 };

struct console_viewer {
    struct console_hub *hub; /* NULL: gone */
    struct console_viewer *next;
    struct console_viewer_config config;
    uint64_t at;   /* the number of the byte that it reads next */
    uint64_t came; /* how many had been written then */
};

struct console_hub {
    struct console console;
    struct console *inner;
    bool inner_types;
    struct timer *timer;
    struct console_viewer *viewers; /* in the order in which they came; the loop's thread */

    pthread_mutex_t lock; /* guards what is below */
    uint8_t *history;
    uint64_t written;
    uint64_t logged; /* how many of them are in the log */
    struct console_log log;
    bool is_armed;                 /* the timer will look */
    bool is_watched;               /* somebody, or the log, wants to know */
    bool has_typist;               /* a viewer types */
    bool is_starved;               /* the device was told that there is no room */
    uint64_t typist_at, typist_ns; /* what the one who types has read, and when it last did */
};

struct console_hub *console_hub_of(struct console *console)
{
    return CONTAINER_OF(console, struct console_hub, console);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* ---- the ring; with the lock ---- */

static void ring_put(struct console_hub *hub, const uint8_t *bytes, size_t count)
{
    size_t skipped = count > CONSOLE_HISTORY ? count - CONSOLE_HISTORY : 0;
    size_t at = (hub->written + skipped) % CONSOLE_HISTORY;
    size_t kept = count - skipped, to_end = CONSOLE_HISTORY - at;
    size_t piece = kept < to_end ? kept : to_end;
    memcpy(hub->history + at, bytes + skipped, piece);
    memcpy(hub->history, bytes + skipped + piece, kept - piece);
    hub->written += count;
}

/* Bytes from `*at` on, which moves to what is still there; returns how many. */
static size_t ring_get(const struct console_hub *hub, uint64_t *at, uint8_t *bytes, size_t size,
                       uint64_t *ret_lost)
{
    uint64_t oldest = hub->written > CONSOLE_HISTORY ? hub->written - CONSOLE_HISTORY : 0;
    *ret_lost = *at < oldest ? oldest - *at : 0;
    *at += *ret_lost;
    uint64_t left = hub->written - *at;
    size_t count = left < size ? (size_t)left : size;
    size_t from = *at % CONSOLE_HISTORY, to_end = CONSOLE_HISTORY - from;
    size_t piece = count < to_end ? count : to_end;
    memcpy(bytes, hub->history + from, piece);
    memcpy(bytes + piece, hub->history, count - piece);
    *at += count;
    return count;
}

static void write_log(struct console_hub *hub)
{
    uint8_t bytes[LOG_PIECE];
    uint64_t lost;
    while (hub->log.files[0] >= 0 && hub->logged < hub->written) {
        size_t count = ring_get(hub, &hub->logged, bytes, sizeof bytes, &lost);
        console_log_write(&hub->log, bytes, count);
    }
}

/* Let the loop look, soon: small writes are gathered. */
static void arm(struct console_hub *hub, uint64_t delay)
{
    if (hub->is_watched && !hub->is_armed) {
        hub->is_armed = true;
        timer_arm(hub->timer, now_ns() + delay);
    }
}

/* ---- the device's side ---- */

static void hub_write(struct console *console, const uint8_t *bytes, size_t count)
{
    struct console_hub *hub = console_hub_of(console);
    pthread_mutex_lock(&hub->lock);
    while (count > CONSOLE_HISTORY / 2 && hub->log.files[0] >= 0) { /* the log misses nothing */
        ring_put(hub, bytes, CONSOLE_HISTORY / 2);
        write_log(hub);
        console_write(hub->inner, bytes, CONSOLE_HISTORY / 2);
        bytes += CONSOLE_HISTORY / 2;
        count -= CONSOLE_HISTORY / 2;
    }
    ring_put(hub, bytes, count);
    if (hub->written - hub->logged > CONSOLE_HISTORY / 2) {
        write_log(hub);
    }
    arm(hub, OUTLET_GATHER_NS);
    pthread_mutex_unlock(&hub->lock);
    console_write(hub->inner, bytes, count);
}

static int hub_start(struct console *console)
{
    return console_start(console_hub_of(console)->inner);
}

static void hub_flush(struct console *console)
{
    console_flush(console_hub_of(console)->inner);
}

/* How much the device may write for the one who types; with the lock. */
static size_t typist_room(const struct console_hub *hub)
{
    uint64_t lag = hub->written - hub->typist_at;
    if (!hub->has_typist || now_ns() - hub->typist_ns > PATIENCE_NS) {
        return SIZE_MAX;
    }
    return lag < LAG_MAX ? (size_t)(LAG_MAX - lag) : 0;
}

static size_t hub_room(struct console *console)
{
    struct console_hub *hub = console_hub_of(console);
    pthread_mutex_lock(&hub->lock);
    size_t room = typist_room(hub);
    if (!room && !hub->is_starved) {
        hub->is_starved = true;
        hub->is_armed = true;
        timer_arm(hub->timer, now_ns() + OUTLET_GATHER_NS);
    }
    pthread_mutex_unlock(&hub->lock);
    size_t inner = console_room(hub->inner);
    return room < inner ? room : inner;
}

static void hub_ready(struct console *console)
{
    struct console_hub *hub = console_hub_of(console);
    console_ready(hub->inner);
    pthread_mutex_lock(&hub->lock);
    arm(hub, 0);
    pthread_mutex_unlock(&hub->lock);
}

/* ---- the inner console's side ---- */

static size_t inner_receive(void *owner, const uint8_t *bytes, size_t count)
{
    const struct console_receiver *receiver = &((struct console_hub *)owner)->console.receiver;
    return receiver->receive ? receiver->receive(receiver->owner, bytes, count) : 0;
}

static void inner_break(void *owner)
{
    const struct console_receiver *receiver = &((struct console_hub *)owner)->console.receiver;
    if (receiver->send_break) {
        receiver->send_break(receiver->owner);
    }
}

static void inner_resized(void *owner, uint16_t columns, uint16_t rows)
{
    const struct console_receiver *receiver = &((struct console_hub *)owner)->console.receiver;
    if (receiver->resized) {
        receiver->resized(receiver->owner, columns, rows);
    }
}

static void inner_drained(void *owner)
{
    const struct console_receiver *receiver = &((struct console_hub *)owner)->console.receiver;
    if (receiver->drained) {
        receiver->drained(receiver->owner);
    }
}

static void hub_connected(struct console *console)
{
    struct console_hub *hub = console_hub_of(console);
    const struct console_receiver receiver = {
        .receive = inner_receive,
        .send_break = inner_break,
        .resized = inner_resized,
        .drained = inner_drained,
        .owner = hub,
    };
    console_connect(hub->inner, &receiver);
}

/* ---- viewers ---- */

static void tell_viewers(struct console_hub *hub)
{
    for (struct console_viewer *viewer = hub->viewers, *next; viewer; viewer = next) {
        next = viewer->next; /* this one may leave */
        viewer->config.ready(viewer->config.owner);
    }
}

/* Note who types and how far that one has read; let the device go on when there is room again. */
static void look_at_typist(struct console_hub *hub)
{
    const struct console_viewer *typist = hub->inner_types ? NULL : hub->viewers;
    pthread_mutex_lock(&hub->lock);
    if (typist && (!hub->has_typist || hub->typist_at != typist->at)) {
        hub->typist_at = typist->at;
        hub->typist_ns = now_ns();
    }
    hub->has_typist = typist;
    bool is_fed = hub->is_starved && typist_room(hub) > LAG_MAX / 2;
    if (is_fed) {
        hub->is_starved = false;
    } else if (hub->is_starved) {
        arm(hub, PATIENCE_NS / 10);
    }
    pthread_mutex_unlock(&hub->lock);
    if (is_fed) {
        inner_drained(hub);
    }
}

static void on_timer(void *owner)
{
    struct console_hub *hub = owner;
    pthread_mutex_lock(&hub->lock);
    hub->is_armed = false;
    write_log(hub);
    pthread_mutex_unlock(&hub->lock);
    tell_viewers(hub);
    look_at_typist(hub);
}

struct console_viewer *console_viewer_new(struct console_hub *hub,
                                          const struct console_viewer_config *config)
{
    struct console_viewer *viewer = calloc(1, sizeof *viewer), **last = &hub->viewers;
    ASSERT(viewer);
    viewer->hub = hub;
    viewer->config = *config;
    pthread_mutex_lock(&hub->lock);
    hub->is_watched = true;
    viewer->came = hub->written;
    viewer->at = hub->written > CONSOLE_HISTORY ? hub->written - CONSOLE_HISTORY : 0;
    pthread_mutex_unlock(&hub->lock);
    while (*last) {
        last = &(*last)->next;
    }
    *last = viewer;
    look_at_typist(hub);
    return viewer;
}

void console_viewer_free(struct console_viewer *viewer)
{
    if (!viewer) {
        return;
    }
    if (viewer->hub) {
        struct console_hub *hub = viewer->hub;
        struct console_viewer **at = &hub->viewers;
        while (*at != viewer) {
            at = &(*at)->next;
        }
        *at = viewer->next;
        look_at_typist(hub);
        pthread_mutex_lock(&hub->lock);
        arm(hub, 0); /* the next one may type */
        hub->is_watched = hub->viewers || hub->log.files[0] >= 0;
        pthread_mutex_unlock(&hub->lock);
    }
    free(viewer);
}

size_t console_viewer_read(struct console_viewer *viewer, uint8_t *bytes, size_t size,
                           uint64_t *ret_lost)
{
    struct console_hub *hub = viewer->hub;
    *ret_lost = 0;
    if (!hub) {
        return 0;
    }
    pthread_mutex_lock(&hub->lock);
    size_t count = ring_get(hub, &viewer->at, bytes, size, ret_lost);
    pthread_mutex_unlock(&hub->lock);
    look_at_typist(hub);
    return count;
}

uint64_t console_viewer_history(const struct console_viewer *viewer)
{
    return viewer->came > viewer->at ? viewer->came - viewer->at : 0;
}

bool console_viewer_types(const struct console_viewer *viewer)
{
    return viewer->hub && !viewer->hub->inner_types && viewer->hub->viewers == viewer;
}

size_t console_viewer_type(struct console_viewer *viewer, const uint8_t *bytes, size_t count)
{
    return console_viewer_types(viewer) ? inner_receive(viewer->hub, bytes, count) : 0;
}

void console_viewer_break(struct console_viewer *viewer)
{
    if (console_viewer_types(viewer)) {
        inner_break(viewer->hub);
    }
}

void console_viewer_resize(struct console_viewer *viewer, uint16_t columns, uint16_t rows)
{
    if (console_viewer_types(viewer)) {
        inner_resized(viewer->hub, columns, rows);
    }
}

/* ---- life ---- */

static void hub_free(struct console *console)
{
    struct console_hub *hub = console_hub_of(console);
    write_log(hub);
    for (struct console_viewer *viewer = hub->viewers; viewer; viewer = viewer->next) {
        viewer->hub = NULL;
    }
    console_free(hub->inner);
    timer_free(hub->timer);
    pthread_mutex_destroy(&hub->lock);
    free(hub->history);
    free(hub);
}

static const struct console_ops hub_ops = {
    .start = hub_start,
    .write = hub_write,
    .flush = hub_flush,
    .ready = hub_ready,
    .room = hub_room,
    .connected = hub_connected,
    .free = hub_free,
};

struct console *console_hub_new(const struct console_hub_config *config)
{
    struct console_hub *hub = calloc(1, sizeof *hub);
    ASSERT(hub);
    hub->console.ops = &hub_ops;
    hub->inner = config->inner;
    hub->inner_types = config->inner_types;
    hub->timer = timer_new(config->loop, on_timer, hub);
    hub->history = malloc(CONSOLE_HISTORY);
    ASSERT(hub->history);
    pthread_mutex_init(&hub->lock, NULL);
    console_log_init(&hub->log, config->log);
    hub->is_watched = hub->log.files[0] >= 0;
    return &hub->console;
}
