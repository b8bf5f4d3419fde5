/* Parsing --net and -p; every refusal says what would be right. */
#include "machine/config_net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/net/net.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"
#include "machine/resource.h"

enum { VSOCK_CID_FIRST = 3 };

static bool parse_number(const char *text, unsigned long minimum, unsigned long maximum,
                         uint16_t *ret_number)
{
    char *end = NULL;
    errno = 0;
    unsigned long number = strtoul(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno || number < minimum || number > maximum) {
        return false;
    }
    *ret_number = (uint16_t)number;
    return true;
}

/* 0 to 2 are taken, and the last one means anybody (virtio 1.2, 5.10.4). */
static bool parse_cid(const char *text, uint32_t *ret_cid)
{
    char *end = NULL;
    errno = 0;
    unsigned long cid = strtoul(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno || cid < VSOCK_CID_FIRST || cid >= UINT32_MAX) {
        return false;
    }
    *ret_cid = (uint32_t)cid;
    return true;
}

/* 52:54:00:12:34:56; not one of many (the first byte's lowest bit), and not all zeros. */
static bool parse_address(const char *text, uint8_t ret_address[6])
{
    static const uint8_t none[6];
    unsigned bytes[6];
    int end = 0;
    if (strlen(text) != 17 ||
        sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%n", &bytes[0], &bytes[1], &bytes[2], &bytes[3],
               &bytes[4], &bytes[5], &end) != 6 ||
        end != 17) {
        return false;
    }
    for (unsigned i = 0; i < 6; i++) {
        ret_address[i] = (uint8_t)bytes[i];
    }
    return !(ret_address[0] & 1) && memcmp(ret_address, none, sizeof none);
}

static const char *target_key(enum net_kind kind)
{
    return kind == NET_TAP ? "ifname" : kind == NET_SOCKET ? "path" : NULL;
}

static int apply_key(struct net_config *config, const struct resource_key *key, const char **target)
{
    const char *wanted = target_key(config->kind);
    const char *value = key->value ? key->value : "";
    if (!strcmp(key->name, "mac")) {
        if (!parse_address(value, config->address)) {
            return fail(-EINVAL,
                        "--net: mac=%s is no address of one interface, such as "
                        "52:54:00:12:34:56",
                        value);
        }
        config->has_address = true;
    } else if (!strcmp(key->name, "mtu") && config->kind != NET_TAP) {
        if (!parse_number(value, 1280, NET_MTU_MAX, &config->mtu)) {
            return fail(-EINVAL, "--net: mtu is a number from 1280 to %d", NET_MTU_MAX);
        }
    } else if (wanted && !strcmp(key->name, wanted)) {
        *target = value;
    } else {
        return fail(-EINVAL, "--net: '%s' does not go with this kind of network", key->name);
    }
    return 0;
}

static int apply(struct net_config *config, const struct resource *resource)
{
    static const char *const kinds[] = {
        [NET_NONE] = "none", [NET_USER] = "user", [NET_TAP] = "tap", [NET_SOCKET] = "socket"};
    struct net_config net = {.kind = NET_UNSAID};
    const char *target = NULL;
    for (unsigned i = NET_NONE; i < ARRAY_SIZE(kinds); i++) {
        if (!strcmp(resource->value, kinds[i])) {
            net.kind = (enum net_kind)i;
        }
    }
    if (net.kind == NET_UNSAID) {
        return fail(-EINVAL,
                    "--net: '%s' is not one of none, user, tap,ifname=NAME, "
                    "socket,path=PATH",
                    resource->value);
    }
    for (size_t i = 0; i < resource->key_count; i++) {
        int r = apply_key(&net, &resource->keys[i], &target);
        if (r) {
            return r;
        }
    }
    if (target_key(net.kind) && (!target || !*target)) {
        return fail(-EINVAL, "--net %s needs %s=...", resource->value, target_key(net.kind));
    }
    free(config->target);
    config->target = target ? strdup(target) : NULL;
    ASSERT(!target || config->target);
    config->kind = net.kind;
    config->mtu = net.mtu;
    config->has_address = net.has_address;
    memcpy(config->address, net.address, sizeof net.address);
    return 0;
}

int net_config_set(struct net_config *config, const char *value)
{
    static const char *const known[] = {"ifname", "path", "mtu", "mac", NULL};
    struct resource resource;
    int r = resource_parse("net", value, known, &resource);
    if (r == 0) {
        r = apply(config, &resource);
        resource_fini(&resource);
    }
    return r;
}

/* [ADDRESS:]HOST:GUEST[/tcp|/udp] */
static bool parse_forward(char *text, struct forward_config *forward)
{
    struct in_addr address;
    char *slash = strchr(text, '/');
    if (slash) {
        *slash = '\0';
        forward->is_udp = !strcmp(slash + 1, "udp");
        if (!forward->is_udp && strcmp(slash + 1, "tcp")) {
            return false;
        }
    }
    char *guest = strrchr(text, ':');
    if (!guest) {
        return false;
    }
    *guest++ = '\0';
    char *host = strrchr(text, ':');
    const char *where = "127.0.0.1";
    if (host) {
        *host++ = '\0';
        where = text;
    } else {
        host = text;
    }
    if (inet_pton(AF_INET, where, &address) != 1 || strlen(where) >= sizeof forward->address) {
        return false;
    }
    strcpy(forward->address, where);
    return parse_number(host, 1, 65535, &forward->host_port) &&
           parse_number(guest, 1, 65535, &forward->guest_port);
}

int net_config_forward(struct net_config *config, const char *value)
{
    struct forward_config forward = {0};
    if (config->forward_count == NET_FORWARDS_MAX) {
        return fail(-EINVAL, "-p: at most %d ports", NET_FORWARDS_MAX);
    }
    char *text = strdup(value);
    ASSERT(text);
    bool good = parse_forward(text, &forward);
    free(text);
    if (!good) {
        return fail(-EINVAL,
                    "-p: '%s' is not [ADDRESS:]HOST-PORT:GUEST-PORT[/udp], such as "
                    "8080:80; the address is IPv4",
                    value);
    }
    config->forwards[config->forward_count++] = forward;
    return 0;
}

enum net_kind net_config_kind(const struct net_config *config)
{
    if (config->kind != NET_UNSAID) {
        return config->kind;
    }
    return config->forward_count ? NET_USER : NET_NONE;
}

int net_config_check(const struct net_config *config)
{
    if (config->forward_count && net_config_kind(config) != NET_USER) {
        return fail(-EINVAL, "-p forwards ports of the user-mode network only (--net user)");
    }
    return 0;
}

void net_config_fini(struct net_config *config)
{
    free(config->target);
    *config = (struct net_config){0};
}

static int vsock_apply(struct vsock_config *config, const struct resource *resource)
{
    const char *path = NULL;
    uint32_t cid = VSOCK_CID_FIRST;
    for (size_t i = 0; i < resource->key_count; i++) {
        const struct resource_key *key = &resource->keys[i];
        const char *value = key->value ? key->value : "";
        if (!strcmp(key->name, "path")) {
            path = value;
        } else if (!parse_cid(value, &cid)) {
            return fail(-EINVAL, "--vsock: cid is a number from 3 to 4294967294");
        }
    }
    if (!path || !*path) {
        return fail(-EINVAL, "--vsock needs path=PATH");
    }
    free(config->path);
    config->path = strdup(path);
    ASSERT(config->path);
    config->cid = cid;
    return 0;
}

int vsock_config_set(struct vsock_config *config, const char *value)
{
    static const char *const known[] = {"path", "cid", NULL};
    struct resource resource;
    char *text;
    ASSERT(asprintf(&text, ",%s", value) > 0); /* it has keys only */
    int r = resource_parse("vsock", text, known, &resource);
    free(text);
    if (r == 0) {
        r = vsock_apply(config, &resource);
        resource_fini(&resource);
    }
    return r;
}

void vsock_config_fini(struct vsock_config *config)
{
    free(config->path);
    *config = (struct vsock_config){0};
}
