/*
 * Shifts and rotates, with the host's instruction (flags.h): a count of zero keeps all flags, and
 * flags that the manual calls undefined are the host's.
 */
#include "engine/interp/flags.h"
#include "engine/interp/interp_internal.h"

typedef uint64_t shift_fn(uint64_t a, uint8_t count, unsigned size, uint64_t *packed);
typedef uint64_t double_shift_fn(uint64_t a, uint64_t b, uint8_t count, unsigned size,
                                 uint64_t *packed);

#define BY_CL(modifier) "%%cl, %" modifier "[a]"
#define SHIFT(name)                                                                                \
    static uint64_t host_##name(uint64_t a, uint8_t count, unsigned size, uint64_t *packed)        \
    {                                                                                              \
        switch (size) {                                                                            \
            FLAGS_CASES(*packed, #name, BY_CL, "c"(count))                                         \
        }                                                                                          \
        return a;                                                                                  \
    }

SHIFT(shl)
SHIFT(shr)
SHIFT(sar)
SHIFT(rol)
SHIFT(ror)
SHIFT(rcl)
SHIFT(rcr)

#define BY_CL_FROM_B(modifier) "%%cl, " FLAGS_ON_A_B(modifier)
#define DOUBLE(name)                                                                               \
    static uint64_t host_##name(uint64_t a, uint64_t b, uint8_t count, unsigned size,              \
                                uint64_t *packed)                                                  \
    {                                                                                              \
        switch (size) {                                                                            \
            FLAGS_WIDE_CASES(*packed, #name, BY_CL_FROM_B, "c"(count), [b] "r"(b))                 \
        }                                                                                          \
        return a;                                                                                  \
    }

DOUBLE(shld)
DOUBLE(shrd)

static enum step shift(struct vcpu *vcpu, const struct insn *insn, shift_fn *function)
{
    uint64_t packed = flags_pack(vcpu->state.rflags);
    struct place place;
    uint64_t a, count;

    TRY(operand_locate(vcpu, insn, 0, true, &place));
    TRY(operand_load(vcpu, insn, 1, &count));
    TRY(place_load_for_update(vcpu, &place, &a));
    a = function(a, (uint8_t)count, place.size, &packed);
    TRY(place_store(vcpu, &place, a));
    vcpu->state.rflags = flags_unpack(vcpu->state.rflags, packed);
    return STEP_NEXT;
}

static enum step double_shift(struct vcpu *vcpu, const struct insn *insn, double_shift_fn *function)
{
    uint64_t packed = flags_pack(vcpu->state.rflags);
    struct place place;
    uint64_t a, b, count;

    TRY(operand_locate(vcpu, insn, 0, true, &place));
    TRY(operand_load(vcpu, insn, 1, &b));
    TRY(operand_load(vcpu, insn, 2, &count));
    TRY(place_load_for_update(vcpu, &place, &a));
    a = function(a, b, (uint8_t)count, place.size, &packed);
    TRY(place_store(vcpu, &place, a));
    vcpu->state.rflags = flags_unpack(vcpu->state.rflags, packed);
    return STEP_NEXT;
}

#define EXECUTE(name, kind)                                                                        \
    enum step execute_##name(struct vcpu *vcpu, const struct insn *insn)                           \
    {                                                                                              \
        return kind(vcpu, insn, host_##name);                                                      \
    }

EXECUTE(shl, shift)
EXECUTE(shr, shift)
EXECUTE(sar, shift)
EXECUTE(rol, shift)
EXECUTE(ror, shift)
EXECUTE(rcl, shift)
EXECUTE(rcr, shift)
EXECUTE(shld, double_shift)
EXECUTE(shrd, double_shift)

/* SHLX, SHRX, SARX, RORX: three operands, no flags. */
static enum step shift_plain(struct vcpu *vcpu, const struct insn *insn, shift_fn *function)
{
    uint64_t a, count, packed = 0;

    TRY(operand_load(vcpu, insn, 1, &a));
    TRY(operand_load(vcpu, insn, 2, &count));
    return operand_store(vcpu, insn, 0,
                         function(a, (uint8_t)count, operand_bytes(insn, 0), &packed));
}

enum step execute_shlx(struct vcpu *vcpu, const struct insn *insn)
{
    return shift_plain(vcpu, insn, host_shl);
}

enum step execute_shrx(struct vcpu *vcpu, const struct insn *insn)
{
    return shift_plain(vcpu, insn, host_shr);
}

enum step execute_sarx(struct vcpu *vcpu, const struct insn *insn)
{
    return shift_plain(vcpu, insn, host_sar);
}

enum step execute_rorx(struct vcpu *vcpu, const struct insn *insn)
{
    return shift_plain(vcpu, insn, host_ror);
}
