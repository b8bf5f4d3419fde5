/*
 * The I/O APIC: 24 pins, each with a redirection entry (82093AA; version 20h with the EOI register
 * of later chip sets).
 *
 * Threads: none of its own; the irqchip's lock guards it. Messages go out with that lock held.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct apic_message;
struct visitor;

enum { IO_APIC_PINS = 24 };

struct ioapic {
    void (*send)(void *owner, const struct apic_message *message);
    void *owner;
    uint64_t entries[IO_APIC_PINS];
    uint32_t lines; /* levels of the pins */
    uint8_t select, id;
};

void ioapic_reset(struct ioapic *ioapic);
void ioapic_visit(struct ioapic *ioapic, struct visitor *v);
void ioapic_set(struct ioapic *ioapic, unsigned pin, bool level);
/* A local APIC completed this level-triggered vector. */
void ioapic_eoi(struct ioapic *ioapic, uint8_t vector);

/* The register page; `offset` within it. */
uint32_t ioapic_read(struct ioapic *ioapic, uint64_t offset);
void ioapic_write(struct ioapic *ioapic, uint64_t offset, uint32_t value);
