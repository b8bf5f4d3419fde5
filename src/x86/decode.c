/*
 * Decoding: by the tables if they know the form, else by Zydis.
 */
#include "x86/decode.h"

enum decode_result decode(enum decode_mode mode, const uint8_t *bytes, size_t available,
                          struct insn *ret_insn)
{
    return decode_by_zydis(mode, bytes, available, ret_insn);
}
