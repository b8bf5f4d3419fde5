/*
 * Inside doppel-net, the network helper of one machine: the keeper (main.c), the user-mode network
 * (user.c) and the jail of its process (jail.c).
 */
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>

enum { FORWARDS_MAX = 48 };

/* A port of the host that leads to one of the guest. */
struct forward {
    bool is_udp;
    struct in_addr address; /* of the host */
    unsigned host_port, guest_port;
};

struct user_network {
    unsigned mtu;
    struct forward forwards[FORWARDS_MAX];
    size_t forward_count;
};

/*
 * Be the network at the other end of `wire`, until that ends. `control` leads to the keeper.
 * Returns only if it cannot begin, which the keeper was told.
 */
void user_network_run(const struct user_network *network, int wire, int control);

/*
 * No files, no programs, no rights, no sockets but those of the Internet. Opening any file asks the
 * keeper, through `control`, for the one that names the host's DNS servers, and yields that.
 */
int net_jail_enter(int control) __attribute__((warn_unused_result));
