/*
 * PCI functions and the bus they sit on (PCI Local Bus 3.0).
 *
 * Purpose: what every PCI device model has in common: configuration space with write masks, base
 *          address registers that move regions on the bus, the capability list, MSI-X and INTx.
 * Knows:   configuration space. Knows no device and no way in (ports CF8h/CFCh and MMCONFIG are
 *          device/pci/host.h).
 * Threads: configuration accesses run under the PCI bus's lock, and so do the hooks of struct
 *          pci_function_ops. A BAR that moves waits for accesses in progress to its region, so
 *          region handlers, and whoever holds a lock that a region handler takes, must not call
 *          pci_config_*, pci_bus_*, pci_assign, pci_function_reset or pci_function_visit.
 *          pci_msix_notify, pci_msix_enabled and pci_intx_set may be called from any thread with
 *          any device lock held.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bus/bus.h"

struct visitor;
struct pci_bus;
struct pci_function;

/* Registers of a type 0 header that models may want to name. PCI 3.0, 6.1. */
enum {
    PCI_VENDOR = 0x00,
    PCI_DEVICE = 0x02,
    PCI_COMMAND = 0x04,
    PCI_STATUS = 0x06,
    PCI_REVISION = 0x08,
    PCI_CLASS = 0x09,
    PCI_HEADER_TYPE = 0x0e,
    PCI_BAR = 0x10,
    PCI_SUBSYSTEM_VENDOR = 0x2c,
    PCI_SUBSYSTEM = 0x2e,
    PCI_CAPABILITIES = 0x34,
    PCI_INTERRUPT_LINE = 0x3c,
    PCI_INTERRUPT_PIN = 0x3d,
};

enum {
    PCI_COMMAND_PORT = 1u << 0,
    PCI_COMMAND_MEMORY = 1u << 1,
    PCI_COMMAND_MASTER = 1u << 2,
    PCI_COMMAND_INTX_DISABLE = 1u << 10,
    PCI_STATUS_INTERRUPT = 1u << 3,
    PCI_STATUS_CAPABILITIES = 1u << 4,
};

enum {
    PCI_CONFIG_SIZE = 256,
    PCI_BARS = 6,
    PCI_SLOTS = 32,
    PCI_CAPABILITY_VENDOR = 0x09,
    PCI_CAPABILITY_MSIX = 0x11,
    PCI_MSIX_MAX = 256, /* vectors of one function */
};

/* Hooks of a model; each may be NULL. They run under the PCI bus's lock. */
struct pci_function_ops {
    /* These bytes are about to be read: refresh config[] if they are live. */
    void (*config_read)(void *owner, unsigned offset, unsigned size);
    /* These bytes have been written, under their write masks. */
    void (*config_written)(void *owner, unsigned offset, unsigned size);
};

struct pci_bar {
    struct region region; /* base and size while mapped */
    bool is_port, is_64bit, mapped;
    uint64_t size; /* a power of two; 0: no such BAR */
};

struct pci_msix_entry {
    uint32_t address_low, address_high, data, control;
};

struct pci_msix {
    uint8_t capability; /* offset in configuration space; 0: none */
    uint16_t vectors;
    bool enabled, masked; /* message control, for threads without the PCI bus's lock */
    struct pci_msix_entry *entries;
    uint64_t pending[PCI_MSIX_MAX / 64];
};

/* One function. The model embeds it and fills it with the calls below before pci_bus_add(). */
struct pci_function {
    uint8_t config[PCI_CONFIG_SIZE];
    uint8_t writable[PCI_CONFIG_SIZE]; /* bits the guest may write */
    uint8_t initial[PCI_CONFIG_SIZE];  /* what reset restores; taken by pci_bus_add() */
    const struct pci_function_ops *ops;
    void *owner;
    struct pci_bus *bus; /* NULL until pci_bus_add() */
    unsigned slot;
    uint8_t last_capability; /* offset of the newest; 0: none */
    uint8_t next_capability; /* where the next one goes */
    struct pci_bar bars[PCI_BARS];
    struct pci_msix msix;
    bool intx_level, intx_driven; /* what the model asks for; what the line sees */
    bool intx_disabled;           /* command register bit 10 */
    bool master;                  /* command register bit 2 */
    pthread_mutex_t lock;         /* guards msix and intx; innermost */
};

struct pci_identity {
    uint16_t vendor, device, subsystem_vendor, subsystem;
    uint32_t class_code; /* class << 16 | subclass << 8 | interface */
    uint8_t revision;
};

/* `ops` may be NULL. */
void pci_function_init(struct pci_function *function, const struct pci_identity *identity,
                       const struct pci_function_ops *ops, void *owner);
/* Takes the function off its bus first. */
void pci_function_fini(struct pci_function *function);

/* BARs: `size` a power of two, at least 16 (memory) or 4..256 (ports). */
void pci_add_memory_bar(struct pci_function *function, unsigned index, uint64_t size, bool is_64bit,
                        const struct region_ops *ops, void *owner);
void pci_add_port_bar(struct pci_function *function, unsigned index, uint32_t size,
                      const struct region_ops *ops, void *owner);

/*
 * Append a capability: `body` is what follows the two bytes of the list (id and next), read-only
 * unless `writable` (NULL, or a mask of the same size) says otherwise. Returns its offset.
 */
unsigned pci_add_capability(struct pci_function *function, uint8_t id, const void *body,
                            size_t size, const uint8_t *writable);

/* MSI-X with its table and pending bits in a BAR of its own (`vectors` <= PCI_MSIX_MAX). */
void pci_add_msix(struct pci_function *function, unsigned bar, unsigned vectors);
/* Raise a vector: sent, or kept pending while masked. A vector out of range is ignored. */
void pci_msix_notify(struct pci_function *function, unsigned vector);
/* Does the guest use MSI-X now (and so not INTx)? */
bool pci_msix_enabled(struct pci_function *function);

/* Give the function the pin INTA#. Before pci_bus_add(). */
void pci_add_intx(struct pci_function *function);
void pci_intx_set(struct pci_function *function, bool level);

/* Configuration space, BARs, MSI-X and INTx as after power-on: BARs unassigned and disabled. */
void pci_function_reset(struct pci_function *function);
/* All state; after reading, BARs are mapped where the stream says. */
void pci_function_visit(struct pci_function *function, struct visitor *v);

/*
 * Bus 0. `intx` are the four lines that device d, pin p (0..3) shares as intx[(d + p) % 4]; they
 * are driven with the OR of their functions.
 */
struct pci_bus *pci_bus_new(struct bus *bus, struct msi_target msi, const struct irq_line intx[4]);
/* All functions must have been taken off. */
void pci_bus_free(struct pci_bus *pci);

/* Plug `function` in as function 0 of `slot`. -EBUSY with the slot on the trail if taken. */
int pci_bus_add(struct pci_bus *pci, struct pci_function *function, unsigned slot)
    __attribute__((warn_unused_result));
/* Pull it: unmaps and waits for accesses in progress. A function that is on no bus is fine. */
void pci_bus_remove(struct pci_bus *pci, struct pci_function *function);

/* Where BARs may be placed. Sizes of 0: no such window. */
struct pci_windows {
    uint64_t memory_base, memory_size; /* below 4 GiB */
    uint64_t memory64_base, memory64_size;
    uint16_t port_base, port_size;
    uint8_t gsi_base; /* written as gsi_base + (slot + pin) % 4 to the interrupt line register */
};
/*
 * Give every BAR an address and enable decoding, as firmware does before an operating system
 * starts. -ENOSPC with the function on the trail if a window is too small.
 */
int pci_assign(struct pci_bus *pci, const struct pci_windows *windows)
    __attribute__((warn_unused_result));

/*
 * Configuration accesses; `offset` + `size` (1, 2 or 4) may not cross PCI_CONFIG_SIZE's end.
 * Absent functions, other buses and offsets from PCI_CONFIG_SIZE on read all ones.
 */
uint32_t pci_config_read(struct pci_bus *pci, unsigned bus_number, unsigned device_function,
                         unsigned offset, unsigned size);
void pci_config_write(struct pci_bus *pci, unsigned bus_number, unsigned device_function,
                      unsigned offset, unsigned size, uint32_t value);
