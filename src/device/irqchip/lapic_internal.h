/* Shared by lapic.c (interrupts), lapic_registers.c (access) and lapic_timer.c. */
#pragma once

#include "device/irqchip/lapic.h"

enum {
    APIC_BASE_BSP = 1u << 8,
    APIC_BASE_X2APIC = 1u << 10,
    APIC_BASE_ENABLE = 1u << 11,
    SVR_ENABLE = 1u << 8,
    SVR_NO_EOI_BROADCAST = 1u << 12,
    LVT_MASKED = 1u << 16,
    LVT_MODE_SHIFT = 8,
    ESR_SEND_VECTOR = 1u << 5,
    ESR_RECEIVE_VECTOR = 1u << 6,
    ESR_REGISTER = 1u << 7,
};

void lapic_lock(struct lapic *lapic);
/*
 * Unlock, then tell the vCPU what has come for it meanwhile. Its thread may run at once, maybe
 * instead of this one, and wants the lock.
 */
void lapic_unlock(struct lapic *lapic);

/* All with the lock held. */
bool lapic_is_x2apic(const struct lapic *lapic);
bool lapic_is_enabled(const struct lapic *lapic);
uint32_t lapic_ppr(const struct lapic *lapic);
/* Tell the vCPU if something is deliverable now. */
void lapic_update(struct lapic *lapic);
/* Fire a local vector, if it is not masked. */
void lapic_fire(struct lapic *lapic, enum lapic_vector which);
void lapic_error(struct lapic *lapic, uint32_t bits);
/* End of interrupt. If I/O APICs are to be told, the answer is true and the vector is there. */
bool lapic_complete(struct lapic *lapic, uint8_t *ret_vector);
/* Forget everything but IA32_APIC_BASE. */
void lapic_clear(struct lapic *lapic);

/* The timer, with the lock held. */
void lapic_timer_expired(void *argument); /* the alarm: takes the lock */
void lapic_timer_set_initial(struct lapic *lapic, uint32_t initial);
void lapic_timer_set_divide(struct lapic *lapic, uint32_t divide);
void lapic_timer_set_vector(struct lapic *lapic, uint32_t lvt);
void lapic_timer_set_deadline(struct lapic *lapic, uint64_t tsc);
uint32_t lapic_timer_current(struct lapic *lapic);
bool lapic_timer_is_deadline(const struct lapic *lapic);
/* Arm the alarm for what the state says (after a load, a reset or a change of the TSC). */
void lapic_timer_arm(struct lapic *lapic);
