/*
 * Decoding: a thin wrapper around Zydis that gives every user (interp, translate, the scanners)
 * the same decoded form. The 15-byte rule holds; bytes beyond `available` are never read.
 */
#pragma once

#include <Zydis/Zydis.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { INSN_MAX_LENGTH = 15 };

/* The code size in force: CS.L, CS.D and long mode decide. */
enum decode_mode { DECODE_16, DECODE_32, DECODE_64 };

struct insn {
    ZydisDecodedInstruction info;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    uint8_t bytes[INSN_MAX_LENGTH + 1];
};

enum decode_result {
    DECODE_OK,
    DECODE_TRUNCATED, /* more bytes are needed than `available` (and than 15 are not exceeded) */
    DECODE_TOO_LONG,  /* over 15 bytes: #GP(0) */
    DECODE_INVALID,   /* no such instruction: #UD */
};

/*
 * Bytes mean what they mean on a CPU without CET and MPX (no model offers them): ENDBR64 is a NOP.
 * UD0, UD1 and UD2 are DECODE_INVALID. LZCNT and TZCNT are decoded under these names, although
 * without the feature the CPU runs BSR and BSF (FEATURE_LZCNT, FEATURE_BMI1): executors look at
 * the model. Near branches have Intel's operand size: 66H is ignored in 64-bit mode.
 *
 * Uses vector registers (Zydis does): never call it while guest vector state is in the CPU.
 */
enum decode_result decode(enum decode_mode mode, const uint8_t *bytes, size_t available,
                          struct insn *ret_insn);
