/*
 * A network at the other end of a stream socket that carries frames (frames.h). The cable is in
 * while there is a socket: whoever owns the wire gives it another one when the peer is back.
 *
 * Threads: as net.h says; attach and detach on the loop's thread, or before it runs.
 */
#pragma once

#include "backend/net/net.h"

struct loop;

struct net_wire_config {
    struct loop *loop; /* borrowed */
    bool is_checked;   /* see struct net */
    uint16_t mtu;
    /* The peer is gone or talks nonsense; the socket is closed. On the loop's thread. NULL: fine.
     */
    void (*lost)(void *owner);
    void (*freed)(void *owner); /* the wire was; NULL: fine */
    void *owner;
};

/* Without a socket, so its cable is out. */
struct net *net_wire_new(const struct net_wire_config *config);
/* Take this stream socket, which now belongs to the wire; one that was there is closed. */
int net_wire_attach(struct net *net, int fd) __attribute__((warn_unused_result));
