/*
 * The local APIC of one vCPU, in xAPIC and x2APIC mode. SDM volume 3, chapter 10.
 *
 * Threads: registers are accessed by the vCPU's own thread; interrupts are accepted, the timer
 *          expires and pins change on any thread. Each call takes the lock for a moment only.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "device/irqchip/irqchip.h"

struct visitor;

/* Delivery modes of messages, local vectors and redirection entries. */
enum delivery_mode {
    DELIVERY_FIXED = 0,
    DELIVERY_LOWEST = 1,
    DELIVERY_SMI = 2,
    DELIVERY_NMI = 4,
    DELIVERY_INIT = 5,
    DELIVERY_SIPI = 6,
    DELIVERY_EXTINT = 7,
};

/* An interrupt on its way to local APICs. */
struct apic_message {
    uint32_t destination;
    bool is_logical;
    bool is_wide; /* the destination has 32 bits (x2APIC) instead of 8 */
    bool is_level;
    uint8_t mode; /* enum delivery_mode */
    uint8_t vector;
};

enum apic_shorthand { SHORTHAND_NONE, SHORTHAND_SELF, SHORTHAND_ALL, SHORTHAND_OTHERS };

/* What a local APIC asks of the board it sits on. No lock of the local APIC is held. */
struct lapic_board {
    void (*send)(void *owner, unsigned from, enum apic_shorthand shorthand,
                 const struct apic_message *message);
    /* A level-triggered interrupt was completed: I/O APICs look whether it is still asserted. */
    void (*eoi)(void *owner, uint8_t vector);
    void *owner;
};

enum lapic_vector {
    LVT_TIMER,
    LVT_THERMAL,
    LVT_COUNTER,
    LVT_LINT0,
    LVT_LINT1,
    LVT_ERROR,
    LVT_COUNT
};

struct lapic {
    pthread_mutex_t lock;
    /* given */
    unsigned id;
    const struct irqchip_wire *wire;
    const struct lapic_board *board;
    struct clock clock;
    void *alarm;
    /* what the vCPU is to be told when the lock is free: bits by enum irqchip_event */
    uint32_t kicks;
    uint8_t sipi_vector;
    /* state */
    uint64_t base_msr;
    uint32_t tpr, ldr, dfr, svr, esr, esr_pending;
    uint64_t icr;
    uint32_t lvt[LVT_COUNT];
    uint32_t irr[8], isr[8], tmr[8];
    uint32_t timer_initial, timer_divide;
    uint64_t timer_due; /* when the timer expires next, UINT64_MAX: never */
    uint64_t tsc_deadline;
    bool lint0; /* the level of the pin, driven by the 8259s */
};

void lapic_init(struct lapic *lapic, unsigned id, const struct irqchip_wire *wire,
                const struct lapic_board *board, struct clock clock);
void lapic_fini(struct lapic *lapic);
/* Power-on, and as a firmware leaves it: the boot processor passes the 8259s through LINT0. */
void lapic_reset(struct lapic *lapic);
/* INIT: as reset, but IA32_APIC_BASE stays. */
void lapic_init_ipi(struct lapic *lapic);
void lapic_visit(struct lapic *lapic, struct visitor *v);

/* Does the message name this local APIC? */
bool lapic_matches(struct lapic *lapic, const struct apic_message *message);
/* Bigger means busier: arbitration of lowest-priority messages. -1: takes no interrupts at all. */
int lapic_priority(struct lapic *lapic);
/* Take a message that names this local APIC. */
void lapic_accept(struct lapic *lapic, const struct apic_message *message);
/* The 8259s' output, wired to LINT0 of every local APIC. */
void lapic_set_lint0(struct lapic *lapic, bool level);

/* Would the 8259s be acknowledged through this local APIC? */
bool lapic_passes_extint(struct lapic *lapic);
/* The highest deliverable vector, put in service; -1 if there is none. */
int lapic_acknowledge(struct lapic *lapic);
bool lapic_has_interrupt(struct lapic *lapic);

bool lapic_claims(struct lapic *lapic, uint64_t address);
uint32_t lapic_mmio_read(struct lapic *lapic, unsigned offset);
void lapic_mmio_write(struct lapic *lapic, unsigned offset, uint32_t value);
bool lapic_msr_read(struct lapic *lapic, uint32_t index, uint64_t *ret_value);
bool lapic_msr_write(struct lapic *lapic, uint32_t index, uint64_t value);
uint32_t lapic_tpr(struct lapic *lapic);
void lapic_set_tpr(struct lapic *lapic, uint32_t tpr);
void lapic_tsc_changed(struct lapic *lapic);
