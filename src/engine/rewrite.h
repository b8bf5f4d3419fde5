/*
 * Rewriting: a copy of a guest instruction that the host CPU can run, with other general
 * registers in its operand fields and its memory operand (if any) at a given host register.
 * Used by translate for everything that it does not treat by hand, and by interp to run x87, SSE
 * and AVX instructions in a snippet.
 *
 * Works on the encoding (legacy, VEX, EVEX; 16, 32 and 64-bit guest code), so it needs no list
 * of instructions. General registers only.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "x86/cpu_state.h"
#include "x86/decode.h"

/* A host register for each guest register that appears in an explicit operand field. */
struct rewrite_map {
    uint8_t host[GPR_COUNT];
    uint8_t memory_base; /* the memory operand becomes [memory_base + memory_offset] */
    int32_t memory_offset;
    bool has_index; /* or [memory_base + memory_index * memory_scale + memory_offset] */
    uint8_t memory_index;
    uint8_t memory_scale; /* 1 (or 0), 2, 4 or 8 */
    /* AH, CH, DH or BH becomes the low byte of this register, where they cannot stand (0: no). */
    uint8_t high_byte;
    /* This register takes the memory operand's place, where there is such a form (0: none does). */
    uint8_t memory_register;
};

static inline bool is_high_byte(ZydisRegister name)
{
    return name >= ZYDIS_REGISTER_AH && name <= ZYDIS_REGISTER_BH;
}

static inline int rewrite_gpr(ZydisRegister name)
{
    return insn_gpr(name);
}

/* The memory operand that stands in ModRM (or in a moffs field), or NULL. */
static inline const struct insn_operand *rewrite_memory_operand(const struct insn *insn)
{
    return insn->memory_operand == NO_OPERAND ? NULL : &insn->operands[insn->memory_operand];
}

/*
 * Write the copy to `out` (room for INSN_MAX_LENGTH bytes). Returns its length, or 0 if the
 * instruction cannot be expressed with this map (a high-byte register together with a register that
 * needs REX). Prefixes that only chose the guest's address form (segment, 67H) are left out.
 */
size_t rewrite(const struct insn *insn, const struct rewrite_map *map, uint8_t *out);
