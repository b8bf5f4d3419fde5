/*
 * A tap interface of the host's kernel, which takes and gives frames with their checksums and TCP
 * segments left to do (IFF_VNET_HDR).
 */
#pragma once

#include "backend/net/net.h"

struct loop;

/* The interface must exist and be ours to open, or we must have the right to make it. */
int net_tap_open(struct loop *loop, const char *name, struct net **ret_net)
    __attribute__((warn_unused_result));
