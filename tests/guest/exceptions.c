/*
 * Every exception that a program can raise, with its frame exact: vector, error code, instruction
 * pointer, flags, CR2. SDM volume 3, chapter 6.
 */
#include "runtime.h"

SNIPPET(divide_zero, "xor %ecx, %ecx; mov $1, %eax; cmp %eax, %eax; divl %ecx");
SNIPPET(divide_overflow, "mov $0x80000000, %eax; cltd; mov $-1, %ecx; idivl %ecx");
SNIPPET(breakpoint, "nop; int3; nop");
SNIPPET(software, "nop; int $0x55; nop");
SNIPPET(invalid, "nop; .byte 0x0f, 0x0b");
SNIPPET(lock_invalid, "lock; nop");
SNIPPET(too_long, ".fill 15, 1, 0x66; nop");
SNIPPET(page_read, "stc; mov (%rdi), %rax");
SNIPPET(page_write, "sub %rax, %rax; mov %rax, (%rdi)");
SNIPPET(page_rmw, "mov $0x7fffffff, %eax; add $1, %eax; incl (%rdi)");
SNIPPET(page_push, "mov %rdi, %rsp; push %rax");
SNIPPET(page_call, "mov %rdi, %rsp; call 1f; 1: nop");
SNIPPET(loop_to_hole, "1: movzbl (%rdi), %eax; add $1, %rdi; cmp %rsi, %rdi; jne 1b");
SNIPPET(loop_by_sum, "1: addl $1, (%rdi); add %rsi, %rdi; jnc 1b");
SNIPPET(flags_kept, "cmp %rsi, %rdi; mov (%rbx), %rdi; mov (%rbx), %rsi; mov (%rcx), %rax");
SNIPPET(flags_kept_sum, "add %rsi, %rdi; mov (%rbx), %rdi; mov %rbx, %rsi; mov (%rcx), %rax");
SNIPPET(flags_kept_pop, "test %rdi, %rdi; push %rbx; pop %rdi; mov (%rcx), %rax");
SNIPPET(jump_rdi, "jmp *%rdi");
SNIPPET(return_rdi, "push %rdi; ret");
SNIPPET(noncanonical, "mov (%rdi), %rax");
SNIPPET(noncanonical_stack, "push %rax");
SNIPPET(noncanonical_run, "push %rax; push %rcx; mov $1, %eax");
SNIPPET(noncanonical_change, "inc %rcx; add %rax, (%rdi); inc %rcx");
SNIPPET(noncanonical_vector, "movups (%rdi), %xmm0");
SNIPPET(noncanonical_rbp, "mov (%rbp), %rax");
SNIPPET(privileged, "nop; hlt");
SNIPPET(privileged_cli, "cli");
SNIPPET(privileged_cr, "mov %cr0, %rax");
SNIPPET(privileged_msr, "mov $0xc0000080, %ecx; rdmsr");
SNIPPET(privileged_lgdt, "lgdt (%rdi)");
SNIPPET(privileged_invlpg, "invlpg (%rdi)");
SNIPPET(port, "in $0x60, %al");
SNIPPET(bad_selector, "mov $0xfff0, %eax; mov %eax, %ds");
SNIPPET(null_stack, "xor %eax, %eax; mov %eax, %ss");
SNIPPET(load_selector, "mov %eax, %ds");
SNIPPET(load_stack, "mov %eax, %ss");
SNIPPET(bad_msr, "mov $0xdeadbeef, %ecx; rdmsr");
SNIPPET(bad_msr_write, "mov $0xc0000080, %ecx; mov $-1, %eax; mov $-1, %edx; wrmsr");
SNIPPET(bad_cr4, "mov %rdi, %cr4");
SNIPPET(bad_cr0, "mov %rdi, %cr0");
SNIPPET(sse_misaligned, "movaps 1(%rsp), %xmm0");
SNIPPET(no_device, "fld1");
SNIPPET(no_device_sse, "addps %xmm0, %xmm0");
SNIPPET(overflow_32, ".code32; mov $0x7fffffff, %eax; inc %eax; into; nop; .code64");
SNIPPET(bound_32, ".code32; bound %eax, (%edi); .code64");
SNIPPET(invalid_in_64, ".byte 0x06"); /* PUSH ES */
SNIPPET(alignment, "mov %eax, 1(%rsp)");
SNIPPET(iret_bad_cs, "pushq $0x10; push %rsp; pushf; pushq $0xfff8; push %rax; iretq");

static void test_arithmetic(void)
{
    struct context c;
    context_init(&c, divide_zero);
    context_run(&c);
    check_stop("divide by zero", &c, DE, NO_ERROR, (uintptr_t)divide_zero_end - 2);
    check("divide by zero: flags", c.flags & FLAGS_ARITHMETIC, FLAG_ZF | FLAG_PF);
    check("divide by zero: RF in the frame", c.flags & FLAG_RF, FLAG_RF);
    context_init(&c, divide_overflow);
    context_run(&c);
    check_stop("divide overflow", &c, DE, NO_ERROR, (uintptr_t)divide_overflow_end - 2);
    check("divide overflow: rax", c.gpr[RAX], 0x80000000);
    check("divide overflow: rdx", c.gpr[RDX], 0xffffffff);
    context_init_user(&c, breakpoint);
    context_run(&c);
    check_stop("breakpoint is a trap", &c, BP, NO_ERROR, USER(breakpoint) + 2);
    check("breakpoint: no RF", c.flags & FLAG_RF, 0);
    context_init_user(&c, software);
    context_run(&c);
    check_stop("software interrupt", &c, 0x55, NO_ERROR, USER(software) + 3);
    check("software interrupt: cs", c.cs, USER_CODE);
    check("software interrupt: ss", c.ss, USER_DATA);
}

static void test_invalid(void)
{
    struct context c;
    context_init(&c, invalid);
    context_run(&c);
    check_stop("UD2", &c, UD, NO_ERROR, (uintptr_t)invalid + 1);
    context_init(&c, lock_invalid);
    context_run(&c);
    check_stop("LOCK NOP", &c, UD, NO_ERROR, (uintptr_t)lock_invalid);
    context_init(&c, too_long);
    context_run(&c);
    check_stop("16 bytes", &c, GP, 0, (uintptr_t)too_long);
    context_init(&c, invalid_in_64);
    context_run(&c);
    check_stop("PUSH ES in 64-bit mode", &c, UD, NO_ERROR, (uintptr_t)invalid_in_64);
    context_init_user(&c, overflow_32);
    c.cs = USER_CODE32;
    context_run(&c);
    check_stop("INTO", &c, OF, NO_ERROR, USER(overflow_32) + 7);
    uint32_t *bounds = page_new();
    bounds[0] = 10, bounds[1] = 20;
    context_init_user(&c, bound_32);
    c.cs = USER_CODE32;
    c.gpr[RDI] = USER(bounds);
    c.gpr[RAX] = 21;
    context_run(&c);
    check_stop("BOUND outside", &c, BR, NO_ERROR, USER(bound_32));
    context_init_user(&c, bound_32);
    c.cs = USER_CODE32;
    c.gpr[RDI] = USER(bounds);
    c.gpr[RAX] = 20;
    context_run(&c);
    check_stop("BOUND inside", &c, UD, NO_ERROR, USER(bound_32_end));
}

static void page_case(const char *name, const char *code, const char *stop, bool user,
                      uintptr_t address, uintptr_t error, uintptr_t cr2, uintptr_t flags)
{
    struct context c;
    if (user) {
        context_init_user(&c, code);
        stop += USER_WINDOW;
    } else {
        context_init(&c, code);
    }
    c.gpr[RDI] = address;
    context_run(&c);
    check_stop(name, &c, PF, error, (uintptr_t)stop);
    check("  cr2", c.cr2, cr2);
    check("  flags", c.flags & FLAGS_ARITHMETIC, flags);
    check("  rdi", c.gpr[RDI], address);
}

static void test_page_faults(void)
{
    uintptr_t hole = 0x80000000;
    page_case("read a hole", page_read, page_read + 1, false, hole + 7, 0, hole + 7, FLAG_CF);
    page_case("write a hole", page_write, page_write + 3, false, hole, PF_W, hole,
              FLAG_ZF | FLAG_PF);
    page_case("user reads a hole", page_read, page_read + 1, true, hole, PF_U, hole, FLAG_CF);
    page_case("user writes a hole", page_write, page_write + 3, true, hole, PF_U | PF_W, hole,
              FLAG_ZF | FLAG_PF);
    page_case("user reads the kernel", page_read, page_read + 1, true, 0x100000, PF_U | PF_P,
              0x100000, FLAG_CF);
    page_case("user changes the kernel", page_rmw, page_rmw_end - 2, true, 0x100000,
              PF_U | PF_P | PF_W, 0x100000, FLAG_OF | FLAG_SF | FLAG_AF | FLAG_PF);
    page_case("change in a hole", page_rmw, page_rmw_end - 2, false, hole, PF_W, hole,
              FLAG_OF | FLAG_SF | FLAG_AF | FLAG_PF);
    page_case("user jumps into the kernel", jump_rdi, (char *)0x100000 - USER_WINDOW, true,
              0x100000, PF_U | PF_P | PF_I, 0x100000, 0);
    page_case("jump into a hole", jump_rdi, (char *)hole, false, hole, PF_I, hole, 0);
    map(hole, 0x800000, PTE_P | PTE_W);
    page_case("second page of a read", page_read, page_read + 1, false, hole + 0xff9, 0,
              hole + 0x1000, FLAG_CF);
    page_case("second page of a write", page_write, page_write + 3, false, hole + 0xfff, PF_W,
              hole + 0x1000, FLAG_ZF | FLAG_PF);
    map(hole, 0x800000, PTE_P | PTE_NX);
    page_case("execute NX", jump_rdi, (char *)hole, false, hole, PF_P | PF_I, hole, 0);
    page_case("write to read-only with WP", page_write, page_write + 3, false, hole, PF_P | PF_W,
              hole, FLAG_ZF | FLAG_PF);
    page_case("push into a hole", page_push, page_push_end - 1, true, hole + 0x10008, PF_U | PF_W,
              hole + 0x10000, 0);
    page_case("call with no stack", page_call, page_call + 3, true, hole + 0x10008, PF_U | PF_W,
              hole + 0x10000, 0);
    struct context c;
    map(hole, 0x800000, 0);
    context_init_user(&c, page_push);
    c.gpr[RDI] = hole + 0x10008;
    context_run(&c);
    check("rsp after a faulting push", c.gpr[RSP], hole + 0x10008);
}

static void simple(const char *name, const char *code, const char *stop, bool user, uintptr_t rdi,
                   uintptr_t vector, uintptr_t error)
{
    struct context c;
    if (user) {
        context_init_user(&c, code);
        stop += USER_WINDOW;
    } else {
        context_init(&c, code);
    }
    c.gpr[RDI] = rdi;
    c.gpr[RAX] = rdi;
    context_run(&c);
    check_stop(name, &c, vector, error, (uintptr_t)stop);
}

static void test_devices(void)
{
    uintptr_t cr0 = read_cr0();
    write_cr0(cr0 | 8);
    simple("x87 with TS", no_device, no_device, false, 0, NM, NO_ERROR);
    simple("SSE with TS", no_device_sse, no_device_sse, false, 0, NM, NO_ERROR);
    write_cr0(cr0 | 4);
    simple("x87 with EM", no_device, no_device, false, 0, NM, NO_ERROR);
    simple("SSE with EM", no_device_sse, no_device_sse, false, 0, UD, NO_ERROR);
    write_cr0(cr0);
    uintptr_t cr4 = read_cr4();
    write_cr4(cr4 & ~0x200ul);
    simple("SSE without OSFXSR", no_device_sse, no_device_sse, false, 0, UD, NO_ERROR);
    write_cr4(cr4);

    struct context c;
    write_cr0(cr0 | 0x40000);
    context_init_user(&c, alignment);
    c.gpr[RSP] -= 64;
    c.flags |= FLAG_AC;
    context_run(&c);
    check_stop("alignment check", &c, AC, 0, USER(alignment));
    context_init_user(&c, alignment);
    c.gpr[RSP] -= 64;
    context_run(&c);
    check_stop("no alignment check without AC", &c, UD, NO_ERROR, USER(alignment_end));
    context_init(&c, alignment);
    c.gpr[RSP] -= 64;
    c.flags |= FLAG_AC;
    context_run(&c);
    check_stop("no alignment check at CPL 0", &c, UD, NO_ERROR, (uintptr_t)alignment_end);
    write_cr0(cr0);
}

static void test_protection(void)
{
    struct context c;
    simple("non-canonical", noncanonical, noncanonical, false, 1ul << 47, GP, 0);
    simple("just canonical", noncanonical, noncanonical, true, (1ul << 47) - 8, PF, PF_U);
    context_init(&c, noncanonical_stack);
    c.gpr[RSP] = 1ul << 60;
    context_run(&c);
    check_stop("non-canonical stack", &c, SS, 0, (uintptr_t)noncanonical_stack);
    /* The one page that an empty slot of the soft TLB lets pass. */
    for (uintptr_t at = 1ul << 63; at < (1ul << 63) + 5000; at += 4088) {
        simple("non-canonical, lowest", noncanonical, noncanonical, false, at, GP, 0);
        simple("non-canonical, lowest, user", noncanonical, noncanonical, true, at, GP, 0);
        simple("non-canonical, vector", noncanonical_vector, noncanonical_vector, true, at, GP, 0);
        simple("non-canonical, change", noncanonical_change, noncanonical_change + 3, true, at, GP,
               0);
        context_init_user(&c, noncanonical_run);
        c.gpr[RSP] = at + 16;
        context_run(&c);
        check_stop("non-canonical pushes", &c, SS, 0, USER(noncanonical_run));
        check("non-canonical pushes: rsp", c.gpr[RSP], at + 16);
    }
    context_init(&c, noncanonical_rbp);
    c.gpr[RBP] = 1ul << 60;
    context_run(&c);
    check_stop("non-canonical rbp", &c, SS, 0, (uintptr_t)noncanonical_rbp);
    simple("jump to non-canonical", jump_rdi, jump_rdi, false, 1ul << 47, GP, 0);
    simple("jump to the lowest of them", jump_rdi, jump_rdi, false, 1ul << 63, GP, 0);
    simple("jump to it in user mode", jump_rdi, jump_rdi, true, 1ul << 63, GP, 0);
    simple("return to it", return_rdi, return_rdi + 1, false, 1ul << 63, GP, 0);
    simple("return to it in user mode", return_rdi, return_rdi + 1, true, 1ul << 63, GP, 0);
    simple("HLT in user mode", privileged, privileged + 1, true, 0, GP, 0);
    simple("CLI in user mode", privileged_cli, privileged_cli, true, 0, GP, 0);
    simple("MOV CR0 in user mode", privileged_cr, privileged_cr, true, 0, GP, 0);
    simple("RDMSR in user mode", privileged_msr, privileged_msr + 5, true, 0, GP, 0);
    simple("LGDT in user mode", privileged_lgdt, privileged_lgdt, true, 0, GP, 0);
    simple("INVLPG in user mode", privileged_invlpg, privileged_invlpg, true, 0, GP, 0);
    simple("IN in user mode", port, port, true, 0, GP, 0);
    simple("selector beyond the GDT", bad_selector, bad_selector + 5, false, 0, GP, 0xfff0);
    simple("null SS at CPL 3", null_stack, null_stack + 2, true, 0, GP, 0);
    simple("null SS at CPL 0, 64-bit", null_stack, null_stack_end, false, 0, UD, NO_ERROR);
    simple("code segment into SS", load_stack, load_stack, false, KERNEL_CODE, GP, KERNEL_CODE);
    simple("kernel data at CPL 3", load_selector, load_selector, true, KERNEL_DATA, GP,
           KERNEL_DATA);
    gdt[SPARE / 8] = descriptor(0, 0xfffff, 0x13, 0xc);
    simple("DS not present", load_selector, load_selector, false, SPARE, NP, SPARE);
    simple("SS not present", load_stack, load_stack, false, SPARE, SS, SPARE);
    gdt[SPARE / 8] = descriptor(0, 0xfffff, 0x99, 0xc);
    simple("execute-only code into DS", load_selector, load_selector, false, SPARE, GP, SPARE);
    simple("LDT selector without LDT", load_selector, load_selector, false, 0x14, GP, 0x14);
    simple("unknown MSR", bad_msr, bad_msr + 5, false, 0, GP, 0);
    simple("reserved EFER bits", bad_msr_write, bad_msr_write_end - 2, false, 0, GP, 0);
    simple("misaligned MOVAPS", sse_misaligned, sse_misaligned, false, 0, GP, 0);
    simple("IRET to a bad CS", iret_bad_cs, iret_bad_cs_end - 2, false, 0, GP, 0xfff8);
}

/* System registers that refuse a value: last, because a CPU that takes it is lost. */
static void test_refused_values(void)
{
    simple("reserved CR4 bit", bad_cr4, bad_cr4, false, read_cr4() | 1ul << 31, GP, 0);
    simple("CR4.PAE off in long mode", bad_cr4, bad_cr4, false, read_cr4() & ~0x20ul, GP, 0);
    simple("CR0: PG without PE", bad_cr0, bad_cr0, false, 0x80000010, GP, 0);
    simple("CR0: NW without CD", bad_cr0, bad_cr0, false, read_cr0() | 0x20000000, GP, 0);
    simple("CR0: high half", bad_cr0, bad_cr0, false, read_cr0() | 1ul << 32, GP, 0);
}

/* The flags that a fault shows came from registers that have other values by now. */
static void flags_case(const char *name, const char *code, uintptr_t a, uintptr_t b, bool adds)
{
    static uint64_t word;
    uint64_t expected;
    struct context c;
    context_init(&c, code);
    c.gpr[RDI] = a;
    c.gpr[RSI] = b;
    c.gpr[RBX] = (uintptr_t)&word;
    c.gpr[RCX] = 0x80000000; /* a hole */
    context_run(&c);
    if (adds) {
        __asm__("add %2, %1; pushf; pop %0" : "=r"(expected), "+r"(a) : "r"(b) : "cc");
    } else {
        __asm__("cmp %2, %1; pushf; pop %0" : "=r"(expected) : "r"(a), "r"(b) : "cc");
    }
    check(name, c.vector, PF);
    check("  flags", c.flags & 0x8d5, expected & 0x8d5);
}

static void test_flags_at_faults(void)
{
    static uint8_t bytes[8192] __attribute__((aligned(4096)));
    uintptr_t end = 0x8000100000; /* one page before it is mapped here, none behind */
    map(end - 4096, (uintptr_t)bytes, PTE_P | PTE_W);
    struct context c;
    context_init(&c, loop_to_hole);
    c.gpr[RDI] = end - 100;
    c.gpr[RSI] = end + 5;
    context_run(&c);
    check("loop to a hole: compare", c.vector, PF);
    check("  flags", c.flags & 0x8d5, 0x91); /* of -5: CF, AF, SF */
    context_init(&c, loop_by_sum);
    c.gpr[RDI] = end - 100;
    c.gpr[RSI] = 4;
    context_run(&c);
    check("loop to a hole: sum", c.vector, PF);
    check("  cr2", c.cr2, end);
    check("  flags", c.flags & 0x8d5, 0x14); /* 80000ffffch + 4: AF, PF */
    const uintptr_t numbers[] = {0, 1, 0x80, INT64_MAX, (uintptr_t)INT64_MAX + 1, -1ul};
    for (unsigned i = 0; i < 6; i++) {
        for (unsigned k = 0; k < 6; k++) {
            flags_case("compare, then loads", flags_kept, numbers[i], numbers[k], false);
            flags_case("add, then loads", flags_kept_sum, numbers[i], numbers[k], true);
        }
        flags_case("test, then pop", flags_kept_pop, numbers[i], 0, false);
    }
}

void test_main(void)
{
    test_arithmetic();
    test_flags_at_faults();
    test_invalid();
    test_page_faults();
    test_protection();
    test_devices();
    test_refused_values();
}
