/*
 * virtio-net under a driver made of bytes, on a network that fills up, gives frames of all sizes,
 * and loses its cable. Frames that leave are complete where the network can do nothing for them.
 * Guards: src/device/virtio/net.c src/device/virtio/net_transmit.c src/device/virtio/net_receive.c
 * src/device/virtio/net_control.c src/backend/net/offload.c
 */
#include "backend/net/test_net.h"
#include "device/virtio/fuzz_driver.h"
#include "device/virtio/net.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct setting {
    struct test_board *board;
    struct test_net *net;
};

/* A TCP packet as drivers leave it to be finished (5.1.6.2), with values that are mostly possible.
 */
static void send_tcp(struct test_board *board, struct fuzz_input *input)
{
    uint8_t bytes[12 + 54 + 400] = {0}, *frame = bytes + 12;
    uint8_t what = (uint8_t)fuzz_take(input, 1);
    bool is_ipv6 = what & 1;
    unsigned transport = is_ipv6 ? 54 : 34;
    bytes[0] = what & 0x40 ? 0 : 1;
    bytes[1] = what & 2 ? 0 : is_ipv6 ? 4 : 1;
    store_le16(bytes + 4, (uint16_t)fuzz_take(input, 1) * (what & 4 ? 1 : 4));
    store_le16(bytes + 6, (uint16_t)(transport + (what & 8 ? fuzz_take(input, 1) : 0)));
    store_le16(bytes + 8, what & 16 ? (uint16_t)fuzz_take(input, 1) : 16);
    frame[12] = is_ipv6 ? 0x86 : 0x08;
    frame[13] = is_ipv6 ? 0xdd : 0;
    frame[14] = is_ipv6 ? 0x60 : 0x45;
    frame[is_ipv6 ? 20 : 23] = 6;
    frame[transport + 12] = 5 << 4;
    if (what & 32) {
        frame[12 + fuzz_take(input, 1) % 50] = (uint8_t)fuzz_take(input, 1);
    }
    uint32_t length = (uint32_t)(12 + 14 + fuzz_take(input, 2) % 440);
    unsigned queue = what & 0x80 ? 3 : 1;
    if (board->rings[queue].size) {
        const struct test_buffer buffer = {TEST_BUFFERS, length, false};
        test_write(board, TEST_BUFFERS, bytes, sizeof bytes);
        test_add(board, queue, &buffer, 1);
        test_kick(board, queue);
    }
}

static void send_command(struct test_board *board, struct fuzz_input *input)
{
    uint8_t bytes[64] = {0};
    uint8_t what = (uint8_t)fuzz_take(input, 1);
    unsigned queue = what & 0x80 ? 2 : 4, count = what & 63;
    for (unsigned i = 0; i < count; i++) {
        bytes[i] = (uint8_t)fuzz_take(input, 1);
    }
    if (board->rings[queue].size) {
        const struct test_buffer buffers[] = {{TEST_BUFFERS, count + 1, false},
                                              {TEST_BUFFERS + 64, 1, true}};
        test_write(board, TEST_BUFFERS, bytes, sizeof bytes);
        test_add(board, queue, buffers, 2);
        test_kick(board, queue);
    }
}

static void give(struct setting *setting, struct fuzz_input *input)
{
    static uint8_t frame[NET_FRAME_MAX];
    uint8_t what = (uint8_t)fuzz_take(input, 1);
    size_t length = what & 0x80 ? fuzz_take(input, 2) : what;
    for (unsigned i = 0; i < 16; i++) {
        frame[i] = (uint8_t)fuzz_take(input, 1);
    }
    if (what & 1 && setting->board->rings[0].size) {
        const struct test_buffer buffer = {TEST_BUFFERS, (uint32_t)fuzz_take(input, 1), true};
        test_add(setting->board, 0, &buffer, 1);
    }
    test_net_give(setting->net, frame, length);
}

static void net_event(void *owner, struct fuzz_input *input)
{
    struct setting *setting = owner;
    const struct net_receiver *receiver = &setting->net->net.receiver;
    uint8_t what = (uint8_t)fuzz_take(input, 1);
    switch (what & 7) {
    case 0:
    case 1:
        send_tcp(setting->board, input);
        break;
    case 2:
    case 3:
        give(setting, input);
        break;
    case 4:
        send_command(setting->board, input);
        break;
    case 5:
        setting->net->room = what & 8 ? SIZE_MAX : what >> 4;
        break;
    case 6:
        receiver->sendable(receiver->owner);
        break;
    case 7:
        test_net_plug(setting->net, what & 8);
        break;
    }
    for (size_t i = 0; i < setting->net->sent_count && i < TEST_NET_FRAMES; i++) {
        const struct net_offload *offload = &setting->net->sent[i].offload;
        ASSERT(setting->net->net.has_offloads || (!offload->flags && !offload->gso_type));
    }
    test_net_forget(setting->net);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct test_board board;
    struct virtio_device *virtio;
    struct fuzz_input input = {data, size};
    uint8_t how = (uint8_t)fuzz_take(&input, 1);
    test_board_init(&board);
    struct test_net *net = test_net_new();
    net->net.has_offloads = how & 1;
    net->net.is_checked = how & 2;
    net->net.mtu = how & 4 ? 9000 : 0;
    const struct virtio_net_config config = {
        .memory = board.memory, .net = &net->net, .pairs = how & 8 ? 1 : 2};
    ASSERT(!virtio_net_new(&config, "virtio-net0", &virtio));
    test_plug(&board, virtio);
    struct setting setting = {&board, net};
    fuzz_run(&board, &input, net_event, &setting);
    test_board_fini(&board);
    return 0;
}
