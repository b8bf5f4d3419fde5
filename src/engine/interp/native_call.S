/*
 * Run one instruction on the guest's vector state, arithmetic flags and general registers.
 *
 * void native_call(struct native_frame *frame)
 *
 * R15 holds the frame throughout: the body (one instruction and RET) names neither RSP nor R15.
 * A fault in the body goes on at native_fault, with the return address of the body on the stack.
 */
#define HOST(n) (8 * (n))(%r15)
#define FLAGS 128(%r15)
#define BODY 136(%r15)
#define XSAVE 144(%r15)
#define MASK 152(%r15)
#define MASK_HIGH 156(%r15)
#define FAULT 160(%r15)
#define MXCSR 168(%r15)
#define FCW 172(%r15)

    .text
    .globl native_call
    .type native_call, @function
native_call:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rdi, %r15
    stmxcsr MXCSR
    fnstcw FCW
    movq $0, FAULT
    mov MASK, %eax
    mov MASK_HIGH, %edx
    mov XSAVE, %rcx
    xrstor64 (%rcx)
    mov FLAGS, %rax
    addb $0x7f, %al
    sahf
    mov HOST(0), %rax
    mov HOST(1), %rcx
    mov HOST(2), %rdx
    mov HOST(3), %rbx
    mov HOST(5), %rbp
    mov HOST(6), %rsi
    mov HOST(7), %rdi
    mov HOST(8), %r8
    mov HOST(9), %r9
    mov HOST(10), %r10
    mov HOST(11), %r11
    mov HOST(12), %r12
    mov HOST(13), %r13
    mov HOST(14), %r14
    call *BODY
.Ldone:
    mov %rax, HOST(0)
    lahf
    seto %al
    mov %rax, FLAGS
    mov %rcx, HOST(1)
    mov %rdx, HOST(2)
    mov %rbx, HOST(3)
    mov %rbp, HOST(5)
    mov %rsi, HOST(6)
    mov %rdi, HOST(7)
    mov %r8, HOST(8)
    mov %r9, HOST(9)
    mov %r10, HOST(10)
    mov %r11, HOST(11)
    mov %r12, HOST(12)
    mov %r13, HOST(13)
    mov %r14, HOST(14)
    mov MASK, %eax
    mov MASK_HIGH, %edx
    mov XSAVE, %rcx
    xsave64 (%rcx)
    fninit
    fldcw FCW
    ldmxcsr MXCSR
    testb $4, MASK /* AVX */
    jz 1f
    vzeroupper
1:
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
    .size native_call, . - native_call

    .globl native_fault
    .type native_fault, @function
native_fault:
    lea 8(%rsp), %rsp
    jmp .Ldone
    .size native_fault, . - native_fault

    .section .note.GNU-stack, "", @progbits
