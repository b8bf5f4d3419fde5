/*
 * Test only: a hub whose connections are socket pairs of the test's own. hub_connect() is noted,
 * and answered when the test says so; hub_wake() is noted, too, and test_hub_run() does the work.
 */
#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include "backend/net/stream.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/loop.h"

struct test_hub {
    struct hub hub;
    unsigned connects, wakes;
    uint32_t port, token; /* of the last hub_connect() */
};

static inline void test_hub_connect(struct hub *hub, uint32_t port, uint32_t token)
{
    struct test_hub *test = CONTAINER_OF(hub, struct test_hub, hub);
    test->connects++;
    test->port = port;
    test->token = token;
}

static inline void test_hub_wake(struct hub *hub)
{
    CONTAINER_OF(hub, struct test_hub, hub)->wakes++;
}

static inline void test_hub_free(struct hub *hub)
{
    (void)hub; /* the test's own */
}

static inline void test_hub_init(struct test_hub *test, struct loop *loop)
{
    static const struct hub_ops ops = {test_hub_connect, test_hub_wake, test_hub_free};
    *test = (struct test_hub){.hub = {.ops = &ops, .loop = loop}};
}

static inline void test_hub_stop(void *owner)
{
    loop_stop(owner);
}

/* All that is due, and all that follows from it. */
static inline void test_hub_run(struct test_hub *test)
{
    for (unsigned i = 0; i < 4 || (test->wakes && i < 50); i++) {
        test->wakes = 0;
        test->hub.receiver.work(test->hub.receiver.owner);
        loop_post(test->hub.loop, test_hub_stop, test->hub.loop);
        ASSERT(!loop_run(test->hub.loop));
    }
}

/* One end for the device; returns the other. */
static inline int test_hub_pair(int *ret_device_end)
{
    int pair[2];
    ASSERT(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair));
    *ret_device_end = pair[0];
    return pair[1];
}

/* Somebody connects to the hub. */
static inline int test_hub_arrive(struct test_hub *test)
{
    int device_end, fd = test_hub_pair(&device_end);
    test->hub.receiver.arrived(test->hub.receiver.owner, device_end);
    return fd;
}

/* The last hub_connect() succeeds. */
static inline int test_hub_accept(struct test_hub *test)
{
    int device_end, fd = test_hub_pair(&device_end);
    test->hub.receiver.connected(test->hub.receiver.owner, test->token, device_end);
    return fd;
}
