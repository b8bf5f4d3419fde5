/*
 * virtio-rng: fills each buffer of its one queue from the host's random number generator. A buffer
 * gets at most RANDOM_MAX bytes; the driver asks again for more (5.4.6).
 */
#include "device/virtio/rng.h"

#include <stdlib.h>
#include <sys/random.h>

#include "base/assert.h"
#include "base/bytes.h"

enum {
    QUEUE_SIZE = 64,
    RANDOM_MAX = 4096,
    PIECE = 256, /* getrandom() gives that many whole and without a signal cutting it short */
};

struct virtio_rng {
    struct virtio_device virtio;
};

/* Random bytes into a chain; how many, or a negative errno. */
static int fill(struct virtio_device *virtio, const struct virtio_chain *chain)
{
    uint64_t wanted = chain->write_length < RANDOM_MAX ? chain->write_length : RANDOM_MAX;
    uint64_t filled = 0;
    while (filled < wanted) {
        uint8_t bytes[PIECE];
        uint64_t piece = wanted - filled < PIECE ? wanted - filled : PIECE;
        ssize_t got = getrandom(bytes, piece, 0);
        if (got <= 0) {
            break;
        }
        int error = virtio_chain_write(virtio->memory, chain, filled, bytes, (uint64_t)got);
        if (error) {
            return error;
        }
        filled += (uint64_t)got;
    }
    return (int)filled;
}

static void rng_notify(struct virtio_device *virtio, unsigned queue)
{
    struct virtio_chain chain;
    while (virtio_pop(virtio, queue, &chain)) {
        /* One or more bytes are promised for each buffer (5.4.6.1). */
        int filled = fill(virtio, &chain);
        if (filled <= 0) {
            virtio_needs_reset(virtio);
            return;
        }
        virtio_push(virtio, queue, chain.head, (uint32_t)filled);
    }
}

static void rng_free(struct virtio_device *virtio)
{
    virtio_fini(virtio);
    free(CONTAINER_OF(virtio, struct virtio_rng, virtio));
}

static const struct virtio_ops rng_ops = {
    .type = VIRTIO_TYPE_RNG,
    .queue_count = 1,
    .queue_size = QUEUE_SIZE,
    .notify = rng_notify,
    .free = rng_free,
};
static const struct device_ops device_ops = VIRTIO_DEVICE_OPS("virtio-rng");

int virtio_rng_new(struct memory *memory, const char *id, struct virtio_device **ret_virtio)
{
    struct virtio_rng *rng = calloc(1, sizeof *rng);
    ASSERT(rng);
    virtio_init(&rng->virtio, &device_ops, &rng_ops, memory, 0, id);
    *ret_virtio = &rng->virtio;
    return 0;
}
