/*
 * x87, SSE and AVX: unmasked exceptions (#MF, #XM) with exact places and pointers, masked results,
 * control words, FXSAVE images, MXCSR rules, XSAVE in all its forms where offered, lazy switching
 * by CR0.TS, registers that survive faults. SDM volume 1, chapters 8, 11 and 13.
 */
#include "runtime.h"

SNIPPET(x87_divide, "fninit; fldcw (%rdi); fld1; fldz; fdivrp; nop; fwait; nop");
SNIPPET(x87_divide_silent, "fninit; fldcw (%rdi); fld1; fldz; fdivrp; fnstsw %ax; mov %eax, %ebx;"
                           "fnclex; fwait; fnstsw %ax; nop");
SNIPPET(x87_next, "fninit; fldcw (%rdi); fld1; fldz; fdivrp; fnstsw %ax; fld1");
SNIPPET(x87_next_hole, "fninit; fldcw (%rdi); fld1; fldz; fdivrp; fldl (%r8)");
SNIPPET(mmx_next_hole, "fninit; fldcw (%rdi); fld1; fldz; fdivrp; paddb (%r8), %mm2");
SNIPPET(x87_hole, "fninit; fldl (%r8)");
SNIPPET(sse_hole, "addps (%r8), %xmm1");
SNIPPET(x87_pointers, "fninit; fldl (%rdi); fnstenv (%rsi)");
/* The last x87 instruction divides by zero, unmasked: FOP, FIP and FDP in both kinds of image. */
SNIPPET(x87_pending, "fninit; fldcw (%rdi); fld1; fdivl (%r8); fxsave64 256(%rsi); fnstenv (%rsi);"
                     "nop");
SNIPPET(x87_pending_saved, "fninit; fldcw (%rdi); fld1; fdivl (%r8); mov $0x1234, %eax; cpuid;"
                           "fnsave (%rsi); nop");
SNIPPET(sse_divide, "ldmxcsr (%rdi); movaps (%rsi), %xmm1; xorps %xmm2, %xmm2;"
                    "divps %xmm2, %xmm1; nop");
SNIPPET(sse_masked, "ldmxcsr (%rdi); movaps (%rsi), %xmm1; xorps %xmm2, %xmm2;"
                    "divps %xmm2, %xmm1; stmxcsr (%rdi); movaps %xmm1, (%rsi)");
SNIPPET(bad_mxcsr, "ldmxcsr (%rdi)");
SNIPPET(fxsave_image, "fninit; fldpi; movups (%rsi), %xmm3; fxsave64 (%rdi); fninit;"
                      "xorps %xmm3, %xmm3; fxrstor64 (%rdi); movups %xmm3, (%rsi); fstpt 16(%rsi)");
SNIPPET(fxsave_misaligned, "fxsave 8(%rdi)");
SNIPPET(xsave_image, "xsave (%rdi)");
SNIPPET(xrstor_image, "xrstor (%rdi)");
SNIPPET(xgetbv_any, "xgetbv");
SNIPPET(xsetbv_any, "xsetbv");
SNIPPET(avx_move, "vmovups (%rdi), %ymm5; vmovups %ymm5, 32(%rdi)");
SNIPPET(avx_zero, "vmovups (%rdi), %ymm5; movaps %xmm5, %xmm6; vaddps %xmm5, %xmm5, %xmm5;"
                  "vmovups %ymm5, 32(%rdi)");
SNIPPET(xmm_load, "movups (%rdi), %xmm9; movups (%rsi), %xmm10");
SNIPPET(xmm_store, "movups %xmm9, (%rdi)");
SNIPPET(mmx, "fninit; movq (%rdi), %mm3; paddw %mm3, %mm3; movq %mm3, (%rdi); fnstenv (%rsi);"
             "emms; fnstenv 32(%rsi)");

static uint8_t area[4096] __attribute__((aligned(4096)));
static uint32_t word[16] __attribute__((aligned(64)));

#define HOLE 0x80000000ul /* nothing is mapped there */

static struct context run_at(const char *code, uintptr_t operand)
{
    struct context c;
    context_init(&c, code);
    c.gpr[RDI] = (uintptr_t)word;
    c.gpr[RSI] = (uintptr_t)area;
    c.gpr[R8] = operand;
    context_run(&c);
    return c;
}

static struct context run(const char *code)
{
    return run_at(code, HOLE);
}

/* What a #PF of the operand comes behind. SDM volume 3, table 6-2. */
static void test_fault_priority(void)
{
    struct context c = run(x87_next_hole);
    check_stop("#MF before #PF", &c, MF, NO_ERROR, (uintptr_t)x87_next_hole_end - 3);
    c = run(mmx_next_hole);
    check_stop("#MF before #PF, MMX", &c, MF, NO_ERROR, (uintptr_t)mmx_next_hole_end - 4);
    c = run(x87_hole);
    check_stop("#PF with no #MF pending", &c, PF, 0, (uintptr_t)x87_hole_end - 3);
    c = run_at(sse_hole, HOLE + 8);
    check_stop("misalignment before #PF", &c, GP, 0, (uintptr_t)sse_hole);
    c = run_at(sse_hole, HOLE);
    check_stop("#PF if aligned", &c, PF, 0, (uintptr_t)sse_hole);
}

/*
 * What a handler of #MF relies on: SDM volume 1, 8.1.8 and 8.1.9. (Without an exception pending
 * real CPUs differ, and so do their images: no guest can rely on those.)
 */
static void test_pointers(void)
{
    static const double zero __attribute__((aligned(64)));
    const uint32_t *environment = (uint32_t *)area;
    word[0] = 0x37f & ~4u;
    struct context c = run_at(x87_pending, (uintptr_t)&zero);
    check("pending #MF", c.vector, UD);
    uintptr_t divide = (uintptr_t)x87_pending + 6; /* fninit, fldcw and fld1 are 2 bytes each */
    check("FNSTENV: FIP", environment[3], (uint32_t)divide);
    check("FNSTENV: FCS and FOP", environment[4], 0x430 << 16);
    check("FNSTENV: FDP", environment[5], (uint32_t)(uintptr_t)&zero);
    check("FNSTENV: FDS", environment[6] & 0xffff, 0);
    check("FXSAVE64: FOP", environment[65] >> 16, 0x430);
    check("FXSAVE64: FIP", *(uint64_t *)(area + 256 + 8), divide);
    check("FXSAVE64: FDP", *(uint64_t *)(area + 256 + 16), (uintptr_t)&zero);
    c = run_at(x87_pending_saved, (uintptr_t)&zero);
    check("FNSAVE: FIP", environment[3], (uint32_t)(uintptr_t)x87_pending_saved + 6);
    check("FNSAVE: FCS and FOP", environment[4], 0x430 << 16);
    check("FNSAVE: FDP", environment[5], (uint32_t)(uintptr_t)&zero);
}

static void test_x87(void)
{
    word[0] = 0x37f & ~4u; /* zero divide unmasked */
    struct context c = run(x87_divide);
    check_stop("#MF at FWAIT", &c, MF, NO_ERROR, (uintptr_t)x87_divide_end - 2);
    c = run(x87_divide_silent);
    check_stop("FNCLEX clears it", &c, UD, NO_ERROR, (uintptr_t)x87_divide_silent_end);
    check("  status before", c.gpr[RBX] & 0x80ff, 0x8084);
    check("  status after", c.gpr[RAX] & 0x80ff, 0);
    c = run(x87_next);
    check_stop("#MF at the next x87 instruction", &c, MF, NO_ERROR, (uintptr_t)x87_next_end - 2);
    test_fault_priority();
    *(double *)word = 0;
    word[1] = 0x3ff00000;
    c = run(x87_pointers);
    const uint32_t *environment = (uint32_t *)area;
    check("FNSTENV: control", environment[0] & 0xffff, 0x37f);
    check("FNSTENV: tags", environment[2] & 0xffff, 0x3fff);
    check("FNSTENV masks all", c.vector, UD);
    check("FNSTENV: FOP without an exception", environment[4], 0);
    check("FNSTENV: FDP without an exception", environment[5], 0);
    test_pointers();
    word[0] = 0x00018001, word[1] = 0x7fff0002;
    c = run(mmx);
    check("PADDW", (uint64_t)word[1] << 32 | word[0], 0xfffe000400020002);
    uint32_t tags = environment[2];
    check("MMX: no tag is empty", tags & tags >> 1 & 0x5555, 0);
    check("EMMS: all tags empty", environment[10] & 0xffff, 0xffff);
}

static void test_sse(void)
{
    uint32_t *values = (uint32_t *)area;
    values[0] = 0x3f800000, values[1] = 0, values[2] = 0xbf800000, values[3] = 0x3f800000;
    word[0] = 0x1f80;
    struct context c = run(sse_masked);
    check("masked divide", c.vector, UD);
    check("  mxcsr: ZE, IE", word[0], 0x1f85);
    check("  infinity", values[0], 0x7f800000);
    check("  NaN", values[1], 0xffc00000);
    check("  minus infinity", values[2], 0xff800000);
    values[0] = values[1] = values[2] = values[3] = 0x3f800000;
    word[0] = 0x1f80 & ~0x200u;
    c = run(sse_divide);
    check_stop("#XM", &c, XM, NO_ERROR, (uintptr_t)sse_divide_end - 4);
    uint32_t mxcsr, xmm1[4];
    __asm__ volatile("stmxcsr %0; movups %%xmm1, %1" : "=m"(mxcsr), "=m"(xmm1));
    check("  mxcsr", mxcsr, 0x1d84);
    check("  the destination is untouched", xmm1[0], 0x3f800000);
    write_cr4(read_cr4() & ~0x400ul);
    c = run(sse_divide);
    check_stop("#UD without OSXMMEXCPT", &c, UD, NO_ERROR, (uintptr_t)sse_divide_end - 4);
    write_cr4(read_cr4() | 0x400);
    word[0] = 0x1f80;
    __asm__ volatile("ldmxcsr %0" ::"m"(word[0]));
    for (unsigned bit = 16; bit < 32; bit++) { /* 17: AMD's MM, which no model offers */
        word[0] = 1u << bit;
        c = run(bad_mxcsr);
        check_stop("reserved MXCSR bits", &c, GP, 0, (uintptr_t)bad_mxcsr);
    }
}

static void test_fxsave(void)
{
    for (int i = 0; i < 16; i++) {
        area[i] = (uint8_t)(i + 1);
    }
    struct context c;
    context_init(&c, fxsave_image);
    c.gpr[RDI] = (uintptr_t)area + 1024;
    c.gpr[RSI] = (uintptr_t)area;
    context_run(&c);
    check("FXSAVE and back", c.vector, UD);
    unsigned wrong = 0;
    for (int i = 0; i < 16; i++) {
        wrong += area[i] != i + 1;
    }
    check("  xmm3", wrong, 0);
    check("  pi", *(uint64_t *)(area + 16), 0xc90fdaa22168c235);
    check("  image: abridged tags", area[1024 + 4], 0x80);
    check("  image: control", *(uint16_t *)(area + 1024), 0x37f);
    check("  image: mxcsr", *(uint32_t *)(area + 1024 + 24), 0x1f80);
    check("  image: xmm3", area[1024 + 160 + 3 * 16 + 15], 16);
    c = run(fxsave_misaligned);
    check_stop("FXSAVE misaligned", &c, GP, 0, (uintptr_t)fxsave_misaligned);
}

/* Lazy switching, as systems did it: the registers stay through #NM and other faults. */
static void test_survival(void)
{
    for (int i = 0; i < 16; i++) {
        area[i] = (uint8_t)(0xa0 + i);
    }
    struct context c;
    context_init(&c, xmm_load);
    c.gpr[RDI] = (uintptr_t)area;
    c.gpr[RSI] = HOLE;
    context_run(&c);
    check("fault behind a load", c.vector, PF);
    write_cr0(read_cr0() | 8);
    context_init(&c, xmm_store);
    c.gpr[RDI] = (uintptr_t)area + 64;
    context_run(&c);
    check_stop("#NM", &c, NM, NO_ERROR, (uintptr_t)xmm_store);
    __asm__ volatile("clts");
    context_run(&c);
    check("after CLTS", c.vector, UD);
    unsigned wrong = 0;
    for (int i = 0; i < 16; i++) {
        wrong += area[64 + i] != 0xa0 + i;
    }
    check("  xmm9 survived", wrong, 0);
}

static void xsave_checks(uint64_t offered)
{
    struct context c;
    write_cr4(read_cr4() | 1 << 18);
    check("CPUID shows OSXSAVE", cpuid(1, 0).ecx >> 27 & 1, 1);
    context_init(&c, xgetbv_any);
    context_run(&c);
    check("XCR0 after reset", c.gpr[RAX], 1);
    const uint64_t refused[] = {0, 2, 4, 5, 1ull << 62 | 1};
    for (unsigned i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        context_init(&c, xsetbv_any);
        c.gpr[RAX] = (uint32_t)refused[i];
        c.gpr[RDX] = refused[i] >> 32;
        context_run(&c);
        check_stop("XSETBV refuses", &c, GP, 0, (uintptr_t)xsetbv_any);
    }
    uint64_t wanted = offered & 7;
    context_init(&c, xsetbv_any);
    c.gpr[RAX] = wanted;
    context_run(&c);
    check("XSETBV", c.vector, UD);
    uint32_t size = cpuid(13, 0).ebx;
    check("XSAVE size for XCR0", size, wanted & 4 ? 832 : 576);
    __asm__ volatile("fninit");
    for (int i = 0; i < 4096; i++) {
        area[i] = 0xee;
    }
    for (int i = 512; i < 576; i++) {
        area[1024 + i] = 0;
    }
    context_init(&c, xsave_image);
    c.gpr[RDI] = (uintptr_t)area + 1024;
    c.gpr[RAX] = 3;
    context_run(&c);
    check("XSAVE", c.vector, UD);
    check("  XSTATE_BV has SSE", *(uint64_t *)(area + 1024 + 512) & 2, 2);
    check("  reserved bytes stay", area[1024 + 464], 0xee);
    check("  nothing behind", area[1024 + 576], 0xee);
    *(uint64_t *)(area + 1024 + 512) = 1ull << 62;
    context_init(&c, xrstor_image);
    c.gpr[RDI] = (uintptr_t)area + 1024;
    c.gpr[RAX] = 3;
    context_run(&c);
    check_stop("XRSTOR: unknown component", &c, GP, 0, (uintptr_t)xrstor_image);
    *(uint64_t *)(area + 1024 + 512) = 0;
    *(uint32_t *)(area + 1024 + 24) = 0x1f80;
    context_init(&c, xrstor_image);
    c.gpr[RDI] = (uintptr_t)area + 1024;
    c.gpr[RAX] = 3;
    context_run(&c);
    check("XRSTOR: initial", c.vector, UD);
    context_init(&c, xmm_store);
    c.gpr[RDI] = (uintptr_t)area;
    context_run(&c);
    check("  xmm9 is zero", *(uint64_t *)area | *(uint64_t *)(area + 8), 0);
    context_init(&c, xrstor_image);
    c.gpr[RDI] = (uintptr_t)area + 1025;
    context_run(&c);
    check_stop("XRSTOR misaligned", &c, GP, 0, (uintptr_t)xrstor_image);
}

static void avx_checks(void)
{
    for (int i = 0; i < 32; i++) {
        area[i] = (uint8_t)i;
    }
    struct context c;
    context_init(&c, avx_move);
    c.gpr[RDI] = (uintptr_t)area;
    context_run(&c);
    check("VMOVUPS", c.vector, UD);
    check("  upper half", area[32 + 31], 31);
    context_init(&c, avx_zero);
    c.gpr[RDI] = (uintptr_t)area;
    context_run(&c);
    check("VEX.128 clears the upper half", *(uint64_t *)(area + 48 + 8), 0);
    context_init(&c, xsetbv_any);
    c.gpr[RAX] = 3;
    context_run(&c);
    context_init(&c, avx_move);
    c.gpr[RDI] = (uintptr_t)area;
    context_run(&c);
    check_stop("AVX without XCR0.AVX", &c, UD, NO_ERROR, (uintptr_t)avx_move);
}

void test_main(void)
{
    test_x87();
    test_sse();
    test_fxsave();
    test_survival();
    struct context c;
    if (!(cpuid(1, 0).ecx & 1 << 26)) {
        context_init(&c, xgetbv_any);
        context_run(&c);
        check("XGETBV where XSAVE is not offered", c.vector, UD);
        skip("XSAVE", "not offered");
        return;
    }
    context_init(&c, xgetbv_any);
    context_run(&c);
    check("XGETBV without CR4.OSXSAVE", c.vector, UD);
    uint64_t offered = cpuid(13, 0).eax;
    xsave_checks(offered);
    if (offered & 4) {
        avx_checks();
    } else {
        skip("AVX", "not offered");
    }
}
