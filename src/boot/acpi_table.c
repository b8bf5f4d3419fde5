/* Growing bytes, and the header of ACPI tables. ACPI 6.3, table 5-28. */
#include "boot/acpi_table.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"

enum {
    LENGTH_OFFSET = 4,
    CHECKSUM_OFFSET = 9,
    CAPACITY_FIRST = 1024,
};

void acpi_table_init(struct acpi_table *table, const char *signature, uint8_t revision)
{
    *table = (struct acpi_table){0};
    acpi_table_put(table, signature, 4);
    acpi_table_zeros(table, 4); /* length */
    acpi_table_number(table, revision, 1);
    acpi_table_zeros(table, 1); /* checksum */
    acpi_table_put(table, "DOPPEL", 6);
    acpi_table_put(table, "DOPPELPC", 8);
    acpi_table_number(table, 1, 4); /* OEM revision */
    acpi_table_put(table, "DPPL", 4);
    acpi_table_number(table, 1, 4); /* creator revision */
    ASSERT(table->failed || table->size == ACPI_HEADER_SIZE);
}

void acpi_table_fini(struct acpi_table *table)
{
    free(table->bytes);
    *table = (struct acpi_table){0};
}

void acpi_table_insert(struct acpi_table *table, size_t offset, const void *data, size_t size)
{
    if (table->failed) {
        return;
    }
    if (size > table->capacity - table->size) {
        size_t capacity = table->capacity ? table->capacity * 2 : CAPACITY_FIRST;
        capacity = capacity - table->size < size ? table->size + size : capacity;
        uint8_t *bytes = realloc(table->bytes, capacity);
        if (!bytes) {
            table->failed = true;
            return;
        }
        table->bytes = bytes;
        table->capacity = capacity;
    }
    ASSERT(offset <= table->size);
    memmove(table->bytes + offset + size, table->bytes + offset, table->size - offset);
    memcpy(table->bytes + offset, data, size);
    table->size += size;
}

void acpi_table_put(struct acpi_table *table, const void *data, size_t size)
{
    acpi_table_insert(table, table->size, data, size);
}

void acpi_table_number(struct acpi_table *table, uint64_t value, size_t size)
{
    ASSERT(size <= sizeof value);
    acpi_table_put(table, &value, size);
}

void acpi_table_zeros(struct acpi_table *table, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        acpi_table_number(table, 0, 1);
    }
}

int acpi_table_finish(struct acpi_table *table)
{
    if (table->failed) {
        return fail(-ENOMEM, "no memory for an ACPI table");
    }
    store_le32(table->bytes + LENGTH_OFFSET, (uint32_t)table->size);
    table->bytes[CHECKSUM_OFFSET] = 0;
    table->bytes[CHECKSUM_OFFSET] = acpi_checksum(table->bytes, table->size);
    return 0;
}

uint8_t acpi_checksum(const void *bytes, size_t size)
{
    const uint8_t *from = bytes;
    unsigned sum = 0;
    for (size_t i = 0; i < size; i++) {
        sum += from[i];
    }
    return (uint8_t)(0 - sum);
}
