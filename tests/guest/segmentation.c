/*
 * Segmentation under long mode: compatibility segments with base and limit, expand-down, types,
 * null selectors, 16-bit code, what 64-bit mode ignores and what it does not (FS, GS), LAR, LSL,
 * VERR, VERW, the accessed bit, 64-bit call gates, far jumps and returns between the modes, LDT.
 * SDM volume 3, chapters 3 and 5.
 */
#include "runtime.h"

SNIPPET(load_ds, ".code32; mov (%edi), %eax; .code64");
SNIPPET(load_ds_byte, ".code32; mov (%edi), %al; .code64");
SNIPPET(store_ds, ".code32; mov %eax, (%edi); .code64");
SNIPPET(load_ss, ".code32; mov (%ebp), %eax; .code64");
SNIPPET(store_cs, ".code32; mov %eax, %cs:(%edi); .code64");
SNIPPET(load_cs, ".code32; mov %cs:(%edi), %eax; .code64");
SNIPPET(load_fs, ".code32; mov %fs:(%edi), %eax; .code64");
SNIPPET(push_32, ".code32; push %eax; .code64");
SNIPPET(set_gs, "mov %eax, %gs; mov %gs:(%rdi), %rbx");
SNIPPET(code_16, ".code16; mov $0x1234, %ax; add %ax, %ax; push %ax; pop %bx; .code64");
SNIPPET(address_16, ".code16; mov 2(%bx, %si), %ax; .code64");
SNIPPET(wrap_16, ".code16; movw $0x55aa, %ax; movb %al, 0xffff(%bx); .code64");
SNIPPET(flat_64, "mov %ds:(%rdi), %rax; mov %es:(%rdi), %rbx; mov %ss:(%rdi), %rcx");
SNIPPET(lar_lsl, "xor %ebx, %ebx; lar %eax, %ebx; setz %cl; lsl %eax, %edx; setz %ch");
SNIPPET(verify, "verr %ax; setz %cl; verw %ax; setz %ch");
SNIPPET(far_call, "lcall *(%rdi); nop");
SNIPPET(far_jump, "ljmp *(%rdi)");
SNIPPET(gate_target, "nop");
SNIPPET(far_return, "lretq");
SNIPPET(far_return_16, "lretq $16");
SNIPPET(to_32_and_back, "lea 1f(%rip), %rax; pushq $0x18; push %rax; lretq;"
                        "1: .code32; mov $-1, %eax; inc %eax; dec %eax; .byte 0x40;"
                        "ljmp $8, $2f; .code64; 2: mov $-1, %rbx; .byte 0x48, 0xff, 0xc0");
SNIPPET(load_ldt, "lldt %ax");
SNIPPET(load_task, "ltr %ax");

static uint64_t *slot(unsigned n)
{
    return &gdt[SPARE / 8 + n];
}

static struct context run_32(const char *code, unsigned selector, uintptr_t edi)
{
    struct context c;
    context_init_user(&c, code);
    c.cs = USER_CODE32;
    c.ds = c.es = c.fs = selector;
    c.gpr[RDI] = edi;
    context_run(&c);
    return c;
}

static void limit_case(const char *name, const char *code, unsigned selector, uintptr_t edi,
                       bool good)
{
    struct context c = run_32(code, selector, edi);
    if (good) {
        check(name, c.vector, UD);
    } else {
        check_stop(name, &c, GP, 0, USER(code));
    }
}

static void test_limits(void)
{
    uint32_t *page = page_new();
    page[0] = 0x11223344, page[1] = 0x55667788;
    *slot(0) = descriptor(USER(page), 7, 0xf3, 4); /* 8 bytes */
    struct context c = run_32(load_ds, SPARE | 3, 4);
    check("base", c.gpr[RAX], 0x55667788);
    check("accessed bit is set", *slot(0) >> 40 & 0xff, 0xf3);
    limit_case("at the limit", load_ds, SPARE | 3, 4, true);
    limit_case("across the limit", load_ds, SPARE | 3, 5, false);
    limit_case("beyond the limit", load_ds_byte, SPARE | 3, 8, false);
    limit_case("last byte", load_ds_byte, SPARE | 3, 7, true);
    limit_case("wrap at 4 GiB", load_ds, SPARE | 3, 0xfffffffe, false);
    limit_case("store at the limit", store_ds, SPARE | 3, 4, true);
    limit_case("FS", load_fs, SPARE | 3, 5, false);
    *slot(0) = descriptor(USER(page), 0, 0xf3, 0xc); /* one page */
    limit_case("page granularity: inside", load_ds, SPARE | 3, 0xffc, true);
    limit_case("page granularity: outside", load_ds, SPARE | 3, 0xffd, false);
    *slot(0) = descriptor(USER(page) - 0x1000, 0xfff, 0xf7, 4); /* expand-down, 32 bit */
    limit_case("expand-down: inside", load_ds, SPARE | 3, 0x1000, true);
    limit_case("expand-down: below", load_ds, SPARE | 3, 0xfff, false);
    limit_case("expand-down: far below", load_ds_byte, SPARE | 3, 0, false);
    *slot(0) = descriptor(USER(page) - 0x1000, 0xfff, 0xf7, 0); /* expand-down, 16 bit */
    limit_case("expand-down, 16 bit: inside", load_ds, SPARE | 3, 0x1ffc, true);
    limit_case("expand-down, 16 bit: above 64 KiB", load_ds, SPARE | 3, 0xfffd, false);
    *slot(0) = descriptor(USER(page), 0xfffff, 0xf1, 0xc); /* read-only */
    limit_case("read-only: read", load_ds, SPARE | 3, 0, true);
    limit_case("read-only: write", store_ds, SPARE | 3, 0, false);
    *slot(0) = descriptor(USER(page), 0xfffff, 0xf2, 0xc); /* not accessed yet */
    run_32(load_ds, SPARE | 3, 0);
    check("accessed bit was set by the load", *slot(0) >> 40 & 1, 1);
    limit_case("null selector: load", load_ds, 0, 0, false);
    limit_case("null selector: store", store_ds, 3, 0, false);
    limit_case("CS: read", load_cs, USER_DATA, USER(page), true);
    limit_case("CS: write", store_cs, USER_DATA, USER(page), false);
    *slot(0) = descriptor(USER(page), 15, 0xf3, 4);
    context_init_user(&c, push_32);
    c.cs = USER_CODE32;
    c.ss = SPARE | 3;
    c.gpr[RSP] = 16;
    context_run(&c);
    check("push in a small stack", c.vector == UD && c.gpr[RSP] == 12, 1);
    c.gpr[RSP] = 18;
    c.ip = USER(push_32);
    context_run(&c);
    check_stop("push across the limit", &c, SS, 0, USER(push_32));
    context_init_user(&c, load_ss);
    c.cs = USER_CODE32;
    c.ss = SPARE | 3;
    c.gpr[RBP] = 13;
    context_run(&c);
    check_stop("EBP means SS", &c, SS, 0, USER(load_ss));
    *slot(1) = descriptor(USER(gate_target) - 0x10, 0x10, 0xfb, 4);
    context_init_user(&c, gate_target);
    c.cs = (SPARE + 8) | 3;
    c.ip = 0x10;
    context_run(&c);
    check_stop("code runs over its limit", &c, GP, 0, 0x11);
}

static void test_16_bit(void)
{
    uint16_t *page = page_new();
    page[10] = 0x4321;
    *slot(0) = descriptor(USER(code_16), 0xffff, 0xfb, 0);
    *slot(1) = descriptor(USER(page), 0xffff, 0xf3, 0);
    struct context c;
    context_init_user(&c, code_16);
    c.cs = SPARE | 3;
    c.ss = c.ds = (SPARE + 8) | 3;
    c.ip = 0;
    c.gpr[RSP] = 0xabcd0100;
    c.gpr[RAX] = c.gpr[RBX] = 0x77777777;
    context_run(&c);
    check("16-bit code: vector", c.vector, UD);
    check("  ax", c.gpr[RAX], 0x77772468);
    check("  bx", c.gpr[RBX], 0x77772468);
    check("  the 16-bit stack used SP", page[0x7f], 0x2468);
    /* IRET to a 16-bit stack leaves the upper half of ESP to the CPU */
    check("  sp", c.gpr[RSP] & 0xffff, 0x100);
    *slot(0) = descriptor(USER(address_16), 0xffff, 0xfb, 0);
    context_init_user(&c, address_16);
    c.cs = SPARE | 3;
    c.ds = (SPARE + 8) | 3;
    c.ip = 0;
    c.gpr[RBX] = 0xfff0, c.gpr[RSI] = 0x22;
    context_run(&c);
    check("16-bit addresses wrap", c.gpr[RAX], 0x4321);
    *slot(0) = descriptor(USER(wrap_16), 0xffff, 0xfb, 0);
    context_init_user(&c, wrap_16);
    c.cs = SPARE | 3;
    c.ds = (SPARE + 8) | 3;
    c.ip = 0;
    c.gpr[RBX] = 3;
    context_run(&c);
    check("  and so do stores", page[1], 0xaa);
}

static void test_64_bit(void)
{
    struct context c;
    uint64_t *page = page_new();
    page[0] = 0x1234567890;
    page[1] = 0x77;
    *slot(0) = descriptor(0x12345000, 7, 0x93, 4);
    context_init(&c, flat_64);
    c.ds = c.es = SPARE;
    c.gpr[RDI] = (uintptr_t)page;
    context_run(&c);
    check("64-bit mode ignores DS", c.gpr[RAX], 0x1234567890);
    check("64-bit mode ignores ES", c.gpr[RBX], 0x1234567890);
    c.ip = (uintptr_t)flat_64;
    c.ds = c.es = 0;
    context_run(&c);
    check("null DS is fine", c.gpr[RAX], 0x1234567890);
    *slot(0) = descriptor((uint32_t)(uintptr_t)page, 0, 0x93, 4);
    context_init(&c, set_gs);
    c.gpr[RAX] = SPARE;
    c.gpr[RDI] = 8;
    context_run(&c);
    check("GS: base yes, limit no", c.gpr[RBX], 0x77);
    check("  the MSR shows it", read_msr(0xc0000101), (uintptr_t)page);
    write_msr(0xc0000101, 0);
}

static void test_questions(void)
{
    struct context c;
    *slot(0) = descriptor(0, 0x12345, 0x93, 0xc);
    context_init(&c, lar_lsl);
    c.gpr[RAX] = SPARE;
    context_run(&c);
    check("LAR", c.gpr[RBX] & 0xfff0ff00, 0x00c09300);
    check("LSL", c.gpr[RDX], 0x12345fff);
    check("  both set ZF", c.gpr[RCX] & 0xffff, 0x101);
    context_init_user(&c, lar_lsl);
    c.gpr[RAX] = SPARE;
    c.gpr[RDX] = 0x99;
    context_run(&c);
    check("LAR, LSL without the privilege", c.gpr[RCX] & 0xffff, 0);
    check("  leave the register", c.gpr[RDX], 0x99);
    context_init(&c, lar_lsl);
    c.gpr[RAX] = 0;
    context_run(&c);
    check("LAR, LSL of null", c.gpr[RCX] & 0xffff, 0);
    static const struct {
        uint16_t selector;
        uint16_t readable, writable;
    } cases[] = {
        {USER_DATA, 1, 1}, {USER_CODE, 1, 0}, {KERNEL_DATA, 0, 0},
        {0, 0, 0},         {0xfff8, 0, 0},    {TASK, 0, 0},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        context_init_user(&c, verify);
        c.gpr[RAX] = cases[i].selector;
        context_run(&c);
        check("VERR", c.gpr[RCX] & 0xff, cases[i].readable);
        check("VERW", c.gpr[RCX] >> 8 & 0xff, cases[i].writable);
    }
}

/* A 64-bit call gate has 16 bytes. */
static void set_gate(unsigned n, uint16_t selector, uintptr_t target, uint8_t access)
{
    *slot(n) = (target & 0xffff) | (uint64_t)selector << 16 | (uint64_t)access << 40 |
               (uint64_t)(target >> 16 & 0xffff) << 48;
    *slot(n + 1) = target >> 32;
}

static void test_gates(void)
{
    struct {
        uint32_t offset;
        uint16_t selector;
    } __attribute__((packed)) *pointer = page_new();
    uint64_t *stack = page_new();
    pointer->offset = 0x12345678;
    pointer->selector = SPARE | 3;
    set_gate(0, KERNEL_CODE, (uintptr_t)gate_target, 0xec);
    uint64_t *rsp0 = (uint64_t *)(task_segment + 4), before = *rsp0;
    *rsp0 = (uintptr_t)(stack + 100);
    struct context c;
    context_init_user(&c, far_call);
    c.gpr[RDI] = USER(pointer);
    context_run(&c);
    check_stop("call gate", &c, UD, NO_ERROR, (uintptr_t)gate_target_end);
    check("  cs", c.cs, KERNEL_CODE);
    check("  ss is null", c.ss, 0);
    check("  rsp", c.gpr[RSP], (uintptr_t)(stack + 96));
    check("  old ss", stack[99], USER_DATA);
    check("  old cs", stack[97], USER_CODE);
    check("  old rip", stack[96], USER(far_call) + 2);
    context_init(&c, far_return);
    c.gpr[RSP] = (uintptr_t)(stack + 96);
    stack[96] = USER(gate_target);
    context_run(&c);
    check_stop("far return to user mode", &c, UD, NO_ERROR, USER(gate_target_end));
    check("  cs", c.cs, USER_CODE);
    check("  rsp", c.gpr[RSP], stack[98]);
    *rsp0 = before;
    set_gate(0, KERNEL_CODE, (uintptr_t)gate_target, 0x8c); /* DPL 0 */
    context_init_user(&c, far_call);
    c.gpr[RDI] = USER(pointer);
    context_run(&c);
    check_stop("call gate: privilege", &c, GP, SPARE, USER(far_call));
    set_gate(0, KERNEL_CODE, (uintptr_t)gate_target, 0x6c);
    context_init_user(&c, far_call);
    c.gpr[RDI] = USER(pointer);
    context_run(&c);
    check_stop("call gate: absent", &c, NP, SPARE, USER(far_call));
    set_gate(0, KERNEL_CODE32, (uintptr_t)gate_target, 0xec);
    context_init_user(&c, far_call);
    c.gpr[RDI] = USER(pointer);
    context_run(&c);
    check_stop("call gate: not to 64-bit code", &c, GP, KERNEL_CODE32, USER(far_call));
    set_gate(0, KERNEL_CODE, 1ul << 60, 0xec);
    context_init_user(&c, far_call);
    c.gpr[RDI] = USER(pointer);
    context_run(&c);
    check("call gate: non-canonical target", c.vector, GP);
    context_init(&c, far_return_16);
    c.gpr[RSP] = (uintptr_t)stack;
    stack[0] = (uintptr_t)gate_target;
    stack[1] = KERNEL_CODE;
    context_run(&c);
    check("RET far with 16 bytes", c.gpr[RSP], (uintptr_t)(stack + 4));
    context_init(&c, far_jump);
    pointer->selector = USER_CODE;
    c.gpr[RDI] = (uintptr_t)pointer;
    context_run(&c);
    check_stop("far jump outwards", &c, GP, USER_CODE & ~3ul, (uintptr_t)far_jump);
    pointer->selector = TASK;
    context_init(&c, far_jump);
    c.gpr[RDI] = (uintptr_t)pointer;
    context_run(&c);
    check_stop("no task switch in long mode", &c, GP, TASK, (uintptr_t)far_jump);
    context_init(&c, to_32_and_back);
    context_run(&c);
    check_stop("to compatibility mode and back", &c, UD, NO_ERROR, (uintptr_t)to_32_and_back_end);
    check("  40H was INC there", c.gpr[RAX], 1);
    check("  48H is REX here", c.cs, KERNEL_CODE);
}

static void test_system_segments(void)
{
    struct context c;
    uint64_t *ldt = page_new();
    ldt[1] = descriptor(USER(ldt), 0xf, 0xf3, 4);
    *slot(0) = descriptor((uint32_t)(uintptr_t)ldt, 15, 0x82, 0);
    *slot(1) = 0;
    context_init(&c, load_ldt);
    c.gpr[RAX] = SPARE;
    context_run(&c);
    check("LLDT", c.vector, UD);
    uint16_t selector;
    __asm__ volatile("sldt %0" : "=r"(selector));
    check("SLDT", selector, SPARE);
    c = run_32(load_ds, 8 | 4 | 3, 12);
    check("a segment of the LDT", c.gpr[RAX], ldt[1] >> 32);
    limit_case("  its limit", load_ds, 8 | 4 | 3, 13, false);
    context_init_user(&c, load_ds);
    context_init(&c, load_ldt);
    c.gpr[RAX] = KERNEL_DATA;
    context_run(&c);
    check_stop("LLDT of data", &c, GP, KERNEL_DATA, (uintptr_t)load_ldt);
    context_init(&c, load_task);
    c.gpr[RAX] = TASK;
    context_run(&c);
    check_stop("LTR of a busy TSS", &c, GP, TASK, (uintptr_t)load_task);
    __asm__ volatile("lldt %w0" ::"r"(0));
}

void test_main(void)
{
    test_limits();
    test_16_bit();
    test_64_bit();
    test_questions();
    test_gates();
    test_system_segments();
}
