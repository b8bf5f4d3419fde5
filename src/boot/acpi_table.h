/*
 * One ACPI table while it is made: bytes that grow, and the header that all tables share
 * (ACPI 6.3, 5.2.6). Running out of memory is remembered and told once, at the end.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ACPI_HEADER_SIZE = 36 };

struct acpi_table {
    uint8_t *bytes;
    size_t size, capacity;
    bool failed; /* no memory: what is put from here on is lost */
};

/* Begin with a header. `signature` has 4 characters. acpi_table_fini() gives the memory back. */
void acpi_table_init(struct acpi_table *table, const char *signature, uint8_t revision);
void acpi_table_fini(struct acpi_table *table);

void acpi_table_put(struct acpi_table *table, const void *data, size_t size);
/* The low `size` bytes of a number, little-endian. */
void acpi_table_number(struct acpi_table *table, uint64_t value, size_t size);
void acpi_table_zeros(struct acpi_table *table, size_t size);
/* Make room for `size` bytes at `offset` by moving what is behind it, and fill it from `data`. */
void acpi_table_insert(struct acpi_table *table, size_t offset, const void *data, size_t size);

/* Fill in length and checksum. -ENOMEM if anything was lost. */
int acpi_table_finish(struct acpi_table *table) __attribute__((warn_unused_result));

/* What makes the bytes sum up to zero (modulo 256). */
uint8_t acpi_checksum(const void *bytes, size_t size);
