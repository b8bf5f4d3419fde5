/*
 * virtio-vsock, the device: configuration, life and saved state. Connections have their other ends
 * in processes of this host and do not travel: who loads a saved machine tells its driver that the
 * transport was reset (5.10.6.6.2).
 */
#include "device/virtio/vsock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "device/virtio/vsock_internal.h"
#include "persist/visitor.h"

enum { QUEUE_SIZE = 128 };

static void vsock_config_read(struct virtio_device *virtio, uint32_t offset, void *bytes,
                              unsigned size)
{
    uint64_t cid = vsock_of(virtio)->cid;
    memcpy(bytes, (const uint8_t *)&cid + offset, size);
}

static void vsock_notify(struct virtio_device *virtio, unsigned queue)
{
    hub_wake(vsock_of(virtio)->hub);
}

static void vsock_reset(struct virtio_device *virtio)
{
    struct virtio_vsock *vsock = vsock_of(virtio);
    for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX; i++) {
        vsock->connections[i].is_doomed = vsock->connections[i].state != CONNECTION_FREE;
    }
    vsock->reset_count = 0;
    vsock->transport_was_reset = false;
    hub_wake(vsock->hub);
}

static void on_work(void *owner)
{
    struct virtio_vsock *vsock = owner;
    pthread_mutex_lock(&vsock->virtio.device.lock);
    vsock_work(vsock);
    pthread_mutex_unlock(&vsock->virtio.device.lock);
}

static void vsock_visit(struct virtio_device *virtio, struct visitor *v)
{
    struct virtio_vsock *vsock = vsock_of(virtio);
    uint32_t cid = vsock->cid;
    visit_u32(v, "cid", &cid);
    if (visitor_mode(v) != VISITOR_READ || visitor_error(v)) {
        return;
    }
    if (cid != vsock->cid) {
        visitor_fail(v, -EINVAL, "the guest had another CID when it was saved");
        return;
    }
    vsock_reset(virtio);
    vsock->transport_was_reset = true;
}

static void virtio_vsock_free(struct virtio_device *virtio)
{
    struct virtio_vsock *vsock = vsock_of(virtio);
    for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX; i++) {
        vsock_end(&vsock->connections[i]);
    }
    hub_free(vsock->hub);
    virtio_fini(virtio);
    free(vsock);
}

static const struct virtio_ops vsock_ops = {
    .type = VIRTIO_TYPE_VSOCK,
    .queue_count = VSOCK_QUEUES,
    .queue_size = QUEUE_SIZE,
    .config_size = sizeof(uint64_t),
    .config_read = vsock_config_read,
    .notify = vsock_notify,
    .reset = vsock_reset,
    .visit = vsock_visit,
    .free = virtio_vsock_free,
};
static const struct device_ops device_ops = VIRTIO_DEVICE_OPS("virtio-vsock");

int virtio_vsock_new(const struct virtio_vsock_config *config, const char *id,
                     struct virtio_device **ret_virtio)
{
    ASSERT(config->cid >= VSOCK_CID_MIN && config->cid < UINT32_MAX);
    struct virtio_vsock *vsock = calloc(1, sizeof *vsock);
    ASSERT(vsock);
    vsock->hub = config->hub;
    vsock->cid = config->cid;
    vsock->next_host_port = VSOCK_FIRST_HOST_PORT;
    for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX; i++) {
        vsock->connections[i].vsock = vsock;
        vsock->connections[i].stream.fd = -1;
    }
    virtio_init(&vsock->virtio, &device_ops, &vsock_ops, config->memory, VSOCK_F_STREAM, id);
    config->hub->receiver = (struct hub_receiver){
        .arrived = vsock_arrived,
        .connected = vsock_connected,
        .work = on_work,
        .owner = vsock,
    };
    *ret_virtio = &vsock->virtio;
    return 0;
}
