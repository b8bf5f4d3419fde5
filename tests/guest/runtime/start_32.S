/*
 * Start of a 32-bit guest test: Multiboot entry in protected mode without paging, GDT, TSS, IDT,
 * and the entry and exit paths of context_run(). Nothing is mapped until the test turns paging
 * on. Exceptions from CPL 0 arrive on the experiment's own stack, as this mode has it.
 */
#include "start.inc"

    .section .multiboot, "a"
    .balign 4
#ifdef KLUDGE /* a flat binary that says itself where it goes (Multiboot 1, 3.1.3) */
header:
    .long 0x1badb002, 0x10003, -(0x1badb002 + 0x10003)
    .long header, header, data_end, end, start
#else
    .long 0x1badb002, 0x3, -(0x1badb002 + 0x3)
#endif

    .text
    .code32
    .globl start
start:
    cli
    cld
    mov $boot_stack_top, %esp
    mov %eax, multiboot_magic
    mov %ebx, multiboot_information
    fill_task_descriptor
    lgdt gdt_pointer
    ljmp $8, $1f
1:  mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    lldt %ax
    mov $0x600, %eax
    mov %eax, %cr4
    mov %cr0, %eax
    and $~0xc, %eax
    or $0x10022, %eax
    mov %eax, %cr0
    fninit
    mask_interrupt_controllers
    mov $idt, %edi
    mov $stubs, %eax
    mov $256, %ecx
1:  mov %ax, (%edi)
    movw $8, 2(%edi)
    movw $0xee00, 4(%edi)
    mov %eax, %edx
    shr $16, %edx
    mov %dx, 6(%edi)
    add $16, %eax
    add $8, %edi
    loop 1b
    lidt idt_pointer
    mov $TASK_OFFSET, %eax
    ltr %ax
    call test_main
    call finish

    exception_stubs

/*
 * Stack here: vector, error, EIP, CS, EFLAGS, and from an outer level or virtual-8086 mode ESP,
 * SS (and ES, DS, FS, GS).
 */
stub_common:
    cld
    push %ds
    push %eax
    push %ebx
    mov $0x10, %eax
    mov %eax, %ds
    mov active_context, %ebx
    test %ebx, %ebx
    jz unexpected
    mov %ecx, 4(%ebx)
    mov %edx, 8(%ebx)
    mov %ebp, 20(%ebx)
    mov %esi, 24(%ebx)
    mov %edi, 28(%ebx)
    pop 12(%ebx)
    pop 0(%ebx)
    pop %eax
    movzx %ax, %eax
    mov %eax, 48(%ebx) /* ds */
    pop 64(%ebx) /* vector */
    pop 68(%ebx) /* error */
    pop 32(%ebx) /* eip */
    pop 40(%ebx) /* cs */
    pop 36(%ebx) /* eflags */
    xor %eax, %eax
    mov %es, %ax
    mov %eax, 52(%ebx)
    mov %fs, %ax
    mov %eax, 56(%ebx)
    mov %gs, %ax
    mov %eax, 60(%ebx)
    mov %cr2, %eax
    mov %eax, 72(%ebx)
    testl $0x20000, 36(%ebx)
    jnz 3f
    testb $3, 40(%ebx)
    jnz 2f
    mov %esp, 16(%ebx)
    xor %eax, %eax
    mov %ss, %ax
    mov %eax, 44(%ebx)
    jmp 4f
2:  pop 16(%ebx)
    pop 44(%ebx)
    jmp 4f
3:  pop 16(%ebx)
    pop 44(%ebx)
    pop 52(%ebx)
    pop 48(%ebx)
    pop 56(%ebx)
    pop 60(%ebx)
4:  mov $0x10, %eax
    mov %eax, %es
    mov %eax, %ss
    mov saved_stack, %esp
    movl $0, active_context
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    popf
    pop %edi
    pop %esi
    pop %ebp
    pop %ebx
    ret

unexpected:
    mov $0x10, %ecx
    mov %ecx, %ss
    mov 12(%esp), %eax
    mov 16(%esp), %edx
    mov 20(%esp), %ecx
    mov %cr2, %ebx
    push %ebx
    push %ecx
    push %edx
    push %eax
    call unexpected_exception

    .globl context_run
context_run:
    push %ebx
    push %ebp
    push %esi
    push %edi
    pushf
    cli
    mov 24(%esp), %edi
    mov %esp, saved_stack
    mov %edi, active_context
    testl $0x20000, 36(%edi)
    jnz 3f
    testb $3, 40(%edi)
    jnz 2f
    /* the same level: IRET takes no stack, so switch to the given one first */
    mov 44(%edi), %eax
    mov 16(%edi), %ecx
    mov %eax, %ss
    mov %ecx, %esp
    jmp 4f
3:  pushl 60(%edi)
    pushl 56(%edi)
    pushl 48(%edi)
    pushl 52(%edi)
2:  pushl 44(%edi)
    pushl 16(%edi)
4:  pushl 36(%edi)
    pushl 40(%edi)
    pushl 32(%edi)
    testl $0x20000, 36(%edi)
    jnz 5f
    mov 52(%edi), %eax
    mov %eax, %es
    mov 56(%edi), %eax
    mov %eax, %fs
    mov 60(%edi), %eax
    mov %eax, %gs
5:  mov 0(%edi), %eax
    mov 4(%edi), %ecx
    mov 8(%edi), %edx
    mov 12(%edi), %ebx
    mov 20(%edi), %ebp
    mov 24(%edi), %esi
    testl $0x20000, 36(%edi)
    jnz 6f
    pushl 48(%edi)
    mov 28(%edi), %edi
    pop %ds
    iret
6:  mov 28(%edi), %edi
    iret

    .data
    descriptors CODE_32, 0x2067 /* with an I/O permission map of 8 KiB */
    .globl gdt_pointer, idt_pointer
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
    .balign 8
idt_pointer:
    .word 2047
    .long idt
    .balign 16
    .globl task_segment
task_segment:
    .long 0
    .long ring0_stack_top, 0x10
    .long 0, 0, 0, 0
    .fill 18, 4, 0
    .word 0, 104
    .fill 8192, 1, 0xff
    .byte 0xff
    .balign 4
    .globl multiboot_magic, multiboot_information
multiboot_magic:
    .long 0
multiboot_information:
    .long 0
    .globl page_table
page_table:
    .long 0
    .globl saved_stack
saved_stack:
    .long 0
    .globl active_context
active_context:
    .long 0

    .bss
    .balign 4096
    .globl idt
idt:
    .skip 4096
    .skip 16384
boot_stack_top:
    .skip 8192
    .globl ring0_stack_top
ring0_stack_top:

    .section .note.GNU-stack, "", @progbits
