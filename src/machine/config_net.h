/*
 * The network of a machine as the user said it: --net and -p.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum net_kind {
    NET_UNSAID, /* none, unless ports are forwarded */
    NET_NONE,
    NET_USER,   /* NAT in a process of its own, with no rights */
    NET_TAP,    /* an interface of the host's kernel */
    NET_SOCKET, /* frames on a Unix socket, such as passt's */
};

enum { NET_FORWARDS_MAX = 32, NET_USER_MTU = 65520 };

struct forward_config {
    bool is_udp;
    char address[16]; /* of the host, IPv4 */
    uint16_t host_port, guest_port;
};

struct net_config {
    enum net_kind kind;
    char *target; /* NET_TAP: the interface; NET_SOCKET: the path */
    uint16_t mtu; /* 0: not said */
    bool has_address;
    uint8_t address[6];
    struct forward_config forwards[NET_FORWARDS_MAX];
    size_t forward_count;
};

/* Connections between the guest and programs of the host. */
struct vsock_config {
    char *path; /* NULL: none */
    uint32_t cid;
};

/* The values of the options. A failing one leaves the configuration as it was. */
int net_config_set(struct net_config *config, const char *value)
    __attribute__((warn_unused_result));
int net_config_forward(struct net_config *config, const char *value)
    __attribute__((warn_unused_result));
int net_config_check(const struct net_config *config) __attribute__((warn_unused_result));
void net_config_fini(struct net_config *config);

int vsock_config_set(struct vsock_config *config, const char *value)
    __attribute__((warn_unused_result));
void vsock_config_fini(struct vsock_config *config);

/* What it comes to: NET_UNSAID is resolved. */
enum net_kind net_config_kind(const struct net_config *config);
