/*
 * Interrupts and their windows: STI and MOV SS shadows, HLT, priority, PIC and PIT, the local
 * APIC's timer and self-interrupts, NMI and its blocking, POPF and IRET that open the window.
 * SDM volume 3, 6.8 and 10.
 */
#include "runtime.h"

enum {
    PIC1 = 0x20,
    PIC2 = 0xa0,
    BASE1 = 0x40,
    BASE2 = 0x48,
    PIT_DATA = 0x40,
    PIT_MODE = 0x43,
    SELF_VECTOR = 0x61,
    TIMER_VECTOR = 0x62,
    HIGH_VECTOR = 0xe3,
};
#define APIC(offset) (*(volatile uint32_t *)(0xfee00000ul + (offset)))

SNIPPET(sti_shadow, "sti; nop; nop; nop; cli");
SNIPPET(sti_cli, "sti; cli; nop; nop");
SNIPPET(sti_sti, "sti; sti; nop; cli");
SNIPPET(sti_branch, "mov $2, %ecx; 1: dec %ecx; jnz 1b; sti; jz 2f; nop; 2: jmp 2b");
SNIPPET(sti_call, "mov $2, %ecx; 1: dec %ecx; jnz 1b; sti; call 2f; nop; 2: jmp 2b");
SNIPPET(mov_ss, "mov %ss, %eax; sti; mov %eax, %ss; nop; nop; cli");
SNIPPET(popf_window, "pushq $0x202; popfq; nop; nop; cli");
SNIPPET(sti_hlt, "sti; hlt; nop; cli");
SNIPPET(wait_loop, "sti; 1: jmp 1b");
SNIPPET(wait_count, "sti; 1: inc %rax; cmp $-1, %rax; jne 1b");
SNIPPET(call_back, "sti; call 1f; 1: pop %rax; call 1b");
SNIPPET(call_back_jump, "sti; jmp 2f; 1: lea 8(%rsp), %rsp; jmp 2f; nop; 2: call 1b");
SNIPPET(call_there, "lea 1f(%rip), %rcx; sti; call 1f; 1: pop %rax; call *%rcx");
SNIPPET(jump_there, "lea 1f(%rip), %rcx; sti; 1: jmp *%rcx");
SNIPPET(return_there, "lea 1f(%rip), %rcx; sti; 1: push %rcx; ret");
SNIPPET(count_down, "sti; 1: mov $2, %ecx; 2: loop 2b; jrcxz 1b");
SNIPPET(iret_window, "mov %rsp, %rax; pushq $0x10; push %rax; pushq $0x202; pushq $8;"
                     "lea 1f(%rip), %rax; push %rax; iretq; 1: nop; nop; cli");
SNIPPET(send_nmi, "movl $0x400, 0x300(%rdi); 1: jmp 1b");
SNIPPET(nops, "nop; nop; nop; nop");

static void pic_setup(uint8_t mask1)
{
    out8(PIC1, 0x11), out8(PIC1 + 1, BASE1), out8(PIC1 + 1, 4), out8(PIC1 + 1, 1);
    out8(PIC2, 0x11), out8(PIC2 + 1, BASE2), out8(PIC2 + 1, 2), out8(PIC2 + 1, 1);
    out8(PIC1 + 1, mask1), out8(PIC2 + 1, 0xff);
}

static void self_interrupt(uint8_t vector)
{
    APIC(0x300) = 0x44000u | vector; /* shorthand: self */
    while (APIC(0x300) & 0x1000) {
    }
}

static void end_of_interrupt(void)
{
    APIC(0xb0) = 0;
}

static struct context run(const char *code, uintptr_t flags)
{
    struct context c;
    context_init(&c, code);
    c.flags |= flags;
    context_run(&c);
    return c;
}

static void window(const char *name, const char *code, uintptr_t flags, const char *stop)
{
    self_interrupt(SELF_VECTOR);
    struct context c = run(code, flags);
    check_stop(name, &c, SELF_VECTOR, NO_ERROR, (uintptr_t)stop);
    check("  IF in the frame", c.flags & FLAG_IF, FLAG_IF);
    end_of_interrupt();
}

static void test_windows(void)
{
    APIC(0xf0) = 0x1ff; /* enable, spurious vector FFH */
    APIC(0x80) = 0;
    window("IF set at once", nops, FLAG_IF, nops);
    window("STI: one more instruction", sti_shadow, 0, sti_shadow + 2);
    window("STI, STI: the second has no shadow", sti_sti, 0, sti_sti + 2);
    for (int i = 0; i < 3; i++) { /* also where a translator has linked the code already */
        window("STI: the one more instruction branches", sti_branch, 0, sti_branch_end - 2);
        window("STI: the one more instruction calls", sti_call, 0, sti_call_end - 2);
    }
    window("POPF has no shadow", popf_window, 0, popf_window + 6);
    window("IRET has no shadow", iret_window, 0, iret_window_end - 3);
    window("STI, HLT: behind HLT", sti_hlt, 0, sti_hlt + 2);
    self_interrupt(SELF_VECTOR);
    struct context c = run(sti_cli, 0);
    check_stop("STI, CLI: never", &c, UD, NO_ERROR, (uintptr_t)sti_cli_end);
    c = run(nops, 0);
    check_stop("IF clear: pending", &c, UD, NO_ERROR, (uintptr_t)nops_end);
    /* Of two shadows in a row only the first is sure to count (SDM volume 2, STI). */
    self_interrupt(SELF_VECTOR);
    c = run(mov_ss, 0);
    check("STI, MOV SS",
          c.vector == SELF_VECTOR &&
              (c.ip == (uintptr_t)mov_ss + 5 || c.ip == (uintptr_t)mov_ss + 6),
          1);
    end_of_interrupt();
}

static void test_priority(void)
{
    self_interrupt(SELF_VECTOR);
    self_interrupt(HIGH_VECTOR);
    struct context c = run(nops, FLAG_IF);
    check("the higher vector first", c.vector, HIGH_VECTOR);
    c = run(nops, FLAG_IF);
    check("the lower one waits for EOI", c.vector, UD);
    check("IRR", APIC(0x200 + 0x30) >> 1 & 1, 1);
    check("ISR", APIC(0x100 + 0x70) >> 3 & 1, 1);
    end_of_interrupt();
    c = run(nops, FLAG_IF);
    check("the lower one then", c.vector, SELF_VECTOR);
    end_of_interrupt();
    __asm__ volatile("mov %0, %%cr8" ::"r"(6ul));
    self_interrupt(SELF_VECTOR);
    c = run(nops, FLAG_IF);
    check("CR8 holds it back", c.vector, UD);
    check("CR8 is the TPR", APIC(0x80), 0x60);
    __asm__ volatile("mov %0, %%cr8" ::"r"(5ul));
    c = run(nops, FLAG_IF);
    check("CR8 lets it through", c.vector, SELF_VECTOR);
    end_of_interrupt();
    __asm__ volatile("mov %0, %%cr8" ::"r"(0ul));
}

/* Every way to go around in circles. */
static void test_loops(void)
{
    static const struct {
        const char *name, *code;
    } loops[] = {
        {"calls backwards", call_back}, {"a call backwards, a jump onwards", call_back_jump},
        {"indirect calls", call_there}, {"indirect jumps", jump_there},
        {"returns", return_there},      {"LOOP and JRCXZ", count_down}};
    APIC(0x3e0) = 0xb;
    APIC(0x320) = TIMER_VECTOR;
    for (unsigned i = 0; i < sizeof loops / sizeof loops[0]; i++) {
        APIC(0x380) = 300000;
        check(loops[i].name, run(loops[i].code, 0).vector, TIMER_VECTOR);
        end_of_interrupt();
    }
}

static void test_apic_timer(void)
{
    APIC(0x3e0) = 0xb; /* divide by 1 */
    APIC(0x320) = TIMER_VECTOR;
    APIC(0x380) = 100000;
    struct context c = run(wait_loop, 0);
    check("APIC timer in a tight loop", c.vector, TIMER_VECTOR);
    check("  at the jump", c.ip, (uintptr_t)wait_loop + 1);
    check("  one shot", APIC(0x390), 0);
    end_of_interrupt();
    APIC(0x320) = TIMER_VECTOR | 0x20000; /* periodic */
    APIC(0x380) = 200000;
    for (int i = 0; i < 3; i++) {
        c = run(wait_count, 0);
        check("periodic APIC timer", c.vector, TIMER_VECTOR);
        end_of_interrupt();
    }
    APIC(0x320) = 0x10000;
    APIC(0x380) = 0;
    c = run(nops, FLAG_IF);
    if (c.vector == TIMER_VECTOR) {
        end_of_interrupt();
    }
    APIC(0x320) = TIMER_VECTOR;
    APIC(0x380) = 300000;
    c = run(sti_hlt, 0);
    check_stop("APIC timer wakes HLT", &c, TIMER_VECTOR, NO_ERROR, (uintptr_t)sti_hlt + 2);
    end_of_interrupt();
}

static void test_pic(void)
{
    pic_setup(0xfe);
    APIC(0x350) = 0x700;  /* LINT0: ExtINT */
    out8(PIT_MODE, 0x34); /* counter 0, rate generator */
    out8(PIT_DATA, 0x00), out8(PIT_DATA, 0x10);
    for (int i = 0; i < 3; i++) {
        struct context c = run(wait_loop, 0);
        check("PIT by PIC", c.vector, BASE1);
        out8(PIC1, 0x20);
    }
    struct context c = run(sti_hlt, 0);
    check_stop("PIT wakes HLT", &c, BASE1, NO_ERROR, (uintptr_t)sti_hlt + 2);
    out8(PIC1, 0x0b); /* read ISR */
    check("PIC: in service", in8(PIC1) & 1, 1);
    out8(PIC1, 0x20);
    check("PIC: EOI", in8(PIC1) & 1, 0);
    out8(PIC1 + 1, 0xff);
    APIC(0x350) = 0x10000;
    out8(PIT_MODE, 0x30), out8(PIT_DATA, 0), out8(PIT_DATA, 0);
}

static void test_nmi(void)
{

    APIC(0x310) = APIC(0x20);
    struct context c;
    context_init(&c, send_nmi);
    c.gpr[RDI] = 0xfee00000;
    context_run(&c);
    check("NMI with IF clear", c.vector, NMI);
    /* the runtime leaves the handler without IRET, so another NMI stays pending until one */
    APIC(0x300) = 0x400;
    for (volatile int i = 0; i < 1000; i++) {
    }
    c = run(nops, 0); /* enters by IRET */
    check("NMI pending until IRET", c.vector, NMI);
    check("  at the first instruction", c.ip, (uintptr_t)nops);
    c = run(nops, 0);
    check("no NMI left", c.vector, UD);
}

void test_main(void)
{
    pic_setup(0xff);
    test_windows();
    test_priority();
    test_loops();
    test_apic_timer();
    test_pic();
    test_nmi();
}
