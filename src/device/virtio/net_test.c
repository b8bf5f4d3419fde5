/* virtio-net between a driver and a network of the test's own. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "backend/net/test_net.h"
#include "device/virtio/net_internal.h"
#include "device/virtio/test_driver.h"
#include "device/visit_check.h"

enum { RECEIVE = 0, TRANSMIT = 1, CONTROL = 4, DATA = TEST_BUFFERS, HEADER = 12, OFFLOADS = 10 };

static const uint8_t address[6] = {0x52, 0x54, 0, 1, 2, 3};

struct setup {
    struct test_board board;
    struct test_net *net;
};

static void build(struct setup *s, bool has_offloads)
{
    test_board_init(&s->board);
    s->net = test_net_new();
    s->net->net.mtu = 9000;
    s->net->net.has_offloads = has_offloads;
    struct virtio_net_config config = {.memory = s->board.memory, .net = &s->net->net, .pairs = 2};
    memcpy(config.address, address, sizeof address);
    struct virtio_device *virtio;
    assert_int_equal(virtio_net_new(&config, "virtio-net0", &virtio), 0);
    test_plug(&s->board, virtio);
}

static int set_up(void **state)
{
    static struct setup setup;
    build(&setup, false);
    *state = &setup;
    return 0;
}

static int tear_down(void **state)
{
    test_board_fini(&((struct setup *)*state)->board);
    return 0;
}

/* A frame with its header at DATA, in two buffers as Linux sends it. */
static void transmit(struct setup *s, unsigned queue, const struct net_offload *offload,
                     const void *frame, uint32_t length)
{
    uint8_t header[HEADER] = {0};
    if (offload) {
        memcpy(header, offload, OFFLOADS);
    }
    test_write(&s->board, DATA, header, HEADER);
    test_write(&s->board, DATA + 64, frame, length);
    const struct test_buffer buffers[] = {{DATA, HEADER, false}, {DATA + 64, length, false}};
    test_add(&s->board, queue, buffers, 2);
    test_kick(&s->board, queue);
}

static void offer(struct setup *s, unsigned queue, gpa_t gpa, uint32_t length)
{
    const struct test_buffer buffer = {gpa, length, true};
    test_add(&s->board, queue, &buffer, 1);
    test_kick(&s->board, queue);
}

static bool is_answered(struct setup *s, unsigned queue)
{
    uint32_t head, written;
    return test_take_used(&s->board, queue, &head, &written);
}

static void frames_leave(void **state)
{
    struct setup *s = *state;
    uint8_t frame[60] = "a frame of sixty bytes";
    test_start(&s->board, 0);
    transmit(s, TRANSMIT, NULL, frame, sizeof frame);
    assert_int_equal(s->net->sent_count, 1);
    assert_int_equal(s->net->sent[0].length, sizeof frame);
    assert_memory_equal(s->net->sent[0].bytes, frame, sizeof frame);
    assert_int_equal(s->net->flushes, 1);
    assert_true(is_answered(s, TRANSMIT));
}

/* Too short, too long, with work that was not negotiated: dropped, and the driver lives on. */
static void bad_frames_are_dropped(void **state)
{
    struct setup *s = *state;
    uint8_t frame[60] = {0};
    struct net_offload offload = {.flags = NET_NEEDS_CHECKSUM, .checksum_start = 14};
    test_start(&s->board, NET_F_CSUM);
    transmit(s, TRANSMIT, NULL, frame, 13);
    transmit(s, TRANSMIT, &offload, frame, sizeof frame);
    offload = (struct net_offload){.gso_type = 3};
    transmit(s, TRANSMIT, &offload, frame, sizeof frame);
    offload = (struct net_offload){.gso_type = NET_GSO_TCPV4, .gso_size = 100};
    transmit(s, TRANSMIT, &offload, frame, sizeof frame);
    const struct test_buffer buffers[] = {{DATA, HEADER, false}, {0, 65536 + 65, false}};
    test_add(&s->board, TRANSMIT, buffers, 2);
    const struct test_buffer empty = {DATA, 5, false};
    test_add(&s->board, TRANSMIT, &empty, 1);
    test_kick(&s->board, TRANSMIT);
    assert_int_equal(s->net->sent_count, 0);
    for (unsigned i = 0; i < 6; i++) {
        assert_true(is_answered(s, TRANSMIT));
    }
    assert_false(test_status(&s->board) & VIRTIO_NEEDS_RESET);
}

/* A TCP packet of 200 bytes of payload, to be cut at 100. */
static void make_tcp(uint8_t *frame, struct net_offload *offload)
{
    memset(frame, 0, 254);
    frame[12] = 8;
    frame[14] = 0x45;
    frame[23] = 6;
    frame[46] = 5 << 4;
    memset(frame + 54, 'x', 200);
    *offload = (struct net_offload){.flags = NET_NEEDS_CHECKSUM,
                                    .gso_type = NET_GSO_TCPV4,
                                    .gso_size = 100,
                                    .checksum_start = 34,
                                    .checksum_offset = 16};
}

static void segments_for_a_plain_wire(void **state)
{
    struct setup *s = *state;
    uint8_t frame[254];
    struct net_offload offload;
    make_tcp(frame, &offload);
    test_start(&s->board, 0);
    transmit(s, TRANSMIT, &offload, frame, sizeof frame);
    assert_int_equal(s->net->sent_count, 2);
    assert_int_equal(s->net->sent[0].length, 154);
    assert_int_equal(s->net->sent[1].length, 154);
    assert_int_equal(s->net->sent[1].offload.gso_type, 0);
    assert_int_equal(s->net->sent[1].bytes[41], 100); /* the sequence number */
}

static void backend_that_segments(void **state)
{
    struct setup *s = *state;
    uint8_t frame[254];
    struct net_offload offload;
    make_tcp(frame, &offload);
    test_board_fini(&s->board);
    build(s, true);
    assert_true(test_features(&s->board) & NET_F_GUEST_TSO4);
    test_start(&s->board, NET_F_GUEST_TSO6);
    assert_int_equal(s->net->takes, NET_TAKES_CHECKSUM | NET_TAKES_TSO4 | NET_TAKES_ECN);
    transmit(s, TRANSMIT, &offload, frame, sizeof frame);
    assert_int_equal(s->net->sent_count, 1);
    assert_memory_equal(s->net->sent[0].bytes, frame, sizeof frame);
    assert_memory_equal(&s->net->sent[0].offload, &offload, sizeof offload);
    offload.checksum_start = 60; /* what the host would refuse does not reach it */
    transmit(s, TRANSMIT, &offload, frame, sizeof frame);
    assert_int_equal(s->net->sent_count, 1);
    test_common_write(&s->board, 0x14, 1, 0);
    assert_int_equal(s->net->takes, 0);
}

/* No room in the middle of a frame's segments: the rest follows, nothing twice, nothing lost. */
static void slow_backend(void **state)
{
    struct setup *s = *state;
    uint8_t frame[254], small[60] = "small";
    struct net_offload offload;
    make_tcp(frame, &offload);
    test_start(&s->board, 0);
    s->net->room = 1;
    transmit(s, TRANSMIT, &offload, frame, sizeof frame);
    assert_int_equal(s->net->sent_count, 1);
    assert_false(is_answered(s, TRANSMIT));
    s->net->net.receiver.sendable(s->net->net.receiver.owner);
    assert_int_equal(s->net->sent_count, 1);
    s->net->room = 1;
    s->net->net.receiver.sendable(s->net->net.receiver.owner);
    assert_int_equal(s->net->sent_count, 2);
    assert_int_equal(s->net->sent[1].bytes[41], 100);
    assert_true(is_answered(s, TRANSMIT));
    transmit(s, TRANSMIT, NULL, small, sizeof small);
    assert_int_equal(s->net->sent_count, 2);
    s->net->room = SIZE_MAX;
    s->net->net.receiver.sendable(s->net->net.receiver.owner);
    assert_int_equal(s->net->sent_count, 3);
    assert_true(is_answered(s, TRANSMIT));
}

static void frames_arrive(void **state)
{
    struct setup *s = *state;
    uint8_t frame[60] = "inward", got[72];
    uint32_t head, written;
    assert_true(test_net_give(s->net, frame, sizeof frame)); /* lost: no driver */
    test_start(&s->board, 0);
    assert_false(test_net_give(s->net, frame, sizeof frame));
    unsigned before = s->net->readies;
    offer(s, RECEIVE, DATA, 2048);
    assert_int_equal(s->net->readies, before + 1);
    assert_true(test_net_give(s->net, frame, sizeof frame));
    assert_true(test_take_used(&s->board, RECEIVE, &head, &written));
    assert_int_equal(written, HEADER + sizeof frame);
    test_read(&s->board, DATA, got, sizeof got);
    assert_memory_equal(got, "\0\0\0\0\0\0\0\0\0\0\1\0", HEADER);
    assert_memory_equal(got + HEADER, frame, sizeof frame);
    s->net->net.is_checked = true;
    offer(s, RECEIVE, DATA, 2048);
    assert_true(test_net_give(s->net, frame, sizeof frame));
    test_read(&s->board, DATA, got, 1);
    assert_int_equal(got[0], NET_DATA_VALID);
}

/* Over several buffers; with too few of them none is used. */
static void merged_buffers(void **state)
{
    struct setup *s = *state;
    uint8_t frame[250], got[100];
    uint32_t head, written;
    for (unsigned i = 0; i < sizeof frame; i++) {
        frame[i] = (uint8_t)i;
    }
    frame[0] = 2;
    test_start(&s->board, 0);
    offer(s, RECEIVE, DATA, 100);
    offer(s, RECEIVE, DATA + 0x1000, 100);
    assert_false(test_net_give(s->net, frame, sizeof frame));
    assert_false(is_answered(s, RECEIVE));
    offer(s, RECEIVE, DATA + 0x2000, 100);
    assert_true(test_net_give(s->net, frame, sizeof frame));
    for (unsigned i = 0; i < 3; i++) {
        assert_true(test_take_used(&s->board, RECEIVE, &head, &written));
        assert_int_equal(written, i < 2 ? 100 : 62);
        test_read(&s->board, DATA + 0x1000 * i, got, written);
        if (i == 0) {
            assert_int_equal(got[10], 3);
            assert_memory_equal(got + HEADER, frame, 88);
        } else {
            assert_memory_equal(got, frame + 88 + 100 * (i - 1), written);
        }
    }
    assert_false(is_answered(s, RECEIVE));
}

static void buffers_that_may_not_be_merged(void **state)
{
    struct setup *s = *state;
    uint8_t frame[250] = {2};
    test_start(&s->board, NET_F_MRG_RXBUF);
    offer(s, RECEIVE, DATA, 100);
    offer(s, RECEIVE, DATA + 0x1000, 300);
    assert_true(test_net_give(s->net, frame, sizeof frame)); /* fits nowhere: lost */
    assert_false(is_answered(s, RECEIVE));
    assert_true(test_net_give(s->net, frame, 60));
    assert_true(is_answered(s, RECEIVE));
    assert_true(test_net_give(s->net, frame, sizeof frame));
    assert_true(is_answered(s, RECEIVE));
}

static void buffer_without_room_for_a_header(void **state)
{
    struct setup *s = *state;
    uint8_t frame[60] = {2};
    test_start(&s->board, 0);
    offer(s, RECEIVE, DATA, 11);
    assert_true(test_net_give(s->net, frame, sizeof frame));
    assert_true(test_status(&s->board) & VIRTIO_NEEDS_RESET);
    assert_true(test_net_give(s->net, frame, sizeof frame)); /* lost */
}

/* A command with up to 600 bytes of data; returns the answer. */
static uint8_t command_on(struct setup *s, unsigned queue, uint8_t class, uint8_t command,
                          const void *data, uint32_t length)
{
    uint8_t bytes[602] = {class, command}, answer = 0xee;
    memcpy(bytes + 2, data, length);
    test_write(&s->board, DATA, bytes, length + 2);
    test_write(&s->board, DATA + 1024, &answer, 1);
    const struct test_buffer buffers[] = {
        {DATA, 2, false}, {DATA + 2, length, false}, {DATA + 1024, 1, true}};
    test_add(&s->board, queue, buffers, 3);
    test_kick(&s->board, queue);
    test_read(&s->board, DATA + 1024, &answer, 1);
    assert_true(is_answered(s, queue));
    return answer;
}

static uint8_t command(struct setup *s, uint8_t class, uint8_t number, const void *data,
                       uint32_t length)
{
    return command_on(s, CONTROL, class, number, data, length);
}

static bool accepts(struct setup *s, uint8_t first, uint8_t last)
{
    const uint8_t destination[6] = {first, 0x54, 0, 1, 2, last};
    return net_filter_accepts(net_of(s->board.virtio), destination);
}

static void receive_filter(void **state)
{
    struct setup *s = *state;
    static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    test_start(&s->board, 0);
    assert_true(accepts(s, 0x52, 9)); /* promiscuous at first */
    assert_int_equal(command(s, 0, 0, "\0", 1), 0);
    assert_true(accepts(s, 0x52, 3));
    assert_false(accepts(s, 0x52, 9));
    assert_false(accepts(s, 0x33, 9));
    assert_true(net_filter_accepts(net_of(s->board.virtio), broadcast));
    assert_int_equal(command(s, 0, 1, "\1", 1), 0);
    assert_true(accepts(s, 0x33, 9));
    assert_int_equal(command(s, 0, 3, "\1", 1), 0);
    assert_false(accepts(s, 0x33, 9));
    assert_int_equal(command(s, 0, 2, "\1", 1), 0);
    assert_true(accepts(s, 0x52, 9));
    assert_int_equal(command(s, 0, 4, "\1", 1), 0);
    assert_false(accepts(s, 0x52, 3));
    assert_int_equal(command(s, 0, 5, "\1", 1), 0);
    assert_false(net_filter_accepts(net_of(s->board.virtio), broadcast));
    assert_int_equal(command(s, 0, 6, "\1", 1), 1);
    assert_int_equal(command(s, 0, 0, "\2", 1), 1);
    assert_int_equal(command(s, 0, 0, "", 0), 1);
    assert_int_equal(command(s, 9, 0, "\1", 1), 1);
}

static void address_table(void **state)
{
    struct setup *s = *state;
    uint8_t table[8 + 65 * 6] = {0};
    test_start(&s->board, 0);
    assert_int_equal(command(s, 0, 0, "\0", 1), 0);
    store_le32(table, 1);
    memcpy(table + 4, (uint8_t[]){0x52, 0x54, 0, 1, 2, 9}, 6);
    store_le32(table + 10, 1);
    memcpy(table + 14, (uint8_t[]){0x33, 0x54, 0, 1, 2, 9}, 6);
    assert_int_equal(command(s, 1, 0, table, 20), 0);
    assert_true(accepts(s, 0x52, 9));
    assert_true(accepts(s, 0x33, 9));
    assert_false(accepts(s, 0x52, 8));
    assert_int_equal(command(s, 1, 0, table, 19), 1); /* cut short: nothing changes */
    assert_true(accepts(s, 0x33, 9));
    store_le32(table, UINT32_MAX);
    assert_int_equal(command(s, 1, 0, table, 20), 1);
    memset(table, 0, sizeof table);
    store_le32(table, 65);
    assert_int_equal(command(s, 1, 0, table, sizeof table), 0);
    assert_true(accepts(s, 0x52, 8)); /* too many to keep: all */
    assert_false(accepts(s, 0x33, 9));
}

static void own_address(void **state)
{
    struct setup *s = *state;
    uint8_t got[6];
    test_start(&s->board, 0);
    for (unsigned i = 0; i < 6; i++) {
        got[i] = (uint8_t)bus_mmio_read(s->board.bus, s->board.config + i, 1);
    }
    assert_memory_equal(got, address, 6);
    assert_int_equal(command(s, 1, 1, "\2\0\0\0\0\7", 6), 0);
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config + 5, 1), 7);
    assert_int_equal(command(s, 1, 1, "\2\0\0", 3), 1);
    test_common_write(&s->board, 0x14, 1, 0);
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config + 5, 1), 3);
}

/* Without the feature the control queue is the third, and there is one pair. */
static void without_multiqueue(void **state)
{
    struct setup *s = *state;
    test_start(&s->board, NET_F_MQ);
    assert_int_equal(command_on(s, 2, 0, 0, "\0", 1), 0);
    assert_int_equal(command_on(s, 2, 4, 0, "\1\0", 2), 1);
}

static void pairs_of_queues(void **state)
{
    struct setup *s = *state;
    uint8_t frame[60] = {2, [12] = 8, [14] = 0x45, [29] = 1, [33] = 2, [35] = 80};
    test_start(&s->board, 0);
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config + 8, 2), 2);
    assert_int_equal(command(s, 4, 0, "\0\0", 2), 1);
    assert_int_equal(command(s, 4, 0, "\3\0", 2), 1);
    assert_int_equal(command(s, 4, 1, "\2\0", 2), 1);
    assert_int_equal(command(s, 4, 0, "\2\0", 2), 0);
    offer(s, 0, DATA + 0x1000, 512);
    offer(s, 2, DATA + 0x2000, 512);
    transmit(s, 3, NULL, frame, sizeof frame); /* the flow belongs to the second pair now */
    assert_int_equal(s->net->sent_count, 1);
    uint8_t answer[60] = {2, [12] = 8, [14] = 0x45, [29] = 2, [33] = 1, [37] = 80};
    assert_true(test_net_give(s->net, answer, sizeof answer));
    assert_true(is_answered(s, 2));
    answer[29] = 77; /* somebody else */
    assert_true(test_net_give(s->net, answer, sizeof answer));
    assert_true(is_answered(s, 0));
}

static void link_bounces(void **state)
{
    struct setup *s = *state;
    uint8_t frame[60] = {0};
    test_enable_msix(&s->board);
    test_start(&s->board, 0);
    unsigned before = s->board.messages[0];
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config + 6, 2), 1);
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config + 10, 2), 9000);
    test_net_plug(s->net, false);
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config + 6, 2), 0);
    assert_int_equal(s->board.messages[0], before + 1);
    transmit(s, TRANSMIT, NULL, frame, sizeof frame); /* into the void */
    assert_int_equal(s->net->sent_count, 0);
    assert_true(is_answered(s, TRANSMIT));
    test_net_plug(s->net, true);
    assert_int_equal(bus_mmio_read(s->board.bus, s->board.config + 6, 2), 1);
    assert_int_equal(s->board.messages[0], before + 2);
}

static void paused_frames_wait(void **state)
{
    struct setup *s = *state;
    struct device *device = &s->board.virtio->device;
    uint8_t frame[60] = {2};
    test_start(&s->board, 0);
    offer(s, RECEIVE, DATA, 512);
    device->ops->pause(device);
    assert_false(test_net_give(s->net, frame, sizeof frame));
    unsigned before = s->net->readies;
    device->ops->resume(device);
    assert_true(s->net->readies > before);
    assert_true(test_net_give(s->net, frame, sizeof frame));
}

static void no_cable(void **state)
{
    struct test_board board;
    struct virtio_device *virtio;
    test_board_init(&board);
    const struct virtio_net_config config = {.memory = board.memory, .pairs = 1};
    assert_int_equal(virtio_net_new(&config, "virtio-net0", &virtio), 0);
    test_plug(&board, virtio);
    test_start(&board, 0);
    assert_int_equal(bus_mmio_read(board.bus, board.config + 6, 2), 0);
    const struct test_buffer buffer = {DATA, 100, false};
    test_add(&board, TRANSMIT, &buffer, 1);
    test_kick(&board, TRANSMIT);
    uint32_t head, written;
    assert_true(test_take_used(&board, TRANSMIT, &head, &written));
    test_board_fini(&board);
}

static void visit_device(void *owner, struct visitor *v)
{
    struct virtio_device *virtio = owner;
    visit_begin(v, "device", 1);
    virtio->ops->visit(virtio, v);
    visit_end(v);
}

/* The structure ends with padding. */
#define AFTER_FILTER (offsetof(struct virtio_net, filter) + sizeof(struct net_filter))

static void everything_is_saved(void **state)
{
    struct setup *s = *state;
    test_start(&s->board, 0);
    assert_int_equal(command(s, 0, 0, "\0", 1), 0);
    struct virtio_net *self = net_of(s->board.virtio);
    self->pairs_in_use = 2;
    self->filter.unicast_count = self->filter.multicast_count = 2;
    assert_int_equal(
        VISIT_CHECK(struct virtio_net, self, visit_device, s->board.virtio,
                    VISIT_DERIVED(struct virtio_net, virtio), VISIT_DERIVED(struct virtio_net, net),
                    VISIT_DERIVED(struct virtio_net, mtu), VISIT_DERIVED(struct virtio_net, pairs),
                    VISIT_DERIVED(struct virtio_net, configured_address),
                    VISIT_DERIVED(struct virtio_net, work),
                    {AFTER_FILTER, sizeof *self - AFTER_FILTER}),
        0);
    assert_int_equal(self->pairs_in_use, 2);
}

/* Saved states that no device of ours could have written. */
static void impossible_states_are_refused(void **state)
{
    struct setup *s = *state;
    struct virtio_net *self = net_of(s->board.virtio);
    for (unsigned i = 0; i < 4; i++) {
        const uint16_t pairs = self->pairs_in_use;
        const struct net_filter filter = self->filter;
        self->pairs_in_use = i == 0 ? 0 : i == 1 ? 3 : 1;
        self->filter.unicast_count = i == 2 ? NET_ADDRESSES_MAX + 1 : 0;
        self->filter.multicast_count = i == 3 ? NET_ADDRESSES_MAX + 1 : 0;
        struct visitor *save = visitor_new_write();
        visit_device(s->board.virtio, save);
        self->pairs_in_use = pairs;
        self->filter = filter;
        size_t size;
        const void *saved = visitor_buffer(save, &size);
        struct visitor *load = visitor_new_read(saved, size);
        visit_device(s->board.virtio, load);
        assert_true(visitor_error(load));
        visitor_free(load);
        visitor_free(save);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(frames_leave),
        TEST(bad_frames_are_dropped),
        TEST(segments_for_a_plain_wire),
        TEST(backend_that_segments),
        TEST(slow_backend),
        TEST(frames_arrive),
        TEST(merged_buffers),
        TEST(buffers_that_may_not_be_merged),
        TEST(buffer_without_room_for_a_header),
        TEST(receive_filter),
        TEST(address_table),
        TEST(own_address),
        TEST(without_multiqueue),
        TEST(pairs_of_queues),
        TEST(link_bounces),
        TEST(paused_frames_wait),
        cmocka_unit_test(no_cable),
        TEST(everything_is_saved),
        TEST(impossible_states_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
