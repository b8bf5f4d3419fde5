/* Decoding: overlap, splitting at region ends, and removal under concurrent accesses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "bus/bus.h"

/* A device of 16 bytes that remembers what was written and how. */
struct cells {
    struct region region;
    uint8_t bytes[16];
    unsigned accesses, last_size;
};

static uint64_t cells_read(void *owner, uint64_t offset, unsigned size)
{
    struct cells *cells = owner;
    uint64_t value = 0;
    memcpy(&value, &cells->bytes[offset], size);
    cells->accesses++;
    cells->last_size = size;
    return value | (size < 8 ? ~0ull << (8 * size) : 0); /* dirt above: the bus cuts it off */
}

static void cells_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    struct cells *cells = owner;
    memcpy(&cells->bytes[offset], &value, size);
    cells->accesses++;
    cells->last_size = size;
}

static const struct region_ops cells_ops = {.read = cells_read, .write = cells_write};

static void cells_init(struct cells *cells, const char *name, uint64_t base, uint64_t size)
{
    *cells = (struct cells){
        .region = {.name = name, .base = base, .size = size, .ops = &cells_ops, .owner = cells}};
}

static void test_ports(void **state)
{
    struct bus *bus = bus_new();
    struct cells a, b;
    cells_init(&a, "a", 0x100, 4);
    cells_init(&b, "b", 0xfffe, 2);
    assert_int_equal(bus_add_port(bus, &a.region), 0);
    assert_int_equal(bus_add_port(bus, &b.region), 0);
    bus_port_write(bus, 0x100, 4, 0x44332211);
    assert_int_equal(a.last_size, 4);
    assert_int_equal(bus_port_read(bus, 0x100, 4), 0x44332211);
    assert_int_equal(bus_port_read(bus, 0x101, 1), 0x22);
    /* crosses the end: two bytes of the region, two of nobody */
    assert_int_equal(bus_port_read(bus, 0x102, 4), 0xffff4433);
    assert_int_equal(a.last_size, 1);
    /* begins before the region */
    assert_int_equal(bus_port_read(bus, 0xff, 2), 0x11ff);
    assert_int_equal(bus_port_read(bus, 0x200, 4), 0xffffffff);
    /* the last port wraps to port 0 */
    bus_port_write(bus, 0xffff, 2, 0xaa55);
    assert_int_equal(b.bytes[1], 0x55);
    bus_remove(bus, &a.region);
    bus_remove(bus, &a.region);
    assert_int_equal(bus_port_read(bus, 0x100, 1), 0xff);
    bus_free(bus);
}

static void test_overlap(void **state)
{
    static const struct {
        uint64_t base, size;
        int result;
    } rows[] = {
        {0x1000, 16, -EBUSY},
        {0xff1, 16, -EBUSY},
        {0x100f, 16, -EBUSY},
        {0x1010, 16, 0},
        {0xff0, 16, 0},
        {0x1004, 4, -EBUSY},
        {UINT64_MAX - 14, 16, -EINVAL},
        {0x2000, 0, -EINVAL},
        {UINT64_MAX - 15, 16, 0},
    };
    struct bus *bus = bus_new();
    struct cells first, others[9];
    cells_init(&first, "first", 0x1000, 16);
    assert_int_equal(bus_add_mmio(bus, &first.region), 0);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        cells_init(&others[i], "other", rows[i].base, rows[i].size);
        assert_int_equal(bus_add_mmio(bus, &others[i].region), rows[i].result);
    }
    struct cells port;
    cells_init(&port, "port", 0xfff8, 16);
    assert_int_equal(bus_add_port(bus, &port.region), -EINVAL);
    bus_free(bus);
}

static void test_mmio(void **state)
{
    struct bus *bus = bus_new();
    struct cells cells[20];
    for (unsigned i = 0; i < 20; i++) { /* added in no order */
        cells_init(&cells[i], "cells", 0xd0000000 + ((i * 7) % 20) * 16, 16);
        assert_int_equal(bus_add_mmio(bus, &cells[i].region), 0);
    }
    for (unsigned i = 0; i < 20; i++) {
        bus_mmio_write(bus, cells[i].region.base, 8, 0x1122334455667700 + i);
        assert_int_equal(cells[i].bytes[0], i);
    }
    /* across two neighbours, in bytes */
    bus_mmio_write(bus, 0xd000000e, 4, 0xddccbbaa);
    assert_int_equal(bus_mmio_read(bus, 0xd000000e, 4), 0xddccbbaa);
    assert_int_equal(cells[0].bytes[14], 0xaa);
    assert_int_equal(bus_mmio_read(bus, 0xd0000140, 8), UINT64_MAX);
    assert_int_equal(bus_mmio_read(bus, 0xcffffffc, 8) >> 32, 0x55667700);
    bus_mmio_write(bus, 0xd0000010, 1, 3);
    for (unsigned i = 0; i < 20; i += 2) {
        bus_remove(bus, &cells[i].region);
    }
    for (unsigned i = 0; i < 20; i++) {
        assert_int_equal(bus_mmio_read(bus, cells[i].region.base, 1), i % 2 ? i : 0xff);
    }
    bus_free(bus);
}

static void test_full(void **state)
{
    static struct cells cells[513];
    struct bus *bus = bus_new();
    for (unsigned i = 0; i < 513; i++) {
        cells_init(&cells[i], "cells", 0x10000ull * i, 16);
        assert_int_equal(bus_add_mmio(bus, &cells[i].region), i < 512 ? 0 : -ENOSPC);
    }
    bus_remove(bus, &cells[7].region);
    assert_int_equal(bus_add_mmio(bus, &cells[512].region), 0);
    assert_int_equal(bus_mmio_read(bus, cells[512].region.base, 1), 0);
    bus_free(bus);
}

/* A region that is not allowed to be asked while `gone`. */
struct moving {
    struct region region;
    atomic_bool gone;
    atomic_uint wrong;
};

static uint64_t moving_read(void *owner, uint64_t offset, unsigned size)
{
    struct moving *moving = owner;
    atomic_fetch_add(&moving->wrong, atomic_load(&moving->gone));
    for (volatile int i = 0; i < 50; i++) {
    }
    atomic_fetch_add(&moving->wrong, atomic_load(&moving->gone));
    return 0x5a;
}

static void moving_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
}

static const struct region_ops moving_ops = {.read = moving_read, .write = moving_write};

struct race {
    struct bus *bus;
    atomic_bool stop;
    atomic_uint hits, steady_misses;
};

static void *race_reader(void *argument)
{
    struct race *race = argument;
    while (!atomic_load(&race->stop)) {
        for (unsigned i = 0; i < 4; i++) {
            atomic_fetch_add(&race->hits, bus_mmio_read(race->bus, 0x1000 * i, 1) == 0x5a);
        }
        /* a region that never moves is found in every version of the table */
        atomic_fetch_add(&race->steady_misses, bus_mmio_read(race->bus, 0x2800, 1) != 0x5a);
        atomic_fetch_add(&race->hits, bus_port_read(race->bus, 0x10, 1) == 0x5a);
    }
    return NULL;
}

static void test_race(void **state)
{
    struct race race = {.bus = bus_new()};
    struct moving moving = {
        .region = {.name = "moving", .size = 16, .ops = &moving_ops, .owner = &moving}};
    struct moving steady = {
        .region = {
            .name = "steady", .base = 0x2800, .size = 16, .ops = &moving_ops, .owner = &steady}};
    assert_int_equal(bus_add_mmio(race.bus, &steady.region), 0);
    pthread_t threads[3];
    for (unsigned i = 0; i < 3; i++) {
        pthread_create(&threads[i], NULL, race_reader, &race);
    }
    for (unsigned round = 0; round < 3000; round++) {
        atomic_store(&moving.gone, false);
        if (round % 5 == 4) {
            moving.region.base = 0x10;
            assert_int_equal(bus_add_port(race.bus, &moving.region), 0);
        } else {
            moving.region.base = 0x1000 * (round % 5);
            assert_int_equal(bus_add_mmio(race.bus, &moving.region), 0);
        }
        for (volatile int i = 0; i < 500; i++) {
        }
        bus_remove(race.bus, &moving.region);
        atomic_store(&moving.gone, true);
    }
    atomic_store(&race.stop, true);
    for (unsigned i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(atomic_load(&moving.wrong), 0);
    assert_int_equal(atomic_load(&race.steady_misses), 0);
    bus_free(race.bus);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ports), cmocka_unit_test(test_overlap), cmocka_unit_test(test_mmio),
        cmocka_unit_test(test_full),  cmocka_unit_test(test_race),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
