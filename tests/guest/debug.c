/*
 * Debug registers and single step: TF over plain, repeated and shadowed instructions, SYSCALL and
 * interrupts, breakpoints on execution and data with every size, DR6, RF, general detect, ICEBP.
 * SDM volume 3, chapter 17.
 */
#include "runtime.h"

#define AREA 0x8000000000ul
SNIPPET(steps, "nop; mov $5, %eax; add $1, %eax");
SNIPPET(rep_step, "mov $3, %ecx; rep stosb; nop");
SNIPPET(popf_tf, "pushq $0x102; popfq; nop; nop");
SNIPPET(pushf_tf, "pushf; pop %rax; nop");
SNIPPET(mov_ss, "mov %eax, %ss; nop; nop");
SNIPPET(jumps, "jmp 1f; nop; 1: nop");
SNIPPET(icebp, "nop; .byte 0xf1; nop");
SNIPPET(int_step, "int $0x55; nop");
SNIPPET(load, "nop; mov (%rdi), %eax; nop");
SNIPPET(store, "nop; mov %eax, (%rdi); nop");
SNIPPET(store_byte, "nop; mov %al, (%rdi); nop");
SNIPPET(rep_store, "rep stosb; nop");
SNIPPET(access_dr, "mov %dr0, %rax");
SNIPPET(access_dr4, "mov %dr4, %rax");
SNIPPET(bad_dr7, "mov %rdi, %dr7");
SNIPPET(fault_step, "mov (%rdi), %rax");

enum { DR6_INIT = 0xffff0ff0, DR6_BS = 0x4000, DR6_BD = 0x2000 };

static void test_step(void)
{
    struct context c;
    context_init(&c, steps);
    c.flags |= FLAG_TF;
    write_dr6(DR6_INIT);
    const uintptr_t stops[] = {1, 6, 9};
    for (int i = 0; i < 3; i++) {
        context_run(&c);
        check_stop("single step", &c, DB, NO_ERROR, (uintptr_t)steps + stops[i]);
        check("  DR6", read_dr6(), DR6_INIT | DR6_BS);
        check("  TF in the frame", c.flags & (FLAG_TF | FLAG_RF), FLAG_TF);
        write_dr6(DR6_INIT);
    }
    check("  rax", c.gpr[RAX], 6);
    check("  TF is off in the handler", read_dr6() & DR6_BS, 0);
    context_run(&c);
    check_stop("a fault comes instead of the step", &c, UD, NO_ERROR, (uintptr_t)steps_end);
    check("  TF and RF", c.flags & (FLAG_TF | FLAG_RF), FLAG_TF | FLAG_RF);

    static uint8_t bytes[16];
    context_init(&c, rep_step);
    c.flags |= FLAG_TF;
    c.gpr[RDI] = (uintptr_t)bytes;
    context_run(&c);
    for (int i = 1; i <= 3; i++) {
        context_run(&c);
        uintptr_t stop = i < 3 ? 5 : 7;
        check_stop("step through REP", &c, DB, NO_ERROR, (uintptr_t)rep_step + stop);
        check("  rcx", c.gpr[RCX], 3 - i);
        check("  rdi", c.gpr[RDI], (uintptr_t)bytes + i);
        check("  RF until the last iteration", c.flags & FLAG_RF, i < 3 ? FLAG_RF : 0);
    }
    context_init(&c, popf_tf);
    context_run(&c);
    check_stop("POPF sets TF: one more", &c, DB, NO_ERROR, (uintptr_t)popf_tf + 7);
    context_init(&c, pushf_tf);
    c.flags |= FLAG_TF;
    context_run(&c);
    context_run(&c);
    check("PUSHF shows TF", c.gpr[RAX] & FLAG_TF, FLAG_TF);
    context_init(&c, mov_ss);
    c.gpr[RAX] = KERNEL_DATA;
    c.flags |= FLAG_TF;
    context_run(&c);
    check_stop("MOV SS holds the step back", &c, DB, NO_ERROR, (uintptr_t)mov_ss + 3);
    context_init(&c, jumps);
    c.flags |= FLAG_TF;
    context_run(&c);
    check_stop("step of a jump", &c, DB, NO_ERROR, (uintptr_t)jumps + 3);
    context_init(&c, int_step);
    c.flags |= FLAG_TF;
    write_dr6(DR6_INIT);
    c.flags |= FLAG_RF;
    context_run(&c);
    check_stop("INT n clears TF", &c, 0x55, NO_ERROR, (uintptr_t)int_step + 2);
    check("  TF in the frame, not RF", c.flags & (FLAG_TF | FLAG_RF), FLAG_TF);
    check("  no step", read_dr6() & DR6_BS, 0);
    context_init(&c, icebp);
    context_run(&c);
    check_stop("INT1", &c, DB, NO_ERROR, (uintptr_t)icebp + 2);
    context_init(&c, fault_step);
    c.flags |= FLAG_TF;
    c.gpr[RDI] = AREA;
    write_dr6(DR6_INIT);
    context_run(&c);
    check("a page fault, not a step", c.vector, PF);
    check("  no step", read_dr6() & DR6_BS, 0);
}

static void test_execution(void)
{
    struct context c;
    write_dr0((uintptr_t)steps + 6);
    write_dr7(0x402); /* G0, execute */
    write_dr6(DR6_INIT);
    context_init(&c, steps);
    context_run(&c);
    check_stop("execution breakpoint is a fault", &c, DB, NO_ERROR, (uintptr_t)steps + 6);
    check("  DR6", read_dr6(), DR6_INIT | 1);
    check("  no RF: setting it is the handler's work", c.flags & FLAG_RF, 0);
    check("  not executed", c.gpr[RAX], 5);
    context_run(&c);
    check_stop("without RF again", &c, DB, NO_ERROR, (uintptr_t)steps + 6);
    c.flags |= FLAG_RF;
    context_run(&c);
    check_stop("RF passes one instruction", &c, UD, NO_ERROR, (uintptr_t)steps_end);
    check("  executed", c.gpr[RAX], 6);
    write_dr7(0x400);
    context_init(&c, steps);
    context_run(&c);
    check_stop("disabled", &c, UD, NO_ERROR, (uintptr_t)steps_end);
    write_dr3((uintptr_t)steps + 1);
    write_dr7(0x400 | 1 << 6); /* L3 */
    context_init(&c, steps);
    write_dr6(DR6_INIT);
    context_run(&c);
    check_stop("DR3, local", &c, DB, NO_ERROR, (uintptr_t)steps + 1);
    check("  DR6", read_dr6(), DR6_INIT | 8);
    write_dr7(0x400);

    /* RF stays for all iterations, and is pushed by a fault in between. 17.3.1.1 */
    uint8_t *page = page_new();
    write_dr0((uintptr_t)rep_store);
    write_dr7(0x402);
    context_init(&c, rep_store);
    c.gpr[RDI] = (uintptr_t)page;
    c.gpr[RCX] = 1000;
    context_run(&c);
    check_stop("execution breakpoint on REP", &c, DB, NO_ERROR, (uintptr_t)rep_store);
    check("  rcx", c.gpr[RCX], 1000);
    c.flags |= FLAG_RF;
    context_run(&c);
    check_stop("RF passes all iterations", &c, UD, NO_ERROR, (uintptr_t)rep_store_end);
    check("  rcx", c.gpr[RCX], 0);
    context_init(&c, fault_step);
    c.gpr[RDI] = AREA;
    write_dr0((uintptr_t)fault_step);
    c.flags |= FLAG_RF;
    context_run(&c);
    check("a page fault behind a breakpoint", c.vector, PF);
    check("  RF in the frame", c.flags & FLAG_RF, FLAG_RF);
    write_dr7(0x400);
}

static void data_case(const char *name, const char *code, unsigned rw_length, uintptr_t watch,
                      uintptr_t address, bool hit)
{
    struct context c;
    write_dr1(watch);
    write_dr7(0x400 | 8 | rw_length << 20);
    write_dr6(DR6_INIT);
    context_init(&c, code);
    c.gpr[RDI] = address;
    context_run(&c);
    if (hit) {
        uintptr_t behind = code == store_byte || code == load || code == store ? 3 : 2;
        check_stop(name, &c, DB, NO_ERROR, (uintptr_t)code + behind);
        check("  DR6", read_dr6(), DR6_INIT | 2);
        check("  no RF: it is a trap", c.flags & FLAG_RF, 0);
    } else {
        check(name, c.vector, UD);
        check("  DR6 low bits", read_dr6() & 15, 0);
    }
    write_dr7(0x400);
}

static void test_data(void)
{
    uintptr_t p = (uintptr_t)page_new();
    enum { WRITE1 = 1, WRITE2 = 5, WRITE4 = 13, WRITE8 = 9, ANY4 = 15 };
    data_case("write, watched", store, WRITE4, p, p, true);
    data_case("write, its last byte", store, WRITE1, p + 3, p, true);
    data_case("write, beside", store, WRITE1, p + 4, p, false);
    data_case("write, overlaps from below", store, WRITE4, p + 4, p + 1, true);
    data_case("write, 2 bytes", store_byte, WRITE2, p + 8, p + 9, true);
    data_case("write, 2 bytes, beside", store_byte, WRITE2, p + 8, p + 10, false);
    data_case("write, 8 bytes", store_byte, WRITE8, p + 8, p + 15, true);
    data_case("read, watched for writes", load, WRITE4, p, p, false);
    data_case("read, watched for both", load, ANY4, p, p, true);
    data_case("write, watched for both", store, ANY4, p, p, true);
    data_case("write across pages", store, WRITE1, p + 0x1000, p + 0xffe, true);

    struct context c;
    write_dr1(p + 4);
    write_dr7(0x400 | 8 | WRITE1 << 20);
    write_dr6(DR6_INIT);
    context_init(&c, rep_store);
    c.gpr[RDI] = p;
    c.gpr[RCX] = 10;
    context_run(&c);
    check_stop("in the middle of REP STOSB", &c, DB, NO_ERROR, (uintptr_t)rep_store);
    check("  rcx", c.gpr[RCX], 5);
    check("  rdi", c.gpr[RDI], p + 5);
    check("  RF: iterations are left", c.flags & FLAG_RF, FLAG_RF);
    write_dr7(0x400);
}

static void test_registers(void)
{
    struct context c;
    context_init(&c, access_dr);
    write_dr6(DR6_INIT);
    write_dr7(0x2400); /* GD */
    context_run(&c);
    check_stop("general detect", &c, DB, NO_ERROR, (uintptr_t)access_dr);
    check("  DR6", read_dr6(), DR6_INIT | DR6_BD);
    check("  GD is clear in the handler", read_dr7(), 0x400);
    context_init_user(&c, access_dr);
    context_run(&c);
    check_stop("MOV DR in user mode", &c, GP, 0, USER(access_dr));
    write_dr6(0);
    check("DR6 fixed bits", read_dr6(), DR6_INIT);
    write_dr7(0x155);
    check("DR7 fixed bit", read_dr7(), 0x555);
    write_dr7(0x400);
    context_init(&c, bad_dr7);
    c.gpr[RDI] = 1ul << 32;
    context_run(&c);
    check_stop("DR7: high half", &c, GP, 0, (uintptr_t)bad_dr7);
    write_cr4(read_cr4() | 8);
    context_init(&c, access_dr4);
    context_run(&c);
    check_stop("DR4 with CR4.DE", &c, UD, NO_ERROR, (uintptr_t)access_dr4);
    write_cr4(read_cr4() & ~8ul);
    context_init(&c, access_dr4);
    context_run(&c);
    check("DR4 is DR6 without CR4.DE", c.gpr[RAX], DR6_INIT);
}

void test_main(void)
{
    test_step();
    test_execution();
    test_data();
    test_registers();
}
