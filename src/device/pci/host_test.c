/* The ways into configuration space, and the reset register between them. */
#include "device/pci/host.c" /* its struct, to check that its visit names every field */

#include "device/test_board.h"

enum { WINDOW = 0xb0000000 };

struct fixture {
    struct bus *bus;
    struct pci_bus *pci;
    struct device *device;
    unsigned resets;
};

static void reset_asked(void *owner)
{
    ((struct fixture *)owner)->resets++;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    const struct irq_line lines[4] = {0};
    f->bus = bus_new();
    f->pci = pci_bus_new(f->bus, (struct msi_target){0}, lines);
    const struct pci_host_config config = {
        .bus = f->bus, .pci = f->pci, .mmconfig_base = WINDOW, .reset = reset_asked, .owner = f};
    assert_int_equal(pci_host_new(&config, &f->device), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    device_free(f->device);
    pci_bus_free(f->pci);
    bus_free(f->bus);
    free(f);
    return 0;
}

static void test_mechanism_1(void **state)
{
    struct fixture *f = *state;
    bus_port_write(f->bus, 0xcf8, 4, 0xffffffff);
    assert_int_equal(bus_port_read(f->bus, 0xcf8, 4), 0x80fffffc);
    assert_int_equal(bus_port_read(f->bus, 0xcfc, 4), 0xffffffff);
    bus_port_write(f->bus, 0xcf8, 4, 0x80000000);
    assert_int_equal(bus_port_read(f->bus, 0xcfc, 4), 0x0d578086);
    assert_int_equal(bus_port_read(f->bus, 0xcfe, 2), 0x0d57);
    assert_int_equal(bus_port_read(f->bus, 0xcff, 1), 0x0d);
    bus_port_write(f->bus, 0xcf8, 4, 0x80000008);
    assert_int_equal(bus_port_read(f->bus, 0xcff, 1), 0x06);
    bus_port_write(f->bus, 0xcf8, 4, 0x8000003c);
    bus_port_write(f->bus, 0xcfc, 1, 0x5a);
    assert_int_equal(bus_port_read(f->bus, 0xcfc, 4), 0x5a);
    bus_port_write(f->bus, 0xcf8, 4, 0x80000800); /* no such device */
    assert_int_equal(bus_port_read(f->bus, 0xcfc, 4), 0xffffffff);
    bus_port_write(f->bus, 0xcf8, 4, 0); /* not enabled */
    assert_int_equal(bus_port_read(f->bus, 0xcfc, 4), 0xffffffff);
    bus_port_write(f->bus, 0xcf8, 1, 0x80); /* too narrow: not the address */
    assert_int_equal(bus_port_read(f->bus, 0xcf8, 4), 0);
}

static void test_mmconfig(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(bus_mmio_read(f->bus, WINDOW, 4), 0x0d578086);
    assert_int_equal(bus_mmio_read(f->bus, WINDOW, 8) & 0xffffffff, 0x0d578086);
    bus_mmio_write(f->bus, WINDOW + 0x3c, 1, 0x77);
    assert_int_equal(bus_mmio_read(f->bus, WINDOW + 0x3c, 1), 0x77);
    assert_int_equal(bus_mmio_read(f->bus, WINDOW + 0x100, 4), 0xffffffff);
    assert_int_equal(bus_mmio_read(f->bus, WINDOW + 0xffffc, 4), 0xffffffff);
    assert_int_equal(bus_mmio_read(f->bus, WINDOW + 0xffffc, 8), UINT64_MAX);
}

static void test_reset_register(void **state)
{
    struct fixture *f = *state;
    out8(f->bus, 0xcf9, 0x02);
    assert_int_equal(f->resets, 0);
    assert_int_equal(in8(f->bus, 0xcf9), 0x02);
    out8(f->bus, 0xcf9, 0x06);
    assert_int_equal(f->resets, 1);
    out8(f->bus, 0xcf9, 0x0e);
    assert_int_equal(f->resets, 1);
    f->device->ops->reset(f->device);
    out8(f->bus, 0xcf9, 0x0e);
    assert_int_equal(f->resets, 2);
}

static void test_visit(void **state)
{
    struct fixture *f = *state;
    bus_port_write(f->bus, 0xcf8, 4, 0x8000003c);
    bus_port_write(f->bus, 0xcfc, 1, 0x5a);
    out8(f->bus, 0xcf9, 0x02);
#define HOST(member) VISIT_DERIVED(struct pci_host, member)
    assert_int_equal(VISIT_CHECK(struct pci_host, f->device, device_visit, f->device,
                                 DEVICE_DERIVED(struct pci_host), HOST(pci), HOST(ports),
                                 HOST(mmconfig), HOST(function), HOST(request_reset), HOST(owner)),
                     0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {TEST(test_mechanism_1), TEST(test_mmconfig),
                                       TEST(test_reset_register), TEST(test_visit)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
