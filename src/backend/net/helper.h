/*
 * A network whose wire comes from a helper process, the program `doppel-net` beside our own: it
 * makes or connects the stream socket, passes it to us, and does so again when it was lost. So a
 * machine in its jail, which can neither start programs nor make sockets, gets its network back.
 */
#pragma once

#include "backend/net/net.h"

struct loop;

struct net_helper_config {
    struct loop *loop;            /* borrowed */
    const char *const *arguments; /* of the program, from its first one on; ended by NULL */
    bool is_checked;              /* as in struct net */
    uint16_t mtu;
    /* Something happened that the user may want to know. On the loop's thread. */
    void (*report)(void *owner, const char *text);
    void *owner;
};

/*
 * Starts the program, and waits until the network is there. `ret_channel` is the socket on which
 * the helper passes us others; it belongs to the network, and the jail has to let us receive there.
 */
int net_helper_open(const struct net_helper_config *config, struct net **ret_net, int *ret_channel)
    __attribute__((warn_unused_result));
