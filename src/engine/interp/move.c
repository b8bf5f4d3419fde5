/*
 * Moves between registers and memory, conditional moves, flags as data.
 */
#include "engine/interp/interp_internal.h"

bool condition_holds(uint64_t rflags, unsigned condition)
{
    bool carry = rflags & FLAG_CF, zero = rflags & FLAG_ZF;
    bool less = !(rflags & FLAG_SF) != !(rflags & FLAG_OF);
    bool holds;

    switch (condition >> 1) {
    case 0:
        holds = rflags & FLAG_OF;
        break;
    case 1:
        holds = carry;
        break;
    case 2:
        holds = zero;
        break;
    case 3:
        holds = carry || zero;
        break;
    case 4:
        holds = rflags & FLAG_SF;
        break;
    case 5:
        holds = rflags & FLAG_PF;
        break;
    case 6:
        holds = less;
        break;
    default:
        holds = less || zero;
        break;
    }
    return holds != (condition & 1);
}

/* MOV to and from segment registers; the load of SS opens a shadow. SDM volume 2, MOV. */
static enum step move_to_segment(struct vcpu *vcpu, const struct insn *insn,
                                 enum segment_register which)
{
    uint64_t selector;

    if (which == CS) {
        return raise_ud(vcpu);
    }
    TRY(operand_load(vcpu, insn, 1, &selector));
    TRY(segment_load(vcpu, which, (uint16_t)selector));
    if (which == SS) {
        vcpu->state.interrupt_shadow = true;
        vcpu->state.shadow_is_mov_ss = true;
    }
    return STEP_NEXT;
}

static enum step move_from_segment(struct vcpu *vcpu, const struct insn *insn,
                                   enum segment_register which)
{
    struct place place;

    TRY(operand_locate(vcpu, insn, 0, true, &place));
    if (place.is_memory) {
        place.size = 2;
    }
    return place_store(vcpu, &place, vcpu->state.segment[which].selector);
}

static bool is_control(ZydisRegister reg)
{
    return (reg >= ZYDIS_REGISTER_CR0 && reg <= ZYDIS_REGISTER_CR15) ||
           (reg >= ZYDIS_REGISTER_DR0 && reg <= ZYDIS_REGISTER_DR15);
}

enum step execute_mov(struct vcpu *vcpu, const struct insn *insn)
{
    uint64_t value;

    for (unsigned n = 0; n < 2; n++) {
        if (insn->operands[n].type != ZYDIS_OPERAND_TYPE_REGISTER) {
            continue;
        }
        ZydisRegister reg = insn->operands[n].reg.value;
        enum segment_register which = segment_of(reg);
        if (which != SEGMENT_COUNT) {
            return n == 0 ? move_to_segment(vcpu, insn, which)
                          : move_from_segment(vcpu, insn, which);
        }
        if (is_control(reg)) {
            return execute_mov_control(vcpu, insn);
        }
    }
    TRY(operand_load(vcpu, insn, 1, &value));
    return operand_store(vcpu, insn, 0, value);
}

/* MOVZX, MOVNTI, MOVDIRI: loads are zero-extended already. */
enum step execute_movzx(struct vcpu *vcpu, const struct insn *insn)
{
    uint64_t value;

    TRY(operand_load(vcpu, insn, 1, &value));
    return operand_store(vcpu, insn, 0, value);
}

/* MOVSXD to 16 bits reads 16 bits only. SDM volume 2, MOVSX. */
enum step execute_movsx(struct vcpu *vcpu, const struct insn *insn)
{
    struct place source;
    uint64_t value;

    TRY(operand_locate(vcpu, insn, 1, false, &source));
    if (operand_bytes(insn, 0) < source.size) {
        source.size = (uint8_t)operand_bytes(insn, 0);
    }
    TRY(place_load(vcpu, &source, &value));
    return operand_store(vcpu, insn, 0, sign_extend(value, source.size));
}

enum step execute_lea(struct vcpu *vcpu, const struct insn *insn)
{
    return operand_store(vcpu, insn, 0, operand_offset(vcpu, insn, &insn->operands[1]));
}

enum step execute_xchg(struct vcpu *vcpu, const struct insn *insn)
{
    unsigned memory = operand_is_memory(insn, 1);
    struct place first, second;
    uint64_t a, b;

    TRY(operand_locate(vcpu, insn, memory, true, &first));
    TRY(operand_locate(vcpu, insn, !memory, true, &second));
    TRY(place_load_for_update(vcpu, &first, &a));
    TRY(place_load(vcpu, &second, &b));
    TRY(place_store(vcpu, &first, b));
    return place_store(vcpu, &second, a);
}

/* The source is read (and may fault) in any case; a 32-bit destination is always zero-extended. */
enum step execute_cmov(struct vcpu *vcpu, const struct insn *insn)
{
    uint64_t old, value;

    TRY(operand_load(vcpu, insn, 1, &value));
    TRY(operand_load(vcpu, insn, 0, &old));
    bool holds = condition_holds(vcpu->state.rflags, insn->info.opcode & 15);
    return operand_store(vcpu, insn, 0, holds ? value : old);
}

enum step execute_setcc(struct vcpu *vcpu, const struct insn *insn)
{
    return operand_store(vcpu, insn, 0,
                         condition_holds(vcpu->state.rflags, insn->info.opcode & 15));
}

enum step execute_salc(struct vcpu *vcpu, const struct insn *insn)
{
    gpr_store(vcpu, RAX, 1, vcpu->state.rflags & FLAG_CF ? 0xff : 0);
    return STEP_NEXT;
}

enum step execute_xlat(struct vcpu *vcpu, const struct insn *insn)
{
    enum segment_register segment = DS;
    uint64_t value;
    gva_t gva;

    for (unsigned n = 0; n < insn->info.operand_count; n++) {
        if (operand_is_memory(insn, n)) {
            segment = segment_of(insn->operands[n].mem.segment);
        }
    }
    uint64_t offset = vcpu->state.gpr[RBX] + gpr_load(vcpu, RAX, 1);
    TRY(linear_address(vcpu, segment, offset & size_mask(address_width(insn)), 1, false, &gva));
    TRY(linear_read(vcpu, gva, &value, 1));
    gpr_store(vcpu, RAX, 1, value);
    return STEP_NEXT;
}

enum step execute_lahf(struct vcpu *vcpu, const struct insn *insn)
{
    uint64_t *rax = &vcpu->state.gpr[RAX];

    *rax = (*rax & ~0xff00ull) | (vcpu->state.rflags & 0xd5) << 8 | FLAG_FIXED << 8;
    return STEP_NEXT;
}

enum step execute_sahf(struct vcpu *vcpu, const struct insn *insn)
{
    uint64_t mask = FLAG_SF | FLAG_ZF | FLAG_AF | FLAG_PF | FLAG_CF;

    vcpu->state.rflags = (vcpu->state.rflags & ~mask) | (vcpu->state.gpr[RAX] >> 8 & mask);
    return STEP_NEXT;
}

/* CLC, STC, CMC, CLD, STD */
enum step execute_flag(struct vcpu *vcpu, const struct insn *insn)
{
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_CLC:
        set_flag(vcpu, FLAG_CF, false);
        break;
    case ZYDIS_MNEMONIC_STC:
        set_flag(vcpu, FLAG_CF, true);
        break;
    case ZYDIS_MNEMONIC_CMC:
        vcpu->state.rflags ^= FLAG_CF;
        break;
    case ZYDIS_MNEMONIC_CLD:
        set_flag(vcpu, FLAG_DF, false);
        break;
    default:
        set_flag(vcpu, FLAG_DF, true);
        break;
    }
    return STEP_NEXT;
}

/*
 * Kernel code that makes many PAUSEs waits for another vCPU, whose thread may be waiting for this
 * very host CPU (PAUSE-loop exiting: SDM volume 3, 25.1.3).
 */
enum step execute_pause(struct vcpu *vcpu, const struct insn *insn)
{
    if (vcpu->hooks && !user_access(vcpu) && --vcpu->pauses == 0) {
        vcpu->hooks->yield(vcpu);
    }
    return STEP_NEXT;
}

/* What has no architectural effect here: NOP, fences, prefetches, cache line write-backs. */
enum step execute_nop(struct vcpu *vcpu, const struct insn *insn)
{
    return STEP_NEXT;
}

/* CLFLUSH and its kind: the address is checked as that of a byte load; caches are coherent here. */
enum step execute_flush_line(struct vcpu *vcpu, const struct insn *insn)
{
    const struct insn_operand *operand = &insn->operands[0];
    uint8_t byte;
    gva_t gva;

    TRY(linear_address(vcpu, segment_of(operand->mem.segment), operand_offset(vcpu, insn, operand),
                       1, false, &gva));
    return mmu_read(vcpu, gva, &byte, 1, user_access(vcpu));
}
