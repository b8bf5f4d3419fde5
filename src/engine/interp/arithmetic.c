/*
 * Integer arithmetic and logic. The host's own instruction computes value and flags (flags.h).
 */
#include "engine/interp/flags.h"
#include "engine/interp/interp_internal.h"

typedef uint64_t binary_fn(uint64_t a, uint64_t b, unsigned size, uint64_t *packed);
typedef uint64_t unary_fn(uint64_t a, unsigned size, uint64_t *packed);

#define BINARY(name)                                                                               \
    static uint64_t host_##name(uint64_t a, uint64_t b, unsigned size, uint64_t *packed)           \
    {                                                                                              \
        switch (size) {                                                                            \
            FLAGS_CASES(*packed, #name, FLAGS_ON_A_B, [b] "q"(b))                                  \
        }                                                                                          \
        return a;                                                                                  \
    }

#define UNARY(name)                                                                                \
    static uint64_t host_##name(uint64_t a, unsigned size, uint64_t *packed)                       \
    {                                                                                              \
        switch (size) {                                                                            \
            FLAGS_CASES(*packed, #name, FLAGS_ON_A, )                                              \
        }                                                                                          \
        return a;                                                                                  \
    }

BINARY(add)
BINARY(adc)
BINARY(sub)
BINARY(sbb)
BINARY(and)
BINARY(or)
BINARY(xor)
BINARY(cmp)
BINARY(test)
UNARY(inc)
UNARY(dec)
UNARY(neg)
UNARY(not )

static enum step execute_binary(struct vcpu *vcpu, const struct insn *insn, binary_fn *function)
{
    uint64_t packed = flags_pack(vcpu->state.rflags);
    struct place place;
    uint64_t a, b;

    TRY(operand_locate(vcpu, insn, 0, true, &place));
    TRY(operand_load(vcpu, insn, 1, &b));
    TRY(place_load_for_update(vcpu, &place, &a));
    a = function(a, b, place.size, &packed);
    TRY(place_store(vcpu, &place, a));
    vcpu->state.rflags = flags_unpack(vcpu->state.rflags, packed);
    return STEP_NEXT;
}

static enum step execute_compare(struct vcpu *vcpu, const struct insn *insn, binary_fn *function)
{
    uint64_t packed = flags_pack(vcpu->state.rflags);
    uint64_t a, b;

    TRY(operand_load(vcpu, insn, 0, &a));
    TRY(operand_load(vcpu, insn, 1, &b));
    function(a, b, operand_bytes(insn, 0), &packed);
    vcpu->state.rflags = flags_unpack(vcpu->state.rflags, packed);
    return STEP_NEXT;
}

static enum step execute_unary(struct vcpu *vcpu, const struct insn *insn, unary_fn *function)
{
    uint64_t packed = flags_pack(vcpu->state.rflags);
    struct place place;
    uint64_t a;

    TRY(operand_locate(vcpu, insn, 0, true, &place));
    TRY(place_load_for_update(vcpu, &place, &a));
    a = function(a, place.size, &packed);
    TRY(place_store(vcpu, &place, a));
    vcpu->state.rflags = flags_unpack(vcpu->state.rflags, packed);
    return STEP_NEXT;
}

#define EXECUTE(name, kind)                                                                        \
    enum step execute_##name(struct vcpu *vcpu, const struct insn *insn)                           \
    {                                                                                              \
        return execute_##kind(vcpu, insn, host_##name);                                            \
    }

EXECUTE(add, binary)
EXECUTE(adc, binary)
EXECUTE(sub, binary)
EXECUTE(sbb, binary)
EXECUTE(and, binary)
EXECUTE(or, binary)
EXECUTE(xor, binary)
EXECUTE(cmp, compare)
EXECUTE(test, compare)
EXECUTE(inc, unary)
EXECUTE(dec, unary)
EXECUTE(neg, unary)
EXECUTE(not, unary)

enum step execute_xadd(struct vcpu *vcpu, const struct insn *insn)
{
    uint64_t packed = flags_pack(vcpu->state.rflags);
    struct place place;
    uint64_t a, b;

    TRY(operand_locate(vcpu, insn, 0, true, &place));
    TRY(operand_load(vcpu, insn, 1, &b));
    TRY(place_load_for_update(vcpu, &place, &a));
    uint64_t sum = host_add(a, b, place.size, &packed);
    if (place.is_memory) {
        TRY(place_store(vcpu, &place, sum));
        TRY(operand_store(vcpu, insn, 1, a));
    } else { /* XADD of a register with itself leaves the sum */
        TRY(operand_store(vcpu, insn, 1, a));
        TRY(place_store(vcpu, &place, sum));
    }
    vcpu->state.rflags = flags_unpack(vcpu->state.rflags, packed);
    return STEP_NEXT;
}

/* The destination is written in any case: with its old value if they differ. */
enum step execute_cmpxchg(struct vcpu *vcpu, const struct insn *insn)
{
    uint64_t packed = flags_pack(vcpu->state.rflags);
    struct place place;
    uint64_t old, desired;

    TRY(operand_locate(vcpu, insn, 0, true, &place));
    TRY(operand_load(vcpu, insn, 1, &desired));
    TRY(place_load_for_update(vcpu, &place, &old));
    uint64_t accumulator = gpr_load(vcpu, RAX, place.size);
    host_cmp(accumulator, old, place.size, &packed);
    if (accumulator == old) {
        TRY(place_store(vcpu, &place, desired));
    } else {
        if (place.is_memory) {
            TRY(place_store(vcpu, &place, old));
        }
        gpr_store(vcpu, RAX, place.size, old);
    }
    vcpu->state.rflags = flags_unpack(vcpu->state.rflags, packed);
    return STEP_NEXT;
}

/* CMPXCHG8B and CMPXCHG16B; the latter needs its operand aligned. */
enum step execute_cmpxchg_pair(struct vcpu *vcpu, const struct insn *insn)
{
    struct place place;
    uint64_t old[2] = {0, 0};

    TRY(operand_locate(vcpu, insn, 0, true, &place));
    unsigned half = place.size / 2;
    if (half == 8 && (place.gva & 15)) {
        return raise_gp(vcpu);
    }
    TRY(check_alignment(vcpu, place.gva, place.size));
    TRY(mmu_check_write(vcpu, place.gva, place.size, user_access(vcpu)));
    TRY(linear_read(vcpu, place.gva, &old[0], half));
    TRY(linear_read(vcpu, place.gva + half, &old[1], half));
    bool equal = old[0] == gpr_load(vcpu, RAX, half) && old[1] == gpr_load(vcpu, RDX, half);
    if (equal) {
        TRY(linear_write(vcpu, place.gva, vcpu->state.gpr[RBX], half));
        TRY(linear_write(vcpu, place.gva + half, vcpu->state.gpr[RCX], half));
    } else {
        gpr_store(vcpu, RAX, half, old[0]);
        gpr_store(vcpu, RDX, half, old[1]);
    }
    set_flag(vcpu, FLAG_ZF, equal);
    return STEP_NEXT;
}

/* ADCX and ADOX add with their own carry flag and leave all others alone. */
static enum step add_carry(struct vcpu *vcpu, const struct insn *insn, uint64_t flag)
{
    uint64_t a, b;

    TRY(operand_load(vcpu, insn, 1, &b));
    TRY(operand_load(vcpu, insn, 0, &a));
    unsigned __int128 sum = (unsigned __int128)a + b + !!(vcpu->state.rflags & flag);
    set_flag(vcpu, flag, sum >> operand_bytes(insn, 0) * 8 & 1);
    return operand_store(vcpu, insn, 0, (uint64_t)sum);
}

enum step execute_adcx(struct vcpu *vcpu, const struct insn *insn)
{
    return add_carry(vcpu, insn, FLAG_CF);
}

enum step execute_adox(struct vcpu *vcpu, const struct insn *insn)
{
    return add_carry(vcpu, insn, FLAG_OF);
}

/* MUL and IMUL with one operand: RDX:RAX (AX for bytes) = RAX * operand. */
#define WIDE_CASE(bytes, name, suffix, modifier)                                                   \
    case bytes:                                                                                    \
        __asm__(name suffix " %" modifier "[b]\n\tmovq %%rax, %[low]\n\tlahf\n\tseto %%al"         \
                : "+a"(rax), "+d"(*rdx), [low] "=&r"(low)                                          \
                : [b] "r"(b)                                                                       \
                : "cc");                                                                           \
        break;

#define WIDE(function, name)                                                                       \
    static uint64_t function(uint64_t rax, uint64_t b, unsigned size, uint64_t *rdx,               \
                             uint64_t *packed)                                                     \
    {                                                                                              \
        uint64_t low = rax;                                                                        \
        switch (size) {                                                                            \
            WIDE_CASE(1, name, "b", "b")                                                           \
            WIDE_CASE(2, name, "w", "w")                                                           \
            WIDE_CASE(4, name, "l", "k")                                                           \
            WIDE_CASE(8, name, "q", "q")                                                           \
        }                                                                                          \
        *packed = rax;                                                                             \
        return low;                                                                                \
    }

WIDE(host_mul_wide, "mul")
WIDE(host_imul_wide, "imul")

typedef uint64_t wide_fn(uint64_t rax, uint64_t b, unsigned size, uint64_t *rdx, uint64_t *packed);

static enum step multiply_wide(struct vcpu *vcpu, const struct insn *insn, wide_fn *function)
{
    unsigned size = operand_bytes(insn, 0);
    uint64_t rdx = vcpu->state.gpr[RDX];
    uint64_t b, packed;

    TRY(operand_load(vcpu, insn, 0, &b));
    uint64_t low = function(vcpu->state.gpr[RAX], b, size, &rdx, &packed);
    gpr_store(vcpu, RAX, size == 1 ? 2 : size, low);
    if (size > 1) {
        gpr_store(vcpu, RDX, size, rdx);
    }
    vcpu->state.rflags = flags_unpack(vcpu->state.rflags, packed);
    return STEP_NEXT;
}

enum step execute_mul(struct vcpu *vcpu, const struct insn *insn)
{
    return multiply_wide(vcpu, insn, host_mul_wide);
}

static uint64_t host_imul(uint64_t a, uint64_t b, unsigned size, uint64_t *packed)
{
    switch (size) {
        FLAGS_WIDE_CASES(*packed, "imul", FLAGS_ON_A_B, [b] "r"(b))
    }
    return a;
}

/* One, two or three operands. */
enum step execute_imul(struct vcpu *vcpu, const struct insn *insn)
{
    unsigned last = insn->info.operand_count_visible - 1;
    uint64_t packed = flags_pack(vcpu->state.rflags);
    uint64_t a, b;

    if (last == 0) {
        return multiply_wide(vcpu, insn, host_imul_wide);
    }
    TRY(operand_load(vcpu, insn, last - 1, &a));
    TRY(operand_load(vcpu, insn, last, &b));
    a = host_imul(a, b, operand_bytes(insn, 0), &packed);
    TRY(operand_store(vcpu, insn, 0, a));
    vcpu->state.rflags = flags_unpack(vcpu->state.rflags, packed);
    return STEP_NEXT;
}

/* RDX:RAX of `size` halves; AX for bytes. */
static unsigned __int128 load_dividend(const struct vcpu *vcpu, unsigned size)
{
    if (size == 1) {
        return gpr_load(vcpu, RAX, 2);
    }
    return (unsigned __int128)gpr_load(vcpu, RDX, size) << (size * 8) | gpr_load(vcpu, RAX, size);
}

static void store_quotient(struct vcpu *vcpu, unsigned size, uint64_t quotient, uint64_t remainder)
{
    if (size == 1) {
        gpr_store(vcpu, RAX, 2, (quotient & 0xff) | (remainder & 0xff) << 8);
    } else {
        gpr_store(vcpu, RAX, size, quotient);
        gpr_store(vcpu, RDX, size, remainder);
    }
}

/* Divide where the quotient is known to fit 64 bits. */
static uint64_t divide(unsigned __int128 dividend, uint64_t divisor, uint64_t *ret_remainder)
{
    uint64_t quotient = (uint64_t)dividend;
    uint64_t remainder = (uint64_t)(dividend >> 64);

    __asm__("divq %[divisor]" : "+a"(quotient), "+d"(remainder) : [divisor] "r"(divisor) : "cc");
    *ret_remainder = remainder;
    return quotient;
}

enum step execute_div(struct vcpu *vcpu, const struct insn *insn)
{
    unsigned size = operand_bytes(insn, 0);
    uint64_t divisor, remainder;

    TRY(operand_load(vcpu, insn, 0, &divisor));
    unsigned __int128 dividend = load_dividend(vcpu, size);
    if (dividend >> (size * 8) >= divisor) { /* also: divisor 0 */
        return raise_exception(vcpu, EXCEPTION_DE);
    }
    uint64_t quotient = divide(dividend, divisor, &remainder);
    store_quotient(vcpu, size, quotient, remainder);
    return STEP_NEXT;
}

enum step execute_idiv(struct vcpu *vcpu, const struct insn *insn)
{
    unsigned size = operand_bytes(insn, 0);
    uint64_t value, remainder;

    TRY(operand_load(vcpu, insn, 0, &value));
    int64_t divisor = (int64_t)sign_extend(value, size);
    unsigned shift = 128 - size * 16;
    __int128 dividend = (__int128)(load_dividend(vcpu, size) << shift) >> shift;
    bool negative = dividend < 0;
    unsigned __int128 magnitude =
        negative ? -(unsigned __int128)dividend : (unsigned __int128)dividend;
    uint64_t by = divisor < 0 ? -(uint64_t)divisor : (uint64_t)divisor;
    if (magnitude >> 64 >= by) {
        return raise_exception(vcpu, EXCEPTION_DE);
    }
    uint64_t quotient = divide(magnitude, by, &remainder);
    bool quotient_negative = negative != (divisor < 0);
    uint64_t limit = 1ull << (size * 8 - 1);
    if (quotient > limit - !quotient_negative) {
        return raise_exception(vcpu, EXCEPTION_DE);
    }
    store_quotient(vcpu, size, quotient_negative ? -quotient : quotient,
                   negative ? -remainder : remainder);
    return STEP_NEXT;
}

/* MULX: no flags; the second operand gets the low half, the first the high half (last). */
enum step execute_mulx(struct vcpu *vcpu, const struct insn *insn)
{
    unsigned size = operand_bytes(insn, 0);
    uint64_t b;

    TRY(operand_load(vcpu, insn, 2, &b));
    unsigned __int128 product = (unsigned __int128)gpr_load(vcpu, RDX, size) * b;
    TRY(operand_store(vcpu, insn, 1, (uint64_t)product));
    return operand_store(vcpu, insn, 0, (uint64_t)(product >> (size * 8)));
}

/* CBW, CWDE, CDQE: the accumulator from its lower half. */
enum step execute_widen(struct vcpu *vcpu, const struct insn *insn)
{
    unsigned size = insn->info.mnemonic == ZYDIS_MNEMONIC_CBW    ? 2
                    : insn->info.mnemonic == ZYDIS_MNEMONIC_CWDE ? 4
                                                                 : 8;

    gpr_store(vcpu, RAX, size, sign_extend(vcpu->state.gpr[RAX], size / 2));
    return STEP_NEXT;
}

/* CWD, CDQ, CQO: RDX from the accumulator's sign. */
enum step execute_sign(struct vcpu *vcpu, const struct insn *insn)
{
    unsigned size = insn->info.mnemonic == ZYDIS_MNEMONIC_CWD   ? 2
                    : insn->info.mnemonic == ZYDIS_MNEMONIC_CDQ ? 4
                                                                : 8;
    bool negative = gpr_load(vcpu, RAX, size) >> (size * 8 - 1);

    gpr_store(vcpu, RDX, size, negative ? ~0ull : 0);
    return STEP_NEXT;
}
