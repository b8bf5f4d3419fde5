/*
 * ACPI tables: the board as a stock operating system wants it described (ACPI 6.3). The bytes are
 * made here; the facts in them come from the machine.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "memory/memory.h"

struct acpi_facts {
    unsigned cpus;
    uint32_t io_apic_address, local_apic_address;
    uint8_t io_apic_id;
    uint16_t pm_event_port;   /* PM1a event block, 4 bytes */
    uint16_t pm_control_port; /* PM1a control block, 2 bytes */
    uint16_t pm_timer_port;   /* 4 bytes, 24 bit at 3.579545 MHz; 0: none */
    uint16_t reset_port;
    uint8_t reset_value;
    uint8_t sci_irq;
    uint8_t sleep_type_s5;  /* SLP_TYP of \_S5 */
    uint64_t mmconfig_base; /* 0: none */
    uint8_t mmconfig_buses;
    uint64_t pci_window_base, pci_window_size;     /* 32-bit memory window of the root bridge */
    uint64_t pci_window64_base, pci_window64_size; /* 0: none */
    /* PCI INTx: device d, pin p (0..3) is GSI pci_gsi_base + (d + p) % 4 */
    uint8_t pci_gsi_base;
    bool has_i8042;
    bool has_vga;
    uint16_t serial_port; /* 0: none; IRQ 4 */
    uint32_t hpet_base;   /* 0: none */
    uint32_t hpet_size, hpet_block_id;
};

/*
 * Write all tables into [base, base + size) of guest memory: RSDP, XSDT, FADT, FACS, DSDT, MADT,
 * MCFG (if mmconfig_base), HPET (if hpet_base). -ENOSPC if they do not fit.
 */
int acpi_write(struct memory *memory, const struct acpi_facts *facts, gpa_t base, uint64_t size,
               gpa_t *ret_rsdp) __attribute__((warn_unused_result));
