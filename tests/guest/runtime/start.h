/*
 * What the starts of 32-bit and 64-bit guest tests share, as assembler macros.
 */

/* The base of the TSS descriptor, in 32-bit code. */
    .macro fill_task_descriptor
    mov $task_segment, %eax
    mov %ax, gdt + TASK_OFFSET + 2
    shr $16, %eax
    mov %al, gdt + TASK_OFFSET + 4
    mov %ah, gdt + TASK_OFFSET + 7
    .endm

/* Whoever started us may have left the interrupt controllers on. */
    .macro mask_interrupt_controllers
    mov $0xff, %al
    out %al, $0x21
    out %al, $0xa1
    .endm

/* For each vector 16 bytes that push its number, behind an error code of -1 where it has none. */
    .macro exception_stubs
    .balign 16
stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if !((vector == 8) || (vector == 17) || ((vector >= 10) && (vector <= 14)))
    push $-1
    .endif
    push $vector
    jmp stub_common
    .set vector, vector + 1
    .endr
    .endm

/* `own` are the bits of code segments in the width of the test: L or D (SDM volume 3, 3.4.5). */
    .macro descriptors own, task_limit
    .balign 16
    .globl gdt
gdt:
    .quad 0
    .quad 0x008f9b000000ffff | \own /* 08 kernel code */
    .quad 0x00cf93000000ffff /* 10 kernel data */
    .quad 0x00cf9b000000ffff /* 18 kernel code, 32 bit */
    .quad 0x00cffb000000ffff /* 20 user code, 32 bit */
    .quad 0x00cff3000000ffff /* 28 user data */
    .quad 0x008ffb000000ffff | \own /* 30 user code */
    .quad 0x00009b000000ffff /* 38 kernel code, 16 bit */
    .quad 0x000093000000ffff /* 40 kernel data, 16 bit */
    .set TASK_OFFSET, . - gdt
    .quad 0x0000890000000000 | \task_limit /* 48 TSS */
    .quad 0
    .quad 0
    .fill 32, 8, 0 /* 60 spare */
gdt_end:
    .endm
    .set CODE_32, 1 << 54
    .set CODE_64, 1 << 53
