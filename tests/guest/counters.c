/*
 * Work whose amount is known: a hundred each of page faults, CPUIDs, self-modifications, reads of
 * pages that were not read before, returns that no call announced, accesses to a port. run-tests
 * looks whether the monitor's counters have moved by at least that.
 */
#include "runtime.h"

#define AREA 0x8000000000ul
enum { TIMES = 100 };

SNIPPET(load, "mov (%rdi), %rax");
SNIPPET(patch,
        "1: mov %cl, 2f + 1 - patch(%rdi); call 2f; dec %ecx; jnz 1b; ud2; 2: mov $0, %al; ret");
SNIPPET(returns, "1: lea 2f(%rip), %rax; push %rax; ret; 2: dec %ecx; jnz 1b");

static void put(uint8_t *to, const void *code, const void *end)
{
    for (const uint8_t *from = code; from < (const uint8_t *)end; from++) {
        *to++ = *from;
    }
}

static void fault(void)
{
    struct context c;
    for (unsigned i = 0; i < TIMES; i++) {
        context_init(&c, load);
        c.gpr[RDI] = AREA + 0x1000 * i;
        context_run(&c);
        if (c.vector != PF) {
            check("a page fault", c.vector, PF);
        }
    }
    check("the last page fault", c.cr2, AREA + 0x1000 * (TIMES - 1));
}

static void modify(void)
{
    uint8_t *page = page_new();
    struct context c;
    put(page, patch, patch_end + 2);
    context_init(&c, page);
    c.gpr[RDI] = (uintptr_t)page;
    c.gpr[RCX] = TIMES;
    context_run(&c);
    check("the last modification", c.gpr[RAX] & 0xff, 1);
}

static void touch(void)
{
    uint64_t sum = 0;
    uint8_t *pages[TIMES];
    for (unsigned i = 0; i < TIMES; i++) {
        pages[i] = page_new();
        map(AREA + 0x1000 * i, (uintptr_t)pages[i], PTE_P | PTE_W);
        sum += *(volatile uint8_t *)(AREA + 0x1000 * i);
    }
    check("pages that were not read before", sum, 0);
}

void test_main(void)
{
    uint32_t sum = 0;
    fault();
    modify();
    touch();
    struct context c;
    context_init(&c, returns);
    c.gpr[RCX] = TIMES;
    context_run(&c);
    check("returns that no call announced", c.gpr[RCX], 0);
    for (unsigned i = 0; i < TIMES; i++) {
        sum += cpuid(0, 0).eax - cpuid(0, 0).eax;
        sum += in8(0x61) & 0;
    }
    check("CPUIDs and ports", sum, 0);
}
