/*
 * Where two CPUs may differ and both be right: what the manual calls implementation dependent, or
 * leaves open, and CPUs of different makers do differently. Each case stands here with the section
 * that leaves it open ("SDM" is Intel's, "APM" AMD's manual), and says as narrowly as it can when
 * it applies. The real CPU of this host stays the oracle for everything else.
 */
#include "tests/differential/differential.h"

#include <string.h>

enum { FSW = 2, MXCSR = 24, EXCEPTIONS = 0x3f };

static uint16_t load16(const uint8_t *bytes)
{
    uint16_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static uint64_t register_value(const struct test_case *test, ZydisRegister reg)
{
    ZydisRegister large = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg);
    if (large < ZYDIS_REGISTER_RAX || large > ZYDIS_REGISTER_R15) {
        return 0;
    }
    uint64_t value = test->before.gpr[large - ZYDIS_REGISTER_RAX];
    return reg == ZYDIS_REGISTER_AL ? (uint8_t)value : value;
}

static uint64_t operand_address(const struct insn *insn, const struct insn_operand *operand,
                                const struct test_case *test)
{
    uint64_t address = (uint64_t)operand->mem.displacement +
                       register_value(test, operand->mem.base) +
                       register_value(test, operand->mem.index) * operand->mem.scale;
    if (operand->mem.base == ZYDIS_REGISTER_RIP || operand->mem.base == ZYDIS_REGISTER_EIP) {
        address += test->before.rip + insn->info.length;
    }
    return insn->info.address_width == 32 ? (uint32_t)address : address;
}

static const struct insn_operand *memory_operand(const struct insn *insn)
{
    for (unsigned i = 0; i < insn->info.operand_count; i++) {
        if (insn->operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY && insn->operands[i].size) {
            return &insn->operands[i];
        }
    }
    return NULL;
}

static bool is_x87(const struct insn *insn)
{
    return insn->info.meta.isa_ext == ZYDIS_ISA_EXT_X87 ||
           insn->info.mnemonic == ZYDIS_MNEMONIC_FISTTP;
}

/* Did the instruction complete? Then the breakpoint behind it came, or a fault of its fetch. */
static bool is_completed(const struct test_case *test, const struct outcome *outcome)
{
    return outcome->vector == EXCEPTION_BP ||
           (outcome->vector == EXCEPTION_PF && outcome->after.rip != test->before.rip);
}

/* Did the instruction itself raise this exception? */
static bool has_raised(const struct test_case *test, const struct outcome *outcome, uint64_t vector)
{
    return outcome->vector == vector && !is_completed(test, outcome);
}

/* One of them raised the exception, the other did not. */
static bool only_one(const struct test_case *test, const struct outcome *a, const struct outcome *b,
                     uint64_t vector)
{
    return has_raised(test, a, vector) != has_raised(test, b, vector);
}

static bool is_memory_fault(const struct test_case *test, const struct outcome *outcome)
{
    return has_raised(test, outcome, EXCEPTION_PF) || outcome->vector == EXCEPTION_GP ||
           outcome->vector == EXCEPTION_SS || outcome->vector == EXCEPTION_AC;
}

static bool is_byte_masked(const struct insn *insn)
{
    return insn->info.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ ||
           insn->info.mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU ||
           insn->info.mnemonic == ZYDIS_MNEMONIC_VMASKMOVDQU;
}

static bool is_masked(const struct insn *insn)
{
    return insn->info.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX &&
           insn->info.avx.mask.reg > ZYDIS_REGISTER_K0;
}

/*
 * #AC for operands of 16 bytes and more that need not be aligned, and for smaller ones of which
 * elements are masked off. SDM volume 2, MOVUPS: it may or may not be generated, depending on the
 * implementation (volume 1, 14.9 for AVX). AMD's CPUs raise it, before any #PF.
 */
static bool is_vector_alignment(const struct insn *insn, const struct test_case *test,
                                const struct outcome *native, const struct outcome *engine)
{
    const struct insn_operand *memory = memory_operand(insn);
    return memory && (memory->size >= 128 || is_masked(insn) || is_byte_masked(insn)) &&
           test->before.rflags & FLAG_AC &&
           operand_address(insn, memory, test) % (memory->size / 8) &&
           only_one(test, native, engine, EXCEPTION_AC);
}

/* A numeric exception that is not masked: #XM, or an x87 one that the next instruction raises. */
static bool has_numeric_exception(const struct test_case *test, const struct outcome *outcome)
{
    const uint8_t *area = outcome->after.xsave;
    return outcome->vector == EXCEPTION_XM ||
           (is_completed(test, outcome) && load16(area + FSW) & ~load16(area) & EXCEPTIONS);
}

/*
 * Stores that convert have numeric exceptions and those of memory. SDM volume 3, table 6-2: both
 * are of the last class of priority, and the order inside a class depends on the implementation.
 * Intel's CPUs convert first, AMD's look at memory first.
 */
static bool is_store_priority(const struct insn *insn, const struct test_case *test,
                              const struct outcome *native, const struct outcome *engine)
{
    const struct insn_operand *memory = memory_operand(insn);
    return memory && memory->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE &&
           (is_x87(insn) || insn->info.mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH) &&
           ((is_memory_fault(test, native) && has_numeric_exception(test, engine)) ||
            (is_memory_fault(test, engine) && has_numeric_exception(test, native)));
}

/* CMPS (of two operands in memory) and SCAS. */
static bool is_compare_string(ZydisMnemonic mnemonic, bool *ret_two_operands)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_CMPSB:
    case ZYDIS_MNEMONIC_CMPSW:
    case ZYDIS_MNEMONIC_CMPSD:
    case ZYDIS_MNEMONIC_CMPSQ:
        *ret_two_operands = true;
        return true;
    case ZYDIS_MNEMONIC_SCASB:
    case ZYDIS_MNEMONIC_SCASW:
    case ZYDIS_MNEMONIC_SCASD:
    case ZYDIS_MNEMONIC_SCASQ:
        *ret_two_operands = false;
        return true;
    default:
        return false;
    }
}

/* Does the access reach beyond the canonical addresses? */
static bool is_wild(uint64_t address, unsigned size)
{
    return (address + (1ull << 47)) >> 48 || (address + size - 1 + (1ull << 47)) >> 48;
}

/* Does this operand give reason for this exception? */
static bool is_due(const struct insn_operand *memory, uint64_t address,
                   const struct test_case *test, uint64_t vector)
{
    const uint8_t *area = test->before.xsave;
    unsigned size = memory->size / 8, alignment = size == 10 ? 8 : size;
    switch (vector) {
    case EXCEPTION_PF:
        return address - DATA_PAGE > 4096 - size;
    case EXCEPTION_GP: /* SSE operands, and moves that ask for alignment */
        return (size >= 16 && address % size) ||
               (memory->mem.segment != ZYDIS_REGISTER_SS && is_wild(address, size));
    case EXCEPTION_SS:
        return memory->mem.segment == ZYDIS_REGISTER_SS && is_wild(address, size);
    case EXCEPTION_AC:
        return test->before.rflags & FLAG_AC && address % alignment;
    case EXCEPTION_MF:
        return load16(area + FSW) & ~load16(area) & EXCEPTIONS;
    default:
        return false;
    }
}

/*
 * An operand that gives reason for two exceptions of the last class of priority, as above: #MF of
 * an earlier instruction, #GP and #AC of one that is not aligned, #SS, #PF.
 */
static bool is_order_of_faults(const struct insn *insn, const struct test_case *test,
                               const struct outcome *native, const struct outcome *engine)
{
    const struct insn_operand *memory = memory_operand(insn);
    uint64_t address = memory ? operand_address(insn, memory, test) : 0;
    return memory && native->vector != engine->vector &&
           is_due(memory, address, test, native->vector) &&
           is_due(memory, address, test, engine->vector);
}

/* CMPS where one operand is misaligned and the other faults: which is first, as above. */
static bool is_operand_order(const struct insn *insn, const struct test_case *test,
                             const struct outcome *native, const struct outcome *engine)
{
    bool two_operands = false;
    return is_compare_string(insn->info.mnemonic, &two_operands) && two_operands &&
           native->vector != engine->vector && is_memory_fault(test, native) &&
           is_memory_fault(test, engine);
}

/*
 * Byte-masked stores that store nothing. SDM volume 2, MASKMOVQ and MASKMOVDQU: with a mask of
 * zeros, page faults may still be signaled (implementation dependent). APM volume 4 and 5 say
 * the same of each byte that is not selected.
 */
static bool is_unselected_byte(const struct insn *insn, const struct test_case *test,
                               const struct outcome *native, const struct outcome *engine)
{
    return is_byte_masked(insn) && only_one(test, native, engine, EXCEPTION_PF);
}

/* SHA with an operand that is not aligned: #GP (SDM volume 2, type 4), or not on AMD's CPUs. */
static bool is_sha_alignment(const struct insn *insn, const struct test_case *test,
                             const struct outcome *native, const struct outcome *engine)
{
    const struct insn_operand *memory = memory_operand(insn);
    return insn->info.meta.isa_set == ZYDIS_ISA_SET_SHA && memory &&
           operand_address(insn, memory, test) % 16 && only_one(test, native, engine, EXCEPTION_GP);
}

/*
 * MXCSR bits above 15: which exist depends on the CPU (SDM volume 1, 11.6.6: MXCSR_MASK); AMD's
 * have 17. Loading one that does not exist is #GP.
 */
static bool is_mxcsr_bit(const struct test_case *test, const struct outcome *native,
                         const struct outcome *engine)
{
    return is_completed(test, native) && engine->vector == EXCEPTION_GP &&
           load16(native->after.xsave + MXCSR + 2);
}

/*
 * VPSHUFBITQMB with a mask: an element that is masked off does not fault (SDM volume 2, type E4),
 * but does on AMD's CPUs.
 */
static bool is_mask_of_bits(const struct insn *insn, const struct test_case *test,
                            const struct outcome *native, const struct outcome *engine)
{
    return insn->info.mnemonic == ZYDIS_MNEMONIC_VPSHUFBITQMB && is_masked(insn) &&
           only_one(test, native, engine, EXCEPTION_PF);
}

/* Encodings that are other instructions, or none, on other CPUs. */
static bool is_other_instruction(const struct insn *insn, const struct test_case *test,
                                 const struct outcome *native, const struct outcome *engine)
{
    const struct insn_info *info = &insn->info;
    switch (info->mnemonic) {
    case ZYDIS_MNEMONIC_PAUSE: /* with REX.B, AMD's CPUs exchange R8 and RAX (APM volume 3, NOP) */
        return info->raw.rex & 1; /* REX.B */
    case ZYDIS_MNEMONIC_NOP: /* 0F 0D is PREFETCHW, for which a register is #UD (APM volume 3) */
        return info->opcode == 0x0d && info->raw.modrm.mod == 3 && native->vector == EXCEPTION_UD;
    case ZYDIS_MNEMONIC_MOVSXD: /* 16 bits of a source (SDM volume 2), or 32 (APM volume 3) */
        return info->operand_width == 16 && (only_one(test, native, engine, EXCEPTION_PF) ||
                                             only_one(test, native, engine, EXCEPTION_AC));
    default:
        return false;
    }
}

bool is_model_specific(const struct insn *insn, const struct test_case *test,
                       const struct outcome *native, const struct outcome *engine)
{
    return is_vector_alignment(insn, test, native, engine) ||
           is_store_priority(insn, test, native, engine) ||
           is_order_of_faults(insn, test, native, engine) ||
           is_operand_order(insn, test, native, engine) ||
           is_unselected_byte(insn, test, native, engine) ||
           is_sha_alignment(insn, test, native, engine) || is_mxcsr_bit(test, native, engine) ||
           is_mask_of_bits(insn, test, native, engine) ||
           is_other_instruction(insn, test, native, engine);
}

/*
 * Flags that the manual leaves undefined. DIV and IDIV: at #DE too. Repeated CMPS and SCAS that
 * fault on the way: restored (SDM volume 2, REP), or those of the last comparison on AMD's CPUs.
 */
static uint64_t open_flags(const struct insn *insn, const struct test_case *test,
                           const struct outcome *native)
{
    const ZydisAccessedFlags *flags = insn->info.cpu_flags;
    uint64_t undefined = flags ? flags->undefined : 0;
    bool divides =
        insn->info.mnemonic == ZYDIS_MNEMONIC_DIV || insn->info.mnemonic == ZYDIS_MNEMONIC_IDIV;
    bool repeats = insn->info.attributes & (ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE);
    bool two_operands;
    if (is_completed(test, native) || (divides && native->vector == EXCEPTION_DE)) {
        return undefined | FLAG_RF;
    }
    if (repeats && native->vector == EXCEPTION_PF &&
        is_compare_string(insn->info.mnemonic, &two_operands)) {
        return FLAGS_ARITHMETIC | FLAG_RF;
    }
    return FLAG_RF;
}

static void take_over_memory(const struct outcome *native, struct outcome *engine, uint64_t address,
                             unsigned size)
{
    for (uint64_t at = address - DATA_PAGE; size--; at++) {
        if (at < sizeof native->after.data) {
            engine->after.data[at] = native->after.data[at];
        }
    }
}

static void open_memory(const struct insn *insn, const struct test_case *test,
                        const struct outcome *native, struct outcome *engine)
{
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_CALL:
        /*
         * To an address that is not canonical: whether the return address is stored below the
         * stack pointer, which stays. SDM volume 2, CALL, checks first; Intel's CPUs store.
         */
        if (native->vector == EXCEPTION_GP) {
            take_over_memory(native, engine, native->after.gpr[RSP] - 8, 8);
        }
        return;
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64: /* MXCSR_MASK: see is_mxcsr_bit() */
        take_over_memory(native, engine, operand_address(insn, memory_operand(insn), test) + 30, 2);
        return;
    default:
        return;
    }
}

/*
 * Which byte of the access CR2 names is the CPU's choice where it works in pieces (SDM volume 3,
 * 4.7 promises an address of the access only).
 */
static bool is_in_pieces(const struct insn *insn)
{
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_FLDENV:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_ENTER:
        return true;
    default:
        return insn->info.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX ||
               insn->info.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX ||
               (is_x87(insn) && memory_operand(insn) && memory_operand(insn)->size == 80);
    }
}

/* The operand's bytes; those of gathers and of ENTER have no place of their own. */
static bool is_in_operand(const struct insn *insn, const struct test_case *test, uint64_t address)
{
    const struct insn_operand *memory = memory_operand(insn);
    return !memory || memory->mem.type == ZYDIS_MEMOP_TYPE_VSIB ||
           insn->info.mnemonic == ZYDIS_MNEMONIC_ENTER ||
           address - operand_address(insn, memory, test) < memory->size / 8;
}

/* CMPS with two operands that fault: which is first is not said (SDM volume 3, table 6-2). */
static bool is_of_other_operand(const struct insn *insn, const struct outcome *native,
                                const struct outcome *engine)
{
    unsigned size = insn->operands[0].size / 8;
    const uint64_t *gpr = native->after.gpr;
    bool two_operands = false;
    return is_compare_string(insn->info.mnemonic, &two_operands) && two_operands &&
           ((native->cr2 - gpr[RSI] < size && engine->cr2 - gpr[RDI] < size) ||
            (native->cr2 - gpr[RDI] < size && engine->cr2 - gpr[RSI] < size));
}

static void open_fault(const struct insn *insn, const struct test_case *test,
                       const struct outcome *native, struct outcome *engine)
{
    enum { PF_P = 1 };
    const uint64_t user_end = 0x7ffffffff000;
    if (native->cr2 >= user_end) { /* the host's kernel hides what it has there */
        engine->error = (engine->error & ~(uint64_t)PF_P) | (native->error & PF_P);
    }
    if (is_of_other_operand(insn, native, engine) ||
        (is_in_pieces(insn) && is_in_operand(insn, test, engine->cr2) &&
         (!((native->cr2 ^ engine->cr2) >> 12) || is_in_operand(insn, test, native->cr2)))) {
        engine->cr2 = native->cr2;
    }
}

static bool is_mmx(const struct insn *insn)
{
    for (unsigned i = 0; i < insn->info.operand_count; i++) {
        if (insn->operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(insn->operands[i].reg.value) == ZYDIS_REGCLASS_MMX) {
            return true;
        }
    }
    return false;
}

/* Bytes of a vector register become native's. */
static void take_over_register(ZydisRegister reg, const struct outcome *native,
                               struct outcome *engine, unsigned from)
{
    unsigned number = (unsigned)ZydisRegisterGetId(reg);
    unsigned size = xsave_component(COMPONENT_ZMM).size ? 64 : 32;
    for (unsigned i = from; i < size; i++) {
        unsigned at = vector_byte_place(number, i);
        engine->after.xsave[at] = native->after.xsave[at];
    }
}

/*
 * A gather that faults may have cleared already what no element goes to, or not: the destination
 * above its elements, and with VEX the mask above them (SDM volume 2, VGATHERDPS and its kind).
 */
static void open_gather(const struct insn *insn, const struct outcome *native,
                        struct outcome *engine)
{
    bool halves = insn->info.mnemonic == ZYDIS_MNEMONIC_VGATHERQPS ||
                  insn->info.mnemonic == ZYDIS_MNEMONIC_VPGATHERQD;
    unsigned size = insn->info.avx.vector_length / (halves ? 16 : 8);
    take_over_register(insn->operands[0].reg.value, native, engine, size);
    if (insn->info.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
        take_over_register(insn->operands[2].reg.value, native, engine, insn->operands[2].size / 8);
    }
}

/*
 * Two effects may be seen of an instruction that faults on memory: the switch of the x87 registers
 * to MMX, and the flags of a conversion whose store faults (SDM volume 2, VCVTPS2PH).
 */
static void open_registers(const struct insn *insn, const struct outcome *native,
                           struct outcome *engine)
{
    const uint8_t *from = native->after.xsave;
    uint8_t *to = engine->after.xsave;
    ZydisInstructionCategory category = insn->info.meta.category;
    if (is_mmx(insn)) {
        memcpy(to, from, 24);
        memcpy(to + 32, from + 32, 128);
    }
    if (insn->info.mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH) {
        memcpy(to + MXCSR, from + MXCSR, 4);
    }
    if (category == ZYDIS_CATEGORY_GATHER || category == ZYDIS_CATEGORY_AVX2GATHER) {
        open_gather(insn, native, engine);
    }
}

void take_over_model_specific(const struct insn *insn, const struct test_case *test,
                              const struct outcome *native, struct outcome *engine)
{
    uint64_t flags = open_flags(insn, test, native);
    engine->after.rflags = (engine->after.rflags & ~flags) | (native->after.rflags & flags);
    open_memory(insn, test, native, engine);
    if (native->vector == EXCEPTION_PF) {
        open_fault(insn, test, native, engine);
    }
    if (is_memory_fault(test, native)) {
        open_registers(insn, native, engine);
    }
    if (is_x87(insn)) { /* FOP, FIP and FDP are compared by a guest test */
        memcpy(engine->after.xsave + 6, native->after.xsave + 6, 18);
    }
}
