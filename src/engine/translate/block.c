/*
 * The vCPU block between units and C: its flags and vector state brought together in cpu_state or
 * taken apart again, and the mode that its state asks for.
 */
#include "engine/translate/helper.h"

void block_gather(struct block *block)
{
    struct cpu_state *state = &block->vcpu.state;
    uint64_t flags = block->saved_flags >> 8 & (FLAGS_ARITHMETIC & 0xff);
    flags |= block->saved_flags & 1 ? FLAG_OF : 0;
    flags |= block->interrupt_flag ? FLAG_IF : 0;
    state->rflags = (state->rflags & ~(uint64_t)(FLAGS_ARITHMETIC | FLAG_IF)) | flags | FLAG_FIXED;
}

void block_scatter(struct block *block)
{
    /* RF matters to instruction breakpoints only, and with those in force interp runs. */
    if (!(block->mode & MODE_INTERPRET)) {
        block->vcpu.state.rflags &= ~(uint64_t)FLAG_RF;
    }
    uint64_t flags = block->vcpu.state.rflags;
    block->saved_flags = (uint16_t)((flags & 0xff) << 8 | (flags & FLAG_OF ? 1 : 0));
    block->interrupt_flag = flags & FLAG_IF ? 1 : 0;
}

void vectors_save(struct block *block)
{
    if (!block->vectors_live) {
        return;
    }
    uint32_t low = (uint32_t)block->xcr0_host, high = (uint32_t)(block->xcr0_host >> 32);
    __asm__ volatile("xsave64 %0" : "+m"(block->vcpu.state.xsave) : "a"(low), "d"(high) : "memory");
    /* C code must not meet the guest's rounding or unmasked exceptions. */
    static const uint32_t default_mxcsr = 0x1f80;
    __asm__ volatile("ldmxcsr %0" : : "m"(default_mxcsr));
    block->vectors_live = false;
    x87_pointers_hide(block, block->vcpu.state.xsave);
}

void vectors_restore(struct block *block)
{
    if (block->vectors_live) {
        return;
    }
    uint32_t low = (uint32_t)block->xcr0_host, high = (uint32_t)(block->xcr0_host >> 32);
    if (!(block->xcr0_host & XCR0_AVX) && __builtin_cpu_supports("avx")) {
        /* What C code left in the upper halves would slow the guest's SSE down. */
        __asm__ volatile("vzeroupper");
    }
    __asm__ volatile("xrstor64 %0"
                     :
                     : "m"(block->vcpu.state.xsave), "a"(low), "d"(high)
                     : "memory");
    block->vectors_live = true;
}

/* ---- modes ---- */

static bool is_flat64(const struct cpu_state *state)
{
    return cpu_state_is_64bit(state) && (state->cr0 & CR0_PG);
}

static uint16_t mode_of(const struct cpu_state *state)
{
    unsigned cpl = cpu_state_cpl(state);
    uint16_t mode = MODE_CODE64;
    bool has_breakpoints = state->dr7 & 0xff;
    bool checks_alignment = cpl == 3 && (state->cr0 & CR0_AM) && (state->rflags & FLAG_AC);
    if (!is_flat64(state) || cpl == 1 || cpl == 2 || (state->rflags & FLAG_TF) || has_breakpoints ||
        checks_alignment) {
        return MODE_INTERPRET;
    }
    mode |= cpl == 3 ? MODE_USER : 0;
    mode |= cpl == 3 && (state->cr4 & CR4_TSD) ? MODE_TSD : 0;
    mode |= state->cr4 & CR4_FSGSBASE ? MODE_FSGSBASE : 0;
    if (!(state->cr0 & (CR0_EM | CR0_TS))) {
        mode |= MODE_FPU;
        mode |= state->cr4 & CR4_OSFXSR ? MODE_SSE : 0;
        if ((state->cr4 & CR4_OSXSAVE) && (state->xcr0 & XCR0_AVX)) {
            mode |= MODE_AVX;
            mode |= (state->xcr0 & XCR0_AVX512) == XCR0_AVX512 ? MODE_AVX512 : 0;
        }
    }
    return mode;
}

void block_renew_mode(struct block *block)
{
    uint16_t mode = mode_of(&block->vcpu.state);
    if (mode == block->mode) {
        return;
    }
    enum privilege from = mode_privilege(block->mode), to = mode_privilege(mode);
    block->mode = mode;
    if (mode & MODE_INTERPRET) {
        stack_reset(block, PRIVILEGE_KERNEL);
        stack_reset(block, PRIVILEGE_USER);
        return;
    }
    if (from != to) {
        block->stacks[from] = block->stack;
        block->stack = block->stacks[to];
    }
    /* Landing pads and look-ups of another mode must not be met; a space's stay while it waits. */
    uint16_t *known = to == PRIVILEGE_USER ? &block->space->mode : &block->kernel_mode;
    if (*known != mode) {
        *known = mode;
        space_forget_lookups(block, to);
    }
}
