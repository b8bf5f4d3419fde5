/*
 * An NVMe controller with one namespace (NVM Express base specification 1.4): a disk as a PCI
 * function that stock systems drive without modules.
 *
 * Offers:  the mandatory commands; write zeroes, deallocate, compare, a volatile write cache;
 *          PRP lists and SGLs; an I/O queue pair for each vCPU with an MSI-X vector of its own;
 *          shadow doorbells, which save the driver most of its register writes.
 * Promises: commands are copied once; whatever a queue, a list or a doorbell says, memory outside
 *          of the guest's RAM is not touched and all loops end; a reset, a pause and a shutdown
 *          wait for what the host is doing.
 * Threads: the device's lock guards everything; completions come on threads of the disk.
 */
#pragma once

#include "base/clock.h"
#include "device/device.h"

struct disk;
struct memory;
struct pci_bus;

struct nvme_config {
    struct memory *memory; /* borrowed */
    struct disk *disk;     /* owned by the device once nvme_new() succeeded */
    struct pci_bus *pci;   /* borrowed */
    unsigned slot;
    unsigned queues;    /* pairs for I/O, 1 to 16; more: 16 */
    const char *serial; /* up to 20 characters are shown to the guest; NULL: empty */
    struct clock clock; /* paces report(); ops == NULL: every error is reported */
    /*
     * The host failed a command (the guest was told of a media error and lives on): `error` is a
     * negative errno. At most one call each second. Any thread, with the device's lock held: it
     * must not call back. NULL: nobody listens.
     */
    void (*report)(void *owner, int error, const char *text);
    void *owner;
};

/* -EBUSY if the slot is taken, -EINVAL if the disk is smaller than one block. */
int nvme_new(const struct nvme_config *config, const char *id, struct device **ret_device)
    __attribute__((warn_unused_result));
