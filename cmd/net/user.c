/*
 * The user-mode network: libslirp at the end of a frame wire. The guest's connections become
 * sockets of this process: NAT, DHCP, DNS, IPv4 and IPv6, with no rights on the host.
 *
 * When the machine does not take frames, sockets are not read until it does; frames that come all
 * the same (few: answers to the guest's own) are dropped, as on any cable.
 */
#include <errno.h>
#include <poll.h>
#include <slirp/libslirp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "backend/net/frames.h"
#include "backend/net/net.h"
#include "backend/net/pass.h"
#include "net.h"

enum {
    ROUNDS = 8,                    /* reads of the wire before sockets have their turn */
    CONGESTED = FRAMES_BUFFER / 2, /* bytes that wait for the machine */
    TIMERS_MAX = 4,
    DESCRIPTORS_MAX = 4096,
};

struct user_timer {
    bool is_used;
    SlirpTimerId id;
    void *argument;
    int64_t expires_ms; /* INT64_MAX: not armed */
};

struct user {
    Slirp *slirp;
    int wire, control;
    struct frame_reader reader;
    struct frame_writer writer;
    struct user_timer timers[TIMERS_MAX];
    struct pollfd *sources; /* the wire, then what libslirp wants */
    int source_count, source_room;
};

/* What libslirp asks of us. */

static ssize_t send_packet(const void *frame, size_t length, void *opaque)
{
    struct user *user = opaque;
    if (length <= NET_FRAME_MAX) {
        frame_writer_put(&user->writer, frame, length);
    }
    return (ssize_t)length;
}

static void guest_error(const char *message, void *opaque)
{
    (void)message, (void)opaque; /* the guest's business */
}

static int64_t clock_ns(void *opaque)
{
    struct timespec now;
    (void)opaque;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void *timer_new(SlirpTimerId id, void *argument, void *opaque)
{
    struct user *user = opaque;
    for (unsigned i = 0; i < TIMERS_MAX; i++) {
        if (!user->timers[i].is_used) {
            user->timers[i] = (struct user_timer){true, id, argument, INT64_MAX};
            return &user->timers[i];
        }
    }
    abort(); /* one for each SlirpTimerId is all that there is */
}

static void timer_free(void *timer, void *opaque)
{
    (void)opaque;
    *(struct user_timer *)timer = (struct user_timer){0};
}

static void timer_mod(void *timer, int64_t expires_ms, void *opaque)
{
    (void)opaque;
    ((struct user_timer *)timer)->expires_ms = expires_ms;
}

static void descriptor_is_known(int fd, void *opaque)
{
    (void)fd, (void)opaque; /* it names them again before each wait */
}

static void notify(void *opaque)
{
    (void)opaque; /* one thread: nobody waits meanwhile */
}

static const SlirpCb callbacks = {
    .send_packet = send_packet,
    .guest_error = guest_error,
    .clock_get_ns = clock_ns,
    .timer_free = timer_free,
    .timer_mod = timer_mod,
    .register_poll_fd = descriptor_is_known,
    .unregister_poll_fd = descriptor_is_known,
    .notify = notify,
    .timer_new_opaque = timer_new,
};

/* Waiting. */

static int add_source(int fd, int events, void *opaque)
{
    struct user *user = opaque;
    if (user->source_count == user->source_room) {
        user->source_room = user->source_room ? 2 * user->source_room : 64;
        user->sources = realloc(user->sources, (size_t)user->source_room * sizeof *user->sources);
        if (!user->sources) {
            abort();
        }
    }
    short wanted = 0;
    wanted |= events & SLIRP_POLL_IN ? POLLIN : 0;
    wanted |= events & SLIRP_POLL_OUT ? POLLOUT : 0;
    wanted |= events & SLIRP_POLL_PRI ? POLLPRI : 0;
    user->sources[user->source_count] = (struct pollfd){.fd = fd, .events = wanted};
    return user->source_count++;
}

static int events_of(int index, void *opaque)
{
    const struct user *user = opaque;
    int events = 0;
    short found = user->sources[index].revents;
    events |= found & POLLIN ? SLIRP_POLL_IN : 0;
    events |= found & POLLOUT ? SLIRP_POLL_OUT : 0;
    events |= found & POLLPRI ? SLIRP_POLL_PRI : 0;
    events |= found & POLLERR ? SLIRP_POLL_ERR : 0;
    events |= found & POLLHUP ? SLIRP_POLL_HUP : 0;
    return events;
}

static int time_to_wait(const struct user *user, uint32_t slirp_ms)
{
    int64_t wait = slirp_ms == UINT32_MAX ? INT32_MAX : (int64_t)slirp_ms;
    int64_t now = clock_ns(NULL) / 1000000;
    for (unsigned i = 0; i < TIMERS_MAX; i++) {
        const struct user_timer *timer = &user->timers[i];
        if (timer->is_used && timer->expires_ms != INT64_MAX) {
            int64_t left = timer->expires_ms > now ? timer->expires_ms - now : 0;
            wait = left < wait ? left : wait;
        }
    }
    return wait == INT32_MAX ? -1 : (int)wait;
}

static void run_timers(struct user *user)
{
    int64_t now = clock_ns(NULL) / 1000000;
    for (unsigned i = 0; i < TIMERS_MAX; i++) {
        struct user_timer *timer = &user->timers[i];
        if (timer->is_used && timer->expires_ms <= now) {
            timer->expires_ms = INT64_MAX;
            slirp_handle_timer(user->slirp, timer->id, timer->argument);
        }
    }
}

/* Frames of the guest. Ends the process with the wire. */
static void take_frames(struct user *user)
{
    for (unsigned round = 0; round < ROUNDS; round++) {
        int r = frame_reader_fill(&user->reader, user->wire);
        size_t position = 0, length;
        const uint8_t *frame;
        int found;
        while ((found = frame_reader_peek(&user->reader, &position, &frame, &length)) > 0) {
            slirp_input(user->slirp, frame, (int)length);
        }
        frame_reader_take(&user->reader, position);
        if (r < 0 || found < 0) {
            _exit(0);
        }
        if (r == 0) {
            return;
        }
    }
}

static void give_frames(struct user *user)
{
    if (frame_writer_flush(&user->writer, user->wire)) {
        _exit(0);
    }
}

static void serve(struct user *user)
{
    uint32_t slirp_ms = UINT32_MAX;
    bool is_congested = user->writer.count > CONGESTED;
    user->source_count = 0;
    add_source(user->wire, SLIRP_POLL_IN | (user->writer.count ? SLIRP_POLL_OUT : 0), user);
    slirp_pollfds_fill(user->slirp, &slirp_ms, add_source, user);
    int count = is_congested ? 1 : user->source_count;
    int found = poll(user->sources, (nfds_t)count, time_to_wait(user, slirp_ms));
    for (int i = count; i < user->source_count; i++) {
        user->sources[i].revents = 0;
    }
    if (found > 0 && (user->sources[0].revents & POLLOUT)) {
        give_frames(user);
    }
    if (found > 0 && (user->sources[0].revents & (POLLIN | POLLHUP | POLLERR))) {
        take_frames(user);
    }
    /* also its timeouts; with `found` < 0 it looks at no descriptor */
    slirp_pollfds_poll(user->slirp, found < 0, events_of, user);
    run_timers(user);
    give_frames(user);
}

/* The addresses are those that QEMU's users know. */
static void addresses(const struct user_network *network, SlirpConfig *ret_config)
{
    *ret_config = (SlirpConfig){
        .version = 4,
        .in_enabled = true,
        .in6_enabled = true,
        .vprefix_len = 64,
        .if_mtu = network->mtu,
        .if_mru = network->mtu,
    };
    inet_pton(AF_INET, "10.0.2.0", &ret_config->vnetwork);
    inet_pton(AF_INET, "255.255.255.0", &ret_config->vnetmask);
    inet_pton(AF_INET, "10.0.2.2", &ret_config->vhost);
    inet_pton(AF_INET, "10.0.2.3", &ret_config->vnameserver);
    inet_pton(AF_INET, "10.0.2.15", &ret_config->vdhcp_start);
    inet_pton(AF_INET6, "fec0::", &ret_config->vprefix_addr6);
    inet_pton(AF_INET6, "fec0::2", &ret_config->vhost6);
    inet_pton(AF_INET6, "fec0::3", &ret_config->vnameserver6);
}

static void refuse(int control, const char *text)
{
    int ignored = pass_send(control, PASS_ERROR, text, -1);
    (void)ignored;
}

static bool add_forwards(struct user *user, const struct user_network *network)
{
    for (size_t i = 0; i < network->forward_count; i++) {
        const struct forward *forward = &network->forwards[i];
        struct in_addr guest = {0}; /* the one that gets the first address */
        if (slirp_add_hostfwd(user->slirp, forward->is_udp, forward->address,
                              (int)forward->host_port, guest, (int)forward->guest_port)) {
            char text[PASS_TEXT_MAX], address[INET_ADDRSTRLEN];
            inet_ntop(AF_INET, &forward->address, address, sizeof address);
            snprintf(text, sizeof text, "-p: use port %s:%u/%s of the host: %s", address,
                     forward->host_port, forward->is_udp ? "udp" : "tcp", strerror(errno));
            refuse(user->control, text);
            return false;
        }
    }
    return true;
}

/* The guest decides how many connections there are: each has buffers of 256 KiB. */
static void set_limits(void)
{
    struct rlimit limit;
    if (!getrlimit(RLIMIT_NOFILE, &limit)) {
        limit.rlim_max = limit.rlim_max < DESCRIPTORS_MAX ? limit.rlim_max : DESCRIPTORS_MAX;
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

void user_network_run(const struct user_network *network, int wire, int control)
{
    static struct user user;
    SlirpConfig config;
    user.wire = wire;
    user.control = control;
    frame_reader_init(&user.reader);
    frame_writer_init(&user.writer);
    set_limits();
    addresses(network, &config);
    user.slirp = slirp_new(&config, &callbacks, &user);
    if (!user.slirp) {
        refuse(control, "the user-mode network cannot be made");
        return;
    }
    if (!add_forwards(&user, network)) {
        return;
    }
    if (net_jail_enter(control)) {
        refuse(control, "the jail of the user-mode network cannot be closed");
        return;
    }
    if (pass_send(control, PASS_READY, "", -1)) {
        return;
    }
    for (;;) {
        serve(&user);
    }
}
