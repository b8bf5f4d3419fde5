/*
 * Decoding with Zydis: the modes in which bytes mean what they mean on the CPU that the guest is
 * shown, and the telling apart of truncated, too long and undefined.
 */
#include "x86/decode.h"

#include "base/bytes.h"

/*
 * The optional decodings, the same for all code sizes; the others keep the older meaning.
 * - MPX, CET, CLDEMOTE off: no CPU model offers them, so ENDBR64, RDSSP, BNDMOV... are the NOPs
 *   that they were made of.
 * - WBNOINVD off: it is WBINVD, which may do more than asked.
 * - KNC off: the opcodes of a coprocessor. (Its MVEX prefix has no mode: see is_undefined().)
 * - LZCNT and TZCNT on: see decode.h.
 * - AMD_BRANCHES off: in 64-bit mode a near branch ignores the prefix 66H, as on Intel CPUs.
 */
#define DECODER_MODES                                                                              \
    {                                                                                              \
        [ZYDIS_DECODER_MODE_LZCNT] = ZYAN_TRUE, [ZYDIS_DECODER_MODE_TZCNT] = ZYAN_TRUE,            \
    }

static const ZydisDecoder decoders[] = {
    [DECODE_16] = {ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16, DECODER_MODES},
    [DECODE_32] = {ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32, DECODER_MODES},
    [DECODE_64] = {ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64, DECODER_MODES},
};

/*
 * For an executor the instructions that are defined to be undefined are just that, and so is a
 * prefix 62H that would be EVEX but for a bit that must be one (SDM volume 2, 2.7.1).
 */
static bool is_undefined(const ZydisDecodedInstruction *info)
{
    return info->mnemonic == ZYDIS_MNEMONIC_UD0 || info->mnemonic == ZYDIS_MNEMONIC_UD1 ||
           info->mnemonic == ZYDIS_MNEMONIC_UD2 ||
           info->encoding == ZYDIS_INSTRUCTION_ENCODING_MVEX;
}

/*
 * Zydis takes R13D for the base of a SIB operand that has none (mod 0, base 5, with REX.B) where
 * 67H makes addresses 32 bits wide, and forgets its displacement. SDM volume 2, table 2-3.
 */
static void correct_sib_without_base(struct insn *insn)
{
    const ZydisDecodedInstruction *info = &insn->info;

    if (info->machine_mode != ZYDIS_MACHINE_MODE_LONG_64 || info->address_width != 32 ||
        !(info->attributes & ZYDIS_ATTRIB_HAS_SIB) || info->raw.modrm.mod != 0 ||
        (info->raw.sib.base & 7) != 5) {
        return;
    }
    for (unsigned i = 0; i < info->operand_count; i++) {
        ZydisDecodedOperand *operand = &insn->operands[i];
        if (operand->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM &&
            operand->type == ZYDIS_OPERAND_TYPE_MEMORY &&
            operand->mem.base == ZYDIS_REGISTER_R13D) {
            operand->mem.base = ZYDIS_REGISTER_NONE;
            operand->mem.disp.has_displacement = ZYAN_TRUE;
            operand->mem.disp.value = info->raw.disp.value;
        }
    }
}

enum decode_result decode(enum decode_mode mode, const uint8_t *bytes, size_t available,
                          struct insn *ret_insn)
{
    size_t length = available < INSN_MAX_LENGTH ? available : INSN_MAX_LENGTH;
    if (length == 0) {
        return DECODE_TRUNCATED;
    }
    ZyanStatus status =
        ZydisDecoderDecodeFull(&decoders[mode], bytes, length, &ret_insn->info, ret_insn->operands);
    if (ZYAN_SUCCESS(status)) {
        if (is_undefined(&ret_insn->info)) {
            return DECODE_INVALID;
        }
        correct_sib_without_base(ret_insn);
        bytes_fill(ret_insn->bytes, 0, sizeof ret_insn->bytes);
        bytes_copy(ret_insn->bytes, bytes, ret_insn->info.length);
        return DECODE_OK;
    }
    /*
     * Zydis may know that it will be too long before the 15 bytes are there; the CPU fetches them
     * first, and a fault on the way counts.
     */
    if (status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG || status == ZYDIS_STATUS_NO_MORE_DATA) {
        return length == INSN_MAX_LENGTH ? DECODE_TOO_LONG : DECODE_TRUNCATED;
    }
    return DECODE_INVALID;
}
