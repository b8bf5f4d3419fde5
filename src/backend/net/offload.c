/*
 * Checksums and TCP segments (RFC 1071; RFC 9293, 3.1; RFC 791, 3.1; RFC 8200, 3). Numbers in
 * packets are big-endian; the checksum does not care, as long as its two bytes stay in their order.
 */
#include "backend/net/offload.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"

enum {
    TYPE_IPV4 = 0x0800,
    TYPE_IPV6 = 0x86dd,
    TYPE_VLAN = 0x8100,
    TYPE_SERVICE_VLAN = 0x88a8,
    TAG_SIZE = 4,
    IPV4_HEADER = 20,
    IPV6_HEADER = 40,
    TCP_HEADER = 20,
    PROTOCOL_TCP = 6,
    TCP_FIN = 0x01,
    TCP_PSH = 0x08,
    TCP_CWR = 0x80,
    TCP_CHECKSUM = 16, /* its offset */
};

static unsigned load_be16(const uint8_t *bytes)
{
    return (unsigned)bytes[0] << 8 | bytes[1];
}

static void store_be16(uint8_t *bytes, unsigned value)
{
    bytes[0] = (uint8_t)(value >> 8);
    bytes[1] = (uint8_t)value;
}

static uint32_t load_be32(const uint8_t *bytes)
{
    return (uint32_t)load_be16(bytes) << 16 | load_be16(bytes + 2);
}

static void store_be32(uint8_t *bytes, uint32_t value)
{
    store_be16(bytes, value >> 16);
    store_be16(bytes + 2, value & 0xffff);
}

uint64_t net_checksum_add(uint64_t sum, const uint8_t *bytes, size_t length)
{
    /* halves of words: 2^32 of them do not overflow; two sums, so that they do not wait */
    uint64_t other = 0;
    for (; length >= 16; length -= 16, bytes += 16) {
        uint64_t a = load_le64(bytes), b = load_le64(bytes + 8);
        sum += (a & UINT32_MAX) + (a >> 32);
        other += (b & UINT32_MAX) + (b >> 32);
    }
    sum += other;
    for (; length >= 2; length -= 2, bytes += 2) {
        sum += load_le16(bytes);
    }
    return length ? sum + *bytes : sum;
}

uint16_t net_checksum_end(uint64_t sum)
{
    while (sum >> 16) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return (uint16_t)~sum;
}

static bool needs_checksum(const struct net_frame *frame)
{
    return frame->offload.flags & NET_NEEDS_CHECKSUM;
}

static bool checksum_fits(const struct net_frame *frame)
{
    size_t start = frame->offload.checksum_start;
    return start >= NET_HEADER_SIZE && start + frame->offload.checksum_offset + 2 <= frame->length;
}

/* Where the parts of a TCP packet are. */
struct tcp_packet {
    bool is_ipv6;
    size_t network, transport, payload; /* offsets */
    size_t payload_length;
    size_t segment; /* bytes of payload in each */
    unsigned count; /* of segments */
};

/* The type of the packet in an Ethernet frame behind at most two tags, and where it begins. */
static unsigned find_network(const struct net_frame *frame, size_t *ret_network)
{
    size_t at = NET_HEADER_SIZE;
    unsigned type = load_be16(frame->bytes + at - 2);
    for (unsigned tags = 0; tags < 2 && (type == TYPE_VLAN || type == TYPE_SERVICE_VLAN); tags++) {
        at += TAG_SIZE;
        if (at > frame->length) {
            return 0;
        }
        type = load_be16(frame->bytes + at - 2);
    }
    *ret_network = at;
    return type;
}

/* The length of the network header must lead to where the checksum begins. */
static bool network_is_sane(const struct net_frame *frame, struct tcp_packet *packet)
{
    const uint8_t *ip = frame->bytes + packet->network;
    size_t length = packet->transport - packet->network;
    if (packet->is_ipv6) {
        return length >= IPV6_HEADER && ip[0] >> 4 == 6;
    }
    return length >= IPV4_HEADER && ip[0] >> 4 == 4 && (ip[0] & 15u) * 4u == length &&
           ip[9] == PROTOCOL_TCP;
}

static bool tcp_parse(const struct net_frame *frame, struct tcp_packet *packet)
{
    const struct net_offload *offload = &frame->offload;
    unsigned type = offload->gso_type & ~(unsigned)NET_GSO_ECN, wanted;
    if (type != NET_GSO_TCPV4 && type != NET_GSO_TCPV6) {
        return false;
    }
    *packet = (struct tcp_packet){
        .is_ipv6 = type == NET_GSO_TCPV6,
        .transport = offload->checksum_start,
        .segment = offload->gso_size,
    };
    wanted = packet->is_ipv6 ? TYPE_IPV6 : TYPE_IPV4;
    /* a frame to be segmented always needs its checksum, which says where TCP is */
    if (!needs_checksum(frame) || offload->checksum_offset != TCP_CHECKSUM ||
        packet->segment < NET_SEGMENT_MIN || find_network(frame, &packet->network) != wanted ||
        packet->transport <= packet->network || packet->transport + TCP_HEADER > frame->length ||
        !network_is_sane(frame, packet)) {
        return false;
    }
    size_t header = (frame->bytes[packet->transport + 12] >> 4) * 4u;
    packet->payload = packet->transport + header;
    if (header < TCP_HEADER || packet->payload >= frame->length) {
        return false;
    }
    packet->payload_length = frame->length - packet->payload;
    packet->count = (unsigned)((packet->payload_length + packet->segment - 1) / packet->segment);
    return true;
}

bool net_offload_is_sane(const struct net_frame *frame)
{
    struct tcp_packet packet;
    if (frame->length < NET_HEADER_SIZE || (needs_checksum(frame) && !checksum_fits(frame))) {
        return false;
    }
    return frame->offload.gso_type == NET_GSO_NONE || tcp_parse(frame, &packet);
}

/* The sender left the sum of the pseudo header in the field; 0 would mean that there is none. */
static void finish_checksum(uint8_t *bytes, size_t length, const struct net_offload *offload)
{
    size_t start = offload->checksum_start;
    uint16_t sum = net_checksum_end(net_checksum_add(0, bytes + start, length - start));
    store_le16(bytes + start + offload->checksum_offset, sum ? sum : 0xffff);
}

static void finish_network(uint8_t *frame, size_t length, const struct tcp_packet *packet,
                           unsigned number)
{
    uint8_t *ip = frame + packet->network;
    if (packet->is_ipv6) {
        store_be16(ip + 4, (unsigned)(length - packet->network - IPV6_HEADER));
        return;
    }
    store_be16(ip + 2, (unsigned)(length - packet->network));
    store_be16(ip + 4, load_be16(ip + 4) + number);
    store_be16(ip + 10, 0);
    size_t header = packet->transport - packet->network;
    store_le16(ip + 10, net_checksum_end(net_checksum_add(0, ip, header)));
}

static void finish_tcp(uint8_t *frame, size_t length, const struct tcp_packet *packet,
                       unsigned number)
{
    const uint8_t *ip = frame + packet->network;
    uint8_t *tcp = frame + packet->transport;
    uint8_t pseudo[4] = {0, PROTOCOL_TCP};
    store_be32(tcp + 4, load_be32(tcp + 4) + (uint32_t)(number * packet->segment));
    if (number + 1 < packet->count) {
        tcp[13] &= (uint8_t) ~(TCP_FIN | TCP_PSH);
    }
    if (number > 0) {
        tcp[13] &= (uint8_t)~TCP_CWR; /* told once (RFC 3168, 6.1.2) */
    }
    store_be16(tcp + TCP_CHECKSUM, 0);
    store_be16(pseudo + 2, (unsigned)(length - packet->transport));
    uint64_t sum = net_checksum_add(0, pseudo, sizeof pseudo);
    sum = packet->is_ipv6 ? net_checksum_add(sum, ip + 8, 32) : net_checksum_add(sum, ip + 12, 8);
    sum = net_checksum_add(sum, tcp, length - packet->transport);
    store_le16(tcp + TCP_CHECKSUM, net_checksum_end(sum));
}

static size_t make_segment(const struct net_frame *frame, const struct tcp_packet *packet,
                           unsigned number, uint8_t *scratch)
{
    size_t at = number * packet->segment, left = packet->payload_length - at;
    size_t piece = left < packet->segment ? left : packet->segment;
    memcpy(scratch, frame->bytes, packet->payload);
    memcpy(scratch + packet->payload, frame->bytes + packet->payload + at, piece);
    size_t length = packet->payload + piece;
    finish_network(scratch, length, packet, number);
    finish_tcp(scratch, length, packet, number);
    return length;
}

int net_finish(const struct net_frame *frame, unsigned first,
               bool (*emit)(void *owner, const struct net_frame *complete), void *owner,
               uint8_t *scratch, bool *ret_all)
{
    struct net_frame complete = {.bytes = scratch, .length = frame->length};
    struct tcp_packet packet;
    if (!net_offload_is_sane(frame) || frame->length > NET_FRAME_MAX) {
        return -EINVAL;
    }
    if (frame->offload.gso_type == NET_GSO_NONE) {
        if (needs_checksum(frame)) {
            memcpy(scratch, frame->bytes, frame->length);
            finish_checksum(scratch, frame->length, &frame->offload);
        } else {
            complete.bytes = frame->bytes;
        }
        *ret_all = emit(owner, &complete);
        return *ret_all;
    }
    if (!tcp_parse(frame, &packet)) {
        return -EINVAL;
    }
    unsigned number = first;
    for (; number < packet.count; number++) {
        complete.length = make_segment(frame, &packet, number, scratch);
        if (!emit(owner, &complete)) {
            break;
        }
    }
    *ret_all = number >= packet.count;
    return (int)number;
}
