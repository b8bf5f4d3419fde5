/* What acpi.c and acpi_dsdt.c share. */
#pragma once

#include "boot/acpi.h"
#include "boot/acpi_table.h"

enum { ACPI_PIN_COUNT = 4, ACPI_PCI_SLOTS = 32, ACPI_CPUS_MAX = 4096 };

/* Put the definition block's AML behind the header of `table`. */
void acpi_describe_devices(struct acpi_table *table, const struct acpi_facts *facts);
