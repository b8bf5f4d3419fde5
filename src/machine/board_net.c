/* From --net to a backend and a virtio-net on it. */
#include "machine/board_net.h"

#include <stdio.h>
#include <string.h>

#include "backend/net/helper.h"
#include "backend/net/stream.h"
#include "backend/net/tap.h"
#include "base/assert.h"
#include "base/error.h"
#include "device/virtio/net.h"
#include "device/virtio/vsock.h"
#include "machine/report.h"
#include "machine/vm_internal.h"

static void on_report(void *owner, const char *text)
{
    const struct vm *vm = owner;
    report("doppel: %s: %s\n", vm->config->name, text);
}

static int open_helper(struct vm *vm, const char *const *arguments, bool is_checked, uint16_t mtu,
                       struct net **ret_net)
{
    const struct net_helper_config config = {
        .loop = vm->loop,
        .arguments = arguments,
        .is_checked = is_checked,
        .mtu = mtu,
        .report = on_report,
        .owner = vm,
    };
    return net_helper_open(&config, ret_net, &vm->board.net_channel);
}

static int open_user(struct vm *vm, struct net **ret_net)
{
    const struct net_config *config = &vm->config->net;
    uint16_t mtu = config->mtu ? config->mtu : NET_USER_MTU;
    char texts[NET_FORWARDS_MAX + 1][64];
    const char *arguments[NET_FORWARDS_MAX + 3] = {"user", texts[0]};
    snprintf(texts[0], sizeof texts[0], "mtu=%u", mtu);
    for (size_t i = 0; i < config->forward_count; i++) {
        const struct forward_config *forward = &config->forwards[i];
        snprintf(texts[i + 1], sizeof texts[i + 1], "forward=%s:%s:%u:%u",
                 forward->is_udp ? "udp" : "tcp", forward->address, forward->host_port,
                 forward->guest_port);
        arguments[i + 2] = texts[i + 1];
    }
    return open_helper(vm, arguments, true, mtu, ret_net);
}

static int open_backend(struct vm *vm, struct net **ret_net)
{
    const struct net_config *config = &vm->config->net;
    const char *const socket[] = {"socket", config->target, NULL};
    switch (net_config_kind(config)) {
    case NET_USER:
        return open_user(vm, ret_net);
    case NET_TAP:
        return net_tap_open(vm->loop, config->target, ret_net);
    case NET_SOCKET:
        return open_helper(vm, socket, false, config->mtu, ret_net);
    case NET_NONE:
    case NET_UNSAID:
        break;
    }
    *ret_net = NULL;
    return 0;
}

/* Given out by us, under QEMU's prefix; the same each time for a machine of the same name. */
static void choose_address(const struct vm_config *config, uint8_t ret_address[NET_ADDRESS_SIZE])
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (const char *at = config->name; *at; at++) {
        hash = (hash ^ (uint8_t)*at) * 16777619u;
    }
    const uint8_t address[NET_ADDRESS_SIZE] = {
        0x52, 0x54, 0, (uint8_t)(hash >> 16), (uint8_t)(hash >> 8), (uint8_t)hash};
    memcpy(ret_address, config->net.has_address ? config->net.address : address, NET_ADDRESS_SIZE);
}

int board_net_new(struct vm *vm, struct virtio_device **ret_virtio)
{
    struct virtio_net_config config = {.memory = vm->memory, .pairs = vm->config->cpus};
    _Static_assert((int)VM_CPUS_MAX <= (int)NET_PAIRS_MAX, "a pair of queues for each CPU");
    *ret_virtio = NULL;
    int r = open_backend(vm, &config.net);
    if (r || !config.net) {
        return r;
    }
    choose_address(vm->config, config.address);
    r = virtio_net_new(&config, "virtio-net0", ret_virtio);
    if (r) {
        net_free(config.net);
    }
    return r;
}

int board_vsock_new(struct vm *vm, struct virtio_device **ret_virtio)
{
    struct virtio_vsock_config config = {.memory = vm->memory, .cid = vm->config->vsock.cid};
    *ret_virtio = NULL;
    if (!vm->config->vsock.path) {
        return 0;
    }
    int r = hub_unix_open(vm->loop, vm->config->vsock.path, &config.hub, &vm->board.vsock_listener,
                          &vm->board.vsock_channel);
    if (r) {
        return r;
    }
    r = virtio_vsock_new(&config, "virtio-vsock0", ret_virtio);
    if (r) {
        hub_free(config.hub);
    }
    return r;
}
