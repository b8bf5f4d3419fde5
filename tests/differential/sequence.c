/*
 * Sequences: what one instruction cannot show is how an engine carries flags, registers and
 * checked addresses from one instruction to the next. Some integer and vector instructions in a
 * row, with conditional branches over some of them, on registers of which about half point into
 * the data page. An instruction often overwrites such a pointer, so many sequences end with a
 * fault somewhere, and everything must be exact there.
 */
#include "tests/differential/differential.h"

#include <stdlib.h>
#include <string.h>

enum { LENGTH_MIN = 2, LENGTH_MAX = 8, ATTEMPTS = 400 };

/* Undefined flags could be read by the next instruction: then a CMP comes between. */
bool has_defined_flags(const struct insn *insn)
{
    const ZydisAccessedFlags *flags = insn->info.cpu_flags;
    switch (insn->info.meta.category) {
    case ZYDIS_CATEGORY_LOGICAL: /* AF: no CPU of today looks at what it was */
    case ZYDIS_CATEGORY_SHIFT:
    case ZYDIS_CATEGORY_ROTATE:
        return true;
    default:
        return !flags || !flags->undefined;
    }
}

static bool is_wanted_category(ZydisInstructionCategory category)
{
    switch (category) {
    case ZYDIS_CATEGORY_BINARY:
    case ZYDIS_CATEGORY_LOGICAL:
    case ZYDIS_CATEGORY_DATAXFER:
    case ZYDIS_CATEGORY_SHIFT:
    case ZYDIS_CATEGORY_ROTATE:
    case ZYDIS_CATEGORY_CMOV:
    case ZYDIS_CATEGORY_SETCC:
    case ZYDIS_CATEGORY_BITBYTE:
    case ZYDIS_CATEGORY_CONVERT:
    case ZYDIS_CATEGORY_SEMAPHORE:
    case ZYDIS_CATEGORY_BMI1:
    case ZYDIS_CATEGORY_BMI2:
    case ZYDIS_CATEGORY_LZCNT:
    case ZYDIS_CATEGORY_ADOX_ADCX:
    case ZYDIS_CATEGORY_FLAGOP:
    case ZYDIS_CATEGORY_PUSH:
    case ZYDIS_CATEGORY_POP:
    case ZYDIS_CATEGORY_MISC:
    case ZYDIS_CATEGORY_SSE:
    case ZYDIS_CATEGORY_LOGICAL_FP:
    case ZYDIS_CATEGORY_MMX:
    case ZYDIS_CATEGORY_X87_ALU:
    case ZYDIS_CATEGORY_FCMOV:
    case ZYDIS_CATEGORY_AVX:
    case ZYDIS_CATEGORY_AVX2:
    case ZYDIS_CATEGORY_AVX512:
    case ZYDIS_CATEGORY_BLEND:
    case ZYDIS_CATEGORY_BROADCAST:
    case ZYDIS_CATEGORY_KMASK:
    case ZYDIS_CATEGORY_VFMA:
        return true;
    default:
        return false;
    }
}

static bool is_wanted_mnemonic(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_POPF: /* may begin a single step */
    case ZYDIS_MNEMONIC_POPFQ:
    case ZYDIS_MNEMONIC_XCHG:  /* locks, and hosts end programs that lock across lines */
    case ZYDIS_MNEMONIC_ENTER: /* these are not the same on all CPUs: model_specific.c */
    case ZYDIS_MNEMONIC_PAUSE:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FST:
    case ZYDIS_MNEMONIC_FSTP:
    case ZYDIS_MNEMONIC_FIST:
    case ZYDIS_MNEMONIC_FISTP:
    case ZYDIS_MNEMONIC_FISTTP:
    case ZYDIS_MNEMONIC_FBSTP:
    case ZYDIS_MNEMONIC_FNSTENV: /* these show where x87 instructions were */
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
        return false;
    default:
        return true;
    }
}

/*
 * VCVTUSI2SD of RSP behind a CALL or PUSH: the CPU that this was seen on (AMD, family 1AH) converts
 * now and then what RSP was before, so it is no oracle for that.
 */
static bool is_conversion_of_stack_pointer(const struct insn *insn)
{
    ZydisRegister source = insn->operands[2].reg.value;
    return (insn->info.mnemonic == ZYDIS_MNEMONIC_VCVTUSI2SD ||
            insn->info.mnemonic == ZYDIS_MNEMONIC_VCVTUSI2SS) &&
           insn->operands[2].type == ZYDIS_OPERAND_TYPE_REGISTER &&
           (source == ZYDIS_REGISTER_RSP || source == ZYDIS_REGISTER_ESP);
}

/* `wanted_base`: of memory operands, where it is not ZYDIS_REGISTER_NONE. */
static bool is_wanted(const struct insn *insn, ZydisRegister wanted_base)
{
    for (unsigned i = 0; i < insn->info.operand_count; i++) {
        const struct insn_operand *operand = &insn->operands[i];
        ZydisRegister base = operand->mem.base;
        if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY &&
            (base == ZYDIS_REGISTER_NONE || base == ZYDIS_REGISTER_RIP ||
             base == ZYDIS_REGISTER_EIP ||
             (wanted_base != ZYDIS_REGISTER_NONE && base != wanted_base) ||
             operand->mem.displacement < -128 || operand->mem.displacement > 127)) {
            return false;
        }
        if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(operand->reg.value) == ZYDIS_REGCLASS_SEGMENT) {
            return false;
        }
    }
    return is_wanted_mnemonic(insn->info.mnemonic) && !is_conversion_of_stack_pointer(insn);
}

static bool is_general(const struct insn *insn)
{
    return insn->info.meta.isa_ext == ZYDIS_ISA_EXT_BASE ||
           insn->info.meta.isa_ext == ZYDIS_ISA_EXT_LONGMODE;
}

/* Vector forms are many and would crowd out the others: so they stand apart. */
void sequence_pool_init(const struct form *forms, size_t count, struct sequence_pool *pool)
{
    struct random random = {0};
    *pool = (struct sequence_pool){.forms = calloc(count, sizeof *forms)};
    for (unsigned pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < count; i++) {
            struct test_case one;
            struct insn insn;
            if (!forms[i].lock && generate_bytes(&forms[i], &random, &one, &insn) &&
                is_wanted_category(insn.info.meta.category) && is_general(&insn) == (pass == 0)) {
                pool->forms[pool->count++] = forms[i];
                pool->has_vex |= forms[i].encoding == ENCODE_VEX;
            }
        }
        pool->general = pass == 0 ? pool->count : pool->general;
    }
}

void sequence_pool_fini(struct sequence_pool *pool)
{
    free(pool->forms);
}

/* Does the instruction leave this register alone? (RSP changes by pushes, which is no matter.) */
static bool keeps(const struct insn *insn, unsigned counter)
{
    for (unsigned i = 0; i < insn->info.operand_count; i++) {
        const struct insn_operand *operand = &insn->operands[i];
        if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER &&
            (operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) &&
            ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, operand->reg.value) ==
                ZYDIS_REGISTER_RAX + (ZydisRegister)counter) {
            return false;
        }
    }
    return true;
}

static unsigned put_instruction(const struct form *form, ZydisRegister base, int counter,
                                struct random *random, uint8_t *bytes)
{
    for (unsigned i = 0; i < ATTEMPTS; i++) {
        struct test_case one;
        struct insn insn;
        if (!generate_bytes(form, random, &one, &insn) || !is_wanted(&insn, base) ||
            (counter >= 0 && !keeps(&insn, (unsigned)counter))) {
            continue;
        }
        unsigned length = insn.info.length;
        memcpy(bytes, one.bytes, length);
        if (!has_defined_flags(&insn)) {
            bytes[length++] = 0x39; /* cmp r32, r32 */
            bytes[length++] = 0xc0 | (random_next(random) & 63);
        }
        return length;
    }
    return 0;
}

/* A call and its return; or a call whose return address stays on the stack. */
static unsigned put_call(bool returns, uint8_t *bytes)
{
    static const uint8_t call_jmp_ret[] = {0xe8, 2, 0, 0, 0, 0xeb, 1, 0xc3}, call[] = {0xe8, 0};
    memset(bytes, 0, 5);
    memcpy(bytes, returns ? call_jmp_ret : call, returns ? sizeof call_jmp_ret : sizeof call);
    return returns ? sizeof call_jmp_ret : 5;
}

/* mov counter, imm32 */
static unsigned put_start(unsigned counter, uint8_t rounds, uint8_t *bytes)
{
    const uint8_t code[] = {0x48 | counter >> 3, 0xc7, 0xc0 | (counter & 7), rounds, 0, 0, 0};
    memcpy(bytes, code, sizeof code);
    return sizeof code;
}

/*
 * Counts down and branches back; or leaves when the count is over, and otherwise compares or
 * computes and branches back on that.
 */
static unsigned put_end(unsigned counter, struct random *random, unsigned start, unsigned at,
                        uint8_t *bytes)
{
    enum { SUBTRACT = 5 };
    static const uint8_t opcodes[] = {0x39, 0x85, 0x01, 0x29, 0x21, 0x09, 0x31, 0x81, 0xf7};
    static const uint8_t extensions[] = {7, 0, 5, 4, 1, 6};
    uint64_t r = random_next(random);
    unsigned length = 0;
    uint8_t *leave = NULL;
    bytes[length++] = (r & 1 ? 0x48 : 0x40) | counter >> 3;
    bytes[length++] = 0x83; /* sub counter, 1 */
    bytes[length++] = 0xc0 | SUBTRACT << 3 | (counter & 7);
    bytes[length++] = 1;
    if (r & 6) {
        uint8_t opcode = opcodes[(r >> 8) % sizeof opcodes];
        unsigned rm = (r >> 16 & 15) == counter ? counter ^ 1 : r >> 16 & 15, reg = r >> 20 & 15;
        bool has_immediate = opcode == 0x81 || opcode == 0xf7;
        if (has_immediate) {
            reg = opcode == 0x81 ? extensions[(r >> 20 & 15) % sizeof extensions] : 0;
        }
        bytes[length++] = 0x76; /* jbe: the count is over */
        leave = &bytes[length++];
        bytes[length++] = 0x40 | (r >> 24 & 8) | (reg >> 3) << 2 | rm >> 3;
        bytes[length++] = opcode;
        bytes[length++] = 0xc0 | (reg & 7) << 3 | (rm & 7);
        if (has_immediate) {
            uint32_t immediate = (uint32_t)random_value(random);
            memcpy(bytes + length, &immediate, 4);
            length += 4;
        }
    }
    uint32_t distance = start - (at + length + 6);
    bytes[length++] = 0x0f;
    bytes[length++] = 0x80 | (leave ? r >> 28 & 15 : 5);
    memcpy(bytes + length, &distance, 4);
    length += 4;
    if (leave) {
        *leave = (uint8_t)(bytes + length - (leave + 1));
    }
    return length;
}

void sequence_generate(const struct sequence_pool *pool, struct random *random,
                       struct test_case *test)
{
    if (!(random_next(random) & 3)) {
        stride_generate(pool->has_vex, random, test);
        return;
    }
    unsigned wanted = LENGTH_MIN + random_next(random) % (LENGTH_MAX - LENGTH_MIN + 1);
    unsigned length = 0;
    /* often all operands are near each other: engines may check them together */
    ZydisRegister base = random_next(random) & 1
                             ? ZYDIS_REGISTER_RAX + (ZydisRegister)(random_next(random) & 15)
                             : ZYDIS_REGISTER_NONE;
    /* often a loop: engines may have other code for the rounds after the first */
    int counter = random_next(random) & 1 ? (int)(random_next(random) & 15) : -1;
    counter = counter == RSP ? RBP : counter;
    if (counter >= 0) {
        length = put_start((unsigned)counter, 1 + (random_next(random) & 7), test->bytes);
    }
    unsigned start = length;
    uint8_t *skip = NULL; /* the distance of a conditional branch over the next instruction */
    for (unsigned i = 0; i < wanted || length == start; i++) {
        uint64_t r = random_next(random);
        if (!skip && !(r & 7)) {
            test->bytes[length++] = 0x70 | (r >> 8 & 15);
            skip = &test->bytes[length++];
            *skip = 0;
            continue;
        }
        bool any = !(r >> 16 & 7);
        const struct form *form = &pool->forms[(r >> 24) % (any ? pool->count : pool->general)];
        unsigned size = r >> 20 & 15
                            ? put_instruction(form, base, counter, random, test->bytes + length)
                            : put_call(r >> 12 & 1, test->bytes + length);
        length += size;
        if (skip) {
            *skip = (uint8_t)size;
            skip = NULL;
        }
    }
    if (counter >= 0) {
        length += put_end((unsigned)counter, random, start, length, test->bytes + length);
    }
    test->length = (uint8_t)length;
}

void sequence_state(uint64_t components, struct random *random, struct test_case *test)
{
    struct insn none;
    decode(DECODE_64, (const uint8_t[15]){0x90}, 15, &none);
    generate_state(&none, components, random, test);
    test->offset = CODE_OFFSET;
    test->before.rip = CODE_PAGE + CODE_OFFSET;
    test->before.rflags &= ~(uint64_t)FLAG_AC;
    for (unsigned i = 0; i < 16; i++) {
        uint64_t r = random_next(random);
        uint64_t place = DATA_PAGE + (r >> 8) % 4096;
        if (r >> 40 & 1) { /* near one end of the page */
            place = DATA_PAGE + (r >> 41 & 1 ? 4096 : 0) + (r >> 8) % 256 - 128;
        }
        if (i == RCX ? r & 1 : r & 3) {
            test->before.gpr[i] = i == RCX ? r >> 8 & 63 : r & 4 ? place : place & ~15ull;
        }
    }
}
