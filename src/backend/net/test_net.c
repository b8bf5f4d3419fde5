/* A network for tests. */
#include "backend/net/test_net.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"

static struct test_net *test_of(struct net *net)
{
    return CONTAINER_OF(net, struct test_net, net);
}

static bool test_send(struct net *net, const struct net_frame *frame)
{
    struct test_net *test = test_of(net);
    if (test->room == 0) {
        return false;
    }
    test->room -= test->room == SIZE_MAX ? 0 : 1;
    if (test->sent_count < TEST_NET_FRAMES) {
        struct test_net_frame *kept = &test->sent[test->sent_count];
        kept->bytes = malloc(frame->length);
        ASSERT(kept->bytes);
        memcpy(kept->bytes, frame->bytes, frame->length);
        kept->length = frame->length;
        kept->offload = frame->offload;
    }
    test->sent_count++;
    return true;
}

static void test_flush(struct net *net)
{
    test_of(net)->flushes++;
}

static void test_ready(struct net *net)
{
    test_of(net)->readies++;
}

static void test_again(struct net *net)
{
    test_of(net)->agains++;
}

static void test_set_offloads(struct net *net, unsigned takes)
{
    test_of(net)->takes = takes;
}

static void test_free(struct net *net)
{
    test_net_forget(test_of(net));
    free(test_of(net));
}

static const struct net_ops test_ops = {
    .send = test_send,
    .flush = test_flush,
    .ready = test_ready,
    .again = test_again,
    .set_offloads = test_set_offloads,
    .free = test_free,
};

struct test_net *test_net_new(void)
{
    struct test_net *test = calloc(1, sizeof *test);
    ASSERT(test);
    test->net.ops = &test_ops;
    test->net.is_up = true;
    test->room = SIZE_MAX;
    return test;
}

bool test_net_give(struct test_net *test, const void *bytes, size_t length)
{
    const struct net_frame frame = {.bytes = bytes, .length = length};
    return test->net.receiver.receive(test->net.receiver.owner, &frame, 1) == 1;
}

void test_net_forget(struct test_net *test)
{
    for (size_t i = 0; i < test->sent_count && i < TEST_NET_FRAMES; i++) {
        free(test->sent[i].bytes);
    }
    test->sent_count = 0;
}

void test_net_plug(struct test_net *test, bool is_up)
{
    test->net.is_up = is_up;
    test->net.receiver.link(test->net.receiver.owner, is_up);
}
