/*
 * What must agree between the real CPU and an engine. Flags that the manual leaves undefined are
 * left out, and of a #PF above the user's half the host's kernel hides the P bit.
 */
#include "tests/differential/differential.h"

#include <stdio.h>
#include <string.h>

enum { XSTATE_BV = 512, PF_P = 1 };

/* A component that is not in XSTATE_BV has its initial value. */
static void normalize(uint8_t *area)
{
    uint64_t present;
    memcpy(&present, area + XSTATE_BV, 8);
    for (unsigned n = COMPONENT_YMM; n <= COMPONENT_ZMM16; n++) {
        struct xsave_component part = xsave_component(n);
        if (!(present >> n & 1)) {
            memset(area + part.offset, 0, part.size);
        }
    }
    if (!(present & XCR0_SSE)) {
        memset(area + 160, 0, 256);
    }
    if (!(present & 1)) {
        memset(area, 0, 24);
        memset(area + 32, 0, 128);
        area[0] = 0x7f, area[1] = 3;
    }
    for (unsigned i = 0; i < 8; i++) { /* 10 of 16 bytes count */
        memset(area + 32 + 16 * i + 10, 0, 6);
    }
}

static bool is_x87(const struct insn *insn)
{
    return insn->info.meta.isa_ext == ZYDIS_ISA_EXT_X87;
}

/*
 * Operands that the CPU handles in pieces: which byte beyond the page it names in CR2 is its own
 * choice (SDM volume 3, 4.7 promises an address of the access only).
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
               insn->info.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
    }
}

/*
 * Real CPUs let two things of an instruction that faults on memory be seen: the switch of the x87
 * stack to MMX, and the flags of a conversion whose store faults (SDM volume 2, VCVTPS2PH).
 */
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

struct report {
    bool differs, print;
};

static void differ(struct report *report, const char *what, uint64_t native, uint64_t engine)
{
    report->differs = true;
    if (report->print) {
        printf("    %s: native %llx, engine %llx\n", what, (unsigned long long)native,
               (unsigned long long)engine);
    }
}

static void compare_bytes(struct report *report, const char *what, const uint8_t *native,
                          const uint8_t *engine, unsigned from, unsigned size)
{
    for (unsigned i = 0; i < size; i++) {
        if (native[i] != engine[i]) {
            char text[48];
            unsigned at = i & ~7u;
            uint64_t a = 0, b = 0;
            unsigned left = size - at < 8 ? size - at : 8;
            memcpy(&a, native + at, left);
            memcpy(&b, engine + at, left);
            snprintf(text, sizeof text, "%s+%u", what, from + at);
            differ(report, text, a, b);
            i = at + 7;
        }
    }
}

static uint64_t undefined_flags(const struct insn *insn, const struct test_case *test)
{
    const ZydisAccessedFlags *flags = insn->info.cpu_flags;
    uint64_t undefined = flags ? flags->undefined : 0;
    (void)test;
    return undefined | FLAG_RF;
}

static void compare_vectors(struct report *report, const struct insn *insn,
                            const struct outcome *native, const struct outcome *engine,
                            uint64_t components)
{
    uint8_t a[XSAVE_AREA_SIZE], b[XSAVE_AREA_SIZE];
    memcpy(a, native->after.xsave, sizeof a);
    memcpy(b, engine->after.xsave, sizeof b);
    normalize(a);
    normalize(b);
    if (native->vector == EXCEPTION_PF && is_mmx(insn)) {
        memcpy(b, a, 24);
        memcpy(b + 32, a + 32, 128);
    }
    if (native->vector == EXCEPTION_PF && insn->info.mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH) {
        memcpy(b + 24, a + 24, 4);
    }
    compare_bytes(report, "x87", a, b, 0, 5);
    if (!is_x87(insn)) { /* the last-instruction fields are compared by a guest test */
        compare_bytes(report, "x87", a + 6, b + 6, 6, 18);
    }
    compare_bytes(report, "mxcsr", a + 24, b + 24, 0, 4);
    compare_bytes(report, "st", a + 32, b + 32, 0, 128);
    compare_bytes(report, "xmm", a + 160, b + 160, 0, 256);
    static const char *const names[] = {[COMPONENT_YMM] = "ymm",
                                        [COMPONENT_OPMASK] = "k",
                                        [COMPONENT_ZMM] = "zmm",
                                        [COMPONENT_ZMM16] = "zmm16"};
    for (unsigned n = COMPONENT_YMM; n <= COMPONENT_ZMM16; n++) {
        struct xsave_component part = xsave_component(n);
        if (components >> n & 1) {
            compare_bytes(report, names[n], a + part.offset, b + part.offset, 0, part.size);
        }
    }
}

bool compare(const struct insn *insn, const struct test_case *test, const struct outcome *native,
             const struct outcome *engine, uint64_t components, bool print)
{
    struct report report = {.print = print};
    if (native->vector != engine->vector) {
        differ(&report, "vector", native->vector, engine->vector);
        return true;
    }
    bool completed = native->vector == EXCEPTION_BP;
    if (native->vector == EXCEPTION_PF) {
        uint64_t hidden = native->cr2 >> 47 ? PF_P : 0;
        if ((native->error ^ engine->error) & ~hidden) {
            differ(&report, "error", native->error, engine->error);
        }
        uint64_t precision = is_in_pieces(insn) ? ~0xfffull : ~0ull;
        if ((native->cr2 ^ engine->cr2) & precision) {
            differ(&report, "cr2", native->cr2, engine->cr2);
        }
    } else if (native->vector == EXCEPTION_GP || native->vector == EXCEPTION_SS) {
        if (native->error != engine->error) {
            differ(&report, "error", native->error, engine->error);
        }
    }
    if (native->after.rip != engine->after.rip) {
        differ(&report, "rip", native->after.rip, engine->after.rip);
    }
    uint64_t ignored = completed ? undefined_flags(insn, test) : FLAG_RF;
    if ((native->after.rflags ^ engine->after.rflags) & ~ignored) {
        differ(&report, "rflags", native->after.rflags & ~ignored, engine->after.rflags & ~ignored);
    }
    for (unsigned i = 0; i < 16; i++) {
        if (native->after.gpr[i] != engine->after.gpr[i]) {
            char name[8];
            snprintf(name, sizeof name, "gpr%u", i);
            differ(&report, name, native->after.gpr[i], engine->after.gpr[i]);
        }
    }
    compare_bytes(&report, "memory", native->after.data, engine->after.data, 0, 4096);
    compare_vectors(&report, insn, native, engine, components);
    return report.differs;
}
