/*
 * The interrupt controllers of the board as one device: a local APIC for each vCPU, one I/O APIC
 * with 24 pins, and a pair of 8259s. SDM volume 3, chapter 10; 82093AA; 8259A.
 *
 * Routing: ISA line n (0..15) reaches input n of the 8259s and pin n of the I/O APIC, except that
 *          line 0 (the timer) reaches pin 2, and line 2 does not exist (the cascade). The MADT has
 *          to say so. Lines 16..23 reach the I/O APIC only. Levels are active-high inside.
 * Threads: lines and messages from any thread. Everything with a `vcpu` argument only on that
 *          vCPU's thread. Calls of the wire come from any thread, kicks without a lock of the local
 *          APIC and the others with one; the device's lock may be held (for lines): they must not
 *          block, and not call what takes it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "bus/bus.h"
#include "device/device.h"

struct irqchip;

enum { IRQCHIP_LINES = 24, IRQCHIP_CPUS_MAX = 255 };

enum {
    IRQCHIP_IO_APIC_BASE = 0xfec00000,
    IRQCHIP_LOCAL_APIC_BASE = 0xfee00000,
    /* The rate at which the APIC timer counts (with divide value 1), and CPUID 15H's crystal. */
    IRQCHIP_TIMER_HZ = 25000000,
};

/* What a vCPU is told. */
enum irqchip_event {
    IRQCHIP_INTERRUPT, /* irqchip_acknowledge() may have a vector */
    IRQCHIP_NMI,
    IRQCHIP_INIT,
    IRQCHIP_SIPI, /* with its vector */
};

struct irqchip_wire {
    void (*kick)(void *owner, unsigned vcpu, enum irqchip_event event, uint8_t vector);
    /* The vCPU's TSC now, and when (on the irqchip's clock) it will reach a value. Any thread. */
    uint64_t (*tsc_now)(void *owner, unsigned vcpu);
    uint64_t (*tsc_to_deadline_ns)(void *owner, unsigned vcpu, uint64_t tsc);
    void *owner;
};

struct irqchip_config {
    unsigned cpus; /* APIC ids are 0..cpus-1; vCPU 0 is the boot processor */
    struct bus *bus;
    struct clock clock;
    struct irqchip_wire wire;
};

int irqchip_new(const struct irqchip_config *config, struct irqchip **ret_chip)
    __attribute__((warn_unused_result));
/* For the machine's list of devices; device_free() of it frees the irqchip. */
struct device *irqchip_device(struct irqchip *chip);

/* A line to give to a device. `number` < IRQCHIP_LINES; each number has one driver. */
struct irq_line irqchip_line(struct irqchip *chip, unsigned number);
/* Where devices send their message-signalled interrupts. */
struct msi_target irqchip_msi(struct irqchip *chip);

/* The vector to deliver now (it is then in service), or -1. */
int irqchip_acknowledge(struct irqchip *chip, unsigned vcpu);
/* Would irqchip_acknowledge() have a vector? */
bool irqchip_has_interrupt(struct irqchip *chip, unsigned vcpu);

/* Does the vCPU see its local APIC's registers at this physical address? */
bool irqchip_claims(struct irqchip *chip, unsigned vcpu, uint64_t address);
/* The register page; `offset` within the 4 KiB page. */
uint64_t irqchip_mmio_read(struct irqchip *chip, unsigned vcpu, uint64_t offset, unsigned size);
void irqchip_mmio_write(struct irqchip *chip, unsigned vcpu, uint64_t offset, unsigned size,
                        uint64_t value);

/* IA32_APIC_BASE, IA32_TSC_DEADLINE and the x2APIC range 800H..8FFH. False means #GP(0). */
bool irqchip_owns_msr(uint32_t index);
bool irqchip_msr_read(struct irqchip *chip, unsigned vcpu, uint32_t index, uint64_t *ret_value);
bool irqchip_msr_write(struct irqchip *chip, unsigned vcpu, uint32_t index, uint64_t value);

uint64_t irqchip_cr8_read(struct irqchip *chip, unsigned vcpu);
void irqchip_cr8_write(struct irqchip *chip, unsigned vcpu, uint64_t value);

/* The vCPU took an INIT: its local APIC goes to the state of SDM volume 3, 10.4.7.3. */
void irqchip_vcpu_init(struct irqchip *chip, unsigned vcpu);
/* The guest's TSC was changed (WRMSR, restore): armed TSC deadlines are computed anew. */
void irqchip_tsc_changed(struct irqchip *chip, unsigned vcpu);
