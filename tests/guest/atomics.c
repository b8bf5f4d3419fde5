/*
 * Two CPUs: start by INIT and SIPI, locked instructions of every kind against each other (aligned,
 * across cache lines and pages), CMPXCHG16B, spin locks by XCHG, store ordering as the manual
 * promises, interrupts between CPUs, TLB shoot-down, code patched by the other CPU, also while it
 * runs.
 * With one CPU only, the test says so and passes. SDM volume 3, chapters 8 and 10.
 */
#include "runtime.h"

#define APIC(offset) (*(volatile uint32_t *)(0xfee00000ul + (offset)))
#define AREA         0x8000000000ul
enum { TRAMPOLINE = 0x8000, ROUNDS = 20000 };

/* Real mode at 8000H: the same way up as the first CPU took, then other_cpu(). */
__asm__(".pushsection .text\n"
        ".code16\n"
        "trampoline: cli; xor %ax, %ax; mov %ax, %ds\n"
        "lgdtl 0x8000 + trampoline_gdt - trampoline\n"
        "mov $1, %eax; mov %eax, %cr0\n"
        "ljmpl $8, $0x8000 + trampoline_32 - trampoline\n"
        ".code32\n"
        "trampoline_32: mov $16, %eax; mov %eax, %ds; mov %eax, %ss\n"
        "mov $other_stack_top, %esp\n"
        "mov $long_mode_on, %eax; call *%eax\n"
        "ljmp $8, $trampoline_64\n"
        ".balign 8\n"
        "trampoline_table: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff\n"
        "trampoline_gdt: .word 23; .long 0x8000 + trampoline_table - trampoline\n"
        "trampoline_end:\n"
        ".code64\n"
        "trampoline_64: mov $16, %eax; mov %eax, %ds; mov %eax, %es; mov %eax, %ss\n"
        "mov $other_stack_top, %rsp; lidt idt_pointer; call other_cpu\n"
        ".popsection\n"
        ".pushsection .bss; .balign 16; .skip 8192; other_stack_top:\n.popsection");
extern const char trampoline[], trampoline_end[];

static volatile unsigned phase, done, arrived;
static uint64_t shared[1024] __attribute__((aligned(4096)));
static volatile unsigned lock;
static volatile uint64_t guarded;
static volatile uint64_t x, y;
static volatile unsigned reordered;
static volatile unsigned interrupted;
static volatile uint64_t other_memory_types;
enum { MTRR_DEF_TYPE = 0x2ff };
typedef uint32_t function(void);

static inline void pause(void)
{
    __asm__ volatile("pause" ::: "memory");
}

static inline void lock_add(volatile void *p)
{
    __asm__ volatile("lock incq (%0)" ::"r"(p) : "memory");
}

static void mixed_adds(unsigned cpu)
{
    uint8_t *bytes = (uint8_t *)shared;
    for (unsigned i = 0; i < ROUNDS; i++) {
        lock_add(&shared[0]);
        uint64_t one = 1;
        __asm__ volatile("lock xaddq %0, %1" : "+r"(one), "+m"(shared[1])::"memory");
        uint64_t old = *(volatile uint64_t *)&shared[2], now;
        bool swapped;
        do {
            now = old + 3;
            __asm__ volatile("lock cmpxchgq %3, %1; setz %2"
                             : "+a"(old), "+m"(shared[2]), "=q"(swapped)
                             : "r"(now)
                             : "memory");
        } while (!swapped);
        __asm__ volatile("lock addl $1, %0" : "+m"(*(uint32_t *)(bytes + 128 - 2))::"memory");
        if (i % 16 == 0) { /* across pages */
            lock_add((void *)(AREA + 0xffc));
        }
        __asm__ volatile("lock xorl %1, %0" : "+m"(shared[3]) : "r"(1u << cpu) : "memory");
    }
}

static void sixteen_bytes(void)
{
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t low = *(volatile uint64_t *)&shared[64], high = *(volatile uint64_t *)&shared[65];
        bool swapped;
        do {
            __asm__ volatile("lock cmpxchg16b %2; setz %3"
                             : "+a"(low), "+d"(high), "+m"(*(__int128 *)&shared[64]), "=q"(swapped)
                             : "b"(low + 1), "c"(high + 2)
                             : "memory");
        } while (!swapped);
    }
}

static void spin_lock(void)
{
    for (unsigned i = 0; i < ROUNDS; i++) {
        unsigned taken;
        do {
            taken = 1;
            __asm__ volatile("xchgl %0, %1" : "+r"(taken), "+m"(lock)::"memory");
            if (taken) {
                pause();
            }
        } while (taken);
        guarded = guarded + 1;
        __asm__ volatile("" ::: "memory");
        lock = 0;
    }
}

/* Stores of one CPU are seen in order: y never leads x. */
static void ordering(unsigned cpu)
{
    for (unsigned i = 1; i <= ROUNDS; i++) {
        if (cpu == 0) {
            x = i;
            y = i;
        } else {
            uint64_t b = y, a = x;
            if (a < b) {
                reordered++;
            }
        }
    }
}

static void barrier(unsigned number)
{
    __asm__ volatile("lock incl %0" : "+m"(arrived)::"memory");
    while (arrived < 2 * number) {
        pause();
    }
}

/*
 * Code that one CPU calls again and again while the other replaces it, whole by one aligned store
 * (APM volume 2, 7.6.1): what runs is always one of the pieces of code, and they come in order.
 */
static uint64_t racing[512] __attribute__((aligned(4096)));
static volatile unsigned torn, went_back, calls;

/* mov $n, %eax; ret or, for odd numbers, xor $~n, %eax; ret (from ~0). */
static uint64_t racing_code(uint32_t n)
{
    return n % 2 ? 0x35ull | (uint64_t)~n << 8 | 0xc3ull << 40
                 : 0xb8ull | (uint64_t)n << 8 | 0xc3ull << 40;
}

static void patched_while_it_runs(unsigned cpu)
{
    uint32_t last = 0;
    if (cpu == 0) {
        for (uint32_t n = 1; n <= ROUNDS; n++) {
            ((volatile uint64_t *)racing)[5] = racing_code(n / 64 % 2 ? n | 1 : n & ~1u);
            for (unsigned seen = calls; n % 64 == 0 && seen == calls;) {
                pause();
            }
        }
        ((volatile uint64_t *)racing)[5] = racing_code(~1u);
        return;
    }
    while (last != ~1u) {
        uint32_t n = ~0u;
        __asm__ volatile("call *%1" : "+a"(n) : "r"(&racing[5]) : "memory");
        torn += n > ROUNDS + 1 && n != ~1u;
        calls = calls + 1;
        went_back += n < last && last - n > 1;
        last = n;
    }
}

static void work(unsigned cpu)
{
    barrier(1);
    mixed_adds(cpu);
    barrier(2);
    sixteen_bytes();
    barrier(3);
    spin_lock();
    barrier(4);
    ordering(cpu);
    barrier(5);
    patched_while_it_runs(cpu);
    barrier(6);
}

/* Its own task state segment, for its own trap stack. */
static void load_task(void)
{
    static uint64_t task[13] __attribute__((aligned(16)));
    static uint8_t stack[8192] __attribute__((aligned(16)));
    uint8_t *ist1 = (uint8_t *)task + 36;
    uintptr_t top = (uintptr_t)(stack + sizeof stack);
    for (unsigned i = 0; i < 8; i++) {
        ist1[i] = (uint8_t)(top >> 8 * i);
    }
    gdt[SPARE / 8] = descriptor((uint32_t)(uintptr_t)task, 103, 0x89, 0);
    gdt[SPARE / 8 + 1] = 0;
    __asm__ volatile("ltr %w0" ::"r"(SPARE));
}

void other_cpu(void);
void other_cpu(void)
{
    load_task();
    other_memory_types = read_msr(MTRR_DEF_TYPE);
    phase = 1;
    work(1);
    /* shoot-down and patching: read through the mapping whenever asked */
    function *code = (function *)(AREA + 0x2000);
    volatile uint64_t *data = (volatile uint64_t *)(AREA + 0x4000);
    for (;;) {
        while (phase % 2 == 1) {
            pause();
        }
        if (phase == 100) {
            break;
        }
        if (phase == 90) { /* take one interrupt by IPI */
            struct context c;
            context_init(&c, (void *)(AREA + 0x3000));
            APIC(0xf0) = 0x1ff;
            phase = 91;
            context_run(&c);
            interrupted = c.vector;
            APIC(0xb0) = 0;
            phase = 93;
            continue;
        }
        write_cr3(read_cr3()); /* the shoot-down, and serializing */
        done = code() + *data;
        phase = phase + 1;
    }
    phase = 101;
    for (;;) {
        __asm__ volatile("cli; hlt");
    }
}

static void wait_us(unsigned us)
{
    for (unsigned i = 0; i < us; i++) {
        in8(0x80); /* about a microsecond on any board */
    }
}

static bool start_other(void)
{
    char *to = (char *)TRAMPOLINE;
    for (const char *from = trampoline; from < trampoline_end; from++) {
        *to++ = *from;
    }
    APIC(0xf0) = 0x1ff;
    APIC(0x310) = 0;
    APIC(0x300) = 0xc4500; /* INIT to all others */
    wait_us(10000);
    APIC(0x300) = 0xc4600 | TRAMPOLINE >> 12;
    for (unsigned i = 0; i < 200000 && !phase; i++) {
        in8(0x80);
        if (i == 1000) {
            APIC(0x300) = 0xc4600 | TRAMPOLINE >> 12;
        }
    }
    return phase;
}

static void ask(uint32_t expected, const char *name)
{
    phase = phase + 1;
    while (phase % 2 == 0) {
        pause();
    }
    check(name, done, expected);
}

static void test_shootdown(void)
{
    uint8_t *page = page_new();
    uint64_t *one = page_new(), *two = page_new();
    static const uint8_t code[] = {0xb8, 0, 0, 0, 0, 0xc3}; /* mov $n, %eax; ret */
    for (unsigned i = 0; i < sizeof code; i++) {
        page[i] = code[i];
    }
    *one = 1000, *two = 2000;
    map(AREA + 0x2000, (uintptr_t)page, PTE_P | PTE_W);
    for (unsigned i = 0; i < 20; i++) {
        page[1] = (uint8_t)i;
        map(AREA + 0x4000, (uintptr_t)(i & 1 ? two : one), PTE_P | PTE_W);
        ask(i + (i & 1 ? 2000 : 1000), "patched by the other CPU, remapped by the other CPU");
    }
}

static void test_ipi(void)
{
    uint8_t *page = page_new();
    page[0] = 0xfb, page[1] = 0xeb, page[2] = 0xfe; /* sti; jmp . */
    map(AREA + 0x3000, (uintptr_t)page, PTE_P);
    phase = 90;
    while (phase != 91) {
        pause();
    }
    wait_us(100);
    APIC(0x300) = 0xc4000 | 0x71;
    while (phase != 93) {
        pause();
    }
    check("interrupt from the other CPU", interrupted, 0x71);
}

void test_main(void)
{
    map(AREA, (uintptr_t)shared + 0, PTE_P | PTE_W);
    uint8_t *next = page_new();
    map(AREA + 0x1000, (uintptr_t)next, PTE_P | PTE_W);
    if (!start_other()) {
        skip("two CPUs", "no other CPU answered");
        check("one CPU", 1, 1);
        return;
    }
    check("MTRRs as on the first CPU", other_memory_types, read_msr(MTRR_DEF_TYPE));
    racing[5] = racing_code(0);
    work(0);
    check("LOCK INC", shared[0], 2 * ROUNDS);
    check("LOCK XADD", shared[1], 2 * ROUNDS);
    check("LOCK CMPXCHG", shared[2], 6 * ROUNDS);
    check("LOCK XOR", shared[3], 0);
    check("LOCK ADD across cache lines", *(uint32_t *)((uint8_t *)shared + 126), 2 * ROUNDS);
    check("LOCK INC across pages", *(uint64_t *)(AREA + 0xffc), 2 * ROUNDS / 16);
    check("LOCK CMPXCHG16B: low", shared[64], 2 * ROUNDS);
    check("LOCK CMPXCHG16B: high", shared[65], 4 * ROUNDS);
    check("XCHG as a lock", guarded, 2 * ROUNDS);
    check("stores in order", reordered, 0);
    check("code that is replaced runs as a whole", torn, 0);
    check("code that is replaced runs in order", went_back, 0);
    test_shootdown();
    test_ipi();
    phase = 100;
    while (phase != 101) {
        pause();
    }
}
