/*
 * What the files of interp share: operands, stack, exceptions, and the list of executors.
 *
 * While an executor runs, state.rip already names the next instruction, and RF and the interrupt
 * shadow are already cleared; interp_execute() puts them back if the executor raises an exception.
 * General registers only.
 */
#pragma once

#include "base/bytes.h"
#include "engine/interp/handlers.h"
#include "engine/interp/interp.h"
#include "engine/mmu.h"
#include "x86/descriptor.h"

enum { DR6_BS = 1 << 14 }; /* in vcpu->debug_hits: single step (SDM volume 3, 17.2.3) */

/* Leave the calling function unless `expression` is STEP_NEXT. */
#define TRY(expression)                                                                            \
    do {                                                                                           \
        enum step try_step_ = (expression);                                                        \
        if (__builtin_expect(try_step_ != STEP_NEXT, 0)) {                                         \
            return try_step_;                                                                      \
        }                                                                                          \
    } while (0)

typedef enum step execute_fn(struct vcpu *vcpu, const struct insn *insn);
/* A locked instruction on RAM; `host` points at the whole operand inside one cache line. */
typedef enum step locked_fn(struct vcpu *vcpu, const struct insn *insn, void *host);

/* exceptions */
enum step raise_exception(struct vcpu *vcpu, enum exception_vector vector);
enum step raise_error(struct vcpu *vcpu, enum exception_vector vector, uint32_t error_code);
static inline enum step raise_gp(struct vcpu *vcpu)
{
    return raise_error(vcpu, EXCEPTION_GP, 0);
}
static inline enum step raise_ud(struct vcpu *vcpu)
{
    return raise_exception(vcpu, EXCEPTION_UD);
}

/* modes */
static inline bool is_64bit(const struct vcpu *vcpu)
{
    return cpu_state_is_64bit(&vcpu->state);
}
static inline bool is_long(const struct vcpu *vcpu)
{
    return cpu_state_is_long(&vcpu->state);
}
static inline bool is_protected(const struct vcpu *vcpu)
{
    return vcpu->state.cr0 & CR0_PE;
}
static inline bool is_v86(const struct vcpu *vcpu)
{
    return vcpu->state.rflags & FLAG_VM;
}
/* Protected mode with descriptor tables in force: not real-address, not virtual-8086. */
static inline bool has_selectors(const struct vcpu *vcpu)
{
    return is_protected(vcpu) && !is_v86(vcpu);
}
static inline unsigned cpl_of(const struct vcpu *vcpu)
{
    return cpu_state_cpl(&vcpu->state);
}
static inline unsigned iopl_of(const struct vcpu *vcpu)
{
    return (vcpu->state.rflags & FLAG_IOPL) >> 12;
}
static inline uint64_t size_mask(unsigned size)
{
    return size >= 8 ? ~0ull : (1ull << (size * 8)) - 1;
}
static inline uint64_t sign_extend(uint64_t value, unsigned size)
{
    unsigned shift = 64 - size * 8;
    return (uint64_t)((int64_t)(value << shift) >> shift);
}
/* The access rights of an explicit operand. */
static inline uint32_t user_access(const struct vcpu *vcpu)
{
    return cpl_of(vcpu) == 3 ? PF_USER : 0;
}
static inline void set_flag(struct vcpu *vcpu, uint64_t flag, bool value)
{
    vcpu->state.rflags = value ? vcpu->state.rflags | flag : vcpu->state.rflags & ~flag;
}

/* segments and addresses */
/*
 * The linear address of `size` bytes at `offset`, if the segment allows the access; else
 * #GP/#SS(error_code). `segment` is SS for stack accesses with a segment that is not loaded yet.
 */
enum step segment_linear(struct vcpu *vcpu, const struct segment *segment, bool is_stack,
                         uint64_t offset, unsigned size, bool write, uint32_t error_code,
                         gva_t *ret_gva);
enum step linear_address(struct vcpu *vcpu, enum segment_register segment, uint64_t offset,
                         unsigned size, bool write, gva_t *ret_gva);
/* #AC, if alignment checking is on and the address is not a multiple of `size`. */
enum step check_alignment(struct vcpu *vcpu, gva_t gva, unsigned size);
/* Data breakpoints: remember a match for the trap after the instruction. */
void note_data_access(struct vcpu *vcpu, gva_t gva, unsigned size, bool write);

/* Explicit accesses at a linear address: alignment, breakpoints, memory. */
enum step linear_read(struct vcpu *vcpu, gva_t gva, uint64_t *ret_value, unsigned size);
enum step linear_write(struct vcpu *vcpu, gva_t gva, uint64_t value, unsigned size);

/* general registers */
static inline uint64_t gpr_load(const struct vcpu *vcpu, unsigned index, unsigned size)
{
    return vcpu->state.gpr[index] & size_mask(size);
}
static inline void gpr_store(struct vcpu *vcpu, unsigned index, unsigned size, uint64_t value)
{
    uint64_t mask = size_mask(size);
    uint64_t *gpr = &vcpu->state.gpr[index];

    *gpr = size == 4 ? (uint32_t)value : (*gpr & ~mask) | (value & mask);
}

/* Where an operand is: in memory or in (a part of) a general register. */
struct place {
    gva_t gva;
    uint8_t index; /* general register */
    uint8_t shift; /* 8 for AH, CH, DH, BH */
    uint8_t size;  /* bytes */
    bool is_memory;
};
/* The general register behind a Zydis register; false if it is none. */
bool register_place(ZydisRegister reg, struct place *ret_place);
/* The segment register behind a Zydis register, or SEGMENT_COUNT. */
enum segment_register segment_of(ZydisRegister reg);
/* The offset of a memory operand inside its segment, cut to the address size. */
uint64_t operand_offset(const struct vcpu *vcpu, const struct insn *insn,
                        const struct insn_operand *operand);
/* Find a memory or register operand; segment checks are done for reading or writing. */
enum step operand_locate(struct vcpu *vcpu, const struct insn *insn, unsigned n, bool write,
                         struct place *ret_place);
enum step place_load(struct vcpu *vcpu, const struct place *place, uint64_t *ret_value);
enum step place_store(struct vcpu *vcpu, const struct place *place, uint64_t value);
/* Load what will be stored to: a fault is that of a write. */
enum step place_load_for_update(struct vcpu *vcpu, const struct place *place, uint64_t *ret_value);
/* Any operand, zero-extended (immediates: as encoded, sign-extended). */
enum step operand_load(struct vcpu *vcpu, const struct insn *insn, unsigned n, uint64_t *ret_value);
enum step operand_store(struct vcpu *vcpu, const struct insn *insn, unsigned n, uint64_t value);
/* Would operand_store() succeed? */
enum step operand_check_write(struct vcpu *vcpu, const struct insn *insn, unsigned n);
static inline unsigned operand_bytes(const struct insn *insn, unsigned n)
{
    return insn->operands[n].size / 8;
}
static inline unsigned operand_width(const struct insn *insn)
{
    return insn->info.operand_width / 8;
}
static inline unsigned address_width(const struct insn *insn)
{
    return insn->info.address_width / 8;
}
static inline bool operand_is_memory(const struct insn *insn, unsigned n)
{
    return insn->operands[n].type == ZYDIS_OPERAND_TYPE_MEMORY;
}

/*
 * A stack in use: pushes and pops move `sp` here; stack_commit() moves the guest's register, so
 * that an instruction with several of them has no effect before all have succeeded.
 */
struct stack {
    struct segment segment;
    uint64_t sp;
    uint64_t mask; /* the width of the stack pointer */
    uint32_t access;
    uint32_t error_code; /* of #SS */
    bool is_64;          /* flat: the segment does not matter */
};
struct stack stack_current(const struct vcpu *vcpu);
/* Check that `bytes` may be written below sp: later pushes of that many cannot fail. */
enum step stack_reserve(struct vcpu *vcpu, const struct stack *stack, unsigned bytes);
enum step stack_push(struct vcpu *vcpu, struct stack *stack, uint64_t value, unsigned size);
enum step stack_pop(struct vcpu *vcpu, struct stack *stack, unsigned size, uint64_t *ret_value);
void stack_commit(struct vcpu *vcpu, const struct stack *stack);

/* The width of a near branch's or stack operation's operand: 64 bits in 64-bit mode. */
static inline unsigned branch_width(const struct vcpu *vcpu, const struct insn *insn)
{
    return is_64bit(vcpu) ? 8 : operand_width(insn);
}
/* Is `rip` inside CS, or canonical in 64-bit mode? Else #GP(0). */
enum step check_rip(struct vcpu *vcpu, uint64_t rip);
enum step near_jump(struct vcpu *vcpu, uint64_t rip, unsigned width);

/* The conditions of Jcc, SETcc, CMOVcc by their encoding number. */
bool condition_holds(uint64_t rflags, unsigned condition);

/* descriptor tables (segment.c) */
/* Read a descriptor; #GP(selector) (or `vector`) if it is outside the table. */
enum step descriptor_read(struct vcpu *vcpu, uint16_t selector, enum exception_vector vector,
                          uint32_t external, uint64_t *ret_descriptor);
/* The second half of a 16-byte descriptor of IA-32e mode. */
enum step descriptor_read_high(struct vcpu *vcpu, uint16_t selector, enum exception_vector vector,
                               uint32_t external, uint64_t *ret_high);
/* Set bits of a descriptor in memory (accessed, busy), or clear the busy bit. */
enum step descriptor_set(struct vcpu *vcpu, uint16_t selector, uint64_t bits);
enum step descriptor_clear(struct vcpu *vcpu, uint16_t selector, uint64_t bits);
/* Check and unpack a data segment or a stack segment for `cpl`; the register is not changed. */
enum step segment_prepare(struct vcpu *vcpu, enum segment_register which, uint16_t selector,
                          unsigned cpl, struct segment *ret_segment);
/* The same for SS with another vector and EXT bit (inter-privilege transfers: #TS). */
enum step stack_segment_prepare(struct vcpu *vcpu, uint16_t selector, unsigned cpl,
                                enum exception_vector vector, uint32_t external,
                                struct segment *ret_segment);
enum step segment_load(struct vcpu *vcpu, enum segment_register which, uint16_t selector);
/* After a return to an outer level: data segments that are too privileged become null. */
void segments_drop_privileged(struct vcpu *vcpu, unsigned cpl);

/* A new code segment and where to go in it. */
struct target {
    struct segment cs;
    uint64_t rip;
};
/* Make `target` current at privilege level `cpl` and renew what depends on it. */
void enter_code(struct vcpu *vcpu, const struct target *target, unsigned cpl);
enum step target_check_rip(struct vcpu *vcpu, const struct target *target, uint32_t external);
/* The inner stack that the TSS holds for `cpl` (or for an IST index): selector and pointer. */
enum step tss_stack(struct vcpu *vcpu, unsigned cpl, uint32_t external, uint16_t *ret_selector,
                    uint64_t *ret_sp);
enum step tss_ist(struct vcpu *vcpu, unsigned ist, uint32_t external, uint64_t *ret_sp);

/* hardware task switches (task.c) */
enum task_switch { TASK_JUMP, TASK_CALL, TASK_IRET, TASK_INTERRUPT };
/* `error_code` is pushed on the new stack if has_error_code. */
enum step task_switch(struct vcpu *vcpu, uint16_t selector, enum task_switch reason,
                      uint32_t external, bool has_error_code, uint32_t error_code);

/* system registers (system.c) */
void change_flush(struct vcpu *vcpu, enum flush_kind kind, gva_t gva);
enum step control_register_write(struct vcpu *vcpu, unsigned n, uint64_t value);
/* Write RFLAGS bits of `mask`; AC is part of what walks depend on. */
void rflags_write(struct vcpu *vcpu, uint64_t value, uint64_t mask);
/* The bits that POPF and IRET may change at this privilege, for an operand of `size` bytes. */
uint64_t rflags_writable(const struct vcpu *vcpu, unsigned size);

/* ports (io.c) */
enum step port_check(struct vcpu *vcpu, uint16_t port, unsigned size);
uint32_t port_in(struct vcpu *vcpu, uint16_t port, unsigned size);
void port_out(struct vcpu *vcpu, uint16_t port, unsigned size, uint32_t value);

/* events (event.c) */
void event_leave_shadow(struct vcpu *vcpu);

/* locks (locked.c) */
bool is_locked(const struct insn *insn);
enum step execute_locked(struct vcpu *vcpu, const struct insn *insn, execute_fn *plain);
/* The place of a bit string operand (BT and its kind). */
enum step bit_place(struct vcpu *vcpu, const struct insn *insn, bool write, struct place *ret_place,
                    unsigned *ret_bit);

/* vector instructions (native.c) */
enum step native_execute(struct vcpu *vcpu, const struct insn *insn);
/* After x87 state came from guest memory: reserved and derived bits become what the CPU has. */
void native_settle(struct vcpu *vcpu);

/* The executors of handlers.h, and those that others of them hand on to. */
#define INTERP_DECLARE(mnemonic, executor) execute_fn execute_##executor;
INTERP_EXECUTORS(INTERP_DECLARE)
execute_fn execute_jump_far, execute_call_far, execute_return_far, execute_mov_control;
