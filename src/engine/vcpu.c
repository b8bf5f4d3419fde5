/*
 * What the engines without hardware support derive from a vCPU's state.
 */
#include "engine/vcpu.h"

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

uint64_t vcpu_tsc(const struct vcpu *vcpu)
{
    uint64_t base = vcpu->time_mode == TIME_DETERMINISTIC ? vcpu->instructions : engine_host_tsc();

    return base + vcpu->state.tsc_offset;
}
