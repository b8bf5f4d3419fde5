/* The frame wire: frames in pieces and in heaps, slow peers, hostile peers, peers that come back.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/net/frames.h"
#include "backend/net/wire.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/loop.h"

struct setup {
    struct loop *loop;
    struct net *net;
    int peer;
    /* What the receiver saw. */
    size_t frames, bytes, room;
    uint8_t last[NET_FRAME_MAX];
    size_t last_length;
    unsigned ups, downs, sendables, losses;
};

static size_t on_receive(void *owner, const struct net_frame *frames, size_t count)
{
    struct setup *s = owner;
    size_t taken = 0;
    for (; taken < count && s->room > 0; taken++, s->room--) {
        s->frames++;
        s->bytes += frames[taken].length;
        s->last_length = frames[taken].length;
        memcpy(s->last, frames[taken].bytes, frames[taken].length);
    }
    return taken;
}

static void on_sendable(void *owner)
{
    ((struct setup *)owner)->sendables++;
}

static void on_link(void *owner, bool is_up)
{
    struct setup *s = owner;
    s->ups += is_up;
    s->downs += !is_up;
}

static void on_lost(void *owner)
{
    ((struct setup *)owner)->losses++;
}

static void connect_peer(struct setup *s)
{
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    assert_int_equal(net_wire_attach(s->net, pair[0]), 0);
    s->peer = pair[1];
}

static int set_up(void **state)
{
    static struct setup setup;
    setup = (struct setup){.room = SIZE_MAX};
    assert_int_equal(loop_new(&setup.loop), 0);
    const struct net_wire_config config = {.loop = setup.loop, .lost = on_lost, .owner = &setup};
    setup.net = net_wire_new(&config);
    const struct net_receiver receiver = {on_receive, on_sendable, on_link, &setup};
    net_connect(setup.net, &receiver);
    connect_peer(&setup);
    *state = &setup;
    return 0;
}

static int tear_down(void **state)
{
    struct setup *s = *state;
    net_free(s->net);
    loop_free(s->loop);
    close(s->peer);
    return 0;
}

static void stop(void *owner)
{
    loop_stop(owner);
}

/* All that is due now; several rounds, because events may cause more. */
static void settle(struct setup *s)
{
    for (unsigned i = 0; i < 4; i++) {
        loop_post(s->loop, stop, s->loop);
        assert_int_equal(loop_run(s->loop), 0);
    }
}

static void put(struct setup *s, const void *bytes, size_t count)
{
    assert_int_equal(write(s->peer, bytes, count), count);
}

static void put_frame(struct setup *s, uint32_t length, uint8_t fill)
{
    uint8_t frame[2048];
    assert_true(length + 4 <= sizeof frame);
    memset(frame, fill, sizeof frame);
    frame[0] = frame[1] = 0;
    frame[2] = (uint8_t)(length >> 8);
    frame[3] = (uint8_t)length;
    put(s, frame, length + 4);
}

static void frames_arrive(void **state)
{
    struct setup *s = *state;
    put_frame(s, 60, 1);
    put_frame(s, 1514, 2);
    settle(s);
    assert_int_equal(s->frames, 2);
    assert_int_equal(s->last_length, 1514);
    assert_int_equal(s->last[1513], 2);
}

static void frames_arrive_in_pieces(void **state)
{
    struct setup *s = *state;
    const uint8_t stream[] = {0, 0, 0, 3, 'a', 'b', 'c', 0, 0, 0, 1, 'd', 0, 0, 0, 0};
    for (size_t i = 0; i < sizeof stream; i++) {
        put(s, &stream[i], 1);
        settle(s);
        assert_int_equal(s->frames, (i >= 6) + (i >= 11) + (i >= 15));
    }
    assert_int_equal(s->bytes, 4);
    assert_int_equal(s->losses, 0);
}

static void receiver_without_room(void **state)
{
    struct setup *s = *state;
    s->room = 1;
    for (uint8_t i = 0; i < 5; i++) {
        put_frame(s, 100, i);
    }
    settle(s);
    assert_int_equal(s->frames, 1);
    settle(s);
    assert_int_equal(s->frames, 1);
    s->room = 2;
    net_ready(s->net);
    settle(s);
    assert_int_equal(s->frames, 3);
    assert_int_equal(s->last[0], 2);
    s->room = SIZE_MAX;
    net_ready(s->net);
    settle(s);
    assert_int_equal(s->frames, 5);
    assert_int_equal(s->last[0], 4);
}

/* More than the reader's buffer and the socket hold: nothing is lost, nothing grows. */
static void sender_waits_for_receiver(void **state)
{
    struct setup *s = *state;
    static uint8_t frame[4 + 1500] = {0, 0, 1500 >> 8, 1500 & 0xff};
    size_t put_bytes = 0;
    s->room = 0;
    for (unsigned round = 0; round < 20; round++) {
        ssize_t n;
        while ((n = write(s->peer, frame + put_bytes % sizeof frame,
                          sizeof frame - put_bytes % sizeof frame)) > 0) {
            put_bytes += (size_t)n;
        }
        settle(s);
    }
    assert_true(put_bytes < FRAMES_BUFFER + (4 << 20));
    s->room = SIZE_MAX;
    net_ready(s->net);
    for (unsigned i = 0; i < 100; i++) {
        settle(s);
    }
    assert_int_equal(s->frames, put_bytes / sizeof frame);
}

static void hostile_lengths(void **state)
{
    static const uint8_t lengths[][4] = {
        {0xff, 0xff, 0xff, 0xff}, {0x80, 0, 0, 0}, {0, 1, 0, 65}, {0, 2, 0, 0}, {1, 0, 0, 0}};
    struct setup *s = *state;
    for (unsigned i = 0; i < ARRAY_SIZE(lengths); i++) {
        put_frame(s, 60, 7);
        put(s, lengths[i], 4);
        settle(s);
        assert_int_equal(s->frames, i + 1);
        assert_int_equal(s->losses, i + 1);
        assert_int_equal(s->downs, i + 1);
        assert_false(net_is_up(s->net));
        close(s->peer);
        connect_peer(s);
    }
}

static void longest_frame(void **state)
{
    struct setup *s = *state;
    static uint8_t stream[4 + NET_FRAME_MAX] = {0, 1, 0, 64, 'x', [sizeof stream - 1] = 'y'};
    put(s, stream, sizeof stream);
    settle(s);
    assert_int_equal(s->last_length, NET_FRAME_MAX);
    assert_int_equal(s->last[0], 'x');
    assert_int_equal(s->last[NET_FRAME_MAX - 1], 'y');
}

static void send_frame(struct setup *s, const void *bytes, size_t length, bool taken)
{
    const struct net_frame frame = {.bytes = bytes, .length = length};
    assert_int_equal(net_send(s->net, &frame), taken);
}

/* Several frames are one write, and come out with their lengths in front. */
static void frames_leave(void **state)
{
    struct setup *s = *state;
    uint8_t bytes[64];
    send_frame(s, "0123456789abcd", 14, true);
    send_frame(s, "0123456789abcdef", 16, true);
    send_frame(s, "too short", 9, true);
    assert_int_equal(read(s->peer, bytes, sizeof bytes), -1);
    net_flush(s->net);
    assert_int_equal(read(s->peer, bytes, sizeof bytes), 4 + 14 + 4 + 16);
    assert_memory_equal(bytes,
                        "\0\0\0\016"
                        "0123456789abcd\0\0\0\020"
                        "0123456789abcdef",
                        38);
}

/* A peer that reads slowly: the sender is told to wait, and nothing is lost or torn. */
static void slow_peer(void **state)
{
    struct setup *s = *state;
    static uint8_t frame[60000];
    struct frame_reader reader;
    const struct net_frame sent = {.bytes = frame, .length = sizeof frame};
    unsigned count = 0, read_back = 0;
    for (; net_send(s->net, &sent); count++) {
        net_flush(s->net);
        memset(frame, (int)count + 1, sizeof frame);
        assert_true(count < 1000);
    }
    assert_true(count > 5);
    settle(s);
    assert_int_equal(s->sendables, 0);
    frame_reader_init(&reader);
    for (unsigned i = 0; i < 1000 && read_back < count; i++) {
        size_t position = 0, length;
        const uint8_t *bytes;
        assert_true(frame_reader_fill(&reader, s->peer) >= 0);
        while (frame_reader_peek(&reader, &position, &bytes, &length) > 0) {
            assert_int_equal(length, sizeof frame);
            assert_int_equal(bytes[0], read_back ? (uint8_t)read_back : 0);
            assert_memory_equal(bytes, bytes + 1, length - 1);
            read_back++;
        }
        frame_reader_take(&reader, position);
        settle(s);
    }
    assert_int_equal(read_back, count);
    assert_true(s->sendables >= 1);
    frame_reader_fini(&reader);
}

static void peer_comes_back(void **state)
{
    struct setup *s = *state;
    put(s, "\0\0\0\004ab", 6); /* half a frame */
    settle(s);
    close(s->peer);
    settle(s);
    assert_int_equal(s->losses, 1);
    assert_false(net_is_up(s->net));
    send_frame(s, "0123456789abcd", 14, true); /* into the void */
    net_flush(s->net);
    connect_peer(s);
    assert_int_equal(s->ups, 2);
    put_frame(s, 100, 9); /* the old half is forgotten */
    settle(s);
    assert_int_equal(s->frames, 1);
    assert_int_equal(s->last[0], 9);
    assert_int_equal(s->losses, 1);
}

/* The sender finds out first. */
static void write_to_a_dead_peer(void **state)
{
    struct setup *s = *state;
    close(s->peer);
    send_frame(s, "0123456789abcd", 14, true);
    net_flush(s->net);
    settle(s);
    assert_int_equal(s->losses, 1);
    assert_false(net_is_up(s->net));
    connect_peer(s);
    assert_true(net_is_up(s->net));
}

static void no_network(void **state)
{
    const struct net_frame frame = {.bytes = (const uint8_t *)"0123456789abcd", .length = 14};
    assert_true(net_send(NULL, &frame));
    assert_false(net_is_up(NULL));
    net_flush(NULL);
    net_ready(NULL);
    net_free(NULL);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(frames_arrive),          TEST(frames_arrive_in_pieces),
        TEST(receiver_without_room),  TEST(sender_waits_for_receiver),
        TEST(hostile_lengths),        TEST(longest_frame),
        TEST(frames_leave),           TEST(slow_peer),
        TEST(peer_comes_back),        TEST(write_to_a_dead_peer),
        cmocka_unit_test(no_network),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
