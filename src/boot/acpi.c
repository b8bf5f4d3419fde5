/*
 * The fixed ACPI tables (ACPI 6.3, 5.2), and the writing of all tables. There is no SMI: the
 * machine is in ACPI mode from the beginning (SMI_CMD is 0, SCI_EN reads as one).
 */
#include "boot/acpi.h"

#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "boot/acpi_internal.h"

enum {
    RSDP_SIZE = 36,
    RSDP_SIZE_V1 = 20,
    FACS_SIZE = 64,
    FACS_VERSION = 2,
    TABLE_ALIGNMENT = 16,
    FACS_ALIGNMENT = 64,
    FADT_REVISION = 6,
    FADT_MINOR = 3,
    FADT_SIZE = 276,
    MADT_REVISION = 5,
    TABLES_MAX = 5, /* in the XSDT */

    FADT_LATENCY_NO_C2 = 101,
    FADT_LATENCY_NO_C3 = 1001,
    FADT_DAY_ALARM = 0,
    CMOS_CENTURY = 0x32,
    FADT_BOOT_LEGACY_DEVICES = 1 << 0,
    FADT_BOOT_8042 = 1 << 1,
    FADT_BOOT_NO_VGA = 1 << 2,
    FADT_WBINVD = 1 << 0,
    FADT_PROC_C1 = 1 << 2,
    FADT_NO_SLEEP_BUTTON = 1 << 5,
    FADT_NO_FIXED_RTC = 1 << 6,
    FADT_RESET_REGISTER = 1 << 10,

    MADT_PCAT_COMPATIBLE = 1 << 0, /* there are two 8259s as well */
    MADT_ENABLED = 1 << 0,
    MADT_LOCAL_APIC = 0,
    MADT_IO_APIC = 1,
    MADT_OVERRIDE = 2,
    MADT_NMI = 4,
    MADT_LOCAL_X2APIC = 9,
    MADT_X2APIC_NMI = 10,
    MADT_CONFORMS = 0,
    MADT_HIGH_LEVEL = 0xd, /* active high, level-triggered */
    ISA_IRQ_PIT = 0,
    GSI_PIT = 2,
    HPET_MINIMUM_TICKS = 5000, /* of a period without lost interrupts: 50 us */
    LOCAL_APIC_MAX = 254,      /* higher IDs are x2APIC's */
};

/* The place in guest memory that tables go to, one after the other. */
struct writer {
    struct memory *memory;
    gpa_t next, end;
};

static int write_bytes(struct writer *writer, const void *bytes, uint64_t size, uint64_t alignment,
                       gpa_t *ret_gpa)
{
    gpa_t gpa = align_up(writer->next, alignment);
    if (gpa > writer->end || size > writer->end - gpa) {
        return fail(-ENOSPC, "the ACPI tables do not fit into their memory");
    }
    int error = memory_write(writer->memory, gpa, bytes, size);
    if (error < 0) {
        return fail(error, "the memory for the ACPI tables is not all RAM");
    }
    writer->next = gpa + size;
    *ret_gpa = gpa;
    return 0;
}

static int write_table(struct writer *writer, struct acpi_table *table, gpa_t *ret_gpa)
{
    int error = acpi_table_finish(table);
    if (error < 0) {
        return error;
    }
    return write_bytes(writer, table->bytes, table->size, TABLE_ALIGNMENT, ret_gpa);
}

static void acpi_table_cleanup(struct acpi_table *table)
{
    acpi_table_fini(table);
}
#define CLEANUP_TABLE __attribute__((cleanup(acpi_table_cleanup)))

static int write_facs(struct writer *writer, gpa_t *ret_gpa)
{
    uint8_t facs[FACS_SIZE] = "FACS";
    store_le32(facs + 4, FACS_SIZE);
    facs[32] = FACS_VERSION;
    return write_bytes(writer, facs, sizeof facs, FACS_ALIGNMENT, ret_gpa);
}

static int write_dsdt(struct writer *writer, const struct acpi_facts *facts, gpa_t *ret_gpa)
{
    /* Revision 2: integers have 64 bits. */
    CLEANUP_TABLE struct acpi_table table;
    acpi_table_init(&table, "DSDT", 2);
    acpi_describe_devices(&table, facts);
    return write_table(writer, &table, ret_gpa);
}

/* A generic address structure (5.2.3.2) for a port of `size` bytes; port 0: all zeros. */
static void put_port(struct acpi_table *table, uint16_t port, unsigned size)
{
    if (port == 0) {
        acpi_table_zeros(table, 12);
        return;
    }
    acpi_table_number(table, 1, 1); /* port space */
    acpi_table_number(table, size * 8, 1);
    acpi_table_number(table, 0, 1);                    /* bit offset */
    acpi_table_number(table, size == 4 ? 3 : size, 1); /* access size: 1, 2, 3 for 1, 2, 4 bytes */
    acpi_table_number(table, port, 8);
}

/* FADT, the part of ACPI 1.0: 32-bit addresses. */
static void put_fadt_legacy(struct acpi_table *table, const struct acpi_facts *facts, gpa_t facs,
                            gpa_t dsdt)
{
    acpi_table_number(table, facs, 4);
    acpi_table_number(table, dsdt, 4);
    acpi_table_zeros(table, 2); /* reserved, preferred profile: unspecified */
    acpi_table_number(table, facts->sci_irq, 2);
    acpi_table_zeros(table, 8); /* no SMI command port, none of its commands */
    acpi_table_number(table, facts->pm_event_port, 4);
    acpi_table_zeros(table, 4);
    acpi_table_number(table, facts->pm_control_port, 4);
    acpi_table_zeros(table, 8);
    acpi_table_number(table, facts->pm_timer_port, 4);
    acpi_table_zeros(table, 8); /* no general-purpose events */
    acpi_table_number(table, 4, 1);
    acpi_table_number(table, 2, 1);
    acpi_table_number(table, 0, 1);
    acpi_table_number(table, facts->pm_timer_port ? 4 : 0, 1);
    acpi_table_zeros(table, 4);
    acpi_table_number(table, FADT_LATENCY_NO_C2, 2);
    acpi_table_number(table, FADT_LATENCY_NO_C3, 2);
    acpi_table_zeros(table, 6); /* cache flush and duty cycle: unused */
    acpi_table_number(table, FADT_DAY_ALARM, 1);
    acpi_table_number(table, 0, 1);
    acpi_table_number(table, CMOS_CENTURY, 1);
}

static void put_fadt_flags(struct acpi_table *table, const struct acpi_facts *facts)
{
    unsigned boot_flags = FADT_BOOT_LEGACY_DEVICES;
    boot_flags |= facts->has_i8042 ? FADT_BOOT_8042 : 0;
    boot_flags |= facts->has_vga ? 0 : FADT_BOOT_NO_VGA;
    unsigned flags = FADT_WBINVD | FADT_PROC_C1 | FADT_NO_SLEEP_BUTTON | FADT_NO_FIXED_RTC;
    flags |= facts->reset_port ? FADT_RESET_REGISTER : 0;
    acpi_table_number(table, boot_flags, 2);
    acpi_table_zeros(table, 1);
    acpi_table_number(table, flags, 4);
}

static int write_fadt(struct writer *writer, const struct acpi_facts *facts, gpa_t facs, gpa_t dsdt,
                      gpa_t *ret_gpa)
{
    CLEANUP_TABLE struct acpi_table table;
    acpi_table_init(&table, "FACP", FADT_REVISION);
    put_fadt_legacy(&table, facts, facs, dsdt);
    put_fadt_flags(&table, facts);
    put_port(&table, facts->reset_port, 1);
    acpi_table_number(&table, facts->reset_value, 1);
    acpi_table_zeros(&table, 2); /* ARM boot flags */
    acpi_table_number(&table, FADT_MINOR, 1);
    acpi_table_zeros(&table, 8); /* X_FIRMWARE_CTRL: zero while the 32-bit field is used */
    acpi_table_number(&table, dsdt, 8);
    put_port(&table, facts->pm_event_port, 4);
    put_port(&table, 0, 0);
    put_port(&table, facts->pm_control_port, 2);
    put_port(&table, 0, 0);
    put_port(&table, 0, 0);
    put_port(&table, facts->pm_timer_port, 4);
    acpi_table_zeros(&table, FADT_SIZE - table.size); /* events, sleep registers: none */
    return write_table(writer, &table, ret_gpa);
}

static void put_processor(struct acpi_table *table, unsigned id)
{
    if (id <= LOCAL_APIC_MAX) {
        acpi_table_number(table, MADT_LOCAL_APIC, 1);
        acpi_table_number(table, 8, 1);
        acpi_table_number(table, id, 1); /* _UID of the processor device */
        acpi_table_number(table, id, 1); /* APIC ID */
        acpi_table_number(table, MADT_ENABLED, 4);
        return;
    }
    acpi_table_number(table, MADT_LOCAL_X2APIC, 1);
    acpi_table_number(table, 16, 1);
    acpi_table_zeros(table, 2);
    acpi_table_number(table, id, 4);
    acpi_table_number(table, MADT_ENABLED, 4);
    acpi_table_number(table, id, 4);
}

static void put_override(struct acpi_table *table, unsigned irq, unsigned gsi, unsigned flags)
{
    acpi_table_number(table, MADT_OVERRIDE, 1);
    acpi_table_number(table, 10, 1);
    acpi_table_number(table, 0, 1); /* ISA */
    acpi_table_number(table, irq, 1);
    acpi_table_number(table, gsi, 4);
    acpi_table_number(table, flags, 2);
}

/* NMI arrives at LINT1 of every local APIC. */
static void put_nmi(struct acpi_table *table, unsigned cpus)
{
    acpi_table_number(table, MADT_NMI, 1);
    acpi_table_number(table, 6, 1);
    acpi_table_number(table, 0xff, 1); /* all */
    acpi_table_number(table, MADT_CONFORMS, 2);
    acpi_table_number(table, 1, 1);
    if (cpus > LOCAL_APIC_MAX + 1) {
        acpi_table_number(table, MADT_X2APIC_NMI, 1);
        acpi_table_number(table, 12, 1);
        acpi_table_number(table, MADT_CONFORMS, 2);
        acpi_table_number(table, UINT32_MAX, 4);
        acpi_table_number(table, 1, 1);
        acpi_table_zeros(table, 3);
    }
}

static int write_madt(struct writer *writer, const struct acpi_facts *facts, gpa_t *ret_gpa)
{
    CLEANUP_TABLE struct acpi_table table;
    acpi_table_init(&table, "APIC", MADT_REVISION);
    acpi_table_number(&table, facts->local_apic_address, 4);
    acpi_table_number(&table, MADT_PCAT_COMPATIBLE, 4);
    for (unsigned id = 0; id < facts->cpus; id++) {
        put_processor(&table, id);
    }
    acpi_table_number(&table, MADT_IO_APIC, 1);
    acpi_table_number(&table, 12, 1);
    acpi_table_number(&table, facts->io_apic_id, 1);
    acpi_table_zeros(&table, 1);
    acpi_table_number(&table, facts->io_apic_address, 4);
    acpi_table_number(&table, 0, 4); /* its first GSI */
    put_override(&table, ISA_IRQ_PIT, GSI_PIT, MADT_CONFORMS);
    put_override(&table, facts->sci_irq, facts->sci_irq, MADT_HIGH_LEVEL);
    put_nmi(&table, facts->cpus);
    return write_table(writer, &table, ret_gpa);
}

static int write_mcfg(struct writer *writer, const struct acpi_facts *facts, gpa_t *ret_gpa)
{
    CLEANUP_TABLE struct acpi_table table;
    acpi_table_init(&table, "MCFG", 1);
    acpi_table_zeros(&table, 8);
    acpi_table_number(&table, facts->mmconfig_base, 8);
    acpi_table_number(&table, 0, 2); /* segment */
    acpi_table_number(&table, 0, 1); /* buses from, to */
    acpi_table_number(&table, facts->mmconfig_buses - 1u, 1);
    acpi_table_zeros(&table, 4);
    return write_table(writer, &table, ret_gpa);
}

/* IA-PC HPET Specification 1.0a, 3.2.4. */
static int write_hpet(struct writer *writer, const struct acpi_facts *facts, gpa_t *ret_gpa)
{
    CLEANUP_TABLE struct acpi_table table;
    acpi_table_init(&table, "HPET", 1);
    acpi_table_number(&table, facts->hpet_block_id, 4);
    acpi_table_number(&table, 0, 1);  /* memory space */
    acpi_table_number(&table, 64, 1); /* registers have 64 bits */
    acpi_table_zeros(&table, 2);
    acpi_table_number(&table, facts->hpet_base, 8);
    acpi_table_number(&table, 0, 1); /* the first of its kind */
    acpi_table_number(&table, HPET_MINIMUM_TICKS, 2);
    acpi_table_number(&table, 0, 1); /* nothing is promised about the rest of its page */
    return write_table(writer, &table, ret_gpa);
}

static int write_xsdt(struct writer *writer, const gpa_t *tables, size_t count, gpa_t *ret_gpa)
{
    CLEANUP_TABLE struct acpi_table table;
    acpi_table_init(&table, "XSDT", 1);
    for (size_t i = 0; i < count; i++) {
        acpi_table_number(&table, tables[i], 8);
    }
    return write_table(writer, &table, ret_gpa);
}

/* RSDP revision 2, with no RSDT: each guest of this century reads the XSDT. */
static void fill_rsdp(uint8_t *rsdp, gpa_t xsdt)
{
    memcpy(rsdp, "RSD PTR ", 8);
    memcpy(rsdp + 9, "DOPPEL", 6);
    rsdp[15] = 2;
    store_le32(rsdp + 20, RSDP_SIZE);
    store_le64(rsdp + 24, xsdt);
    rsdp[8] = acpi_checksum(rsdp, RSDP_SIZE_V1);
    rsdp[32] = acpi_checksum(rsdp, RSDP_SIZE);
}

static int check_facts(const struct acpi_facts *facts, gpa_t base, uint64_t size)
{
    if (facts->cpus == 0 || facts->cpus > ACPI_CPUS_MAX) {
        return fail(-EINVAL, "ACPI describes 1 to %d CPUs, not %u", ACPI_CPUS_MAX, facts->cpus);
    }
    if (facts->mmconfig_base && facts->mmconfig_buses == 0) {
        return fail(-EINVAL, "MMCONFIG needs at least one bus");
    }
    if (!range_fits(base, size, GIB(4))) {
        return fail(-EINVAL, "the ACPI tables must lie below 4 GiB");
    }
    return 0;
}

int acpi_write(struct memory *memory, const struct acpi_facts *facts, gpa_t base, uint64_t size,
               gpa_t *ret_rsdp)
{
    uint8_t rsdp[RSDP_SIZE] = {0};
    struct writer writer = {.memory = memory, .next = base, .end = base + size};
    gpa_t rsdp_address;
    gpa_t facs;
    gpa_t dsdt;
    gpa_t xsdt;
    gpa_t tables[TABLES_MAX];
    size_t count = 0;
    int error = check_facts(facts, base, size);
    if (error < 0) {
        return error;
    }
    /* The RSDP comes first; it is written again when the address of the XSDT is known. */
    if ((error = write_bytes(&writer, rsdp, sizeof rsdp, TABLE_ALIGNMENT, &rsdp_address)) < 0 ||
        (error = write_facs(&writer, &facs)) < 0 ||
        (error = write_dsdt(&writer, facts, &dsdt)) < 0 ||
        (error = write_fadt(&writer, facts, facs, dsdt, &tables[count++])) < 0 ||
        (error = write_madt(&writer, facts, &tables[count++])) < 0 ||
        (facts->mmconfig_base && (error = write_mcfg(&writer, facts, &tables[count++])) < 0) ||
        (facts->hpet_base && (error = write_hpet(&writer, facts, &tables[count++])) < 0) ||
        (error = write_xsdt(&writer, tables, count, &xsdt)) < 0) {
        return error;
    }
    fill_rsdp(rsdp, xsdt);
    *ret_rsdp = rsdp_address;
    return memory_write(memory, rsdp_address, rsdp, sizeof rsdp);
}
