/*
 * Work that a sender left to the network: checksums, and TCP segments of a size that the wire takes
 * (virtio 1.2, 5.1.6.2). For backends that cannot hand it on to the host.
 *
 * The frame and what is said of it are hostile: everything is checked against the frame's bytes.
 */
#pragma once

#include "backend/net/net.h"

enum {
    NET_SEGMENT_MIN = 48, /* of payload: what is cut smaller only makes work */
};

/* Is what is said of the frame possible, so that the host's kernel may be asked to do it? */
bool net_offload_is_sane(const struct net_frame *frame);

/*
 * Finish a frame, from its `first` segment on (0, unless somebody refused before), and give each
 * complete frame to `emit`, which answers false when it has no room. Returns how many segments are
 * done now, in all; `*ret_all` tells whether they are all. -EINVAL if the frame contradicts what is
 * said of it: nothing was emitted. `scratch` has NET_FRAME_MAX bytes.
 */
int net_finish(const struct net_frame *frame, unsigned first,
               bool (*emit)(void *owner, const struct net_frame *complete), void *owner,
               uint8_t *scratch, bool *ret_all) __attribute__((warn_unused_result));

/* The Internet checksum (RFC 1071) of bytes: a sum to go on with, and its end. */
uint64_t net_checksum_add(uint64_t sum, const uint8_t *bytes, size_t length);
/* As it is stored: a 16-bit number in the bytes' own order. */
uint16_t net_checksum_end(uint64_t sum);
