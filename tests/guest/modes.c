/*
 * Through the modes: long -> compatibility -> protected without paging -> 16-bit protected ->
 * real -> "unreal" -> protected -> PAE -> long, with a trace of what each one saw. Real-mode
 * interrupts by the vector table at 0, flags on its stack, segment wrap, BIOS-less. SDM volume 3,
 * chapters 9 and 20.
 */
#include "runtime.h"

/* The journey stands at 9000H, reachable from all modes; its notes go to 7000H. */
enum { PLACE = 0x9000, NOTES = 0x7000 };
__asm__(".pushsection .text\n"
        ".set ORG, 0x9000 - 0\n"
        ".macro note value\n movl \\value, (0x7000 + 4 * note_number)\n"
        ".set note_number, note_number + 1\n .endm\n"
        ".set note_number, 0\n"
        "journey: push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; pushf; cli\n"
        "mov %rsp, 0x6f00\n"
        "sidt 0x6f10; sgdt 0x6f20\n"
        "lgdt 0x9000 + journey_gdt - journey\n"
        "mov $0x6e00, %esp\n"
        "pushq $0x18; pushq $0x9000 + compat - journey; lretq\n"
        ".code32\n"
        "compat: mov $0x10, %eax; mov %eax, %ds; mov %eax, %ss; mov %eax, %es\n"
        "mov $0xc0000080, %ecx; rdmsr; note %eax\n" /* EFER: LMA */
        "mov %cr0, %eax; btr $31, %eax; mov %eax, %cr0; jmp 1f; 1:\n"
        "rdmsr; note %eax\n" /* LMA is gone, LME stays */
        "btr $8, %eax; wrmsr\n"
        "mov %cr4, %eax; mov %eax, %ebp; and $~0x20, %eax; mov %eax, %cr4\n"
        "mov $0x12345678, %eax; add $0x11111111, %eax; note %eax\n"
        "ljmp $0x20, $0x9000 + protected_16 - journey\n"
        ".code16\n"
        "protected_16: mov $0x28, %ax; mov %ax, %ds; mov %ax, %es; mov %ax, %ss\n"
        "mov $0xffff, %ax; add $1, %ax; pushf; pop %ax; movzwl %ax, %eax; and $0x41, %eax\n"
        "movl %eax, 0x7000 + 4 * 3\n"
        "lidtl 0x9000 + real_idt - journey\n"
        "mov %cr0, %eax; and $~1, %eax; mov %eax, %cr0\n"
        "ljmp $0x900, $real - journey\n"
        "real: mov $0x700, %ax; mov %ax, %ds; xor %ax, %ax; mov %ax, %ss; mov %ax, %es\n"
        "mov $0x6e00, %sp\n"
        "movl $0x600d0001, 4 * 4\n"
        "mov %cs, %ax; movzwl %ax, %eax; mov %eax, 4 * 5\n"
        /* interrupts by the vector table */
        "movw $real_handler - journey, %es:4 * 0x40; movw $0x900, %es:4 * 0x40 + 2\n"
        "movw $real_divide - journey, %es:0; movw $0x900, %es:2\n"
        "stc; sti; int $0x40; pushf; pop %ax; cli; movzwl %ax, %eax; and $0x201, %eax;"
        "mov %eax, 4 * 6\n"
        "xor %cx, %cx; mov $5, %ax; real_div: div %cx; movzwl %ax, %eax; mov %eax, 4 * 7\n"
        /* segments keep the descriptor's limit when protection goes: "unreal" mode */
        "mov %cr0, %eax; or $1, %al; mov %eax, %cr0; jmp 1f; 1: mov $0x10, %bx; mov %bx, %gs\n"
        "and $~1, %al; mov %eax, %cr0; jmp 1f; 1:\n"
        "mov $0x100000, %ebx; mov %gs:(%ebx), %eax; mov %eax, 4 * 8\n"
        /* addresses above 1 MiB: no wrap at A20 here */
        "mov $0xffff, %ax; mov %ax, %fs; mov %fs:0x10, %eax; mov %eax, 4 * 9\n"
        "lgdtl %cs:journey_gdt32 - journey\n"
        "mov %cr0, %eax; or $1, %al; mov %eax, %cr0\n"
        "ljmpl $0x18, $0x9000 + protected - journey\n"
        ".code32\n"
        "protected: mov $0x10, %eax; mov %eax, %ds; mov %eax, %ss; mov %eax, %es\n"
        ".set note_number, 10\n"
        "note $0x600d0002\n"
        "mov %ebp, %cr4\n"
        "mov $0xc0000080, %ecx; rdmsr; bts $8, %eax; wrmsr\n"
        "mov %cr0, %eax; bts $31, %eax; mov %eax, %cr0; jmp 1f; 1:\n"
        "rdmsr; note %eax\n"
        "ljmp $8, $0x9000 + long_again - journey\n"
        ".code64\n"
        "long_again: mov 0x6f00, %rsp; lgdt 0x6f20; lidt 0x6f10\n"
        "mov $0x10, %eax; mov %eax, %ds; mov %eax, %es; mov %eax, %ss\n"
        "pushq $8; lea 1f - journey + 0x9000, %rax; push %rax; lretq; 1:\n"
        "popf; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n"
        ".code16\n"
        "real_handler: push %bp; mov %sp, %bp; movzwl 6(%bp), %eax; mov %eax, 4 * 12\n"
        "pushf; pop %ax; movzwl %ax, %eax; mov %eax, 4 * 13\n"
        "movzwl 2(%bp), %eax; mov %eax, 4 * 14; andw $~1, 6(%bp); pop %bp; iret\n"
        "real_divide: push %bp; mov %sp, %bp; movzwl 2(%bp), %eax; sub $real_div - journey, %ax;"
        "mov %eax, 4 * 15; addw $2, 2(%bp); mov $0x77, %ax; pop %bp; iret\n"
        ".balign 8\n"
        "journey_table: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff\n"
        ".quad 0x00009b000000ffff, 0x000093000000ffff\n"
        "journey_gdt: .word 47; .quad 0x9000 + journey_table - journey\n"
        "journey_gdt32: .word 47; .long 0x9000 + journey_table - journey\n"
        "real_idt: .word 0x3ff; .long 0\n"
        "journey_end:\n"
        ".code64\n.popsection");
extern const char journey[], journey_end[];

void test_main(void)
{
    char *to = (char *)PLACE;
    for (const char *from = journey; from < journey_end; from++) {
        *to++ = *from;
    }
    volatile uint32_t *notes = (uint32_t *)NOTES;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 32; i++) {
            notes[i] = 0xdeadbeef;
        }
        __asm__ volatile("call *%0" ::"r"((uintptr_t)PLACE)
                         : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory",
                           "cc");
        check("compatibility mode: LME, LMA", notes[0] & 0x500, 0x500);
        check("protected mode: LME only", notes[1] & 0x500, 0x100);
        check("32-bit arithmetic", notes[2], 0x23456789);
        check("16-bit arithmetic: ZF, CF", notes[3], 0x41);
        check("real mode", notes[4], 0x600d0001);
        check("  CS", notes[5], 0x900);
        check("  INT: flags of the frame", notes[12] & 0x201, 0x201);
        check("  INT: IF is clear in the handler", notes[13] & 0x201, 0x001);
        check("  IRET: as the handler changed them", notes[6], 0x200);
        check("  #DE points at the instruction", notes[15], 0);
        check("  #DE handler returned", notes[7], 0x77);
        check("unreal mode", notes[8], *(uint32_t *)0x100000);
        check("FFFF:0010", notes[9], *(uint32_t *)0x100000);
        check("protected mode again", notes[10], 0x600d0002);
        check("long mode again: LME, LMA", notes[11] & 0x500, 0x500);
    }
}
