/*
 * User code whose pages are at many addresses, as libraries are: one after the other, in address
 * spaces of their own, and at the same time in one. Whatever shows where it is, and wherever a
 * branch to another page leads, is what the address of the moment demands, also after so many
 * rounds that all is known, and when other pages come in the place of some. One instruction at a
 * time (TF) the same must come out.
 */
#include "runtime.h"

enum {
    PAGE = 4096,
    WORDS = PAGE / 8,
    SEEN = 256, /* words of a page that the code uses, at most */
    CODE_PAGES = 4,
    PLACES = 4,
    ROUNDS = 20,
    FS_DISTANCE = 16, /* FS base */
    FIP = 1,          /* word of an FXSAVE64 image */
};
/* Pages behind the code: data of the place, and none at all. */
#define DATA    0x4000ul
#define ABSENT  0x6000ul
#define FAR     0x80000000ul /* as far up and down as an operand can be, and a bit more */
#define STACK   0x60000000ul /* for all places: the stack, and what the code has seen */
#define RESULTS 0x60002000ul
/* In the data: where indirect branches lead to. */
enum { JUMP_WORD = 32, CALL_WORD = 33 };

/* ---- the code ---- */

/*
 * In four pages. What is seen goes to [RDI]. Calls stand right before the end of the first page and
 * across that of the second one, a load across that of the third.
 */
extern const char image[], walk[], walk_end[], second_number[], second_leaf[];
extern const char second_1[], second_3[], second_5[], second_jump[];
extern const char x87[], x87_divides[], x87_end[];
extern const char x87_looping[], x87_loop[], x87_loop_end[];
extern const char divides[], divides_by[], divides_memory[], stores[], jumps[], branches[], calls[];
__asm__(
    ".pushsection .text.image, \"ax\"\n"
    ".macro note register\n mov \\register, (%rdi); lea 8(%rdi), %rdi\n .endm\n"
    ".balign 4096; image:\n"
    ".set second, image + 0x1000; .set third, image + 0x2000; .set fourth, image + 0x3000\n"
    ".set data, image + 0x4000; .set absent, image + 0x6000\n"
    /* addresses of code and data, in registers of all kinds */
    "walk: lea walk(%rip), %rax; note %rax; lea data(%rip), %r8; note %r8\n"
    "lea data + 1(%rip), %r9; note %r9; lea walk - 100(%rip), %r10; note %r10\n"
    "lea second + 5(%rip), %r11; note %r11; lea data(%rip), %r9d; note %r9\n"
    "lea data(%rip), %ebx; note %rbx; lea data(%eip), %r10; note %r10\n"
    "lea data(%eip), %rbx; note %rbx; lea data(%eip), %r11d; note %r11\n"
    "lea data + 3(%rip), %bx; note %rbx\n"
    /* operands */
    "mov data(%rip), %rax; note %rax; mov data + 8(%eip), %rax; note %rax\n"
    "mov data(%rip), %r9; add data + 8(%rip), %r9; mov %r9, data + 16(%rip)\n"
    "mov data + 8(%rip), %r10; imul data(%rip), %r10; mov %r10, data + 24(%eip)\n"
    "mov $-1, %rax; add $1, %rax; mov data(%rip), %rbx; adc data + 8(%rip), %rbx; note %rbx\n"
    "cmp data(%rip), %rbx; setc data + 32(%rip); inc %rbx; movups data(%rip), %xmm0\n"
    "movups %xmm0, data + 48(%rip); setnz data + 33(%rip)\n"
    "xchg %r10, data + 64(%rip); note %r10; lock; addq $5, data + 64(%rip)\n"
    "mov data + 72(%rip), %rax; mov $77, %r11d; lock; cmpxchg %r11, data + 72(%rip)\n"
    "mov $70, %r9d; bts %r9, data + 80(%rip); add %ah, data + 96(%rip)\n"
    "movzbl data + 97(%rip), %r11d; note %r11; pushq data(%rip); popq data + 104(%rip)\n"
    "movq $0x55667788, data + 112(%rip); shlq $3, data + 8(%rip); note %rsp\n"
    "mov %fs:data(%rip), %rax; note %rax; mov %fs:data + 8(%eip), %rax; note %rax\n"
    "mov image - 0x7ffff800(%rip), %rax; note %rax; movb $9, image - 0x7ffff7f0(%rip)\n"
    "lea image - 0x7ffff800(%rip), %rcx; note %rcx\n"
    "lea data + 0x400(%rip), %rsi; mov $5, %edx\n"
    "3: mov (%rsi), %rax; add %rax, data + 168(%rip); add $8, %rsi; sub $1, %rdx; jnz 3b\n"
    /* direct jumps to another page, there and back, and a loop that has both in it */
    "jmp second_1\n"
    "first_2: cmp %rax, %rax; je second_3; ud2\n"
    "first_4: mov $3, %ecx; 4: sub $1, %ecx; jmp second_5\n"
    /* indirect jumps */
    "first_6: jmp *data + 0x100(%rip)\n"
    /* calls: another page, another place, the same page, one that returns elsewhere */
    "first_8: call second_function; note %rax; lea first_8(%rip), %rbx; note %rbx\n"
    "call *data + 0x108(%rip); lea first_8(%rip), %rbx; note %rbx\n"
    "mov data + 0x108(%rip), %r10; call *%r10; mov data(%rip), %rbx; note %rbx\n"
    "call first_function; lea first_8(%rip), %r9; note %r9\n"
    "call second_skips; 2: ud2; .skip 9; lea first_8(%rip), %r10; note %r10\n"
    "lea first_9(%rip), %rax; push %rax; ret; ud2\n"
    "first_9: lea 1f(%rip), %rax; jmp far_up; 1: ud2\n"
    "first_function: mov (%rsp), %rax; note %rax; ret\n"
    "walk_end: ud2\n"
    /* exceptions */
    "divides: xor %ecx, %ecx; lea divides(%rip), %rbx; divides_by: div %rcx\n"
    "divides_memory: divq data + 128(%rip)\n"
    "stores: mov %rax, absent + 24(%rip)\n"
    "jumps: jmp absent + 16\n"
    "branches: cmp %rax, %rax; je absent + 32\n"
    "calls: call absent\n"
    /* an x87 exception, and behind it a control instruction in another page */
    "x87: fninit; fldcw data + 136(%rip); fld1; fldz; x87_divides: fdivrp\n"
    "call second_control; call second_saves; x87_end: ud2\n"
    /* one in a loop that is entered as if it had had a round; there is another page before */
    "x87_looping: fninit; fldcw data + 136(%rip); call second_loads; lea data + 128(%rip), %rsi\n"
    "mov $2, %edx; sub $1, %rdx; jnz x87_loop; ud2\n"
    "x87_loop: fidivl (%rsi); add $4, %rsi; sub $1, %rdx; jnz x87_loop\n"
    "call second_saves; x87_loop_end: ud2\n"
    ".org image + 0xe00\n"
    "far_up: mov image + 0x80000100(%rip), %rax; note %rax; mov %rax, image + 0x80000108(%rip)\n"
    "lea image + 0x80000100(%rip), %r11; note %r11; jmp 1f\n"
    ".org image + 0xffb - 4; 1: nopl (%rax); nop; call second_function\n"
    /* the second page */
    "lea (%rip), %rbx; note %rbx; note %rax; jmp second_last\n"
    "second_1: lea second_1(%rip), %rax; note %rax; jmp first_2\n"
    "second_3: lea second_3(%rip), %rax; note %rax; jmp first_4\n"
    "second_5: note %rcx; test %ecx, %ecx; jnz 4b; jmp first_6\n"
    "second_jump: lea first_8(%rip), %rax; note %rax; jmp *%rax\n"
    "second_function: mov (%rsp), %rax; note %rax; second_number: mov $0x1111, %eax; ret\n"
    "second_leaf: lea second_leaf(%rip), %rax; note %rax; mov data(%rip), %rax; note %rax; ret\n"
    "second_skips: addq $11, (%rsp); ret\n"
    "second_control: fnstcw data + 144(%rip); ret\n"
    "second_loads: fld1; ret\n"
    "second_saves: fxsave64 (%rdi); fnstenv 512(%rdi); ret\n"
    ".org second + 0xffe - 7; second_last: mov data + 8(%rip), %rcx\n"
    "call third_function; note %rax; lea third_function(%rip), %rax; note %rax; jmp third_last\n"
    "third_function: mov (%rsp), %rax; note %rax; mov second_number + 1(%rip), %eax; ret\n"
    ".org third + 0xffc; third_last: mov data + 16(%rip), %rdx\n"
    "note %rdx; lea fourth(%rip), %rax; note %rax; cmp %rax, %rax; je walk_end; ud2\n"
    ".org image + 0x4000\n.popsection");

/* ---- places ---- */

/* No two alike in bits 31:0, which are what is left of an address of 32 bits. */
static const uintptr_t bases[PLACES] = {0x8050000000, 0x10051ff0000, 0x18052123000, 0x7ff053456000};
static uint8_t *code[CODE_PAGES]; /* physical pages of the image */
/* Others in the place of two of them: with another number, with another half of an instruction. */
static uint8_t *other_second, *other_fourth;
static volatile uint64_t *data[PLACES], *far_data, *results, *stack;

static uintptr_t offset_of(const char *label)
{
    return (uintptr_t)(label - image);
}

static void map_user(uintptr_t address, const volatile void *page, uint64_t bits)
{
    map(address, (uintptr_t)page, bits ? bits | PTE_U : 0);
}

static void map_place(unsigned place, bool is_there)
{
    uint64_t bits = is_there ? PTE_P : 0;
    uintptr_t base = bases[place];
    for (unsigned i = 0; i < CODE_PAGES; i++) {
        map_user(base + i * PAGE, code[i], bits);
    }
    bits |= is_there ? PTE_W : 0;
    map_user(base + DATA, data[place], bits);
    map_user((uint32_t)(base + DATA), data[place], bits);
    map_user(base + FAR, far_data, bits);
    map_user(base - FAR, far_data, bits);
}

static void map_others(unsigned place, bool is_second, bool is_fourth)
{
    map_user(bases[place] + PAGE, is_second ? other_second : code[1], PTE_P);
    map_user(bases[place] + 3 * PAGE, is_fourth ? other_fourth : code[3], PTE_P);
}

/* Where the calls of a place to a leaf lead. */
static uintptr_t leaf_of[PLACES];

static void clear_words(volatile void *to, uint64_t count)
{
    __asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(0ul) : "memory");
}

static uint64_t pattern[PLACES][SEEN];

static void fill(unsigned place)
{
    for (unsigned p = 0; p < PLACES; p++) {
        words_copy(data[p], pattern[p], SEEN);
        data[p][JUMP_WORD] = bases[p] + offset_of(second_jump);
        data[p][CALL_WORD] = leaf_of[p] + offset_of(second_leaf);
        data[p][128 / 8] = 0;
        data[p][136 / 8] = 0x37b; /* x87 control: division by zero is not masked */
    }
    words_copy(far_data, pattern[place], SEEN);
    clear_words(results, SEEN);
    clear_words(stack, SEEN);
}

/* ---- runs ---- */

static struct context start(unsigned place, const char *at)
{
    struct context c;
    context_init_user(&c, at);
    context_spread(&c);
    c.ip = bases[place] + offset_of(at);
    c.gpr[RSP] = STACK + SEEN * 8 - 64;
    c.gpr[RDI] = RESULTS;
    return c;
}

/* What a run leaves behind. */
struct outcome {
    struct context context;
    uint64_t memory[4][SEEN];
};

static void keep(struct outcome *outcome, unsigned place, const struct context *c)
{
    const volatile uint64_t *pages[] = {results, stack, data[place], far_data};
    outcome->context = *c;
    for (unsigned n = 0; n < 4; n++) {
        words_copy(outcome->memory[n], pages[n], SEEN);
    }
}

/* Only the first difference is told: the others mostly follow from it. */
static void compare(const char *name, const struct outcome *a, const struct outcome *b)
{
    const struct context *c = &a->context, *d = &b->context;
    bool is_same = expect(name, c->ip, d->ip) && expect(name, c->vector, d->vector) &&
                   expect(name, c->error, d->error) &&
                   expect(name, (c->flags ^ d->flags) & ~(uintptr_t)FLAG_RF, 0) &&
                   expect(name, c->vector == PF ? c->cr2 ^ d->cr2 : 0, 0);
    const uint64_t *words = a->memory[0], *others = b->memory[0];
    for (unsigned i = 0; is_same && !words_are_same(&words[i], &others[i], 4 * SEEN - i); i++) {
        is_same = expect(name, words[i], others[i]);
    }
    for (unsigned i = 0; i < REGISTERS && is_same; i++) {
        is_same = expect(name, c->gpr[i], d->gpr[i]);
    }
}

static struct outcome got, expected[PLACES];

static void run(const char *name, unsigned place)
{
    struct context c = start(place, walk);
    fill(place);
    context_run(&c);
    keep(&got, place, &c);
    compare(name, &got, &expected[place]);
}

/* What it should be now, by single steps. */
static void expect_place(unsigned place)
{
    struct context c = start(place, walk);
    fill(place);
    context_run_stepped(&c);
    keep(&expected[place], place, &c);
    expect("the end of the walk", c.ip, bases[place] + offset_of(walk_end));
    expect("  its first note", results[0], bases[place]);
}

static void say(const char *what)
{
    check(what, 1, 1); /* expect() has said what is wrong */
}

/* ---- tests ---- */

/*
 * The first page runs at one place first and the second page at another, with all that the first
 * one leads to: before anything else.
 */
static void test_homes_apart(void)
{
    static const char *const starts[] = {second_jump, second_5, second_3, second_1};
    struct context c = start(0, divides);
    map_place(0, true);
    context_run(&c);
    expect("at home", c.ip, bases[0] + offset_of(divides_by));
    map_place(0, false);
    map_place(1, true);
    leaf_of[1] = bases[1];
    for (unsigned i = 0; i < sizeof starts / sizeof *starts; i++) {
        c = start(1, starts[i]);
        c.gpr[RCX] = 0; /* the loop is over */
        fill(1);
        context_run(&c);
        expect("from the middle on", c.ip, bases[1] + offset_of(walk_end));
    }
    map_place(1, false);
    say("homes apart");
}

/* The pages wander: nowhere else meanwhile. */
static void test_one_after_the_other(void)
{
    for (unsigned p = 0; p < PLACES; p++) {
        leaf_of[p] = bases[p];
    }
    for (unsigned i = 0; i < 4 * PLACES; i++) {
        unsigned place = (i + 1) % PLACES;
        map_place(place, true);
        expect_place(place);
        for (unsigned n = 0; n < ROUNDS / 4; n++) {
            run("one after the other", place);
        }
        map_place(place, false);
    }
    say("one after the other");
}

/* All of them at once, and each calls the next one's leaf. */
static void test_together(const char *name)
{
    for (unsigned p = 0; p < PLACES; p++) {
        leaf_of[p] = bases[(p + 1) % PLACES];
        map_place(p, true);
        map_others(p, p & 1, p & 2); /* not the same is behind the same */
    }
    for (unsigned p = 0; p < PLACES; p++) {
        expect_place(p);
    }
    for (unsigned i = 0; i < ROUNDS * PLACES; i++) {
        run(name, i % PLACES);
    }
    for (unsigned i = 0; i < 4 * PLACES; i++) { /* known, and then changed */
        unsigned place = i * 3 % PLACES;
        map_others(place, !(i & 1), i & 2);
        for (unsigned p = 0; p < PLACES; p++) {
            expect_place(p);
        }
        for (unsigned n = 0; n < ROUNDS; n++) {
            run("other pages behind", (place + n) % PLACES);
        }
    }
    say(name);
}

static struct context fault_at(unsigned place, const char *at)
{
    struct context c = start(place, at);
    fill(place);
    context_run(&c);
    return c;
}

static void expect_fault(const struct context *c, uintptr_t vector, uintptr_t error, uintptr_t ip)
{
    if (c->vector != vector || c->error != error || c->ip != ip) {
        check_stop("exception", c, vector, error, ip);
    }
}

/* As long as all places are mapped. */
static void test_exceptions(void)
{
    for (unsigned i = 0; i < ROUNDS * PLACES; i++) {
        unsigned place = i % PLACES;
        uintptr_t base = bases[place];
        struct context c = fault_at(place, divides);
        expect_fault(&c, DE, NO_ERROR, base + offset_of(divides_by));
        expect("  register before it", c.gpr[RBX], base + offset_of(divides));
        c = fault_at(place, divides_memory);
        expect_fault(&c, DE, NO_ERROR, base + offset_of(divides_memory));
        c = fault_at(place, stores);
        expect_fault(&c, PF, PF_U | PF_W, base + offset_of(stores));
        expect("  cr2", c.cr2, base + ABSENT + 24);
        c = fault_at(place, jumps);
        expect_fault(&c, PF, PF_U | PF_I, base + ABSENT + 16);
        expect("  cr2", c.cr2, base + ABSENT + 16);
        c = fault_at(place, branches);
        expect_fault(&c, PF, PF_U | PF_I, base + ABSENT + 32);
        c = fault_at(place, calls);
        expect_fault(&c, PF, PF_U | PF_I, base + ABSENT);
        expect("  return address", *(volatile uint64_t *)((uintptr_t)stack + SEEN * 8 - 64 - 8),
               base + offset_of(calls) + 5);
    }
    say("exceptions");
}

/* A page of data comes when it is asked for; meanwhile the other places run. */
static void test_resumed(void)
{
    for (unsigned i = 0; i < 2 * PLACES; i++) {
        unsigned place = i % PLACES;
        uintptr_t address = bases[place] + (i < PLACES ? DATA : FAR);
        const volatile uint64_t *page = i < PLACES ? data[place] : far_data;
        expect_place(place);
        struct context c = start(place, walk), other;
        map_user(address, page, 0);
        fill(place);
        context_run(&c);
        expect("fault", c.vector, PF);
        expect("  cr2", c.cr2 & ~(uintptr_t)(PAGE - 1), address);
        other = start((place + 1) % PLACES, divides);
        context_run(&other);
        expect("meanwhile", other.ip, bases[(place + 1) % PLACES] + offset_of(divides_by));
        map_user(address, page, PTE_P | PTE_W);
        context_run(&c);
        keep(&got, place, &c);
        compare("resumed", &got, &expected[place]);
    }
    say("resumed");
}

/* The pointer is of use, and the same on all CPUs, as long as an exception is pending. */
static void expect_x87(unsigned place, const char *code_start, const char *divides_at,
                       const char *end)
{
    uintptr_t divide = bases[place] + offset_of(divides_at);
    struct context c = fault_at(place, code_start);
    __asm__ volatile("fninit");
    expect_fault(&c, UD, NO_ERROR, bases[place] + offset_of(end));
    expect("x87 instruction pointer", results[FIP], divide);
    expect("  of 32 bits", results[(512 + 8) / 8] >> 32, (uint32_t)divide);
}

static void test_x87(void)
{
    for (unsigned i = 0; i < ROUNDS * PLACES; i++) {
        expect_x87(i % PLACES, x87, x87_divides, x87_end);
        expect_x87(i % PLACES, x87_looping, x87_loop, x87_loop_end);
    }
    say("x87");
}

/*
 * Code is changed while it is at many addresses: from time to time, so often in a short time that
 * nobody will watch it, and then no more.
 */
static void test_changes(void)
{
    volatile uint8_t *number = code[1] + offset_of(second_number) - PAGE + 1;
    for (unsigned p = 0; p < PLACES; p++) {
        map_others(p, false, p & 1);
    }
    for (unsigned i = 0; i < 8 * ROUNDS; i++) {
        map_others(i % PLACES, false, i & PLACES); /* whoever was first is forgotten */
        unsigned changes = i == 2 * ROUNDS ? 20000 : i < 6 * ROUNDS || i == 7 * ROUNDS;
        for (; changes > 0; changes--) {
            *number = (uint8_t)(i + changes);
        }
        expect_place(i % PLACES);
        for (unsigned n = 0; n < 3; n++) {
            run("changed code", i % PLACES);
        }
    }
    *number = 0x11;
    say("changed code");
}

/* ---- address spaces ---- */

enum { CR4_PCIDE = 1 << 17, NO_FLUSH = 63 };

/*
 * The place is another one in each: where a page is in one space says nothing of the others. In
 * some the second page is another one, and in one the next space's place is there, too.
 */
static void test_spaces(bool has_pcid)
{
    enum { SPACES = 2 * PLACES };
    static uint64_t *roots[SPACES];
    uint64_t *first_root = (uint64_t *)page_table;
    for (unsigned s = 0; s < SPACES; s++) {
        roots[s] = roots[s] ? roots[s] : page_new();
        for (unsigned i = 0; i < WORDS; i++) { /* the tables of the first 512 GiB are shared */
            roots[s][i] = i == 0 || i > WORDS / 2 ? first_root[i] : 0;
        }
        page_table = (uintptr_t)roots[s];
        map_place(s % PLACES, true);
        map_others(s % PLACES, s == 2 || s == SPACES - 1, s == 3);
    }
    for (unsigned p = 0; p < PLACES; p++) {
        leaf_of[p] = bases[p];
    }
    if (has_pcid) {
        write_cr4(read_cr4() | CR4_PCIDE);
    }
    uint64_t kept = has_pcid ? 1ul << NO_FLUSH : 0;
    for (unsigned i = 0; i < ROUNDS * SPACES; i++) {
        unsigned s = i * 5 % SPACES, place = s % PLACES;
        page_table = (uintptr_t)roots[s];
        write_cr3(page_table | (has_pcid ? s + 1 : 0) | kept);
        if (i >= ROUNDS * SPACES / 2 && s == 1) { /* known, and then changed */
            map_others(place, i / SPACES & 1, i / SPACES & 2);
        }
        expect_place(place);
        run("address space", place);
        run("address space again", place);
    }
    page_table = (uintptr_t)first_root;
    write_cr3(page_table);
    if (has_pcid) {
        write_cr4(read_cr4() & ~(uintptr_t)CR4_PCIDE);
    }
    say(has_pcid ? "address spaces with PCIDs" : "address spaces");
}

static uint8_t *copy_page(const void *from)
{
    uint64_t *page = page_new();
    for (unsigned i = 0; i < WORDS; i++) {
        page[i] = ((const uint64_t *)from)[i];
    }
    return (uint8_t *)page;
}

void test_main(void)
{
    for (unsigned i = 0; i < CODE_PAGES; i++) {
        code[i] = copy_page(image + i * PAGE);
    }
    other_second = copy_page(image + PAGE);
    other_second[offset_of(second_number) - PAGE + 1] = 0x22;
    other_fourth = copy_page(image + 3 * PAGE);
    other_fourth[0]++; /* of a displacement: 256 bytes further */
    for (unsigned i = 0; i < PLACES * SEEN; i++) {
        pattern[i / SEEN][i % SEEN] = (i / SEEN + 3) * 0x0123456789abcd + i;
    }
    far_data = page_new();
    results = page_new();
    stack = page_new();
    for (unsigned p = 0; p < PLACES; p++) {
        data[p] = page_new();
    }
    map_user(STACK, stack, PTE_P | PTE_W);
    map_user(RESULTS, results, PTE_P | PTE_W);
    write_msr(0xc0000100, FS_DISTANCE);
    test_homes_apart();
    test_one_after_the_other();
    test_spaces(false);
    if (cpuid(1, 0).ecx & 1 << 17) {
        test_spaces(true);
    } else {
        skip("address spaces with PCIDs", "the CPU has none");
    }
    test_together("together");
    test_exceptions();
    test_resumed();
    test_x87();
    test_changes();
    test_together("together, when all is known");
}
