/*
 * Loops whose operands move in step, across page borders: engines may run their rounds in another
 * way as long as all operands stay on their pages. Each loop starts at many places around the
 * borders, some of the pages being absent or read-only, and must end with the same registers,
 * flags, memory and exception as when it runs one instruction at a time (TF).
 */
#include "runtime.h"

#define AREA 0x8000000000ul

enum { PAGES = 3, PAGE = 4096, WORDS = PAGES * PAGE / 8, ROUNDS = 37 };
static volatile uint64_t *frames;                 /* all three, one behind the other */
static const uint8_t frame_of[PAGES] = {0, 2, 1}; /* no page's follows on that of the one before */
static uint64_t pattern[WORDS], first_end[WORDS];
static bool is_user;

/* ---- loops: RDI and RSI point into the area, RCX is an index, RDX counts down ---- */

#define END "sub $1, %rdx; jnz 1b"
SNIPPET(copy, "1: mov (%rdi), %rax; mov %rax, (%rsi); add $8, %rdi; add $8, %rsi;" END);
SNIPPET(copy_down, "1: sub $8, %rdi; mov (%rdi), %rax; lea -8(%rsi), %rsi; mov %rax, (%rsi);" END);
SNIPPET(sums, "1: mov (%rdi,%rcx,8), %rax; add %rax, 8(%rsi,%rcx,8); inc %rcx;" END);
SNIPPET(sums_down, "1: mov 16(%rdi,%rcx,4), %eax; sub %eax, (%rsi,%rcx,4); dec %rcx;" END);
SNIPPET(bytes, "1: movzbl (%rdi), %eax; add $1, %rdi; xor %al, 5(%rdi);" END);
SNIPPET(before_and_behind, "1: mov -8(%rdi), %rax; add $24, %rdi; adc %rax, -24(%rdi);"
                           "mov (%rdi), %rbx;" END);
SNIPPET(before_and_behind_down, "1: mov 40(%rdi), %rax; sub $24, %rdi; add %rax, 24(%rdi);"
                                "mov 8(%rdi), %rbx;" END);
SNIPPET(four, "1: mov (%rdi), %rax; add (%rsi), %rax; add %rax, 8(%rdi,%rcx,2); mov 8(%rbp), %rbx;"
              "add $16, %rdi; add $16, %rsi; add $16, %rbp;" END);
SNIPPET(too_many, "1: mov (%rdi), %rax; add (%rsi), %rax; mov %rax, (%rbp); add (%rbx), %rax;"
                  "add (%r8), %rax; add $8, %rdi; add $8, %rsi; add $8, %rbp; add $8, %rbx;"
                  "add $8, %r8;" END);
SNIPPET(far_apart, "1: mov (%rdi), %rax; add %rax, 5000(%rdi); add $16, %rdi;" END);
SNIPPET(apart, "1: mov (%rdi), %rax; add %rax, 2030(%rdi); add $16, %rdi;" END);
SNIPPET(still, "1: mov (%rdi), %rax; add %rax, (%rsp); xor %rax, 16(%rsi); add $8, %rdi;" END);
SNIPPET(absolute, "1: movabs $0x8000000ff8, %r8; mov (%rdi), %rax; add %rax, (%r8);"
                  "add $8, %rdi;" END);
SNIPPET(two_speeds, "1: mov (%rdi), %rax; add %rax, (%rsi); add $8, %rdi; add $16, %rsi;" END);
SNIPPET(twice, "1: mov (%rdi), %rax; add $8, %rdi; add %rax, (%rdi); add $8, %rdi;"
               "mov (%rdi), %rbx;" END);
SNIPPET(changed, "1: mov (%rdi,%rcx,8), %rax; add $1, %rcx; mov %rax, (%rsi,%rcx,8);"
                 "and $15, %ecx;" END);
SNIPPET(narrow_step, "1: mov (%rdi,%rcx), %rax; add %rax, (%rsi); add $8, %ecx; add $8, %rsi;" END);
SNIPPET(narrow_address, "1: mov (%edi), %rax; add %rax, 8(%rsi); add $8, %rdi; add $8, %rsi;" END);
SNIPPET(compares, "1: mov (%rdi), %rax; cmp %rax, (%rsi); mov 8(%rdi), %rax; lea 8(%rdi), %rdi;"
                  "lea 8(%rsi), %rsi; jne 1b; mov 64(%rdi), %rbx");
SNIPPET(kept, "1: mov (%rdi), %rax; add $8, %rdi; sub %rbx, %rax; mov 8(%rdi), %rax;"
              "mov %rax, %rbx; jne 1b; mov 64(%rdi), %rbx");
SNIPPET(zeros, "1: mov %rax, (%rdi); lea 8(%rdi), %rdi; mov (%rdi), %rbx; xor %eax, %eax; jz 1b");
SNIPPET(up_to, "1: mov (%rdi), %rax; add %rax, -8(%rdi); add $8, %rdi; cmp %rbp, %rdi; jb 1b");
SNIPPET(divides, "1: mov %rdx, %r8; xor %edx, %edx; mov $1000, %eax; divl 4(%rdi); mov %r8, %rdx;"
                 "add $8, %rdi;" END);
SNIPPET(shifts, "1: xor %eax, %eax; mov (%rdi), %rax; shl %cl, %rax; adc %rax, (%rsi); rcr (%rdi);"
                "add $8, %rsi; lea 8(%rdi), %rdi;" END);
SNIPPET(bit_strings, "1: mov (%rdi), %rax; bts %rcx, (%rsi); add $8, %rdi; add $8, %rsi;" END);

struct loop {
    const char *name, *code;
    int step; /* of its pointers: where to begin */
};
static const struct loop loops[] = {
    {"copy", copy, 8},
    {"copy down", copy_down, -8},
    {"sums", sums, 8},
    {"sums down", sums_down, -4},
    {"bytes", bytes, 1},
    {"before and behind the step", before_and_behind, 24},
    {"before and behind the step, down", before_and_behind_down, -24},
    {"four", four, 16},
    {"too many", too_many, 8},
    {"far apart", far_apart, 16},
    {"apart", apart, 16},
    {"still", still, 8},
    {"absolute", absolute, 8},
    {"two speeds", two_speeds, 8},
    {"twice", twice, 16},
    {"changed", changed, 8},
    {"narrow step", narrow_step, 8},
    {"narrow address", narrow_address, 8},
    {"compares", compares, 8},
    {"kept", kept, 8},
    {"zeros", zeros, 8},
    {"up to", up_to, 8},
    {"divides", divides, 8},
    {"shifts", shifts, 8},
    {"bit strings", bit_strings, 8},
};

/* ---- the area ---- */

/* One page may be absent or read-only. */
static void map_area(unsigned odd_page, uint64_t odd_bits)
{
    for (unsigned i = 0; i < PAGES; i++) {
        uint64_t bits = i == odd_page ? odd_bits : PTE_P | PTE_W;
        map(AREA + i * PAGE, (uintptr_t)frames + frame_of[i] * PAGE,
            bits && is_user ? bits | PTE_U : bits);
    }
}

/* ---- runs ---- */

static struct context start(const char *code, uintptr_t rdi, uintptr_t rsi)
{
    struct context c;
    if (is_user) {
        context_init_user(&c, code);
    } else {
        context_init(&c, code);
    }
    context_spread(&c);
    c.gpr[RDI] = c.gpr[RBX] = rdi;
    c.gpr[RSI] = c.gpr[RBP] = c.gpr[R8] = rsi;
    c.gpr[RSP] = AREA + PAGE + 64;
    c.gpr[RCX] = 0;
    c.gpr[RDX] = ROUNDS;
    return c;
}

static void expect_same(const char *name, uint64_t got, uint64_t expected, uintptr_t at)
{
    if (!expect(name, got, expected)) {
        print("  begun at ");
        print_hex(at);
        print("\n");
    }
}

static void compare(const char *name, const struct context *c, const struct context *stepped,
                    uintptr_t at)
{
    for (unsigned i = 0; i < REGISTERS; i++) {
        expect_same(name, c->gpr[i], stepped->gpr[i], at);
    }
    expect_same(name, c->flags & ~(uintptr_t)FLAG_RF, stepped->flags & ~(uintptr_t)FLAG_RF, at);
    expect_same(name, c->ip, stepped->ip, at);
    expect_same(name, c->vector, stepped->vector, at);
    expect_same(name, c->error, stepped->error, at);
    if (c->vector == PF) {
        expect_same(name, c->cr2, stepped->cr2, at);
    }
}

/* As it is, and one instruction at a time. */
static void run_both(const char *name, const struct context *begin)
{
    struct context c = *begin, stepped = *begin;
    words_copy(frames, pattern, WORDS);
    context_run(&c);
    words_copy(first_end, frames, WORDS);
    words_copy(frames, pattern, WORDS);
    context_run_stepped(&stepped);
    compare(name, &c, &stepped, begin->gpr[RDI]);
    expect_same(name, words_are_same(frames, first_end, WORDS), true, begin->gpr[RDI]);
}

/* So often that all that is made on the way is made. */
static void warm(const struct context *begin)
{
    for (unsigned i = 0; i < 3; i++) {
        struct context c = *begin;
        context_run(&c);
    }
}

/* ---- tests ---- */

/* How far from a border, less some rounds. */
static const int16_t distances[] = {-17, -8, -3, 0, 1, 8, 24};

static void test_loop(const struct loop *loop)
{
    static const uint64_t odd_bits[] = {PTE_P | PTE_W, 0, PTE_P};
    map_area(PAGES, 0);
    for (unsigned n = is_user; n < sizeof distances / sizeof *distances; n += 2) {
        for (unsigned border = 1; border < PAGES; border++) {
            uintptr_t rdi = AREA + border * PAGE + (uintptr_t)(distances[n] - 20 * loop->step);
            uintptr_t rsi = AREA + PAGE + (uintptr_t)(n & 2 ? 1024 : -11 * loop->step + 8);
            for (unsigned odd = 0; odd < 2 * PAGES + 1; odd++) {
                struct context c = start(loop->code, rdi, rsi);
                c.gpr[R8] = rsi + 512;
                map_area(PAGES, 0);
                warm(&c);
                map_area(odd / 2, odd_bits[odd == 2 * PAGES ? 0 : 1 + (odd & 1)]);
                run_both(loop->name, &c);
            }
        }
    }
    print(loop->name);
    print("\n");
}

/*
 * An index `left` steps before an end of its range, and `room` steps before a border: base and
 * index come to the area together.
 */
static void test_end_of_range(unsigned left, unsigned room)
{
    struct context c = start(sums, 0, 0);
    c.gpr[RCX] = INT64_MAX - left;
    c.gpr[RSI] = AREA + PAGE - 16 - 8 * room - 8 * c.gpr[RCX];
    c.gpr[RDI] = c.gpr[RSI] - 2048;
    warm(&c);
    run_both("upper end", &c);
    c = start(sums_down, 0, 0);
    c.gpr[RCX] = (uintptr_t)INT64_MIN + left;
    c.gpr[RSI] = AREA + PAGE + 4 * room - 4 * c.gpr[RCX];
    c.gpr[RDI] = c.gpr[RSI] + 2048;
    warm(&c);
    run_both("lower end", &c);
}

static void test_ends_of_range(void)
{
    enum { LEFT = 10, ROOM = 10 };
    map_area(PAGES, 0);
    for (unsigned n = 0; n < LEFT * ROOM; n++) {
        test_end_of_range(n / ROOM, n % ROOM);
    }
    for (unsigned n = 0; n < 16; n++) {
        struct context c = start(narrow_step, 0, AREA + 2048);
        c.gpr[RCX] = (uintptr_t)INT64_C(-8) * n;
        c.gpr[RDI] = AREA + 1024;
        run_both("narrow step of a negative index", &c);
        c.gpr[RCX] = 0xffffffff - 8 * n;
        c.gpr[RDI] = AREA + 1024 - c.gpr[RCX];
        run_both("narrow step around", &c);
    }
    print("ends of the range\n");
}

/* The loop stands in the page that it stores to, and comes to itself. */
SNIPPET(suicide, "1: mov %rax, (%rdi); mov %rax, 8(%rsi); add $8, %rdi; add $8, %rsi;" END);
static void test_own_page(void)
{
    enum { AT = 0x320 };
    uint8_t *page = (uint8_t *)pattern + frame_of[1] * PAGE;
    map_area(PAGES, 0);
    for (long i = 0; i < suicide_end - suicide; i++) {
        page[AT + i] = (uint8_t)suicide[i];
    }
    for (unsigned n = 0; n < 24; n++) {
        struct context c = start(suicide, AREA + PAGE + AT - 8 * n - 1, AREA + 64);
        c.ip = AREA + PAGE + AT;
        c.gpr[RAX] = 0x0b0f0b0f0b0f0b0f; /* ud2, many times */
        words_copy(frames, pattern, WORDS);
        warm(&c);
        run_both("own page", &c);
    }
    print("own page\n");
}

void test_main(void)
{
    frames = page_new();
    for (unsigned i = 1; i < PAGES; i++) {
        if ((uintptr_t)page_new() != (uintptr_t)frames + i * PAGE) {
            check("pages one behind the other", 0, 1);
        }
    }
    for (unsigned i = 0; i < WORDS; i++) { /* with some words alike, and a divisor of zero */
        pattern[i] = i % 61 == 60 ? 0 : (i + 1) * 0x9e3779b97f4a7c15ul >> (i & 31);
    }
    for (unsigned user = 0; user < 2; user++) {
        is_user = user;
        for (unsigned i = 0; i < sizeof loops / sizeof *loops; i++) {
            test_loop(&loops[i]);
        }
        test_ends_of_range();
        test_own_page();
    }
    check("loops", 1, 1);
}
