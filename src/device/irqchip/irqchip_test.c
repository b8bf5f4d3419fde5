/* Local APICs, I/O APIC and routing, through the interface that the machine uses. */
#include "device/irqchip/irqchip.c" /* its struct, to check that its visit names every field */

#include "device/test_board.h"

enum {
    CPUS = 4,
    X2APIC = 0xfee00c00,
    EOI = 0xb0,
    SVR = 0xf0,
    TPR = 0x80,
    ICR = 0x300,
    LVT_TIMER_AT = 0x320,
    INITIAL = 0x380,
    CURRENT = 0x390,
    DIVIDE = 0x3e0,
    ESR = 0x280,
    TICK_NS = 1000000000 / IRQCHIP_TIMER_HZ, /* of the timer, with divide value 1 */
};

struct fixture {
    struct bus *bus;
    struct test_clock *clock;
    struct irqchip *chip;
    unsigned kicks[CPUS][4];
    uint8_t sipi[CPUS];
};

static void wire_kick(void *owner, unsigned vcpu, enum irqchip_event event, uint8_t vector)
{
    struct fixture *f = owner;
    assert_int_equal(pthread_mutex_trylock(&f->chip->lapics[vcpu].lock), 0);
    pthread_mutex_unlock(&f->chip->lapics[vcpu].lock);
    assert_true(event != IRQCHIP_INTERRUPT || irqchip_has_interrupt(f->chip, vcpu));
    f->kicks[vcpu][event]++;
    f->sipi[vcpu] = event == IRQCHIP_SIPI ? vector : f->sipi[vcpu];
}

/* The guest's TSC runs at 2 GHz. */
static uint64_t wire_tsc_now(void *owner, unsigned vcpu)
{
    struct fixture *f = owner;
    return clock_now(test_clock_clock(f->clock)) * 2;
}

static uint64_t wire_tsc_to_deadline(void *owner, unsigned vcpu, uint64_t tsc)
{
    return tsc / 2;
}

static void put(struct fixture *f, unsigned vcpu, unsigned offset, uint32_t value)
{
    irqchip_mmio_write(f->chip, vcpu, offset, 4, value);
}

static uint32_t get(struct fixture *f, unsigned vcpu, unsigned offset)
{
    return (uint32_t)irqchip_mmio_read(f->chip, vcpu, offset, 4);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->bus = bus_new();
    f->clock = test_clock_new();
    const struct irqchip_config config = {
        .cpus = CPUS,
        .bus = f->bus,
        .clock = test_clock_clock(f->clock),
        .wire = {.kick = wire_kick,
                 .tsc_now = wire_tsc_now,
                 .tsc_to_deadline_ns = wire_tsc_to_deadline,
                 .owner = f},
    };
    assert_int_equal(irqchip_new(&config, &f->chip), 0);
    for (unsigned i = 0; i < CPUS; i++) {
        put(f, i, SVR, 0x1ff);
        put(f, i, 0xd0, 0x01000000u << i);
    }
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    device_free(irqchip_device(f->chip));
    test_clock_free(f->clock);
    bus_free(f->bus);
    free(f);
    return 0;
}

static void message(struct fixture *f, uint32_t address, uint32_t data)
{
    struct msi_target msi = irqchip_msi(f->chip);
    msi.send(msi.owner, address, data);
}

/* Which vCPUs have an interrupt, as a mask; takes and completes them. */
static unsigned drain(struct fixture *f, int vector)
{
    unsigned who = 0;
    for (unsigned i = 0; i < CPUS; i++) {
        int got = irqchip_acknowledge(f->chip, i);
        if (got >= 0) {
            assert_int_equal(got, vector);
            who |= 1u << i;
            put(f, i, EOI, 0);
        }
    }
    return who;
}

static void pin_set(struct fixture *f, unsigned pin, uint64_t entry)
{
    bus_mmio_write(f->bus, IRQCHIP_IO_APIC_BASE, 4, 0x10 + 2 * pin);
    bus_mmio_write(f->bus, IRQCHIP_IO_APIC_BASE + 0x10, 4, (uint32_t)entry);
    bus_mmio_write(f->bus, IRQCHIP_IO_APIC_BASE, 4, 0x11 + 2 * pin);
    bus_mmio_write(f->bus, IRQCHIP_IO_APIC_BASE + 0x10, 4, (uint32_t)(entry >> 32));
}

static void test_destinations(void **state)
{
    static const struct {
        uint32_t address, data;
        unsigned who;
    } rows[] = {
        {0xfee02000, 0x40, 4},  {0xfeeff000, 0x40, 15}, /* physical, broadcast */
        {0xfee09000, 0x40, 0},  {0xfee05004, 0x40, 5},  /* nobody; flat logical */
        {0xfeeff004, 0x40, 15}, {0xfef00000, 0x40, 0},  /* outside the window */
        {0xfee01000, 0x0f, 0},  {0xfee01000, 0x240, 0}, /* illegal vector, SMI */
    };
    struct fixture *f = *state;
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        message(f, rows[i].address, rows[i].data);
        assert_int_equal(drain(f, 0x40), rows[i].who);
    }
    for (unsigned i = 0; i < CPUS; i++) { /* two clusters of two */
        put(f, i, 0xe0, 0);
        put(f, i, 0xd0, (i / 2) << 28 | 1u << (24 + i % 2));
    }
    message(f, 0xfee13004, 0x50);
    assert_int_equal(drain(f, 0x50), 0xc);
    message(f, 0xfee02004, 0x50);
    assert_int_equal(drain(f, 0x50), 0x2);
}

static void test_lowest_priority(void **state)
{
    struct fixture *f = *state;
    put(f, 0, TPR, 0x30);
    put(f, 1, TPR, 0x20);
    put(f, 3, TPR, 0x20);
    for (unsigned i = 0; i < 3; i++) {
        message(f, 0xfee0f004, 0x140);
        assert_int_equal(drain(f, 0x40), 4);
    }
    message(f, 0xfee0b00c, 0x40); /* redirection hint: among 0, 1 and 3 */
    unsigned who = drain(f, 0x40);
    assert_true(who == 2 || who == 8);
    put(f, 2, SVR, 0xff); /* software-disabled: takes none */
    message(f, 0xfee04004, 0x140);
    assert_int_equal(drain(f, 0x40), 0);
}

static void test_priorities(void **state)
{
    struct fixture *f = *state;
    message(f, 0xfee00000, 0x55);
    message(f, 0xfee00000, 0x71);
    assert_int_equal(irqchip_acknowledge(f->chip, 0), 0x71);
    assert_int_equal(get(f, 0, 0xa0), 0x70);
    assert_int_equal(irqchip_acknowledge(f->chip, 0), -1);
    message(f, 0xfee00000, 0x7f); /* the same class waits */
    assert_false(irqchip_has_interrupt(f->chip, 0));
    message(f, 0xfee00000, 0x80);
    assert_int_equal(irqchip_acknowledge(f->chip, 0), 0x80);
    assert_int_equal(get(f, 0, 0x140), 1);
    assert_int_equal(get(f, 0, 0x130), 1u << 17);
    put(f, 0, EOI, 0);
    unsigned kicks = f->kicks[0][IRQCHIP_INTERRUPT];
    put(f, 0, EOI, 0);
    assert_int_equal(f->kicks[0][IRQCHIP_INTERRUPT], kicks + 1);
    assert_int_equal(irqchip_acknowledge(f->chip, 0), 0x7f);
    put(f, 0, EOI, 0);
    irqchip_cr8_write(f->chip, 0, 5);
    assert_int_equal(get(f, 0, TPR), 0x50);
    assert_false(irqchip_has_interrupt(f->chip, 0));
    kicks = f->kicks[0][IRQCHIP_INTERRUPT];
    irqchip_cr8_write(f->chip, 0, 4);
    assert_int_equal(f->kicks[0][IRQCHIP_INTERRUPT], kicks + 1);
    assert_int_equal(irqchip_cr8_read(f->chip, 0), 4);
    assert_int_equal(irqchip_acknowledge(f->chip, 0), 0x55);
}

static void test_ipi(void **state)
{
    static const struct {
        uint32_t high, low;
        unsigned who;
    } rows[] = {
        {0x02000000, 0x00041, 4}, {0xff000000, 0x00041, 15}, {0x0a000000, 0x00841, 10},
        {0, 0x40041, 2},          {0, 0x80041, 15},          {0, 0xc0041, 13},
    };
    struct fixture *f = *state;
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        put(f, 1, ICR + 0x10, rows[i].high);
        put(f, 1, ICR, rows[i].low);
        assert_int_equal(drain(f, 0x41), rows[i].who);
    }
    put(f, 1, ICR + 0x10, 0x03000000);
    put(f, 1, ICR, 0x0c500); /* INIT, level assert */
    put(f, 1, ICR, 0x08500); /* INIT, level de-assert: nothing */
    assert_int_equal(f->kicks[3][IRQCHIP_INIT], 1);
    put(f, 1, ICR, 0x0069a);
    assert_int_equal(f->kicks[3][IRQCHIP_SIPI], 1);
    assert_int_equal(f->sipi[3], 0x9a);
    put(f, 1, ICR, 0xc0400);
    assert_int_equal(f->kicks[0][IRQCHIP_NMI] + f->kicks[2][IRQCHIP_NMI], 2);
    assert_int_equal(f->kicks[1][IRQCHIP_NMI], 0);
    put(f, 1, 0x370, 0x60); /* error vector */
    put(f, 1, ICR, 0x00005);
    assert_int_equal(irqchip_acknowledge(f->chip, 1), 0x60);
    put(f, 1, ESR, 0);
    assert_int_equal(get(f, 1, ESR), 1u << 5);
    put(f, 1, ESR, 0);
    assert_int_equal(get(f, 1, ESR), 0);
}

static void test_timer(void **state)
{
    struct fixture *f = *state;
    put(f, 0, DIVIDE, 0xb); /* by 1 */
    put(f, 0, LVT_TIMER_AT, 0xe0);
    put(f, 0, INITIAL, 100000);
    test_clock_advance(f->clock, 60000 * TICK_NS);
    assert_int_equal(get(f, 0, CURRENT), 40000);
    assert_false(irqchip_has_interrupt(f->chip, 0));
    test_clock_advance(f->clock, 40000 * TICK_NS);
    assert_int_equal(irqchip_acknowledge(f->chip, 0), 0xe0);
    put(f, 0, EOI, 0);
    assert_int_equal(get(f, 0, CURRENT), 0);
    test_clock_advance(f->clock, 1000000 * TICK_NS);
    assert_false(irqchip_has_interrupt(f->chip, 0));
    put(f, 0, DIVIDE, 3); /* by 16, periodic */
    put(f, 0, LVT_TIMER_AT, 0x200e1);
    put(f, 0, INITIAL, 10000);
    for (unsigned i = 0; i < 5; i++) {
        test_clock_advance(f->clock, 160000 * TICK_NS);
        assert_int_equal(irqchip_acknowledge(f->chip, 0), 0xe1);
        put(f, 0, EOI, 0);
    }
    put(f, 0, LVT_TIMER_AT, 0x300e1); /* masked: it runs on, silently */
    test_clock_advance(f->clock, 200000 * TICK_NS);
    assert_int_equal(get(f, 0, CURRENT), 7500);
    assert_int_equal(test_clock_next(f->clock), UINT64_MAX);
    put(f, 0, LVT_TIMER_AT, 0x200e1);
    assert_false(irqchip_has_interrupt(f->chip, 0));
    test_clock_advance(f->clock, 120000 * TICK_NS);
    assert_true(irqchip_has_interrupt(f->chip, 0));
    put(f, 0, INITIAL, 0);
    assert_int_equal(test_clock_next(f->clock), UINT64_MAX);
}

/* A period shorter than the host can follow costs the host nothing more. */
static void test_timer_storm(void **state)
{
    struct fixture *f = *state;
    put(f, 0, DIVIDE, 0xb);
    put(f, 0, LVT_TIMER_AT, 0x200e1);
    put(f, 0, INITIAL, 1);
    unsigned kicks = f->kicks[0][IRQCHIP_INTERRUPT];
    test_clock_advance(f->clock, 1000000);
    assert_in_range(f->kicks[0][IRQCHIP_INTERRUPT] - kicks, 10, 21);
}

static void test_tsc_deadline(void **state)
{
    struct fixture *f = *state;
    uint64_t value = 1;
    assert_true(irqchip_msr_write(f->chip, 0, MSR_TSC_DEADLINE, 1000)); /* other mode: ignored */
    assert_true(irqchip_msr_read(f->chip, 0, MSR_TSC_DEADLINE, &value));
    assert_int_equal(value, 0);
    put(f, 0, LVT_TIMER_AT, 0x400e2);
    irqchip_msr_write(f->chip, 0, MSR_TSC_DEADLINE, 1000000);
    put(f, 0, INITIAL, 5); /* ignored in this mode */
    test_clock_advance(f->clock, 499999);
    assert_false(irqchip_has_interrupt(f->chip, 0));
    irqchip_msr_read(f->chip, 0, MSR_TSC_DEADLINE, &value);
    assert_int_equal(value, 1000000);
    test_clock_advance(f->clock, 1);
    assert_int_equal(irqchip_acknowledge(f->chip, 0), 0xe2);
    irqchip_msr_read(f->chip, 0, MSR_TSC_DEADLINE, &value);
    assert_int_equal(value, 0);
    put(f, 0, EOI, 0);
    irqchip_msr_write(f->chip, 0, MSR_TSC_DEADLINE, 1); /* in the past */
    assert_int_equal(irqchip_acknowledge(f->chip, 0), 0xe2);
    put(f, 0, EOI, 0);
    irqchip_msr_write(f->chip, 0, MSR_TSC_DEADLINE, 2000000);
    irqchip_msr_write(f->chip, 0, MSR_TSC_DEADLINE, 0); /* disarmed */
    test_clock_advance(f->clock, 10000000);
    assert_false(irqchip_has_interrupt(f->chip, 0));
}

static void test_x2apic(void **state)
{
    struct fixture *f = *state;
    uint64_t value;
    assert_false(irqchip_msr_read(f->chip, 1, 0x802, &value)); /* not in this mode yet */
    assert_true(irqchip_claims(f->chip, 1, 0xfee00ff0));
    for (unsigned i = 0; i < CPUS; i++) {
        assert_true(irqchip_msr_write(f->chip, i, MSR_APIC_BASE, X2APIC | (i == 0) << 8));
    }
    assert_false(irqchip_claims(f->chip, 1, 0xfee00ff0));
    assert_true(irqchip_msr_read(f->chip, 1, 0x802, &value));
    assert_int_equal(value, 1);
    assert_true(irqchip_msr_read(f->chip, 3, 0x80d, &value));
    assert_int_equal(value, 8);
    static const struct {
        uint64_t icr;
        unsigned who;
    } rows[] = {{0x0000000200000042, 4},
                {0xffffffff00000042, 15},
                {0x0000000600000842, 6},
                {0x0001000600000842, 0}};
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        assert_true(irqchip_msr_write(f->chip, 0, 0x830, rows[i].icr));
        unsigned who = 0;
        for (unsigned cpu = 0; cpu < CPUS; cpu++) {
            who |= (unsigned)(irqchip_acknowledge(f->chip, cpu) == 0x42) << cpu;
            assert_true(irqchip_msr_write(f->chip, cpu, 0x80b, 0));
        }
        assert_int_equal(who, rows[i].who);
    }
    assert_true(irqchip_msr_write(f->chip, 2, 0x83f, 0x43));
    assert_int_equal(irqchip_acknowledge(f->chip, 2), 0x43);
    /* #GP: reserved bits, read-only, absent registers, illegal transitions */
    static const struct {
        uint32_t index;
        uint64_t value;
    } faults[] = {{0x80b, 1},       {0x808, 0x100},     {0x802, 0},         {0x80e, 0},
                  {0x831, 0},       {0x80f, 0x2000},    {0x839, 1},         {0x8ff, 0},
                  {0x832, 1 << 30}, {0x1b, 0xfee00800}, {0x1b, 0xfee00400}, {0x1b, 1}};
    for (size_t i = 0; i < ARRAY_SIZE(faults); i++) {
        assert_false(irqchip_msr_write(f->chip, 1, faults[i].index, faults[i].value));
    }
    assert_false(irqchip_msr_read(f->chip, 1, 0x80b, &value));
    assert_false(irqchip_msr_read(f->chip, 1, 0x83f, &value));
    assert_true(irqchip_msr_write(f->chip, 1, MSR_APIC_BASE, 0xfee00000));
    assert_false(irqchip_msr_write(f->chip, 1, MSR_APIC_BASE, X2APIC));
    assert_false(irqchip_claims(f->chip, 1, 0xfee00000));
    assert_true(irqchip_msr_write(f->chip, 1, MSR_APIC_BASE, 0xfed00800)); /* moved */
    assert_true(irqchip_claims(f->chip, 1, 0xfed00020));
    assert_int_equal(get(f, 1, 0x20), 1u << 24);
    assert_int_equal(get(f, 1, SVR), 0xff);
}

static void test_io_apic_edge(void **state)
{
    struct fixture *f = *state;
    struct irq_line line = irqchip_line(f->chip, 4);
    irq_line_pulse(&line); /* masked: lost */
    pin_set(f, 4, 0x0100000000000051);
    assert_int_equal(drain(f, 0x51), 0);
    irq_line_set(&line, true);
    assert_int_equal(drain(f, 0x51), 2);
    assert_int_equal(drain(f, 0x51), 0); /* once for an edge */
    irq_line_set(&line, false);
    irq_line_set(&line, true);
    assert_int_equal(drain(f, 0x51), 2);
    struct irq_line timer = irqchip_line(f->chip, 0);
    pin_set(f, 2, 0x52);
    irq_line_pulse(&timer); /* ISA line 0 is pin 2 */
    assert_int_equal(irqchip_acknowledge(f->chip, 1), -1);
    bus_mmio_write(f->bus, IRQCHIP_IO_APIC_BASE, 4, 1);
    assert_int_equal(bus_mmio_read(f->bus, IRQCHIP_IO_APIC_BASE + 0x10, 4), 0x00170020);
}

static void test_io_apic_level(void **state)
{
    struct fixture *f = *state;
    struct irq_line line = irqchip_line(f->chip, 17);
    pin_set(f, 17, 0x0000000000018053);
    irq_line_set(&line, true);
    assert_int_equal(drain(f, 0x53), 0);
    pin_set(f, 17, 0x0200000000008053);
    assert_int_equal(f->chip->lapics[0].irr[2], 1u << 19); /* before its destination was set */
    assert_int_equal(irqchip_acknowledge(f->chip, 0), 0x53);
    assert_int_equal(irqchip_acknowledge(f->chip, 2), -1); /* remote IRR holds it */
    put(f, 0, EOI, 0);
    assert_int_equal(irqchip_acknowledge(f->chip, 2), 0x53); /* still up: again */
    irq_line_set(&line, false);
    put(f, 2, EOI, 0);
    assert_int_equal(drain(f, 0x53), 0);
    /* EOI by the I/O APIC's own register, with broadcasts suppressed */
    put(f, 2, SVR, 0x11ff);
    irq_line_set(&line, true);
    assert_int_equal(drain(f, 0x53), 4);
    assert_int_equal(drain(f, 0x53), 0);
    bus_mmio_write(f->bus, IRQCHIP_IO_APIC_BASE + 0x40, 4, 0x53);
    assert_int_equal(drain(f, 0x53), 4);
}

/* Before a guest sets up APICs, the boot processor sees the 8259s. */
static void test_virtual_wire(void **state)
{
    static const uint8_t icw[] = {0x11, 0x20, 0x04, 0x01};
    struct fixture *f = *state;
    irqchip_device(f->chip)->ops->reset(irqchip_device(f->chip));
    out8(f->bus, 0x20, icw[0]);
    for (unsigned i = 1; i < 4; i++) {
        out8(f->bus, 0x21, icw[i]);
    }
    struct irq_line timer = irqchip_line(f->chip, 0);
    unsigned kicks = f->kicks[0][IRQCHIP_INTERRUPT];
    irq_line_pulse(&timer);
    assert_int_equal(f->kicks[0][IRQCHIP_INTERRUPT], kicks + 1);
    assert_true(irqchip_has_interrupt(f->chip, 0));
    assert_false(irqchip_has_interrupt(f->chip, 1));
    assert_int_equal(irqchip_acknowledge(f->chip, 0), 0x20);
    assert_int_equal(irqchip_acknowledge(f->chip, 0), -1);
    out8(f->bus, 0x20, 0x20);
    put(f, 0, SVR, 0x1ff);
    put(f, 0, 0x350, 0x10700); /* LINT0 masked */
    irq_line_pulse(&timer);
    assert_int_equal(irqchip_acknowledge(f->chip, 0), -1);
    put(f, 0, 0x350, 0x700);
    assert_int_equal(irqchip_acknowledge(f->chip, 0), 0x20);
    bus_port_write(f->bus, 0x4d0, 2, 0x0c00); /* both ELCRs by one access */
    assert_int_equal(in8(f->bus, 0x4d1), 0x0c);
}

static void test_init(void **state)
{
    struct fixture *f = *state;
    message(f, 0xfee01000, 0x44);
    irqchip_msr_write(f->chip, 1, MSR_APIC_BASE, X2APIC);
    irqchip_vcpu_init(f->chip, 1);
    uint64_t value;
    assert_true(irqchip_msr_read(f->chip, 1, 0x80f, &value));
    assert_int_equal(value, 0xff);
    assert_true(irqchip_msr_read(f->chip, 1, 0x80d, &value));
    assert_int_equal(value, 2);
    assert_int_equal(irqchip_acknowledge(f->chip, 1), -1);
}

static void test_visit(void **state)
{
    struct fixture *f = *state;
    struct irq_line line = irqchip_line(f->chip, 17);
    pin_set(f, 17, 0x0200000000008053);
    irq_line_set(&line, true);
    message(f, 0xfee01000, 0x61);
    put(f, 1, LVT_TIMER_AT, 0x200e1);
    put(f, 1, INITIAL, 1000000);
    assert_int_equal(irqchip_acknowledge(f->chip, 2), 0x53);
    struct device *device = irqchip_device(f->chip);
#define CHIP(member) VISIT_DERIVED(struct irqchip, member)
    assert_int_equal(VISIT_CHECK(struct irqchip, f->chip, device_visit, device, CHIP(device),
                                 CHIP(bus), CHIP(wire), CHIP(board), CHIP(ports),
                                 CHIP(ioapic_region), CHIP(ioapic.send), CHIP(ioapic.owner),
                                 CHIP(cpus), CHIP(lapics)),
                     0);
#define LAPIC(member) VISIT_DERIVED(struct lapic, member)
    assert_int_equal(VISIT_CHECK(struct lapic, &f->chip->lapics[1], device_visit, device,
                                 LAPIC(lock), LAPIC(id), LAPIC(wire), LAPIC(board), LAPIC(clock),
                                 LAPIC(alarm), LAPIC(kicks), LAPIC(sipi_vector)),
                     0);
    assert_int_equal(irqchip_acknowledge(f->chip, 1), 0x61);
    put(f, 1, EOI, 0);
    test_clock_advance(f->clock, 2000000 * TICK_NS);
    assert_int_equal(irqchip_acknowledge(f->chip, 1), 0xe1);
}

/* Everybody interrupts everybody; nobody hangs, and each line's last EOI leaves it silent. */
static void *race_sender(void *argument)
{
    struct fixture *f = argument;
    struct irq_line line = irqchip_line(f->chip, 18);
    for (unsigned i = 0; i < 20000; i++) {
        message(f, 0xfee0f004, 0x140 + i % 64);
        irq_line_set(&line, i & 1);
    }
    irq_line_set(&line, false);
    return NULL;
}

struct race_vcpu {
    struct fixture *f;
    unsigned vcpu;
    bool *stop;
};

static void *race_vcpu(void *argument)
{
    struct race_vcpu *own = argument;
    struct fixture *f = own->f;
    while (!__atomic_load_n(own->stop, __ATOMIC_ACQUIRE) ||
           irqchip_has_interrupt(f->chip, own->vcpu)) {
        int vector = irqchip_acknowledge(f->chip, own->vcpu);
        if (vector >= 0 && vector != 0x90) {
            put(f, own->vcpu, ICR, 0xc0090); /* all others */
        }
        if (vector >= 0) {
            put(f, own->vcpu, EOI, 0);
        }
        irqchip_cr8_write(f->chip, own->vcpu, 0);
    }
    return NULL;
}

static void race_kick(void *owner, unsigned vcpu, enum irqchip_event event, uint8_t vector)
{
}

static void test_race(void **state)
{
    struct fixture *f = *state;
    f->chip->wire.kick = race_kick;
    pin_set(f, 18, 0x0f00000000008954);
    bool stop = false;
    pthread_t sender, vcpus[2];
    struct race_vcpu owners[2] = {{f, 0, &stop}, {f, 1, &stop}};
    put(f, 2, SVR, 0xff);
    put(f, 3, SVR, 0xff);
    pthread_create(&sender, NULL, race_sender, f);
    for (unsigned i = 0; i < 2; i++) {
        pthread_create(&vcpus[i], NULL, race_vcpu, &owners[i]);
    }
    pthread_join(sender, NULL);
    __atomic_store_n(&stop, true, __ATOMIC_RELEASE);
    for (unsigned i = 0; i < 2; i++) {
        pthread_join(vcpus[i], NULL);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_destinations), TEST(test_lowest_priority),
        TEST(test_priorities),   TEST(test_ipi),
        TEST(test_timer),        TEST(test_timer_storm),
        TEST(test_tsc_deadline), TEST(test_x2apic),
        TEST(test_io_apic_edge), TEST(test_io_apic_level),
        TEST(test_virtual_wire), TEST(test_init),
        TEST(test_visit),        TEST(test_race),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
