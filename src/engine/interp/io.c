/*
 * Port I/O: permission (IOPL and the bitmap in the TSS), IN and OUT. SDM volume 1, chapter 18.
 */
#include "engine/interp/interp_internal.h"

/* Every bit of the ports must be clear in the bitmap of a 32-bit or 64-bit TSS. */
static enum step bitmap_check(struct vcpu *vcpu, uint16_t port, unsigned size)
{
    enum { BITMAP_BASE = 0x66 };
    const struct segment *tr = &vcpu->state.tr;
    uint16_t base, bits;

    if (tr->attributes & SEGMENT_UNUSABLE || !(tr->attributes & 8) || tr->limit < BITMAP_BASE + 1) {
        return raise_gp(vcpu);
    }
    TRY(mmu_read(vcpu, tr->base + BITMAP_BASE, &base, 2, 0));
    uint32_t offset = base + port / 8u;
    if (offset + 1 > tr->limit) { /* two bytes are always read */
        return raise_gp(vcpu);
    }
    TRY(mmu_read(vcpu, tr->base + offset, &bits, 2, 0));
    return bits >> (port & 7) & ((1u << size) - 1) ? raise_gp(vcpu) : STEP_NEXT;
}

/* I/O breakpoints need CR4.DE. SDM volume 3, 17.2.4. */
static void note_port_access(struct vcpu *vcpu, uint16_t port, unsigned size)
{
    uint64_t dr7 = vcpu->state.dr7;

    if (!(dr7 & 0xff) || !(vcpu->state.cr4 & CR4_DE)) {
        return;
    }
    for (unsigned i = 0; i < 4; i++) {
        unsigned length = (dr7 >> (18 + i * 4) & 3) + 1;
        uint64_t start = vcpu->state.dr[i] & ~(uint64_t)(length - 1);
        if ((dr7 >> (i * 2) & 3) && (dr7 >> (16 + i * 4) & 3) == 2 && port < start + length &&
            start < (uint64_t)port + size) {
            vcpu->debug_hits |= 1u << i;
        }
    }
}

enum step port_check(struct vcpu *vcpu, uint16_t port, unsigned size)
{
    if (is_protected(vcpu) && (is_v86(vcpu) || cpl_of(vcpu) > iopl_of(vcpu))) {
        return bitmap_check(vcpu, port, size);
    }
    return STEP_NEXT;
}

uint32_t port_in(struct vcpu *vcpu, uint16_t port, unsigned size)
{
    note_port_access(vcpu, port, size);
    return vcpu->host->port_read(vcpu->host->owner, vcpu->index, port, size);
}

void port_out(struct vcpu *vcpu, uint16_t port, unsigned size, uint32_t value)
{
    note_port_access(vcpu, port, size);
    vcpu->host->port_write(vcpu->host->owner, vcpu->index, port, size,
                           value & (uint32_t)size_mask(size));
}

/* The port operand: an immediate byte or DX. */
static uint16_t port_operand(const struct vcpu *vcpu, const struct insn *insn, unsigned n)
{
    const struct insn_operand *operand = &insn->operands[n];

    return operand->type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? (uint8_t)operand->imm.value.u
                                                         : (uint16_t)vcpu->state.gpr[RDX];
}

enum step execute_in(struct vcpu *vcpu, const struct insn *insn)
{
    unsigned size = operand_bytes(insn, 0);
    uint16_t port = port_operand(vcpu, insn, 1);

    TRY(port_check(vcpu, port, size));
    gpr_store(vcpu, RAX, size, port_in(vcpu, port, size));
    return STEP_NEXT;
}

enum step execute_out(struct vcpu *vcpu, const struct insn *insn)
{
    unsigned size = operand_bytes(insn, 1);
    uint16_t port = port_operand(vcpu, insn, 0);

    TRY(port_check(vcpu, port, size));
    port_out(vcpu, port, size, (uint32_t)vcpu->state.gpr[RAX]);
    return STEP_NEXT;
}
