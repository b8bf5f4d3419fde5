/*
 * The layout of the XSAVE area that holds a vCPU's vector state: standard format, host offsets.
 * SDM volume 1, 13.4. A component whose bit in XSTATE_BV is clear is in its initial state,
 * whatever its bytes say.
 */
#pragma once

#include "base/bytes.h"
#include "x86/cpu_state.h"

enum {
    XSAVE_FCW = 0,
    XSAVE_FSW = 2,
    XSAVE_FOP = 6,
    XSAVE_FIP = 8,
    XSAVE_FDP = 16,
    XSAVE_MXCSR = 24,
    XSAVE_MXCSR_MASK = 28,
    XSAVE_ST = 32,
    XSAVE_XMM = 160,
    XSAVE_XMM_END = 416,
    XSAVE_LEGACY_END = 512,
    XSAVE_XSTATE_BV = 512,
    XSAVE_XCOMP_BV = 520,
    XSAVE_HEADER_END = 576,
    XSAVE_YMM = 576, /* the same on every CPU */

    FCW_INITIAL = 0x37f,
    MXCSR_INITIAL = 0x1f80,
};

/* Where a component from number 2 on lies in the standard format. */
struct xsave_component {
    uint32_t offset;
    uint32_t size;
};
struct xsave_component xsave_component(unsigned number);

static inline uint64_t xsave_in_use(const struct cpu_state *state)
{
    return load_le64(state->xsave + XSAVE_XSTATE_BV);
}

/* Give these components their initial contents in memory too, if they are in the initial state. */
void xsave_materialize(struct cpu_state *state, uint64_t components);

/* A vector register of `size` bytes (16, 32, 64), or a mask register; zero where initial. */
void vector_load(const struct cpu_state *state, unsigned number, unsigned size, void *ret_value);
/* Bytes above `size` become zero, as VEX and EVEX instructions leave them. */
void vector_store(struct cpu_state *state, unsigned number, unsigned size, const void *value);
uint64_t mask_load(const struct cpu_state *state, unsigned number);
void mask_store(struct cpu_state *state, unsigned number, uint64_t value);
