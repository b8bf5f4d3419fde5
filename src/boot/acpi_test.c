/*
 * ACPI: structure and checksums of every table by our own reading, and, where the ACPI compiler
 * `iasl` is installed, its opinion about each table.
 */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#undef fail /* ours reports errors of the project */
// clang-format on
#include "boot/acpi.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"

enum { BASE = 0xe0000, SIZE = 0x20000, TABLES_MAX = 8 };

static const struct acpi_facts facts = {
    .cpus = 3,
    .io_apic_address = 0xfec00000,
    .local_apic_address = 0xfee00000,
    .io_apic_id = 0,
    .pm_event_port = 0x600,
    .pm_control_port = 0x604,
    .pm_timer_port = 0x608,
    .reset_port = 0xcf9,
    .reset_value = 6,
    .sci_irq = 9,
    .sleep_type_s5 = 5,
    .mmconfig_base = 0xe0000000,
    .mmconfig_buses = 1,
    .pci_window_base = 0xe1000000,
    .pci_window_size = 0x1d000000,
    .pci_window64_base = 0x4000000000,
    .pci_window64_size = 0x1000000000,
    .pci_gsi_base = 16,
    .has_i8042 = true,
    .serial_port = 0x3f8,
    .hpet_base = 0xfed00000,
    .hpet_size = 0x400,
    .hpet_block_id = 0x8086a201,
};

/* All tables of a machine, copied out of its memory. */
struct tables {
    struct {
        uint8_t *bytes;
        size_t size;
    } table[TABLES_MAX];
    size_t count;
    uint8_t rsdp[36];
};

static uint8_t sum(const uint8_t *bytes, size_t size)
{
    uint8_t result = 0;
    for (size_t i = 0; i < size; i++) {
        result = (uint8_t)(result + bytes[i]);
    }
    return result;
}

static const uint8_t *read_table(struct memory *memory, gpa_t gpa, struct tables *tables)
{
    uint8_t header[36];
    assert_in_range(gpa, BASE, BASE + SIZE);
    assert_int_equal(memory_read(memory, gpa, header, sizeof header), 0);
    size_t size = load_le32(header + 4);
    assert_in_range(size, sizeof header, SIZE);
    uint8_t *bytes = malloc(size);
    assert_non_null(bytes);
    assert_int_equal(memory_read(memory, gpa, bytes, size), 0);
    if (memcmp(bytes, "FACS", 4) != 0) {
        assert_int_equal(sum(bytes, size), 0);
    }
    assert_true(tables->count < TABLES_MAX);
    tables->table[tables->count].bytes = bytes;
    tables->table[tables->count++].size = size;
    return bytes;
}

static const uint8_t *find_table(const struct tables *tables, const char *signature)
{
    for (size_t i = 0; i < tables->count; i++) {
        if (memcmp(tables->table[i].bytes, signature, 4) == 0) {
            return tables->table[i].bytes;
        }
    }
    return NULL;
}

/* Write the tables and read them back as an operating system does: from the RSDP on. */
static void make_tables(const struct acpi_facts *from, struct tables *ret_tables)
{
    static const struct memory_range ram[] = {{0, 0x200000}};
    struct memory *memory;
    gpa_t rsdp;
    memset(ret_tables, 0, sizeof *ret_tables);
    assert_int_equal(memory_new(ram, 1, "acpi-test", &memory), 0);
    assert_int_equal(acpi_write(memory, from, BASE, SIZE, &rsdp), 0);
    assert_int_equal(rsdp % 16, 0);
    assert_int_equal(memory_read(memory, rsdp, ret_tables->rsdp, 36), 0);
    const uint8_t *xsdt = read_table(memory, load_le64(ret_tables->rsdp + 24), ret_tables);
    for (size_t i = 36; i < load_le32(xsdt + 4); i += 8) {
        read_table(memory, load_le64(xsdt + i), ret_tables);
    }
    const uint8_t *fadt = find_table(ret_tables, "FACP");
    assert_non_null(fadt);
    assert_int_equal(load_le32(fadt + 36) % 64, 0);
    read_table(memory, load_le32(fadt + 36), ret_tables);
    read_table(memory, load_le64(fadt + 140), ret_tables);
    memory_free(memory);
}

static void free_tables(struct tables *tables)
{
    for (size_t i = 0; i < tables->count; i++) {
        free(tables->table[i].bytes);
    }
}

static void describes_the_board(void **unused)
{
    struct tables tables;
    make_tables(&facts, &tables);
    assert_memory_equal(tables.rsdp, "RSD PTR ", 8);
    assert_int_equal(tables.rsdp[15], 2);
    assert_int_equal(sum(tables.rsdp, 20), 0);
    assert_int_equal(sum(tables.rsdp, 36), 0);

    const uint8_t *fadt = find_table(&tables, "FACP");
    assert_int_equal(load_le32(fadt + 4), 276);
    assert_int_equal(load_le32(fadt + 40), load_le64(fadt + 140));
    assert_int_equal(load_le16(fadt + 46), 9);
    assert_int_equal(load_le32(fadt + 48), 0);
    assert_int_equal(load_le32(fadt + 56), 0x600);
    assert_int_equal(load_le32(fadt + 64), 0x604);
    assert_int_equal(load_le32(fadt + 76), 0x608);
    assert_int_equal(fadt[88], 4);
    assert_int_equal(fadt[89], 2);
    assert_int_equal(fadt[91], 4);
    assert_int_equal(fadt[108], 0x32);
    assert_int_equal(load_le16(fadt + 109), 7); /* legacy devices, 8042, no VGA */
    assert_int_equal(load_le32(fadt + 112) & (1 << 10 | 1 << 20), 1 << 10);
    assert_int_equal(load_le64(fadt + 120), 0xcf9);
    assert_int_equal(fadt[128], 6);
    assert_int_equal(fadt[131], 3);
    assert_int_equal(load_le64(fadt + 152), 0x600);
    assert_int_equal(load_le64(fadt + 176), 0x604);
    assert_int_equal(load_le64(fadt + 212), 0x608);

    const uint8_t *mcfg = find_table(&tables, "MCFG");
    assert_int_equal(load_le32(mcfg + 4), 60);
    assert_int_equal(load_le64(mcfg + 44), 0xe0000000);
    assert_int_equal(mcfg[55], 0);

    const uint8_t *hpet = find_table(&tables, "HPET");
    assert_int_equal(load_le32(hpet + 4), 56);
    assert_int_equal(load_le32(hpet + 36), 0x8086a201);
    assert_int_equal(hpet[40], 0); /* memory */
    assert_int_equal(load_le64(hpet + 44), 0xfed00000);
    free_tables(&tables);
}

/* Count the MADT's entries of each type, with their lengths checked. */
static void count_madt(const uint8_t *madt, unsigned counts[16])
{
    memset(counts, 0, 16 * sizeof counts[0]);
    size_t size = load_le32(madt + 4);
    size_t offset = 44;
    while (offset < size) {
        assert_true(madt[offset] < 16);
        assert_in_range(madt[offset + 1], 4, size - offset);
        counts[madt[offset]]++;
        offset += madt[offset + 1];
    }
    assert_int_equal(offset, size);
}

static void lists_processors(void **unused)
{
    static const struct {
        unsigned cpus, local_apics, x2apics, x2apic_nmis;
    } cases[] = {{1, 1, 0, 0}, {255, 255, 0, 0}, {256, 255, 1, 1}, {300, 255, 45, 1}};
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct acpi_facts many = facts;
        struct tables tables;
        unsigned counts[16];
        many.cpus = cases[i].cpus;
        make_tables(&many, &tables);
        count_madt(find_table(&tables, "APIC"), counts);
        assert_int_equal(counts[0], cases[i].local_apics);
        assert_int_equal(counts[1], 1);
        assert_int_equal(counts[2], 2);
        assert_int_equal(counts[4], 1);
        assert_int_equal(counts[9], cases[i].x2apics);
        assert_int_equal(counts[10], cases[i].x2apic_nmis);
        free_tables(&tables);
    }
}

static void leaves_out_what_is_not_there(void **unused)
{
    struct acpi_facts bare = {
        .cpus = 1, .pm_event_port = 0x600, .pm_control_port = 0x604, .has_vga = true};
    struct tables tables;
    make_tables(&bare, &tables);
    assert_null(find_table(&tables, "MCFG"));
    const uint8_t *fadt = find_table(&tables, "FACP");
    assert_int_equal(fadt[91], 0);
    assert_int_equal(load_le16(fadt + 109), 1);
    assert_int_equal(load_le32(fadt + 112) & 1 << 10, 0);
    assert_int_equal(load_le64(fadt + 208), 0);
    free_tables(&tables);
}

static void refuses_impossible_facts(void **unused)
{
    static const struct memory_range ram[] = {{0, 0x200000}};
    struct memory *memory;
    gpa_t rsdp;
    assert_int_equal(memory_new(ram, 1, "acpi-test", &memory), 0);
    assert_int_equal(acpi_write(memory, &facts, BASE, 1024, &rsdp), -ENOSPC);
    assert_int_equal(acpi_write(memory, &facts, 0x1f0000, SIZE, &rsdp), 0);
    assert_int_equal(acpi_write(memory, &facts, 0x200000, SIZE, &rsdp), -EFAULT);
    assert_int_equal(acpi_write(memory, &facts, 0xffff0000, SIZE, &rsdp), -EINVAL);
    struct acpi_facts wrong = facts;
    wrong.cpus = 0;
    assert_int_equal(acpi_write(memory, &wrong, BASE, SIZE, &rsdp), -EINVAL);
    memory_free(memory);
}

/* Run a command in `folder` and search its output. */
static bool output_has(const char *folder, const char *command, const char *text)
{
    char line[512];
    bool found = false;
    snprintf(line, sizeof line, "cd %s && ( %s ) 2>&1", folder, command);
    FILE *pipe = popen(line, "r");
    assert_non_null(pipe);
    while (fgets(line, sizeof line, pipe)) {
        found = found || strstr(line, text);
    }
    return pclose(pipe) == 0 && found;
}

static void write_file(const char *folder, const char *name, const uint8_t *bytes, size_t size)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%.4s.dat", folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

static void satisfies_iasl(void **unused)
{
    if (system("command -v iasl >/dev/null 2>&1") != 0) {
        print_message("SKIPPED: iasl (package acpica-tools) is not installed\n");
        skip();
    }
    char folder[] = "/tmp/acpi-test-XXXXXX";
    assert_non_null(mkdtemp(folder));
    struct tables tables;
    make_tables(&facts, &tables);
    for (size_t i = 0; i < tables.count; i++) {
        write_file(folder, (const char *)tables.table[i].bytes, tables.table[i].bytes,
                   tables.table[i].size);
    }
    /* Data tables disassemble without complaints; the DSDT also compiles again without any. */
    assert_true(output_has(folder,
                           "iasl -d FACP.dat APIC.dat MCFG.dat XSDT.dat FACS.dat && "
                           "grep -il 'error\\|invalid\\|unknown\\|warning' *.dsl || "
                           "echo clean",
                           "clean"));
    assert_true(
        output_has(folder, "iasl -d DSDT.dat && iasl -we DSDT.dsl", " 0 Errors, 0 Warnings"));
    assert_true(output_has(folder, "grep -c 'Device (C00' DSDT.dsl", "3"));
    assert_true(output_has(folder, "rm -r $PWD && echo gone", "gone"));
    free_tables(&tables);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(describes_the_board),
        cmocka_unit_test(lists_processors),
        cmocka_unit_test(leaves_out_what_is_not_there),
        cmocka_unit_test(refuses_impossible_facts),
        cmocka_unit_test(satisfies_iasl),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
