/* PCI functions: write masks, BAR sizing and moving, MSI-X, INTx, assignment, saved state. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "bus/pci.h"
#include "persist/visitor.h"

struct model {
    struct pci_function function;
    unsigned slot, writes, last_offset;
    uint64_t answer;
};

static uint64_t model_read(void *owner, uint64_t offset, unsigned size)
{
    struct model *model = owner;
    return model->answer + offset;
}

static void model_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
}

static const struct region_ops model_region_ops = {.read = model_read, .write = model_write};

static void model_config_read(void *owner, unsigned offset, unsigned size)
{
    struct model *model = owner;
    model->function.config[0x48] = (uint8_t)model->slot; /* a live byte in the capability */
}

static void model_config_written(void *owner, unsigned offset, unsigned size)
{
    struct model *model = owner;
    model->writes++;
    model->last_offset = offset;
}

static const struct pci_function_ops model_ops = {.config_read = model_config_read,
                                                  .config_written = model_config_written};

struct fixture {
    struct bus *bus;
    struct pci_bus *pci;
    struct model models[2]; /* slots 1 and 5: both drive intx[1] */
    unsigned messages, level[4];
    uint64_t address;
    uint32_t data;
};

static void message_send(void *owner, uint64_t address, uint32_t data)
{
    struct fixture *f = owner;
    f->messages++;
    f->address = address;
    f->data = data;
}

static void line_set(void *owner, unsigned number, bool level)
{
    ((struct fixture *)owner)->level[number] = level;
}

/* BAR 0: 4 KiB memory, BAR 1: MSI-X, BAR 2: 32 ports, BAR 4: 64-bit memory of 16 KiB. */
static void model_init(struct model *model, unsigned slot)
{
    static const struct pci_identity identity = {.vendor = 0x1234,
                                                 .device = 0x5678,
                                                 .subsystem_vendor = 0x9abc,
                                                 .subsystem = 0xdef0,
                                                 .class_code = 0x010203,
                                                 .revision = 4};
    static const uint8_t body[10] = {1, 2, 3}, writable[10] = {[5] = 0xff, [6] = 0x0f};
    struct pci_function *function = &model->function;
    model->slot = slot;
    model->answer = 0x10 * slot;
    pci_function_init(function, &identity, &model_ops, model);
    pci_add_memory_bar(function, 0, 0x1000, false, &model_region_ops, model);
    assert_int_equal(pci_add_capability(function, PCI_CAPABILITY_VENDOR, body, 10, writable), 0x40);
    pci_add_msix(function, 1, 3);
    pci_add_port_bar(function, 2, 32, &model_region_ops, model);
    pci_add_memory_bar(function, 4, 0x4000, true, &model_region_ops, model);
    pci_add_intx(function);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct irq_line lines[4];
    for (unsigned i = 0; i < 4; i++) {
        lines[i] = (struct irq_line){.set = line_set, .owner = f, .number = i};
    }
    f->bus = bus_new();
    f->pci = pci_bus_new(f->bus, (struct msi_target){.send = message_send, .owner = f}, lines);
    for (unsigned i = 0; i < 2; i++) {
        model_init(&f->models[i], 1 + 4 * i);
        assert_int_equal(pci_bus_add(f->pci, &f->models[i].function, 1 + 4 * i), 0);
    }
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    pci_function_fini(&f->models[0].function);
    pci_function_fini(&f->models[1].function);
    pci_bus_free(f->pci);
    bus_free(f->bus);
    free(f);
    return 0;
}

static uint32_t get(struct fixture *f, unsigned slot, unsigned offset, unsigned size)
{
    return pci_config_read(f->pci, 0, slot * 8, offset, size);
}

static void set(struct fixture *f, unsigned slot, unsigned offset, unsigned size, uint32_t value)
{
    pci_config_write(f->pci, 0, slot * 8, offset, size, value);
}

static void assign(struct fixture *f)
{
    const struct pci_windows windows = {.memory_base = 0xe0000000,
                                        .memory_size = 0x100000,
                                        .memory64_base = 0x800000000,
                                        .memory64_size = 0x100000,
                                        .port_base = 0xc000,
                                        .port_size = 0x1000,
                                        .gsi_base = 16};
    assert_int_equal(pci_assign(f->pci, &windows), 0);
}

static void test_identity(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(get(f, 1, PCI_VENDOR, 4), 0x56781234);
    assert_int_equal(get(f, 1, PCI_REVISION, 4), 0x01020304);
    assert_int_equal(get(f, 1, PCI_SUBSYSTEM_VENDOR, 4), 0xdef09abc);
    assert_int_equal(get(f, 1, PCI_INTERRUPT_PIN, 1), 1);
    assert_int_equal(get(f, 1, PCI_DEVICE, 1), 0x78);
    set(f, 1, PCI_VENDOR, 4, 0);
    assert_int_equal(get(f, 1, PCI_VENDOR, 2), 0x1234);
    /* nobody: another slot, function, bus; beyond conventional configuration space */
    assert_int_equal(get(f, 2, 0, 4), 0xffffffff);
    assert_int_equal(get(f, 2, 0, 1), 0xff);
    assert_int_equal(pci_config_read(f->pci, 0, 9, 0, 2), 0xffff);
    assert_int_equal(pci_config_read(f->pci, 1, 8, 0, 4), 0xffffffff);
    assert_int_equal(get(f, 1, 0x100, 4), 0xffffffff);
    assert_int_equal(get(f, 1, 0xfe, 4), 0xffffffff);
    set(f, 1, 0xfffffffe, 4, 0);
    assert_int_equal(pci_bus_add(f->pci, &f->models[0].function, 5), -EBUSY);
    assert_int_equal(pci_bus_add(f->pci, &f->models[0].function, 32), -EINVAL);
}

static void test_capabilities(void **state)
{
    struct fixture *f = *state;
    assert_true(get(f, 1, PCI_STATUS, 2) & PCI_STATUS_CAPABILITIES);
    unsigned first = get(f, 1, PCI_CAPABILITIES, 1);
    assert_int_equal(get(f, 1, first, 1), PCI_CAPABILITY_VENDOR);
    unsigned second = get(f, 1, first + 1, 1);
    assert_int_equal(second, 0x4c);
    assert_int_equal(get(f, 1, second, 4), 0x00020000 | PCI_CAPABILITY_MSIX);
    assert_int_equal(get(f, 1, second + 4, 4), 1);
    assert_int_equal(get(f, 1, second + 8, 4), 0x1001);
    set(f, 1, 0x40, 4, 0xffffffff);
    assert_int_equal(get(f, 1, 0x42, 1), 1);
    f->models[0].writes = 0;
    set(f, 1, 0x46, 4, 0xffffffff);
    assert_int_equal(get(f, 1, 0x47, 1), 0xff);
    assert_int_equal(get(f, 1, 0x48, 1), 1); /* refreshed by the hook */
    assert_int_equal(f->models[0].writes, 1);
    assert_int_equal(f->models[0].last_offset, 0x46);
}

static void test_sizing(void **state)
{
    static const struct {
        unsigned offset;
        uint32_t mask;
    } rows[] = {{0x10, 0xfffff000}, {0x14, 0xffffe000}, {0x18, 0xffffffe1}, {0x1c, 0},
                {0x20, 0xffffc004}, {0x24, 0xffffffff}, {0x30, 0}};
    struct fixture *f = *state;
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        set(f, 1, rows[i].offset, 4, 0xffffffff);
        assert_int_equal(get(f, 1, rows[i].offset, 4), rows[i].mask);
    }
}

static void test_mapping(void **state)
{
    struct fixture *f = *state;
    set(f, 1, 0x10, 4, 0xe0000000);
    assert_int_equal(bus_mmio_read(f->bus, 0xe0000004, 4), 0xffffffff);
    set(f, 1, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    assert_int_equal(bus_mmio_read(f->bus, 0xe0000004, 4), 0x14);
    set(f, 1, 0x10, 4, 0xe0008000); /* moved while enabled */
    assert_int_equal(bus_mmio_read(f->bus, 0xe0000004, 4), 0xffffffff);
    assert_int_equal(bus_mmio_read(f->bus, 0xe0008004, 4), 0x14);
    /* on top of another: the older keeps the address until it leaves */
    set(f, 5, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    set(f, 5, 0x10, 4, 0xe0008000);
    assert_int_equal(bus_mmio_read(f->bus, 0xe0008000, 4), 0x10);
    set(f, 1, PCI_COMMAND, 2, 0);
    assert_int_equal(bus_mmio_read(f->bus, 0xe0008000, 4), 0x50);
    /* 64 bits, in two halves */
    set(f, 1, 0x20, 4, 0x4000);
    set(f, 1, 0x24, 4, 0x12);
    set(f, 1, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    assert_int_equal(bus_mmio_read(f->bus, 0x1200004001, 1), 0x11);
    /* ports */
    set(f, 1, 0x18, 4, 0xc000);
    assert_int_equal(bus_port_read(f->bus, 0xc000, 1), 0xff);
    set(f, 1, PCI_COMMAND, 2, PCI_COMMAND_PORT);
    assert_int_equal(bus_port_read(f->bus, 0xc000, 1), 0x10);
    set(f, 1, 0x18, 4, 0xfffffff0); /* beyond the port space: nowhere */
    assert_int_equal(bus_port_read(f->bus, 0xc000, 1), 0xff);
    pci_bus_remove(f->pci, &f->models[1].function);
    assert_int_equal(bus_mmio_read(f->bus, 0xe0008000, 4), 0xffffffff);
}

static void test_assign(void **state)
{
    struct fixture *f = *state;
    assign(f);
    assert_int_equal(get(f, 1, 0x10, 4), 0xe0000000);
    assert_int_equal(get(f, 1, 0x14, 4), 0xe0002000);
    assert_int_equal(get(f, 5, 0x10, 4), 0xe0004000);
    assert_int_equal(get(f, 5, 0x18, 4), 0xc021);
    assert_int_equal(get(f, 5, 0x20, 4), 0x4004);
    assert_int_equal(get(f, 5, 0x24, 4), 8);
    assert_int_equal(get(f, 5, PCI_INTERRUPT_LINE, 1), 17);
    assert_int_equal(get(f, 5, PCI_COMMAND, 2), PCI_COMMAND_PORT | PCI_COMMAND_MEMORY);
    assert_int_equal(bus_mmio_read(f->bus, 0x800004002, 1), 0x52);
    const struct pci_windows tight = {.memory_base = 0xe0000000, .memory_size = 0x2000};
    assert_int_equal(pci_assign(f->pci, &tight), -ENOSPC);
}

static void test_msix(void **state)
{
    struct fixture *f = *state;
    struct pci_function *function = &f->models[0].function;
    assign(f);
    const uint64_t table = 0xe0002000, pending = table + 0x1000;
    pci_msix_notify(function, 0); /* not enabled: lost */
    set(f, 1, 0x4e, 2, 0x8000);
    assert_true(pci_msix_enabled(function));
    set(f, 1, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    bus_mmio_write(f->bus, table + 16, 8, 0x00000000fee01003);
    bus_mmio_write(f->bus, table + 24, 4, 0x4041);
    assert_int_equal(bus_mmio_read(f->bus, table + 16, 4), 0xfee01000);
    pci_msix_notify(function, 1); /* its entry is still masked */
    assert_int_equal(f->messages, 0);
    assert_int_equal(bus_mmio_read(f->bus, pending, 8), 2);
    bus_mmio_write(f->bus, table + 28, 4, 0xfffffffe);
    assert_int_equal(f->messages, 1);
    assert_int_equal(f->address, 0xfee01000);
    assert_int_equal(f->data, 0x4041);
    assert_int_equal(bus_mmio_read(f->bus, pending, 8), 0);
    set(f, 1, 0x4e, 2, 0xc000); /* function mask */
    pci_msix_notify(function, 1);
    pci_msix_notify(function, 1);
    pci_msix_notify(function, 3);
    assert_int_equal(f->messages, 1);
    bus_mmio_write(f->bus, pending, 8, 0); /* read-only */
    set(f, 1, 0x4e, 2, 0x8000);
    assert_int_equal(f->messages, 2);
    pci_msix_notify(function, 1);
    assert_int_equal(f->messages, 3);
    bus_mmio_write(f->bus, table + 48, 4, 1); /* behind the table */
    bus_mmio_write(f->bus, table + 16, 2, 1); /* too narrow */
    assert_int_equal(bus_mmio_read(f->bus, table + 48, 8), 0);
    assert_int_equal(bus_mmio_read(f->bus, table + 16, 4), 0xfee01000);
}

static void test_intx(void **state)
{
    struct fixture *f = *state;
    struct pci_function *a = &f->models[0].function, *b = &f->models[1].function;
    pci_intx_set(a, true);
    assert_int_equal(f->level[1], 1);
    pci_intx_set(b, true);
    pci_intx_set(a, false);
    assert_int_equal(f->level[1], 1); /* shared */
    pci_intx_set(b, false);
    assert_int_equal(f->level[1], 0);
    pci_intx_set(a, true);
    assert_true(get(f, 1, PCI_COMMAND, 4) & PCI_STATUS_INTERRUPT << 16);
    set(f, 1, PCI_COMMAND, 2, PCI_COMMAND_INTX_DISABLE);
    assert_int_equal(f->level[1], 0);
    assert_true(get(f, 1, PCI_STATUS, 2) & PCI_STATUS_INTERRUPT);
    set(f, 1, PCI_COMMAND, 2, 0);
    assert_int_equal(f->level[1], 1);
    set(f, 1, 0x4e, 2, 0x8000); /* MSI-X instead */
    assert_int_equal(f->level[1], 0);
    pci_function_reset(a);
    assert_int_equal(get(f, 1, 0x4e, 2), 2);
    assert_false(get(f, 1, PCI_STATUS, 2) & PCI_STATUS_INTERRUPT);
    pci_intx_set(a, true);
    pci_bus_remove(f->pci, a);
    assert_int_equal(f->level[1], 0);
}

/* Everything that a guest can have set comes back in a machine built the same way. */
static void test_visit(void **state)
{
    struct fixture *f = *state;
    struct pci_function *function = &f->models[0].function;
    assign(f);
    set(f, 1, 0x4e, 2, 0x8000);
    bus_mmio_write(f->bus, 0xe0002000, 8, 0x12fee02000);
    bus_mmio_write(f->bus, 0xe0002008, 8, 0x33);
    set(f, 1, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    pci_msix_notify(function, 2);
    pci_intx_set(function, true);
    struct visitor *save = visitor_new_write();
    pci_function_visit(function, save);
    size_t size;
    const void *stream = visitor_buffer(save, &size);
    struct pci_function before = *function;
    struct pci_msix_entry entries[3];
    memcpy(entries, function->msix.entries, sizeof entries);

    pci_function_reset(function);
    assert_int_equal(bus_mmio_read(f->bus, 0xe0002000, 4), 0xffffffff);
    struct visitor *load = visitor_new_read(stream, size);
    pci_function_visit(function, load);
    assert_int_equal(visitor_error(load), 0);
    assert_true(visitor_at_end(load));
    assert_memory_equal(function->config, before.config, sizeof before.config);
    assert_memory_equal(function->msix.entries, entries, sizeof entries);
    assert_memory_equal(function->msix.pending, before.msix.pending, sizeof before.msix.pending);
    assert_true(function->msix.enabled);
    assert_true(function->intx_level);
    assert_int_equal(bus_mmio_read(f->bus, 0xe0002000, 4), 0xfee02000);
    visitor_free(load);

    /* another device's state is refused */
    function->initial[PCI_VENDOR] = function->config[PCI_VENDOR] = 0x99;
    load = visitor_new_read(stream, size);
    pci_function_visit(function, load);
    assert_int_equal(visitor_error(load), -EINVAL);
    visitor_free(load);
    visitor_free(save);
}

static atomic_bool race_stop;
static void *race_reader(void *argument)
{
    struct fixture *f = argument;
    while (!atomic_load(&race_stop)) {
        bus_mmio_read(f->bus, 0xe0000000, 4);
        bus_mmio_read(f->bus, 0xe0008000, 4);
        bus_mmio_write(f->bus, 0xe0002000, 4, 0xfee00000);
        pci_msix_notify(&f->models[0].function, 0);
        pci_intx_set(&f->models[1].function, true);
        pci_intx_set(&f->models[1].function, false);
    }
    return NULL;
}

static void test_race(void **state)
{
    struct fixture *f = *state;
    assign(f);
    pthread_t threads[2];
    atomic_store(&race_stop, false);
    for (unsigned i = 0; i < 2; i++) {
        pthread_create(&threads[i], NULL, race_reader, f);
    }
    for (unsigned i = 0; i < 2000; i++) {
        set(f, 1, 0x10, 4, 0xe0000000 + 0x8000 * (i & 1));
        set(f, 1, PCI_COMMAND, 2, i & 2 ? PCI_COMMAND_MEMORY : PCI_COMMAND_MASTER);
        set(f, 1, 0x4e, 2, i & 4 ? 0x8000 : 0);
    }
    atomic_store(&race_stop, true);
    for (unsigned i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_identity), TEST(test_capabilities), TEST(test_sizing),
        TEST(test_mapping),  TEST(test_assign),       TEST(test_msix),
        TEST(test_intx),     TEST(test_visit),        TEST(test_race),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
