/*
 * What the engines without hardware support derive from a vCPU's state.
 */
#include "engine/vcpu.h"

#include <stdatomic.h>

#include "x86/cpuid.h"

void vcpu_mode_changed(struct vcpu *vcpu)
{
    const struct cpu_state *state = &vcpu->state;
    struct walk_mode *mode = &vcpu->walk_mode;

    mode->cr0 = (uint32_t)state->cr0;
    mode->cr3 = state->cr3;
    mode->cr4 = state->cr4;
    mode->efer = (uint32_t)state->efer;
    mode->rflags = state->rflags;
    for (unsigned i = 0; i < 4; i++) {
        mode->pdpte[i] = state->pdpte[i];
    }
    mode->physical_bits = (uint8_t)cpuid_physical_bits(vcpu->cpuid);
    mode->gib_pages = cpuid_has(vcpu->cpuid, FEATURE_GIB_PAGES);
}

void vcpu_take_pending(struct vcpu *vcpu, struct cpu_state *state)
{
    const uint32_t taken = KICK_NMI | KICK_INIT | KICK_SIPI | KICK_UNHALT;
    uint32_t kicks = atomic_fetch_and(&vcpu->kicks, ~taken);

    state->nmi_pending |= (kicks & KICK_NMI) != 0;
    state->init_pending |= (kicks & KICK_INIT) != 0;
    state->unhalted |= (kicks & KICK_UNHALT) != 0;
    if (kicks & KICK_SIPI) {
        state->sipi_pending = true;
        state->sipi_vector = vcpu->sipi_vector;
    }
}

void vcpu_raise_pending(struct vcpu *vcpu)
{
    struct cpu_state *state = &vcpu->state;
    uint32_t kicks = KICK_INTERRUPT;

    kicks |= state->nmi_pending ? KICK_NMI : 0;
    kicks |= state->init_pending ? KICK_INIT : 0;
    if (state->sipi_pending) {
        vcpu->sipi_vector = state->sipi_vector;
        kicks |= KICK_SIPI;
    }
    kicks |= state->unhalted ? KICK_UNHALT : 0;
    state->init_pending = state->sipi_pending = state->unhalted = false;
    atomic_fetch_or(&vcpu->kicks, kicks);
}

uint64_t vcpu_tsc(const struct vcpu *vcpu)
{
    uint64_t base = vcpu->time_mode == TIME_DETERMINISTIC ? vcpu->instructions : engine_host_tsc();

    return base + vcpu->state.tsc_offset;
}
