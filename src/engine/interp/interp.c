/*
 * One instruction: choosing its executor, the state around it (RIP, RF, interrupt shadow), and
 * the traps behind it.
 */
#include "engine/interp/interp_internal.h"
#include "x86/cpuid.h"

#define ENTRY(mnemonic, executor) [ZYDIS_MNEMONIC_##mnemonic] = execute_##executor,
static execute_fn *const executors[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {INTERP_EXECUTORS(ENTRY)};

/* MOVSD and CMPSD name a string instruction and an SSE2 instruction each. */
static execute_fn *executor_of(const struct insn *insn)
{
    if (insn->info.meta.category == ZYDIS_CATEGORY_STRINGOP) {
        if (insn->info.mnemonic == ZYDIS_MNEMONIC_MOVSD) {
            return execute_movs;
        }
        if (insn->info.mnemonic == ZYDIS_MNEMONIC_CMPSD) {
            return execute_cmps;
        }
    }
    return executors[insn->info.mnemonic];
}

bool interp_uses_vector_state(const struct insn *insn)
{
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
    case ZYDIS_MNEMONIC_XGETBV:
    case ZYDIS_MNEMONIC_XSETBV:
        return true;
    default:
        return !executor_of(insn);
    }
}

/* Four instructions exist on every model, though with an older or another meaning. */
static bool is_offered(const struct vcpu *vcpu, const struct insn *insn)
{
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_LZCNT:
    case ZYDIS_MNEMONIC_TZCNT:
    case ZYDIS_MNEMONIC_VMCALL:
    case ZYDIS_MNEMONIC_VMMCALL:
        return true;
    default:
        return cpuid_offers_isa(vcpu->cpuid, insn->info.meta.isa_set);
    }
}

static enum step dispatch(struct vcpu *vcpu, const struct insn *insn)
{
    execute_fn *executor = executor_of(insn);

    if (!is_offered(vcpu, insn)) {
        return raise_ud(vcpu);
    }
    if (!executor) {
        return native_execute(vcpu, insn);
    }
    return is_locked(insn) ? execute_locked(vcpu, insn, executor) : executor(vcpu, insn);
}

enum step interp_execute(struct vcpu *vcpu, const struct insn *insn)
{
    struct cpu_state *state = &vcpu->state;
    uint64_t rip = state->rip, resume = state->rflags & FLAG_RF;

    state->rip += insn->info.length;
    if (!is_64bit(vcpu)) {
        state->rip = (uint32_t)state->rip;
    }
    state->rflags &= ~(uint64_t)FLAG_RF;
    state->interrupt_shadow = false;
    state->shadow_is_mov_ss = false;
    vcpu->debug_hits = state->rflags & FLAG_TF ? DR6_BS : 0;
    enum step step = dispatch(vcpu, insn);
    if (__builtin_expect(step == STEP_EXCEPTION || step == STEP_ERROR, 0)) {
        state->rip = rip;
        state->rflags |= resume;
        if (vcpu->debug) { /* it has done nothing */
            vcpu->debug->is_hit = false;
        }
        return step;
    }
    vcpu->instructions++;
    return step;
}

/*
 * Instruction breakpoints are faults before everything else; RF holds them back. Unlike other
 * faults they do not set it in their frame: that is the handler's work. SDM volume 3, 17.3.1.1.
 */
static enum step check_instruction_breakpoints(struct vcpu *vcpu, gva_t linear)
{
    const struct cpu_state *state = &vcpu->state;
    uint64_t hits = 0;

    if (__builtin_expect(!(state->dr7 & 0xff), 1) || (state->rflags & FLAG_RF)) {
        return STEP_NEXT;
    }
    for (unsigned i = 0; i < 4; i++) {
        if ((state->dr7 >> (i * 2) & 3) && !(state->dr7 >> (16 + i * 4) & 3) &&
            state->dr[i] == linear) {
            hits |= 1u << i;
        }
    }
    if (!hits) {
        return STEP_NEXT;
    }
    vcpu->exception = (struct exception){.vector = EXCEPTION_DB, .dr6 = hits};
    return STEP_EXCEPTION;
}

static enum decode_mode decode_mode_of(const struct vcpu *vcpu)
{
    return is_64bit(vcpu)                                    ? DECODE_64
           : vcpu->state.segment[CS].attributes & SEGMENT_DB ? DECODE_32
                                                             : DECODE_16;
}

/* Read and decode the instruction at CS:RIP. SDM volume 3, 6.9: the order of faults. */
static enum step fetch(struct vcpu *vcpu, gva_t linear, struct insn *ret_insn)
{
    uint8_t bytes[INSN_MAX_LENGTH];
    unsigned count;

    TRY(mmu_fetch(vcpu, linear, bytes, &count));
    if (!is_64bit(vcpu)) {
        uint64_t limit = vcpu->state.segment[CS].limit;
        if (vcpu->state.rip > limit) {
            return raise_gp(vcpu);
        }
        if (limit - vcpu->state.rip + 1 < count) { /* bytes behind the limit are #GP(0) */
            count = (unsigned)(limit - vcpu->state.rip + 1);
            raise_gp(vcpu);
        }
    }
    switch (decode(decode_mode_of(vcpu), bytes, count, ret_insn)) {
    case DECODE_OK:
        return STEP_NEXT;
    case DECODE_TRUNCATED:
        return STEP_EXCEPTION; /* vcpu->exception is that of the missing bytes */
    case DECODE_TOO_LONG:
        return raise_gp(vcpu);
    default:
        return raise_ud(vcpu);
    }
}

/* The linear address of RIP. */
static gva_t linear_rip(const struct vcpu *vcpu)
{
    return is_64bit(vcpu) ? vcpu->state.rip
                          : (uint32_t)(vcpu->state.rip + vcpu->state.segment[CS].base);
}

static enum step fetch_and_execute(struct vcpu *vcpu)
{
    gva_t linear = linear_rip(vcpu);
    struct insn insn;

    TRY(check_instruction_breakpoints(vcpu, linear));
    TRY(fetch(vcpu, linear, &insn));
    return interp_execute(vcpu, &insn);
}

/* Single step and breakpoints: traps behind the instruction, unless MOV SS holds them back. */
static enum step deliver_traps(struct vcpu *vcpu)
{
    uint64_t hits = vcpu->debug_hits;

    if (vcpu->state.shadow_is_mov_ss) {
        return STEP_NEXT;
    }
    vcpu->debug_hits = 0;
    vcpu->exception = (struct exception){.vector = EXCEPTION_DB, .dr6 = hits};
    return interp_deliver_exception(vcpu);
}

enum step interp_conclude(struct vcpu *vcpu, enum step step)
{
    if (step == STEP_EXCEPTION) {
        return interp_deliver_exception(vcpu);
    }
    if (__builtin_expect(vcpu->debug_hits && (step == STEP_NEXT || step == STEP_HALT), 0)) {
        TRY(deliver_traps(vcpu));
        return step == STEP_HALT && vcpu->state.activity == ACTIVITY_HALTED ? STEP_HALT : STEP_NEXT;
    }
    return step;
}

enum step interp_step(struct vcpu *vcpu)
{
    return interp_conclude(vcpu, fetch_and_execute(vcpu));
}
