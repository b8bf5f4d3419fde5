/*
 * Decoding: every user (interp, translate, the scanners) gets the same decoded form. Common forms
 * of 64-bit code are decoded by tables of our own (decode_table.c), all others by Zydis, which is
 * also the oracle of the tables. The 15-byte rule holds; bytes beyond `available` are never read.
 */
#pragma once

#include <Zydis/Zydis.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { INSN_MAX_LENGTH = 15 };

/* The code size in force: CS.L, CS.D and long mode decide. */
enum decode_mode { DECODE_16, DECODE_32, DECODE_64 };

/*
 * The decoded form: what executors need of Zydis' two kilobytes, under the same names and with the
 * same meaning, in a few cache lines.
 */

/* The attributes that are kept. */
#define INSN_ATTRIBUTES                                                                            \
    (ZYDIS_ATTRIB_HAS_MODRM | ZYDIS_ATTRIB_HAS_REX | ZYDIS_ATTRIB_ACCEPTS_LOCK |                   \
     ZYDIS_ATTRIB_HAS_LOCK | ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE |                        \
     ZYDIS_ATTRIB_HAS_REPNE)

struct insn_memory {
    uint16_t base, index, segment; /* ZydisRegister */
    uint8_t type;                  /* ZydisMemoryOperandType */
    uint8_t scale;                 /* 0 without an index */
    int64_t displacement;          /* 0 if there is none */
};

struct insn_operand {
    uint8_t type;       /* ZydisOperandType */
    uint8_t visibility; /* ZydisOperandVisibility */
    uint8_t actions;    /* ZydisOperandActions */
    /* Where a register or the address is encoded: MODRM_REG, MODRM_RM, OPCODE, NDSNDD, or NONE. */
    uint8_t encoding;
    uint16_t size;         /* bits */
    uint16_t element_size; /* bits, in EVEX-encoded instructions; else 0 */
    union {
        struct {
            uint16_t value; /* ZydisRegister */
        } reg;
        struct insn_memory mem;
        struct {
            uint16_t segment;
            uint32_t offset;
        } ptr;
        struct {
            union {
                uint64_t u; /* sign-extended, where the instruction does that */
                int64_t s;
            } value;
        } imm;
    };
};

/* Where parts of the instruction are in its bytes; sizes in bits, 0 of what is not there. */
struct insn_raw {
    uint8_t prefix_count; /* legacy prefixes and REX */
    uint8_t mandatory;    /* the prefix that is a part of the opcode, or 0 */
    uint8_t rex;          /* the last prefix, or 0 */
    uint8_t vex_offset;   /* of the VEX or EVEX prefix */
    struct {
        uint8_t mod, reg, rm, offset;
    } modrm;
    struct {
        uint8_t size, offset;
    } disp;
    struct {
        uint8_t size, offset;
        bool is_relative;
    } imm[2];
};

/* What VEX and EVEX say besides; 0 in other instructions. */
struct insn_avx {
    uint16_t vector_length; /* bits */
    struct {
        uint16_t reg; /* ZydisRegister */
        uint8_t mode;
    } mask;
    struct {
        uint8_t mode;
        bool is_static;
    } broadcast;
    struct {
        uint8_t mode;
    } rounding;
    bool has_sae;
};

struct insn_info {
    uint16_t mnemonic; /* ZydisMnemonic */
    uint8_t length;
    uint8_t operand_count, operand_count_visible;
    uint8_t encoding;   /* ZydisInstructionEncoding */
    uint8_t opcode_map; /* ZydisOpcodeMap */
    uint8_t opcode;
    uint8_t operand_width; /* bits */
    uint8_t address_width;
    uint8_t machine_mode; /* ZydisMachineMode */
    struct {
        uint8_t category;        /* ZydisInstructionCategory */
        uint8_t isa_set;         /* ZydisISASet */
        uint8_t isa_ext;         /* ZydisISAExt */
        uint8_t branch_type;     /* ZydisBranchType */
        uint8_t exception_class; /* ZydisExceptionClass of EVEX-encoded instructions; else 0 */
    } meta;
    uint32_t attributes;                 /* of INSN_ATTRIBUTES */
    const ZydisAccessedFlags *cpu_flags; /* NULL: none are tested or changed */
    struct insn_raw raw;
    struct insn_avx avx;
};

/*
 * What an instruction does to the general registers: bit n is register n. A conditional or a narrow
 * write leaves a part of the old value, so that it is a read too.
 */
struct insn_registers {
    uint16_t read, written;                   /* operand fields; not address parts */
    uint16_t implicit_read, implicit_written; /* fixed by the opcode (RAX of MUL, RCX of SHL...) */
};

enum { NO_OPERAND = 0xff };

struct insn {
    struct insn_info info;
    struct insn_registers registers;
    uint8_t memory_operand;             /* the one in ModRM or a moffs field, or NO_OPERAND */
    uint8_t bytes[INSN_MAX_LENGTH + 1]; /* 0 behind the instruction */
    /* Also the implicit ones, without the flags register and the instruction pointer. */
    struct insn_operand operands[ZYDIS_MAX_OPERAND_COUNT];
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

/* The same for what the tables know: false for all else. General registers only. */
bool decode_common(enum decode_mode mode, const uint8_t *bytes, size_t available,
                   struct insn *ret_insn);

/* The number of a general register of any width (AH counts as RAX), or -1 for other registers. */
extern const uint8_t insn_gpr_numbers[]; /* and 1, or 0 */
static inline int insn_gpr(ZydisRegister name)
{
    return insn_gpr_numbers[name] - 1;
}

/* decode() by Zydis alone, without what follows from the operands: the oracle of the tables. */
enum decode_result decode_by_zydis(enum decode_mode mode, const uint8_t *bytes, size_t available,
                                   struct insn *ret_insn);
