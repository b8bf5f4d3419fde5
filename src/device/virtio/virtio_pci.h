/*
 * The PCI transport (virtio 1.2 section 4.1), modern only: one 64-bit memory BAR with the four
 * register blocks, MSI-X with a vector for each queue and one for the configuration, or INTx.
 */
#pragma once

#include "device/virtio/virtio.h"

struct pci_bus;

enum {
    VIRTIO_PCI_VENDOR = 0x1af4,
    VIRTIO_PCI_DEVICE = 0x1040, /* plus the device type */
};

/*
 * Plug the device into `slot`; from now on the transport belongs to the device, and
 * device_free() pulls it. -EBUSY if the slot is taken. Before any vCPU runs.
 */
int virtio_pci_attach(struct virtio_device *virtio, struct pci_bus *pci, unsigned slot)
    __attribute__((warn_unused_result));
