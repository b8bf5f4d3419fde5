/*
 * Ways between rings in long mode: SYSCALL and SYSRET (64-bit and compatibility), SYSENTER and
 * SYSEXIT, IRET to every ring, SWAPGS, FSGSBASE, TSS stacks without IST, software interrupts and
 * gate privileges. SDM volume 3, 5.8 and 6.14.
 */
#include "runtime.h"

enum {
    EFER = 0xc0000080,
    STAR,
    LSTAR,
    CSTAR,
    SFMASK,
    FS_BASE = 0xc0000100,
    GS_BASE,
    KERNEL_GS,
    SYSENTER_CS = 0x174,
    SYSENTER_ESP,
    SYSENTER_EIP,
    AMD = 0x68747541 /* the first letters of the vendor in leaf 0: "Auth" */
};

SNIPPET(call_user, "stc; syscall; nop");
SNIPPET(enter_user, "sysenter; nop");
SNIPPET(handler, "nop");
SNIPPET(sysret_64, "sysretq");
SNIPPET(sysret_32, "sysretl");
SNIPPET(sysexit_64, "sysexitq");
SNIPPET(sysexit_32, "sysexitl");
SNIPPET(target, "nop");
SNIPPET(swap, "mov %gs:0, %rax; swapgs; mov %gs:0, %rbx; swapgs; mov %gs:0, %rcx");
SNIPPET(swap_user, "swapgs");
SNIPPET(bases, "wrfsbase %rdi; wrgsbase %rsi; rdfsbase %rax; rdgsbase %rbx; mov %fs:0, %rcx;"
               "mov %gs:8, %rdx");
SNIPPET(bad_base, "wrfsbase %rdi");
SNIPPET(int_40, "int $0x40");
SNIPPET(round_trip, "1: syscall; dec %ebx; jnz 1b");
SNIPPET(kernel_side, "add $1, %rax; sysretq");

/* A user that is stepped: SYSCALL masks TF and does not trap, SYSRET brings it back and does. */
static void test_stepped(void)
{
    struct context c;
    write_msr(LSTAR, (uintptr_t)handler);
    write_msr(SFMASK, FLAG_TF | FLAG_IF);
    context_init_user(&c, call_user);
    c.ip++; /* behind STC */
    c.flags |= FLAG_TF;
    context_run(&c);
    check_stop("SYSCALL masks TF: no step", &c, UD, NO_ERROR, (uintptr_t)handler_end);
    check("  r11", c.gpr[R11] & FLAG_TF, FLAG_TF);
    context_init(&c, sysret_64);
    c.gpr[RCX] = USER(target);
    c.gpr[R11] = 2 | FLAG_TF;
    context_run(&c);
    check_stop("SYSRET sets TF: a step behind it", &c, DB, NO_ERROR, USER(target));
    write_msr(SFMASK, 0);
    context_init_user(&c, call_user);
    c.ip++;
    c.flags |= FLAG_TF;
    context_run(&c);
    check_stop("SYSCALL without a mask", &c, DB, NO_ERROR, (uintptr_t)handler);
}

static void test_syscall(void)
{
    write_msr(EFER, read_msr(EFER) | 1);
    write_msr(STAR, (uint64_t)(KERNEL_CODE) << 32 | (uint64_t)0x23 << 48);
    write_msr(LSTAR, (uintptr_t)handler);
    write_msr(CSTAR, (uintptr_t)target);
    write_msr(SFMASK, FLAG_CF | FLAG_DF | FLAG_IF);
    struct context c;
    context_init_user(&c, call_user);
    c.flags |= FLAG_OF | FLAG_ZF | FLAG_DF;
    context_run(&c);
    check_stop("SYSCALL", &c, UD, NO_ERROR, (uintptr_t)handler_end);
    check("  rcx", c.gpr[RCX], USER(call_user) + 3);
    check("  r11", c.gpr[R11] & ~FLAG_RF, 2 | FLAG_CF | FLAG_OF | FLAG_ZF | FLAG_DF);
    check("  flags", c.flags & ~FLAG_RF, 2 | FLAG_OF | FLAG_ZF);
    check("  cs", c.cs, KERNEL_CODE);
    check("  ss", c.ss, KERNEL_DATA);
    context_init(&c, sysret_64);
    c.gpr[RCX] = USER(target);
    c.gpr[R11] = FLAG_CF | FLAG_RF | FLAG_VM | 0x80 | FLAG_IF;
    context_run(&c);
    check_stop("SYSRET", &c, UD, NO_ERROR, USER(target_end));
    check("  cs", c.cs, USER_CODE);
    check("  ss", c.ss, USER_DATA);
    check("  flags", c.flags & ~FLAG_RF, 2 | FLAG_CF | 0x80 | FLAG_IF);
    context_init(&c, sysret_32);
    c.gpr[RCX] = USER(target) | 0x100000000;
    c.gpr[R11] = 2;
    context_run(&c);
    check_stop("SYSRET to 32 bits", &c, UD, NO_ERROR, USER(target_end));
    check("  cs", c.cs, USER_CODE32);
    context_init(&c, sysret_64);
    c.gpr[RCX] = 1ul << 47;
    c.gpr[R11] = 2;
    context_run(&c);
    check("SYSRET to a non-canonical address", c.vector, GP);
    write_msr(LSTAR, (uintptr_t)kernel_side);
    context_init_user(&c, round_trip);
    c.gpr[RBX] = 1000;
    context_run(&c);
    check_stop("1000 round trips", &c, UD, NO_ERROR, USER(round_trip_end));
    check("  count", c.gpr[RAX], 1000);
    write_msr(EFER, read_msr(EFER) & ~1ull);
    context_init_user(&c, call_user);
    context_run(&c);
    check_stop("SYSCALL without SCE", &c, UD, NO_ERROR, USER(call_user) + 1);
    write_msr(EFER, read_msr(EFER) | 1);
}

static void test_sysenter(void)
{
    struct context c;
    if (cpuid(0, 0).ebx == AMD) { /* has them in legacy mode only: AMD64 manual, volume 3 */
        context_init_user(&c, enter_user);
        context_run(&c);
        check_stop("SYSENTER in long mode", &c, UD, NO_ERROR, USER(enter_user));
        context_init(&c, sysexit_64);
        context_run(&c);
        check_stop("SYSEXIT in long mode", &c, UD, NO_ERROR, (uintptr_t)sysexit_64);
        return;
    }
    write_msr(SYSENTER_CS, 0);
    context_init_user(&c, enter_user);
    context_run(&c);
    check_stop("SYSENTER without CS", &c, GP, 0, USER(enter_user));
    /* SYSENTER's order: kernel code, kernel data, user code 32, user data 32, then 64-bit ones */
    gdt[SPARE / 8 + 0] = gdt[KERNEL_CODE / 8];
    gdt[SPARE / 8 + 1] = gdt[KERNEL_DATA / 8];
    gdt[SPARE / 8 + 2] = gdt[USER_CODE32 / 8];
    gdt[SPARE / 8 + 3] = gdt[USER_DATA / 8];
    gdt[SPARE / 8 + 4] = gdt[USER_CODE / 8];
    gdt[SPARE / 8 + 5] = gdt[USER_DATA / 8];
    write_msr(SYSENTER_CS, SPARE);
    write_msr(SYSENTER_ESP, 0x812345678);
    write_msr(SYSENTER_EIP, (uintptr_t)handler);
    context_init_user(&c, enter_user);
    c.flags |= FLAG_IF | FLAG_CF;
    context_run(&c);
    check_stop("SYSENTER", &c, UD, NO_ERROR, (uintptr_t)handler_end);
    check("  rsp", c.gpr[RSP], 0x812345678);
    check("  cs", c.cs, SPARE);
    check("  ss", c.ss, SPARE + 8);
    check("  flags", c.flags & ~FLAG_RF, 2 | FLAG_CF);
    context_init(&c, sysexit_64);
    c.gpr[RDX] = USER(target);
    c.gpr[RCX] = 0x500000000;
    context_run(&c);
    check_stop("SYSEXIT to 64 bits", &c, UD, NO_ERROR, USER(target_end));
    check("  cs", c.cs, SPARE + 32 + 3);
    check("  ss", c.ss, SPARE + 40 + 3);
    check("  rsp", c.gpr[RSP], 0x500000000);
    context_init(&c, sysexit_32);
    c.gpr[RDX] = USER(target) | 0x700000000;
    c.gpr[RCX] = 0x512345678;
    context_run(&c);
    check_stop("SYSEXIT to 32 bits", &c, UD, NO_ERROR, USER(target_end));
    check("  cs", c.cs, SPARE + 16 + 3);
    check("  rsp", c.gpr[RSP], 0x12345678);
    context_init_user(&c, sysexit_64);
    context_run(&c);
    check_stop("SYSEXIT in user mode", &c, GP, 0, USER(sysexit_64));
}

static void test_rings(void)
{
    struct context c;
    for (unsigned ring = 1; ring < 4; ring++) {
        gdt[SPARE / 8 + 0] = descriptor(0, 0xfffff, 0x9b | ring << 5, 0xa);
        gdt[SPARE / 8 + 1] = descriptor(0, 0xfffff, 0x93 | ring << 5, 0xc);
        context_init_user(&c, target);
        c.cs = SPARE | ring;
        c.ss = (SPARE + 8) | ring;
        if (ring < 3) { /* supervisor, as far as pages go */
            c.ip -= USER_WINDOW;
        }
        context_run(&c);
        check("IRET to a ring: vector", c.vector, UD);
        check("  cs", c.cs, SPARE | ring);
        check("  ss", c.ss, (SPARE + 8) | ring);
        context_init_user(&c, int_40);
        c.cs = SPARE | ring;
        c.ss = (SPARE + 8) | ring;
        if (ring < 3) {
            c.ip -= USER_WINDOW;
        }
        idt[0x40 * 16 + 5] = 0x8e | 1 << 5; /* DPL 1 */
        context_run(&c);
        if (ring == 1) {
            check("INT through a gate of DPL 1", c.vector, 0x40);
        } else {
            check("INT through a gate of DPL 1, outer ring", c.vector, GP);
            check("  error", c.error, 0x40 * 8 + 2);
        }
    }
    idt[0x40 * 16 + 5] = 0x6e;
    context_init_user(&c, int_40);
    context_run(&c);
    check_stop("INT through an absent gate", &c, NP, 0x40 * 8 + 2, USER(int_40));
    idt[0x40 * 16 + 5] = 0xee;
    /* IOPL and IF as IRET may change them */
    context_init_user(&c, target);
    c.flags |= FLAG_IOPL3 | FLAG_NT | FLAG_ID | FLAG_AC;
    context_run(&c);
    check("IRET sets IOPL at CPL 0", c.flags & ~FLAG_RF,
          2 | FLAG_IOPL3 | FLAG_NT | FLAG_ID | FLAG_AC);
}

static void test_gs(void)
{
    struct context c;
    static uint64_t one[2] = {0x1111, 0x11}, two[2] = {0x2222, 0x22};
    write_msr(GS_BASE, (uintptr_t)one);
    write_msr(KERNEL_GS, (uintptr_t)two);
    context_init(&c, swap);
    context_run(&c);
    check("GS before", c.gpr[RAX], 0x1111);
    check("GS swapped", c.gpr[RBX], 0x2222);
    check("GS swapped back", c.gpr[RCX], 0x1111);
    check("MSR", read_msr(KERNEL_GS), (uintptr_t)two);
    context_init_user(&c, swap_user);
    context_run(&c);
    check_stop("SWAPGS in user mode", &c, GP, 0, USER(swap_user));
    if (cpuid(7, 0).ebx & 1) {
        context_init(&c, bases);
        context_run(&c);
        check_stop("WRFSBASE without CR4.FSGSBASE", &c, UD, NO_ERROR, (uintptr_t)bases);
        write_cr4(read_cr4() | 1 << 16);
        context_init_user(&c, bases);
        c.gpr[RDI] = USER(one);
        c.gpr[RSI] = USER(two);
        context_run(&c);
        check_stop("FSGSBASE", &c, UD, NO_ERROR, USER(bases_end));
        check("  rdfsbase", c.gpr[RAX], USER(one));
        check("  rdgsbase", c.gpr[RBX], USER(two));
        check("  fs:0", c.gpr[RCX], 0x1111);
        check("  gs:8", c.gpr[RDX], 0x22);
        context_init(&c, bad_base);
        c.gpr[RDI] = 1ul << 50;
        context_run(&c);
        check_stop("non-canonical FS base", &c, GP, 0, (uintptr_t)bad_base);
        write_cr4(read_cr4() & ~(1ul << 16));
    } else {
        skip("FSGSBASE", "not offered");
    }
    write_msr(FS_BASE, 0);
    write_msr(GS_BASE, 0);
}

/* Without IST: the frame goes to RSP0 from user mode, and to the aligned own stack from kernel. */
static void test_stacks(void)
{
    static uint64_t stack[64] __attribute__((aligned(64)));
    struct context c;
    uint8_t ist = idt[0x40 * 16 + 4];
    idt[0x40 * 16 + 4] = 0;
    context_init(&c, int_40);
    c.gpr[RSP] = (uintptr_t)&stack[40] + 5; /* misaligned on purpose */
    c.gpr[RAX] = 0x77;
    context_run(&c);
    check("own stack: ss", stack[39], KERNEL_DATA);
    check("own stack: rsp", stack[38], (uintptr_t)&stack[40] + 5);
    check("own stack: flags", stack[37] & ~FLAG_RF, 2);
    check("own stack: cs", stack[36], KERNEL_CODE);
    check("own stack: rip", stack[35], (uintptr_t)int_40_end);
    uint64_t *rsp0 = (uint64_t *)(task_segment + 4);
    uint64_t before = *rsp0;
    *rsp0 = (uintptr_t)&stack[30];
    context_init_user(&c, int_40);
    context_run(&c);
    check("RSP0: ss", stack[29], USER_DATA);
    check("RSP0: rip", stack[25], USER(int_40_end));
    *rsp0 = before;
    idt[0x40 * 16 + 4] = ist;
}

void test_main(void)
{
    test_syscall();
    test_stepped();
    test_sysenter();
    test_rings();
    test_gs();
    test_stacks();
}
