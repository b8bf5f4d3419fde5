/*
 * A network for tests: frames that were sent are kept, and the test gives frames, fills the
 * backend up and pulls the cable. One thread.
 */
#pragma once

#include "backend/net/net.h"

enum { TEST_NET_FRAMES = 64 };

struct test_net_frame {
    uint8_t *bytes;
    size_t length;
    struct net_offload offload;
};

struct test_net {
    struct net net;
    struct test_net_frame sent[TEST_NET_FRAMES]; /* more than fit are counted, not kept */
    size_t sent_count;
    size_t room; /* frames that may still be sent; SIZE_MAX at first */
    unsigned flushes, readies, agains;
    unsigned takes; /* the last net_set_offloads() */
};

/* Up, without offloads. */
struct test_net *test_net_new(void);
/* A complete frame from outside: was it taken? */
bool test_net_give(struct test_net *test, const void *bytes, size_t length);
void test_net_forget(struct test_net *test);
void test_net_plug(struct test_net *test, bool is_up);
