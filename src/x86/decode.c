/*
 * Decoding with Zydis: the modes in which bytes mean what they mean on the CPU that the guest is
 * shown, and the telling apart of truncated, too long and undefined.
 */
#include "x86/decode.h"

#include "base/bytes.h"

/*
 * The optional decodings, the same for all code sizes:
 * - MPX and KNC are never offered, so their opcodes keep the older meaning (NOP, undefined).
 * - CET on: ENDBR64 and RDSSP have their own names; without CET the CPU runs them as NOP, and so
 *   must the executor (ISA set CET; only INCSSP, SETSSBSY... of it are undefined without CET).
 * - LZCNT and TZCNT on: the executor looks at the model, since without the feature the same bytes
 *   are BSR and BSF.
 * - CLDEMOTE and WBNOINVD off: they are NOP and WBINVD, which is what they may do anyhow.
 * - AMD_BRANCHES off: a 66H prefix on a near branch in 64-bit mode is ignored, as Intel CPUs do.
 */
#define DECODER_MODES                                                                              \
    {                                                                                              \
        [ZYDIS_DECODER_MODE_CET] = ZYAN_TRUE, [ZYDIS_DECODER_MODE_LZCNT] = ZYAN_TRUE,              \
        [ZYDIS_DECODER_MODE_TZCNT] = ZYAN_TRUE,                                                    \
    }

static const ZydisDecoder decoders[] = {
    [DECODE_16] = {ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16, DECODER_MODES},
    [DECODE_32] = {ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32, DECODER_MODES},
    [DECODE_64] = {ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64, DECODER_MODES},
};

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
        bytes_fill(ret_insn->bytes, 0, sizeof ret_insn->bytes);
        bytes_copy(ret_insn->bytes, bytes, ret_insn->info.length);
        return DECODE_OK;
    }
    if (status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG) {
        return DECODE_TOO_LONG;
    }
    if (status == ZYDIS_STATUS_NO_MORE_DATA) {
        return length == INSN_MAX_LENGTH ? DECODE_TOO_LONG : DECODE_TRUNCATED;
    }
    return DECODE_INVALID;
}
