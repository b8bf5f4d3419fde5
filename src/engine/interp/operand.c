/*
 * Operands: effective addresses, segment checks, and loads and stores of registers, memory and
 * immediates.
 */
#include "engine/interp/interp_internal.h"

enum step raise_exception(struct vcpu *vcpu, enum exception_vector vector)
{
    vcpu->exception = (struct exception){.vector = (uint8_t)vector};
    return STEP_EXCEPTION;
}

enum step raise_error(struct vcpu *vcpu, enum exception_vector vector, uint32_t error_code)
{
    vcpu->exception = (struct exception){
        .vector = (uint8_t)vector,
        .has_error_code = true,
        .error_code = error_code,
    };
    return STEP_EXCEPTION;
}

/* Limit and type of a segment outside 64-bit mode. SDM volume 3, 5.3 and 5.4. */
static bool segment_allows(const struct vcpu *vcpu, const struct segment *segment, uint32_t offset,
                           unsigned size, bool write)
{
    uint16_t attributes = segment->attributes;

    if (attributes & SEGMENT_UNUSABLE) {
        return false;
    }
    if (has_selectors(vcpu)) {
        bool is_code = attributes & SEGMENT_CODE;
        if (write ? is_code || !(attributes & SEGMENT_WRITABLE)
                  : is_code && !(attributes & SEGMENT_WRITABLE)) {
            return false;
        }
    }
    uint64_t last = (uint64_t)offset + size - 1;
    if ((attributes & (SEGMENT_CODE | SEGMENT_EXPAND_DOWN)) == SEGMENT_EXPAND_DOWN) {
        return offset > segment->limit && last <= (attributes & SEGMENT_DB ? 0xffffffff : 0xffff);
    }
    /* A flat segment lets an access wrap at 4 GiB, as CPUs do. */
    return last <= segment->limit || (segment->limit == 0xffffffff && last > 0xffffffff);
}

enum step segment_linear(struct vcpu *vcpu, const struct segment *segment, bool is_stack,
                         uint64_t offset, unsigned size, bool write, uint32_t error_code,
                         gva_t *ret_gva)
{
    enum exception_vector vector = is_stack ? EXCEPTION_SS : EXCEPTION_GP;

    if (is_64bit(vcpu)) {
        if (!is_canonical(offset) || !is_canonical(offset + size - 1)) {
            return raise_error(vcpu, vector, error_code);
        }
        *ret_gva = offset;
        return STEP_NEXT;
    }
    if (!segment_allows(vcpu, segment, (uint32_t)offset, size, write)) {
        return raise_error(vcpu, vector, error_code);
    }
    *ret_gva = (uint32_t)(segment->base + offset);
    return STEP_NEXT;
}

enum step linear_address(struct vcpu *vcpu, enum segment_register segment, uint64_t offset,
                         unsigned size, bool write, gva_t *ret_gva)
{
    const struct segment *hidden = &vcpu->state.segment[segment];

    if (is_64bit(vcpu) && (segment == FS || segment == GS)) {
        offset += hidden->base;
    }
    return segment_linear(vcpu, hidden, segment == SS, offset, size, write, 0, ret_gva);
}

enum step check_alignment(struct vcpu *vcpu, gva_t gva, unsigned size)
{
    if (__builtin_expect((vcpu->state.rflags & FLAG_AC) && (gva & (size - 1)), 0) &&
        (vcpu->state.cr0 & CR0_AM) && cpl_of(vcpu) == 3) {
        return raise_error(vcpu, EXCEPTION_AC, 0);
    }
    return STEP_NEXT;
}

/* Data breakpoints (R/W field 1: writes, 3: reads and writes). SDM volume 3, 17.2.4. */
void note_data_access(struct vcpu *vcpu, gva_t gva, unsigned size, bool write)
{
    uint64_t dr7 = vcpu->state.dr7;

    if (__builtin_expect(!(dr7 & 0xff), 1)) {
        return;
    }
    for (unsigned i = 0; i < 4; i++) {
        unsigned kind = dr7 >> (16 + i * 4) & 3;
        unsigned length = (dr7 >> (18 + i * 4) & 3) + 1;
        if (length == 3) {
            length = 8;
        }
        uint64_t start = vcpu->state.dr[i] & ~(uint64_t)(length - 1);
        if ((dr7 >> (i * 2) & 3) && (kind == 3 || (kind == 1 && write)) && gva < start + length &&
            start < gva + size) {
            vcpu->debug_hits |= 1u << i;
        }
    }
}

enum step linear_read(struct vcpu *vcpu, gva_t gva, uint64_t *ret_value, unsigned size)
{
    uint64_t value = 0;

    TRY(check_alignment(vcpu, gva, size));
    TRY(mmu_read(vcpu, gva, &value, size, user_access(vcpu)));
    note_data_access(vcpu, gva, size, false);
    *ret_value = value;
    return STEP_NEXT;
}

enum step linear_write(struct vcpu *vcpu, gva_t gva, uint64_t value, unsigned size)
{
    TRY(check_alignment(vcpu, gva, size));
    TRY(mmu_write(vcpu, gva, &value, size, user_access(vcpu)));
    note_data_access(vcpu, gva, size, true);
    return STEP_NEXT;
}

/* Zydis lists the general registers as AL..BL, AH..BH, SPL..DIL, R8B..R15B, AX.., EAX.., RAX.. */
bool register_place(ZydisRegister reg, struct place *ret_place)
{
    struct place place = {0};

    if (reg >= ZYDIS_REGISTER_RAX && reg <= ZYDIS_REGISTER_R15) {
        place.index = (uint8_t)(reg - ZYDIS_REGISTER_RAX);
        place.size = 8;
    } else if (reg >= ZYDIS_REGISTER_EAX && reg <= ZYDIS_REGISTER_R15D) {
        place.index = (uint8_t)(reg - ZYDIS_REGISTER_EAX);
        place.size = 4;
    } else if (reg >= ZYDIS_REGISTER_AX && reg <= ZYDIS_REGISTER_R15W) {
        place.index = (uint8_t)(reg - ZYDIS_REGISTER_AX);
        place.size = 2;
    } else if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_R15B) {
        unsigned n = reg - ZYDIS_REGISTER_AL;
        place.size = 1;
        place.shift = n >= 4 && n < 8 ? 8 : 0;
        place.index = (uint8_t)(n < 4 ? n : n - 4);
        if (place.shift) {
            place.index = (uint8_t)(n - 4);
        }
    } else {
        return false;
    }
    *ret_place = place;
    return true;
}

enum segment_register segment_of(ZydisRegister reg)
{
    switch (reg) {
    case ZYDIS_REGISTER_ES:
        return ES;
    case ZYDIS_REGISTER_CS:
        return CS;
    case ZYDIS_REGISTER_SS:
        return SS;
    case ZYDIS_REGISTER_DS:
        return DS;
    case ZYDIS_REGISTER_FS:
        return FS;
    case ZYDIS_REGISTER_GS:
        return GS;
    default:
        return SEGMENT_COUNT;
    }
}

static uint64_t address_part(const struct vcpu *vcpu, ZydisRegister reg)
{
    struct place place;

    if (reg == ZYDIS_REGISTER_RIP || reg == ZYDIS_REGISTER_EIP || reg == ZYDIS_REGISTER_IP) {
        return vcpu->state.rip;
    }
    return register_place(reg, &place) ? gpr_load(vcpu, place.index, place.size) : 0;
}

uint64_t operand_offset(const struct vcpu *vcpu, const struct insn *insn,
                        const struct insn_operand *operand)
{
    uint64_t offset = address_part(vcpu, operand->mem.base);

    if (operand->mem.index != ZYDIS_REGISTER_NONE) {
        offset += address_part(vcpu, operand->mem.index) * operand->mem.scale;
    }
    offset += (uint64_t)operand->mem.displacement;
    return offset & size_mask(address_width(insn));
}

enum step operand_locate(struct vcpu *vcpu, const struct insn *insn, unsigned n, bool write,
                         struct place *ret_place)
{
    const struct insn_operand *operand = &insn->operands[n];

    if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER) {
        return register_place(operand->reg.value, ret_place) ? STEP_NEXT : raise_ud(vcpu);
    }
    if (operand->type != ZYDIS_OPERAND_TYPE_MEMORY) {
        return raise_ud(vcpu);
    }
    unsigned size = operand->size / 8;
    *ret_place = (struct place){.is_memory = true, .size = (uint8_t)size};
    return linear_address(vcpu, segment_of(operand->mem.segment),
                          operand_offset(vcpu, insn, operand), size, write, &ret_place->gva);
}

enum step place_load(struct vcpu *vcpu, const struct place *place, uint64_t *ret_value)
{
    if (place->is_memory) {
        return linear_read(vcpu, place->gva, ret_value, place->size);
    }
    *ret_value = vcpu->state.gpr[place->index] >> place->shift & size_mask(place->size);
    return STEP_NEXT;
}

enum step place_load_for_update(struct vcpu *vcpu, const struct place *place, uint64_t *ret_value)
{
    if (place->is_memory) {
        TRY(check_alignment(vcpu, place->gva, place->size));
        TRY(mmu_check_write(vcpu, place->gva, place->size, user_access(vcpu)));
    }
    return place_load(vcpu, place, ret_value);
}

enum step place_store(struct vcpu *vcpu, const struct place *place, uint64_t value)
{
    if (place->is_memory) {
        return linear_write(vcpu, place->gva, value, place->size);
    }
    if (place->shift) {
        uint64_t *gpr = &vcpu->state.gpr[place->index];
        *gpr = (*gpr & ~0xff00ull) | (value & 0xff) << 8;
    } else {
        gpr_store(vcpu, place->index, place->size, value);
    }
    return STEP_NEXT;
}

enum step operand_load(struct vcpu *vcpu, const struct insn *insn, unsigned n, uint64_t *ret_value)
{
    const struct insn_operand *operand = &insn->operands[n];
    struct place place;

    if (operand->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        *ret_value = operand->imm.value.u;
        return STEP_NEXT;
    }
    TRY(operand_locate(vcpu, insn, n, false, &place));
    return place_load(vcpu, &place, ret_value);
}

enum step operand_store(struct vcpu *vcpu, const struct insn *insn, unsigned n, uint64_t value)
{
    struct place place;

    TRY(operand_locate(vcpu, insn, n, true, &place));
    return place_store(vcpu, &place, value);
}

enum step operand_check_write(struct vcpu *vcpu, const struct insn *insn, unsigned n)
{
    struct place place;

    TRY(operand_locate(vcpu, insn, n, true, &place));
    return place.is_memory ? mmu_check_write(vcpu, place.gva, place.size, user_access(vcpu))
                           : STEP_NEXT;
}
