/*
 * The inside of decoding by tables: what a row of the tables says. decode_rows.h has the notation
 * in which they are written.
 */
#pragma once

#include "x86/decode.h"

/* ---- operands: a code of 16 bits ---- */

/* Where an operand is. SDM volume 2, A.2.1. */
enum operand_method {
    METHOD_NONE,
    METHOD_AX, /* a certain general register... */
    METHOD_CX,
    METHOD_DX,
    METHOD_BX,
    METHOD_SP,
    METHOD_BP,
    METHOD_SI,
    METHOD_DI,
    METHOD_Z,           /* the general register of the opcode's low bits */
    METHOD_ONE,         /* an immediate that is not encoded: 1 */
    METHOD_I,           /* an immediate, sign-extended */
    METHOD_IU,          /* an immediate, zero-extended */
    METHOD_J,           /* relative to RIP */
    METHOD_O,           /* memory at an offset without ModRM */
    METHOD_STACK,       /* SS:[RSP] */
    METHOD_FRAME,       /* SS:[RBP] */
    METHOD_SOURCE,      /* DS:[RSI] */
    METHOD_DESTINATION, /* ES:[RDI] */
    METHODS_WITH_MODRM,
    METHOD_G = METHODS_WITH_MODRM, /* ModRM.reg: a general register */
    METHOD_P,                      /* MMX */
    METHOD_V,                      /* XMM */
    METHOD_E,                      /* ModRM.rm: a general register or memory */
    METHOD_Q,                      /* MMX or memory */
    METHOD_W,                      /* XMM or memory */
    METHODS_REGISTER_ONLY,
    METHOD_R = METHODS_REGISTER_ONLY, /* ModRM.rm: a general register */
    METHOD_N,                         /* MMX */
    METHOD_U,                         /* XMM */
    METHODS_MEMORY_ONLY,
    METHOD_M = METHODS_MEMORY_ONLY, /* ModRM.rm: memory */
    METHOD_ADDRESS,                 /* its address alone */
};

/* How wide an operand is. SDM volume 2, A.2.2. */
enum operand_type {
    TYPE_b, /* 8 bits */
    TYPE_w, /* 16 */
    TYPE_d, /* 32 */
    TYPE_q, /* 64 */
    TYPE_x, /* 128 */
    TYPE_v, /* 16, 32 or 64: the operand size */
    TYPE_z, /* 16, 32 or 32 */
    TYPE_k, /* 16, 64 or 64: of pushes and pops, "d64" in the SDM */
};

/* What is done with it. The last ones only under a condition. */
enum operand_access {
    ACCESS_n = 0,
    ACCESS_r = ZYDIS_OPERAND_ACTION_READ,
    ACCESS_w = ZYDIS_OPERAND_ACTION_WRITE,
    ACCESS_rw = ZYDIS_OPERAND_ACTION_READWRITE,
    ACCESS_cr = ZYDIS_OPERAND_ACTION_CONDREAD,
    ACCESS_cw = ZYDIS_OPERAND_ACTION_CONDWRITE,
    ACCESS_rcw = ZYDIS_OPERAND_ACTION_READ_CONDWRITE,
    ACCESS_crw = ZYDIS_OPERAND_ACTION_CONDREAD_WRITE,
};

#define OPERAND_METHOD(code)     ((code)&63)
#define OPERAND_TYPE(code)       ((code) >> 6 & 7)
#define OPERAND_ACCESS(code)     ((code) >> 9 & 15)
#define OPERAND_VISIBILITY(code) ((code) >> 13)

/* ---- rows ---- */

enum { ROW_OPERANDS = 5 };

/* What else a row says. */
enum row_bits {
    LOCK = 1 << 0,  /* LOCK is accepted, if the destination is in memory */
    SHORT = 1 << 1, /* a branch by 8 bits */
    NEAR = 1 << 2,  /* another branch inside the segment */
    REP = 1 << 3,   /* F2H or F3H repeats */
    REPE = 1 << 4,
    REPNE = 1 << 5,
    MODRM = 1 << 6,     /* there is a ModRM byte */
    REGISTER = 1 << 7,  /* only with ModRM.mod = 3 */
    MEMORY = 1 << 8,    /* only with another one */
    NO_66 = 1 << 9,     /* left to Zydis with the prefix 66H */
    NO_REX_B = 1 << 10, /* ... with REX.B */
    NO_SIZE = 1 << 11,  /* ... with any operand size but the default */
    WIDTH_SHIFT = 12,   /* the type that says how wide the instruction is */
};

struct row {
    uint16_t mnemonic; /* ZydisMnemonic; 0: absent; or enum split */
    uint16_t bits;
    uint16_t operands[ROW_OPERANDS]; /* of a split: the first of its rows */
    uint8_t category;                /* ZydisInstructionCategory */
    uint8_t isa;                     /* enum isa */
    uint8_t flags;                   /* enum flags_set */
};

/* Rows that stand for several, which are found from `first` on in the map's splits. */
enum split {
    SPLIT_REG = ZYDIS_MNEMONIC_MAX_VALUE + 1, /* one for each ModRM.reg */
    SPLIT_MOD,                                /* memory, register */
    SPLIT_SIZE,                               /* operand size 16, 32, 64 */
};

/* The prefix that is a part of the opcode: F2H and F3H also where they repeat. */
enum column { COLUMN_NONE, COLUMN_66, COLUMN_F3, COLUMN_F2, COLUMNS };

struct opcode_map {
    const struct row *columns[COLUMNS]; /* of 256 rows; NULL: all are absent */
    const struct row *splits;
};

extern const struct opcode_map opcodes_one_byte, opcodes_0f, opcodes_0f38, opcodes_0f3a;

/* ---- instruction sets and flags ---- */

enum isa {
    ISA_I86,
    ISA_LONGMODE,
    ISA_I186,
    ISA_PAUSE,
    ISA_I386,
    ISA_LONGMODE_BASE,
    ISA_I486REAL,
    ISA_I286REAL,
    ISA_PREFETCH_NOP,
    ISA_PREFETCH_NOP_AMD3DNOW_PREFETCH,
    ISA_SSE,
    ISA_SSE2,
    ISA_SSE3,
    ISA_SSE_PREFETCH,
    ISA_FAT_NOP,
    ISA_PPRO,
    ISA_PENTIUMREAL,
    ISA_CMOV,
    ISA_PENTIUMMMX,
    ISA_RDWRFSGS,
    ISA_POPCNT,
    ISA_BMI1,
    ISA_LZCNT,
    ISA_CMPXCHG16B,
    ISA_SSE2MMX,
    ISA_SSE_MMX,
    ISA_SSSE3MMX,
    ISA_SSSE3,
    ISA_SSE4,
    ISA_SSE42,
    ISA_MOVBE,
};

enum flags_set {
    FLAGS_NONE,
    FLAGS_RESULT,
    FLAGS_LOGICAL,
    FLAGS_ADC,
    FLAGS_SBB,
    FLAGS_MULTIPLY,
    FLAGS_IF_O,
    FLAGS_IF_C,
    FLAGS_IF_Z,
    FLAGS_IF_CZ,
    FLAGS_IF_S,
    FLAGS_IF_P,
    FLAGS_IF_SO,
    FLAGS_IF_ZSO,
    FLAGS_READ_ALL,
    FLAGS_POPF,
    FLAGS_STRING,
    FLAGS_STRING_COMPARE,
    FLAGS_REPEAT_COMPARE,
    FLAGS_ROTATE,
    FLAGS_ROTATE_CARRY,
    FLAGS_SHIFT,
    FLAGS_INT3,
    FLAGS_IO,
    FLAGS_CMC,
    FLAGS_DIVIDE,
    FLAGS_CLC,
    FLAGS_STC,
    FLAGS_INTERRUPT_FLAG,
    FLAGS_CLD,
    FLAGS_STD,
    FLAGS_INCREMENT,
    FLAGS_ZERO_ONLY,
    FLAGS_COMPARE_SCALAR,
    FLAGS_BIT_TEST,
    FLAGS_POPCNT,
    FLAGS_BIT_SCAN,
    FLAGS_BIT_COUNT,
    FLAGS_PTEST,
};

struct isa_names {
    uint8_t isa_set, isa_ext; /* ZydisISASet, ZydisISAExt */
};
extern const struct isa_names isa_names[];
extern const ZydisAccessedFlags flags_sets[];

/* Fills *ret_insn if the tables know the instruction, which is then valid 64-bit code. */
bool decode_by_table(const uint8_t *bytes, size_t available, struct insn *ret_insn);
