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
};

/* Which guest general registers an instruction names in operand fields, by what it does to them. */
struct rewrite_registers {
    uint16_t read; /* explicit operands only, bit n = register n; not address parts */
    uint16_t written;
    uint16_t address;                         /* base and index of the memory operand */
    uint16_t implicit_read, implicit_written; /* fixed by the opcode (RAX of MUL, RCX of SHL...) */
};

void rewrite_registers(const struct insn *insn, struct rewrite_registers *ret_registers);

/* The number of a general register of any width (AH counts as RAX), or -1 for other registers. */
int rewrite_gpr(ZydisRegister name);
/* The memory operand that stands in ModRM (or in a moffs field), or NULL. */
const struct insn_operand *rewrite_memory_operand(const struct insn *insn);

/*
 * Write the copy to `out` (room for 16 bytes). Returns its length, or 0 if the instruction cannot
 * be expressed with this map (a high-byte register together with a register that needs REX).
 * Prefixes that only chose the guest's address form (segment, 67H) are left out.
 */
size_t rewrite(const struct insn *insn, const struct rewrite_map *map, uint8_t *out);
