/* The network of a board: the backend that the configuration asks for, and its card. */
#pragma once

struct virtio_device;
struct vm;

/* The card, not plugged in yet; NULL if the machine has no network. */
int board_net_new(struct vm *vm, struct virtio_device **ret_virtio)
    __attribute__((warn_unused_result));
/* The same for --vsock. */
int board_vsock_new(struct vm *vm, struct virtio_device **ret_virtio)
    __attribute__((warn_unused_result));
