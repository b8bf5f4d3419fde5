/*
 * The notation of the opcode tables, which is that of the SDM, volume 2, appendix A.2, with
 * what Zydis' definitions say of each operand: access and visibility.
 *
 *     [0x01] = ROW(ADD, BINARY, I86, RESULT, v, LOCK, E(v, rw), G(v, r)),
 *
 * is: 01H is ADD, of the category BINARY, in the instruction set I86; it sets the flags as the
 * set RESULT of decode_sets.c says, is as wide as the operand size, accepts LOCK, reads and
 * writes the register or memory operand of ModRM.rm and reads the register of ModRM.reg.
 *
 * The tables hold what is common in 64-bit mode; what is ABSENT is left to Zydis.
 */
#pragma once

#include "x86/decode_internal.h"

/* ---- operands ---- */

#define OPERAND(method, type, access, visibility)                                                  \
    (METHOD_##method | TYPE_##type << 6 | ACCESS_##access << 9 |                                   \
     ZYDIS_OPERAND_VISIBILITY_##visibility << 13)

#define E(type, access)             OPERAND(E, type, access, EXPLICIT)
#define G(type, access)             OPERAND(G, type, access, EXPLICIT)
#define M(type, access)             OPERAND(M, type, access, EXPLICIT)
#define N(type, access)             OPERAND(N, type, access, EXPLICIT)
#define O(type, access)             OPERAND(O, type, access, EXPLICIT)
#define P(type, access)             OPERAND(P, type, access, EXPLICIT)
#define Q(type, access)             OPERAND(Q, type, access, EXPLICIT)
#define R(type, access)             OPERAND(R, type, access, EXPLICIT)
#define U(type, access)             OPERAND(U, type, access, EXPLICIT)
#define V(type, access)             OPERAND(V, type, access, EXPLICIT)
#define W(type, access)             OPERAND(W, type, access, EXPLICIT)
#define Z(type, access)             OPERAND(Z, type, access, EXPLICIT)
#define ADDRESS                     OPERAND(ADDRESS, q, n, EXPLICIT)
#define I(type)                     OPERAND(I, type, r, EXPLICIT)
#define IU(type)                    OPERAND(IU, type, r, EXPLICIT)
#define J(type)                     OPERAND(J, type, r, EXPLICIT)
#define ONE                         OPERAND(ONE, b, r, IMPLICIT)
#define IMPLICIT(gpr, type, access) OPERAND(gpr, type, access, IMPLICIT)
#define HIDDEN(gpr, type, access)   OPERAND(gpr, type, access, HIDDEN)
#define FRAME(type, access)         OPERAND(FRAME, type, access, HIDDEN)
#define SOURCE(type, access)        OPERAND(SOURCE, type, access, HIDDEN)
#define DESTINATION(type, access)   OPERAND(DESTINATION, type, access, HIDDEN)
#define PUSHES(type)                HIDDEN(SP, q, rw), OPERAND(STACK, type, w, HIDDEN)
#define POPS(type)                  HIDDEN(SP, q, rw), OPERAND(STACK, type, r, HIDDEN)

/* ---- rows ---- */

#define ROW(...) ROW_OF(__VA_ARGS__, 0, 0, 0, 0, 0)
#define ROW_OF(name, kind, set, changes, type, also, a, b, c, d, e, ...)                           \
    {                                                                                              \
        .mnemonic = ZYDIS_MNEMONIC_##name,                                                         \
        .bits = (uint16_t)((also) | TYPE_##type << WIDTH_SHIFT | ROW_MODRM(a) | ROW_MODRM(b) |     \
                           ROW_MODRM(c)),                                                          \
        .operands = {a, b, c, d, e}, .category = ZYDIS_CATEGORY_##kind, .isa = ISA_##set,          \
        .flags = FLAGS_##changes,                                                                  \
    }
#define ROW_MODRM(code)                                                                            \
    (OPERAND_METHOD(code) < METHODS_WITH_MODRM      ? 0                                            \
     : OPERAND_METHOD(code) < METHODS_REGISTER_ONLY ? MODRM                                        \
     : OPERAND_METHOD(code) < METHODS_MEMORY_ONLY   ? MODRM | REGISTER                             \
                                                    : MODRM | MEMORY)

#define BY_REG(first)                                                                              \
    {                                                                                              \
        .mnemonic = SPLIT_REG, .operands = { first }                                               \
    }
#define BY_MOD(first)                                                                              \
    {                                                                                              \
        .mnemonic = SPLIT_MOD, .operands = { first }                                               \
    }
#define BY_SIZE(first)                                                                             \
    {                                                                                              \
        .mnemonic = SPLIT_SIZE, .operands = { first }                                              \
    }
#define ABSENT                                                                                     \
    {                                                                                              \
        0                                                                                          \
    }
