/*
 * Locked read-modify-write instructions. On plain RAM inside one cache line the host's own locked
 * instruction runs on the frame; where that is not possible (watched pages, crossings) the plain
 * executor runs while the other vCPUs stand still.
 */
#include "engine/interp/flags.h"
#include "engine/interp/interp_internal.h"

enum { CACHE_LINE = 64 };

/* The cases of a switch over operand sizes; what comes back in [b] matters to exchanges only. */
#define LOCKED_CASE(type, instruction, operands)                                                   \
    case sizeof(type):                                                                             \
        __asm__ volatile(FLAGS_IN "lock " instruction " " operands FLAGS_OUT                       \
                         : "+a"(packed), [b] "+q"(b), [memory] "+m"(*(type *)host)                 \
                         :                                                                         \
                         : "cc", "memory");                                                        \
        break;
#define LOCKED_CASES(name, operands)                                                               \
    LOCKED_CASE(uint8_t, name "b", operands("b"))                                                  \
    LOCKED_CASE(uint16_t, name "w", operands("w"))                                                 \
    LOCKED_CASE(uint32_t, name "l", operands("k"))                                                 \
    LOCKED_CASE(uint64_t, name "q", operands("q"))
#define ON_MEMORY(modifier)   "%[memory]"
#define ON_MEMORY_B(modifier) "%" modifier "[b], %[memory]"

#define LOCKED_BINARY(name)                                                                        \
    static enum step locked_##name(struct vcpu *vcpu, const struct insn *insn, void *host)         \
    {                                                                                              \
        uint64_t packed = flags_pack(vcpu->state.rflags);                                          \
        uint64_t b;                                                                                \
                                                                                                   \
        TRY(operand_load(vcpu, insn, 1, &b));                                                      \
        switch (operand_bytes(insn, 0)) {                                                          \
            LOCKED_CASES(#name, ON_MEMORY_B)                                                       \
        }                                                                                          \
        vcpu->state.rflags = flags_unpack(vcpu->state.rflags, packed);                             \
        return STEP_NEXT;                                                                          \
    }

#define LOCKED_UNARY(name)                                                                         \
    static enum step locked_##name(struct vcpu *vcpu, const struct insn *insn, void *host)         \
    {                                                                                              \
        uint64_t packed = flags_pack(vcpu->state.rflags);                                          \
        uint64_t b = 0; /* not used */                                                             \
                                                                                                   \
        switch (operand_bytes(insn, 0)) {                                                          \
            LOCKED_CASES(#name, ON_MEMORY)                                                         \
        }                                                                                          \
        vcpu->state.rflags = flags_unpack(vcpu->state.rflags, packed);                             \
        return STEP_NEXT;                                                                          \
    }

LOCKED_BINARY(add)
LOCKED_BINARY(adc)
LOCKED_BINARY(sub)
LOCKED_BINARY(sbb)
LOCKED_BINARY(and)
LOCKED_BINARY(or)
LOCKED_BINARY(xor)
LOCKED_UNARY(inc)
LOCKED_UNARY(dec)
LOCKED_UNARY(neg)
LOCKED_UNARY(not )

/* XADD and XCHG: the register operand gets the old contents. */
#define LOCKED_EXCHANGE(name)                                                                      \
    static enum step locked_##name(struct vcpu *vcpu, const struct insn *insn, void *host)         \
    {                                                                                              \
        unsigned source = operand_is_memory(insn, 0);                                              \
        uint64_t packed = flags_pack(vcpu->state.rflags);                                          \
        uint64_t b;                                                                                \
                                                                                                   \
        TRY(operand_load(vcpu, insn, source, &b));                                                 \
        switch (operand_bytes(insn, source)) {                                                     \
            LOCKED_CASES(#name, ON_MEMORY_B)                                                       \
        }                                                                                          \
        vcpu->state.rflags = flags_unpack(vcpu->state.rflags, packed);                             \
        return operand_store(vcpu, insn, source, b);                                               \
    }

LOCKED_EXCHANGE(xadd)
LOCKED_EXCHANGE(xchg)

#define COMPARE_CASE(type, suffix, modifier)                                                       \
    case sizeof(type):                                                                             \
        __asm__ volatile("lock cmpxchg" suffix " %" modifier "[desired], %[memory]\n\t"            \
                         "movq %%rax, %[found]" FLAGS_OUT                                          \
                         : "+a"(rax), [memory] "+m"(*(type *)host), [found] "=&r"(found)           \
                         : [desired] "q"(desired)                                                  \
                         : "cc", "memory");                                                        \
        break;

static enum step locked_cmpxchg(struct vcpu *vcpu, const struct insn *insn, void *host)
{
    unsigned size = operand_bytes(insn, 0);
    uint64_t rax = vcpu->state.gpr[RAX], found = rax, desired;

    TRY(operand_load(vcpu, insn, 1, &desired));
    switch (size) {
        COMPARE_CASE(uint8_t, "b", "b")
        COMPARE_CASE(uint16_t, "w", "w")
        COMPARE_CASE(uint32_t, "l", "k")
        COMPARE_CASE(uint64_t, "q", "q")
    }
    vcpu->state.rflags = flags_unpack(vcpu->state.rflags, rax);
    if (!(vcpu->state.rflags & FLAG_ZF)) {
        gpr_store(vcpu, RAX, size, found);
    }
    return STEP_NEXT;
}

static enum step locked_cmpxchg_pair(struct vcpu *vcpu, const struct insn *insn, void *host)
{
    unsigned size = operand_bytes(insn, 0);
    uint64_t *gpr = vcpu->state.gpr;
    uint64_t rax = gpr[RAX], rdx = gpr[RDX];
    bool equal;

    if (size == 16) {
        __asm__ volatile("lock cmpxchg16b %[memory]"
                         : "+a"(rax), "+d"(rdx), [memory] "+m"(*(unsigned __int128 *)host),
                           "=@ccz"(equal)
                         : "b"(gpr[RBX]), "c"(gpr[RCX])
                         : "memory");
    } else {
        __asm__ volatile("lock cmpxchg8b %[memory]"
                         : "+a"(rax), "+d"(rdx), [memory] "+m"(*(uint64_t *)host), "=@ccz"(equal)
                         : "b"(gpr[RBX]), "c"(gpr[RCX])
                         : "memory");
    }
    if (!equal) {
        gpr_store(vcpu, RAX, size / 2, rax);
        gpr_store(vcpu, RDX, size / 2, rdx);
    }
    set_flag(vcpu, FLAG_ZF, equal);
    return STEP_NEXT;
}

enum bit_operation { BIT_SET, BIT_RESET, BIT_COMPLEMENT };

/* `host` is the element that bit_place() named. */
static enum step locked_bit(struct vcpu *vcpu, const struct insn *insn, void *host,
                            enum bit_operation operation)
{
    struct place place;
    unsigned bit;

    TRY(bit_place(vcpu, insn, true, &place, &bit));
    uint8_t *byte = (uint8_t *)host + bit / 8;
    uint8_t mask = (uint8_t)(1u << (bit & 7)), old;
    switch (operation) {
    case BIT_SET:
        old = __atomic_fetch_or(byte, mask, __ATOMIC_SEQ_CST);
        break;
    case BIT_RESET:
        old = __atomic_fetch_and(byte, (uint8_t)~mask, __ATOMIC_SEQ_CST);
        break;
    default:
        old = __atomic_fetch_xor(byte, mask, __ATOMIC_SEQ_CST);
        break;
    }
    set_flag(vcpu, FLAG_CF, old & mask);
    return STEP_NEXT;
}

static enum step locked_bts(struct vcpu *vcpu, const struct insn *insn, void *host)
{
    return locked_bit(vcpu, insn, host, BIT_SET);
}

static enum step locked_btr(struct vcpu *vcpu, const struct insn *insn, void *host)
{
    return locked_bit(vcpu, insn, host, BIT_RESET);
}

static enum step locked_btc(struct vcpu *vcpu, const struct insn *insn, void *host)
{
    return locked_bit(vcpu, insn, host, BIT_COMPLEMENT);
}

static locked_fn *locked_of(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_ADD:
        return locked_add;
    case ZYDIS_MNEMONIC_ADC:
        return locked_adc;
    case ZYDIS_MNEMONIC_SUB:
        return locked_sub;
    case ZYDIS_MNEMONIC_SBB:
        return locked_sbb;
    case ZYDIS_MNEMONIC_AND:
        return locked_and;
    case ZYDIS_MNEMONIC_OR:
        return locked_or;
    case ZYDIS_MNEMONIC_XOR:
        return locked_xor;
    case ZYDIS_MNEMONIC_INC:
        return locked_inc;
    case ZYDIS_MNEMONIC_DEC:
        return locked_dec;
    case ZYDIS_MNEMONIC_NEG:
        return locked_neg;
    case ZYDIS_MNEMONIC_NOT:
        return locked_not;
    case ZYDIS_MNEMONIC_XADD:
        return locked_xadd;
    case ZYDIS_MNEMONIC_XCHG:
        return locked_xchg;
    case ZYDIS_MNEMONIC_CMPXCHG:
        return locked_cmpxchg;
    case ZYDIS_MNEMONIC_CMPXCHG8B:
    case ZYDIS_MNEMONIC_CMPXCHG16B:
        return locked_cmpxchg_pair;
    case ZYDIS_MNEMONIC_BTS:
        return locked_bts;
    case ZYDIS_MNEMONIC_BTR:
        return locked_btr;
    case ZYDIS_MNEMONIC_BTC:
        return locked_btc;
    default:
        return NULL;
    }
}

bool is_locked(const struct insn *insn)
{
    return (insn->info.attributes & ZYDIS_ATTRIB_HAS_LOCK) ||
           (insn->info.mnemonic == ZYDIS_MNEMONIC_XCHG &&
            (operand_is_memory(insn, 0) || operand_is_memory(insn, 1)));
}

struct exclusive_call {
    struct vcpu *vcpu;
    const struct insn *insn;
    execute_fn *function;
    enum step step;
};

static void call_exclusively(void *argument)
{
    struct exclusive_call *call = argument;

    call->step = call->function(call->vcpu, call->insn);
}

enum step execute_locked(struct vcpu *vcpu, const struct insn *insn, execute_fn *plain)
{
    locked_fn *locked = locked_of(insn->info.mnemonic);
    unsigned n = operand_is_memory(insn, 0) ? 0 : 1, bit;
    bool is_bit = locked == locked_bts || locked == locked_btr || locked == locked_btc;
    struct place place;
    uint8_t *host;

    if (!locked) {
        return raise_ud(vcpu);
    }
    TRY(is_bit ? bit_place(vcpu, insn, true, &place, &bit)
               : operand_locate(vcpu, insn, n, true, &place));
    if (locked == locked_cmpxchg_pair && place.size == 16 && (place.gva & 15)) {
        return raise_gp(vcpu);
    }
    TRY(check_alignment(vcpu, place.gva, place.size));
    TRY(mmu_host(vcpu, place.gva, place.size, user_access(vcpu) | PF_WRITE, &host));
    if (host && (place.gva & (CACHE_LINE - 1)) + place.size <= CACHE_LINE) {
        note_data_access(vcpu, place.gva, place.size, true);
        return locked(vcpu, insn, host);
    }
    struct exclusive_call call = {.vcpu = vcpu, .insn = insn, .function = plain};
    if (vcpu->hooks && vcpu->hooks->exclusive) {
        vcpu->hooks->exclusive(vcpu, call_exclusively, &call);
    } else {
        call_exclusively(&call);
    }
    return call.step;
}
