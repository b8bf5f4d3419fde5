/*
 * Fuzzer of the decoder: the results must be consistent with each other, nothing beyond the given
 * bytes may be read, the tables must say what Zydis says, and lengths must agree with a second
 * decoder, Capstone, where both accept.
 *
 * Input: a byte that chooses the code size, then the instruction.
 * Guards: src/x86/decode.c src/x86/decode_table.c src/x86/decode_zydis.c
 */
#include <capstone/capstone.h>
#include <stdlib.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "x86/decode_compare.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool has_prefix(const struct insn *insn, uint8_t value)
{
    bool has = false;
    for (unsigned i = 0; i < insn->info.raw.prefix_count; i++) {
        has |= insn->bytes[i] == value;
    }
    return has;
}

/*
 * Where Capstone 4 is known to be wrong about Intel CPUs: near branches with 66H, immediates of
 * PUSH and RET behind several prefixes, and three instructions that need a mandatory prefix.
 */
static bool is_known_difference(const struct insn *insn)
{
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_RET:
    case ZYDIS_MNEMONIC_EXTRQ:
    case ZYDIS_MNEMONIC_INSERTQ:
    case ZYDIS_MNEMONIC_VMREAD:
        return true;
    default:
        return has_prefix(insn, 0x66) && insn->info.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE;
    }
}

static void check_against_capstone(enum decode_mode mode, const struct insn *insn,
                                   const uint8_t *bytes, size_t size)
{
    static const cs_mode modes[] = {
        [DECODE_16] = CS_MODE_16,
        [DECODE_32] = CS_MODE_32,
        [DECODE_64] = CS_MODE_64,
    };
    csh handle;
    ASSERT(cs_open(CS_ARCH_X86, modes[mode], &handle) == CS_ERR_OK);
    cs_insn *other = NULL;
    if (cs_disasm(handle, bytes, size, 0, 1, &other) == 1) {
        ASSERT(other->size == insn->info.length || is_known_difference(insn));
        cs_free(other, 1);
    }
    cs_close(&handle);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1 || size > 40) {
        return 0;
    }
    enum decode_mode mode = data[0] % 3;
    size_t available = size - 1;
    /* In memory of its own, so that reading beyond the end is seen. */
    uint8_t *bytes = malloc(available ? available : 1);
    ASSERT(bytes);
    bytes_copy(bytes, data + 1, available);

    struct insn insn, again;
    enum decode_result result = decode(mode, bytes, available, &insn);
    ASSERT(decode_by_zydis(mode, bytes, available, &again) == result);
    switch (result) {
    case DECODE_OK:
        ASSERT(!insn_difference(&insn, &again));
        ASSERT(insn.info.length >= 1 && insn.info.length <= INSN_MAX_LENGTH);
        ASSERT(insn.info.length <= available);
        /* The bytes behind it do not matter, and none can be missing. */
        ASSERT(decode(mode, bytes, insn.info.length, &again) == DECODE_OK);
        ASSERT(again.info.length == insn.info.length);
        ASSERT(again.info.mnemonic == insn.info.mnemonic);
        ASSERT(decode(mode, bytes, insn.info.length - 1u, &again) == DECODE_TRUNCATED);
        check_against_capstone(mode, &insn, bytes, available);
        break;
    case DECODE_TRUNCATED:
        ASSERT(available < INSN_MAX_LENGTH);
        break;
    case DECODE_TOO_LONG:
        ASSERT(available >= INSN_MAX_LENGTH);
        break;
    case DECODE_INVALID:
        break;
    }
    free(bytes);
    return 0;
}
