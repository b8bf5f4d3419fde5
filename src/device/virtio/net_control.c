/*
 * The control queue (5.1.6.5): receive modes, addresses, and how many pairs of queues are in use.
 * Each command is answered; one that we do not know, or that is wrong, with an error.
 */
#include <string.h>

#include "device/virtio/net_internal.h"

/* A command: class, command, its data; then our answer (5.1.6.5). */
enum { COMMAND_HEADER = 2 };
enum { ANSWER_OK = 0, ANSWER_ERROR = 1 };

enum { CLASS_RX = 0, CLASS_MAC = 1, CLASS_MQ = 4 };
enum {
    RX_PROMISC = 0,
    RX_ALLMULTI = 1,
    RX_ALLUNI = 2,
    RX_NOMULTI = 3,
    RX_NOUNI = 4,
    RX_NOBCAST = 5,
};
enum { MAC_TABLE_SET = 0, MAC_ADDR_SET = 1 };
enum { MQ_PAIRS_SET = 0 };

struct command {
    struct virtio_net *self;
    const struct virtio_chain *chain;
    uint64_t position; /* of the next byte to read */
};

static bool take(struct command *command, void *bytes, uint64_t size)
{
    if (virtio_chain_read(command->self->virtio.memory, command->chain, command->position, bytes,
                          size)) {
        return false;
    }
    command->position += size;
    return true;
}

static bool set_receive_mode(struct command *command, uint8_t number)
{
    struct net_filter *filter = &command->self->filter;
    bool *const modes[] = {
        [RX_PROMISC] = &filter->promiscuous, [RX_ALLMULTI] = &filter->all_multicast,
        [RX_ALLUNI] = &filter->all_unicast,  [RX_NOMULTI] = &filter->no_multicast,
        [RX_NOUNI] = &filter->no_unicast,    [RX_NOBCAST] = &filter->no_broadcast,
    };
    uint64_t needs = number <= RX_ALLMULTI ? NET_F_CTRL_RX : NET_F_CTRL_RX_EXTRA;
    uint8_t value;
    if (number >= ARRAY_SIZE(modes) || !virtio_has(&command->self->virtio, needs) ||
        !take(command, &value, 1) || value > 1) {
        return false;
    }
    *modes[number] = value;
    return true;
}

/* A list of addresses, or that there are more than we keep. */
static bool take_addresses(struct command *command, uint8_t (*list)[NET_ADDRESS_SIZE],
                           uint8_t *count, bool *too_many)
{
    uint32_t entries;
    if (!take(command, &entries, sizeof entries)) {
        return false;
    }
    uint64_t size = (uint64_t)entries * NET_ADDRESS_SIZE;
    if (size > command->chain->read_length - command->position) {
        return false;
    }
    if (entries > NET_ADDRESSES_MAX) {
        *too_many = true;
        *count = 0;
        command->position += size;
        return true;
    }
    *too_many = false;
    *count = (uint8_t)entries;
    return take(command, list, size);
}

static bool set_address_table(struct command *command)
{
    struct net_filter filter = command->self->filter;
    if (!take_addresses(command, filter.unicast, &filter.unicast_count, &filter.too_many_unicast) ||
        !take_addresses(command, filter.multicast, &filter.multicast_count,
                        &filter.too_many_multicast)) {
        return false;
    }
    command->self->filter = filter;
    return true;
}

static bool set_address(struct command *command, uint8_t number)
{
    const struct virtio_device *virtio = &command->self->virtio;
    if (number == MAC_TABLE_SET) {
        return virtio_has(virtio, NET_F_CTRL_RX) && set_address_table(command);
    }
    uint8_t address[NET_ADDRESS_SIZE];
    if (number != MAC_ADDR_SET || !virtio_has(virtio, NET_F_CTRL_MAC_ADDR) ||
        !take(command, address, sizeof address)) {
        return false;
    }
    memcpy(command->self->address, address, sizeof address);
    return true;
}

static bool set_pairs(struct command *command, uint8_t number)
{
    uint16_t pairs;
    if (number != MQ_PAIRS_SET || !virtio_has(&command->self->virtio, NET_F_MQ) ||
        !take(command, &pairs, sizeof pairs) || pairs < 1 || pairs > command->self->pairs) {
        return false;
    }
    command->self->pairs_in_use = pairs;
    return true;
}

static bool carry_out(struct command *command)
{
    uint8_t header[COMMAND_HEADER];
    if (!take(command, header, sizeof header)) {
        return false;
    }
    switch (header[0]) {
    case CLASS_RX:
        return set_receive_mode(command, header[1]);
    case CLASS_MAC:
        return set_address(command, header[1]);
    case CLASS_MQ:
        return set_pairs(command, header[1]);
    default:
        return false;
    }
}

void net_control(struct virtio_net *self, unsigned queue)
{
    struct virtio_device *virtio = &self->virtio;
    while (virtio_pop(virtio, queue, &self->work->chain)) {
        struct command command = {.self = self, .chain = &self->work->chain};
        uint8_t answer = carry_out(&command) ? ANSWER_OK : ANSWER_ERROR;
        if (virtio_chain_write(virtio->memory, &self->work->chain, 0, &answer, 1)) {
            virtio_needs_reset(virtio); /* no room for the answer */
            return;
        }
        virtio_push(virtio, queue, self->work->chain.head, 1);
    }
}
