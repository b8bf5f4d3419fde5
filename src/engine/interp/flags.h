/*
 * Arithmetic flags by running the host's own instruction: exact by construction, also where the
 * manual calls a flag undefined. RAX carries them: AH holds SF ZF AF PF CF as LAHF does, AL holds
 * OF, so the values must be in other registers.
 */
#pragma once

#include <stdint.h>

#include "x86/cpu_state.h"

/* AL = 0 or 1; adding 7FH overflows for 1 only. SAHF leaves OF alone. */
#define FLAGS_IN  "addb $0x7f, %%al\n\tsahf\n\t"
#define FLAGS_OUT "\n\tlahf\n\tseto %%al"

/*
 * The cases of a switch over operand sizes: a host instruction on [a], with flags from and to
 * `packed`. `operands` is a macro that spells the operands for a size's modifier; what it names
 * besides [a] are the inputs behind it.
 */
#define FLAGS_CASE(bytes, packed, instruction, operands, ...)                                      \
    case bytes:                                                                                    \
        __asm__(FLAGS_IN instruction " " operands FLAGS_OUT                                        \
                : "+a"(packed), [a] "+q"(a)                                                        \
                : __VA_ARGS__                                                                      \
                : "cc");                                                                           \
        break;
#define FLAGS_WIDE_CASES(packed, name, operands, ...)                                              \
    FLAGS_CASE(2, packed, name "w", operands("w"), __VA_ARGS__)                                    \
    FLAGS_CASE(4, packed, name "l", operands("k"), __VA_ARGS__)                                    \
    FLAGS_CASE(8, packed, name "q", operands("q"), __VA_ARGS__)
#define FLAGS_CASES(packed, name, operands, ...)                                                   \
    FLAGS_CASE(1, packed, name "b", operands("b"), __VA_ARGS__)                                    \
    FLAGS_WIDE_CASES(packed, name, operands, __VA_ARGS__)
#define FLAGS_ON_A(modifier)   "%" modifier "[a]"
#define FLAGS_ON_A_B(modifier) "%" modifier "[b], %" modifier "[a]"

static inline uint64_t flags_pack(uint64_t rflags)
{
    return (rflags >> 11 & 1) | (rflags & 0xff) << 8;
}

static inline uint64_t flags_unpack(uint64_t rflags, uint64_t packed)
{
    return (rflags & ~(uint64_t)FLAGS_ARITHMETIC) | (packed >> 8 & 0xd5) | (packed & 1) << 11;
}
