/*
 * virtio-vsock under a driver made of bytes, with programs of the host that connect, answer, write,
 * read, and go at any time.
 * Guards: src/device/virtio/vsock.c src/device/virtio/vsock_connection.c
 * src/device/virtio/vsock_packet.c src/backend/net/stream.c
 */
#include <signal.h>

#include "device/virtio/fuzz_driver.h"
#include "device/virtio/test_hub.h"
#include "device/virtio/vsock_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { CID = 3, PROGRAMS = 4 };

struct setting {
    struct test_board *board;
    struct test_hub hub;
    int programs[PROGRAMS]; /* -1: none */
};

/* A packet with values that are mostly possible, of few ports. */
static void send_packet(struct setting *setting, struct fuzz_input *input)
{
    struct test_board *board = setting->board;
    uint8_t what = (uint8_t)fuzz_take(input, 1), ports = (uint8_t)fuzz_take(input, 1);
    uint32_t length = what & 8 ? (uint32_t)fuzz_take(input, 2) : 0;
    struct vsock_header header = {
        .source_cid = CID,
        .destination_cid = what & 0x10 ? fuzz_take(input, 1) : VSOCK_HOST_CID,
        .source_port = ports & 3,
        .destination_port = ports & 4 ? VSOCK_FIRST_HOST_PORT + (ports >> 4) : ports >> 4,
        .length = length,
        .type = what & 0x20 ? (uint16_t)fuzz_take(input, 1) : VSOCK_TYPE_STREAM,
        .operation = what & 7,
        .flags = what >> 6,
        .buffer_size = ports & 8 ? (uint32_t)fuzz_take(input, 2) : 1 << 20,
        .forwarded = ports & 8 ? (uint32_t)fuzz_take(input, 1) : 0,
    };
    if (board->rings[VSOCK_TRANSMIT].size) {
        const struct test_buffer buffer = {TEST_BUFFERS, (uint32_t)sizeof header + length, false};
        test_write(board, TEST_BUFFERS, &header, sizeof header);
        test_add(board, VSOCK_TRANSMIT, &buffer, 1);
        test_kick(board, VSOCK_TRANSMIT);
    }
}

static void offer_buffers(struct test_board *board, struct fuzz_input *input)
{
    if (board->rings[VSOCK_RECEIVE].size) {
        for (unsigned i = 0; i < 4; i++) {
            const struct test_buffer buffer = {TEST_BUFFERS + 0x20000,
                                               44 + (uint32_t)fuzz_take(input, 1), true};
            test_add(board, VSOCK_RECEIVE, &buffer, 1);
        }
        test_kick(board, VSOCK_RECEIVE);
    }
}

static void program(struct setting *setting, struct fuzz_input *input)
{
    static const char lines[] = "CONNECT 1\nCONNECT 2\nsomething else\n";
    uint8_t what = (uint8_t)fuzz_take(input, 1), bytes[4096];
    int *fd = &setting->programs[what & (PROGRAMS - 1)];
    ssize_t ignored = 0;
    if (*fd < 0) {
        *fd = what & 0x80 ? test_hub_accept(&setting->hub) : test_hub_arrive(&setting->hub);
        return;
    }
    switch (what >> 2 & 7) {
    case 0:
    case 1:
        ignored = write(*fd, lines, what & 0x80 ? 10 : sizeof lines - 1);
        break;
    case 2:
        memset(bytes, what, sizeof bytes);
        ignored = write(*fd, bytes, sizeof bytes);
        break;
    case 3:
    case 4:
        ignored = read(*fd, bytes, sizeof bytes);
        break;
    case 5:
        shutdown(*fd, SHUT_WR);
        break;
    case 6:
    case 7:
        close(*fd);
        *fd = -1;
        break;
    }
    (void)ignored;
}

static void vsock_event(void *owner, struct fuzz_input *input)
{
    struct setting *setting = owner;
    uint8_t what = (uint8_t)fuzz_take(input, 1);
    switch (what & 7) {
    case 0:
    case 1:
    case 2:
        send_packet(setting, input);
        break;
    case 3:
        offer_buffers(setting->board, input);
        break;
    case 4:
    case 5:
        program(setting, input);
        break;
    case 6:
        setting->hub.hub.receiver.connected(setting->hub.hub.receiver.owner, setting->hub.token,
                                            -1);
        break;
    case 7:
        break;
    }
    test_hub_run(&setting->hub);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct test_board board;
    struct virtio_device *virtio;
    struct fuzz_input input = {data, size};
    struct setting setting = {.board = &board, .programs = {-1, -1, -1, -1}};
    struct loop *loop;
    signal(SIGPIPE, SIG_IGN);
    ASSERT(!loop_new(&loop));
    test_board_init(&board);
    test_hub_init(&setting.hub, loop);
    const struct virtio_vsock_config config = {
        .memory = board.memory, .hub = &setting.hub.hub, .cid = CID};
    ASSERT(!virtio_vsock_new(&config, "virtio-vsock0", &virtio));
    test_plug(&board, virtio);
    fuzz_run(&board, &input, vsock_event, &setting);
    test_board_fini(&board);
    loop_free(loop);
    for (unsigned i = 0; i < PROGRAMS; i++) {
        if (setting.programs[i] >= 0) {
            close(setting.programs[i]);
        }
    }
    return 0;
}
