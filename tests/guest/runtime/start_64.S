/*
 * Start of a 64-bit guest test: Multiboot entry in 32-bit protected mode, page tables, long mode,
 * GDT, TSS, IDT, and the entry and exit paths of context_run().
 * Map: the first GiB and the last one are the identity (supervisor); USER_WINDOW shows the first
 * 16 MiB again for user mode.
 */
#include "start.inc"

    .section .multiboot, "a"
    .balign 4
    .long 0x1badb002, 0x3, -(0x1badb002 + 0x3)

/* Pages of 2 MiB from one on, whose address comes with the bits of its entry. */
    .macro fill_directory directory, first, count
    mov $\directory, %edi
    mov $\first, %eax
    mov $\count, %ecx
1:  mov %eax, (%edi)
    add $0x200000, %eax
    add $8, %edi
    loop 1b
    .endm

    .text
    .code32
    .globl start
start:
    cli
    cld
    mov $boot_stack_top, %esp
    /* page tables: one PML4, one PDPT, PDs for GiB 0, 1 (the window) and 3 */
    mov $pml4, %edi
    movl $pdpt + 7, (%edi)
    mov $pdpt, %edi
    movl $pd0 + 3, (%edi)
    movl $pd1 + 7, 8(%edi)
    movl $pd3 + 3, 24(%edi)
    fill_directory pd0, 0x83, 512
    fill_directory pd3, 0xc0000093, 512
    fill_directory pd1, 0x87, 8
    fill_task_descriptor
    call long_mode_on
    ljmp $8, $start_64

    /* PAE, LME and NXE, PG: shared by the first CPU and the others. */
    .globl long_mode_on
long_mode_on:
    mov $0x620, %eax /* PAE, OSFXSR, OSXMMEXCPT */
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x900, %eax
    wrmsr
    mov $0x80010033, %eax /* PG, WP, NE, ET, MP, PE */
    mov %eax, %cr0
    lgdt gdt_pointer
    ret

    .code64
start_64:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    lldt %ax
    mov $boot_stack_top, %rsp
    fninit
    mask_interrupt_controllers
    call idt_fill
    lidt idt_pointer
    mov $TASK_OFFSET, %eax
    ltr %ax
    call test_main
    call finish

/* IDT: 256 interrupt gates on IST 1 to the stubs. */
idt_fill:
    mov $idt, %rdi
    mov $stubs, %rax
    mov $256, %ecx
1:  mov %ax, (%rdi)
    movw $8, 2(%rdi)
    movw $0xee01, 4(%rdi) /* present, DPL 3, interrupt gate, IST 1 */
    mov %rax, %rdx
    shr $16, %rdx
    movw %dx, 6(%rdi)
    movl $0, 8(%rdi)
    movl $0, 12(%rdi)
    add $16, %rax
    add $16, %rdi
    loop 1b
    ret

    exception_stubs

/*
 * Stack here: vector, error, RIP, CS, RFLAGS, RSP, SS. The offsets are those of struct context.
 */
stub_common:
    cld
    push %rax
    push %rbx
    mov active_context, %rbx
    test %rbx, %rbx
    jz unexpected
    mov %rcx, 8(%rbx)
    mov %rdx, 16(%rbx)
    mov %rbp, 40(%rbx)
    mov %rsi, 48(%rbx)
    mov %rdi, 56(%rbx)
    mov %r8, 64(%rbx)
    mov %r9, 72(%rbx)
    mov %r10, 80(%rbx)
    mov %r11, 88(%rbx)
    mov %r12, 96(%rbx)
    mov %r13, 104(%rbx)
    mov %r14, 112(%rbx)
    mov %r15, 120(%rbx)
    pop %rax
    mov %rax, 24(%rbx) /* rbx */
    pop %rax
    mov %rax, 0(%rbx)
    pop 192(%rbx) /* vector */
    pop 200(%rbx) /* error */
    pop 128(%rbx) /* rip */
    pop 144(%rbx) /* cs */
    pop 136(%rbx) /* rflags */
    pop 32(%rbx)  /* rsp */
    pop 152(%rbx) /* ss */
    mov %cr2, %rax
    mov %rax, 208(%rbx)
    xor %eax, %eax
    mov %ds, %ax
    mov %rax, 160(%rbx)
    mov %es, %ax
    mov %rax, 168(%rbx)
    mov %fs, %ax
    mov %rax, 176(%rbx)
    mov %gs, %ax
    mov %rax, 184(%rbx)
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    movq $0, active_context
    mov saved_stack, %rsp
    mov $0x10, %eax
    mov %eax, %ss
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    popf
    ret

unexpected:
    mov 16(%rsp), %rdi
    mov 24(%rsp), %rsi
    mov 32(%rsp), %rdx
    mov %cr2, %rcx
    mov %rsp, %r8
    and $-16, %rsp
    call unexpected_exception

    .globl context_run
context_run:
    pushf
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    cli
    mov %rsp, saved_stack
    mov %rdi, active_context
    push 152(%rdi)
    push 32(%rdi)
    push 136(%rdi)
    push 144(%rdi)
    push 128(%rdi)
    mov 160(%rdi), %eax
    mov %eax, %ds
    mov 168(%rdi), %eax
    mov %eax, %es
    /* a null selector would clear the bases on some CPUs: leave FS and GS alone then */
    mov 176(%rdi), %eax
    test %eax, %eax
    jz 1f
    mov %eax, %fs
1:  mov 184(%rdi), %eax
    test %eax, %eax
    jz 1f
    mov %eax, %gs
1:
    mov 0(%rdi), %rax
    mov 8(%rdi), %rcx
    mov 16(%rdi), %rdx
    mov 24(%rdi), %rbx
    mov 40(%rdi), %rbp
    mov 48(%rdi), %rsi
    mov 64(%rdi), %r8
    mov 72(%rdi), %r9
    mov 80(%rdi), %r10
    mov 88(%rdi), %r11
    mov 96(%rdi), %r12
    mov 104(%rdi), %r13
    mov 112(%rdi), %r14
    mov 120(%rdi), %r15
    mov 56(%rdi), %rdi
    iretq

    .data
    descriptors CODE_64, 0x67
    .globl gdt_pointer, idt_pointer
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
    .balign 8
idt_pointer:
    .word 4095
    .quad idt
    .balign 16
    .globl task_segment
task_segment:
    .long 0
    .quad ring0_stack_top, 0, 0 /* RSP0..2 */
    .quad 0
    .quad trap_stack_top, 0, 0, 0, 0, 0, 0 /* IST1..7 */
    .quad 0
    .word 0, 104 /* no I/O permission map */
    .globl page_table
page_table:
    .quad pml4
saved_stack:
    .quad 0
    .globl active_context
active_context:
    .quad 0

    .bss
    .balign 4096
    .globl pml4
pml4:
    .skip 4096
pdpt:
    .skip 4096
pd0:
    .skip 4096
pd1:
    .skip 4096
pd3:
    .skip 4096
    .globl idt
idt:
    .skip 4096
    .skip 16384
boot_stack_top:
    .skip 8192
ring0_stack_top:
    .skip 8192
    .globl trap_stack_top
trap_stack_top:

    .section .note.GNU-stack, "", @progbits
