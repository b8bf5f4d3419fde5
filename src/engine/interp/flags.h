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

static inline uint64_t flags_pack(uint64_t rflags)
{
    return (rflags >> 11 & 1) | (rflags & 0xff) << 8;
}

static inline uint64_t flags_unpack(uint64_t rflags, uint64_t packed)
{
    return (rflags & ~(uint64_t)FLAGS_ARITHMETIC) | (packed >> 8 & 0xd5) | (packed & 1) << 11;
}
