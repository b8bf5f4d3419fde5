/* Network backends: what they have in common, and the network that is none. */
#include "backend/net/net.h"

bool net_send(struct net *net, const struct net_frame *frame)
{
    if (!net_is_up(net) || frame->length < NET_HEADER_SIZE || frame->length > NET_FRAME_MAX) {
        return true;
    }
    return net->ops->send(net, frame);
}

void net_flush(struct net *net)
{
    if (net) {
        net->ops->flush(net);
    }
}

void net_ready(struct net *net)
{
    if (net) {
        net->ops->ready(net);
    }
}

void net_again(struct net *net)
{
    if (net) {
        net->ops->again(net);
    }
}

void net_set_offloads(struct net *net, unsigned takes)
{
    if (net && net->ops->set_offloads) {
        net->ops->set_offloads(net, takes);
    }
}

bool net_is_up(const struct net *net)
{
    return net && atomic_load_explicit(&net->is_up, memory_order_relaxed);
}

void net_connect(struct net *net, const struct net_receiver *receiver)
{
    if (net) {
        net->receiver = *receiver;
    }
}

void net_free(struct net *net)
{
    if (net) {
        net->ops->free(net);
    }
}
