/*
 * The DSDT: the devices that cannot be found by probing. The PCI root bridge with its windows and
 * interrupt routing, the fixed devices of a PC, the processors, and soft-off. ISA devices stand
 * below the root bridge, whose port windows they use.
 */
#include <stdio.h>

#include "boot/acpi_internal.h"
#include "boot/aml.h"

enum {
    ISA_IRQ_PIT = 0,
    ISA_IRQ_KEYBOARD = 1,
    ISA_IRQ_SERIAL = 4,
    ISA_IRQ_RTC = 8,
    PORT_CONFIGURATION = 0xcf8, /* 8 ports of the root bridge itself */
};

/* _PRT: for each slot and pin (slot in the upper word, any function), the GSI. */
static void describe_routing(struct aml *aml, const struct acpi_facts *facts)
{
    aml_name(aml, "_PRT");
    aml_package(aml, ACPI_PCI_SLOTS * ACPI_PIN_COUNT);
    for (unsigned slot = 0; slot < ACPI_PCI_SLOTS; slot++) {
        for (unsigned pin = 0; pin < ACPI_PIN_COUNT; pin++) {
            aml_package(aml, 4);
            aml_integer(aml, slot << 16 | 0xffff);
            aml_integer(aml, pin);
            aml_integer(aml, 0); /* the next field is a GSI, not an index in a link device */
            aml_integer(aml, facts->pci_gsi_base + (slot + pin) % ACPI_PIN_COUNT);
            aml_end(aml);
        }
    }
    aml_end(aml);
}

static void describe_bridge_windows(struct aml *aml, const struct acpi_facts *facts)
{
    uint16_t buses = facts->mmconfig_base ? facts->mmconfig_buses : 1;
    aml_name(aml, "_CRS");
    aml_resources(aml);
    aml_window_bus(aml, 0, (uint16_t)(buses - 1));
    aml_ports(aml, PORT_CONFIGURATION, 8);
    aml_window_ports(aml, 0, PORT_CONFIGURATION - 1);
    aml_window_ports(aml, PORT_CONFIGURATION + 8, 0xffff);
    if (facts->pci_window_size) {
        aml_window_memory(aml, facts->pci_window_base, facts->pci_window_size);
    }
    if (facts->pci_window64_size) {
        aml_window_memory(aml, facts->pci_window64_base, facts->pci_window64_size);
    }
    aml_resources_end(aml);
}

/* A device with one or two port ranges (count 0: none) and one interrupt. */
struct isa_device {
    const char *name, *id;
    uint16_t port;
    uint8_t count;
    uint16_t second_port;
    uint8_t second_count;
    unsigned irq;
};

static void describe_isa_device(struct aml *aml, const struct isa_device *device)
{
    aml_device(aml, device->name);
    aml_name_eisa_id(aml, "_HID", device->id);
    aml_name(aml, "_CRS");
    aml_resources(aml);
    aml_ports(aml, device->port, device->count);
    if (device->second_count) {
        aml_ports(aml, device->second_port, device->second_count);
    }
    aml_irq(aml, device->irq);
    aml_resources_end(aml);
    aml_end(aml);
}

static void describe_isa_devices(struct aml *aml, const struct acpi_facts *facts)
{
    describe_isa_device(
        aml, &(struct isa_device){
                 .name = "RTC_", .id = "PNP0B00", .port = 0x70, .count = 2, .irq = ISA_IRQ_RTC});
    describe_isa_device(
        aml, &(struct isa_device){
                 .name = "TIMR", .id = "PNP0100", .port = 0x40, .count = 4, .irq = ISA_IRQ_PIT});
    if (facts->has_i8042) {
        /* No mouse: guests then spare themselves the wait for one. */
        describe_isa_device(aml, &(struct isa_device){.name = "KBD_",
                                                      .id = "PNP0303",
                                                      .port = 0x60,
                                                      .count = 1,
                                                      .second_port = 0x64,
                                                      .second_count = 1,
                                                      .irq = ISA_IRQ_KEYBOARD});
    }
    if (facts->serial_port) {
        describe_isa_device(aml, &(struct isa_device){.name = "COM1",
                                                      .id = "PNP0501",
                                                      .port = facts->serial_port,
                                                      .count = 8,
                                                      .irq = ISA_IRQ_SERIAL});
    }
}

static void describe_hpet(struct aml *aml, const struct acpi_facts *facts)
{
    aml_device(aml, "HPET");
    aml_name_eisa_id(aml, "_HID", "PNP0103");
    aml_name(aml, "_CRS");
    aml_resources(aml);
    aml_memory(aml, facts->hpet_base, facts->hpet_size);
    aml_resources_end(aml);
    aml_end(aml);
}

static void describe_root_bridge(struct aml *aml, const struct acpi_facts *facts)
{
    aml_device(aml, "PCI0");
    aml_name_eisa_id(aml, "_HID", "PNP0A08");
    aml_name_eisa_id(aml, "_CID", "PNP0A03");
    aml_name_integer(aml, "_UID", 0);
    aml_name_integer(aml, "_SEG", 0);
    aml_name_integer(aml, "_BBN", 0);
    describe_bridge_windows(aml, facts);
    describe_routing(aml, facts);
    describe_isa_devices(aml, facts);
    if (facts->hpet_base) {
        describe_hpet(aml, facts);
    }
    aml_end(aml);
}

/* PNP0C02 keeps guests from putting anything over MMCONFIG and the power management ports. */
static void describe_reserved(struct aml *aml, const struct acpi_facts *facts)
{
    aml_device(aml, "MBRD");
    aml_name_eisa_id(aml, "_HID", "PNP0C02");
    aml_name(aml, "_CRS");
    aml_resources(aml);
    if (facts->mmconfig_base) {
        aml_memory(aml, facts->mmconfig_base, (uint64_t)facts->mmconfig_buses << 20);
    }
    aml_ports(aml, facts->pm_event_port, 4);
    aml_ports(aml, facts->pm_control_port, 2);
    if (facts->pm_timer_port) {
        aml_ports(aml, facts->pm_timer_port, 4);
    }
    aml_resources_end(aml);
    aml_end(aml);
}

static void describe_processors(struct aml *aml, const struct acpi_facts *facts)
{
    for (unsigned i = 0; i < facts->cpus; i++) {
        char name[16];
        snprintf(name, sizeof name, "C%03X", i);
        aml_device(aml, name);
        aml_name(aml, "_HID");
        aml_string(aml, "ACPI0007");
        aml_name_integer(aml, "_UID", i);
        aml_end(aml);
    }
}

void acpi_describe_devices(struct acpi_table *table, const struct acpi_facts *facts)
{
    struct aml aml = {.table = table};
    aml_scope(&aml, "\\_SB_");
    describe_root_bridge(&aml, facts);
    describe_reserved(&aml, facts);
    describe_processors(&aml, facts);
    aml_end(&aml);
    aml_name(&aml, "\\_S5_");
    aml_package(&aml, 4);
    aml_integer(&aml, facts->sleep_type_s5);
    aml_integer(&aml, facts->sleep_type_s5);
    aml_integer(&aml, 0);
    aml_integer(&aml, 0);
    aml_end(&aml);
}
