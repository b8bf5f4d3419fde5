/*
 * virtio-console, port 0: queue 0 takes bytes to the guest, queue 1 bytes from it. Output that the
 * backend has no room for stays in the ring, with the place in its chain remembered.
 */
#include "device/virtio/console.h"

#include <stdlib.h>
#include <string.h>

#include "backend/console/console.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "persist/visitor.h"

enum { RECEIVE_QUEUE = 0, TRANSMIT_QUEUE = 1, QUEUE_SIZE = 64, PIECE = 1024 };
enum { RECEIVE_BUDGET = 65536 }; /* chains; input is bounded, empty chains are not */
/*
 * Bytes sent in one go. Drivers of port 0 send lines and wait for them; chains of gigabytes, over
 * and over, would keep the vCPU here, and the machine could not be stopped.
 */
enum { TRANSMIT_BUDGET = 8 << 20 };

#define CONSOLE_F_SIZE (UINT64_C(1) << 0)

/* The configuration (5.3.4), as the driver sees it; the rest belongs to features we lack. */
struct console_registers {
    uint16_t columns, rows;
};

struct virtio_console {
    struct virtio_device virtio;
    struct console *console;
    struct console_registers registers;
    uint32_t sent; /* bytes of the chain at the head of the transmit queue that are out */
};

static struct virtio_console *console_of(struct virtio_device *virtio)
{
    return CONTAINER_OF(virtio, struct virtio_console, virtio);
}

/* Write out what is left of a chain; false if the backend became full before its end. */
static bool transmit_chain(struct virtio_console *self, const struct virtio_chain *chain,
                           uint64_t *budget)
{
    while (self->sent < chain->read_length) {
        uint8_t bytes[PIECE];
        size_t piece = console_room(self->console);
        uint64_t left = chain->read_length - self->sent;
        piece = piece < left ? piece : (size_t)left;
        piece = piece < sizeof bytes ? piece : sizeof bytes;
        if (piece == 0) {
            return false;
        }
        if (piece > *budget ||
            virtio_chain_read(self->virtio.memory, chain, self->sent, bytes, piece)) {
            virtio_needs_reset(&self->virtio);
            return true;
        }
        *budget -= piece;
        console_write(self->console, bytes, piece);
        self->sent += (uint32_t)piece;
    }
    return true;
}

static void transmit(struct virtio_console *self)
{
    struct virtio_chain chain;
    uint64_t budget = TRANSMIT_BUDGET;
    while (virtio_pop(&self->virtio, TRANSMIT_QUEUE, &chain)) {
        if (!transmit_chain(self, &chain, &budget)) {
            virtqueue_unpop(&self->virtio.queues[TRANSMIT_QUEUE]);
            return;
        }
        self->sent = 0;
        virtio_push(&self->virtio, TRANSMIT_QUEUE, chain.head, 0);
    }
}

static void console_notify(struct virtio_device *virtio, unsigned queue)
{
    struct virtio_console *self = console_of(virtio);
    if (queue == TRANSMIT_QUEUE) {
        transmit(self);
    } else {
        console_ready(self->console);
    }
}

/* Input: as many bytes as the driver has buffers for. */
static size_t console_receive(void *owner, const uint8_t *bytes, size_t count)
{
    struct virtio_console *self = owner;
    struct virtio_device *virtio = &self->virtio;
    struct virtio_chain chain;
    size_t taken = 0;
    pthread_mutex_lock(&virtio->device.lock);
    virtio->budget = RECEIVE_BUDGET;
    while (taken < count && virtio_pop(virtio, RECEIVE_QUEUE, &chain)) {
        uint64_t left = count - taken;
        uint32_t piece = (uint32_t)(chain.write_length < left ? chain.write_length : left);
        if (virtio_chain_write(virtio->memory, &chain, 0, bytes + taken, piece)) {
            virtio_needs_reset(virtio);
            break;
        }
        taken += piece;
        virtio_push(virtio, RECEIVE_QUEUE, chain.head, piece);
    }
    pthread_mutex_unlock(&virtio->device.lock);
    return taken;
}

static void console_drained(void *owner)
{
    struct virtio_console *self = owner;
    pthread_mutex_lock(&self->virtio.device.lock);
    virtio_serve(&self->virtio, TRANSMIT_QUEUE);
    pthread_mutex_unlock(&self->virtio.device.lock);
}

static void console_resized(void *owner, uint16_t columns, uint16_t rows)
{
    struct virtio_console *self = owner;
    pthread_mutex_lock(&self->virtio.device.lock);
    if (columns != self->registers.columns || rows != self->registers.rows) {
        self->registers = (struct console_registers){columns, rows};
        virtio_config_changed(&self->virtio);
    }
    pthread_mutex_unlock(&self->virtio.device.lock);
}

static void console_config_read(struct virtio_device *virtio, uint32_t offset, void *bytes,
                                unsigned size)
{
    const struct virtio_console *self = console_of(virtio);
    memcpy(bytes, (const uint8_t *)&self->registers + offset, size);
}

static void console_reset(struct virtio_device *virtio)
{
    console_of(virtio)->sent = 0;
}

/* The size of the window is the outside's: it is not saved. */
static void console_visit(struct virtio_device *virtio, struct visitor *v)
{
    visit_u32(v, "sent", &console_of(virtio)->sent);
}

static void virtio_console_free(struct virtio_device *virtio)
{
    struct virtio_console *self = console_of(virtio);
    console_free(self->console);
    virtio_fini(virtio);
    free(self);
}

static const struct virtio_ops console_ops = {
    .type = VIRTIO_TYPE_CONSOLE,
    .queue_count = 2,
    .queue_size = QUEUE_SIZE,
    .config_size = sizeof(struct console_registers),
    .config_read = console_config_read,
    .notify = console_notify,
    .reset = console_reset,
    .visit = console_visit,
    .free = virtio_console_free,
};
static const struct device_ops device_ops = VIRTIO_DEVICE_OPS("virtio-console");

int virtio_console_new(const struct virtio_console_config *config, const char *id,
                       struct virtio_device **ret_virtio)
{
    struct virtio_console *self = calloc(1, sizeof *self);
    ASSERT(self);
    self->console = config->console;
    self->registers = (struct console_registers){config->columns, config->rows};
    virtio_init(&self->virtio, &device_ops, &console_ops, config->memory, CONSOLE_F_SIZE, id);
    const struct console_receiver receiver = {
        .receive = console_receive,
        .resized = console_resized,
        .drained = console_drained,
        .owner = self,
    };
    console_connect(self->console, &receiver);
    *ret_virtio = &self->virtio;
    return 0;
}
