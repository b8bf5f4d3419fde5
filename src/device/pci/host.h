/*
 * The PCI host bridge: the two ways into configuration space (mechanism #1 at ports CF8h/CFCh, PCI
 * 3.0 section 3.2.2.3.2, and the memory-mapped MMCONFIG window), the bridge's own function 00:00.0,
 * and the reset control register at port CF9h, which lies between the two ports.
 */
#pragma once

#include <stdint.h>

#include "bus/pci.h"
#include "device/device.h"

struct pci_host_config {
    struct bus *bus;
    struct pci_bus *pci;
    uint64_t mmconfig_base; /* 1 MiB for bus 0; 0: no window */
    /* The guest asked for a reset through CF9h. On the vCPU's thread; must not wait for it. */
    void (*reset)(void *owner);
    void *owner;
};

/* MMCONFIG's size: 4 KiB for each function of bus 0. */
enum { PCI_MMCONFIG_SIZE = 1 << 20 };

int pci_host_new(const struct pci_host_config *config, struct device **ret_device)
    __attribute__((warn_unused_result));
