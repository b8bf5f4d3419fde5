/*
 * Data across pages, of the same and of different kinds: every size, loads, stores, changes in
 * place, stack operations and vector accesses; a fault of either page leaves memory and registers
 * untouched. Arithmetic flags live across memory accesses.
 */
#include "runtime.h"

#define AREA 0x8000000000ul
static uint8_t *low, *high;

#define ACCESSES(X)                                                                                \
    X(load2, "mov (%rdi), %ax", 2, 0)                                                              \
    X(load4, "mov (%rdi), %eax", 4, 0)                                                             \
    X(load8, "mov (%rdi), %rax", 8, 0)                                                             \
    X(load16, "movups (%rdi), %xmm0", 16, 0)                                                       \
    X(load10, "fldt (%rdi)", 10, 0)                                                                \
    X(store2, "mov %ax, (%rdi)", 2, PF_W)                                                          \
    X(store4, "mov %eax, (%rdi)", 4, PF_W)                                                         \
    X(store8, "mov %rax, (%rdi)", 8, PF_W)                                                         \
    X(store16, "movups %xmm0, (%rdi)", 16, PF_W)                                                   \
    X(change4, "add %eax, (%rdi)", 4, PF_W)                                                        \
    X(change8, "adc %rax, (%rdi)", 8, PF_W)                                                        \
    X(exchange8, "xchg %rax, (%rdi)", 8, PF_W)                                                     \
    X(locked4, "lock xadd %eax, (%rdi)", 4, PF_W)                                                  \
    X(compare8, "lock cmpxchg %rcx, (%rdi)", 8, PF_W)                                              \
    X(shift4, "shll $3, (%rdi)", 4, PF_W)                                                          \
    X(push8, "push %rax", 8, PF_W)                                                                 \
    X(pop8, "pop %rax", 8, 0)

#define DEFINE(name, code, size, error) SNIPPET(name, code);
ACCESSES(DEFINE)

static const struct access {
    const char *name, *code, *end;
    unsigned size;
    uintptr_t error;
} accesses[] = {
#define ENTRY(name, code, size, error) {#name, name, name##_end, size, error},
    ACCESSES(ENTRY)};

static void fill(void)
{
    for (int i = 0; i < 4096; i++) {
        low[i] = (uint8_t)(i * 3 + 1);
        high[i] = (uint8_t)(i * 5 + 2);
    }
}

static uint64_t sum(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < 4096; i++) {
        sum = sum * 31 + low[i] + ((uint64_t)high[i] << 8);
    }
    return sum;
}

static struct context run(const struct access *a, uintptr_t address)
{
    struct context c;
    context_init(&c, a->code);
    bool is_push = a->code == push8, is_pop = a->code == pop8;
    c.gpr[RDI] = address;
    if (is_push || is_pop) {
        c.gpr[RSP] = is_push ? address + 8 : address;
    }
    c.gpr[RAX] = 0x1122334455667788;
    c.gpr[RCX] = 0x99aabbccddeeff00;
    c.flags |= FLAG_CF | FLAG_ZF | FLAG_OF;
    __asm__ volatile("fninit");
    context_run(&c);
    return c;
}

static void test_access(const struct access *a)
{
    print(a->name);
    print(": ");
    check("size", a->size > 0, 1);
    fill();
    uint64_t before = sum();
    uintptr_t boundary = AREA + 0x1000;
    for (unsigned over = 1; over < a->size; over++) {
        uintptr_t address = boundary - a->size + over;
        map(AREA, (uintptr_t)low, PTE_P | PTE_W);
        map(boundary, (uintptr_t)high, 0);
        struct context c = run(a, address);
        check_stop("  second page absent", &c, PF, a->error, (uintptr_t)a->code);
        check("  cr2", c.cr2, boundary);
        check("  memory", sum(), before);
        check("  rax", c.gpr[RAX], 0x1122334455667788);
        check("  flags", c.flags & FLAGS_ARITHMETIC, FLAG_CF | FLAG_ZF | FLAG_OF);
        map(AREA, (uintptr_t)low, 0);
        map(boundary, (uintptr_t)high, PTE_P | PTE_W);
        c = run(a, address);
        check_stop("  first page absent", &c, PF, a->error, (uintptr_t)a->code);
        check("  cr2", c.cr2, address);
        check("  memory", sum(), before);
        map(AREA, (uintptr_t)low, PTE_P | PTE_W);
        map(boundary, (uintptr_t)high, PTE_P);
        c = run(a, address);
        if (a->error) {
            check_stop("  second page read-only", &c, PF, PF_P | PF_W, (uintptr_t)a->code);
            check("  memory", sum(), before);
        } else {
            check("  second page read-only", c.vector, UD);
        }
        map(boundary, (uintptr_t)high, PTE_P | PTE_W);
        c = run(a, address);
        check("  both present", c.vector == UD && c.ip == (uintptr_t)a->end, 1);
        fill();
    }
}

static void test_values(void)
{
    map(AREA, (uintptr_t)low, PTE_P | PTE_W);
    map(AREA + 0x1000, (uintptr_t)high, PTE_P | PTE_W);
    uint8_t *pages = (uint8_t *)AREA;
    for (unsigned over = 0; over <= 8; over++) {
        uint64_t value = 0x0102030405060708 * (over + 1);
        *(volatile uint64_t *)(pages + 0xff8 + over) = value;
        check("store across, load across", *(volatile uint64_t *)(pages + 0xff8 + over), value);
        uint64_t bytes = 0;
        for (unsigned i = 0; i < 8; i++) {
            unsigned at = 0xff8 + over + i;
            bytes |= (uint64_t)(at < 0x1000 ? low[at] : high[at - 0x1000]) << 8 * i;
        }
        check("store across, bytes", bytes, value);
        __asm__ volatile("lock xaddq %0, (%1)"
                         : "+r"(value)
                         : "r"(pages + 0xff8 + over)
                         : "memory");
        check("locked add across", *(volatile uint64_t *)(pages + 0xff8 + over), 2 * value);
    }
    /* both halves in the same frame */
    map(AREA + 0x1000, (uintptr_t)low, PTE_P | PTE_W);
    *(volatile uint32_t *)(pages + 0xffe) = 0xaabbccdd;
    check("one frame twice: end", low[0xffe] | low[0xfff] << 8, 0xccdd);
    check("one frame twice: start", low[0] | low[1] << 8, 0xaabb);
}

/* Flags must survive any access, also one that had to go a slow way (a TLB miss). */
SNIPPET(flags_live,
        "cmp %eax, %eax; stc; mov (%rdi), %rbx; mov %rbx, 64(%rdi); setc %cl;"
        "setz %ch; push %rbx; pop %rbx; adc $0, %ecx; movzx %cl, %edx; pushf; pop %rax");
static void test_flags(void)
{
    for (unsigned i = 0; i < 3000; i++) {
        map(AREA + 0x100000 + i * 4096, (uintptr_t)low, PTE_P | PTE_W);
    }
    write_cr3(read_cr3());
    unsigned wrong = 0;
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < 3000; i += 7) {
            struct context c;
            context_init(&c, flags_live);
            c.gpr[RDI] = AREA + 0x100000 + i * 4096 + (i & 63) * 8;
            context_run(&c);
            wrong += (c.gpr[RCX] & 0xffff) != 0x102 || (c.gpr[RAX] & FLAGS_ARITHMETIC);
        }
    }
    check("flags across TLB misses", wrong, 0);
}

/* Several pushes may be checked at once, but the first one faults, with its own address. */
SNIPPET(push_run, "push %rax; push %rbx; push %rcx; push %rdx");
SNIPPET(pop_run, "pop %rax; pop %rbx; pop %rcx; pop %rdx");
static void test_runs(void)
{
    enum { HOLE = 0x7f000000 };
    struct context c;
    context_init_user(&c, push_run);
    c.gpr[RSP] = HOLE + 0x800;
    context_run(&c);
    check_stop("push run in a hole", &c, PF, PF_U | PF_W, USER(push_run));
    check("  cr2", c.cr2, HOLE + 0x800 - 8);
    check("  rsp", c.gpr[RSP], HOLE + 0x800);
    context_init_user(&c, pop_run);
    c.gpr[RSP] = HOLE + 0x800;
    context_run(&c);
    check_stop("pop run in a hole", &c, PF, PF_U, USER(pop_run));
    check("  cr2", c.cr2, HOLE + 0x800);
}

void test_main(void)
{
    low = page_new();
    high = page_new();
    for (unsigned i = 0; i < sizeof accesses / sizeof accesses[0]; i++) {
        test_access(&accesses[i]);
    }
    test_values();
    test_flags();
    test_runs();
}
