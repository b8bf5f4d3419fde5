/*
 * Inside virtio-vsock: the device (vsock.c), packets from and to the guest (vsock_packet.c), and
 * its connections (vsock_connection.c).
 *
 * All work is done on the loop's thread with the device's lock held: notifications only wake it.
 */
#pragma once

#include "backend/net/stream.h"
#include "base/bytes.h"
#include "device/virtio/vsock.h"

#define VSOCK_F_STREAM (UINT64_C(1) << 0) /* (5.10.3) */

enum {
    VSOCK_RECEIVE = 0,
    VSOCK_TRANSMIT = 1,
    VSOCK_EVENT = 2,
    VSOCK_QUEUES = 3,
    VSOCK_HOST_CID = 2,
    VSOCK_CONNECTIONS_MAX = 256,
    VSOCK_RESETS_MAX = 64,       /* answers to packets that belong to nothing, which wait */
    VSOCK_BUFFER = 256 << 10,    /* bytes of the guest's that wait for the host, each connection */
    VSOCK_PACKET_MAX = 64 << 10, /* of payload, to the guest */
    VSOCK_LINE_MAX = 32,         /* "CONNECT 4294967295\n" and then some */
    VSOCK_FIRST_HOST_PORT = 1 << 30,
};

/* Operations, types and flags (5.10.6). */
enum {
    VSOCK_OP_REQUEST = 1,
    VSOCK_OP_RESPONSE = 2,
    VSOCK_OP_RST = 3,
    VSOCK_OP_SHUTDOWN = 4,
    VSOCK_OP_RW = 5,
    VSOCK_OP_CREDIT_UPDATE = 6,
    VSOCK_OP_CREDIT_REQUEST = 7,
};
enum { VSOCK_TYPE_STREAM = 1 };
enum { VSOCK_NO_RECEIVE = 1, VSOCK_NO_SEND = 2, VSOCK_BOTH = 3 };

/* The header of each packet (5.10.6), as the driver sees it. */
struct vsock_header {
    uint64_t source_cid, destination_cid;
    uint32_t source_port, destination_port;
    uint32_t length;
    uint16_t type, operation;
    uint32_t flags;
    uint32_t buffer_size, forwarded; /* the sender's credit (5.10.6.3) */
} __attribute__((packed));
_Static_assert(sizeof(struct vsock_header) == 44, "as the driver sees it (5.10.6)");

enum connection_state {
    CONNECTION_FREE,
    CONNECTION_LINE,       /* from the host; it has not said which port */
    CONNECTION_REQUESTED,  /* from the host; the guest has not answered */
    CONNECTION_CONNECTING, /* from the guest; the host has not answered */
    CONNECTION_OPEN,
};

struct virtio_vsock;

struct vsock_connection {
    struct virtio_vsock *vsock;
    enum connection_state state;
    uint32_t guest_port, host_port;
    uint32_t token; /* CONNECTION_CONNECTING */
    struct stream stream;
    char line[VSOCK_LINE_MAX];
    unsigned line_length;
    /* From the guest: a ring of bytes that wait for the stream. */
    uint8_t *waiting; /* VSOCK_BUFFER bytes, or NULL */
    uint32_t waiting_start, waiting_count;
    uint32_t forwarded, forwarded_told; /* bytes given on in all, and as the guest knows it */
    /* To the guest. */
    uint32_t sent; /* bytes in all */
    uint32_t peer_buffer, peer_forwarded;
    unsigned peer_shutdown; /* VSOCK_NO_*: what the guest will not do any more */
    bool is_readable;       /* the stream has bytes, or its end */
    bool is_wanted;         /* CONNECTION_CONNECTING: the hub was not asked yet */
    bool is_doomed;         /* ended by a reset of the device */
    bool is_ended;          /* the guest was told that nothing more comes */
    uint16_t answers;       /* a bit for each VSOCK_OP_* that has to be sent */
};

struct virtio_vsock {
    struct virtio_device virtio;
    struct hub *hub;
    uint32_t cid;
    bool transport_was_reset; /* the driver has to be told (5.10.6.6.2) */
    unsigned next_served;     /* who comes first in the next round */
    uint32_t next_token, next_host_port;
    unsigned reset_count;
    struct vsock_header resets[VSOCK_RESETS_MAX];
    struct vsock_connection connections[VSOCK_CONNECTIONS_MAX];
    struct virtio_chain chain;
    uint8_t bytes[VSOCK_BUFFER]; /* payload that passes through */
};

static inline struct virtio_vsock *vsock_of(struct virtio_device *virtio)
{
    return CONTAINER_OF(virtio, struct virtio_vsock, virtio);
}

/* vsock_packet.c */

/* Everything that can be done now: packets from the guest, and packets to it. */
void vsock_work(struct virtio_vsock *vsock);

/* vsock_connection.c */

struct vsock_connection *vsock_find(struct virtio_vsock *vsock, uint32_t guest_port,
                                    uint32_t host_port);
/* NULL: there are too many. */
struct vsock_connection *vsock_new_connection(struct virtio_vsock *vsock);
void vsock_end(struct vsock_connection *connection);
/* A packet for this connection; its payload is in vsock->bytes. False: it deserves a reset. */
bool vsock_take(struct vsock_connection *connection, const struct vsock_header *header);
/* The guest asks for a connection. */
bool vsock_take_request(struct virtio_vsock *vsock, const struct vsock_header *header);
/* Bytes that the guest has room for. */
uint32_t vsock_credit(const struct vsock_connection *connection);
/* Watch the stream for what we wait for. */
void vsock_update_watch(struct vsock_connection *connection);
/* Does this still have to be said? */
static inline bool vsock_answers(const struct vsock_connection *connection, unsigned operation)
{
    return connection->answers >> operation & 1;
}

/* For the hub. */
void vsock_arrived(void *owner, int fd);
void vsock_connected(void *owner, uint32_t token, int fd);
