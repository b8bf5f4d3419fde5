/*
 * Packets. From the guest: each is copied once, checked, and given to its connection; what belongs
 * to none is answered with a reset (5.10.6.4). To the guest: connections take turns, each with what
 * it has to answer and then one packet of its stream, until there are no buffers.
 */
#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "device/virtio/vsock_internal.h"

enum { BUDGET = 65536, PACKETS_AT_ONCE = 256 };

/* An answer to a packet that belongs to nothing. A reset is not answered. */
static void refuse(struct virtio_vsock *vsock, const struct vsock_header *header)
{
    if (header->operation != VSOCK_OP_RST) {
        ASSERT(vsock->reset_count < VSOCK_RESETS_MAX);
        vsock->resets[vsock->reset_count++] = (struct vsock_header){
            .source_cid = header->destination_cid,
            .destination_cid = vsock->cid,
            .source_port = header->destination_port,
            .destination_port = header->source_port,
            .type = header->type,
            .operation = VSOCK_OP_RST,
        };
    }
}

static void take_packet(struct virtio_vsock *vsock, const struct vsock_header *header)
{
    struct vsock_connection *connection = NULL;
    if (header->source_cid != vsock->cid) {
        return; /* nobody to answer */
    }
    if (header->destination_cid == VSOCK_HOST_CID && header->type == VSOCK_TYPE_STREAM) {
        connection = vsock_find(vsock, header->source_port, header->destination_port);
        if (!connection && header->operation == VSOCK_OP_REQUEST &&
            vsock_take_request(vsock, header)) {
            return;
        }
    }
    if (!connection) {
        refuse(vsock, header);
    } else if (!vsock_take(connection, header)) {
        vsock_end(connection);
        refuse(vsock, header);
    }
}

/* Connections that were asked for are asked of the hub, which may answer at once. */
static void connect_wanted(struct virtio_vsock *vsock)
{
    for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX; i++) {
        struct vsock_connection *connection = &vsock->connections[i];
        if (connection->is_wanted) {
            connection->is_wanted = false;
            uint32_t port = connection->host_port, token = connection->token;
            pthread_mutex_unlock(&vsock->virtio.device.lock);
            hub_connect(vsock->hub, port, token);
            pthread_mutex_lock(&vsock->virtio.device.lock);
        }
    }
}

static void transmit(struct virtio_vsock *vsock)
{
    struct virtio_device *virtio = &vsock->virtio;
    struct virtio_chain *chain = &vsock->chain;
    unsigned count = 0;
    while (vsock->reset_count < VSOCK_RESETS_MAX && count < PACKETS_AT_ONCE &&
           virtio_pop(virtio, VSOCK_TRANSMIT, chain)) {
        struct vsock_header header;
        count++;
        if (virtio_chain_read(virtio->memory, chain, 0, &header, sizeof header) ||
            header.length > VSOCK_BUFFER || header.length > chain->read_length - sizeof header ||
            virtio_chain_read(virtio->memory, chain, sizeof header, vsock->bytes, header.length)) {
            virtio_needs_reset(virtio);
            return;
        }
        take_packet(vsock, &header);
        virtio_put(virtio, VSOCK_TRANSMIT, chain->head, 0);
    }
    if (count > 0) {
        virtio_signal(virtio, VSOCK_TRANSMIT);
    }
    if (count == PACKETS_AT_ONCE) {
        hub_wake(vsock->hub);
    }
}

/* Into the next buffer of the guest; false: there is none. */
static bool send_packet(struct virtio_vsock *vsock, const struct vsock_header *header,
                        const void *payload)
{
    struct virtio_device *virtio = &vsock->virtio;
    struct virtio_chain *chain = &vsock->chain;
    if (!virtio_pop(virtio, VSOCK_RECEIVE, chain)) {
        return false;
    }
    if (virtio_chain_write(virtio->memory, chain, 0, header, sizeof *header) ||
        virtio_chain_write(virtio->memory, chain, sizeof *header, payload, header->length)) {
        virtio_needs_reset(virtio);
        return false;
    }
    virtio_put(virtio, VSOCK_RECEIVE, chain->head, (uint32_t)sizeof *header + header->length);
    return true;
}

static struct vsock_header header_of(struct vsock_connection *connection, uint16_t operation)
{
    connection->forwarded_told = connection->forwarded;
    return (struct vsock_header){
        .source_cid = VSOCK_HOST_CID,
        .destination_cid = connection->vsock->cid,
        .source_port = connection->host_port,
        .destination_port = connection->guest_port,
        .type = VSOCK_TYPE_STREAM,
        .operation = operation,
        .buffer_size = VSOCK_BUFFER,
        .forwarded = connection->forwarded,
    };
}

/* What has to be said before any bytes. False: no buffers. */
static bool send_answers(struct vsock_connection *connection)
{
    static const uint16_t order[] = {VSOCK_OP_REQUEST, VSOCK_OP_RESPONSE, VSOCK_OP_RST,
                                     VSOCK_OP_CREDIT_UPDATE};
    for (unsigned i = 0; i < ARRAY_SIZE(order); i++) {
        if (!vsock_answers(connection, order[i])) {
            continue;
        }
        struct vsock_header header = header_of(connection, order[i]);
        if (!send_packet(connection->vsock, &header, NULL)) {
            return false;
        }
        connection->answers &= (uint16_t) ~(1u << order[i]);
        if (order[i] == VSOCK_OP_RST) {
            vsock_end(connection);
            return true;
        }
    }
    return true;
}

/* The stream is at its end: the guest is told, once. */
static bool send_end(struct vsock_connection *connection)
{
    struct vsock_header header = header_of(connection, VSOCK_OP_SHUTDOWN);
    header.flags = stream_is_over(&connection->stream) ? VSOCK_BOTH : VSOCK_NO_SEND;
    if (!send_packet(connection->vsock, &header, NULL)) {
        return false;
    }
    connection->is_ended = true;
    return true;
}

/* One packet of the stream's bytes. False: no buffers. */
static bool send_bytes(struct vsock_connection *connection)
{
    struct virtio_vsock *vsock = connection->vsock;
    struct virtio_device *virtio = &vsock->virtio;
    uint32_t room = vsock_credit(connection);
    room = room < VSOCK_PACKET_MAX ? room : VSOCK_PACKET_MAX;
    if (!virtio_pop(virtio, VSOCK_RECEIVE, &vsock->chain)) {
        return false;
    }
    virtqueue_unpop(&virtio->queues[VSOCK_RECEIVE]);
    if (vsock->chain.write_length <= sizeof(struct vsock_header)) {
        virtio_needs_reset(virtio);
        return false;
    }
    uint64_t space = vsock->chain.write_length - sizeof(struct vsock_header);
    room = room < space ? room : (uint32_t)space;
    ssize_t got = stream_read(&connection->stream, vsock->bytes, room);
    if (got == -EAGAIN) {
        connection->is_readable = false;
        return true;
    }
    if (got <= 0) {
        return send_end(connection);
    }
    struct vsock_header header = header_of(connection, VSOCK_OP_RW);
    header.length = (uint32_t)got;
    connection->sent += (uint32_t)got;
    return send_packet(vsock, &header, vsock->bytes);
}

static bool has_bytes(const struct vsock_connection *connection)
{
    return connection->state == CONNECTION_OPEN && connection->is_readable &&
           !connection->is_ended && !(connection->peer_shutdown & VSOCK_NO_RECEIVE) &&
           vsock_credit(connection) > 0;
}

/* Resets for strangers, then a round of all connections, as long as it does something. */
static bool receive_round(struct virtio_vsock *vsock, unsigned *packets)
{
    for (; vsock->reset_count > 0; vsock->reset_count--, (*packets)++) {
        if (!send_packet(vsock, &vsock->resets[vsock->reset_count - 1], NULL)) {
            return false;
        }
    }
    bool is_busy = false;
    for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX; i++) {
        unsigned number = (vsock->next_served + i) % VSOCK_CONNECTIONS_MAX;
        struct vsock_connection *connection = &vsock->connections[number];
        if (connection->state == CONNECTION_FREE ||
            (!connection->answers && !has_bytes(connection))) {
            continue;
        }
        if (!send_answers(connection) || (has_bytes(connection) && !send_bytes(connection))) {
            vsock->next_served = number;
            return false;
        }
        (*packets)++;
        is_busy = true;
    }
    return is_busy;
}

static void receive(struct virtio_vsock *vsock)
{
    unsigned packets = 0;
    bool is_busy = true;
    uint16_t before = vsock->virtio.queues[VSOCK_RECEIVE].next_used;
    while (is_busy && packets < PACKETS_AT_ONCE) {
        is_busy = receive_round(vsock, &packets);
    }
    if (vsock->virtio.queues[VSOCK_RECEIVE].next_used != before) {
        virtio_signal(&vsock->virtio, VSOCK_RECEIVE);
    }
    if (is_busy) {
        hub_wake(vsock->hub);
    }
}

/* All connections are gone, and the driver may ask for its CID again. */
static void tell_reset(struct virtio_vsock *vsock)
{
    struct virtio_device *virtio = &vsock->virtio;
    const uint32_t event = 0; /* VIRTIO_VSOCK_EVENT_TRANSPORT_RESET */
    if (vsock->transport_was_reset && virtio_pop(virtio, VSOCK_EVENT, &vsock->chain)) {
        vsock->transport_was_reset = false;
        if (virtio_chain_write(virtio->memory, &vsock->chain, 0, &event, sizeof event)) {
            virtio_needs_reset(virtio);
            return;
        }
        virtio_push(virtio, VSOCK_EVENT, vsock->chain.head, sizeof event);
    }
}

/* The driver's reset, or a load, ended these; only the loop's thread may close their streams. */
static void bury(struct virtio_vsock *vsock)
{
    for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX; i++) {
        if (vsock->connections[i].is_doomed) {
            vsock_end(&vsock->connections[i]);
        }
    }
}

void vsock_work(struct virtio_vsock *vsock)
{
    bury(vsock);
    vsock->virtio.budget = BUDGET;
    tell_reset(vsock);
    transmit(vsock);
    bool was_full = vsock->reset_count == VSOCK_RESETS_MAX;
    connect_wanted(vsock);
    receive(vsock);
    if (was_full && vsock->reset_count < VSOCK_RESETS_MAX) {
        hub_wake(vsock->hub); /* packets wait that the driver has told of already */
    }
    for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX; i++) {
        vsock_update_watch(&vsock->connections[i]);
    }
}
