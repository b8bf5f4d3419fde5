/*
 * Connections: streams of the host on one side, packets on the other. Bytes for the host wait here
 * in a buffer as large as the credit that the guest has; bytes for the guest wait in the stream.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/loop.h"
#include "device/virtio/vsock_internal.h"

struct vsock_connection *vsock_find(struct virtio_vsock *vsock, uint32_t guest_port,
                                    uint32_t host_port)
{
    for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX; i++) {
        struct vsock_connection *connection = &vsock->connections[i];
        if (connection->state > CONNECTION_LINE && connection->guest_port == guest_port &&
            connection->host_port == host_port) {
            return connection;
        }
    }
    return NULL;
}

struct vsock_connection *vsock_new_connection(struct virtio_vsock *vsock)
{
    for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX; i++) {
        if (vsock->connections[i].state == CONNECTION_FREE) {
            vsock->connections[i] = (struct vsock_connection){.vsock = vsock, .stream.fd = -1};
            return &vsock->connections[i];
        }
    }
    return NULL;
}

void vsock_end(struct vsock_connection *connection)
{
    if (connection->state != CONNECTION_FREE) {
        stream_close(&connection->stream);
        free(connection->waiting);
        *connection = (struct vsock_connection){.vsock = connection->vsock, .stream.fd = -1};
    }
}

static void answer(struct vsock_connection *connection, unsigned operation)
{
    connection->answers |= (uint16_t)(1u << operation);
}

uint32_t vsock_credit(const struct vsock_connection *connection)
{
    uint32_t on_the_way = connection->sent - connection->peer_forwarded;
    return on_the_way < connection->peer_buffer ? connection->peer_buffer - on_the_way : 0;
}

static void note_forwarded(struct vsock_connection *connection, uint32_t count)
{
    connection->forwarded += count;
    if (connection->forwarded - connection->forwarded_told >= VSOCK_BUFFER / 4) {
        answer(connection, VSOCK_OP_CREDIT_UPDATE);
    }
}

/* The stream takes nothing any more: the connection is over for both. */
static void broken(struct vsock_connection *connection)
{
    connection->waiting_count = 0;
    connection->answers = 0;
    answer(connection, VSOCK_OP_RST);
}

/* When all that the guest has sent is out: its ends are ours. */
static void settle_shutdown(struct vsock_connection *connection)
{
    if (connection->state != CONNECTION_OPEN || connection->waiting_count) {
        return;
    }
    if (connection->peer_shutdown == VSOCK_BOTH) {
        answer(connection, VSOCK_OP_RST); /* which ends it */
    } else if (connection->peer_shutdown & VSOCK_NO_SEND) {
        stream_end(&connection->stream);
    }
}

static void write_waiting(struct vsock_connection *connection)
{
    while (connection->waiting_count > 0) {
        uint32_t start = connection->waiting_start;
        uint32_t piece = VSOCK_BUFFER - start;
        piece = piece < connection->waiting_count ? piece : connection->waiting_count;
        ssize_t put = stream_write(&connection->stream, connection->waiting + start, piece);
        if (put == -EAGAIN) {
            return;
        }
        if (put <= 0) {
            broken(connection);
            return;
        }
        connection->waiting_start = (start + (uint32_t)put) % VSOCK_BUFFER;
        connection->waiting_count -= (uint32_t)put;
        note_forwarded(connection, (uint32_t)put);
    }
    settle_shutdown(connection);
}

/* Bytes of the guest's, at most as many as it has credit for. */
static bool take_bytes(struct vsock_connection *connection, const uint8_t *bytes, uint32_t length)
{
    if (length > VSOCK_BUFFER - connection->waiting_count) {
        return false;
    }
    if (!connection->waiting_count) {
        ssize_t put = stream_write(&connection->stream, bytes, length);
        if (put < 0 && put != -EAGAIN) {
            broken(connection);
            return true;
        }
        uint32_t done = put > 0 ? (uint32_t)put : 0;
        note_forwarded(connection, done);
        bytes += done;
        length -= done;
    }
    if (length > 0 && !connection->waiting) {
        connection->waiting = malloc(VSOCK_BUFFER);
        ASSERT(connection->waiting);
    }
    while (length > 0) {
        uint32_t at = (connection->waiting_start + connection->waiting_count) % VSOCK_BUFFER;
        uint32_t piece = VSOCK_BUFFER - at < length ? VSOCK_BUFFER - at : length;
        memcpy(connection->waiting + at, bytes, piece);
        connection->waiting_count += piece;
        bytes += piece;
        length -= piece;
    }
    return true;
}

void vsock_update_watch(struct vsock_connection *connection)
{
    if (connection->state == CONNECTION_FREE || connection->stream.fd < 0) {
        return;
    }
    bool wants_bytes = connection->state == CONNECTION_LINE ||
                       (connection->state == CONNECTION_OPEN && !connection->is_ended &&
                        !(connection->peer_shutdown & VSOCK_NO_RECEIVE));
    stream_watch(&connection->stream,
                 (wants_bytes && !connection->is_readable ? LOOP_READABLE : 0) |
                     (connection->waiting_count ? LOOP_WRITABLE : 0));
}

/* The host's first line. False: it is none that we know. */
static bool read_line(struct vsock_connection *connection)
{
    while (connection->line_length < VSOCK_LINE_MAX - 1) {
        char *next = &connection->line[connection->line_length];
        ssize_t got = stream_read(&connection->stream, next, 1); /* what follows is the guest's */
        if (got == -EAGAIN) {
            return true;
        }
        if (got <= 0) {
            return false;
        }
        connection->line_length++;
        if (*next == '\n') {
            unsigned port;
            int end = 0;
            *next = '\0';
            if (sscanf(connection->line, "CONNECT %10u%n", &port, &end) != 1 ||
                connection->line[end]) {
                return false;
            }
            connection->guest_port = port;
            connection->state = CONNECTION_REQUESTED;
            answer(connection, VSOCK_OP_REQUEST);
            return true;
        }
    }
    return false;
}

static uint32_t choose_host_port(struct virtio_vsock *vsock)
{
    for (;;) {
        uint32_t port = vsock->next_host_port++;
        if (vsock->next_host_port > INT32_MAX) {
            vsock->next_host_port = VSOCK_FIRST_HOST_PORT;
        }
        bool is_used = false;
        for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX; i++) {
            is_used |= vsock->connections[i].state != CONNECTION_FREE &&
                       vsock->connections[i].host_port == port;
        }
        if (!is_used) {
            return port;
        }
    }
}

static void on_stream(void *owner, unsigned events)
{
    struct vsock_connection *connection = owner;
    struct virtio_vsock *vsock = connection->vsock;
    pthread_mutex_lock(&vsock->virtio.device.lock);
    if (connection->state == CONNECTION_LINE) {
        if (!read_line(connection)) {
            vsock_end(connection);
        }
    } else if (connection->state == CONNECTION_OPEN) {
        connection->is_readable |= (events & (LOOP_READABLE | LOOP_HANGUP)) != 0;
        if (events & (LOOP_WRITABLE | LOOP_HANGUP)) {
            write_waiting(connection);
        }
    }
    vsock_work(vsock);
    pthread_mutex_unlock(&vsock->virtio.device.lock);
}

void vsock_arrived(void *owner, int fd)
{
    struct virtio_vsock *vsock = owner;
    pthread_mutex_lock(&vsock->virtio.device.lock);
    struct vsock_connection *connection = vsock_new_connection(vsock);
    struct stream stream;
    stream_open(&stream, vsock->hub->loop, fd, on_stream, connection);
    if (!connection) {
        stream_close(&stream);
    } else {
        connection->stream = stream;
        connection->host_port = choose_host_port(vsock);
        connection->state = CONNECTION_LINE;
        vsock_update_watch(connection);
    }
    pthread_mutex_unlock(&vsock->virtio.device.lock);
}

void vsock_connected(void *owner, uint32_t token, int fd)
{
    struct virtio_vsock *vsock = owner;
    struct vsock_connection *connection = NULL;
    struct stream stream;
    pthread_mutex_lock(&vsock->virtio.device.lock);
    for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX && !connection; i++) {
        if (vsock->connections[i].state == CONNECTION_CONNECTING &&
            vsock->connections[i].token == token) {
            connection = &vsock->connections[i];
        }
    }
    if (fd >= 0) {
        stream_open(&stream, vsock->hub->loop, fd, on_stream, connection);
    }
    if (!connection) { /* the guest has given up meanwhile */
        if (fd >= 0) {
            stream_close(&stream);
        }
    } else if (fd < 0) {
        answer(connection, VSOCK_OP_RST);
    } else {
        connection->stream = stream;
        connection->state = CONNECTION_OPEN;
        answer(connection, VSOCK_OP_RESPONSE);
    }
    vsock_work(vsock);
    pthread_mutex_unlock(&vsock->virtio.device.lock);
}

bool vsock_take_request(struct virtio_vsock *vsock, const struct vsock_header *header)
{
    struct vsock_connection *connection = vsock_new_connection(vsock);
    if (!connection) {
        return false;
    }
    connection->state = CONNECTION_CONNECTING;
    connection->guest_port = header->source_port;
    connection->host_port = header->destination_port;
    connection->peer_buffer = header->buffer_size;
    connection->peer_forwarded = header->forwarded;
    connection->token = ++vsock->next_token;
    connection->is_wanted = true;
    return true;
}

/* The guest accepts what the host asked for. */
static bool take_response(struct vsock_connection *connection)
{
    char text[24];
    if (connection->state != CONNECTION_REQUESTED || vsock_answers(connection, VSOCK_OP_REQUEST)) {
        return false;
    }
    connection->state = CONNECTION_OPEN;
    int length = snprintf(text, sizeof text, "OK %u\n", connection->host_port);
    if (stream_write(&connection->stream, text, (size_t)length) != length) {
        broken(connection); /* nobody has written before: there was room if anybody was there */
    }
    return true;
}

bool vsock_take(struct vsock_connection *connection, const struct vsock_header *header)
{
    connection->peer_buffer = header->buffer_size;
    connection->peer_forwarded = header->forwarded;
    bool is_open = connection->state == CONNECTION_OPEN;
    switch (header->operation) {
    case VSOCK_OP_RESPONSE:
        return take_response(connection);
    case VSOCK_OP_RST:
        vsock_end(connection);
        return true;
    case VSOCK_OP_SHUTDOWN:
        connection->peer_shutdown |= header->flags & VSOCK_BOTH;
        settle_shutdown(connection);
        return is_open;
    case VSOCK_OP_RW:
        return is_open && !(connection->peer_shutdown & VSOCK_NO_SEND) &&
               take_bytes(connection, connection->vsock->bytes, header->length);
    case VSOCK_OP_CREDIT_REQUEST:
        answer(connection, VSOCK_OP_CREDIT_UPDATE);
        return true;
    case VSOCK_OP_CREDIT_UPDATE:
        return true;
    default:
        return false;
    }
}
