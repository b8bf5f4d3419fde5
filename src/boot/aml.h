/*
 * AML, the bytecode of ACPI's DSDT, written by functions that read like ASL (ACPI 6.3, chapter
 * 20). Blocks are opened by aml_scope(), aml_device(), aml_package() and aml_resources(), and
 * closed by aml_end() or aml_resources_end(); lengths are filled in then.
 */
#pragma once

#include "boot/acpi_table.h"

enum { AML_DEPTH_MAX = 8 };

struct aml {
    struct acpi_table *table;
    size_t open[AML_DEPTH_MAX]; /* where the open blocks' lengths go */
    unsigned depth;
};

/* Terms. Names have one segment of 4 characters, with an optional '\' before it. */
void aml_scope(struct aml *aml, const char *name);
void aml_device(struct aml *aml, const char *name);
void aml_end(struct aml *aml);
/* Name (NAME, value): the value is what is written next. */
void aml_name(struct aml *aml, const char *name);

/* Values. */
void aml_integer(struct aml *aml, uint64_t value);
void aml_string(struct aml *aml, const char *string);
/* "PNP0A03" as the compressed integer that _HID and _CID want. */
void aml_eisa_id(struct aml *aml, const char *id);
void aml_package(struct aml *aml, uint8_t count);

/* Names with a value, for what is common. */
void aml_name_integer(struct aml *aml, const char *name, uint64_t value);
void aml_name_eisa_id(struct aml *aml, const char *name, const char *id);

/* ResourceTemplate. ACPI 6.3, 6.4. */
void aml_resources(struct aml *aml);
void aml_resources_end(struct aml *aml);
/* IO (Decode16, port, port, 1, count) */
void aml_ports(struct aml *aml, uint16_t port, uint8_t count);
/* IRQNoFlags () {irq} */
void aml_irq(struct aml *aml, unsigned irq);
/* Memory of a device itself, for any address. */
void aml_memory(struct aml *aml, uint64_t base, uint64_t size);
/* Windows that a bridge passes on: both ends fixed, positive decode. */
void aml_window_bus(struct aml *aml, uint16_t first, uint16_t last);
void aml_window_ports(struct aml *aml, uint16_t first, uint16_t last);
void aml_window_memory(struct aml *aml, uint64_t base, uint64_t size);
