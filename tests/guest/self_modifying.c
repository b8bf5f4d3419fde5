/*
 * Self-modifying and cross-page code: a store ahead in the same block, behind, into the running
 * loop, through another mapping, by string instruction, by FXSAVE; code across pages whose second
 * page changes, faults or is remapped; code that maps itself elsewhere; code and data in one page.
 * SDM volume 3, 8.1.3 and 11.6: after a branch the new bytes count on every CPU; without one they
 * do on every CPU since the Pentium.
 */
#include "runtime.h"

#define AREA 0x8000000000ul
static uint8_t *first, *second;

static void put(uint8_t *to, const void *code, const void *end)
{
    for (const uint8_t *from = code; from < (const uint8_t *)end; from++) {
        *to++ = *from;
    }
}

static struct context run_at(uintptr_t ip, uintptr_t rdi, uintptr_t rcx)
{
    struct context c;
    context_init(&c, (void *)ip);
    c.gpr[RDI] = rdi;
    c.gpr[RCX] = rcx;
    context_run(&c);
    return c;
}

SNIPPET(patch_ahead, "movb $0x22, 1f + 1 - patch_ahead(%rdi); jmp 1f; 1: mov $0x11, %al");
SNIPPET(patch_next, "movb $0x22, 1f + 1 - patch_next(%rdi); 1: mov $0x11, %al");
SNIPPET(patch_loop, "xor %eax, %eax; 1: add $1, %eax; incb 1b + 2 - patch_loop(%rdi);"
                    "dec %ecx; jnz 1b");
SNIPPET(patch_string, "push %rdi; lea 1f - patch_string(%rdi), %rdi; mov $0x90, %al;"
                      "mov $2, %ecx; rep stosb; pop %rdi; mov $7, %al; jmp 1f; 1: mov $9, %al");
SNIPPET(patch_push, "mov %rsp, %rbx; lea 1f + 8 - patch_push(%rdi), %rsp;"
                    "mov $0x9090909090909090, %rax; push %rax; mov %rbx, %rsp; mov $5, %eax;"
                    "jmp 1f; 1: mov $9, %eax; nop; nop; nop");
SNIPPET(patch_call, "call 1f; mov %al, %ah; movb $0x33, 1f + 1 - patch_call(%rdi); call 1f; ud2;"
                    "1: mov $0x11, %al; ret");
SNIPPET(spans, "mov $0x11223344, %eax");
SNIPPET(fetch_loop, "1: inc %eax; dec %ecx; jnz 1b");

static void test_same_page(void)
{
    put(first, patch_ahead, patch_ahead_end + 2);
    struct context c = run_at(AREA, AREA, 0);
    check("patch behind a jump", c.gpr[RAX], 0x22);
    put(first, patch_next, patch_next_end + 2);
    c = run_at(AREA, AREA, 0);
    check("patch the next instruction", c.gpr[RAX], 0x22);
    put(first, patch_loop, patch_loop_end + 2);
    c = run_at(AREA, AREA, 10);
    check("a loop that changes itself", c.gpr[RAX], 1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10);
    put(first, patch_string, patch_string_end + 2);
    c = run_at(AREA, AREA, 0);
    check("patch by REP STOSB", c.gpr[RAX] & 0xff, 7);
    put(first, patch_push, patch_push_end + 2);
    c = run_at(AREA, AREA, 0);
    check("patch by PUSH", c.gpr[RAX], 5);
    put(first, patch_call, patch_call_end + 2);
    c = run_at(AREA, AREA, 0);
    check("patch a function that is called again", c.gpr[RAX] & 0xffff, 0x1133);
}

static void test_alias(void)
{
    map(AREA + 0x10000, (uintptr_t)first, PTE_P | PTE_W);
    put(first, patch_ahead, patch_ahead_end + 2);
    struct context c = run_at(AREA, AREA + 0x10000, 0);
    check("patch through another mapping", c.gpr[RAX], 0x22);
    /* by the test itself, between runs: the identity map is another mapping still */
    for (unsigned i = 0; i < 50; i++) {
        put(first, spans, spans_end + 2);
        first[1] = (uint8_t)i;
        c = run_at(AREA, 0, 0);
        check("new code each time", c.gpr[RAX], 0x11223300 + i);
    }
    /* data beside code in one page: stores must hit and leave the code alone */
    put(first, fetch_loop, fetch_loop_end + 2);
    volatile uint64_t *beside = (uint64_t *)(first + 2048);
    for (unsigned i = 0; i < 50; i++) {
        *beside = i;
        c = run_at(AREA, 0, 10);
        check("data beside code", *beside, i);
        check("  the code", c.gpr[RAX], 10);
    }
}

static void test_cross_page(void)
{
    for (unsigned split = 1; split < 5; split++) {
        uintptr_t ip = AREA + 0x1000 - split;
        put(first + 0x1000 - split, spans, spans + split);
        put(second, spans + split, spans_end + 2);
        struct context c = run_at(ip, 0, 0);
        check("instruction across pages", c.gpr[RAX], 0x11223344);
        second[4 - split] = 0x77; /* the last immediate byte */
        c = run_at(ip, 0, 0);
        check("  its second page changes", c.gpr[RAX], 0x77223344);
        map(AREA + 0x1000, 0, 0);
        c = run_at(ip, 0, 0);
        check_stop("  its second page is gone", &c, PF, PF_I, ip);
        check("  cr2", c.cr2, AREA + 0x1000);
        uint8_t *other = page_new();
        put(other, spans + split, spans_end + 2);
        other[4 - split] = 0x55;
        map(AREA + 0x1000, (uintptr_t)other, PTE_P);
        c = run_at(ip, 0, 0);
        check("  its second page is another", c.gpr[RAX], 0x55223344);
        map(AREA + 0x1000, (uintptr_t)second, PTE_P | PTE_W | PTE_NX);
        c = run_at(ip, 0, 0);
        check_stop("  its second page is not executable", &c, PF, PF_I | PF_P, ip);
        map(AREA + 0x1000, (uintptr_t)second, PTE_P | PTE_W);
    }
    /* an instruction that ends with the page does not touch the next one */
    put(first + 0x1000 - 5, spans, spans_end);
    map(AREA + 0x1000, 0, 0);
    struct context c = run_at(AREA + 0x1000 - 5, 0, 0);
    check_stop("the next page is gone", &c, PF, PF_I, AREA + 0x1000);
    check("  but the last instruction ran", c.gpr[RAX], 0x11223344);
    first[0xfff] = 0x0f; /* half an opcode */
    c = run_at(AREA + 0xfff, 0, 0);
    check_stop("half an opcode", &c, PF, PF_I, AREA + 0xfff);
    first[0xfff] = 0x06; /* invalid in one byte: #UD without looking further */
    c = run_at(AREA + 0xfff, 0, 0);
    check_stop("invalid at the end", &c, UD, NO_ERROR, AREA + 0xfff);
    map(AREA + 0x1000, (uintptr_t)second, PTE_P | PTE_W);
}

static void test_remap(void)
{
    uint8_t *other = page_new();
    put(first, spans, spans_end + 2);
    put(other, spans, spans_end + 2);
    other[1] = 0x99;
    for (int i = 0; i < 20; i++) {
        map(AREA, (uintptr_t)(i & 1 ? other : first), PTE_P | PTE_W);
        struct context c = run_at(AREA, 0, 0);
        check("code page remapped", c.gpr[RAX], i & 1 ? 0x11223399 : 0x11223344);
    }
    map(AREA, (uintptr_t)first, PTE_P | PTE_W);
    /* the same for the target of a direct jump, which does not change itself */
    static const uint8_t to_next_page[] = {0xe9, 0xfb, 0x0f, 0, 0};
    put(first, to_next_page, to_next_page + sizeof to_next_page);
    uint8_t *target = page_new(); /* whose stores are still watched */
    put(target, spans, spans_end + 2);
    for (int i = 0; i < 40; i++) {
        uint8_t *page = i / 2 & 1 ? other : target;
        map(AREA + 0x1000, (uintptr_t)page, PTE_P | PTE_W);
        if (i % 8 == 0) {
            target[2] = (uint8_t)i;
        }
        struct context c = run_at(AREA, 0, 0);
        check("target of a jump remapped", c.gpr[RAX],
              0x11220000 | page[2] << 8 | (page == other ? 0x99 : 0x44));
    }
    map(AREA + 0x1000, (uintptr_t)second, PTE_P | PTE_W);
    /* one frame at two addresses: position-dependent code must see its own address */
    static const uint8_t where[] = {0x48, 0x8d, 0x05, 0, 0, 0, 0, 0x0f, 0x0b}; /* LEA 0(%rip) */
    put(first, where, where + sizeof where);
    map(AREA + 0x10000, (uintptr_t)first, PTE_P);
    for (int i = 0; i < 4; i++) {
        uintptr_t at = AREA + (i & 1) * 0x10000;
        struct context c = run_at(at, 0, 0);
        check("RIP-relative in an alias", c.gpr[RAX], at + 7);
    }
}

/* In the first page: a function in the second one, called by direct calls before and after. */
SNIPPET(fxsave_caller, "1: call 1b + 0x10a0; mov %eax, %ebx; fxsave64 (%rdi);"
                       "call 1b + 0x10a0; mov %eax, %ecx");
SNIPPET(function, "mov $1, %eax; ret");

static void test_fxsave(void)
{
    enum { XMM0 = 160 }; /* where its image is */
    static uint8_t image[512] __attribute__((aligned(16)));
    __asm__ volatile("fxsave64 %0" : "=m"(image));
    put(image + XMM0, function, function_end);
    image[XMM0 + 1] = 2;
    put(first, fxsave_caller, fxsave_caller_end + 2);
    for (unsigned i = 0; i < 4; i++) {
        put(second + XMM0, function, function_end);
        __asm__ volatile("fxrstor64 %0" ::"m"(image));
        struct context c = run_at(AREA, AREA + 0x1000, 0);
        check("a function that FXSAVE overwrites, before", c.gpr[RBX], 1);
        check("  and after", c.gpr[RCX], 2);
    }
}

SNIPPET(remap_page, "mov %rsi, (%rdx); invlpg (%rdi); mov $1, %ebx");
SNIPPET(remap_root, "mov %rsi, (%rdx); mov %rax, %cr3; mov $1, %ebx");

/* What the next instruction is depends on the mapping that this one has made (SDM volume 3, 4.10).
 */
static void test_remap_itself(void)
{
    static const struct {
        const char *code, *end;
    } ways[] = {{remap_page, remap_page_end}, {remap_root, remap_root_end}};
    uint8_t *other = page_new();
    struct context c;
    for (unsigned i = 0; i < 8; i++) {
        volatile pte_t *pte = map(AREA, (uintptr_t)(i & 1 ? other : first), PTE_P | PTE_W);
        put(first, ways[i / 4].code, ways[i / 4].end + 2);
        put(other, ways[i / 4].code, ways[i / 4].end + 2);
        other[7] = 2; /* the immediate */
        context_init(&c, (void *)AREA);
        c.gpr[RAX] = read_cr3();
        c.gpr[RDX] = (uintptr_t)pte;
        c.gpr[RDI] = AREA;
        c.gpr[RSI] = (uintptr_t)(i & 1 ? first : other) | PTE_P | PTE_W;
        context_run(&c);
        check(i < 4 ? "INVLPG of the page that runs" : "CR3 load that maps another page here",
              c.gpr[RBX], i & 1 ? 1 : 2);
    }
    c.ip = AREA;
    c.gpr[RSI] = 0;
    context_run(&c);
    check_stop("  no page at all", &c, PF, PF_I, AREA + 6);
    map(AREA, (uintptr_t)first, PTE_P | PTE_W);
}

void test_main(void)
{
    first = page_new();
    second = page_new();
    map(AREA, (uintptr_t)first, PTE_P | PTE_W);
    map(AREA + 0x1000, (uintptr_t)second, PTE_P | PTE_W);
    test_same_page();
    test_alias();
    test_cross_page();
    test_remap();
    test_fxsave();
    test_remap_itself();
}
