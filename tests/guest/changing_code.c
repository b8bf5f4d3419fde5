/*
 * Code that keeps changing: each case many times over, so that an engine that changes its ways
 * after some rounds is tested in both. Immediates of every form, instructions that alternate,
 * stores ahead of the one that makes them, through other mappings and by another instruction;
 * code and its data in one cache line; flags, faults and returns in the middle; across pages.
 * SDM volume 3, 8.1.3 and 11.6.
 */
#include "runtime.h"

#define AREA  0x8000000000ul
#define ALIAS 0x8000010000ul
enum { ROUNDS = 150, FAR = 512 };
static uint8_t *first, *second;

static void put(uint8_t *to, const void *code, const void *end)
{
    for (const uint8_t *from = code; from < (const uint8_t *)end; from++) {
        *(volatile uint8_t *)to++ = *from;
    }
}

static void put_number(uint8_t *to, uint64_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++) {
        ((volatile uint8_t *)to)[i] = (uint8_t)(value >> 8 * i);
    }
}

static struct context run_at(uintptr_t ip, uintptr_t rdi, uintptr_t rax)
{
    struct context c;
    context_init(&c, (void *)ip);
    c.gpr[RDI] = rdi;
    c.gpr[RAX] = rax;
    c.gpr[RCX] = 10;
    context_run(&c);
    return c;
}

/* ---- immediates ---- */

#define OPERATIONS(X)                                                                              \
    X(mov32, "mov $0x11223344, %eax")                                                              \
    X(mov32_high, "mov $0x11223344, %r13d; mov %r13, %rax")                                        \
    X(mov64, "movabs $0x1122334455667788, %rax")                                                   \
    X(mov_signed, "movq $0x11223344, %rax; nop")                                                   \
    X(mov_displaced, "mov $0x11223344, %r10d; mov %r10, %rax")                                     \
    X(add32, "add $0x11223344, %eax")                                                              \
    X(add64, "add $0x11223344, %rax")                                                              \
    X(add8, "add $0x11, %rax")                                                                     \
    X(sub32, "sub $0x11223344, %ecx; mov %ecx, %eax")                                              \
    X(adc32, "stc; adc $0x11223344, %eax")                                                         \
    X(sbb8, "stc; sbb $0x11, %ecx; mov %ecx, %eax")                                                \
    X(and32, "and $0x11223344, %eax")                                                              \
    X(or8, "or $0x11, %eax")                                                                       \
    X(xor64, "xor $0x11223344, %rax")                                                              \
    X(cmp32, "cmp $0x11223344, %eax; setb %al")                                                    \
    X(cmp8, "cmp $0x11, %rcx; setl %al; setb %ah")                                                 \
    X(test32, "test $0x11223344, %eax; setz %al; setp %ah")                                        \
    X(two, "mov $0x11223344, %eax; mov $0x55667788, %ecx; add %ecx, %eax")                         \
    X(stack, "mov %rsp, %rax; sub $0x11223344, %rsp; sub %rsp, %rax")                              \
    X(word, "mov $0x1122, %ax")                                                                    \
    X(byte, "mov $0x11, %al")                                                                      \
    X(high_byte, "mov $0x11, %ah")                                                                 \
    X(displacement, "lea 0x11223344(%rcx), %rax")                                                  \
    X(multiply, "imul $0x11223344, %ecx, %eax; test %eax, %eax")
#define DEFINE(name, code) SNIPPET(op_##name, code);
OPERATIONS(DEFINE)

static const struct operation {
    const char *name, *code, *end;
} operations[] = {
#define ENTRY(name, code) {#name, op_##name, op_##name##_end},
    OPERATIONS(ENTRY)};

/* Where a snippet has the bytes 11H or, of the larger numbers, their lowest one. */
static unsigned immediate_of(const struct operation *o)
{
    for (unsigned i = 0; o->code + i < o->end; i++) {
        uint8_t byte = (uint8_t)o->code[i];
        if (byte == 0x44 || byte == 0x88 || byte == 0x22 || byte == 0x11) {
            if (i && (byte != 0x44 || o->code[i + 1] == 0x33)) {
                return i;
            }
        }
    }
    return 0;
}

/*
 * The same code at a place that is patched and at places that are written once: what the one
 * computes must be what the others do, with the flags.
 */
static void test_immediates(void)
{
    for (unsigned i = 0; i < sizeof operations / sizeof *operations; i++) {
        const struct operation *o = &operations[i];
        unsigned at = immediate_of(o), wrong = 0;
        put(first + 3, o->code, o->end + 2);
        for (unsigned round = 0; round < ROUNDS; round++) {
            uint8_t value = (uint8_t)(round * 37 + 5);
            uint8_t *fresh = second + round % 16 * 128 + (round / 16 * 8) % 64;
            first[3 + at] = value;
            put(fresh, o->code, o->end + 2);
            fresh[at] = value;
            struct context c = run_at(AREA + 3, 0, 0x1234567800 + round);
            struct context d = run_at((uintptr_t)fresh, 0, 0x1234567800 + round);
            wrong += c.gpr[RAX] != d.gpr[RAX] || c.flags != d.flags || c.gpr[RSP] != d.gpr[RSP] ||
                     c.gpr[R13] != d.gpr[R13] || c.gpr[R10] != d.gpr[R10];
        }
        check(o->name, wrong, 0);
    }
}

/* A whole immediate, at each place in its cache line. */
static void test_places(void)
{
    unsigned wrong = 0;
    for (unsigned place = 40; place < 70; place++) {
        put(first + place, op_mov32, op_mov32_end + 2);
        put(first + place + FAR, op_mov64, op_mov64_end + 2);
        for (unsigned round = 0; round < 30; round++) {
            uint32_t value = 0x01010101u * round ^ 0x80000000u;
            put_number(first + place + 1, value, 4);
            wrong += run_at(AREA + place, 0, 0).gpr[RAX] != value;
            put_number(first + place + FAR + 2, value * 0x100000001ull, 8);
            wrong += run_at(AREA + place + FAR, 0, 0).gpr[RAX] != value * 0x100000001ull;
        }
    }
    check("an immediate at any place of a line", wrong, 0);
}

/* Many in a row, of which some change each time. */
static void test_many(void)
{
    enum { COUNT = 30, SIZE = 5 };
    unsigned wrong = 0;
    uint32_t values[COUNT] = {0}, sum = 0;
    for (unsigned i = 0; i < COUNT; i++) {
        first[i * SIZE] = 0x05; /* add $0, %eax */
        put_number(first + i * SIZE + 1, 0, 4);
    }
    put_number(first + COUNT * SIZE, 0x0b0f, 2);
    for (unsigned round = 0; round < 4 * ROUNDS; round++) {
        for (unsigned i = round * 7 % COUNT; i < COUNT; i += 11) {
            sum += round * 0x01234567u - values[i];
            values[i] = round * 0x01234567u;
            put_number(first + i * SIZE + 1, values[i], 4);
        }
        wrong += (uint32_t)run_at(AREA, 0, round).gpr[RAX] != sum + round;
    }
    check("many immediates", wrong, 0);
}

/* ---- targets ---- */

SNIPPET(call_target, "call 1f; mov %al, %ah; call 2f; 1: ud2; 2: ud2");
SNIPPET(jump_target, "xor %eax, %eax; .byte 0xe9; .long 0");
SNIPPET(short_target, "xor %eax, %eax; jmp 1f; 1: add $1, %eax; add $2, %eax; add $4, %eax");

static void test_targets(void)
{
    unsigned wrong = 0;
    for (unsigned i = 0; i < 4; i++) { /* mov $n, %al; ret */
        const uint8_t function[] = {0xb0, (uint8_t)(i + 1), 0xc3};
        put(first + FAR + 16 * i, function, function + sizeof function);
        put(second + 16 * i, function, function + sizeof function);
    }
    put(first, call_target, call_target_end + 2);
    for (unsigned round = 0; round < ROUNDS; round++) {
        unsigned a = round % 4, b = round / 4 % 4;
        put_number(first + 1, FAR + 16 * a - 5, 4);
        put_number(first + 8, 0x1000 + 16 * b - 12, 4); /* in the next page */
        struct context c = run_at(AREA, 0, 0);
        wrong += (c.gpr[RAX] & 0xffff) != ((a + 1) << 8 | (b + 1));
    }
    check("a call whose target changes", wrong, 0);
    wrong = 0;
    put(first, jump_target, jump_target_end + 2);
    for (unsigned round = 0; round < ROUNDS; round++) {
        put_number(first + 3, (round % 2 ? 0x1000 : FAR) + 16 * (round % 4) - 7, 4);
        first[FAR + 16 * (round % 4) + 2] = 0x06; /* #UD for RET */
        second[16 * (round % 4) + 2] = 0x06;
        wrong += (run_at(AREA, 0, 0).gpr[RAX] & 0xff) != round % 4 + 1;
    }
    check("a jump whose target changes", wrong, 0);
    wrong = 0;
    put(first, short_target, short_target_end + 2);
    for (unsigned round = 0; round < ROUNDS; round++) {
        first[3] = (uint8_t)(round % 4 * 3);
        wrong += run_at(AREA, 0, 0).gpr[RAX] != (7u >> round % 4 << round % 4);
    }
    check("a short jump whose target changes", wrong, 0);
}

/* ---- instructions that alternate ---- */

SNIPPET(variants, "mov $1, %eax; nop; nop; nop; nop; nop; add $1, %eax");

static void test_versions(void)
{
    static const uint8_t nops[][5] = {
        {0x0f, 0x1f, 0x44, 0x00, 0x00}, /* NOP: 2 */
        {0x83, 0xc0, 0x10, 0x90, 0x90}, /* ADD $16, %eax */
        {0xff, 0xc0, 0xff, 0xc0, 0x90}, /* INC, INC */
        {0xd1, 0xe0, 0xd1, 0xe0, 0x90}, /* SHL, SHL */
        {0xeb, 0x03, 0x06, 0x06, 0x06}, /* JMP behind */
        {0xf7, 0xd8, 0xf7, 0xd8, 0xf9}, /* NEG, NEG, STC */
        {0xb8, 0x40, 0x00, 0x00, 0x00}, /* MOV $64, %eax */
    };
    static const unsigned results[] = {2, 18, 4, 5, 2, 2, 65};
    put(first, variants, variants_end + 2);
    for (unsigned count = 2; count <= 7; count++) {
        unsigned wrong = 0;
        for (unsigned round = 0; round < ROUNDS; round++) {
            put(first + 5, nops[round % count], nops[round % count] + 5);
            wrong += run_at(AREA, 0, 0).gpr[RAX] != results[round % count];
            wrong += run_at(AREA, 0, 0).gpr[RAX] != results[round % count];
        }
        check("instructions that alternate", wrong, 0);
    }
    /* as a debugger does */
    unsigned wrong = 0;
    put(first, variants, variants_end + 2);
    for (unsigned round = 0; round < ROUNDS; round++) {
        first[5] = 0xcc;
        struct context c = run_at(AREA, 0, 0);
        wrong += c.vector != BP || c.ip != AREA + 6;
        first[5] = 0x90;
        c = run_at(AREA, 0, 0);
        wrong += c.vector != UD || c.gpr[RAX] != 2;
    }
    check("a breakpoint comes and goes", wrong, 0);
}

/* ---- stores ahead ---- */

SNIPPET(ahead, "movb %al, 1f + 1 - ahead(%rdi); 1: mov $0x11, %bl");
SNIPPET(ahead_jump, "movb %al, 1f + 1 - ahead_jump(%rdi); jmp 1f; 1: mov $0x11, %bl");
SNIPPET(ahead_far, "movb %al, 1f + 1 - ahead_far(%rdi); add $1, %ecx; mov (%rsp), %rdx;"
                   "lea 5(%rcx), %rsi; test %ecx, %ecx; 1: mov $0x11, %bl");
SNIPPET(ahead_string, "mov %rdi, %rsi; lea 1f + 1 - ahead_string(%rdi), %rdi; mov $1, %ecx;"
                      "rep stosb; mov %rsi, %rdi; 1: mov $0x11, %bl");
SNIPPET(ahead_push, "mov %rsp, %rdx; mov %al, %ah; mov %ax, %bx; shl $16, %rax; mov %bx, %ax;"
                    "mov %rax, %rbx; shl $32, %rax; or %rbx, %rax;"
                    "lea 1f + 10 - ahead_push(%rdi), %rsp; push %rax; push %rax;"
                    "1: mov $0x1111111111111111, %rbx; mov %rdx, %rsp");
SNIPPET(ahead_locked, "lock xchg %al, 1f + 1 - ahead_locked(%rdi); 1: mov $0x11, %bl");
SNIPPET(ahead_vector, "movd %eax, %xmm0; movd %xmm0, 1f + 1 - ahead_vector(%rdi);"
                      "1: mov $0x11111111, %ebx; movzbl %bl, %ebx");
SNIPPET(ahead_return, "lea 1f - ahead_return(%rdi), %rdx; push %rdx; lea 2f - ahead_return(%rdi),"
                      "%rdx; push %rdx; ret; 2: mov %al, 1f + 1 - ahead_return(%rdi); ret;"
                      "1: mov $0x11, %bl");
SNIPPET(behind_call, "call 1f; mov $0x11, %bl; ud2;"
                     "1: mov %al, behind_call_patch + 1 - behind_call(%rdi); ret;"
                     ".globl behind_call_patch; .set behind_call_patch, behind_call + 5");

static const struct ahead {
    const char *name, *code, *end;
} aheads[] = {
    {"the next instruction", ahead, ahead_end},
    {"behind a jump", ahead_jump, ahead_jump_end},
    {"some instructions later", ahead_far, ahead_far_end},
    {"by REP STOSB", ahead_string, ahead_string_end},
    {"by two pushes", ahead_push, ahead_push_end},
    {"by a locked instruction", ahead_locked, ahead_locked_end},
    {"by MOVD", ahead_vector, ahead_vector_end},
    {"where a return leads", ahead_return, ahead_return_end},
    {"behind the call that does it", behind_call, behind_call_end},
};

static void test_ahead(uintptr_t store_at, const char *how)
{
    for (unsigned i = 0; i < sizeof aheads / sizeof *aheads; i++) {
        unsigned wrong = 0;
        put(first, aheads[i].code, aheads[i].end + 2);
        for (unsigned round = 0; round < ROUNDS; round++) {
            struct context c = run_at(AREA, store_at, round + 1);
            wrong += (c.gpr[RBX] & 0xff) != ((round + 1) & 0xff) || c.vector != UD;
        }
        print(how);
        check(aheads[i].name, wrong, 0);
    }
}

SNIPPET(loop_itself, "xor %eax, %eax; 1: add $1, %eax; incb 1b + 2 - loop_itself(%rdi);"
                     "dec %ecx; jnz 1b");
SNIPPET(counter, "1: lock incl 2f - counter(%rdi); incl 2f - counter(%rdi); inc %eax; dec %ecx;"
                 "jnz 1b; ud2; 2: .long 0");
SNIPPET(decrypt, "lea 1f - decrypt(%rdi), %rsi; mov $2f - 1f, %ecx; 0: xorb %al, (%rsi);"
                 "inc %rsi; dec %ecx; jnz 0b; 1: mov $0x5a5a, %ebx; add $0x11, %ebx; 2:");

static void test_loops(void)
{
    unsigned wrong = 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        put(first, loop_itself, loop_itself_end + 2);
        wrong += run_at(AREA, round % 2 ? ALIAS : AREA, 0).gpr[RAX] != 55;
    }
    check("a loop that changes itself", wrong, 0);
    wrong = 0;
    put(first, counter, counter_end + 2);
    volatile uint32_t *count = (volatile uint32_t *)(first + (counter_end - counter - 4));
    for (unsigned round = 0; round < ROUNDS; round++) {
        wrong += run_at(AREA, AREA, 0).gpr[RAX] != 10;
        wrong += *count != 20 * (round + 1);
    }
    check("a counter beside the code", wrong, 0);
    wrong = 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        put(first, decrypt, decrypt_end + 2);
        for (unsigned i = 0; decrypt + i < decrypt_end; i++) {
            if (decrypt + i >= decrypt_end - 8) {
                first[i] ^= (uint8_t)round;
            }
        }
        wrong += run_at(AREA, AREA, round).gpr[RBX] != 0x5a6b;
    }
    check("code that decrypts what follows", wrong, 0);
}

/* ---- the middle of things ---- */

SNIPPET(faults, "cmp $0x11, %al; mov $0x22, %ebx; mov (%rdi), %edx");
SNIPPET(flags, "cmp %al, %cl; jmp 1f; 1: mov $0x11223344, %ebx; setb %dl; setz %dh");

static void test_middle(void)
{
    unsigned wrong = 0;
    put(first, faults, faults_end + 2);
    for (unsigned round = 0; round < ROUNDS; round++) {
        first[1] = first[3] = (uint8_t)round;
        struct context c = run_at(AREA, 0x4000000000, 100);
        uintptr_t expected = (100 < round % 128 && round < 128) || round >= 128 ? FLAG_CF : 0;
        wrong += c.vector != PF || c.ip != AREA + 7 || c.cr2 != 0x4000000000 ||
                 c.gpr[RBX] != (uint8_t)round || (c.flags & FLAG_CF) != expected ||
                 !(c.flags & FLAG_ZF) != (round != 100);
    }
    check("a fault behind what changed", wrong, 0);
    wrong = 0;
    put(first, flags, flags_end + 2);
    for (unsigned round = 0; round < ROUNDS; round++) {
        put_number(first + 5, round * 0x01010101u, 4);
        struct context c = run_at(AREA, 0, round % 20);
        unsigned expected = (10 < round % 20) | (round % 20 == 10) << 8;
        wrong += (c.gpr[RDX] & 0xffff) != expected || c.gpr[RBX] != round * 0x01010101u;
    }
    check("flags across what changed", wrong, 0);
    wrong = 0;
    put(first, op_add32, op_add32_end + 2);
    for (unsigned round = 0; round < ROUNDS; round++) { /* in user mode, by the kernel */
        struct context c;
        put_number(first + 1, round * 0x01010101u, 4);
        context_init_user(&c, first);
        c.gpr[RAX] = 1;
        context_run(&c);
        wrong += c.gpr[RAX] != (uint32_t)(round * 0x01010101u + 1);
    }
    check("the user's code, changed by the kernel", wrong, 0);
}

static void test_across(void)
{
    unsigned wrong = 0;
    uint8_t *other = page_new();
    for (unsigned split = 1; split < 5; split++) {
        uintptr_t ip = AREA + 0x1000 - split;
        put(first + 0x1000 - split, op_mov32, op_mov32 + split);
        put(second, op_mov32 + split, op_mov32_end + 2);
        put(other, op_mov32 + split, op_mov32_end + 2);
        other[4 - split] = 0x99;
        for (unsigned round = 0; round < ROUNDS; round++) {
            second[4 - split] = (uint8_t)round;
            wrong += run_at(ip, 0, 0).gpr[RAX] != (0x223344u | round << 24);
            if (split > 1) {
                first[0xfff] = (uint8_t)round;
                uint32_t shifted = 8 * (split - 2);
                wrong += (run_at(ip, 0, 0).gpr[RAX] >> shifted & 0xff) != (uint8_t)round;
                first[0xfff] = (uint8_t)op_mov32[split - 1];
            }
            if (round % 8 == 0) {
                map(AREA + 0x1000, (uintptr_t)other, PTE_P | PTE_W);
                wrong += run_at(ip, 0, 0).gpr[RAX] != 0x99223344u;
                map(AREA + 0x1000, (uintptr_t)second, PTE_P | PTE_W);
            }
            if (round % 8 == 4) {
                map(AREA + 0x1000, 0, 0);
                struct context c = run_at(ip, 0, 0);
                wrong += c.vector != PF || c.ip != ip;
                map(AREA + 0x1000, (uintptr_t)second, PTE_P | PTE_W);
            }
        }
    }
    check("across pages", wrong, 0);
    wrong = 0;
    put(first, op_mov32, op_mov32_end + 2);
    put(other, op_mov32, op_mov32_end + 2);
    for (unsigned round = 0; round < ROUNDS; round++) {
        first[1] = (uint8_t)round;
        other[1] = (uint8_t)~round;
        map(AREA, (uintptr_t)(round & 1 ? other : first), PTE_P | PTE_W);
        wrong += (run_at(AREA, 0, 0).gpr[RAX] & 0xff) != (uint8_t)(round & 1 ? ~round : round);
    }
    map(AREA, (uintptr_t)first, PTE_P | PTE_W);
    check("changed and remapped", wrong, 0);
}

/* The last instructions of a page; the next page is no RAM. */
static void test_end(void)
{
    enum { NOWHERE = 0xe0000000 };
    unsigned wrong = 0, at = 4096 - 7;
    map(AREA + 0x1000, NOWHERE, PTE_P | PTE_W | PTE_PCD);
    invlpg(AREA + 0x1000);
    put(first, op_mov32, op_mov32_end + 2);
    put(first + at, op_mov32, op_mov32_end + 2);
    for (unsigned round = 0; round < ROUNDS; round++) {
        first[1] = first[at + 1] = (uint8_t)round;
        wrong += (run_at(AREA, 0, 0).gpr[RAX] & 0xff) != (uint8_t)round;
        wrong += (run_at(AREA + at, 0, 0).gpr[RAX] & 0xff) != (uint8_t)round;
    }
    check("changed in front of a page that is no RAM", wrong, 0);
    map(AREA + 0x1000, (uintptr_t)second, PTE_P | PTE_W);
    invlpg(AREA + 0x1000);
}

/* As a compiler does: functions at new places of a page that has some, each called a few times. */
static void test_writer(void)
{
    unsigned wrong = 0;
    for (unsigned round = 0; round < 4; round++) {
        for (unsigned at = 0; at + 16 <= 4096; at += 16) {
            put(first + at, op_add32, op_add32_end + 2);
            put_number(first + at + 1, at * round, 4);
            for (unsigned i = 0; i < 3; i++) {
                wrong += (uint32_t)run_at(AREA + at, 0, i).gpr[RAX] != at * round + i;
            }
            wrong += (uint32_t)run_at(AREA + at / 2 / 16 * 16, 0, 7).gpr[RAX] !=
                     at / 2 / 16 * 16 * round + 7;
        }
    }
    check("new functions beside others", wrong, 0);
}

void test_main(void)
{
    first = page_new();
    second = page_new();
    map(AREA, (uintptr_t)first, PTE_P | PTE_W);
    map(ALIAS, (uintptr_t)first, PTE_P | PTE_W);
    map(AREA + 0x1000, (uintptr_t)second, PTE_P | PTE_W);
    test_immediates();
    test_places();
    test_many();
    test_targets();
    test_versions();
    test_ahead(AREA, "patched ");
    test_ahead(ALIAS, "patched through another mapping ");
    test_loops();
    test_middle();
    test_across();
    test_end();
    test_writer();
}
