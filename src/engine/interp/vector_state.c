/*
 * Access to vector and mask registers in the XSAVE area. See vector_state.h.
 */
#include "engine/interp/vector_state.h"

#include <cpuid.h>

enum { COMPONENT_AVX = 2, COMPONENT_OPMASK = 5, COMPONENT_ZMM_HI256 = 6, COMPONENT_HI16_ZMM = 7 };
enum { COMPONENTS = 10 };

struct xsave_component xsave_component(unsigned number)
{
    static struct xsave_component cache[COMPONENTS];
    static bool known[COMPONENTS]; /* hosts without a component have none of its bytes */
    uint32_t eax, ebx, ecx, edx;

    if (number < 2 || number >= COMPONENTS) {
        return (struct xsave_component){0};
    }
    /* Every thread would write the same constants. */
    if (!__atomic_load_n(&known[number], __ATOMIC_ACQUIRE)) {
        __cpuid_count(0xd, number, eax, ebx, ecx, edx);
        bool fits = ebx + eax <= XSAVE_AREA_SIZE;
        __atomic_store_n(&cache[number].offset, fits ? ebx : 0, __ATOMIC_RELAXED);
        __atomic_store_n(&cache[number].size, fits ? eax : 0, __ATOMIC_RELAXED);
        __atomic_store_n(&known[number], true, __ATOMIC_RELEASE);
    }
    return (struct xsave_component){
        .offset = __atomic_load_n(&cache[number].offset, __ATOMIC_RELAXED),
        .size = __atomic_load_n(&cache[number].size, __ATOMIC_RELAXED),
    };
}

void xsave_materialize(struct cpu_state *state, uint64_t components)
{
    uint64_t initial = components & ~xsave_in_use(state);

    if (initial & XCR0_X87) {
        bytes_fill(state->xsave, 0, XSAVE_MXCSR);
        bytes_fill(state->xsave + XSAVE_ST, 0, XSAVE_XMM - XSAVE_ST);
        store_le16(state->xsave + XSAVE_FCW, FCW_INITIAL);
    }
    if (initial & XCR0_SSE) {
        bytes_fill(state->xsave + XSAVE_XMM, 0, XSAVE_XMM_END - XSAVE_XMM);
    }
    for (unsigned n = 2; n < COMPONENTS; n++) {
        if (initial >> n & 1) {
            struct xsave_component component = xsave_component(n);
            bytes_fill(state->xsave + component.offset, 0, component.size);
        }
    }
}

/* Where the bytes [16, 32), [32, 64) or all of a register are: the component and its place. */
static uint8_t *register_part(const struct cpu_state *state, unsigned component, unsigned offset)
{
    return (uint8_t *)state->xsave + xsave_component(component).offset + offset;
}

void vector_load(const struct cpu_state *state, unsigned number, unsigned size, void *ret_value)
{
    uint64_t in_use = xsave_in_use(state);
    uint8_t value[64];

    bytes_fill(value, 0, sizeof value);
    if (number >= 16) {
        if (in_use & XCR0_HI16_ZMM) {
            bytes_copy(value, register_part(state, COMPONENT_HI16_ZMM, (number - 16) * 64), 64);
        }
    } else {
        if (in_use & XCR0_SSE) {
            bytes_copy(value, state->xsave + XSAVE_XMM + number * 16, 16);
        }
        if (in_use & XCR0_AVX) {
            bytes_copy(value + 16, state->xsave + XSAVE_YMM + number * 16, 16);
        }
        if (in_use & XCR0_ZMM_HI256) {
            bytes_copy(value + 32, register_part(state, COMPONENT_ZMM_HI256, number * 32), 32);
        }
    }
    bytes_copy(ret_value, value, size);
}

static void use(struct cpu_state *state, uint64_t components)
{
    xsave_materialize(state, components);
    store_le64(state->xsave + XSAVE_XSTATE_BV, xsave_in_use(state) | components);
}

void vector_store(struct cpu_state *state, unsigned number, unsigned size, const void *value)
{
    uint8_t full[64];

    bytes_fill(full, 0, sizeof full);
    bytes_copy(full, value, size);
    if (number >= 16) {
        use(state, XCR0_HI16_ZMM);
        bytes_copy(register_part(state, COMPONENT_HI16_ZMM, (number - 16) * 64), full, 64);
        return;
    }
    use(state, XCR0_SSE);
    bytes_copy(state->xsave + XSAVE_XMM + number * 16, full, 16);
    if (size > 16 || (xsave_in_use(state) & XCR0_AVX)) {
        use(state, XCR0_AVX);
        bytes_copy(state->xsave + XSAVE_YMM + number * 16, full + 16, 16);
    }
    if (size > 32 || (xsave_in_use(state) & XCR0_ZMM_HI256)) {
        use(state, XCR0_ZMM_HI256);
        bytes_copy(register_part(state, COMPONENT_ZMM_HI256, number * 32), full + 32, 32);
    }
}

uint64_t mask_load(const struct cpu_state *state, unsigned number)
{
    return xsave_in_use(state) & XCR0_OPMASK
               ? load_le64(register_part(state, COMPONENT_OPMASK, number * 8))
               : 0;
}

void mask_store(struct cpu_state *state, unsigned number, uint64_t value)
{
    use(state, XCR0_OPMASK);
    store_le64(register_part(state, COMPONENT_OPMASK, number * 8), value);
}
