/*
 * Fast system calls: SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM volume 2), and hypercalls.
 */
#include "engine/interp/interp_internal.h"
#include "x86/cpuid.h"

static void load_flat(struct vcpu *vcpu, uint16_t cs, uint16_t ss, bool is_64, unsigned cpl)
{
    vcpu->state.segment[CS] = segment_flat(cs, true, is_64, cpl);
    vcpu->state.segment[SS] = segment_flat(ss, false, is_64, cpl);
}

static bool is_amd(const struct vcpu *vcpu)
{
    return cpuid_vendor(vcpu->cpuid) == CPU_VENDOR_AMD;
}

/*
 * TF counts as SYSCALL and SYSRET leave it, not as they found it: so a system can mask the step
 * that would come on the user's stack, and SYSRET ends the instruction that the user stepped.
 */
static void renew_single_step(struct vcpu *vcpu)
{
    vcpu->debug_hits = vcpu->state.rflags & FLAG_TF ? DR6_BS : 0;
}

/* Outside 64-bit mode only AMD has it: to CSTAR in compatibility mode. AMD APM volume 3, SYSCALL.
 */
static bool has_syscall(const struct vcpu *vcpu)
{
    return (vcpu->state.efer & EFER_SCE) && is_long(vcpu) && (is_64bit(vcpu) || is_amd(vcpu));
}

enum step execute_syscall(struct vcpu *vcpu, const struct insn *insn)
{
    struct cpu_state *state = &vcpu->state;
    uint16_t selector = (uint16_t)(state->star >> 32 & 0xfffc);

    if (!has_syscall(vcpu)) {
        return raise_ud(vcpu);
    }
    uint64_t entry = is_64bit(vcpu) ? state->lstar : state->cstar;
    state->gpr[RCX] = state->rip;
    state->gpr[R11] = state->rflags;
    state->rip = entry;
    rflags_write(vcpu, 0, state->sfmask | FLAG_RF);
    renew_single_step(vcpu);
    load_flat(vcpu, selector, (uint16_t)(selector + 8), true, 0);
    return STEP_NEXT;
}

enum step execute_sysret(struct vcpu *vcpu, const struct insn *insn)
{
    struct cpu_state *state = &vcpu->state;
    uint16_t base = (uint16_t)(state->star >> 48);
    bool to_64bit = operand_width(insn) == 8;

    if (!is_64bit(vcpu) || !(state->efer & EFER_SCE)) {
        return raise_ud(vcpu);
    }
    if (cpl_of(vcpu) != 0 || (to_64bit && !is_canonical(state->gpr[RCX]))) {
        return raise_gp(vcpu);
    }
    state->rip = to_64bit ? state->gpr[RCX] : (uint32_t)state->gpr[RCX];
    rflags_write(vcpu, state->gpr[R11] & 0x3c7fd7, ~0ull);
    renew_single_step(vcpu);
    load_flat(vcpu, (uint16_t)((base + (to_64bit ? 16 : 0)) | 3), (uint16_t)((base + 8) | 3),
              to_64bit, 3);
    return STEP_NEXT;
}

enum step execute_sysenter(struct vcpu *vcpu, const struct insn *insn)
{
    struct cpu_state *state = &vcpu->state;
    uint16_t selector = (uint16_t)(state->sysenter_cs & 0xfffc);
    bool to_64bit = is_long(vcpu);

    if (is_long(vcpu) && is_amd(vcpu)) { /* AMD has it in legacy mode only; so SYSEXIT */
        return raise_ud(vcpu);
    }
    if (!is_protected(vcpu) || selector == 0) {
        return raise_gp(vcpu);
    }
    rflags_write(vcpu, 0, FLAG_VM | FLAG_IF | FLAG_RF);
    state->gpr[RSP] = to_64bit ? state->sysenter_esp : (uint32_t)state->sysenter_esp;
    state->rip = to_64bit ? state->sysenter_eip : (uint32_t)state->sysenter_eip;
    load_flat(vcpu, selector, (uint16_t)(selector + 8), to_64bit, 0);
    return STEP_NEXT;
}

enum step execute_sysexit(struct vcpu *vcpu, const struct insn *insn)
{
    struct cpu_state *state = &vcpu->state;
    uint16_t base = (uint16_t)(state->sysenter_cs & 0xfffc);
    bool to_64bit = is_64bit(vcpu) && operand_width(insn) == 8;

    if (!is_protected(vcpu) || cpl_of(vcpu) != 0 || is_v86(vcpu)) {
        return raise_gp(vcpu);
    }
    if (is_long(vcpu) && is_amd(vcpu)) {
        return raise_ud(vcpu);
    }
    if (base == 0) {
        return raise_gp(vcpu);
    }
    if (to_64bit && (!is_canonical(state->gpr[RCX]) || !is_canonical(state->gpr[RDX]))) {
        return raise_gp(vcpu);
    }
    state->gpr[RSP] = to_64bit ? state->gpr[RCX] : (uint32_t)state->gpr[RCX];
    state->rip = to_64bit ? state->gpr[RDX] : (uint32_t)state->gpr[RDX];
    load_flat(vcpu, (uint16_t)((base + (to_64bit ? 32 : 16)) | 3),
              (uint16_t)((base + (to_64bit ? 40 : 24)) | 3), to_64bit, 3);
    return STEP_NEXT;
}

/*
 * The hypercalls of the KVM interface (Linux, Documentation/virt/kvm/x86/hypercalls.rst). Outside
 * 64-bit mode registers have 32 bits.
 */
enum step execute_hypercall(struct vcpu *vcpu, const struct insn *insn)
{
    enum { NOT_PERMITTED = 1 };
    const uint64_t *gpr = vcpu->state.gpr;
    uint64_t mask = is_64bit(vcpu) ? UINT64_MAX : UINT32_MAX;
    const uint64_t argument[4] = {gpr[RBX] & mask, gpr[RCX] & mask, gpr[RDX] & mask,
                                  gpr[RSI] & mask};
    uint64_t answer = -(uint64_t)NOT_PERMITTED;

    if (cpl_of(vcpu) == 0) {
        answer = vcpu->host->hypercall(vcpu->host->owner, vcpu->index, gpr[RAX] & mask, argument);
    }
    gpr_store(vcpu, RAX, is_64bit(vcpu) ? 8 : 4, answer);
    return STEP_NEXT;
}
