/*
 * Decoding: by the tables if they know the form, else by Zydis.
 */
#include "x86/decode_internal.h"

#define GPR(n, byte, word, dword, qword)                                                           \
    [ZYDIS_REGISTER_##byte] = (n) + 1, [ZYDIS_REGISTER_##word] = (n) + 1,                          \
    [ZYDIS_REGISTER_##dword] = (n) + 1, [ZYDIS_REGISTER_##qword] = (n) + 1
#define GPR_NUMBERED(n) GPR(n, R##n##B, R##n##W, R##n##D, R##n)
const uint8_t insn_gpr_numbers[ZYDIS_REGISTER_MAX_VALUE + 1] = {
    GPR(0, AL, AX, EAX, RAX),  GPR(1, CL, CX, ECX, RCX),  GPR(2, DL, DX, EDX, RDX),
    GPR(3, BL, BX, EBX, RBX),  GPR(4, SPL, SP, ESP, RSP), GPR(5, BPL, BP, EBP, RBP),
    GPR(6, SIL, SI, ESI, RSI), GPR(7, DIL, DI, EDI, RDI), GPR_NUMBERED(8),
    GPR_NUMBERED(9),           GPR_NUMBERED(10),          GPR_NUMBERED(11),
    GPR_NUMBERED(12),          GPR_NUMBERED(13),          GPR_NUMBERED(14),
    GPR_NUMBERED(15),          [ZYDIS_REGISTER_AH] = 1,   [ZYDIS_REGISTER_CH] = 2,
    [ZYDIS_REGISTER_DH] = 3,   [ZYDIS_REGISTER_BH] = 4,
};

static inline bool is_moffs(const struct insn *insn)
{
    return insn->info.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
           insn->info.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && insn->info.opcode >= 0xa0 &&
           insn->info.opcode <= 0xa3;
}

/* CPUs leave the destination as it is when the source is zero. SDM volume 2, BSF and BSR. */
static inline bool is_bit_scan(const struct insn *insn)
{
    return insn->info.mnemonic == ZYDIS_MNEMONIC_BSF || insn->info.mnemonic == ZYDIS_MNEMONIC_BSR;
}

static inline void note_register(struct insn *insn, const struct insn_operand *operand)
{
    /* No register: all bits fall out. */
    uint16_t bit = (uint16_t)(1u << insn_gpr_numbers[operand->reg.value] >> 1);
    bool writes = operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    bool reads =
        (operand->actions & (ZYDIS_OPERAND_ACTION_MASK_READ | ZYDIS_OPERAND_ACTION_CONDWRITE)) ||
        (writes && (operand->size < 32 || is_bit_scan(insn)));
    if (operand->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT &&
        operand->encoding != ZYDIS_OPERAND_ENCODING_NONE) {
        insn->registers.read |= reads ? bit : 0;
        insn->registers.written |= writes ? bit : 0;
    } else {
        insn->registers.implicit_read |= reads ? bit : 0;
        insn->registers.implicit_written |= writes ? bit : 0;
    }
}

static inline void note_memory(struct insn *insn, unsigned n)
{
    const struct insn_operand *operand = &insn->operands[n];
    if (insn->memory_operand == NO_OPERAND &&
        (operand->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM || is_moffs(insn))) {
        insn->memory_operand = (uint8_t)n;
    }
}

/* What follows from the operands. */
static inline void note_operands(struct insn *insn)
{
    insn->registers = (struct insn_registers){0};
    insn->memory_operand = NO_OPERAND;
    for (unsigned n = 0; n < insn->info.operand_count; n++) {
        if (insn->operands[n].type == ZYDIS_OPERAND_TYPE_REGISTER) {
            note_register(insn, &insn->operands[n]);
        } else if (insn->operands[n].type == ZYDIS_OPERAND_TYPE_MEMORY) {
            note_memory(insn, n);
        }
    }
}

bool decode_common(enum decode_mode mode, const uint8_t *bytes, size_t available,
                   struct insn *ret_insn)
{
    if (mode != DECODE_64 || !decode_by_table(bytes, available, ret_insn)) {
        return false;
    }
    note_operands(ret_insn);
    return true;
}

enum decode_result decode(enum decode_mode mode, const uint8_t *bytes, size_t available,
                          struct insn *ret_insn)
{
    if (decode_common(mode, bytes, available, ret_insn)) {
        return DECODE_OK;
    }
    enum decode_result result = decode_by_zydis(mode, bytes, available, ret_insn);
    if (result == DECODE_OK) {
        note_operands(ret_insn);
    }
    return result;
}
