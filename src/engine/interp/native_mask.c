/*
 * Masked vector instructions: which bytes of memory they touch. Elements that are masked off do
 * not fault (SDM volume 2, 2.7.5 and VMASKMOV), so they must not be accessed at all.
 */
#include "engine/interp/native.h"
#include "engine/interp/vector_state.h"

static unsigned vector_number(ZydisRegister reg, unsigned *ret_size)
{
    if (reg >= ZYDIS_REGISTER_ZMM0 && reg <= ZYDIS_REGISTER_ZMM31) {
        *ret_size = 64;
        return reg - ZYDIS_REGISTER_ZMM0;
    }
    if (reg >= ZYDIS_REGISTER_YMM0 && reg <= ZYDIS_REGISTER_YMM31) {
        *ret_size = 32;
        return reg - ZYDIS_REGISTER_YMM0;
    }
    *ret_size = 16;
    return reg - ZYDIS_REGISTER_XMM0;
}

/* The sign bits of the elements of a vector register. */
static uint64_t sign_bits(const struct vcpu *vcpu, ZydisRegister reg, unsigned element)
{
    uint8_t value[64];
    uint64_t bits = 0;
    unsigned size, number = vector_number(reg, &size);

    vector_load(&vcpu->state, number, size, value);
    for (unsigned n = 0; n < size / element; n++) {
        bits |= (uint64_t)(value[(n + 1) * element - 1] >> 7) << n;
    }
    return bits;
}

static void plan_elements(struct native_plan *plan, unsigned element, uint64_t active)
{
    plan->count = plan->chunk / element;
    plan->chunk = element;
    plan->active = plan->count < 64 ? active & ((1ull << plan->count) - 1) : active;
}

/* MASKMOVQ and MASKMOVDQU store the bytes whose mask byte is negative, at DS:RDI. */
static void plan_byte_mask(const struct vcpu *vcpu, const struct insn *insn,
                           struct native_plan *plan)
{
    uint64_t active = 0;
    ZydisRegister mask = ZYDIS_REGISTER_NONE;

    /* Operands: memory, source, mask; the last explicit register is the mask. */
    for (unsigned n = 0; n < insn->info.operand_count; n++) {
        const struct insn_operand *operand = &insn->operands[n];
        if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER &&
            operand->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT) {
            mask = operand->reg.value;
        }
    }
    if (mask >= ZYDIS_REGISTER_MM0 && mask <= ZYDIS_REGISTER_MM7) {
        /* MM registers are the physical ones, while the area counts from the top of the stack. */
        unsigned top = load_le16(vcpu->state.xsave + XSAVE_FSW) >> 11 & 7;
        unsigned number = (mask - ZYDIS_REGISTER_MM0 - top) & 7;
        const uint8_t *value = vcpu->state.xsave + XSAVE_ST + number * 16;
        for (unsigned n = 0; n < 8 && (xsave_in_use(&vcpu->state) & XCR0_X87); n++) {
            active |= (uint64_t)(value[n] >> 7) << n;
        }
    } else {
        active = sign_bits(vcpu, mask, 1);
    }
    plan->reads = false;
    plan->writes = true;
    plan_elements(plan, 1, active);
}

static bool is_compressed(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_VCOMPRESSPD:
    case ZYDIS_MNEMONIC_VCOMPRESSPS:
    case ZYDIS_MNEMONIC_VPCOMPRESSB:
    case ZYDIS_MNEMONIC_VPCOMPRESSW:
    case ZYDIS_MNEMONIC_VPCOMPRESSD:
    case ZYDIS_MNEMONIC_VPCOMPRESSQ:
    case ZYDIS_MNEMONIC_VEXPANDPD:
    case ZYDIS_MNEMONIC_VEXPANDPS:
    case ZYDIS_MNEMONIC_VPEXPANDB:
    case ZYDIS_MNEMONIC_VPEXPANDW:
    case ZYDIS_MNEMONIC_VPEXPANDD:
    case ZYDIS_MNEMONIC_VPEXPANDQ:
        return true;
    default:
        return false;
    }
}

/* Classes without fault suppression ("NF") access the whole operand whatever the mask. */
static bool suppresses_faults(const struct insn *insn)
{
    switch (insn->info.mnemonic) { /* of these the decoder does not say it */
    case ZYDIS_MNEMONIC_VCVTNE2PS2BF16:
    case ZYDIS_MNEMONIC_VDBPSADBW:
    case ZYDIS_MNEMONIC_VGF2P8AFFINEQB:
    case ZYDIS_MNEMONIC_VGF2P8AFFINEINVQB:
        return false;
    default:
        break;
    }
    switch (insn->info.meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_E1NF:
    case ZYDIS_EXCEPTION_CLASS_E2NF:
    case ZYDIS_EXCEPTION_CLASS_E3NF:
    case ZYDIS_EXCEPTION_CLASS_E4NF:
    case ZYDIS_EXCEPTION_CLASS_E5NF:
    case ZYDIS_EXCEPTION_CLASS_E6NF:
    case ZYDIS_EXCEPTION_CLASS_E9NF:
    case ZYDIS_EXCEPTION_CLASS_E10NF:
    case ZYDIS_EXCEPTION_CLASS_E11NF:
        return false;
    default:
        return true;
    }
}

static unsigned broadcast_count(ZydisBroadcastMode mode)
{
    switch (mode) {
    case ZYDIS_BROADCAST_MODE_1_TO_2:
        return 2;
    case ZYDIS_BROADCAST_MODE_1_TO_4:
        return 4;
    case ZYDIS_BROADCAST_MODE_1_TO_8:
        return 8;
    case ZYDIS_BROADCAST_MODE_1_TO_16:
        return 16;
    case ZYDIS_BROADCAST_MODE_1_TO_32:
        return 32;
    default:
        return 64;
    }
}

/*
 * The number of elements that the mask counts: of memory that is stored to or says which bits
 * become a mask, else of the first vector register, else (the destination is a mask) of the whole
 * vector.
 */
static unsigned masked_elements(const struct insn *insn, const struct insn_operand *memory)
{
    unsigned element = memory->element_size ? memory->element_size : 8;

    if (memory == &insn->operands[0] || insn->info.mnemonic == ZYDIS_MNEMONIC_VPSHUFBITQMB) {
        return memory->size / element;
    }
    for (unsigned n = 0; n < insn->info.operand_count; n++) {
        const struct insn_operand *operand = &insn->operands[n];
        if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER &&
            operand->reg.value >= ZYDIS_REGISTER_XMM0 &&
            operand->reg.value <= ZYDIS_REGISTER_ZMM31 && operand->element_size > 0) {
            return operand->size / operand->element_size;
        }
    }
    return insn->info.avx.vector_length / element;
}

/* An element of memory that several elements of the destination come from. */
static uint64_t fold(uint64_t mask, unsigned elements, unsigned count)
{
    uint64_t folded = 0;

    for (unsigned n = 0; n < elements && n < 64; n++) {
        folded |= (mask >> n & 1) << (n % count);
    }
    return folded;
}

static void plan_opmask(const struct vcpu *vcpu, const struct insn *insn,
                        const struct insn_operand *memory, struct native_plan *plan)
{
    unsigned number = insn->info.avx.mask.reg - ZYDIS_REGISTER_K0;
    uint64_t mask = mask_load(&vcpu->state, number);
    unsigned elements = masked_elements(insn, memory);
    unsigned element = plan->chunk / (elements ? elements : 1);

    if (insn->info.avx.broadcast.mode != ZYDIS_BROADCAST_MODE_INVALID &&
        !insn->info.avx.broadcast.is_static) {
        elements = broadcast_count(insn->info.avx.broadcast.mode);
        uint64_t counted = elements < 64 ? mask & ((1ull << elements) - 1) : mask;
        plan->active = counted ? 1 : 0;
        return;
    }
    if (element * 8 < memory->element_size && memory->element_size <= plan->chunk * 8) {
        element = memory->element_size / 8;
    }
    if (element == 0) {
        element = plan->chunk;
    }
    unsigned count = plan->chunk / element;
    if (insn->info.meta.category == ZYDIS_CATEGORY_BROADCAST) {
        element = insn->operands[0].element_size / 8;
        if (element == 0 || element > plan->chunk) {
            element = plan->chunk;
        }
        mask = fold(mask, elements, plan->chunk / element);
    }
    if (is_compressed(insn->info.mnemonic)) {
        uint64_t counted = count < 64 ? mask & ((1ull << count) - 1) : mask;
        unsigned packed = (unsigned)__builtin_popcountll(counted);
        mask = packed < 64 ? (1ull << packed) - 1 : ~0ull;
    }
    plan_elements(plan, element, mask);
}

void native_plan_mask(const struct vcpu *vcpu, const struct insn *insn,
                      const struct insn_operand *memory, struct native_plan *plan)
{
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
        plan_byte_mask(vcpu, insn, plan);
        return;
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
        plan_elements(plan, 4, sign_bits(vcpu, insn->operands[1].reg.value, 4));
        return;
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ:
        plan_elements(plan, 8, sign_bits(vcpu, insn->operands[1].reg.value, 8));
        return;
    default:
        break;
    }
    bool masked = insn->info.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX &&
                  insn->info.avx.mask.reg > ZYDIS_REGISTER_K0 &&
                  insn->info.avx.mask.reg <= ZYDIS_REGISTER_K7;
    if (masked && (plan->writes || suppresses_faults(insn))) {
        plan_opmask(vcpu, insn, memory, plan);
        plan->faults_whole = !suppresses_faults(insn);
    }
}
