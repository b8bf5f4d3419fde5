/*
 * What must agree between the real CPU and an engine: everything but what model_specific.c knows.
 */
#include "tests/differential/differential.h"

#include <stdio.h>
#include <string.h>

enum { XSTATE_BV = 512 };

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
    bool same = !memcmp(native, engine, size);
    for (unsigned i = 0; !same && i < size; i++) {
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

static void compare_vectors(struct report *report, const uint8_t *a, const uint8_t *b,
                            uint64_t components)
{
    static const char *const names[] = {[COMPONENT_YMM] = "ymm",
                                        [COMPONENT_OPMASK] = "k",
                                        [COMPONENT_ZMM] = "zmm",
                                        [COMPONENT_ZMM16] = "zmm16"};
    compare_bytes(report, "x87", a, b, 0, 24);
    compare_bytes(report, "mxcsr", a + 24, b + 24, 0, 4);
    compare_bytes(report, "st", a + 32, b + 32, 0, 128);
    compare_bytes(report, "xmm", a + 160, b + 160, 0, 256);
    for (unsigned n = COMPONENT_YMM; n <= COMPONENT_ZMM16; n++) {
        struct xsave_component part = xsave_component(n);
        if (components >> n & 1) {
            compare_bytes(report, names[n], a + part.offset, b + part.offset, 0, part.size);
        }
    }
}

static void compare_exceptions(struct report *report, const struct outcome *native,
                               const struct outcome *engine)
{
    bool has_error = native->vector == EXCEPTION_PF || native->vector == EXCEPTION_GP ||
                     native->vector == EXCEPTION_SS;
    if (has_error && native->error != engine->error) {
        differ(report, "error", native->error, engine->error);
    }
    if (native->vector == EXCEPTION_PF && native->cr2 != engine->cr2) {
        differ(report, "cr2", native->cr2, engine->cr2);
    }
}

bool compare(const struct insn *insn, const struct test_case *test, const struct outcome *native,
             const struct outcome *engine, uint64_t components, bool print)
{
    struct report report = {.print = print};
    struct outcome a = *native, b = *engine;
    if (a.vector != b.vector) {
        differ(&report, "vector", a.vector, b.vector);
        return true;
    }
    normalize(a.after.xsave);
    normalize(b.after.xsave);
    take_over_model_specific(insn, test, &a, &b);
    compare_exceptions(&report, &a, &b);
    if (a.after.rip != b.after.rip) {
        differ(&report, "rip", a.after.rip, b.after.rip);
    }
    if (a.after.rflags != b.after.rflags) {
        differ(&report, "rflags", a.after.rflags, b.after.rflags);
    }
    for (unsigned i = 0; i < 16; i++) {
        if (a.after.gpr[i] != b.after.gpr[i]) {
            char name[8];
            snprintf(name, sizeof name, "gpr%u", i);
            differ(&report, name, a.after.gpr[i], b.after.gpr[i]);
        }
    }
    compare_bytes(&report, "memory", a.after.data, b.after.data, 0, sizeof a.after.data);
    compare_vectors(&report, a.after.xsave, b.after.xsave, components);
    return report.differs;
}
