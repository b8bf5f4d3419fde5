/*
 * Control and debug registers, and what their changes mean for paging and mode. SDM volume 3,
 * chapters 2, 4 and 17.
 */
#include "engine/interp/interp_internal.h"
#include "x86/cpuid.h"

#define CR3_NOFLUSH (1ull << 63)

void change_flush(struct vcpu *vcpu, enum flush_kind kind, gva_t gva)
{
    uint16_t pcid = vcpu->state.cr4 & CR4_PCIDE ? vcpu->state.cr3 & 0xfff : 0;

    if (vcpu->hooks && vcpu->hooks->flush) {
        vcpu->hooks->flush(vcpu, kind, gva, pcid);
        return;
    }
    switch (kind) {
    case FLUSH_PAGE:
        tlb_flush_page(vcpu->tlb, gva);
        break;
    case FLUSH_ALL:
        tlb_flush_all(vcpu->tlb);
        break;
    case FLUSH_NON_GLOBAL:
    case FLUSH_SWITCH:
        tlb_flush_non_global(vcpu->tlb);
        break;
    }
}

static uint64_t physical_mask(const struct vcpu *vcpu)
{
    return (1ull << cpuid_physical_bits(vcpu->cpuid)) - 1;
}

static bool uses_pae(const struct vcpu *vcpu, uint64_t cr0, uint64_t cr4)
{
    return (cr0 & CR0_PG) && (cr4 & CR4_PAE) && !(vcpu->state.efer & EFER_LME);
}

/* Read and check the four registers of PAE paging. SDM volume 3, 4.4.1. */
static enum step load_pdptes(struct vcpu *vcpu, uint64_t cr3)
{
    uint64_t reserved = ~physical_mask(vcpu) | 0x1e6;
    uint64_t pdpte[4];

    for (unsigned n = 0; n < 4; n++) {
        if (memory_load(vcpu->memory, (cr3 & 0xffffffe0) + 8 * n, 8, &pdpte[n]) != 0) {
            pdpte[n] = ~0ull;
        }
        if ((pdpte[n] & PTE_P) && (pdpte[n] & reserved)) {
            return raise_gp(vcpu);
        }
    }
    for (unsigned n = 0; n < 4; n++) {
        vcpu->state.pdpte[n] = pdpte[n];
    }
    return STEP_NEXT;
}

/* Entering and leaving IA-32e mode go with CR0.PG. SDM volume 3, 9.8.5. */
static enum step check_paging_change(struct vcpu *vcpu, uint64_t value)
{
    struct cpu_state *state = &vcpu->state;
    bool on = (value & CR0_PG) && !(state->cr0 & CR0_PG);
    bool off = !(value & CR0_PG) && (state->cr0 & CR0_PG);

    if (on && (state->efer & EFER_LME) &&
        (!(state->cr4 & CR4_PAE) || (state->segment[CS].attributes & SEGMENT_L) ||
         (!(state->tr.attributes & SEGMENT_UNUSABLE) && !(state->tr.attributes & 8)))) {
        return raise_gp(vcpu);
    }
    if (off && (is_64bit(vcpu) || (state->cr4 & CR4_PCIDE))) {
        return raise_gp(vcpu);
    }
    return STEP_NEXT;
}

static enum step write_cr0(struct vcpu *vcpu, uint64_t value)
{
    const uint64_t known = CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM |
                           CR0_NW | CR0_CD | CR0_PG;
    struct cpu_state *state = &vcpu->state;
    uint64_t changed;

    if (value >> 32 || ((value & CR0_PG) && !(value & CR0_PE)) ||
        ((value & CR0_NW) && !(value & CR0_CD))) {
        return raise_gp(vcpu);
    }
    value = (value & known) | CR0_ET;
    TRY(check_paging_change(vcpu, value));
    changed = value ^ state->cr0;
    if (uses_pae(vcpu, value, state->cr4) && (changed & (CR0_PG | CR0_CD | CR0_NW))) {
        TRY(load_pdptes(vcpu, state->cr3));
    }
    state->cr0 = value;
    if (changed & CR0_PG) {
        bool long_mode = (value & CR0_PG) && (state->efer & EFER_LME);
        state->efer = long_mode ? state->efer | EFER_LMA : state->efer & ~(uint64_t)EFER_LMA;
    }
    vcpu_mode_changed(vcpu);
    if (changed & (CR0_PG | CR0_WP | CR0_PE)) {
        change_flush(vcpu, FLUSH_ALL, 0);
    }
    return STEP_NEXT;
}

static enum step write_cr3(struct vcpu *vcpu, uint64_t value)
{
    struct cpu_state *state = &vcpu->state;
    bool no_flush = (state->cr4 & CR4_PCIDE) && (value & CR3_NOFLUSH);

    if (state->cr4 & CR4_PCIDE) {
        value &= ~CR3_NOFLUSH;
    }
    if (is_long(vcpu) && (value & ~physical_mask(vcpu))) {
        return raise_gp(vcpu);
    }
    if (uses_pae(vcpu, state->cr0, state->cr4)) {
        TRY(load_pdptes(vcpu, value));
    }
    state->cr3 = value;
    vcpu_mode_changed(vcpu);
    change_flush(vcpu, no_flush ? FLUSH_SWITCH : FLUSH_NON_GLOBAL, 0);
    return STEP_NEXT;
}

static enum step write_cr4(struct vcpu *vcpu, uint64_t value)
{
    const uint64_t paging = CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP;
    struct cpu_state *state = &vcpu->state;
    uint64_t changed = value ^ state->cr4;

    if (value & ~cpuid_cr4_allowed(vcpu->cpuid) || (is_long(vcpu) && !(value & CR4_PAE))) {
        return raise_gp(vcpu);
    }
    if ((changed & value & CR4_PCIDE) && (!is_long(vcpu) || (state->cr3 & 0xfff))) {
        return raise_gp(vcpu);
    }
    if (uses_pae(vcpu, state->cr0, value) && (changed & (CR4_PGE | CR4_PAE | CR4_PSE | CR4_SMEP))) {
        TRY(load_pdptes(vcpu, state->cr3));
    }
    state->cr4 = value;
    vcpu_mode_changed(vcpu);
    if (changed & paging) {
        change_flush(vcpu, FLUSH_ALL, 0);
    }
    return STEP_NEXT;
}

enum step control_register_write(struct vcpu *vcpu, unsigned n, uint64_t value)
{
    switch (n) {
    case 0:
        return write_cr0(vcpu, value);
    case 2:
        vcpu->state.cr2 = value;
        return STEP_NEXT;
    case 3:
        return write_cr3(vcpu, value);
    case 4:
        return write_cr4(vcpu, value);
    case 8:
        if (value > 15) {
            return raise_gp(vcpu);
        }
        vcpu->host->cr8_write(vcpu->host->owner, vcpu->index, value);
        vcpu->state.cr8 = value;
        return STEP_NEXT;
    default:
        return raise_ud(vcpu);
    }
}

static enum step control_register_read(struct vcpu *vcpu, unsigned n, uint64_t *ret_value)
{
    switch (n) {
    case 0:
        *ret_value = vcpu->state.cr0;
        return STEP_NEXT;
    case 2:
        *ret_value = vcpu->state.cr2;
        return STEP_NEXT;
    case 3:
        *ret_value = vcpu->state.cr3;
        return STEP_NEXT;
    case 4:
        *ret_value = vcpu->state.cr4;
        return STEP_NEXT;
    case 8:
        *ret_value = vcpu->host->cr8_read(vcpu->host->owner, vcpu->index);
        return STEP_NEXT;
    default:
        return raise_ud(vcpu);
    }
}

/* DR4 and DR5 are DR6 and DR7 unless CR4.DE; DR7.GD traps every access. SDM volume 3, 17.2. */
static enum step debug_register(struct vcpu *vcpu, unsigned *n)
{
    if (*n == 4 || *n == 5) {
        if (vcpu->state.cr4 & CR4_DE) {
            return raise_ud(vcpu);
        }
        *n += 2;
    }
    if (*n > 7) {
        return raise_ud(vcpu);
    }
    if (vcpu->state.dr7 & 1u << 13) {
        vcpu->exception = (struct exception){.vector = EXCEPTION_DB, .dr6 = 1u << 13};
        return STEP_EXCEPTION;
    }
    return STEP_NEXT;
}

static enum step debug_register_write(struct vcpu *vcpu, unsigned n, uint64_t value)
{
    if (n < 4) {
        vcpu->state.dr[n] = value;
        return STEP_NEXT;
    }
    if (value >> 32) {
        return raise_gp(vcpu);
    }
    if (n == 6) {
        vcpu->state.dr6 = (value & 0xe00f) | 0xffff0ff0;
    } else {
        vcpu->state.dr7 = (value & 0xffff2bff) | 0x400;
    }
    return STEP_NEXT;
}

static uint64_t debug_register_read(const struct vcpu *vcpu, unsigned n)
{
    return n < 4 ? vcpu->state.dr[n] : n == 6 ? vcpu->state.dr6 : vcpu->state.dr7;
}

/* MOV to and from CRn and DRn: always a register, 64 bits wide in 64-bit mode. */
enum step execute_mov_control(struct vcpu *vcpu, const struct insn *insn)
{
    bool to_special = insn->operands[0].reg.value >= ZYDIS_REGISTER_CR0;
    ZydisRegister reg = insn->operands[!to_special].reg.value;
    bool is_debug = reg >= ZYDIS_REGISTER_DR0 && reg <= ZYDIS_REGISTER_DR15;
    unsigned n = reg - (is_debug ? ZYDIS_REGISTER_DR0 : ZYDIS_REGISTER_CR0);
    uint64_t value = 0;

    if (is_protected(vcpu) && cpl_of(vcpu) != 0) {
        return raise_gp(vcpu);
    }
    if (is_debug) {
        TRY(debug_register(vcpu, &n));
    }
    if (to_special) {
        TRY(operand_load(vcpu, insn, 1, &value));
        return is_debug ? debug_register_write(vcpu, n, value)
                        : control_register_write(vcpu, n, value);
    }
    if (is_debug) {
        value = debug_register_read(vcpu, n);
    } else {
        TRY(control_register_read(vcpu, n, &value));
    }
    return operand_store(vcpu, insn, 0, value);
}

enum step execute_clts(struct vcpu *vcpu, const struct insn *insn)
{
    if (is_protected(vcpu) && cpl_of(vcpu) != 0) {
        return raise_gp(vcpu);
    }
    vcpu->state.cr0 &= ~(uint64_t)CR0_TS;
    vcpu_mode_changed(vcpu);
    return STEP_NEXT;
}

/* LMSW can set PE but not clear it. */
enum step execute_lmsw(struct vcpu *vcpu, const struct insn *insn)
{
    uint64_t value;

    if (is_protected(vcpu) && cpl_of(vcpu) != 0) {
        return raise_gp(vcpu);
    }
    TRY(operand_load(vcpu, insn, 0, &value));
    return write_cr0(vcpu, (vcpu->state.cr0 & ~0xeull) | (value & 0xf));
}

enum step execute_smsw(struct vcpu *vcpu, const struct insn *insn)
{
    if ((vcpu->state.cr4 & CR4_UMIP) && cpl_of(vcpu) > 0) {
        return raise_gp(vcpu);
    }
    return operand_store(vcpu, insn, 0, vcpu->state.cr0);
}

enum step execute_invlpg(struct vcpu *vcpu, const struct insn *insn)
{
    const struct insn_operand *operand = &insn->operands[0];

    if (is_protected(vcpu) && cpl_of(vcpu) != 0) {
        return raise_gp(vcpu);
    }
    enum segment_register segment = segment_of(operand->mem.segment);
    gva_t gva = operand_offset(vcpu, insn, operand);
    if (!is_64bit(vcpu)) {
        gva = (uint32_t)(gva + vcpu->state.segment[segment].base);
    } else if (segment == FS || segment == GS) {
        gva += vcpu->state.segment[segment].base;
    }
    if (!is_long(vcpu) || is_canonical(gva)) { /* else it does nothing */
        change_flush(vcpu, FLUSH_PAGE, gva);
    }
    return STEP_NEXT;
}

enum invpcid_type { INVPCID_ADDRESS, INVPCID_CONTEXT, INVPCID_ALL, INVPCID_ALL_NON_GLOBAL };

/* A context that is not the current one: only an engine that caches several knows it. */
static void flush_context(struct vcpu *vcpu, uint16_t pcid)
{
    if (vcpu->hooks && vcpu->hooks->flush) {
        vcpu->hooks->flush(vcpu, FLUSH_NON_GLOBAL, 0, pcid);
    } else {
        tlb_flush_non_global(vcpu->tlb);
    }
}

enum step execute_invpcid(struct vcpu *vcpu, const struct insn *insn)
{
    uint64_t type, pcid, address;
    struct place place;

    if (is_v86(vcpu) || (is_protected(vcpu) && cpl_of(vcpu) != 0)) {
        return raise_gp(vcpu);
    }
    TRY(operand_load(vcpu, insn, 0, &type));
    TRY(operand_locate(vcpu, insn, 1, false, &place));
    TRY(linear_read(vcpu, place.gva, &pcid, 8));
    TRY(linear_read(vcpu, place.gva + 8, &address, 8));
    bool names_context = type == INVPCID_ADDRESS || type == INVPCID_CONTEXT;
    if (type > INVPCID_ALL_NON_GLOBAL || (names_context && pcid >> 12) ||
        (names_context && pcid && !(vcpu->state.cr4 & CR4_PCIDE)) ||
        (type == INVPCID_ADDRESS && !is_canonical(address))) {
        return raise_gp(vcpu);
    }
    uint16_t current = vcpu->state.cr4 & CR4_PCIDE ? vcpu->state.cr3 & 0xfff : 0;
    switch (type) {
    case INVPCID_ADDRESS:
        if (pcid == current) {
            change_flush(vcpu, FLUSH_PAGE, address);
            break;
        }
        flush_context(vcpu, (uint16_t)pcid);
        break;
    case INVPCID_CONTEXT:
        flush_context(vcpu, (uint16_t)pcid);
        break;
    default:
        change_flush(vcpu, FLUSH_ALL, 0);
        break;
    }
    return STEP_NEXT;
}
