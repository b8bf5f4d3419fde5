/*
 * Legacy protected mode without paging: flat and small segments, call gates with parameters,
 * interrupt and trap gates between the rings, conforming code, task switches (jump, call, IRET,
 * interrupt through a task gate, faults on the way), the I/O permission map, double faults.
 * SDM volume 3, chapters 5 to 7.
 */
#include "runtime.h"

SNIPPET(load, "mov (%edi), %eax");
SNIPPET(far_call, "lcall *(%edi); nop");
SNIPPET(far_jump, "ljmp *(%edi)");
SNIPPET(call_with_parameters, "pushl $0x11; pushl $0x22; lcall *(%edi)");
SNIPPET(target, "nop");
SNIPPET(return_8, "lret $8");
SNIPPET(int_40, "int $0x40; nop");
SNIPPET(in_port, "in %dx, %al");
SNIPPET(in_port_32, "in %dx, %eax");
SNIPPET(cli_sti, "cli; sti; pushf; pop %eax");
SNIPPET(iret_now, "iret");
SNIPPET(task_code, "mov $0x1234, %esi; iret; mov $0x5678, %esi");
SNIPPET(old_bytes, "arpl %cx, %ax; setz %bl");
SNIPPET(segment_pop, "push $0x10; pop %es; push %es; pop %eax; lds (%edi), %ebx");

struct task {
    uint32_t link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags;
    uint32_t eax, ecx, edx, ebx, esp, ebp, esi, edi;
    uint32_t es, cs, ss, ds, fs, gs, ldt;
    uint16_t trap, map;
};
extern struct task task_segment;
static struct task other __attribute__((aligned(128)));
static uint32_t other_stack[256];
static struct {
    uint32_t offset;
    uint16_t selector;
} __attribute__((packed)) pointer;

enum { OTHER = SPARE, GATE = SPARE + 8, SEGMENT = SPARE + 16 };

static uint64_t gate(uint16_t selector, uintptr_t offset, uint8_t access, unsigned count)
{
    return (offset & 0xffff) | (uint64_t)selector << 16 | (uint64_t)(count & 31) << 32 |
           (uint64_t)access << 40 | (uint64_t)(offset >> 16) << 48;
}

static void set_idt(unsigned vector, uint64_t value)
{
    ((uint64_t *)idt)[vector] = value;
}

static void test_segments(void)
{
    struct context c;
    static uint32_t words[4] = {0x11, 0x22, 0x33, 0x44};
    gdt[SEGMENT / 8] = descriptor((uintptr_t)words, 7, 0x93, 4);
    context_init(&c, load);
    c.ds = SEGMENT;
    c.gpr[RDI] = 4;
    context_run(&c);
    check("segment base", c.gpr[RAX], 0x22);
    c.ip = (uintptr_t)load;
    c.gpr[RDI] = 5;
    context_run(&c);
    check_stop("segment limit", &c, GP, 0, (uintptr_t)load);
    c.ip = (uintptr_t)load;
    c.ds = 0;
    c.gpr[RDI] = (uintptr_t)words;
    context_run(&c);
    check_stop("null DS", &c, GP, 0, (uintptr_t)load);
    context_init(&c, old_bytes);
    c.gpr[RAX] = 0x1230, c.gpr[RCX] = 0x3;
    context_run(&c);
    check("ARPL", c.gpr[RAX], 0x1233);
    check("  ZF", c.gpr[RBX] & 0xff, 1);
    static struct {
        uint32_t offset;
        uint16_t selector;
    } __attribute__((packed)) far = {0x7777, KERNEL_DATA};
    context_init(&c, segment_pop);
    c.gpr[RDI] = (uintptr_t)&far;
    context_run(&c);
    check("POP ES, PUSH ES", c.gpr[RAX], 0x10);
    check("LDS", c.gpr[RBX], 0x7777);
    check("  ds", c.ds, KERNEL_DATA);
}

static void test_call_gate(void)
{
    struct context c;
    uint32_t *stack = page_new();
    uint32_t esp0 = task_segment.esp0;
    task_segment.esp0 = (uintptr_t)(stack + 100);
    gdt[GATE / 8] = gate(KERNEL_CODE, (uintptr_t)target, 0xec, 2);
    pointer.selector = GATE;
    context_init_user(&c, call_with_parameters);
    c.gpr[RDI] = (uintptr_t)&pointer;
    uint32_t user_esp = c.gpr[RSP];
    context_run(&c);
    check_stop("call gate", &c, UD, NO_ERROR, (uintptr_t)target_end);
    check("  ss", c.ss, KERNEL_DATA);
    check("  ss pushed", stack[99], USER_DATA);
    check("  esp pushed", stack[98], user_esp - 8);
    check("  parameter 1", stack[97], 0x11);
    check("  parameter 2", stack[96], 0x22);
    check("  cs pushed", stack[95], USER_CODE);
    check("  eip pushed", stack[94], (uintptr_t)call_with_parameters_end);
    context_init(&c, return_8);
    c.gpr[RSP] = (uintptr_t)(stack + 94);
    stack[94] = (uintptr_t)target;
    context_run(&c);
    check_stop("return with parameters", &c, UD, NO_ERROR, (uintptr_t)target_end);
    check("  cs", c.cs, USER_CODE);
    check("  esp", c.gpr[RSP], user_esp);
    check("  the kernel's data segments are gone", c.ds, 0);
    task_segment.esp0 = esp0;
    gdt[GATE / 8] = gate(KERNEL_CODE, (uintptr_t)target, 0x8c, 0);
    context_init_user(&c, far_call);
    c.gpr[RDI] = (uintptr_t)&pointer;
    context_run(&c);
    check_stop("call gate of DPL 0", &c, GP, GATE, (uintptr_t)far_call);
    gdt[SEGMENT / 8] = descriptor(0, 0xfffff, 0x9f, 0xc); /* conforming, DPL 0 */
    pointer.selector = SEGMENT, pointer.offset = (uintptr_t)target;
    context_init_user(&c, far_jump);
    c.gpr[RDI] = (uintptr_t)&pointer;
    context_run(&c);
    check_stop("conforming code", &c, UD, NO_ERROR, (uintptr_t)target_end);
    check("  keeps the privilege", c.cs, SEGMENT | 3);
}

static void test_interrupt_gates(void)
{
    struct context c;
    uint64_t before = ((uint64_t *)idt)[0x40];
    uintptr_t stub = (before & 0xffff) | before >> 48 << 16;
    context_init_user(&c, int_40);
    c.flags |= FLAG_IOPL3 | FLAG_CF;
    context_run(&c);
    check_stop("interrupt gate", &c, 0x40, NO_ERROR, (uintptr_t)int_40 + 2);
    check("  esp", c.ss, USER_DATA);
    check("  flags", c.flags & 0xffff, 2 | FLAG_IOPL3 | FLAG_CF);
    set_idt(0x40, gate(KERNEL_CODE, stub, 0x8e, 0));
    context_init_user(&c, int_40);
    context_run(&c);
    check_stop("gate of DPL 0", &c, GP, 0x40 * 8 + 2, (uintptr_t)int_40);
    set_idt(0x40, gate(0, stub, 0xee, 0));
    context_init_user(&c, int_40);
    context_run(&c);
    check_stop("gate with a null selector", &c, GP, 0, (uintptr_t)int_40);
    set_idt(0x40, gate(KERNEL_DATA, stub, 0xee, 0));
    context_init(&c, int_40);
    context_run(&c);
    check_stop("gate to data", &c, GP, KERNEL_DATA, (uintptr_t)int_40);
    set_idt(0x40, before);
}

static void test_io(void)
{
    struct context c;
    context_init_user(&c, in_port);
    c.gpr[RDX] = 0x80;
    context_run(&c);
    check_stop("IN without permission", &c, GP, 0, (uintptr_t)in_port);
    uint8_t *bits = (uint8_t *)&task_segment + task_segment.map;
    bits[0x80 / 8] = 0xfe;
    c.ip = (uintptr_t)in_port;
    context_run(&c);
    check("IN with permission", c.vector, UD);
    c.ip = (uintptr_t)in_port_32;
    context_run(&c);
    check_stop("IN of 4 bytes needs 4 bits", &c, GP, 0, (uintptr_t)in_port_32);
    bits[0x80 / 8] = 0xf0;
    c.ip = (uintptr_t)in_port_32;
    context_run(&c);
    check("  and has them", c.vector, UD);
    bits[0x80 / 8] = 0xff;
    c.ip = (uintptr_t)in_port;
    c.flags |= FLAG_IOPL3;
    context_run(&c);
    check("IN with IOPL 3", c.vector, UD);
    context_init_user(&c, cli_sti);
    c.flags |= FLAG_IOPL3;
    context_run(&c);
    check("CLI, STI with IOPL 3", c.gpr[RAX] & (FLAG_IF | FLAG_IOPL3), FLAG_IF | FLAG_IOPL3);
    context_init_user(&c, cli_sti);
    context_run(&c);
    check_stop("CLI with IOPL 0", &c, GP, 0, (uintptr_t)cli_sti);
}

static void prepare_task(const void *code)
{
    for (unsigned i = 0; i < sizeof other / 4; i++) {
        ((uint32_t *)&other)[i] = 0;
    }
    other.eip = (uintptr_t)code;
    other.eflags = 2;
    other.esp = (uintptr_t)(other_stack + 256);
    other.cs = KERNEL_CODE;
    other.ss = other.ds = other.es = KERNEL_DATA;
    other.ebx = 0xbbbb;
    other.map = 104;
    gdt[OTHER / 8] = descriptor((uintptr_t)&other, 103, 0x89, 0);
    gdt[TASK / 8] = (gdt[TASK / 8] & ~(0xffull << 40)) | 0x8bull << 40; /* we run: busy */
}

static uint16_t current_task(void)
{
    uint16_t selector;
    __asm__ volatile("str %0" : "=r"(selector));
    return selector;
}

/* Back to the runtime's own task, whatever the last experiment left. */
static void restore_task(void)
{
    __asm__ volatile("pushf; andl $~0x4000, (%%esp); popf" ::: "memory", "cc");
    gdt[TASK / 8] = (gdt[TASK / 8] & ~(0xffull << 40)) | 0x89ull << 40;
    __asm__ volatile("ltr %w0; clts" ::"r"(TASK));
}

static void test_task_jump(void)
{
    struct context c;
    pointer.selector = OTHER;
    prepare_task(target);
    context_init(&c, far_jump);
    c.gpr[RDI] = (uintptr_t)&pointer;
    c.gpr[RCX] = 0xcccc;
    context_run(&c);
    check_stop("jump to a task", &c, UD, NO_ERROR, (uintptr_t)target_end);
    check("  its ebx", c.gpr[RBX], 0xbbbb);
    check("  its stack", c.gpr[RSP], other.esp);
    check("  TR", current_task(), OTHER);
    check("  the old task is saved: ecx", task_segment.ecx, 0xcccc);
    check("  and eip", task_segment.eip, (uintptr_t)far_jump_end);
    check("  the old one is not busy", gdt[TASK / 8] >> 40 & 0xff, 0x89);
    check("  the new one is", gdt[OTHER / 8] >> 40 & 0xff, 0x8b);
    check("  CR0.TS", read_cr0() & 8, 8);
    check("  no NT", c.flags & FLAG_NT, 0);
    restore_task();
}

static void test_task_call(void)
{
    struct context c;
    prepare_task(task_code);
    pointer.selector = OTHER;
    context_init(&c, far_call);
    c.gpr[RDI] = (uintptr_t)&pointer;
    c.gpr[RSI] = 0x1111;
    context_run(&c);
    check_stop("call a task, and back by IRET", &c, UD, NO_ERROR, (uintptr_t)far_call_end);
    check("  our registers", c.gpr[RSI], 0x1111);
    check("  its registers were saved", other.esi, 0x1234);
    check("  its eip", other.eip, (uintptr_t)task_code + 6);
    check("  its link", other.link, TASK);
    check("  TR", current_task(), TASK);
    check("  not busy any more", gdt[OTHER / 8] >> 40 & 0xff, 0x89);
    check("  NT is clear again", c.flags & FLAG_NT, 0);
    restore_task();
    prepare_task(task_code);
    gdt[GATE / 8] = gate(OTHER, 0, 0xe5, 0);
    pointer.selector = GATE;
    context_init_user(&c, far_call);
    c.gpr[RDI] = (uintptr_t)&pointer;
    context_run(&c);
    check_stop("task gate from user mode", &c, UD, NO_ERROR, (uintptr_t)far_call_end);
    check("  cs", c.cs, USER_CODE);
    restore_task();
    /* interrupt through a task gate */
    uint64_t before = ((uint64_t *)idt)[0x40];
    prepare_task(task_code);
    set_idt(0x40, gate(OTHER, 0, 0xe5, 0));
    context_init_user(&c, int_40);
    context_run(&c);
    check_stop("interrupt through a task gate", &c, UD, NO_ERROR, (uintptr_t)int_40_end);
    check("  the task ran", other.esi, 0x1234);
    set_idt(0x40, before);
    restore_task();
}

static void test_task_faults(void)
{
    struct context c;
    pointer.selector = OTHER;
    prepare_task(target);
    gdt[OTHER / 8] = descriptor((uintptr_t)&other, 103, 0x8b, 0);
    context_init(&c, far_jump);
    c.gpr[RDI] = (uintptr_t)&pointer;
    context_run(&c);
    check_stop("jump to a busy task", &c, GP, OTHER, (uintptr_t)far_jump);
    restore_task();
    prepare_task(target);
    gdt[OTHER / 8] = descriptor((uintptr_t)&other, 102, 0x89, 0);
    context_init(&c, far_jump);
    c.gpr[RDI] = (uintptr_t)&pointer;
    context_run(&c);
    check_stop("task segment too small", &c, TS, OTHER, (uintptr_t)far_jump);
    restore_task();
    prepare_task(target);
    gdt[OTHER / 8] = descriptor((uintptr_t)&other, 103, 0x09, 0);
    context_init(&c, far_jump);
    c.gpr[RDI] = (uintptr_t)&pointer;
    context_run(&c);
    check_stop("task segment absent", &c, NP, OTHER, (uintptr_t)far_jump);
    restore_task();
    prepare_task(iret_now);
    context_init(&c, iret_now);
    c.flags |= FLAG_NT;
    task_segment.link = KERNEL_DATA;
    context_run(&c);
    check_stop("IRET with NT and a bad link", &c, TS, KERNEL_DATA, (uintptr_t)iret_now);
    restore_task();
}

/* The first fault cannot be delivered, so a double fault comes, through a task gate. */
static void test_double_fault(void)
{
    struct context c;
    uint64_t ud = ((uint64_t *)idt)[UD], df = ((uint64_t *)idt)[DF];
    prepare_task(int_40);
    set_idt(DF, gate(OTHER, 0, 0xe5, 0));
    set_idt(GP, ((uint64_t *)idt)[GP] & ~(0x80ull << 40)); /* #GP's gate is absent: #NP */
    context_init_user(&c, iret_now);
    c.ip = (uintptr_t)cli_sti; /* #GP at CPL 3, then #NP: both contributory */
    context_run(&c);
    check_stop("double fault", &c, 0x40, NO_ERROR, (uintptr_t)int_40 + 2);
    check("  error code on the task's stack", other_stack[255], 0);
    check("  the task that failed", task_segment.eip, (uintptr_t)cli_sti);
    set_idt(GP, ((uint64_t *)idt)[GP] | 0x80ull << 40);
    set_idt(DF, df);
    set_idt(UD, ud);
    restore_task();
}

void test_main(void)
{
    test_segments();
    test_call_gate();
    test_interrupt_gates();
    test_io();
    test_task_jump();
    test_task_call();
    test_task_faults();
    test_double_fault();
}
