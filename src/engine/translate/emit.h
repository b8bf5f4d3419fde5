/*
 * Emitting host code: one function for each instruction form that translate writes itself.
 * SDM volume 2, chapter 2 for the encoding.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "engine/translate/internal.h"

struct emitter {
    uint8_t *at;   /* next byte, in the writable alias */
    uint8_t *base; /* cache offset 0, in the writable alias */
    bool has_bmi2; /* the host's, whatever the guest is offered */
};

static inline uint32_t emit_offset(const struct emitter *e)
{
    return (uint32_t)(e->at - e->base);
}

static inline void emit8(struct emitter *e, uint8_t byte)
{
    *e->at++ = byte;
}

static inline void emit32(struct emitter *e, uint32_t value)
{
    store_le32(e->at, value);
    e->at += 4;
}

static inline void emit64(struct emitter *e, uint64_t value)
{
    store_le64(e->at, value);
    e->at += 8;
}

/* `count` bytes of as few instructions as can be that do nothing. SDM volume 2, NOP, table 4-12. */
static inline void emit_nops(struct emitter *e, unsigned count)
{
    static const uint8_t nops[8][8] = {
        {0x90},
        {0x66, 0x90},
        {0x0f, 0x1f, 0x00},
        {0x0f, 0x1f, 0x40, 0x00},
        {0x0f, 0x1f, 0x44, 0x00, 0x00},
        {0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00},
        {0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00},
        {0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00},
    };
    while (count) {
        unsigned length = count < 8 ? count : 8;
        for (unsigned i = 0; i < length; i++) {
            emit8(e, nops[length - 1][i]);
        }
        count -= length;
    }
}

static inline void emit_alignment(struct emitter *e, unsigned alignment)
{
    emit_nops(e, -emit_offset(e) % alignment);
}

static inline void emit_rex(struct emitter *e, bool w, unsigned reg, unsigned index, unsigned base)
{
    uint8_t rex = (uint8_t)(0x40 | w << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3);
    if (rex != 0x40) {
        emit8(e, rex);
    }
}

/* op reg, gs:[displacement] */
static inline void emit_gs(struct emitter *e, bool w, uint8_t opcode, unsigned reg,
                           size_t displacement)
{
    emit8(e, 0x65);
    emit_rex(e, w, reg, 0, 0);
    emit8(e, opcode);
    emit8(e, (uint8_t)((reg & 7) << 3 | 4));
    emit8(e, 0x25);
    emit32(e, (uint32_t)displacement);
}

/* op reg, gs:[index * 8 + displacement] */
static inline void emit_gs_scaled(struct emitter *e, bool w, uint8_t opcode, unsigned reg,
                                  unsigned index, size_t displacement)
{
    emit8(e, 0x65);
    emit_rex(e, w, reg, index, 0);
    emit8(e, opcode);
    emit8(e, (uint8_t)((reg & 7) << 3 | 4));
    emit8(e, (uint8_t)(3 << 6 | (index & 7) << 3 | 5));
    emit32(e, (uint32_t)displacement);
}

/* op reg, gs:[SCRATCH2 + displacement] */
static inline void emit_gs_scratch2(struct emitter *e, bool w, uint8_t opcode, unsigned reg,
                                    size_t displacement)
{
    emit8(e, 0x65);
    emit_rex(e, w, reg, 0, SCRATCH2);
    emit8(e, opcode);
    emit8(e, (uint8_t)(0x80 | (reg & 7) << 3 | (SCRATCH2 & 7)));
    emit32(e, (uint32_t)displacement);
}

enum {
    OP_LOAD = 0x8b,
    OP_STORE = 0x89,
    OP_ADD = 0x03,
    OP_SUB = 0x2b,
    OP_CMP = 0x3b,
    OP_OR = 0x0b,
    OP_MOVSXD = 0x63,
};

static inline void emit_load(struct emitter *e, unsigned reg, size_t displacement)
{
    emit_gs(e, true, OP_LOAD, reg, displacement);
}

static inline void emit_store(struct emitter *e, unsigned reg, size_t displacement)
{
    emit_gs(e, true, OP_STORE, reg, displacement);
}

/* op with two registers in ModRM; `reg` is a part of the opcode in some (/4 and the like). */
static inline void emit_registers(struct emitter *e, bool w, uint8_t opcode, unsigned reg,
                                  unsigned rm)
{
    emit_rex(e, w, reg, 0, rm);
    emit8(e, opcode);
    emit8(e, (uint8_t)(0xc0 | (reg & 7) << 3 | (rm & 7)));
}

/* mov to, from (64 bits) */
static inline void emit_move(struct emitter *e, unsigned to, unsigned from)
{
    emit_registers(e, true, OP_STORE, from, to);
}

/* Load a constant in the shortest form; leaves the flags alone. */
static inline void emit_constant(struct emitter *e, unsigned reg, uint64_t value)
{
    if (value <= UINT32_MAX) {
        emit_rex(e, false, 0, 0, reg);
        emit8(e, (uint8_t)(0xb8 | (reg & 7)));
        emit32(e, (uint32_t)value);
    } else if ((uint64_t)(int64_t)(int32_t)value == value) {
        emit_rex(e, true, 0, 0, reg);
        emit8(e, 0xc7);
        emit8(e, (uint8_t)(0xc0 | (reg & 7)));
        emit32(e, (uint32_t)value);
    } else {
        emit_rex(e, true, 0, 0, reg);
        emit8(e, (uint8_t)(0xb8 | (reg & 7)));
        emit64(e, value);
    }
}

/* ModRM, SIB and displacement for [base + displacement]. */
static inline void emit_modrm_base(struct emitter *e, unsigned reg, unsigned base,
                                   int32_t displacement)
{
    bool is_byte = displacement >= -128 && displacement <= 127;
    uint8_t mod = displacement == 0 && (base & 7) != 5 ? 0 : is_byte ? 1 : 2;
    emit8(e, (uint8_t)(mod << 6 | (reg & 7) << 3 | (base & 7)));
    if ((base & 7) == 4) {
        emit8(e, 0x24);
    }
    if (mod == 1) {
        emit8(e, (uint8_t)displacement);
    } else if (mod == 2) {
        emit32(e, (uint32_t)displacement);
    }
}

/* op reg, [base + displacement] with a one-byte opcode */
static inline void emit_memory(struct emitter *e, bool w, uint8_t opcode, unsigned reg,
                               unsigned base, int32_t displacement)
{
    emit_rex(e, w, reg, 0, base);
    emit8(e, opcode);
    emit_modrm_base(e, reg, base, displacement);
}

/* lea reg, [base + displacement] */
static inline void emit_lea(struct emitter *e, unsigned reg, unsigned base, int32_t displacement)
{
    emit_memory(e, true, 0x8d, reg, base, displacement);
}

/*
 * lea reg, [base + index * scale + displacement]; base or index -1 for none. The 32-bit form
 * (w false) truncates the address as an address-size prefix does.
 */
static inline void emit_lea_full(struct emitter *e, bool w, unsigned reg, int base, int index,
                                 unsigned scale, int32_t displacement)
{
    static const uint8_t scale_bits[9] = {[1] = 0, [2] = 1, [4] = 2, [8] = 3};
    if (w && index < 0 && base >= 0 && displacement == 0) {
        emit_move(e, reg, (unsigned)base); /* the host renames it away */
        return;
    }
    if (index < 0 && base >= 0) {
        emit_memory(e, w, 0x8d, reg, (unsigned)base, displacement);
        return;
    }
    bool no_base = base < 0;
    bool is_byte = displacement >= -128 && displacement <= 127;
    uint8_t mod = no_base ? 0 : displacement == 0 && (base & 7) != 5 ? 0 : is_byte ? 1 : 2;
    emit_rex(e, w, reg, index < 0 ? 0 : (unsigned)index, no_base ? 0 : (unsigned)base);
    emit8(e, 0x8d);
    emit8(e, (uint8_t)(mod << 6 | (reg & 7) << 3 | 4));
    emit8(e, (uint8_t)((index < 0 ? 0 : scale_bits[scale]) << 6 | (index < 0 ? 4 : index & 7) << 3 |
                       (no_base ? 5 : base & 7)));
    if (no_base || mod == 2) {
        emit32(e, (uint32_t)displacement);
    } else if (mod == 1) {
        emit8(e, (uint8_t)displacement);
    }
}

/* Relative jumps and calls inside the cache; the target is a cache offset. */
static inline void emit_relative(struct emitter *e, uint32_t target)
{
    emit32(e, target - (emit_offset(e) + 4));
}

static inline void emit_jump(struct emitter *e, uint32_t target)
{
    emit8(e, 0xe9);
    emit_relative(e, target);
}

/* rorx to, from, count: needs BMI2, leaves the flags alone */
static inline void emit_rorx(struct emitter *e, bool w, unsigned to, unsigned from, uint8_t count)
{
    emit8(e, 0xc4);
    emit8(e, (uint8_t)(0x43 | (to < R8) << 7 | (from < R8) << 5));
    emit8(e, w ? 0xfb : 0x7b);
    emit8(e, 0xf0);
    emit8(e, (uint8_t)(0xc0 | (to & 7) << 3 | (from & 7)));
    emit8(e, count);
}

/* xchg ah, al (or of RCX, RDX, RBX): leaves the flags alone */
static inline void emit_exchange_bytes(struct emitter *e, unsigned gpr)
{
    emit8(e, 0x86);
    emit8(e, (uint8_t)(0xc0 | gpr << 3 | (gpr + 4)));
}

static inline void emit_call(struct emitter *e, uint32_t target)
{
    emit8(e, 0xe8);
    emit_relative(e, target);
}

/* SCRATCH2 = SCRATCH (or its lower half) to the right; only bits from above `count` matter. */
static inline void emit_rotated(struct emitter *e, bool w, uint8_t count)
{
    if (e->has_bmi2) {
        emit_rorx(e, w, SCRATCH2, SCRATCH, count);
    } else {
        emit_registers(e, w, OP_STORE, SCRATCH, SCRATCH2);
        emit_registers(e, w, 0xc1, 5, SCRATCH2); /* shr */
        emit8(e, count);
    }
}

/* A forward branch whose target is set later: returns where the rel32 stands. */
static inline uint8_t *emit_branch_forward(struct emitter *e, uint8_t condition)
{
    emit8(e, 0x0f);
    emit8(e, (uint8_t)(0x80 | condition));
    emit32(e, 0);
    return e->at - 4;
}

/* The same without a condition. */
static inline uint8_t *emit_jump_forward(struct emitter *e)
{
    emit8(e, 0xe9);
    emit32(e, 0);
    return e->at - 4;
}

static inline void emit_set_target(struct emitter *e, uint8_t *rel32)
{
    store_le32(rel32, (uint32_t)(e->at - (rel32 + 4)));
}

enum {
    CONDITION_O = 0,
    CONDITION_C = 2,
    CONDITION_AE = 3,
    CONDITION_Z = 4,
    CONDITION_NZ = 5,
    CONDITION_A = 7,
    CONDITION_S = 8,
    CONDITION_GE = 13,
    CONDITION_LE = 14,
};

/* jmp gs:[displacement] (reg 4) or call gs:[displacement] (reg 2) */
static inline void emit_gs_transfer(struct emitter *e, unsigned reg, size_t displacement)
{
    emit_gs(e, false, 0xff, reg, displacement);
}

static inline size_t gpr_slot(unsigned gpr)
{
    return offsetof(struct block, vcpu.state.gpr) + 8 * gpr;
}

/* mov scratch2, rax; lahf; seto al; mov gs:[saved_flags], ax; mov rax, scratch2 */
static inline void emit_save_flags(struct emitter *e)
{
    emit_move(e, SCRATCH2, RAX);
    emit8(e, 0x9f); /* lahf */
    emit8(e, 0x0f); /* seto al */
    emit8(e, 0x90);
    emit8(e, 0xc0);
    emit8(e, 0x66);
    emit_gs(e, false, OP_STORE, RAX, offsetof(struct block, saved_flags));
    emit_move(e, RAX, SCRATCH2);
}

/* ---- stubs.c ---- */
/*
 * Look the guest-virtual address in SCRATCH up in the jump cache: SCRATCH2 = its entry. The branch
 * that is returned is for a miss. Every indirect branch has a copy of its own, so that the host's
 * predictor tells them apart. Flags are saved.
 */
uint8_t *emit_jump_lookup(struct emitter *e, enum privilege privilege);
/* jmp (4) or call (2) to what was found. */
void emit_jump_found(struct emitter *e, enum privilege privilege, unsigned transfer);
/* The parts of a soft TLB check: SCRATCH2 = offset of the entry for SCRATCH. */
void emit_check_index(struct emitter *e);
static inline size_t slot_offset(enum privilege privilege, enum tlb_access access, uint32_t slot)
{
    return SPACE_OFFSET +
           offsetof(struct space_data, tlb.slots[tlb_privilege(privilege)][access][slot]);
}
static inline size_t slots_used_offset(enum privilege privilege)
{
    return SPACE_OFFSET + offsetof(struct space_data, tlb.slots_used[tlb_privilege(privilege)]);
}
static inline size_t tlb_entry_offset(enum privilege privilege, enum tlb_access access)
{
    return SPACE_OFFSET +
           offsetof(struct space_data, tlb.entries[tlb_privilege(privilege)][access]);
}
