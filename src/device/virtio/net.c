/*
 * virtio-net, the device: configuration, life and saved state. Frames are in net_transmit.c and
 * net_receive.c, the control queue is in net_control.c.
 *
 * Queues: 2n receives and 2n + 1 sends, for each pair n; the control queue is behind the pairs that
 * the driver may use, so its number depends on what was negotiated (5.1.2).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "device/virtio/net_internal.h"
#include "persist/visitor.h"

enum { STATUS_LINK_UP = 1 };

/* The configuration (5.1.4), as the driver sees it. */
struct net_registers {
    uint8_t address[NET_ADDRESS_SIZE];
    uint16_t status, max_pairs, mtu;
};
_Static_assert(sizeof(struct net_registers) == 12, "as the driver sees it (5.1.4)");

static unsigned control_queue(const struct virtio_net *self)
{
    return 2u * (virtio_has(&self->virtio, NET_F_MQ) ? self->pairs : 1u);
}

static void net_config_read(struct virtio_device *virtio, uint32_t offset, void *bytes,
                            unsigned size)
{
    const struct virtio_net *self = net_of(virtio);
    struct net_registers registers = {
        .status = net_is_up(self->net) ? STATUS_LINK_UP : 0,
        .max_pairs = self->pairs,
        .mtu = self->mtu,
    };
    memcpy(registers.address, self->address, sizeof registers.address);
    memcpy(bytes, (const uint8_t *)&registers + offset, size);
}

static void net_notify(struct virtio_device *virtio, unsigned queue)
{
    struct virtio_net *self = net_of(virtio);
    unsigned control = control_queue(self);
    if (queue >= control) {
        if (queue == control && virtio_has(virtio, NET_F_CTRL_VQ)) {
            net_control(self, queue);
        }
    } else if (queue & 1) {
        net_transmit(self, queue);
    } else {
        net_ready(self->net);
    }
}

static void tell_offloads(struct virtio_net *self)
{
    const struct virtio_device *virtio = &self->virtio;
    unsigned takes = 0;
    if (virtio_has(virtio, NET_F_GUEST_CSUM)) {
        takes |= NET_TAKES_CHECKSUM;
        takes |= virtio_has(virtio, NET_F_GUEST_TSO4) ? NET_TAKES_TSO4 : 0;
        takes |= virtio_has(virtio, NET_F_GUEST_TSO6) ? NET_TAKES_TSO6 : 0;
        takes |= virtio_has(virtio, NET_F_GUEST_ECN) ? NET_TAKES_ECN : 0;
    }
    net_set_offloads(self->net, takes);
}

static void net_driver_ready(struct virtio_device *virtio)
{
    tell_offloads(net_of(virtio));
}

static void net_reset(struct virtio_device *virtio)
{
    struct virtio_net *self = net_of(virtio);
    memcpy(self->address, self->configured_address, sizeof self->address);
    self->pairs_in_use = 1;
    self->filter = (struct net_filter){.promiscuous = true};
    memset(self->segments_sent, 0, sizeof self->segments_sent);
    memset(self->flows, 0, sizeof self->flows);
    tell_offloads(self); /* none */
}

static void net_sendable(void *owner)
{
    struct virtio_net *self = owner;
    pthread_mutex_lock(&self->virtio.device.lock);
    for (unsigned queue = 1; queue < control_queue(self); queue += 2) {
        virtio_serve(&self->virtio, queue);
    }
    pthread_mutex_unlock(&self->virtio.device.lock);
}

static void net_link(void *owner, bool is_up)
{
    struct virtio_net *self = owner;
    pthread_mutex_lock(&self->virtio.device.lock);
    virtio_config_changed(&self->virtio); /* the driver reads what net_is_up() says by then */
    pthread_mutex_unlock(&self->virtio.device.lock);
}

static void visit_filter(struct net_filter *filter, struct visitor *v)
{
    visit_begin(v, "filter", 1);
    visit_bool(v, "promiscuous", &filter->promiscuous);
    visit_bool(v, "all_multicast", &filter->all_multicast);
    visit_bool(v, "all_unicast", &filter->all_unicast);
    visit_bool(v, "no_multicast", &filter->no_multicast);
    visit_bool(v, "no_unicast", &filter->no_unicast);
    visit_bool(v, "no_broadcast", &filter->no_broadcast);
    visit_bool(v, "too_many_unicast", &filter->too_many_unicast);
    visit_bool(v, "too_many_multicast", &filter->too_many_multicast);
    visit_u8_max(v, "unicast_count", &filter->unicast_count, NET_ADDRESSES_MAX);
    visit_u8_max(v, "multicast_count", &filter->multicast_count, NET_ADDRESSES_MAX);
    visit_bytes(v, "unicast", filter->unicast, sizeof filter->unicast);
    visit_bytes(v, "multicast", filter->multicast, sizeof filter->multicast);
    visit_end(v);
}

/* The cable belongs to the outside: it is not saved. */
static void net_visit(struct virtio_device *virtio, struct visitor *v)
{
    struct virtio_net *self = net_of(virtio);
    visit_bytes(v, "address", self->address, sizeof self->address);
    uint16_t pairs = self->pairs_in_use;
    visit_u16_max(v, "pairs_in_use", &pairs, self->pairs);
    for (unsigned i = 0; i < NET_PAIRS_MAX; i++) {
        visit_u16(v, "segments_sent", &self->segments_sent[i]);
    }
    visit_bytes(v, "flows", self->flows, sizeof self->flows);
    visit_filter(&self->filter, v);
    if (visitor_mode(v) != VISITOR_READ || visitor_error(v)) {
        return;
    }
    if (pairs == 0) {
        visitor_fail(v, -EINVAL, "a network card was saved with no queues in use");
        return;
    }
    self->pairs_in_use = pairs;
    tell_offloads(self);
}

static void virtio_net_free(struct virtio_device *virtio)
{
    struct virtio_net *self = net_of(virtio);
    net_free(self->net);
    virtio_fini(virtio);
    free(self->work);
    free(self);
}

static const struct virtio_ops net_ops = {
    .type = VIRTIO_TYPE_NET,
    .queue_count = 3,
    .queue_size = NET_QUEUE_SIZE,
    .config_size = sizeof(struct net_registers),
    .config_read = net_config_read,
    .ready = net_driver_ready,
    .notify = net_notify,
    .reset = net_reset,
    .visit = net_visit,
    .free = virtio_net_free,
};
static const struct device_ops device_ops = VIRTIO_DEVICE_OPS("virtio-net");

static uint64_t offered_features(const struct virtio_net *self)
{
    uint64_t features = NET_F_CSUM | NET_F_GUEST_CSUM | NET_F_MAC | NET_F_HOST_TSO4 |
                        NET_F_HOST_TSO6 | NET_F_HOST_ECN | NET_F_MRG_RXBUF | NET_F_STATUS |
                        NET_F_CTRL_VQ | NET_F_CTRL_RX | NET_F_CTRL_RX_EXTRA | NET_F_CTRL_MAC_ADDR;
    features |= self->mtu ? NET_F_MTU : 0;
    features |= self->pairs > 1 ? NET_F_MQ : 0;
    /* a backend that only has complete frames gives none that would need these */
    if (self->net && self->net->has_offloads) {
        features |= NET_F_GUEST_TSO4 | NET_F_GUEST_TSO6 | NET_F_GUEST_ECN;
    }
    return features;
}

int virtio_net_new(const struct virtio_net_config *config, const char *id,
                   struct virtio_device **ret_virtio)
{
    ASSERT(config->pairs >= 1 && config->pairs <= NET_PAIRS_MAX);
    struct virtio_net *self = calloc(1, sizeof *self);
    ASSERT(self);
    self->work = malloc(sizeof *self->work);
    ASSERT(self->work);
    self->net = config->net;
    self->mtu = config->net ? config->net->mtu : 0;
    self->pairs = (uint16_t)config->pairs;
    memcpy(self->configured_address, config->address, sizeof self->configured_address);
    virtio_init(&self->virtio, &device_ops, &net_ops, config->memory, offered_features(self), id);
    virtio_set_queue_count(&self->virtio, 2 * config->pairs + 1);
    net_reset(&self->virtio);
    const struct net_receiver receiver = {
        .receive = net_receive_frames,
        .sendable = net_sendable,
        .link = net_link,
        .owner = self,
    };
    net_connect(self->net, &receiver);
    *ret_virtio = &self->virtio;
    return 0;
}
