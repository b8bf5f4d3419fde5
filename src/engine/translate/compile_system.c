/*
 * System instructions that are frequent enough to have code of their own: the interrupt flag, CLD
 * (which every entry of a kernel has), the time stamp counter, PAUSE, segment bases, the x87 and
 * SSE image. What is odd about them (another privilege, a feature that is off) is left to interp.
 */
#include "engine/translate/compiler.h"

static void emit_bytes(struct compiler *c, const uint8_t *bytes, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        emit8(&c->e, bytes[i]);
    }
}

/* mov byte gs:[interrupt_flag], value */
static void emit_set_interrupt_flag(struct compiler *c, uint8_t value)
{
    emit_gs(&c->e, false, 0xc6, 0, offsetof(struct block, interrupt_flag));
    emit8(&c->e, value);
}

static bool compile_cli(struct compiler *c)
{
    if (c->mode & MODE_USER) {
        return false;
    }
    emit_set_interrupt_flag(c, 0);
    return true;
}

/* The direction flag is in the block: string instructions look there. */
static bool compile_cld(struct compiler *c)
{
    flags_for_check(c);
    emit_gs(&c->e, false, 0x81, 4,
            offsetof(struct block, vcpu.state.rflags)); /* and dword, imm32 */
    emit32(&c->e, ~(uint32_t)FLAG_DF);
    return true;
}

/*
 * STI: set IF. If something waits, interp does it together with the next instruction, which no
 * interrupt may come before (SDM volume 2, STI), wherever that one leads. What comes later stops
 * units by itself.
 */
static bool compile_sti(struct compiler *c)
{
    if (c->mode & MODE_USER) {
        return false;
    }
    flags_to_block(c);
    emit_gs(&c->e, false, 0x83, 7, offsetof(struct block, vcpu.kicks)); /* cmp dword, 0 */
    emit8(&c->e, 0);
    uint8_t *branch = emit_branch_forward(&c->e, CONDITION_NZ);
    uint32_t site = site_new(c, SITE_EXECUTE);
    c->vm->sites[site].resume = 0;
    outline(c, OUTLINE_EXECUTE, branch, site, 0);
    emit_set_interrupt_flag(c, 1);
    return true;
}

/*
 * Kernel code that makes many PAUSEs waits for another vCPU, whose thread may be waiting for this
 * very host CPU: then it is yielded (as PAUSE-loop exiting does: SDM volume 3, 25.1.3).
 */
static bool compile_pause(struct compiler *c)
{
    static const uint8_t pause[] = {0xf3, 0x90};
    emit_bytes(c, pause, sizeof pause);
    if ((c->mode & MODE_USER) || c->vm->config.cpus == 1 || c->counts) {
        return true;
    }
    groups_forget(c);
    flags_to_block(c);
    emit_gs(&c->e, false, 0xff, 1, offsetof(struct block, vcpu.pauses)); /* dec dword */
    uint8_t *branch = emit_branch_forward(&c->e, CONDITION_Z);
    uint32_t site = site_new(c, SITE_EXECUTE);
    outline(c, OUTLINE_PAUSE, branch, site, 0);
    c->vm->sites[site].resume = emit_offset(&c->e);
    return true;
}

/* EDX:EAX = host TSC + offset; RDTSCP also ECX = TSC_AUX. */
static bool compile_rdtsc(struct compiler *c, bool with_aux)
{
    static const uint8_t join[] = {
        0x0f, 0x31,             /* rdtsc */
        0x48, 0xc1, 0xe2, 0x20, /* shl rdx, 32 */
        0x48, 0x09, 0xd0,       /* or rax, rdx */
    };
    static const uint8_t split[] = {
        0x48, 0x89, 0xc2,       /* mov rdx, rax */
        0x48, 0xc1, 0xea, 0x20, /* shr rdx, 32 */
        0x89, 0xc0,             /* mov eax, eax */
    };
    static const uint8_t wait[] = {0x0f, 0xae, 0xe8}; /* lfence: RDTSCP waits for earlier loads */
    if ((c->mode & MODE_TSD) || c->counts) {
        return false;
    }
    flags_to_block(c);
    if (with_aux) {
        emit_bytes(c, wait, sizeof wait);
    }
    emit_bytes(c, join, sizeof join);
    emit_gs(&c->e, true, OP_ADD, RAX, offsetof(struct block, vcpu.state.tsc_offset));
    emit_bytes(c, split, sizeof split);
    if (with_aux) {
        emit_gs(&c->e, false, OP_LOAD, RCX, offsetof(struct block, vcpu.state.tsc_aux));
    }
    return true;
}

static size_t segment_base(unsigned segment)
{
    return offsetof(struct block, vcpu.state.segment) + segment * sizeof(struct segment) +
           offsetof(struct segment, base);
}

static bool compile_swapgs(struct compiler *c)
{
    if (c->mode & MODE_USER) {
        return false;
    }
    emit_load(&c->e, SCRATCH, segment_base(GS));
    emit_load(&c->e, SCRATCH2, offsetof(struct block, vcpu.state.kernel_gs_base));
    emit_store(&c->e, SCRATCH2, segment_base(GS));
    emit_store(&c->e, SCRATCH, offsetof(struct block, vcpu.state.kernel_gs_base));
    return true;
}

/* mov between a guest register and SCRATCH, 32 or 64 bits wide */
static void move_register(struct compiler *c, int gpr, bool to_guest)
{
    struct emitter *e = &c->e;
    bool is_wide = compiler_insn(c)->info.operand_width == 64;
    unsigned host = home_of(c, gpr);
    if (is_displaced(c, gpr)) {
        if (!is_wide) { /* the upper half is zero */
            if (!to_guest) {
                emit_gs(e, false, OP_LOAD, SCRATCH, gpr_slot((unsigned)gpr));
                return;
            }
            emit_registers(e, false, OP_STORE, SCRATCH, SCRATCH);
        }
        emit_gs(e, true, to_guest ? OP_STORE : OP_LOAD, SCRATCH, gpr_slot((unsigned)gpr));
        return;
    }
    unsigned to = to_guest ? host : SCRATCH, from = to_guest ? SCRATCH : host;
    emit_registers(e, is_wide, OP_STORE, from, to);
}

static bool compile_base(struct compiler *c, unsigned segment, bool write)
{
    int gpr = rewrite_gpr(compiler_insn(c)->operands[0].reg.value);
    if (!(c->mode & MODE_FSGSBASE)) {
        return false;
    }
    if (!write) {
        emit_load(&c->e, SCRATCH, segment_base(segment));
        move_register(c, gpr, true);
        return true;
    }
    flags_to_block(c);
    move_register(c, gpr, false);
    compile_canonical_check(c);
    emit_store(&c->e, SCRATCH, segment_base(segment));
    return true;
}

/* FXSAVE64 and FXRSTOR64: the address goes to C, which works on the live registers. */
static bool compile_fx_image(struct compiler *c, uint32_t stub)
{
    uint64_t constant;
    if (!(c->mode & MODE_SSE)) {
        return false;
    }
    groups_forget(c);
    count_instructions(c, 1);
    flags_to_block(c);
    if (compile_address(c, &compiler_insn(c)->operands[0], &constant)) {
        emit_constant(&c->e, SCRATCH, constant);
    }
    registers_leave(c);
    uint32_t site = site_new(c, SITE_EXECUTE);
    emit_constant(&c->e, SCRATCH2, site);
    emit_jump(&c->e, stub);
    c->vm->sites[site].resume = emit_offset(&c->e);
    registers_enter(c);
    c->vm->sites[site].size = compiler_insn(c)->info.length;
    return true;
}

bool compile_system(struct compiler *c)
{
    switch (compiler_insn(c)->info.mnemonic) {
    case ZYDIS_MNEMONIC_CLI:
        return compile_cli(c);
    case ZYDIS_MNEMONIC_CLD:
        return compile_cld(c);
    case ZYDIS_MNEMONIC_STI:
        return compile_sti(c);
    case ZYDIS_MNEMONIC_PAUSE:
        return compile_pause(c);
    case ZYDIS_MNEMONIC_RDTSC:
        return compile_rdtsc(c, false);
    case ZYDIS_MNEMONIC_RDTSCP:
        return compile_rdtsc(c, true);
    case ZYDIS_MNEMONIC_SWAPGS:
        return compile_swapgs(c);
    case ZYDIS_MNEMONIC_RDFSBASE:
        return compile_base(c, FS, false);
    case ZYDIS_MNEMONIC_RDGSBASE:
        return compile_base(c, GS, false);
    case ZYDIS_MNEMONIC_WRFSBASE:
        return compile_base(c, FS, true);
    case ZYDIS_MNEMONIC_WRGSBASE:
        return compile_base(c, GS, true);
    case ZYDIS_MNEMONIC_FXSAVE64:
        return compile_fx_image(c, c->vm->stubs.fxsave);
    case ZYDIS_MNEMONIC_FXRSTOR64:
        return compile_fx_image(c, c->vm->stubs.fxrstor);
    default:
        return false;
    }
}
