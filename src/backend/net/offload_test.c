/* Checksums against the definition of RFC 1071, segments against the packet they came from. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "backend/net/offload.h"
#include "base/bytes.h"

enum { ETHERNET = 14, TCP = 32, PAYLOAD = 10000, SEGMENT = 1448 };

struct packet {
    uint8_t bytes[ETHERNET + 8 + 60 + TCP + PAYLOAD];
    size_t network, transport, length;
    struct net_frame frame;
};

/* The definition: 16-bit big-endian words, one's complement; an odd byte counts as a high one. */
static unsigned plain_sum(unsigned sum, const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        sum += i & 1 ? bytes[i] : (unsigned)bytes[i] << 8;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum;
}

static void put16(uint8_t *at, unsigned value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static unsigned get16(const uint8_t *at)
{
    return (unsigned)at[0] << 8 | at[1];
}

static unsigned pseudo_sum(const uint8_t *ip, bool is_ipv6, size_t length, uint8_t protocol)
{
    unsigned sum = is_ipv6 ? plain_sum(0, ip + 8, 32) : plain_sum(0, ip + 12, 8);
    uint8_t rest[4] = {0, protocol};
    put16(rest + 2, (unsigned)length);
    return plain_sum(sum, rest, 4);
}

/* A packet as a guest with offloads sends it. */
static void make_packet(struct packet *packet, bool is_ipv6, unsigned tags, size_t payload)
{
    memset(packet, 0, sizeof *packet);
    uint8_t *frame = packet->bytes;
    for (unsigned i = 0; i < tags; i++) {
        put16(frame + 12 + 4 * i, 0x8100);
    }
    packet->network = ETHERNET + 4 * tags;
    put16(frame + packet->network - 2, is_ipv6 ? 0x86dd : 0x0800);
    uint8_t *ip = frame + packet->network;
    packet->transport = packet->network + (is_ipv6 ? 40 : 20);
    packet->length = packet->transport + TCP + payload;
    if (is_ipv6) {
        ip[0] = 0x60;
        put16(ip + 4, (unsigned)(TCP + payload));
        ip[6] = 6;
        memset(ip + 8, 0x2a, 16);
        memset(ip + 24, 0x3b, 16);
    } else {
        ip[0] = 0x45;
        put16(ip + 2, (unsigned)(20 + TCP + payload));
        put16(ip + 4, 0xfffe); /* the identification wraps */
        ip[9] = 6;
        memcpy(ip + 12, (uint8_t[]){10, 0, 2, 15, 10, 0, 2, 2}, 8);
    }
    uint8_t *tcp = frame + packet->transport;
    memcpy(tcp + 4, (uint8_t[]){0xff, 0xff, 0xff, 0x00}, 4); /* so does the sequence */
    tcp[12] = TCP / 4 << 4;
    tcp[13] = 0x80 | 0x10 | 0x08 | 0x01; /* CWR, ACK, PSH, FIN */
    put16(tcp + 16, pseudo_sum(ip, is_ipv6, TCP + payload, 6));
    for (size_t i = 0; i < payload; i++) {
        tcp[TCP + i] = (uint8_t)(i * 7 + i / 256);
    }
    packet->frame = (struct net_frame){
        .bytes = frame,
        .length = packet->length,
        .offload = {.flags = NET_NEEDS_CHECKSUM,
                    .gso_type = is_ipv6 ? NET_GSO_TCPV6 : NET_GSO_TCPV4,
                    .gso_size = SEGMENT,
                    .checksum_start = (uint16_t)packet->transport,
                    .checksum_offset = 16},
    };
}

struct collected {
    const struct packet *packet;
    bool is_ipv6;
    unsigned count, room;
    size_t payload;
};

/* Each segment is a good packet, and the next part of the one it was cut from. */
static bool collect(void *owner, const struct net_frame *frame)
{
    struct collected *c = owner;
    const struct packet *packet = c->packet;
    if (c->room == 0) {
        return false;
    }
    c->room--;
    const uint8_t *ip = frame->bytes + packet->network, *tcp = frame->bytes + packet->transport;
    size_t length = frame->length - packet->transport, piece = length - TCP;
    bool is_last = c->payload + piece == packet->length - packet->transport - TCP;
    assert_true(piece == SEGMENT || is_last);
    assert_int_equal(frame->offload.flags, 0);
    if (c->is_ipv6) {
        assert_int_equal(get16(ip + 4), length);
    } else {
        assert_int_equal(get16(ip + 2), 20 + length);
        assert_int_equal(get16(ip + 4), (0xfffe + c->count) & 0xffff);
        assert_int_equal(plain_sum(0, ip, 20), 0xffff);
    }
    assert_int_equal(plain_sum(pseudo_sum(ip, c->is_ipv6, length, 6), tcp, length), 0xffff);
    uint32_t sequence = get16(tcp + 4) << 16 | get16(tcp + 6);
    assert_int_equal(sequence, (uint32_t)(0xffffff00 + c->payload));
    assert_int_equal(tcp[13], 0x10 | (c->count == 0 ? 0x80 : 0) | (is_last ? 0x09 : 0));
    assert_memory_equal(tcp + TCP, packet->bytes + packet->transport + TCP + c->payload, piece);
    c->payload += piece;
    c->count++;
    return true;
}

static uint8_t scratch[NET_FRAME_MAX];

static void segments(void **state)
{
    static struct packet packet;
    for (unsigned i = 0; i < 2 * 3; i++) {
        bool all;
        make_packet(&packet, i & 1, i / 2, PAYLOAD);
        struct collected c = {.packet = &packet, .is_ipv6 = i & 1, .room = 100};
        assert_int_equal(net_finish(&packet.frame, 0, collect, &c, scratch, &all), 7);
        assert_true(all);
        assert_int_equal(c.payload, PAYLOAD);
    }
}

/* One that fits is still finished; a multiple has no empty one behind it. */
static void few_segments(void **state)
{
    static struct packet packet;
    static const size_t sizes[] = {1, SEGMENT, SEGMENT + 1, 2 * SEGMENT};
    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        bool all;
        make_packet(&packet, false, 0, sizes[i]);
        struct collected c = {.packet = &packet, .room = 100};
        assert_int_equal(net_finish(&packet.frame, 0, collect, &c, scratch, &all), 1 + i / 2);
        assert_int_equal(c.payload, sizes[i]);
    }
}

static void refused_in_the_middle(void **state)
{
    static struct packet packet;
    make_packet(&packet, false, 0, PAYLOAD);
    struct collected c = {.packet = &packet, .room = 3};
    bool all;
    assert_int_equal(net_finish(&packet.frame, 0, collect, &c, scratch, &all), 3);
    assert_false(all);
    assert_int_equal(net_finish(&packet.frame, 3, collect, &c, scratch, &all), 3);
    assert_false(all);
    c.room = 100;
    assert_int_equal(net_finish(&packet.frame, 3, collect, &c, scratch, &all), 7);
    assert_true(all);
    assert_int_equal(c.payload, PAYLOAD);
}

static bool keep(void *owner, const struct net_frame *frame)
{
    memcpy(owner, frame->bytes, frame->length);
    return true;
}

static void checksum_only(void **state)
{
    static struct packet packet;
    static uint8_t out[NET_FRAME_MAX];
    for (size_t payload = 0; payload < 40; payload++) {
        bool all;
        make_packet(&packet, payload & 1, 0, payload);
        packet.frame.offload.gso_type = NET_GSO_NONE;
        assert_int_equal(net_finish(&packet.frame, 0, keep, out, scratch, &all), 1);
        const uint8_t *ip = out + packet.network;
        size_t length = TCP + payload;
        unsigned sum = pseudo_sum(ip, payload & 1, length, 6);
        assert_int_equal(plain_sum(sum, out + packet.transport, length), 0xffff);
    }
}

/* A sum of zero is sent as its other form: for UDP, zero says that there is none (RFC 768). */
static void checksum_is_never_zero(void **state)
{
    uint8_t bytes[40] = {[20] = 0xff, 0xff}, out[40];
    const struct net_frame frame = {
        .bytes = bytes,
        .length = sizeof bytes,
        .offload = {.flags = NET_NEEDS_CHECKSUM, .checksum_start = 20, .checksum_offset = 6}};
    bool all;
    assert_int_equal(net_finish(&frame, 0, keep, out, scratch, &all), 1);
    assert_int_equal(get16(out + 26), 0xffff);
}

static void sums_of_all_lengths(void **state)
{
    uint8_t bytes[200];
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (uint8_t)(i * 31 + 200);
    }
    for (size_t at = 0; at < 8; at++) {
        for (size_t length = 0; length < sizeof bytes - 8; length++) {
            uint16_t sum = net_checksum_end(net_checksum_add(0, bytes + at, length));
            unsigned plain = ~plain_sum(0, bytes + at, length) & 0xffff;
            assert_int_equal(get16((uint8_t *)&sum), plain);
        }
    }
}

/* What contradicts the frame is refused, and nothing comes out. */
static void contradictions(void **state)
{
    static struct packet packet;
#define REFUSED(change)                                                                            \
    do {                                                                                           \
        bool all_;                                                                                 \
        make_packet(&packet, false, 0, PAYLOAD);                                                   \
        uint8_t *ip = packet.bytes + packet.network, *tcp = packet.bytes + packet.transport;       \
        struct net_offload *offload = &packet.frame.offload;                                       \
        (void)ip, (void)tcp;                                                                       \
        offload->flags = NET_NEEDS_CHECKSUM;                                                       \
        change;                                                                                    \
        assert_false(net_offload_is_sane(&packet.frame));                                          \
        assert_int_equal(net_finish(&packet.frame, 0, NULL, NULL, scratch, &all_), -EINVAL);       \
    } while (0)
    REFUSED(offload->gso_size = 0);
    REFUSED(offload->gso_size = NET_SEGMENT_MIN - 1);
    REFUSED(offload->gso_type = NET_GSO_TCPV6);
    REFUSED(offload->gso_type = 3); /* UDP */
    REFUSED(offload->gso_type = NET_GSO_ECN);
    REFUSED(offload->flags = 0);
    REFUSED(offload->checksum_start = 13);
    REFUSED(offload->checksum_start += 4);
    REFUSED(offload->checksum_start = 0xffff);
    REFUSED(offload->checksum_offset = 6);
    REFUSED(offload->checksum_offset = 0xffff);
    REFUSED(ip[0] = 0x65);
    REFUSED(ip[0] = 0x44);
    REFUSED(ip[0] = 0x4f);
    REFUSED(ip[9] = 17);
    REFUSED(tcp[12] = 4 << 4);
    REFUSED(put16(packet.bytes + 12, 0x86dd));
    REFUSED(put16(packet.bytes + 12, 0x8100));
    REFUSED(packet.frame.length = packet.transport + TCP);
    REFUSED(packet.frame.length = packet.transport + 10);
    REFUSED(packet.frame.length = 10);
    REFUSED(packet.frame.length = packet.network);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(segments),
        cmocka_unit_test(few_segments),
        cmocka_unit_test(refused_in_the_middle),
        cmocka_unit_test(checksum_only),
        cmocka_unit_test(checksum_is_never_zero),
        cmocka_unit_test(sums_of_all_lengths),
        cmocka_unit_test(contradictions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
