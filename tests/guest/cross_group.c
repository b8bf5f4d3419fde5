/*
 * Neighbouring memory operands with a page border between them: runs of pushes and pops, stack
 * frames of calls, fields off one register. Each access that can be done is done, the first one
 * that cannot faults, with everything before it done and nothing behind it; and so it stays when
 * the same code has run many times, the pages are other ones, or the code has changed.
 */
#include "runtime.h"

#define AREA   0x8000000000ul
#define BORDER (AREA + 0x1000)

enum { ROUNDS = 12, WORDS = 512 };
static volatile uint64_t *low, *high, *other;
static bool is_user;

static void map_area(uintptr_t address, volatile uint64_t *page, uint64_t bits)
{
    map(address, (uintptr_t)page, bits && is_user ? bits | PTE_U : bits);
}

static void map_both(void)
{
    map_area(AREA, low, PTE_P | PTE_W);
    map_area(BORDER, high, PTE_P | PTE_W);
}

static uintptr_t code_address(const void *code)
{
    return is_user ? USER(code) : (uintptr_t)code;
}

/* Every register has a value of its own; RDI, RSI and RSP are at `address`. */
static struct context start(const void *code, uintptr_t address)
{
    struct context c;
    if (is_user) {
        context_init_user(&c, code);
    } else {
        context_init(&c, code);
    }
    context_spread(&c);
    c.gpr[RSP] = c.gpr[RDI] = c.gpr[RSI] = address;
    return c;
}

/* The word at an address around the border. */
static volatile uint64_t *word(uintptr_t address)
{
    return address < BORDER ? &low[(address - AREA) / 8] : &high[(address - BORDER) / 8];
}

static void fill(void)
{
    for (unsigned i = 0; i < WORDS; i++) {
        low[i] = 0x100000 + i;
        high[i] = 0x200000 + i;
        other[i] = 0x300000 + i;
    }
}

/* So often that all that is made on the way is made. */
static void warm(const void *code, uintptr_t address)
{
    map_both();
    for (unsigned i = 0; i < ROUNDS; i++) {
        struct context c = start(code, address);
        context_run(&c);
    }
    fill();
}

static void check_fault(const char *name, const struct context *c, uintptr_t error, uintptr_t ip,
                        uintptr_t address)
{
    check_stop(name, c, PF, error | (is_user ? PF_U : 0), ip);
    expect("  cr2", c->cr2, address);
}

/* ---- runs ---- */

/* Each push of these is one byte long. The flags are those of the comparison. */
SNIPPET(pushes, "cmp %rdx, %rcx; push %rax; push %rcx; push %rdx; push %rbx; push %rbp; push %rsi");
SNIPPET(pops, "cmp %rbx, %rax; pop %rax; pop %rcx; pop %rdx; pop %rbx; pop %rbp; pop %r12");
SNIPPET(pops_subtracted,
        "sub %rbx, %rax; pop %rbx; pop %rax; pop %rdx; pop %rcx; pop %rbp; pop %r12");
SNIPPET(pops_incremented, "inc %rax; pop %rbx; pop %rcx; pop %rdx; pop %rax; pop %rbp; pop %r12");
enum { RUN = 6, PREFIX = 3 };

static void test_pushes(void)
{
    static const uint8_t order[RUN] = {RAX, RCX, RDX, RBX, RBP, RSI};
    for (unsigned above = 0; above <= RUN; above++) {
        uintptr_t top = BORDER + 8 * above;
        warm(pushes, top);
        for (unsigned is_absent = 0; is_absent < 2; is_absent++) {
            if (is_absent) {
                map_area(AREA, low, 0);
            }
            struct context c = start(pushes, top);
            context_run(&c);
            unsigned done = is_absent ? above : RUN;
            if (is_absent && above < RUN) {
                check_fault("pushes, lower page absent", &c, PF_W,
                            code_address(pushes) + PREFIX + above, BORDER - 8);
            } else {
                check("pushes end", c.ip, code_address(pushes_end));
            }
            expect("  rsp", c.gpr[RSP], top - 8 * done);
            expect("  flags", c.flags & FLAGS_ARITHMETIC, FLAG_CF | FLAG_AF | FLAG_SF);
            for (unsigned i = 0; i < RUN; i++) {
                uintptr_t at = top - 8 * (i + 1);
                uint64_t before =
                    at < BORDER ? 0x100000 + (at - AREA) / 8 : 0x200000 + (at - BORDER) / 8;
                uint64_t pushed = start(pushes, top).gpr[order[i]];
                expect("  word", *word(at), i < done ? pushed : before);
            }
            fill();
        }
    }
}

static void test_pops_of(const char *code, const char *end, const uint8_t *order,
                         const struct context *behind)
{
    for (unsigned below = 0; below <= RUN; below++) {
        uintptr_t top = BORDER - 8 * below;
        warm(code, top);
        for (unsigned is_absent = 0; is_absent < 2; is_absent++) {
            if (is_absent) {
                map_area(BORDER, high, 0);
            }
            struct context c = start(code, top);
            context_run(&c);
            unsigned done = is_absent ? below : RUN;
            if (is_absent && below < RUN) {
                check_fault("pops, upper page absent", &c, 0, code_address(code) + PREFIX + below,
                            BORDER);
            } else {
                check("pops end", c.ip, code_address(end));
            }
            expect("  rsp", c.gpr[RSP], top + 8 * done);
            expect("  flags", c.flags & FLAGS_ARITHMETIC, behind->flags);
            for (unsigned i = 0; i < RUN; i++) {
                expect("  register", c.gpr[order[i]],
                       i < done ? *word(top + 8 * i) : behind->gpr[order[i]]);
            }
        }
    }
}

static void test_pops(void)
{
    static const uint8_t compared[RUN] = {RAX, RCX, RDX, RBX, RBP, R12};
    static const uint8_t subtracted[RUN] = {RBX, RAX, RDX, RCX, RBP, R12};
    static const uint8_t incremented[RUN] = {RBX, RCX, RDX, RAX, RBP, R12};
    struct context behind = start(pops, AREA);
    behind.flags = FLAG_CF | FLAG_AF | FLAG_SF; /* 11...1 less 44...4 */
    test_pops_of(pops, pops_end, compared, &behind);
    behind.gpr[RAX] -= behind.gpr[RBX];
    test_pops_of(pops_subtracted, pops_subtracted_end, subtracted, &behind);
    behind = start(pops, AREA);
    behind.gpr[RAX]++;
    behind.flags = FLAG_PF; /* 12H has two bits set */
    test_pops_of(pops_incremented, pops_incremented_end, incremented, &behind);
}

/* ---- fields ---- */

SNIPPET(loads, "cmp %rcx, %rdi; mov (%rdi), %rax; mov 8(%rdi), %rcx; mov 16(%rdi), %rbx;"
               "mov 24(%rdi), %rdx");
SNIPPET(changes, "cmp %rcx, %rdi; mov %rax, (%rdi); add %rcx, 8(%rdi); mov %rbx, 16(%rdi);"
                 "xor %rdx, 24(%rdi)");
enum { FIELDS = 4 };
/* Where each field's instruction begins. */
static const uint8_t field_starts[FIELDS] = {3, 6, 10, 14};

static void test_loads(void)
{
    static const uint8_t order[FIELDS] = {RAX, RCX, RBX, RDX};
    for (unsigned below = 1; below <= FIELDS; below++) {
        uintptr_t address = BORDER - 8 * below;
        for (unsigned absent = 0; absent < 3; absent++) { /* no page, the lower, the upper one */
            warm(loads, address);
            if (absent) {
                map_area(absent == 1 ? AREA : BORDER, low, 0);
            }
            unsigned done = absent == 0 ? FIELDS : absent == 1 ? 0 : below;
            struct context c = start(loads, address), before = c;
            context_run(&c);
            if (done < FIELDS) {
                check_fault("loads, a page absent", &c, 0, code_address(loads) + field_starts[done],
                            address + 8 * done);
            } else {
                check("loads end", c.ip, code_address(loads_end));
            }
            /* of 8000000000H and some less 2222222222222222H */
            expect("  flags", c.flags & (FLAG_CF | FLAG_OF | FLAG_ZF | FLAG_SF), FLAG_CF | FLAG_SF);
            for (unsigned i = 0; i < FIELDS; i++) {
                expect("  register", c.gpr[order[i]],
                       i < done ? *word(address + 8 * i) : before.gpr[order[i]]);
            }
        }
    }
}

static void test_changes(void)
{
    for (unsigned below = 1; below <= FIELDS; below++) {
        uintptr_t address = BORDER - 8 * below;
        for (unsigned readonly = 0; readonly < 3; readonly++) {
            warm(changes, address);
            if (readonly) {
                map_area(readonly == 1 ? AREA : BORDER, readonly == 1 ? low : high, PTE_P);
            }
            unsigned done = readonly == 0 ? FIELDS : readonly == 1 ? 0 : below;
            struct context c = start(changes, address), before = c;
            uint64_t expected[FIELDS];
            for (unsigned i = 0; i < FIELDS; i++) {
                expected[i] = *word(address + 8 * i);
            }
            uint64_t changed[FIELDS] = {before.gpr[RAX], expected[1] + before.gpr[RCX],
                                        before.gpr[RBX], expected[3] ^ before.gpr[RDX]};
            context_run(&c);
            if (done < FIELDS) {
                check_fault("changes, a page read-only", &c, PF_P | PF_W,
                            code_address(changes) + field_starts[done], address + 8 * done);
            } else {
                check("changes end", c.ip, code_address(changes_end));
            }
            for (unsigned i = 0; i < FIELDS; i++) {
                expect("  word", *word(address + 8 * i), i < done ? changed[i] : expected[i]);
            }
        }
    }
}

/* ---- calls ---- */

/*
 * RCX times: a call with a frame of eight words. RAX counts, R10 and R11 take part; RDX is the
 * sum of what was seen in frames.
 */
SNIPPET(frames, "1: call 2f; dec %rcx; jnz 1b; jmp 3f\n"
                "2: push %rbx; push %rbp; push %r10; push %r11; sub $24, %rsp;"
                "mov %rax, 8(%rsp); mov %rcx, 16(%rsp); mov %r10, (%rsp);"
                "add $1, %rax; mov %rax, %rbx; mov %rcx, %r10; mov %rbx, %r11;"
                "cmp %rcx, %rax; mov 8(%rsp), %rbp; mov 16(%rsp), %rbx; adc %rbp, %rdx;"
                "add %rbx, %rdx; add $24, %rsp; pop %r11; pop %r10; pop %rbp; pop %rbx; ret\n3:");

static void test_frames(void)
{
    enum { CALLS = 300 };
    map_both();
    for (unsigned words = 0; words <= 10; words++) {
        struct context c = start(frames, BORDER + 8 * words), before = c;
        uint64_t sum = 0;
        c.gpr[RAX] = c.gpr[RDX] = 0;
        c.gpr[RCX] = CALLS;
        for (uint64_t i = 0; i < CALLS; i++) {
            uint64_t left = CALLS - i;
            sum += i + left + (i + 1 < left);
        }
        context_run(&c);
        check("calls end", c.vector == UD && c.ip == code_address(frames_end), 1);
        expect("  rsp", c.gpr[RSP], BORDER + 8 * words);
        expect("  rax", c.gpr[RAX], CALLS);
        expect("  sum", c.gpr[RDX], sum);
        expect("  others",
               c.gpr[RBX] == before.gpr[RBX] && c.gpr[RBP] == before.gpr[RBP] &&
                   c.gpr[R10] == before.gpr[R10] && c.gpr[R11] == before.gpr[R11],
               1);
    }
}

/* POP RBX, POP RBP and RET: the return address is the first word that is not there. */
SNIPPET(leaves, "sub %rcx, %rdx; pop %rbx; pop %rbp; ret");
static void test_returns(void)
{
    for (unsigned below = 0; below <= 3; below++) {
        uintptr_t top = BORDER - 8 * below;
        for (unsigned is_absent = 0; is_absent < 2; is_absent++) {
            map_both();
            for (unsigned i = 0; i < ROUNDS; i++) {
                *word(top + 16) = code_address(leaves_end);
                struct context c = start(leaves, top);
                if (i == ROUNDS - 1 && is_absent) {
                    map_area(BORDER, high, 0);
                }
                context_run(&c);
                unsigned done = i == ROUNDS - 1 && is_absent ? below : 3;
                if (done < 3) {
                    check_fault("return, upper page absent", &c, 0,
                                code_address(leaves) + PREFIX + done, BORDER);
                } else {
                    expect("return", c.ip, code_address(leaves_end));
                }
                expect("  rsp", c.gpr[RSP], top + 8 * done);
            }
        }
    }
}

/* ---- other pages, other code ---- */

static void test_other_page(void)
{
    fill();
    map_both();
    for (unsigned i = 0; i < 4 * ROUNDS; i++) {
        volatile uint64_t *upper = i / 4 & 1 ? other : high;
        map_area(BORDER, upper, PTE_P | PTE_W);
        struct context c = start(changes, BORDER - 16);
        c.gpr[RBX] = i;
        upper[0] = 0;
        context_run(&c);
        expect("store to the page of the moment", upper[0], i);
        c = start(loads, BORDER - 16);
        upper[1] = 5 * i;
        context_run(&c);
        expect("load from it", c.gpr[RDX], 5 * i);
    }
    print("other pages\n");
}

/* So long that only a unit that begins at the fields has the instruction that is changed. */
SNIPPET(changing, ".rept 4; inc %eax; .endr; mov (%rdi), %rcx; mov 8(%rdi), %rdx\n"
                  ".rept 36; nop; .endr; mov $1, %ebx");
static void test_changed_code(void)
{
    volatile uint8_t *immediate = (volatile uint8_t *)changing_end - 4;
    map_both();
    fill();
    for (unsigned i = 0; i < 4 * ROUNDS; i++) {
        if (i % 6 == 0) {
            *immediate = (uint8_t)(i / 6);
        }
        struct context c = start(changing, BORDER - 8);
        context_run(&c);
        expect("changed code behind a group", c.gpr[RBX], i / 6);
        expect("  first field", c.gpr[RCX], low[WORDS - 1]);
        expect("  second field", c.gpr[RDX], high[0]);
    }
    print("changed code\n");
}

/* An address that is not canonical is within no page. */
static void test_not_canonical(void)
{
    for (unsigned i = 0; i < 32; i++) {
        struct context c = start(loads, 0x7ffffffffff0 + 8 * (i & 1) * 2);
        context_run(&c);
        expect("not canonical", c.vector, i & 1 ? GP : PF);
        expect("  ip", c.ip, code_address(loads) + field_starts[0]);
    }
    print("not canonical\n");
}

void test_main(void)
{
    low = page_new();
    high = page_new();
    other = page_new();
    for (unsigned user = 0; user < 2; user++) {
        is_user = user;
        print(user ? "user code\n" : "kernel code\n");
        test_pushes();
        test_pops();
        test_loads();
        test_changes();
        test_frames();
        test_returns();
        test_other_page();
        test_changed_code();
        test_not_canonical();
    }
}
