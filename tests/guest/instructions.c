/*
 * Integer instructions with corners: BCD, ENTER and LEAVE, CMPXCHG8B and 16B, XADD, BT with
 * far bit offsets, double shifts, rotates through carry, divisions, MOVBE-less byte swaps, POPF
 * and PUSHF, LOOP forms, XLAT, CMOV with faults, BSF of zero, flag images, TSC, CPUID.
 */
#include "runtime.h"

SNIPPET(daa, ".code32; daa; .code64");
SNIPPET(das, ".code32; das; .code64");
SNIPPET(aaa, ".code32; aaa; .code64");
SNIPPET(aas, ".code32; aas; .code64");
SNIPPET(aam, ".code32; aam; .code64");
SNIPPET(aam_0, ".code32; .byte 0xd4, 0; .code64");
SNIPPET(aad, ".code32; aad; .code64");
SNIPPET(enter_0, "enter $32, $0");
SNIPPET(enter_3, "enter $16, $3");
SNIPPET(leave, "leave");
SNIPPET(enter_32, ".code32; enter $8, $1; .code64");
SNIPPET(cmpxchg8b, "cmpxchg8b (%rdi)");
SNIPPET(cmpxchg16b, "lock cmpxchg16b (%rdi)");
SNIPPET(bts_far, "bts %rax, (%rdi)");
SNIPPET(shld, "shld %cl, %rbx, %rax");
SNIPPET(rcl_9, "rclb $9, %al");
SNIPPET(shift_0, "shl %cl, %eax");
SNIPPET(loop_3, "xor %eax, %eax; 1: inc %eax; loop 1b");
SNIPPET(loopne, "xor %eax, %eax; 1: inc %eax; cmp $3, %eax; loopne 1b");
SNIPPET(jrcxz, "jrcxz 1f; mov $1, %eax; 1: nop");
SNIPPET(xlat, "xlat");
SNIPPET(cmov_fault, "cmp %eax, %eax; cmovnz (%rdi), %rax");
SNIPPET(cmov_zero, "cmp %eax, %eax; cmovnz %ecx, %eax");
SNIPPET(bts_wraps, "addr32 bts %rcx, (%eax)");
SNIPPET(bsf_zero, "bsf %rcx, %rax; mov %rbx, %rsi; bsr %rcx, %rsi; mov %rbx, %r9;"
                  "mov %rbx, %r11; mov %rcx, %r10; bsf %rcx, %r9; bsr %rcx, %r11");
SNIPPET(lahf, "lahf");
SNIPPET(sahf, "sahf; pushf; pop %rbx");
SNIPPET(popf_user, "push %rax; popf; pushf; pop %rbx");
SNIPPET(pushf_16, "pushfw; pop %bx");
SNIPPET(pusha_32, ".code32; pusha; popa; .code64");
SNIPPET(push_sp, "push %rsp; pop %rax");
SNIPPET(pop_sp_memory, "push $7; pop (%rsp)");
SNIPPET(xchg_locked,
        "xchg %rax, (%rdi); lock addq $5, (%rdi); lock notq 8(%rdi); lock btsl $3, 16(%rdi)");
SNIPPET(high_bytes, "mov $0x12, %ah; mov %ah, %bl; xchg %al, %ah; add %bh, %ah");
SNIPPET(high_bytes_memory,
        "movq $0x1000, (%rdi); mov %ah, (%rdi); mov (%rdi), %r10; mov %ch, 1(%rdi);"
        "mov %r10, 8(%rdi); mov 1(%rdi), %dh; add %bh, (%rdi); adc (%rdi), %bh;"
        "xchg %bh, 9(%rdi); mov (%rdi), %rsi; mov 8(%rdi), %r8; pushf; pop %r9");
SNIPPET(high_byte_compare, "movb $0x34, (%rdi); lock cmpxchgb %ah, (%rdi); mov (%rdi), %bh");
SNIPPET(high_byte_fault, "nop; xchg %ch, (%rbx)");
SNIPPET(zero_extend, "mov $-1, %rax; mov %eax, %eax; mov $-1, %rbx; mov $0, %bx");
SNIPPET(imul_flags, "imul %rbx, %rax");
SNIPPET(bswap, "bswap %rax; bswap %ebx");
SNIPPET(cpuid_0, "xor %eax, %eax; cpuid");
SNIPPET(rdtsc_tsd, "rdtsc");
SNIPPET(rdpmc_user, "rdpmc");
SNIPPET(rdtscp_any, "rdtscp");
SNIPPET(adc_chain, "add %rax, %rax; adc %rbx, %rbx; adc %rcx, %rcx; sbb %rdx, %rdx");

static struct context run(const char *code, bool wide, uintptr_t rax, uintptr_t rbx, uintptr_t rcx,
                          uintptr_t rdx, uintptr_t flags)
{
    static uint64_t memory[32];
    struct context c;
    context_init_user(&c, code);
    if (!wide) {
        c.cs = USER_CODE32;
    }
    c.gpr[RAX] = rax, c.gpr[RBX] = rbx, c.gpr[RCX] = rcx, c.gpr[RDX] = rdx;
    c.gpr[RDI] = USER(memory);
    c.flags |= flags;
    context_run(&c);
    return c;
}

static void test_decimal(void)
{
    struct context c = run(daa, false, 0xae, 0, 0, 0, 0);
    check("DAA", c.gpr[RAX], 0x14);
    check("  CF, AF", c.flags & (FLAG_CF | FLAG_AF), FLAG_CF | FLAG_AF);
    c = run(daa, false, 0x2e, 0, 0, 0, FLAG_CF);
    check("DAA with carry", c.gpr[RAX], 0x94);
    c = run(das, false, 0xee, 0, 0, 0, FLAG_CF | FLAG_AF);
    check("DAS", c.gpr[RAX], 0x88);
    check("  CF, AF", c.flags & (FLAG_CF | FLAG_AF), FLAG_CF | FLAG_AF);
    c = run(aaa, false, 0x01fb, 0, 0, 0, 0);
    check("AAA", c.gpr[RAX], 0x0301); /* AX + 106H, AL & 0FH */
    c = run(aas, false, 0x0203, 0, 0, 0, FLAG_AF);
    check("AAS", c.gpr[RAX], 0x000d);
    c = run(aam, false, 0x123457, 0, 0, 0, 0);
    check("AAM", c.gpr[RAX], 0x120807);
    c = run(aam_0, false, 0x57, 0, 0, 0, 0);
    check_stop("AAM 0", &c, DE, NO_ERROR, USER(aam_0));
    c = run(aad, false, 0x120807, 0, 0, 0, 0);
    check("AAD", c.gpr[RAX], 0x120057);
}

static void test_frames(void)
{
    struct context c;
    uint64_t *stack = page_new();
    context_init(&c, enter_0);
    c.gpr[RSP] = (uintptr_t)(stack + 100);
    c.gpr[RBP] = 0x5555;
    context_run(&c);
    check("ENTER 32, 0: rbp", c.gpr[RBP], (uintptr_t)(stack + 99));
    check("  rsp", c.gpr[RSP], (uintptr_t)(stack + 95));
    check("  old rbp", stack[99], 0x5555);
    stack[199] = 0xa1, stack[198] = 0xa2;
    context_init(&c, enter_3);
    c.gpr[RSP] = (uintptr_t)(stack + 100);
    c.gpr[RBP] = (uintptr_t)(stack + 200);
    context_run(&c);
    check("ENTER 16, 3: rsp", c.gpr[RSP], (uintptr_t)(stack + 94));
    check("  display 1", stack[98], 0xa1);
    check("  display 2", stack[97], 0xa2);
    check("  display 3", stack[96], (uintptr_t)(stack + 99));
    context_init(&c, leave);
    c.gpr[RBP] = (uintptr_t)(stack + 99);
    context_run(&c);
    check("LEAVE: rbp", c.gpr[RBP], (uintptr_t)(stack + 200));
    check("  rsp", c.gpr[RSP], (uintptr_t)(stack + 100));
    context_init(&c, enter_0);
    c.gpr[RSP] = 0x80000008; /* below is a hole */
    c.gpr[RBP] = 0x5555;
    context_run(&c);
    check("ENTER faults: rbp", c.vector == PF && c.gpr[RBP] == 0x5555, 1);
    check("  rsp", c.gpr[RSP], 0x80000008);
    context_init(&c, leave);
    c.gpr[RBP] = 0x80000000;
    c.gpr[RSP] = (uintptr_t)stack;
    context_run(&c);
    check("LEAVE faults: rsp", c.vector == PF && c.gpr[RSP] == (uintptr_t)stack, 1);
    context_init_user(&c, enter_32);
    c.cs = USER_CODE32;
    c.gpr[RSP] = USER(stack + 50);
    c.gpr[RBP] = 0x66;
    context_run(&c);
    check("ENTER in 32-bit code: rsp", c.gpr[RSP], USER(stack + 50) - 16);
    check("  rbp", c.gpr[RBP], USER(stack + 50) - 4);
    c = run(push_sp, true, 0, 0, 0, 0, 0);
    check("PUSH RSP pushes the old value", c.gpr[RAX], c.gpr[RSP]);
    context_init(&c, pop_sp_memory);
    uintptr_t rsp = c.gpr[RSP];
    context_run(&c);
    check("POP (RSP) addresses behind the pop", *(uint64_t *)(rsp - 8), 7);
    context_init_user(&c, pusha_32);
    c.cs = USER_CODE32;
    c.gpr[RAX] = 0x11, c.gpr[RDI] = 0x77;
    rsp = c.gpr[RSP];
    context_run(&c);
    check("PUSHA, POPA", c.gpr[RSP] == rsp && c.gpr[RAX] == 0x11 && c.gpr[RDI] == 0x77, 1);
}

static void test_exchange(void)
{
    static uint64_t memory[4] __attribute__((aligned(64)));
    struct context c;
    memory[0] = 0x1122334455667788;
    context_init(&c, cmpxchg8b);
    c.gpr[RDI] = (uintptr_t)memory;
    c.gpr[RAX] = 0x9900000055667788, c.gpr[RDX] = 0x11223344, c.gpr[RBX] = 1, c.gpr[RCX] = 2;
    c.flags |= FLAG_CF | FLAG_OF;
    context_run(&c);
    check("CMPXCHG8B: equal", memory[0], 0x200000001);
    check("  only ZF changes", c.flags & FLAGS_ARITHMETIC, FLAG_CF | FLAG_OF | FLAG_ZF);
    check("  rax stays whole", c.gpr[RAX], 0x9900000055667788);
    c.ip = (uintptr_t)cmpxchg8b;
    context_run(&c);
    check("CMPXCHG8B: different", memory[0], 0x200000001);
    check("  eax", c.gpr[RAX], 1);
    check("  edx", c.gpr[RDX], 2);
    check("  no ZF", c.flags & FLAGS_ARITHMETIC, FLAG_CF | FLAG_OF);
    memory[0] = 1, memory[1] = 2;
    context_init(&c, cmpxchg16b);
    c.gpr[RDI] = (uintptr_t)memory;
    c.gpr[RAX] = 1, c.gpr[RDX] = 2, c.gpr[RBX] = 3, c.gpr[RCX] = 4;
    context_run(&c);
    check("CMPXCHG16B: low", memory[0], 3);
    check("  high", memory[1], 4);
    check("  ZF", c.flags & FLAG_ZF, FLAG_ZF);
    context_init(&c, cmpxchg16b);
    c.gpr[RDI] = (uintptr_t)memory + 8;
    context_run(&c);
    check_stop("CMPXCHG16B: misaligned", &c, GP, 0, (uintptr_t)cmpxchg16b);
    map(0x80000000, (uintptr_t)page_new(), PTE_P);
    context_init(&c, cmpxchg16b);
    c.gpr[RDI] = 0x80000000;
    c.gpr[RAX] = 5; /* differs: still a write */
    context_run(&c);
    check_stop("CMPXCHG16B: read-only", &c, PF, PF_P | PF_W, (uintptr_t)cmpxchg16b);
    check("  rax", c.gpr[RAX], 5);
    map(0x80000000, 0, 0);
    memory[0] = 10, memory[1] = 0, memory[2] = 0;
    context_init(&c, xchg_locked);
    c.gpr[RDI] = (uintptr_t)memory;
    c.gpr[RAX] = 90;
    context_run(&c);
    check("XCHG, LOCK ADD", memory[0], 95);
    check("  LOCK NOT", memory[1], -1ull);
    check("  LOCK BTS", memory[2], 8);
    check("  old value", c.gpr[RAX], 10);
}

static void test_bits(void)
{
    static uint64_t memory[64];
    struct context c;
    context_init(&c, bts_far);
    c.gpr[RDI] = (uintptr_t)(memory + 32);
    c.gpr[RAX] = -64 * 3 + 5;
    context_run(&c);
    check("BTS with a negative bit offset", memory[29], 32);
    context_init(&c, bts_wraps);
    c.gpr[RAX] = (uint32_t)(uintptr_t)memory - 0x10000000;
    c.gpr[RCX] = 0x80000000ul + 8; /* bits: 10000000H bytes and 8 bits further */
    context_run(&c);
    check("BTS with a 32-bit address", memory[0] & 0x100, 0x100);
    c.gpr[RAX] = (uint32_t)(uintptr_t)memory + 0x10000000;
    c.gpr[RCX] = 9 - 0x80000000ul;
    c.ip = (uintptr_t)bts_wraps;
    context_run(&c);
    check("  and a negative bit offset", memory[0] & 0x200, 0x200);
    c = run(shld, true, 0x8000000000000001, 0xf000000000000000, 68, 0, 0);
    check("SHLD by 68", c.gpr[RAX], 0x1f);
    c = run(rcl_9, true, 0x5a, 0, 0, 0, FLAG_CF);
    check("RCL by 9 of a byte", c.gpr[RAX], 0x5a);
    check("  CF", c.flags & FLAG_CF, FLAG_CF);
    c = run(shift_0, true, 0xffffffff80000001, 0, 32, 0, FLAGS_ARITHMETIC);
    check("shift by 32: flags stay", c.flags & FLAGS_ARITHMETIC, FLAGS_ARITHMETIC);
    check("  but the upper half goes", c.gpr[RAX], 0x80000001);
    c = run(bsf_zero, true, 0x1234, 0x5678, 0, 0, 0);
    check("BSF of zero: ZF", c.flags & FLAG_ZF, FLAG_ZF);
    check("  the destination stays", c.gpr[RAX], 0x1234);
    check("  so does R9", c.gpr[R9], 0x5678);
    check("BSR of zero: R11 stays", c.gpr[R11], 0x5678);
    check("  so does RSI", c.gpr[RSI], 0x5678);
    c = run(bswap, true, 0x0102030405060708, 0xffffffff01020304, 0, 0, 0);
    check("BSWAP 64", c.gpr[RAX], 0x0807060504030201);
    check("BSWAP 32", c.gpr[RBX], 0x04030201);
    c = run(imul_flags, true, 1ul << 62, 4, 0, 0, 0);
    check("IMUL overflow", c.flags & (FLAG_CF | FLAG_OF), FLAG_CF | FLAG_OF);
    c = run(high_bytes, true, 0xff34, 0x2200, 0, 0, 0);
    check("high bytes: ax", c.gpr[RAX], 0x5612);
    check("  bl", c.gpr[RBX], 0x2212);
    c = run(high_bytes_memory, true, 0xff34, 0xab22, 0x5678, 0x1100, 0);
    check("high bytes and memory: stores", c.gpr[RSI], 0x56aa);
    check("  what was there, and XCHG", c.gpr[R8], 0x56ff);
    check("  ADD, ADC, XCHG", c.gpr[RBX], 0x1022);
    check("  load", c.gpr[RDX], 0x5600);
    check("  R10", c.gpr[R10], 0x10ff);
    check("  flags", c.gpr[R9] & FLAGS_ARITHMETIC, FLAG_CF | FLAG_PF | FLAG_AF | FLAG_OF);
    c = run(high_byte_compare, true, 0x1234, 0, 0, 0, 0);
    check("CMPXCHG of AH", c.gpr[RBX] == 0x1200 && c.gpr[RAX] == 0x1234, 1);
    c = run(high_byte_fault, true, 0x1234, 1ul << 62, 0x5678, 0, 0);
    check_stop("high byte to no canonical address", &c, GP, 0, USER(high_byte_fault) + 1);
    check("  nothing changed", c.gpr[RAX] == 0x1234 && c.gpr[RCX] == 0x5678, 1);
    c = run(zero_extend, true, 0, 0, 0, 0, 0);
    check("32-bit results clear the upper half", c.gpr[RAX], 0xffffffff);
    check("16-bit results do not", c.gpr[RBX], 0xffffffffffff0000);
    c = run(adc_chain, true, 1ul << 63, -1ul, -1ul, 5, 0);
    check("ADC chain", c.gpr[RBX], -1ul);
    check("  SBB", c.gpr[RDX], -1ul);
}

static void test_control(void)
{
    struct context c = run(loop_3, true, 0, 0, 3, 0, 0);
    check("LOOP", c.gpr[RAX], 3);
    c = run(loopne, true, 0, 0, 10, 0, 0);
    check("LOOPNE", c.gpr[RAX] == 3 && c.gpr[RCX] == 7, 1);
    c = run(jrcxz, true, 0, 0, 0, 0, 0);
    check("JRCXZ taken", c.gpr[RAX], 0);
    c = run(jrcxz, true, 0, 0, 1ul << 32, 0, 0);
    check("JRCXZ not taken", c.gpr[RAX], 1);
    uint8_t *table = page_new();
    table[0xf0] = 0x5c;
    c = run(xlat, true, 0x12f0, USER(table), 0, 0, 0);
    check("XLAT", c.gpr[RAX], 0x125c);
    context_init(&c, cmov_fault);
    c.gpr[RDI] = 0x80000000;
    context_run(&c);
    check("CMOV reads even if it does not move", c.vector, PF);
    c = run(cmov_zero, true, -1ul, 0, 5, 0, 0);
    check("CMOV clears the upper half even then", c.gpr[RAX], 0xffffffff);
}

static void test_flags(void)
{
    struct context c = run(lahf, true, 0, 0, 0, 0, FLAGS_ARITHMETIC);
    check("LAHF", c.gpr[RAX] >> 8 & 0xff, 0xd7);
    c = run(sahf, true, 0xff00, 0, 0, 0, FLAG_OF);
    check("SAHF", c.gpr[RBX] & FLAGS_ARITHMETIC, FLAGS_ARITHMETIC);
    c = run(sahf, true, 0x0000, 0, 0, 0, FLAGS_ARITHMETIC);
    check("SAHF leaves OF", c.gpr[RBX] & 0xfff, 0x802);
    c = run(popf_user, true, 0x247ed7 & ~FLAG_TF, 0, 0, 0, 0);
    check("POPF in user mode: no IF, no IOPL", c.gpr[RBX], 0x244cd7);
    c = run(popf_user, true, 0x200 | 0x3000, 0, 0, 0, FLAG_IOPL3);
    check("POPF in user mode with IOPL 3: IF", c.gpr[RBX], 0x3202);
    c = run(popf_user, true, FLAG_RF | FLAG_VM | 2, 0, 0, 0, 0);
    check("POPF: no RF, no VM", c.gpr[RBX], 2);
    c = run(pushf_16, true, 0, 0xffff0000, 0, 0, FLAG_CF | FLAG_ID);
    check("PUSHFW", c.gpr[RBX], 0xffff0003);
}

static void test_clock(void)
{
    uint64_t before = rdtsc();
    for (int i = 0; i < 100; i++) {
        uint64_t now = rdtsc();
        check("TSC never goes back", now >= before, 1);
        before = now;
    }
    struct context c;
    write_cr4(read_cr4() | 4);
    context_init_user(&c, rdtsc_tsd);
    context_run(&c);
    check_stop("RDTSC with CR4.TSD", &c, GP, 0, USER(rdtsc_tsd));
    context_init(&c, rdtsc_tsd);
    context_run(&c);
    check("  at CPL 0", c.vector, UD);
    write_cr4(read_cr4() & ~4ul);
    context_init_user(&c, rdpmc_user);
    context_run(&c);
    check_stop("RDPMC in user mode", &c, GP, 0, USER(rdpmc_user));
    write_msr(0x10, 0x1000000000);
    uint64_t now = rdtsc();
    check("TSC written", now >= 0x1000000000 && now < 0x1100000000, 1);
    if (cpuid(0x80000001, 0).edx & 1 << 27) {
        write_msr(0xc0000103, 0x1234);
        context_init_user(&c, rdtscp_any);
        context_run(&c);
        check("RDTSCP", c.gpr[RCX], 0x1234);
    } else {
        context_init_user(&c, rdtscp_any);
        context_run(&c);
        check("RDTSCP where not offered", c.vector, UD);
    }
    c = run(cpuid_0, true, -1ul, -1ul, 0, -1ul, 0);
    check("CPUID clears the upper halves", (c.gpr[RAX] | c.gpr[RBX] | c.gpr[RDX]) >> 32, 0);
}

void test_main(void)
{
    test_decimal();
    test_frames();
    test_exchange();
    test_bits();
    test_control();
    test_flags();
    test_clock();
}
