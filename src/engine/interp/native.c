/*
 * Vector instructions (x87, MMX, SSE, AVX, AVX-512) run on the host CPU, one at a time, as snippets
 * (native_snippet.c): whether the guest may run it, its memory operand to and from the bounce
 * buffer, and the order of its exceptions. What the host CPU objects to (unmasked floating-point
 * exceptions, reserved bits) becomes the guest's exception.
 *
 * Promises: the guest sees no host address (x87 instruction pointers are replaced), and no memory
 *           is written before every check has passed.
 */
#include "engine/interp/native.h"

#include <errno.h>

#include "base/error.h"
#include "engine/interp/vector_state.h"

enum vector_family {
    FAMILY_NONE,
    FAMILY_X87,
    FAMILY_FWAIT,
    FAMILY_MMX,
    FAMILY_SSE,
    FAMILY_AVX,
    FAMILY_AVX512
};

static bool names_class(const struct insn *insn, ZydisRegister first, ZydisRegister last)
{
    for (unsigned n = 0; n < insn->info.operand_count; n++) {
        const struct insn_operand *operand = &insn->operands[n];
        if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER && operand->reg.value >= first &&
            operand->reg.value <= last) {
            return true;
        }
    }
    return false;
}

static enum vector_family family_of(const struct insn *insn)
{
    switch (insn->info.encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_EVEX:
        return FAMILY_AVX512;
    case ZYDIS_INSTRUCTION_ENCODING_VEX:
        return names_class(insn, ZYDIS_REGISTER_K0, ZYDIS_REGISTER_K7) ? FAMILY_AVX512 : FAMILY_AVX;
    case ZYDIS_INSTRUCTION_ENCODING_LEGACY:
        break;
    default:
        return FAMILY_NONE;
    }
    if (insn->info.mnemonic == ZYDIS_MNEMONIC_FWAIT) {
        return FAMILY_FWAIT;
    }
    if (insn->info.meta.isa_ext == ZYDIS_ISA_EXT_X87 ||
        insn->info.mnemonic == ZYDIS_MNEMONIC_FISTTP ||
        insn->info.meta.isa_set == ZYDIS_ISA_SET_FCMOV) {
        return FAMILY_X87;
    }
    if (insn->info.mnemonic == ZYDIS_MNEMONIC_EMMS ||
        (names_class(insn, ZYDIS_REGISTER_MM0, ZYDIS_REGISTER_MM7) &&
         !names_class(insn, ZYDIS_REGISTER_XMM0, ZYDIS_REGISTER_XMM15))) {
        return FAMILY_MMX;
    }
    return FAMILY_SSE;
}

/* #UD and #NM by CR0, CR4 and XCR0. SDM volume 2, 2.6 to 2.8; volume 3, 2.5 and 13.1. */
static enum step check_enabled(struct vcpu *vcpu, enum vector_family family)
{
    const struct cpu_state *state = &vcpu->state;
    bool undefined = family == FAMILY_NONE;

    switch (family) {
    case FAMILY_NONE:
        break;
    case FAMILY_X87:
        if (state->cr0 & (CR0_EM | CR0_TS)) {
            return raise_exception(vcpu, EXCEPTION_NM);
        }
        return STEP_NEXT;
    case FAMILY_FWAIT:
        if ((state->cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS)) {
            return raise_exception(vcpu, EXCEPTION_NM);
        }
        return STEP_NEXT;
    case FAMILY_MMX:
        undefined = state->cr0 & CR0_EM;
        break;
    case FAMILY_SSE:
        undefined = (state->cr0 & CR0_EM) || !(state->cr4 & CR4_OSFXSR);
        break;
    case FAMILY_AVX:
        undefined = !(state->cr4 & CR4_OSXSAVE) || !has_selectors(vcpu) ||
                    ~state->xcr0 & (XCR0_SSE | XCR0_AVX);
        break;
    case FAMILY_AVX512:
        undefined = !(state->cr4 & CR4_OSXSAVE) || !has_selectors(vcpu) ||
                    ~state->xcr0 & (XCR0_SSE | XCR0_AVX | XCR0_AVX512);
        break;
    }
    if (undefined) {
        return raise_ud(vcpu);
    }
    return state->cr0 & CR0_TS ? raise_exception(vcpu, EXCEPTION_NM) : STEP_NEXT;
}

/* Chunk by chunk: where it is; the segment check is part of it. */
static enum step chunk_address(struct vcpu *vcpu, const struct native_plan *plan, unsigned n,
                               unsigned size, bool write, gva_t *ret_gva)
{
    return linear_address(vcpu, plan->segment, plan->offset + n * plan->chunk, size, write,
                          ret_gva);
}

static bool is_whole(const struct native_plan *plan)
{
    return plan->count == 1 ||
           plan->active == (plan->count == 64 ? ~0ull : (1ull << plan->count) - 1);
}

/* One pass over the active chunks: read them, check that they can be written, or write them. */
enum pass { PASS_READ, PASS_CHECK, PASS_WRITE };

static enum step transfer(struct vcpu *vcpu, const struct native_plan *plan, uint8_t *buffer,
                          enum pass pass)
{
    bool all = plan->faults_whole && pass == PASS_CHECK;
    unsigned count = all || is_whole(plan) ? 1 : plan->count;
    unsigned size = plan->chunk * plan->count / count;
    uint32_t access = user_access(vcpu);
    gva_t gva;

    if (!plan->active && !all) {
        return STEP_NEXT;
    }
    for (unsigned n = 0; n < count; n++) {
        uint8_t *bytes = buffer + (size_t)n * plan->chunk;
        if (count > 1 && !(plan->active >> n & 1)) {
            continue;
        }
        TRY(chunk_address(vcpu, plan, n, size, pass != PASS_READ, &gva));
        switch (pass) {
        case PASS_READ:
            TRY(mmu_read(vcpu, gva, bytes, size, access));
            note_data_access(vcpu, gva, size, false);
            break;
        case PASS_CHECK:
            TRY(mmu_check_write(vcpu, gva, size, access));
            break;
        case PASS_WRITE:
            TRY(mmu_write(vcpu, gva, bytes, size, access));
            note_data_access(vcpu, gva, size, true);
            break;
        }
    }
    return STEP_NEXT;
}

/* The memory operand, if there is one that is really accessed. */
static const struct insn_operand *memory_operand(const struct insn *insn)
{
    for (unsigned n = 0; n < insn->info.operand_count; n++) {
        if (operand_is_memory(insn, n) && insn->operands[n].size > 0) {
            return &insn->operands[n];
        }
    }
    return NULL;
}

static void plan_make(const struct vcpu *vcpu, const struct insn *insn, struct native_plan *plan)
{
    const struct insn_operand *memory = memory_operand(insn);

    *plan = (struct native_plan){.count = 1, .active = 1};
    if (!memory) {
        plan->active = 0;
        return;
    }
    plan->segment = segment_of(memory->mem.segment);
    plan->offset = operand_offset(vcpu, insn, memory);
    plan->chunk = memory->size / 8;
    plan->reads = memory->actions & ZYDIS_OPERAND_ACTION_MASK_READ;
    plan->writes = memory->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    native_plan_mask(vcpu, insn, memory, plan);
}

/* What of legacy SSE may be unaligned in 16 bytes of memory. SDM volume 1, 4.1.1. */
static bool is_unaligned_move(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_MOVUPS:
    case ZYDIS_MNEMONIC_MOVUPD:
    case ZYDIS_MNEMONIC_MOVDQU:
    case ZYDIS_MNEMONIC_LDDQU:
    case ZYDIS_MNEMONIC_PCMPESTRI:
    case ZYDIS_MNEMONIC_PCMPESTRM:
    case ZYDIS_MNEMONIC_PCMPISTRI:
    case ZYDIS_MNEMONIC_PCMPISTRM:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
        return true;
    default:
        return false;
    }
}

/* What of AVX and AVX-512 must be aligned. */
static bool is_aligned_move(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_VMOVAPS:
    case ZYDIS_MNEMONIC_VMOVAPD:
    case ZYDIS_MNEMONIC_VMOVDQA:
    case ZYDIS_MNEMONIC_VMOVDQA32:
    case ZYDIS_MNEMONIC_VMOVDQA64:
    case ZYDIS_MNEMONIC_VMOVNTPS:
    case ZYDIS_MNEMONIC_VMOVNTPD:
    case ZYDIS_MNEMONIC_VMOVNTDQ:
    case ZYDIS_MNEMONIC_VMOVNTDQA:
        return true;
    default:
        return false;
    }
}

/* What alignment checking (#AC) asks of an operand. SDM volume 3, table 6-7. */
static unsigned natural_alignment(unsigned size)
{
    switch (size) {
    case 2:
    case 4:
    case 8:
        return size; /* unaligned moves of 16 bytes and more are never checked */
    case 10:         /* 80-bit numbers */
        return 8;
    case 14: /* x87 environment and state, 16-bit formats */
    case 94:
        return 2;
    case 28:
    case 108:
        return 4;
    default:
        return 1;
    }
}

/* The #GP or #AC of a misaligned vector operand comes before any #PF. */
static enum step check_vector_alignment(struct vcpu *vcpu, const struct insn *insn,
                                        enum vector_family family, const struct native_plan *plan)
{
    unsigned size = plan->chunk * plan->count;
    bool aligned = family <= FAMILY_SSE ? size == 16 && !is_unaligned_move(insn->info.mnemonic)
                                        : is_aligned_move(insn->info.mnemonic);
    gva_t gva;

    if (!plan->active || size == 0 || (!aligned && !(vcpu->state.rflags & FLAG_AC))) {
        return STEP_NEXT;
    }
    TRY(linear_address(vcpu, plan->segment, plan->offset, size, plan->writes, &gva));
    if (aligned) {
        return gva & (size - 1) ? raise_gp(vcpu) : STEP_NEXT;
    }
    return plan->count == 1 ? check_alignment(vcpu, gva, natural_alignment(size)) : STEP_NEXT;
}

/* The unmasked x87 exceptions that have happened. */
static unsigned x87_pending(const struct vcpu *vcpu)
{
    const uint8_t *xsave = vcpu->state.xsave;

    if (!(xsave_in_use(&vcpu->state) & XCR0_X87)) {
        return 0;
    }
    return load_le16(xsave + XSAVE_FSW) & ~load_le16(xsave + XSAVE_FCW) & 0x3f;
}

/*
 * The x87 instruction and data pointers name the snippet and the bounce buffer now: give them
 * what they would be in the guest. Where they are older, they are right already. Opcode and operand
 * are kept for unmasked exceptions only (CPUID.7.EBX[6]); SDM volume 1, 8.1.8 and 8.1.9.
 */
static void replace_pointers(struct vcpu *vcpu, const struct insn *insn,
                             const struct native_plan *plan, const struct snippet *snippet,
                             const uint8_t *operand)
{
    uint8_t *xsave = vcpu->state.xsave;
    unsigned opcode = insn->info.raw.modrm.offset;
    bool is_pending = x87_pending(vcpu);

    if (load_le64(xsave + XSAVE_FIP) == (uintptr_t)snippet->body) {
        store_le64(xsave + XSAVE_FIP, vcpu->state.rip - insn->info.length);
        unsigned fop = 0;
        if (is_pending && opcode > 0) {
            fop = (insn->bytes[opcode - 1] & 7u) << 8 | insn->bytes[opcode];
        }
        store_le16(xsave + XSAVE_FOP, (uint16_t)fop);
    }
    if (load_le64(xsave + XSAVE_FDP) == (uintptr_t)operand) {
        store_le64(xsave + XSAVE_FDP, is_pending ? plan->offset : 0);
    }
}

/* Does the instruction look at pending x87 exceptions before it does anything? */
static bool waits(const struct insn *insn, enum vector_family family)
{
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_FNINIT:
    case ZYDIS_MNEMONIC_FNCLEX:
    case ZYDIS_MNEMONIC_FNSTCW:
    case ZYDIS_MNEMONIC_FNSTSW:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FENI8087_NOP:
    case ZYDIS_MNEMONIC_FDISI8087_NOP:
    case ZYDIS_MNEMONIC_FSETPM287_NOP:
        return false;
    default:
        return family == FAMILY_X87 || family == FAMILY_MMX ||
               names_class(insn, ZYDIS_REGISTER_MM0, ZYDIS_REGISTER_MM7);
    }
}

/* The guest's exception for a fault of the host CPU in a snippet. */
static enum step raise_fault(struct vcpu *vcpu, uint64_t vector)
{
    switch (vector) {
    case EXCEPTION_MF:
        return raise_exception(vcpu, EXCEPTION_MF);
    case EXCEPTION_XM:
        return raise_exception(vcpu,
                               vcpu->state.cr4 & CR4_OSXMMEXCPT ? EXCEPTION_XM : EXCEPTION_UD);
    case EXCEPTION_UD:
        return raise_ud(vcpu);
    case EXCEPTION_GP:
        return raise_gp(vcpu);
    default:
        fail(-EIO, "the host raised exception %u in a vector instruction", (unsigned)vector);
        return STEP_ERROR;
    }
}

/* Run the body on the operand; a fault of the host becomes the guest's. */
static enum step run_body(struct vcpu *vcpu, const struct insn *insn, const struct snippet *snippet,
                          const struct native_plan *plan, uint8_t *operand)
{
    uint64_t fault = snippet_run(vcpu, snippet, operand);

    replace_pointers(vcpu, insn, plan, snippet, operand);
    return fault ? raise_fault(vcpu, fault - 1) : STEP_NEXT;
}

/*
 * Stores whose numeric exceptions come before those of memory. An x87 store decides while it runs
 * whether it stores: an unmasked invalid operation, overflow or underflow leaves memory alone. So
 * the check comes after, and a fault takes the effects back.
 */
static bool stores_late(const struct insn *insn, enum vector_family family,
                        const struct native_plan *plan)
{
    return plan->writes && !plan->reads &&
           (family == FAMILY_X87 ? waits(insn, family)
                                 : insn->info.mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH);
}

static enum step run_late_store(struct vcpu *vcpu, const struct insn *insn,
                                enum vector_family family, const struct snippet *snippet,
                                const struct native_plan *plan, uint8_t *operand)
{
    enum { X87_IE = 1, X87_OE = 8, X87_UE = 16 };
    uint8_t before[XSAVE_HEADER_END];

    bytes_copy(before, vcpu->state.xsave, sizeof before);
    TRY(run_body(vcpu, insn, snippet, plan, operand));
    if (family == FAMILY_X87 && (x87_pending(vcpu) & (X87_IE | X87_OE | X87_UE))) {
        return STEP_NEXT;
    }
    enum step step = check_vector_alignment(vcpu, insn, family, plan);
    if (step == STEP_NEXT) {
        step = transfer(vcpu, plan, operand, PASS_CHECK);
    }
    if (step != STEP_NEXT) {
        bytes_copy(vcpu->state.xsave, before, sizeof before);
        return step;
    }
    return transfer(vcpu, plan, operand, PASS_WRITE);
}

/* The host may know MXCSR bits that no model has. */
static bool loads_reserved_mxcsr(const struct insn *insn, const uint8_t *operand)
{
    return (insn->info.mnemonic == ZYDIS_MNEMONIC_LDMXCSR ||
            insn->info.mnemonic == ZYDIS_MNEMONIC_VLDMXCSR) &&
           (load_le32(operand) & ~(uint32_t)MXCSR_WRITABLE);
}

static enum step run_checked(struct vcpu *vcpu, const struct insn *insn, enum vector_family family,
                             const struct snippet *snippet, const struct native_plan *plan)
{
    uint64_t base = plan->active ? plan->offset + vcpu->state.segment[plan->segment].base : 0;
    uint8_t *operand = snippet_operand(vcpu->native, base);

    if (stores_late(insn, family, plan)) {
        return run_late_store(vcpu, insn, family, snippet, plan, operand);
    }
    TRY(check_vector_alignment(vcpu, insn, family, plan));
    if (plan->writes) {
        TRY(transfer(vcpu, plan, operand, PASS_CHECK));
    }
    if (plan->reads) {
        bytes_fill(operand, 0, plan->chunk * plan->count);
        TRY(transfer(vcpu, plan, operand, PASS_READ));
    }
    if (loads_reserved_mxcsr(insn, operand)) {
        return raise_gp(vcpu);
    }
    TRY(run_body(vcpu, insn, snippet, plan, operand));
    return plan->writes ? transfer(vcpu, plan, operand, PASS_WRITE) : STEP_NEXT;
}

enum step native_execute(struct vcpu *vcpu, const struct insn *insn)
{
    enum vector_family family = family_of(insn);
    struct native_plan plan;

    TRY(check_enabled(vcpu, family));
    if (native_is_gather(insn)) {
        return native_gather(vcpu, insn);
    }
    if (waits(insn, family) && x87_pending(vcpu)) {
        return raise_exception(vcpu, EXCEPTION_MF);
    }
    plan_make(vcpu, insn, &plan);
    const struct snippet *snippet = snippet_for(vcpu->native, insn);
    if (!snippet || plan.chunk * plan.count > SNIPPET_OPERAND_MAX) {
        fail(-ENOTSUP, "the vector instruction %02x %02x %02x %02x cannot be rewritten",
             insn->bytes[0], insn->bytes[1], insn->bytes[2], insn->bytes[3]);
        return STEP_ERROR;
    }
    TRY(run_checked(vcpu, insn, family, snippet, &plan));
    snippet_commit(vcpu, snippet);
    return STEP_NEXT;
}
