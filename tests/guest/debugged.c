/*
 * What a debugger is shown by tests/gdb/run-tests, stage by stage: code that sums up its own bytes,
 * accesses of every kind to watched variables, vector registers, page tables whose accessed bits
 * are to stay clear. Nothing of it may differ with a debugger at work, so the guest checks it
 * itself; without one it passes, too.
 */
#include "runtime.h"

#define QUIET_PAGE   0x7000000000ul
#define APIC(offset) (*(volatile uint32_t *)(0xfee00000ul + (offset)))
enum { STAGES = 5, VECTOR = 0x51 };

/* Their names are the debugger's. */
volatile uint64_t counter, poked, seen_rax;
volatile uint8_t watched[1024] __attribute__((aligned(4096)));
volatile uint8_t crossing[8192] __attribute__((aligned(4096)));
volatile uint8_t source[64] __attribute__((aligned(4096)));
volatile uint64_t vector_in[8] __attribute__((aligned(64))),
    vector_out[8] __attribute__((aligned(64)));
volatile uint64_t wide_in[8] __attribute__((aligned(64))), wide_out[8] __attribute__((aligned(64)));
uint32_t sums[STAGES];
volatile pte_t *quiet_entry;
uint64_t *quiet_page;

void traced(void), traced_end(void), access_all(void), patched(void), masked(void), vectors(void);
void stage(void), finished(void);

/* Breakpoints and steps are here. */
__asm__(
    ".pushsection .text; .balign 64; .globl traced, traced_end, access_all, access_end, patched\n"
    "traced: incq counter(%rip)\n"
    "traced_2: mov $5, %eax\n"
    "traced_3: lea 2(%rax), %ecx\n"
    "traced_4: ret\n"
    "traced_end:\n"
    /* each of these instructions accesses what is watched, once or more often */
    ".globl write_8, write_1, read_8, add_4, locked, move_in, sse_write, push_in, cross, "
    "unwatched\n"
    ".globl fx_write, fx_read, sse_read, traced_2, traced_3, traced_4\n"
    "access_all: push %rsi; push %rdi; push %rbx\n"
    "lea watched(%rip), %rbx\n"
    "mov $0x1122334455667788, %rax\n"
    "write_8: mov %rax, 8(%rbx)\n"
    "write_1: movb $7, 15(%rbx)\n"
    "read_8: mov 4(%rbx), %rcx\n"
    "add_4: addl $1, 12(%rbx)\n"
    "locked: lock incl 8(%rbx)\n"
    "lea source(%rip), %rsi; lea watched(%rip), %rdi; mov $32, %ecx; cld\n"
    "move_in: rep movsb\n"
    "sse_write: movups %xmm0, 1(%rbx)\n"
    "sse_read: movups 1(%rbx), %xmm0\n"
    "mov %rsp, %rcx; lea 16(%rbx), %rsp\n"
    "push_in: push %rax\n"
    "mov %rcx, %rsp\n"
    "lea crossing+4092(%rip), %rdi\n"
    "cross: mov %rax, (%rdi)\n"
    "unwatched: mov %rax, 128(%rbx)\n" /* the page, but not the bytes */
    "mov 16(%rbx), %rax\n"
    "fx_write: fxsave64 512(%rbx)\n"
    "fx_read: fxrstor64 512(%rbx)\n"
    "access_end: pop %rbx; pop %rdi; pop %rsi; ret\n"
    "patched: mov $1, %eax; ret\n"
    ".globl masked_wait, masked_next\n"
    "masked: sti\n"
    "masked_wait: nop; nop; nop; nop; nop; nop; nop; nop\n"
    "masked_next: ud2\n"
    ".globl vectors_loaded, wide_loaded\n"
    "vectors: movups vector_in(%rip), %xmm3; movups vector_in+16(%rip), %xmm15\n"
    "fninit; fldpi; fld1\n"
    "vectors_loaded: movups %xmm3, vector_out(%rip)\n"
    "movups %xmm15, vector_out+16(%rip); fistpl vector_out+32(%rip); fstp %st(0); ret\n"
    ".globl wide\n"
    "wide: vmovups wide_in(%rip), %ymm7\n"
    "wide_loaded: vmovups %ymm7, wide_out(%rip); vzeroupper; ret\n"
    ".globl wider, wider_loaded\n"
    "wider: vmovups wide_in(%rip), %zmm21; mov $0x5a5a, %eax; kmovw %eax, %k3\n"
    "wider_loaded: vmovups %zmm21, wide_out(%rip); kmovw %k3, %eax\n"
    "mov %eax, poked(%rip); vzeroupper; ret\n"
    ".popsection");
void wide(void), wider(void);

static uint32_t sum_of_code(void)
{
    uint32_t sum = 0;
    for (const uint8_t *at = (const uint8_t *)traced; at < (const uint8_t *)traced_end; at++) {
        sum = sum * 31 + *at;
    }
    return sum;
}

__attribute__((noinline)) void stage(void)
{
    __asm__ volatile("" ::: "memory");
}

__attribute__((noinline)) void finished(void)
{
    __asm__ volatile("" ::: "memory");
}

/* Breakpoints are not in memory. */
static void test_code(void)
{
    for (unsigned i = 0; i < STAGES; i++) {
        traced();
        sums[i] = sum_of_code();
        check("code under a breakpoint", sums[i], sums[0]);
    }
    check("traced", counter, STAGES);
}

/* The debugger's are not the guest's. */
static void test_debug_registers(void)
{
    check("DR0", read_dr0(), (uintptr_t)&counter);
    check("DR7", read_dr7(), 0x400);
    check("DR6", read_dr6(), 0xffff0ff0);
}

static void test_vectors(void)
{
    write_cr0((read_cr0() & ~4ul) | 2);
    write_cr4(read_cr4() | 0x600);
    for (unsigned i = 0; i < 8; i++) {
        vector_in[i] = 0x0101010101010101u * (i + 1);
        wide_in[i] = 0x1010101010101010u * (i + 1);
    }
    vectors();
    check("XMM15", vector_out[2], vector_in[2]);
}

static void test_wide(void)
{
    enum { AVX = 7, AVX512 = 0xe7 };
    uint32_t offered = cpuid(1, 0).ecx >> 28 & 1 ? cpuid(0xd, 0).eax & AVX512 : 0;
    if ((offered & AVX) == AVX) {
        write_cr4(read_cr4() | 1 << 18);
        __asm__ volatile("xsetbv" ::"a"(offered), "d"(0), "c"(0));
        wide();
    }
    if (offered == AVX512) {
        wider();
    }
}

/* An interrupt that waits comes at once; only single steps hold it back. */
static void test_interrupt(void)
{
    struct context c;
    APIC(0xf0) = 0x1ff;
    APIC(0x300) = 0x44000 | VECTOR; /* to ourselves */
    context_init(&c, masked);
    context_run(&c);
    check("interrupt", c.vector, VECTOR);
    APIC(0xb0) = 0;
}

void test_main(void)
{
    quiet_page = page_new();
    quiet_page[1] = 0xabcdef;
    quiet_entry = map(QUIET_PAGE, (uintptr_t)quiet_page, PTE_P | PTE_W);
    write_dr0((uintptr_t)&counter);
    stage();
    test_code();
    test_debug_registers();
    access_all();
    access_all();
    check("accessed and dirty", *quiet_entry & (PTE_A | PTE_D), 0);
    test_vectors();
    test_wide();
    uint32_t value;
    void (*call)(void) = patched;
    __asm__ volatile("call *%1" : "=a"(value) : "r"(call) : "rcx", "memory");
    test_interrupt();
    __asm__ volatile("call *%1" : "=a"(value) : "r"(call) : "rcx", "memory");
    seen_rax = value;
    finished();
}
