/*
 * A tap: one system call for each frame, with the work that is left to do in front of it
 * (Documentation/networking/tuntap.rst). The kernel queues what it gives; what it does not take
 * now waits with the sender.
 */
#include "backend/net/tap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/loop.h"

enum { FRAMES_AT_ONCE = 64, VNET_HEADER = 12 };

struct net_tap {
    struct net net;
    struct loop *loop;
    int fd;
    pthread_mutex_t lock; /* for what follows */
    bool is_starved;      /* a sender waits for the descriptor to be writable */
    bool is_posted;
    atomic_bool is_held; /* set by the loop: the receiver has no room */
    /* A call of resume(), of send_again() is on its way: the guest asks for any number. */
    atomic_bool is_resuming, is_sending;
    /* Of the loop's thread. */
    struct watch *watch;
    size_t waiting; /* bytes of a frame that was not taken, header and all */
    uint8_t buffer[VNET_HEADER + NET_FRAME_MAX];
};

static struct net_tap *tap_of(struct net *net)
{
    return CONTAINER_OF(net, struct net_tap, net);
}

static void update_watch(struct net_tap *tap)
{
    pthread_mutex_lock(&tap->lock);
    unsigned events =
        (atomic_load(&tap->is_held) ? 0 : LOOP_READABLE) | (tap->is_starved ? LOOP_WRITABLE : 0);
    pthread_mutex_unlock(&tap->lock);
    if (watch_set(tap->watch, events)) {
        trail_clear();
    }
}

/* Give the frame in the buffer; false if it was not taken. */
static bool give(struct net_tap *tap)
{
    const struct net_receiver *receiver = &tap->net.receiver;
    struct net_frame frame = {
        .bytes = tap->buffer + VNET_HEADER,
        .length = tap->waiting - VNET_HEADER,
    };
    memcpy(&frame.offload, tap->buffer, sizeof frame.offload);
    atomic_store(&tap->is_held, true); /* a net_ready() from here on is not missed */
    if (receiver->receive && receiver->receive(receiver->owner, &frame, 1) == 0) {
        return false;
    }
    atomic_store(&tap->is_held, false);
    tap->waiting = 0;
    return true;
}

static void receive(struct net_tap *tap)
{
    for (unsigned i = 0; i < FRAMES_AT_ONCE; i++) {
        if (!tap->waiting) {
            ssize_t got = read(tap->fd, tap->buffer, sizeof tap->buffer);
            if (got <= VNET_HEADER) {
                return;
            }
            tap->waiting = (size_t)got;
        }
        if (!give(tap)) {
            return;
        }
    }
}

static void on_ready(void *owner, unsigned events)
{
    struct net_tap *tap = owner;
    if (events & LOOP_WRITABLE) {
        pthread_mutex_lock(&tap->lock);
        bool was_starved = tap->is_starved;
        tap->is_starved = false;
        pthread_mutex_unlock(&tap->lock);
        if (was_starved && tap->net.receiver.sendable) {
            tap->net.receiver.sendable(tap->net.receiver.owner);
        }
    }
    if ((events & LOOP_READABLE) && !atomic_load(&tap->is_held)) {
        receive(tap);
    }
    update_watch(tap);
}

static void update_posted(void *owner)
{
    struct net_tap *tap = owner;
    pthread_mutex_lock(&tap->lock);
    tap->is_posted = false;
    pthread_mutex_unlock(&tap->lock);
    update_watch(tap);
}

static bool tap_send(struct net *net, const struct net_frame *frame)
{
    struct net_tap *tap = tap_of(net);
    uint8_t header[VNET_HEADER] = {0};
    memcpy(header, &frame->offload, sizeof frame->offload);
    struct iovec pieces[2] = {{header, sizeof header}, {(void *)frame->bytes, frame->length}};
    ssize_t put;
    do {
        put = writev(tap->fd, pieces, 2);
    } while (put < 0 && errno == EINTR);
    if (put >= 0 || errno != EAGAIN) {
        return true; /* sent; or the interface is down or refuses the frame, which is lost */
    }
    pthread_mutex_lock(&tap->lock);
    tap->is_starved = true;
    if (!tap->is_posted) {
        tap->is_posted = true;
        loop_post(tap->loop, update_posted, tap);
    }
    pthread_mutex_unlock(&tap->lock);
    return false;
}

static void tap_flush(struct net *net)
{
    (void)net; /* nothing is collected */
}

static void resume(void *owner)
{
    struct net_tap *tap = owner;
    atomic_store(&tap->is_resuming, false);
    if (atomic_exchange(&tap->is_held, false)) {
        receive(tap);
        update_watch(tap);
    }
}

static void tap_ready(struct net *net)
{
    struct net_tap *tap = tap_of(net);
    if (atomic_load(&tap->is_held) && !atomic_exchange(&tap->is_resuming, true)) {
        loop_post(tap->loop, resume, tap);
    }
}

static void send_again(void *owner)
{
    struct net_tap *tap = owner;
    atomic_store(&tap->is_sending, false);
    if (tap->net.receiver.sendable) {
        tap->net.receiver.sendable(tap->net.receiver.owner);
    }
}

static void tap_again(struct net *net)
{
    struct net_tap *tap = tap_of(net);
    if (!atomic_exchange(&tap->is_sending, true)) {
        loop_post(tap->loop, send_again, tap);
    }
}

static void tap_set_offloads(struct net *net, unsigned takes)
{
    unsigned long flags = 0;
    flags |= takes & NET_TAKES_CHECKSUM ? TUN_F_CSUM : 0;
    flags |= takes & NET_TAKES_TSO4 ? TUN_F_TSO4 : 0;
    flags |= takes & NET_TAKES_TSO6 ? TUN_F_TSO6 : 0;
    /* only beside one of the two, or the kernel refuses it */
    bool may_ecn = takes & (NET_TAKES_TSO4 | NET_TAKES_TSO6);
    flags |= (takes & NET_TAKES_ECN) && may_ecn ? TUN_F_TSO_ECN : 0;
    ioctl(tap_of(net)->fd, TUNSETOFFLOAD, flags); /* refused: then frames come complete */
}

static void tap_free(struct net *net)
{
    struct net_tap *tap = tap_of(net);
    watch_free(tap->watch);
    if (tap->fd >= 0) {
        close(tap->fd);
    }
    pthread_mutex_destroy(&tap->lock);
    free(tap);
}

static const struct net_ops tap_ops = {
    .send = tap_send,
    .flush = tap_flush,
    .ready = tap_ready,
    .again = tap_again,
    .set_offloads = tap_set_offloads,
    .free = tap_free,
};

/* The largest packet of the interface; 0 if it cannot be asked. */
static uint16_t ask_mtu(const char *name)
{
    struct ifreq request = {0};
    strncpy(request.ifr_name, name, sizeof request.ifr_name - 1);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool known = fd >= 0 && ioctl(fd, SIOCGIFMTU, &request) == 0;
    if (fd >= 0) {
        close(fd);
    }
    return known && request.ifr_mtu >= NET_MTU_MIN && request.ifr_mtu <= NET_MTU_MAX
               ? (uint16_t)request.ifr_mtu
               : 0;
}

static int attach(struct net_tap *tap, const char *name)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    if (strlen(name) >= sizeof request.ifr_name) {
        return fail(-EINVAL, "tap: '%s' is too long for the name of an interface", name);
    }
    strncpy(request.ifr_name, name, sizeof request.ifr_name - 1);
    tap->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (tap->fd < 0) {
        return fail(-errno, "tap: open /dev/net/tun: %m");
    }
    if (ioctl(tap->fd, TUNSETIFF, &request)) {
        int error = errno;
        return fail(-error, "tap: use the interface '%s': %s%s", name, strerror(error),
                    error == EPERM ? " (root makes it for you: ip tuntap add dev NAME mode tap "
                                     "user USER)"
                                   : "");
    }
    int size = VNET_HEADER;
    if (ioctl(tap->fd, TUNSETVNETHDRSZ, &size) || ioctl(tap->fd, TUNSETOFFLOAD, 0)) {
        return fail(-errno, "tap: set up the interface '%s': %m", name);
    }
    tap->net.mtu = ask_mtu(name);
    return 0;
}

int net_tap_open(struct loop *loop, const char *name, struct net **ret_net)
{
    struct net_tap *tap = calloc(1, sizeof *tap);
    ASSERT(tap);
    tap->net.ops = &tap_ops;
    tap->net.has_offloads = true;
    tap->net.is_up = true;
    tap->loop = loop;
    tap->fd = -1;
    pthread_mutex_init(&tap->lock, NULL);
    int r = attach(tap, name);
    if (!r) {
        r = watch_new(loop, tap->fd, LOOP_READABLE, on_ready, tap, &tap->watch);
    }
    if (r) {
        tap_free(&tap->net);
        return r;
    }
    *ret_net = &tap->net;
    return 0;
}
