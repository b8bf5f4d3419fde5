/* virtio-vsock between a driver and programs that are ends of socket pairs. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "device/virtio/test_driver.h"
#include "device/virtio/test_hub.h"
#include "device/virtio/vsock_internal.h"
#include "persist/visitor.h"

enum { DATA = TEST_BUFFERS, INWARD = TEST_BUFFERS + 0x20000, INWARD_SIZE = 0x1000, CID = 52 };
enum { GUEST_PORT = 1234, HOST_PORT = 5000, CREDIT = 100000 };

struct setup {
    struct test_board board;
    struct test_hub hub;
    struct loop *loop;
    unsigned offered;
};

static int set_up(void **state)
{
    static struct setup setup;
    struct setup *s = &setup;
    *s = (struct setup){0};
    assert_int_equal(loop_new(&s->loop), 0);
    test_board_init(&s->board);
    test_hub_init(&s->hub, s->loop);
    const struct virtio_vsock_config config = {
        .memory = s->board.memory, .hub = &s->hub.hub, .cid = CID};
    struct virtio_device *virtio;
    assert_int_equal(virtio_vsock_new(&config, "virtio-vsock0", &virtio), 0);
    test_plug(&s->board, virtio);
    *state = s;
    return 0;
}

static int tear_down(void **state)
{
    struct setup *s = *state;
    test_board_fini(&s->board);
    loop_free(s->loop);
    return 0;
}

static void offer(struct setup *s, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        const struct test_buffer buffer = {INWARD + INWARD_SIZE * (s->offered++ % TEST_QUEUE),
                                           INWARD_SIZE, true};
        test_add(&s->board, VSOCK_RECEIVE, &buffer, 1);
    }
    test_kick(&s->board, VSOCK_RECEIVE);
    test_hub_run(&s->hub);
}

static void start(struct setup *s)
{
    test_start(&s->board, 0);
    s->offered = 0;
    offer(s, TEST_QUEUE);
}

static struct vsock_header packet(uint16_t operation)
{
    return (struct vsock_header){
        .source_cid = CID,
        .destination_cid = VSOCK_HOST_CID,
        .source_port = GUEST_PORT,
        .destination_port = HOST_PORT,
        .type = VSOCK_TYPE_STREAM,
        .operation = operation,
        .buffer_size = CREDIT,
    };
}

static void transmit(struct setup *s, struct vsock_header header, const void *payload,
                     uint32_t length)
{
    uint32_t head, written;
    header.length = length;
    test_write(&s->board, DATA, &header, sizeof header);
    test_write(&s->board, DATA + 64, payload, length);
    const struct test_buffer buffers[] = {{DATA, sizeof header, false}, {DATA + 64, length, false}};
    test_add(&s->board, VSOCK_TRANSMIT, buffers, length ? 2 : 1);
    test_kick(&s->board, VSOCK_TRANSMIT);
    test_hub_run(&s->hub);
    assert_true(test_take_used(&s->board, VSOCK_TRANSMIT, &head, &written));
}

/* The next packet to the guest; its payload in `payload`. */
static bool receive(struct setup *s, struct vsock_header *header, uint8_t *payload)
{
    uint32_t head, written;
    test_hub_run(&s->hub);
    if (!test_take_used(&s->board, VSOCK_RECEIVE, &head, &written)) {
        return false;
    }
    gpa_t at = INWARD + INWARD_SIZE * head; /* descriptors and buffers are used in the same order */
    test_read(&s->board, at, header, sizeof *header);
    assert_int_equal(written, sizeof *header + header->length);
    assert_int_equal(header->source_cid, VSOCK_HOST_CID);
    assert_int_equal(header->destination_cid, CID);
    assert_int_equal(header->type, VSOCK_TYPE_STREAM);
    if (header->length) {
        test_read(&s->board, at + sizeof *header, payload, header->length);
    }
    return true;
}

static uint8_t bytes[INWARD_SIZE];

static struct vsock_header expect(struct setup *s, uint16_t operation)
{
    struct vsock_header header = {0};
    assert_true(receive(s, &header, bytes));
    assert_int_equal(header.operation, operation);
    return header;
}

static void expect_nothing(struct setup *s)
{
    struct vsock_header header;
    assert_false(receive(s, &header, bytes));
}

/* The guest connects to a program; returns the program's end. */
static int open_outward(struct setup *s)
{
    transmit(s, packet(VSOCK_OP_REQUEST), NULL, 0);
    assert_int_equal(s->hub.port, HOST_PORT);
    expect_nothing(s);
    int fd = test_hub_accept(&s->hub);
    struct vsock_header header = expect(s, VSOCK_OP_RESPONSE);
    assert_int_equal(header.source_port, HOST_PORT);
    assert_int_equal(header.destination_port, GUEST_PORT);
    assert_int_equal(header.buffer_size, VSOCK_BUFFER);
    return fd;
}

static void read_text(int fd, const char *text)
{
    char got[64] = "";
    assert_int_equal(read(fd, got, sizeof got), strlen(text));
    assert_string_equal(got, text);
}

static void guest_connects(void **state)
{
    struct setup *s = *state;
    start(s);
    int fd = open_outward(s);
    transmit(s, packet(VSOCK_OP_RW), "question", 8);
    read_text(fd, "question");
    assert_int_equal(write(fd, "answer", 6), 6);
    struct vsock_header header = expect(s, VSOCK_OP_RW);
    assert_int_equal(header.length, 6);
    assert_int_equal(header.forwarded, 8);
    assert_memory_equal(bytes, "answer", 6);
    close(fd);
}

static void nobody_there(void **state)
{
    struct setup *s = *state;
    start(s);
    transmit(s, packet(VSOCK_OP_REQUEST), NULL, 0);
    s->hub.hub.receiver.connected(s->hub.hub.receiver.owner, s->hub.token, -1);
    expect(s, VSOCK_OP_RST);
    expect_nothing(s);
    assert_null(vsock_find(vsock_of(s->board.virtio), GUEST_PORT, HOST_PORT));
}

static void host_connects(void **state)
{
    struct setup *s = *state;
    char line[32];
    start(s);
    int fd = test_hub_arrive(&s->hub);
    expect_nothing(s);
    assert_int_equal(write(fd, "CONNECT 77\nearly", 16), 16);
    struct vsock_header header = expect(s, VSOCK_OP_REQUEST), answer = packet(VSOCK_OP_RESPONSE);
    assert_int_equal(header.destination_port, 77);
    assert_int_equal(read(fd, line, sizeof line), -1);
    answer.source_port = 77;
    answer.destination_port = header.source_port;
    transmit(s, answer, NULL, 0);
    snprintf(line, sizeof line, "OK %u\n", header.source_port);
    read_text(fd, line);
    expect(s, VSOCK_OP_RW);
    assert_memory_equal(bytes, "early", 5);
    close(fd);
}

static void lines_that_are_none(void **state)
{
    static const char *const lines[] = {"CONNECT\n",
                                        "CONNECT x\n",
                                        "connect 1\n",
                                        "CONNECT 1x\n",
                                        "CONNECT 1 2\n",
                                        "GET / HTTP/1.0\r\n",
                                        "CONNECT 00000000000000000000000000000000000000001\n"};
    struct setup *s = *state;
    char byte;
    start(s);
    for (unsigned i = 0; i < ARRAY_SIZE(lines); i++) {
        int fd = test_hub_arrive(&s->hub);
        assert_int_equal(write(fd, lines[i], strlen(lines[i])), strlen(lines[i]));
        expect_nothing(s);
        assert_true(read(fd, &byte, 1) <= 0 && errno != EAGAIN);
        close(fd);
    }
}

static void guest_refuses(void **state)
{
    struct setup *s = *state;
    char byte;
    start(s);
    int fd = test_hub_arrive(&s->hub);
    assert_int_equal(write(fd, "CONNECT 77\n", 11), 11);
    struct vsock_header header = expect(s, VSOCK_OP_REQUEST), answer = packet(VSOCK_OP_RST);
    answer.source_port = 77;
    answer.destination_port = header.source_port;
    transmit(s, answer, NULL, 0);
    assert_int_equal(read(fd, &byte, 1), 0);
    close(fd);
}

/* Packets that belong to nothing are reset; resets are not answered; strangers are not heard. */
static void strangers(void **state)
{
    struct setup *s = *state;
    start(s);
    transmit(s, packet(VSOCK_OP_RW), "x", 1);
    struct vsock_header header = expect(s, VSOCK_OP_RST);
    assert_int_equal(header.source_port, HOST_PORT);
    assert_int_equal(header.destination_port, GUEST_PORT);
    transmit(s, packet(VSOCK_OP_RST), NULL, 0);
    header = packet(VSOCK_OP_REQUEST);
    header.source_cid = CID + 1;
    transmit(s, header, NULL, 0);
    expect_nothing(s);
    assert_int_equal(s->hub.connects, 0);
    header = packet(VSOCK_OP_REQUEST);
    header.type = 2;
    transmit(s, header, NULL, 0);
    uint32_t head, written;
    assert_true(test_take_used(&s->board, VSOCK_RECEIVE, &head, &written));
    int fd = open_outward(s);
    transmit(s, packet(VSOCK_OP_REQUEST), NULL, 0); /* twice */
    expect(s, VSOCK_OP_RST);
    close(fd);
}

/* No more than the guest has room for, and the rest when it has. */
static void credit_of_the_guest(void **state)
{
    struct setup *s = *state;
    struct vsock_header header = packet(VSOCK_OP_REQUEST);
    start(s);
    header.buffer_size = 10;
    transmit(s, header, NULL, 0);
    int fd = test_hub_accept(&s->hub);
    expect(s, VSOCK_OP_RESPONSE);
    assert_int_equal(write(fd, "0123456789abcdef", 16), 16);
    header = expect(s, VSOCK_OP_RW);
    assert_int_equal(header.length, 10);
    expect_nothing(s);
    header = packet(VSOCK_OP_CREDIT_UPDATE);
    header.buffer_size = 10;
    header.forwarded = 4;
    transmit(s, header, NULL, 0);
    header = expect(s, VSOCK_OP_RW);
    assert_int_equal(header.length, 4);
    header = packet(VSOCK_OP_CREDIT_UPDATE); /* nonsense: more than was ever sent */
    header.buffer_size = 10;
    header.forwarded = 1000;
    transmit(s, header, NULL, 0);
    expect_nothing(s);
    close(fd);
}

/* A program that does not read: the guest may send what it has credit for, and no more. */
static void credit_of_the_host(void **state)
{
    static uint8_t piece[30000], got[4 << 20];
    struct setup *s = *state;
    size_t sent = 0, back = 0;
    start(s);
    int fd = open_outward(s);
    struct vsock_header header;
    uint32_t forwarded = 0;
    while (sent - forwarded + sizeof piece <= VSOCK_BUFFER) {
        memset(piece, (int)(sent / sizeof piece) + 1, sizeof piece);
        transmit(s, packet(VSOCK_OP_RW), piece, sizeof piece);
        sent += sizeof piece;
        while (receive(s, &header, bytes)) {
            assert_int_equal(header.operation, VSOCK_OP_CREDIT_UPDATE);
            forwarded = header.forwarded;
            offer(s, 1);
        }
        assert_true(sent < sizeof got);
    }
    assert_true(sent > VSOCK_BUFFER);
    for (unsigned i = 0; i < 1000 && back < sent; i++) {
        ssize_t n = read(fd, got + back, sizeof got - back);
        back += n > 0 ? (size_t)n : 0;
        test_hub_run(&s->hub);
    }
    assert_int_equal(back, sent);
    for (size_t i = 0; i < sent; i++) {
        assert_int_equal(got[i], (uint8_t)(i / sizeof piece + 1));
    }
    transmit(s, packet(VSOCK_OP_CREDIT_REQUEST), NULL, 0);
    do {
        assert_true(receive(s, &header, bytes));
        offer(s, 1);
    } while (header.forwarded != sent);
    /* and more than it has: the connection is reset */
    for (unsigned i = 0; i < 100 && vsock_find(vsock_of(s->board.virtio), GUEST_PORT, HOST_PORT);
         i++) {
        transmit(s, packet(VSOCK_OP_RW), piece, sizeof piece);
        while (receive(s, &header, bytes)) {
            offer(s, 1);
        }
    }
    assert_int_equal(header.operation, VSOCK_OP_RST);
    close(fd);
}

static void guest_ends_its_half(void **state)
{
    struct setup *s = *state;
    char byte;
    start(s);
    int fd = open_outward(s);
    struct vsock_header header = packet(VSOCK_OP_SHUTDOWN);
    header.flags = VSOCK_NO_SEND;
    transmit(s, packet(VSOCK_OP_RW), "last", 4);
    transmit(s, header, NULL, 0);
    read_text(fd, "last");
    assert_int_equal(read(fd, &byte, 1), 0);
    assert_int_equal(write(fd, "still", 5), 5);
    expect(s, VSOCK_OP_RW);
    header.flags = VSOCK_BOTH;
    transmit(s, header, NULL, 0);
    expect(s, VSOCK_OP_RST);
    assert_int_equal(write(fd, "gone", 4), -1);
    close(fd);
}

static void host_ends_its_half(void **state)
{
    struct setup *s = *state;
    start(s);
    int fd = open_outward(s);
    assert_int_equal(write(fd, "last", 4), 4);
    shutdown(fd, SHUT_WR);
    expect(s, VSOCK_OP_RW);
    struct vsock_header header = expect(s, VSOCK_OP_SHUTDOWN);
    assert_int_equal(header.flags, VSOCK_NO_SEND);
    transmit(s, packet(VSOCK_OP_RW), "still", 5);
    read_text(fd, "still");
    expect_nothing(s);
    close(fd);
    transmit(s, packet(VSOCK_OP_RW), "gone", 4);
    expect(s, VSOCK_OP_RST);
}

static void host_goes(void **state)
{
    struct setup *s = *state;
    start(s);
    int fd = open_outward(s);
    assert_int_equal(write(fd, "bye", 3), 3);
    close(fd);
    expect(s, VSOCK_OP_RW);
    struct vsock_header header = expect(s, VSOCK_OP_SHUTDOWN);
    assert_int_equal(header.flags, VSOCK_BOTH);
    expect_nothing(s);
}

/* Without buffers all waits, and nothing is lost. */
static void no_buffers(void **state)
{
    struct setup *s = *state;
    struct vsock_header header;
    test_start(&s->board, 0);
    transmit(s, packet(VSOCK_OP_REQUEST), NULL, 0);
    int fd = test_hub_accept(&s->hub);
    assert_int_equal(write(fd, "waits", 5), 5);
    test_hub_run(&s->hub);
    assert_false(receive(s, &header, bytes));
    offer(s, 1);
    expect(s, VSOCK_OP_RESPONSE);
    expect_nothing(s);
    offer(s, 2);
    expect(s, VSOCK_OP_RW);
    assert_memory_equal(bytes, "waits", 5);
    close(fd);
}

static void broken_packets(void **state)
{
    struct setup *s = *state;
    start(s);
    const struct test_buffer buffer = {DATA, sizeof(struct vsock_header) - 1, false};
    test_add(&s->board, VSOCK_TRANSMIT, &buffer, 1);
    test_kick(&s->board, VSOCK_TRANSMIT);
    test_hub_run(&s->hub);
    assert_true(test_status(&s->board) & VIRTIO_NEEDS_RESET);
    start(s);
    struct vsock_header header = packet(VSOCK_OP_RW);
    header.length = UINT32_MAX;
    test_write(&s->board, DATA, &header, sizeof header);
    const struct test_buffer whole = {DATA, sizeof header, false};
    test_add(&s->board, VSOCK_TRANSMIT, &whole, 1);
    test_kick(&s->board, VSOCK_TRANSMIT);
    test_hub_run(&s->hub);
    assert_true(test_status(&s->board) & VIRTIO_NEEDS_RESET);
}

static void reset_ends_all(void **state)
{
    struct setup *s = *state;
    char byte;
    start(s);
    int fd = open_outward(s);
    test_common_write(&s->board, 0x14, 1, 0);
    test_hub_run(&s->hub);
    assert_int_equal(read(fd, &byte, 1), 0);
    close(fd);
    start(s);
    fd = open_outward(s);
    close(fd);
}

/* Connections do not travel: who is loaded is told so. */
static void loaded_elsewhere(void **state)
{
    struct setup *s = *state;
    struct device *device = &s->board.virtio->device;
    uint32_t head, written, event = 99;
    char byte;
    start(s);
    int fd = open_outward(s);
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config, 4), CID);
    device->ops->pause(device);
    struct visitor *save = visitor_new_write();
    device->ops->visit(device, save);
    size_t size;
    const void *saved = visitor_buffer(save, &size);
    struct visitor *load = visitor_new_read(saved, size);
    device->ops->visit(device, load);
    assert_int_equal(visitor_error(load), 0);
    visitor_free(load);
    device->ops->resume(device);
    test_hub_run(&s->hub);
    assert_int_equal(read(fd, &byte, 1), 0);
    const struct test_buffer buffer = {DATA, 4, true};
    test_add(&s->board, VSOCK_EVENT, &buffer, 1);
    test_kick(&s->board, VSOCK_EVENT);
    test_hub_run(&s->hub);
    assert_true(test_take_used(&s->board, VSOCK_EVENT, &head, &written));
    test_read(&s->board, DATA, &event, 4);
    assert_int_equal(event, 0);
    vsock_of(s->board.virtio)->cid++;
    load = visitor_new_read(saved, size);
    device->ops->visit(device, load);
    assert_true(visitor_error(load));
    visitor_free(load);
    visitor_free(save);
    close(fd);
}

static void too_many(void **state)
{
    struct setup *s = *state;
    int fds[VSOCK_CONNECTIONS_MAX];
    char byte;
    start(s);
    for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX; i++) {
        fds[i] = test_hub_arrive(&s->hub);
    }
    int fd = test_hub_arrive(&s->hub);
    assert_int_equal(read(fd, &byte, 1), 0);
    transmit(s, packet(VSOCK_OP_REQUEST), NULL, 0);
    expect(s, VSOCK_OP_RST);
    close(fd);
    for (unsigned i = 0; i < VSOCK_CONNECTIONS_MAX; i++) {
        close(fds[i]);
    }
    test_hub_run(&s->hub);
    fd = test_hub_arrive(&s->hub);
    assert_int_equal(read(fd, &byte, 1), -1);
    close(fd);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(guest_connects),      TEST(nobody_there),
        TEST(host_connects),       TEST(lines_that_are_none),
        TEST(guest_refuses),       TEST(strangers),
        TEST(credit_of_the_guest), TEST(credit_of_the_host),
        TEST(guest_ends_its_half), TEST(host_ends_its_half),
        TEST(host_goes),           TEST(no_buffers),
        TEST(broken_packets),      TEST(reset_ends_all),
        TEST(loaded_elsewhere),    TEST(too_many),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
