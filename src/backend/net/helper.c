/* The helper's messages: see pass.h. The wire is net_wire; this file only keeps it connected. */
#include "backend/net/helper.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "backend/net/pass.h"
#include "backend/net/program.h"
#include "backend/net/wire.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/loop.h"

/* Belongs to its wire. */
struct net_helper {
    struct net_helper_config config;
    struct net *wire;
    int channel;
    struct watch *watch;
};

static void tell(const struct net_helper *helper, const char *text)
{
    if (helper->config.report) {
        helper->config.report(helper->config.owner, text);
    }
}

static void give_up(struct net_helper *helper)
{
    watch_free(helper->watch);
    helper->watch = NULL;
    tell(helper, "the network helper is gone for good; the network stays down");
}

static int take_message(struct net_helper *helper, struct passed *passed)
{
    int r = 0;
    switch (passed->kind) {
    case PASS_WIRE:
        if (passed->fd >= 0) {
            r = net_wire_attach(helper->wire, passed->fd);
            passed->fd = -1;
        }
        break;
    case PASS_NOTE:
    case PASS_ERROR:
        tell(helper, passed->text);
        break;
    }
    if (passed->fd >= 0) {
        close(passed->fd);
    }
    return r;
}

static void on_message(void *owner, unsigned events)
{
    struct net_helper *helper = owner;
    struct passed passed;
    int r = pass_receive(helper->channel, &passed);
    if (r < 0) {
        give_up(helper);
    } else if (r > 0 && take_message(helper, &passed)) {
        tell(helper, trail_text());
        trail_clear();
    }
}

/* The helper finds out by itself, if it is its own socket; if it is another's, from us. */
static void on_lost(void *owner)
{
    const struct net_helper *helper = owner;
    const char kind = PASS_LOST;
    ssize_t ignored = write(helper->channel, &kind, 1);
    (void)ignored;
}

static void helper_free(void *owner)
{
    struct net_helper *helper = owner;
    watch_free(helper->watch);
    if (helper->channel >= 0) {
        close(helper->channel); /* which ends the helper */
    }
    free(helper);
}

/* The first message: the wire, or why there is none. */
static int await_wire(struct net_helper *helper)
{
    struct passed passed;
    int r = program_await(helper->channel, &passed);
    return r ? r : take_message(helper, &passed);
}

int net_helper_open(const struct net_helper_config *config, struct net **ret_net, int *ret_channel)
{
    struct net_helper *helper = calloc(1, sizeof *helper);
    ASSERT(helper);
    helper->config = *config;
    helper->channel = -1;
    const struct net_wire_config wire = {
        .loop = config->loop,
        .is_checked = config->is_checked,
        .mtu = config->mtu,
        .lost = on_lost,
        .freed = helper_free,
        .owner = helper,
    };
    helper->wire = net_wire_new(&wire);
    CLEANUP(net_free) struct net *net = helper->wire;
    int r = program_start(config->arguments, &helper->channel);
    if (!r) {
        r = await_wire(helper);
    }
    if (!r) {
        r = watch_new(config->loop, helper->channel, LOOP_READABLE, on_message, helper,
                      &helper->watch);
    }
    if (!r) {
        *ret_channel = helper->channel;
        *ret_net = TAKE(net);
    }
    return r;
}
