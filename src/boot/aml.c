/* The AML encoder. ACPI 6.3, 20.2 (grammar) and 6.4 (resource descriptors). */
#include "boot/aml.h"

#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"

enum {
    OP_ZERO = 0x00,
    OP_ONE = 0x01,
    OP_NAME = 0x08,
    OP_BYTE = 0x0a,
    OP_WORD = 0x0b,
    OP_DWORD = 0x0c,
    OP_STRING = 0x0d,
    OP_QWORD = 0x0e,
    OP_SCOPE = 0x10,
    OP_BUFFER = 0x11,
    OP_PACKAGE = 0x12,
    OP_EXTENDED = 0x5b,
    OP_EXTENDED_DEVICE = 0x82,

    RESOURCE_IRQ = 0x22, /* small descriptor 4, 2 bytes */
    RESOURCE_PORTS = 0x47,
    RESOURCE_END = 0x79,
    RESOURCE_DWORD_WINDOW = 0x87,
    RESOURCE_WORD_WINDOW = 0x88,
    RESOURCE_QWORD_WINDOW = 0x8a,

    WINDOW_MEMORY = 0,
    WINDOW_PORTS = 1,
    WINDOW_BUS = 2,
    WINDOW_CONSUMER = 1 << 0, /* the device itself answers; clear: a bridge passes it on */
    WINDOW_FIXED = 3 << 2,    /* both ends */
    WINDOW_PORTS_ENTIRE = 3,  /* ISA and non-ISA ranges */
    WINDOW_MEMORY_WRITABLE = 1,
};

static void put_byte(struct aml *aml, unsigned byte)
{
    acpi_table_number(aml->table, byte, 1);
}

static void put_name(struct aml *aml, const char *name)
{
    size_t length = strlen(name);
    ASSERT(length == (name[0] == '\\' ? 5 : 4));
    acpi_table_put(aml->table, name, length);
}

static void open_block(struct aml *aml)
{
    ASSERT(aml->depth < AML_DEPTH_MAX);
    aml->open[aml->depth++] = aml->table->size;
}

/*
 * PkgLength (20.2.4) counts itself. One byte holds up to 63; with more bytes the first holds the
 * count of the others and the low 4 bits.
 */
void aml_end(struct aml *aml)
{
    ASSERT(aml->depth > 0);
    size_t start = aml->open[--aml->depth];
    size_t size = aml->table->size - start;
    uint8_t encoded[4];
    size_t count = 1;
    if (size + 1 < 1 << 6) {
        encoded[0] = (uint8_t)(size + 1);
    } else {
        for (count = 2; size + count >= (size_t)1 << (4 + 8 * (count - 1)); count++) {
            ASSERT(count < sizeof encoded);
        }
        size += count;
        encoded[0] = (uint8_t)((count - 1) << 6 | (size & 0xf));
        for (size_t i = 1; i < count; i++) {
            encoded[i] = (uint8_t)(size >> (4 + 8 * (i - 1)));
        }
    }
    acpi_table_insert(aml->table, start, encoded, count);
}

void aml_scope(struct aml *aml, const char *name)
{
    put_byte(aml, OP_SCOPE);
    open_block(aml);
    put_name(aml, name);
}

void aml_device(struct aml *aml, const char *name)
{
    put_byte(aml, OP_EXTENDED);
    put_byte(aml, OP_EXTENDED_DEVICE);
    open_block(aml);
    put_name(aml, name);
}

void aml_package(struct aml *aml, uint8_t count)
{
    put_byte(aml, OP_PACKAGE);
    open_block(aml);
    put_byte(aml, count);
}

void aml_name(struct aml *aml, const char *name)
{
    put_byte(aml, OP_NAME);
    put_name(aml, name);
}

void aml_integer(struct aml *aml, uint64_t value)
{
    static const struct {
        uint64_t max;
        uint8_t op, size;
    } forms[] = {{1, 0, 0},
                 {UINT8_MAX, OP_BYTE, 1},
                 {UINT16_MAX, OP_WORD, 2},
                 {UINT32_MAX, OP_DWORD, 4},
                 {UINT64_MAX, OP_QWORD, 8}};
    size_t i = 0;
    while (value > forms[i].max) {
        i++;
    }
    put_byte(aml, forms[i].size ? forms[i].op : (value ? OP_ONE : OP_ZERO));
    acpi_table_number(aml->table, value, forms[i].size);
}

void aml_string(struct aml *aml, const char *string)
{
    put_byte(aml, OP_STRING);
    acpi_table_put(aml->table, string, strlen(string) + 1);
}

static unsigned hex_digit(char digit)
{
    return digit <= '9' ? (unsigned)(digit - '0') : (unsigned)(digit - 'A' + 10);
}

/* Three letters of 5 bits and four hex digits, most significant byte first (19.3.4). */
void aml_eisa_id(struct aml *aml, const char *id)
{
    ASSERT(strlen(id) == 7);
    uint32_t value = 0;
    for (int i = 0; i < 3; i++) {
        value = value << 5 | (uint32_t)(id[i] - '@');
    }
    for (int i = 3; i < 7; i++) {
        value = value << 4 | hex_digit(id[i]);
    }
    aml_integer(aml, __builtin_bswap32(value));
}

void aml_name_integer(struct aml *aml, const char *name, uint64_t value)
{
    aml_name(aml, name);
    aml_integer(aml, value);
}

void aml_name_eisa_id(struct aml *aml, const char *name, const char *id)
{
    aml_name(aml, name);
    aml_eisa_id(aml, id);
}

/* A buffer whose size is a word that is filled in at the end. */
void aml_resources(struct aml *aml)
{
    put_byte(aml, OP_BUFFER);
    open_block(aml);
    put_byte(aml, OP_WORD);
    acpi_table_zeros(aml->table, 2);
}

void aml_resources_end(struct aml *aml)
{
    put_byte(aml, RESOURCE_END);
    put_byte(aml, 0); /* no checksum */
    size_t start = aml->open[aml->depth - 1];
    if (!aml->table->failed) {
        size_t size = aml->table->size - start - 3;
        ASSERT(size <= UINT16_MAX);
        store_le16(aml->table->bytes + start + 1, (uint16_t)size);
    }
    aml_end(aml);
}

void aml_ports(struct aml *aml, uint16_t port, uint8_t count)
{
    put_byte(aml, RESOURCE_PORTS);
    put_byte(aml, 1); /* decodes 16 address bits */
    acpi_table_number(aml->table, port, 2);
    acpi_table_number(aml->table, port, 2);
    put_byte(aml, 1); /* alignment */
    put_byte(aml, count);
}

void aml_irq(struct aml *aml, unsigned irq)
{
    ASSERT(irq < 16);
    put_byte(aml, RESOURCE_IRQ);
    acpi_table_number(aml->table, 1u << irq, 2);
}

/* An address space descriptor with fields of 2, 4 or 8 bytes (6.4.3.5). */
static void put_window(struct aml *aml, unsigned tag, unsigned width, unsigned type,
                       unsigned general, unsigned specific, uint64_t first, uint64_t last)
{
    put_byte(aml, tag);
    acpi_table_number(aml->table, 3 + 5 * width, 2);
    put_byte(aml, type);
    put_byte(aml, general | WINDOW_FIXED);
    put_byte(aml, specific);
    acpi_table_number(aml->table, 0, width); /* granularity */
    acpi_table_number(aml->table, first, width);
    acpi_table_number(aml->table, last, width);
    acpi_table_number(aml->table, 0, width); /* translation */
    acpi_table_number(aml->table, last - first + 1, width);
}

/* In 4-byte fields if they suffice: 32-bit guests skip the others. */
static void put_memory(struct aml *aml, unsigned general, uint64_t base, uint64_t size)
{
    uint64_t last = base + size - 1;
    bool is_low = last <= UINT32_MAX;
    put_window(aml, is_low ? RESOURCE_DWORD_WINDOW : RESOURCE_QWORD_WINDOW, is_low ? 4 : 8,
               WINDOW_MEMORY, general, WINDOW_MEMORY_WRITABLE, base, last);
}

void aml_memory(struct aml *aml, uint64_t base, uint64_t size)
{
    put_memory(aml, WINDOW_CONSUMER, base, size);
}

void aml_window_bus(struct aml *aml, uint16_t first, uint16_t last)
{
    put_window(aml, RESOURCE_WORD_WINDOW, 2, WINDOW_BUS, 0, 0, first, last);
}

void aml_window_ports(struct aml *aml, uint16_t first, uint16_t last)
{
    put_window(aml, RESOURCE_WORD_WINDOW, 2, WINDOW_PORTS, 0, WINDOW_PORTS_ENTIRE, first, last);
}

void aml_window_memory(struct aml *aml, uint64_t base, uint64_t size)
{
    put_memory(aml, 0, base, size);
}
