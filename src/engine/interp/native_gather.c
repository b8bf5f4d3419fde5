/*
 * Gathers and scatters, element by element: each has its own address, and a fault in one leaves
 * the earlier ones done and their mask bits cleared. SDM volume 2, VPGATHERDD and VPSCATTERDD.
 */
#include "engine/interp/native.h"
#include "engine/interp/vector_state.h"

/* The sizes in bytes that the mnemonic says. */
struct shape {
    uint8_t index;
    uint8_t data;
    bool scatters;
};

static struct shape shape_of(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_VPGATHERDD:
    case ZYDIS_MNEMONIC_VGATHERDPS:
        return (struct shape){4, 4, false};
    case ZYDIS_MNEMONIC_VPGATHERDQ:
    case ZYDIS_MNEMONIC_VGATHERDPD:
        return (struct shape){4, 8, false};
    case ZYDIS_MNEMONIC_VPGATHERQD:
    case ZYDIS_MNEMONIC_VGATHERQPS:
        return (struct shape){8, 4, false};
    case ZYDIS_MNEMONIC_VPGATHERQQ:
    case ZYDIS_MNEMONIC_VGATHERQPD:
        return (struct shape){8, 8, false};
    case ZYDIS_MNEMONIC_VPSCATTERDD:
    case ZYDIS_MNEMONIC_VSCATTERDPS:
        return (struct shape){4, 4, true};
    case ZYDIS_MNEMONIC_VPSCATTERDQ:
    case ZYDIS_MNEMONIC_VSCATTERDPD:
        return (struct shape){4, 8, true};
    case ZYDIS_MNEMONIC_VPSCATTERQD:
    case ZYDIS_MNEMONIC_VSCATTERQPS:
        return (struct shape){8, 4, true};
    case ZYDIS_MNEMONIC_VPSCATTERQQ:
    case ZYDIS_MNEMONIC_VSCATTERQPD:
        return (struct shape){8, 8, true};
    default:
        return (struct shape){0, 0, false};
    }
}

bool native_is_gather(const struct insn *insn)
{
    return shape_of(insn->info.mnemonic).index != 0;
}

struct gather {
    struct shape shape;
    const struct insn_operand *memory;
    unsigned count;
    unsigned data_register;
    unsigned data_size; /* of the register */
    unsigned mask_register;
    bool vex; /* the mask is a vector register, not an opmask */
    uint8_t data[64];
    uint8_t index[64];
    uint8_t mask[64]; /* VEX */
    uint64_t bits;    /* elements left to do */
};

static unsigned vector_number(ZydisRegister reg)
{
    if (reg >= ZYDIS_REGISTER_ZMM0) {
        return reg - ZYDIS_REGISTER_ZMM0;
    }
    return reg >= ZYDIS_REGISTER_YMM0 ? reg - ZYDIS_REGISTER_YMM0 : reg - ZYDIS_REGISTER_XMM0;
}

static void load_mask(const struct vcpu *vcpu, const struct insn *insn, struct gather *gather)
{
    if (!gather->vex) {
        gather->mask_register = insn->info.avx.mask.reg - ZYDIS_REGISTER_K0;
        gather->bits = mask_load(&vcpu->state, gather->mask_register);
    } else {
        gather->mask_register = vector_number(insn->operands[2].reg.value);
        vector_load(&vcpu->state, gather->mask_register, 32, gather->mask);
        for (unsigned n = 0; n < gather->count; n++) {
            gather->bits |= (uint64_t)(gather->mask[(n + 1) * gather->shape.data - 1] >> 7) << n;
        }
    }
}

static void prepare(const struct vcpu *vcpu, const struct insn *insn, struct gather *gather)
{
    bool scatters = gather->shape.scatters;
    unsigned widest =
        gather->shape.data > gather->shape.index ? gather->shape.data : gather->shape.index;

    gather->vex = insn->info.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
    gather->count = insn->info.avx.vector_length / 8 / widest;
    gather->bits = 0;
    for (unsigned n = 0; n < insn->info.operand_count_visible; n++) {
        if (operand_is_memory(insn, n)) {
            gather->memory = &insn->operands[n];
        }
    }
    const struct insn_operand *data = &insn->operands[scatters ? 2 : 0];
    gather->data_register = vector_number(data->reg.value);
    gather->data_size = gather->count * gather->shape.data;
    vector_load(&vcpu->state, gather->data_register, 64, gather->data);
    vector_load(&vcpu->state, vector_number(gather->memory->mem.index), 64, gather->index);
    load_mask(vcpu, insn, gather);
}

static enum step element_address(struct vcpu *vcpu, const struct insn *insn,
                                 const struct gather *gather, unsigned n, gva_t *ret_gva)
{
    const struct insn_operand *memory = gather->memory;
    uint64_t index = gather->shape.index == 8 ? load_le64(gather->index + n * 8)
                                              : sign_extend(load_le32(gather->index + n * 4), 4);
    struct place base;
    uint64_t offset = (uint64_t)memory->mem.displacement + index * memory->mem.scale;

    if (register_place(memory->mem.base, &base)) {
        offset += gpr_load(vcpu, base.index, base.size);
    }
    return linear_address(vcpu, segment_of(memory->mem.segment),
                          offset & size_mask(address_width(insn)), gather->shape.data,
                          gather->shape.scatters, ret_gva);
}

static enum step do_element(struct vcpu *vcpu, const struct insn *insn, struct gather *gather,
                            unsigned n)
{
    unsigned size = gather->shape.data;
    uint8_t *data = gather->data + n * size;
    gva_t gva;

    TRY(element_address(vcpu, insn, gather, n, &gva));
    note_data_access(vcpu, gva, size, gather->shape.scatters);
    return gather->shape.scatters ? mmu_write(vcpu, gva, data, size, user_access(vcpu))
                                  : mmu_read(vcpu, gva, data, size, user_access(vcpu));
}

/* Write back destination and mask, after all elements or at a fault. */
static void finish(struct vcpu *vcpu, struct gather *gather, bool complete)
{
    unsigned size = gather->data_size < 16 ? 16 : gather->data_size;

    if (!gather->shape.scatters) {
        /* The upper part of the register is cleared in any case. */
        bytes_fill(gather->data + gather->data_size, 0, 64 - gather->data_size);
        vector_store(&vcpu->state, gather->data_register, size, gather->data);
    }
    if (!gather->vex) {
        mask_store(&vcpu->state, gather->mask_register, complete ? 0 : gather->bits);
        return;
    }
    for (unsigned n = 0; n < gather->count; n++) {
        bool left = gather->bits >> n & 1;
        bytes_fill(gather->mask + n * gather->shape.data, left ? 0xff : 0, gather->shape.data);
    }
    if (complete) {
        bytes_fill(gather->mask, 0, sizeof gather->mask);
    }
    vector_store(&vcpu->state, gather->mask_register, 32, gather->mask);
}

/* VEX: destination, index and mask must differ. EVEX gathers: destination and index; a mask. */
static bool is_valid(const struct insn *insn, const struct gather *gather)
{
    unsigned index = vector_number(gather->memory->mem.index);

    if (gather->vex) {
        return gather->data_register != index && gather->data_register != gather->mask_register &&
               index != gather->mask_register;
    }
    return gather->mask_register != 0 && (gather->shape.scatters || gather->data_register != index);
}

enum step native_gather(struct vcpu *vcpu, const struct insn *insn)
{
    struct gather gather;

    gather.shape = shape_of(insn->info.mnemonic);
    gather.memory = &insn->operands[1];
    prepare(vcpu, insn, &gather);
    if (!is_valid(insn, &gather)) {
        return raise_ud(vcpu);
    }
    for (unsigned n = 0; n < gather.count; n++) {
        if (!(gather.bits >> n & 1)) {
            continue;
        }
        enum step step = do_element(vcpu, insn, &gather, n);
        if (step != STEP_NEXT) {
            finish(vcpu, &gather, false);
            return step;
        }
        gather.bits &= ~(1ull << n);
    }
    finish(vcpu, &gather, true);
    return STEP_NEXT;
}
