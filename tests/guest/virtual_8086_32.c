/*
 * Virtual-8086 mode: entry and exit by IRET, segment arithmetic, sensitive instructions with every
 * IOPL, interrupts and exceptions with their nine-word frames, the I/O permission map, 16-bit
 * addressing, limits of 64 KiB, the virtual interrupt extensions. SDM volume 3, chapter 20.
 */
#include "runtime.h"

enum { LOW = 0x20000 }; /* where the experiments stand */

SNIPPET(arithmetic, ".code16; mov $0x1234, %ax; mov %ax, %ds:(0x10); mov %es:(%di), %bx;"
                    "push %ax; pop %cx; mov %cs, %dx; nop; .code32");
SNIPPET(cli_16, ".code16; cli; .code32");
SNIPPET(pushf_16, ".code16; pushf; pop %ax; .code32");
SNIPPET(popf_16, ".code16; push %ax; popf; pushf; pop %bx; .code32");
SNIPPET(int_16, ".code16; int $0x40; nop; .code32");
SNIPPET(int3_16, ".code16; int3; nop; .code32");
SNIPPET(iret_16, ".code16; iret; .code32");
SNIPPET(hlt_16, ".code16; hlt; .code32");
SNIPPET(in_16, ".code16; in %dx, %al; .code32");
SNIPPET(limit_16, ".code16; mov 0xffff, %ax; .code32");
SNIPPET(limit_stack, ".code16; mov (%bp), %ax; .code32");
SNIPPET(far_16, ".code16; ljmp $0x2100, $0x20; .code32");
SNIPPET(long_offset, ".code16; addr32 movw (%eax), %bx; .code32");
SNIPPET(call_16, ".code16; call 1f; jmp 2f; 1: mov $0x99, %ax; ret; 2: nop; .code32");
SNIPPET(string_16, ".code16; mov $4, %cx; rep movsb; nop; .code32");
SNIPPET(sidt_16, ".code16; sldt %ax; .code32");
SNIPPET(lmsw_16, ".code16; mov %cr0, %eax; .code32");
SNIPPET(load_selector, ".code16; mov $0xfff8, %ax; mov %ax, %ds; mov %ds, %bx; nop; .code32");

static struct context run(const char *code, const char *end, uintptr_t flags,
                          const struct context *initial)
{
    char *to = (char *)LOW;
    for (const char *from = code; from < end + 2; from++) {
        *to++ = *from;
    }
    struct context c;
    for (unsigned i = 0; i < sizeof c / 4; i++) {
        ((uint32_t *)&c)[i] = initial ? ((const uint32_t *)initial)[i] : 0;
    }
    c.ip = 0;
    c.cs = LOW / 16;
    c.ss = 0x3000;
    c.ds = 0x3100;
    c.es = 0x3200;
    c.fs = 0x1111;
    c.gs = 0x2222;
    c.gpr[RSP] = 0x100;
    c.flags = 2 | FLAG_VM | flags;
    context_run(&c);
    return c;
}

static void test_basic(void)
{
    struct context start = {.gpr[RDI] = 6}, c;
    *(uint16_t *)0x32006 = 0x4321;
    c = run(arithmetic, arithmetic_end, 0, &start);
    check("vector", c.vector, UD);
    check("  cs", c.cs, LOW / 16);
    check("  VM in the frame", c.flags & FLAG_VM, FLAG_VM);
    check("  ss", c.ss, 0x3000);
    check("  sp", c.gpr[RSP], 0x100);
    check("  ds", c.ds, 0x3100);
    check("  es", c.es, 0x3200);
    check("  fs", c.fs, 0x1111);
    check("  gs", c.gs, 0x2222);
    check("  store to DS", *(uint16_t *)0x31010, 0x1234);
    check("  load from ES", c.gpr[RBX], 0x4321);
    check("  stack", *(uint16_t *)0x300fe, 0x1234);
    check("  MOV from CS", c.gpr[RDX], LOW / 16);
    uint16_t ds;
    __asm__("mov %%ds, %0" : "=r"(ds));
    check("  data segments of the handler", ds, KERNEL_DATA);
    *(uint16_t *)0x21020 = 0x0b0f;
    c = run(far_16, far_16_end, 0, NULL);
    check("far jump: cs", c.cs, 0x2100);
    c = run(call_16, call_16_end, 0, NULL);
    check("near call", c.gpr[RAX], 0x99);
    c = run(load_selector, load_selector_end, 0, NULL);
    check("any value is a segment", c.gpr[RBX], 0xfff8);
    check("  in the frame", c.ds, 0xfff8);
    *(uint32_t *)0x31000 = 0xaabbccdd;
    c = run(string_16, string_16_end, 0, NULL);
    check("string copy", *(uint32_t *)0x32000, 0xaabbccdd);
    check("  cx", c.gpr[RCX], 0);
    check("  si", c.gpr[RSI], 4);
}

static void test_limits(void)
{
    struct context start = {.gpr[RBP] = 0xffff}, c;
    c = run(limit_16, limit_16_end, 0, NULL);
    check_stop("word at FFFFH", &c, GP, 0, 0);
    c = run(limit_stack, limit_stack_end, 0, &start);
    check_stop("word at FFFFH of the stack", &c, SS, 0, 0);
    start.gpr[RAX] = 0x10000;
    c = run(long_offset, long_offset_end, 0, &start);
    check_stop("32-bit offset beyond 64 KiB", &c, GP, 0, 0);
    start.gpr[RAX] = 0xfffe;
    c = run(long_offset, long_offset_end, 0, &start);
    check("32-bit offset inside", c.vector, UD);
}

static void test_sensitive(void)
{
    static const struct {
        const char *name, *code, *end;
        bool by_iopl; /* #GP only below IOPL 3 */
    } cases[] = {
        {"CLI", cli_16, cli_16_end, true},        {"PUSHF", pushf_16, pushf_16_end, true},
        {"POPF", popf_16 + 1, popf_16_end, true}, {"INT n", int_16, int_16_end, true},
        {"HLT", hlt_16, hlt_16_end, false},       {"IN", in_16, in_16_end, false},
        {"MOV CR0", lmsw_16, lmsw_16_end, false},
    };
    struct context start = {.gpr[RDX] = 0x80};
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (unsigned iopl = 0; iopl < 4; iopl++) {
            struct context c = run(cases[i].code, cases[i].end, iopl << 12, &start);
            print(cases[i].name);
            print(": ");
            if (iopl == 3 && cases[i].by_iopl) {
                check("allowed", c.vector, cases[i].code == int_16 ? 0x40 : UD);
            } else {
                check_stop("refused", &c, GP, 0, 0);
            }
        }
    }
    struct context c = run(sidt_16, sidt_16_end, FLAG_IOPL3, NULL);
    check_stop("SLDT is no instruction here", &c, UD, NO_ERROR, 0);
    c = run(int3_16, int3_16_end, 0, NULL);
    check_stop("INT3 is not sensitive to IOPL", &c, BP, NO_ERROR, 1);
    c = run(int_16, int_16_end, FLAG_IOPL3, NULL);
    check_stop("INT n with IOPL 3", &c, 0x40, NO_ERROR, 2);
    start.gpr[RAX] = FLAG_IF | FLAG_CF | 2;
    c = run(popf_16, popf_16_end, FLAG_IOPL3, &start);
    check("POPF with IOPL 3 changes IF, not IOPL", c.gpr[RBX] & 0xffff,
          FLAG_IF | FLAG_CF | 2 | FLAG_IOPL3);
    check("  VM stays", c.flags & FLAG_VM, FLAG_VM);
    /* IRET inside stays in virtual-8086 mode */
    uint16_t *stack = (uint16_t *)0x30100;
    stack[0] = 0x30, stack[1] = 0x2100, stack[2] = FLAG_ZF;
    *(uint16_t *)0x21030 = 0x0b0f;
    c = run(iret_16, iret_16_end, FLAG_IOPL3, NULL);
    check_stop("IRET", &c, UD, NO_ERROR, 0x30);
    check("  cs", c.cs, 0x2100);
    check("  flags", c.flags & ~FLAG_RF, FLAG_VM | FLAG_IOPL3 | FLAG_ZF | 2);
    check("  sp", c.gpr[RSP], 0x106);
}

struct task {
    uint32_t words[25];
    uint16_t trap, map;
};
extern struct task task_segment;

static void test_io(void)
{
    struct context start = {.gpr[RDX] = 0x80};
    uint8_t *bits = (uint8_t *)&task_segment + task_segment.map;
    bits[0x80 / 8] = 0xfe;
    struct context c = run(in_16, in_16_end, 0, &start);
    check("the permission map counts, not IOPL", c.vector, UD);
    bits[0x80 / 8] = 0xff;
    c = run(in_16, in_16_end, FLAG_IOPL3, &start);
    check_stop("  even with IOPL 3", &c, GP, 0, 0);
}

static void test_extensions(void)
{
    if (!(cpuid(1, 0).edx & 2)) {
        skip("virtual-8086 mode extensions", "not offered");
        return;
    }
    write_cr4(read_cr4() | 1);
    struct context c = run(cli_16, cli_16_end, 0x80000, NULL);
    check("VME: CLI clears VIF", c.vector == UD && !(c.flags & 0x80000), 1);
    c = run(pushf_16, pushf_16_end, 0x80000, NULL);
    check("VME: PUSHF shows VIF as IF, IOPL 3", c.gpr[RAX] & 0xffff, 0x3202);
    write_cr4(read_cr4() & ~1ul);
}

void test_main(void)
{
    test_basic();
    test_limits();
    test_sensitive();
    test_io();
    test_extensions();
}
