/*
 * Decoding: by the tables if they know the form, else by Zydis.
 */
#include "x86/decode_internal.h"

enum decode_result decode(enum decode_mode mode, const uint8_t *bytes, size_t available,
                          struct insn *ret_insn)
{
    if (mode == DECODE_64 && decode_by_table(bytes, available, ret_insn)) {
        return DECODE_OK;
    }
    return decode_by_zydis(mode, bytes, available, ret_insn);
}
