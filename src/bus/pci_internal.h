/* Shared by pci.c (functions), pci_bus.c (the bus) and pci_msix.c. */
#pragma once

#include <pthread.h>

#include "bus/pci.h"

struct visitor;

struct pci_bus {
    pthread_mutex_t lock; /* guards configuration space of all functions, and `functions` */
    struct bus *bus;
    struct msi_target msi;
    struct pci_function *functions[PCI_SLOTS];
    pthread_mutex_t intx_lock; /* guards the two below; taken inside a function's lock */
    struct irq_line intx[4];
    unsigned intx_count[4]; /* functions that drive the line */
};

/* The function's pin went up or down. With the function's lock held. */
void pci_bus_intx(struct pci_bus *pci, unsigned slot, bool level);
/* Map and unmap BARs as the configuration registers say. With the PCI bus's lock held. */
void pci_bus_update_bars(struct pci_bus *pci);

void pci_function_unmap_moved(struct pci_function *function, bool all);
void pci_function_map(struct pci_function *function);
/* Read or write `size` bytes (1, 2, 4; within PCI_CONFIG_SIZE). With the PCI bus's lock held. */
uint32_t pci_function_read(struct pci_function *function, unsigned offset, unsigned size);
void pci_function_write(struct pci_function *function, unsigned offset, unsigned size,
                        uint32_t value);
/* Drive INTx as the model's level and the control bits say. With the function's lock held. */
void pci_function_update_intx(struct pci_function *function);

void pci_msix_reset(struct pci_function *function);
/* Send what became deliverable. With the function's lock held. */
void pci_msix_flush(struct pci_function *function);
void pci_msix_visit(struct pci_function *function, struct visitor *v);
