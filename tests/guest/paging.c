/*
 * 4-level paging: permission bits at every level, accessed and dirty bits, large pages, reserved
 * bits, write protection, NX, global pages, INVLPG, PCID, and tables that change under use.
 * SDM volume 3, chapter 4.
 */
#include "runtime.h"

SNIPPET(load, "mov (%rdi), %rax");
SNIPPET(store, "mov %rax, (%rdi)");
SNIPPET(jump, "jmp *%rdi");
SNIPPET(load_cr3, "mov %rdi, %cr3");

/* Many operands, no two of which are checked together; then one more. */
#define MANY ".rept 2048; mov (%rdi), %al; lea (%rdi), %rdi; .endr; "
SNIPPET(many_loads, MANY);
SNIPPET(leave_frame, "leave");

#define AREA 0x8000000000ul /* a PML4 entry of its own */

static volatile pte_t *entry_of(uintptr_t address, int level)
{
    volatile pte_t *table = (pte_t *)page_table;
    for (int shift = 39;; shift -= 9, level++) {
        volatile pte_t *entry = &table[address >> shift & 511];
        if (level == 3) {
            return entry;
        }
        table = (pte_t *)(uintptr_t)(*entry & 0xffffffffff000);
    }
}

/* The entry `depth` levels below the root: 0 is the PML4 entry, 3 the page-table entry. */
static volatile pte_t *entry_at(uintptr_t address, int depth)
{
    return entry_of(address, 3 - depth);
}

static uintptr_t access_page(const char *code, bool user, uintptr_t address)
{
    struct context c;
    if (user) {
        context_init_user(&c, code);
    } else {
        context_init(&c, code);
    }
    c.gpr[RDI] = address;
    context_run(&c);
    if (c.vector == PF) {
        return c.error;
    }
    return c.vector == UD ? 0x1000 : 0x2000 + c.vector;
}

enum { FINE = 0x1000 };

static void test_permissions(void)
{
    uint8_t *page = page_new();
    page[0] = 0x0f, page[1] = 0x0b; /* UD2 for the fetches */
    for (int depth = 0; depth < 4; depth++) {
        volatile pte_t *entry;
        map(AREA, (uintptr_t)page, PTE_P | PTE_W | PTE_U);
        entry = entry_at(AREA, depth);
        pte_t before = *entry;
        for (unsigned bits = 0; bits < 8; bits++) {
            bool w = bits & 1, u = bits & 2, nx = bits & 4;
            *entry = (before & ~(pte_t)(PTE_W | PTE_U)) | (w ? PTE_W : 0) | (u ? PTE_U : 0) |
                     (nx ? PTE_NX : 0);
            for (unsigned user = 0; user < 2; user++) {
                uintptr_t mode = user ? PF_U : 0;
                bool denied = user && !u;
                invlpg(AREA);
                check("read", access_page(load, user, AREA), denied ? mode | PF_P : FINE);
                check("write", access_page(store, user, AREA),
                      denied || !w ? mode | PF_P | PF_W : FINE);
                page[0] = 0x0f, page[1] = 0x0b;
                check("fetch", access_page(jump, user, AREA),
                      denied || nx ? mode | PF_P | PF_I : FINE);
            }
        }
        *entry = before;
        invlpg(AREA);
    }
}

static void test_write_protect(void)
{
    uint8_t *page = page_new();
    map(AREA, (uintptr_t)page, PTE_P);
    write_cr0(read_cr0() & ~0x10000ul);
    check("write to read-only without WP", access_page(store, false, AREA), FINE);
    map(AREA, (uintptr_t)page, PTE_P | PTE_U);
    check("user write without WP", access_page(store, true, AREA), PF_P | PF_W | PF_U);
    write_cr0(read_cr0() | 0x10000);
    check("write with WP again", access_page(store, false, AREA), PF_P | PF_W);
}

/* Code at every low address, each entered for the first time. */
static void test_low_code(void)
{
    enum { FIRST = 0x400, END = 0x2000 };
    volatile uint8_t *ram = (volatile uint8_t *)0;
    uint64_t stopped = 0;
    __asm__("" : "+r"(ram)); /* address 0 is one like any other */
    for (unsigned at = FIRST; at < END; at += 2) {
        ram[at] = 0x0f, ram[at + 1] = 0x0b; /* ud2 */
    }
    for (unsigned at = FIRST; at < END; at += 2) {
        stopped += access_page(jump, false, at) == FINE;
    }
    check("low code", stopped, (END - FIRST) / 2);
}

static void test_accessed_dirty(void)
{
    uint8_t *page = page_new();
    volatile pte_t *pte = map(AREA, (uintptr_t)page, PTE_P | PTE_W | PTE_U);
    for (int depth = 0; depth < 4; depth++) {
        *entry_at(AREA, depth) &= ~(pte_t)(PTE_A | PTE_D);
    }
    invlpg(AREA);
    access_page(load, false, AREA);
    check("A after a read", *pte & (PTE_A | PTE_D), PTE_A);
    for (int depth = 0; depth < 3; depth++) {
        check("A of the tables", *entry_at(AREA, depth) & (PTE_A | PTE_D), PTE_A);
    }
    access_page(store, true, AREA);
    check("D after a write", *pte & (PTE_A | PTE_D), PTE_A | PTE_D);
    *pte &= ~(pte_t)PTE_D;
    invlpg(AREA);
    access_page(store, false, AREA);
    check("D again", *pte & PTE_D, PTE_D);
    *pte = (uintptr_t)page | PTE_P | PTE_U;
    invlpg(AREA);
    access_page(store, true, AREA);
    check("no D by a write that faults", *pte & PTE_D, 0);
    *pte = 0;
    invlpg(AREA);
    access_page(load, true, AREA);
    check("a non-present entry stays", *pte, 0);
}

static void test_reserved(void)
{
    uint8_t *page = page_new();
    volatile pte_t *pte = map(AREA, (uintptr_t)page, PTE_P | PTE_W | PTE_U);
    unsigned bits = cpuid(0x80000008, 0).eax & 0xff;
    if (bits < 52) {
        *pte |= 1ull << 51;
        invlpg(AREA);
        check("reserved address bit, read", access_page(load, false, AREA), PF_P | PF_RSVD);
        check("reserved address bit, user write", access_page(store, true, AREA),
              PF_P | PF_RSVD | PF_U | PF_W);
    } else {
        skip("reserved address bit", "all 52 bits are addresses");
    }
    *pte = (uintptr_t)page | PTE_P | PTE_W | PTE_U;
    *entry_at(AREA, 0) |= PTE_PS;
    invlpg(AREA);
    check("PS in the PML4", access_page(load, false, AREA), PF_P | PF_RSVD);
    *entry_at(AREA, 0) &= ~(pte_t)PTE_PS;
    volatile pte_t *pd = entry_at(AREA, 2);
    pte_t before = *pd;
    *pd = 0x800000 | PTE_P | PTE_W | PTE_PS | 1 << 13;
    invlpg(AREA);
    check("reserved bit 13 of a large page", access_page(load, false, AREA), PF_P | PF_RSVD);
    *pd = before;
    invlpg(AREA);
    /* without NXE, bit 63 is reserved */
    uint64_t efer = read_msr(0xc0000080);
    write_msr(0xc0000080, efer & ~0x800ull);
    *pte |= PTE_NX;
    invlpg(AREA);
    check("NX without NXE", access_page(load, false, AREA), PF_P | PF_RSVD);
    *pte &= ~PTE_NX;
    invlpg(AREA);
    page[0] = 0x0f, page[1] = 0x0b;
    *pte = (uintptr_t)page | PTE_P;
    invlpg(AREA);
    check("a fetch without NXE has no I bit", access_page(jump, true, AREA), PF_P | PF_U);
    write_msr(0xc0000080, efer);
}

static void test_large(void)
{
    map(AREA, 0, 0);
    volatile pte_t *pd = entry_at(AREA, 2);
    pte_t before = *pd;
    uint64_t *page = page_new();
    page[5] = 0x1122334455667788;
    *pd = 0x800000 | PTE_P | PTE_W | PTE_U | PTE_PS;
    invlpg(AREA);
    uintptr_t offset = (uintptr_t)page - 0x800000;
    check("2 MiB page", *(volatile uint64_t *)(AREA + offset + 40), 0x1122334455667788);
    check("2 MiB page: A, no D", *pd & (PTE_A | PTE_D), PTE_A);
    *(volatile uint64_t *)(AREA + offset + 40) = 5;
    check("2 MiB page: D", *pd & PTE_D, PTE_D);
    check("2 MiB page: store", page[5], 5);
    *pd = before;
    if (cpuid(0x80000001, 0).edx & 1 << 26) {
        volatile pte_t *pdpt = entry_at(AREA, 1);
        before = *pdpt;
        *pdpt = 0 | PTE_P | PTE_W | PTE_PS;
        write_cr3(read_cr3());
        check("1 GiB page", *(volatile uint64_t *)(AREA + (uintptr_t)page + 40), 5);
        *pdpt = 1 << 13 | PTE_P | PTE_W | PTE_PS;
        write_cr3(read_cr3());
        check("1 GiB page: reserved bit", access_page(load, false, AREA), PF_P | PF_RSVD);
        *pdpt = before;
    } else {
        skip("1 GiB page", "not offered");
    }
    write_cr3(read_cr3());
}

/*
 * A large page is one translation, in however many pieces it was cached: INVLPG anywhere in it
 * drops it as a whole. SDM volume 3, 4.10.2.3.
 */
static void test_large_invalidation(void)
{
    enum { FRAMES = 0x1000000, LARGE = 0x200000, PIECES = 7, CODE = 0x800, UNUSED = 0x9000 };
    static const uint32_t pieces[PIECES] = {0,        0x1000,   0x5000,  0x40000,
                                            0x100000, 0x101000, 0x1ff000};
    map(AREA, 0, 0);
    volatile pte_t *pd = entry_at(AREA, 2);
    pte_t before = *pd;
    for (unsigned i = 0; i < PIECES; i++) {
        for (unsigned frame = 0; frame < 2; frame++) {
            volatile uint8_t *bytes =
                (volatile uint8_t *)(uintptr_t)(FRAMES + frame * LARGE + pieces[i]);
            *bytes = (uint8_t)frame;
            bytes[CODE] = frame ? 0x90 : 0x0f; /* nop in one, */
            bytes[CODE + frame] = 0x0f;        /* ud2 in both */
            bytes[CODE + frame + 1] = 0x0b;
        }
    }
    for (unsigned round = 0; round < 4 * PIECES; round++) {
        unsigned frame = round & 1;
        pte_t global = round & 2 ? PTE_G : 0;
        *pd = (FRAMES + frame * LARGE) | PTE_P | PTE_W | PTE_U | PTE_PS | global;
        invlpg(AREA + (round & 2 ? UNUSED : pieces[round / 4]));
        for (unsigned i = 0; i < PIECES; i++) {
            struct context c;
            volatile uint8_t *bytes = (volatile uint8_t *)(AREA + pieces[i]);
            check("piece of a large page", *bytes, frame);
            if (round < 2 * PIECES) { /* the others change nothing beside the code */
                *bytes = (uint8_t)frame;
            }
            context_init(&c, (const char *)AREA + pieces[i] + CODE);
            context_run(&c);
            check("code in it", CONTEXT_STOP(c, AREA + pieces[i] + CODE), frame);
        }
    }
    *pd = before;
    write_cr3(read_cr3());
}

static void test_invalidation(void)
{
    uint64_t *one = page_new(), *two = page_new();
    *one = 1, *two = 2;
    volatile uint64_t *p = (volatile uint64_t *)AREA;
    volatile pte_t *pte = map(AREA, (uintptr_t)one, PTE_P | PTE_W);
    check("before", *p, 1);
    *pte = (uintptr_t)two | PTE_P | PTE_W;
    invlpg(AREA + 0xfff);
    check("INVLPG anywhere in the page", *p, 2);
    *pte = (uintptr_t)one | PTE_P | PTE_W;
    write_cr3(read_cr3());
    check("CR3 load", *p, 1);
    /* A present entry may be cached, but a fault is always decided by the tables as they are. */
    *pte = 0;
    invlpg(AREA);
    check("gone", access_page(load, false, AREA), 0);
    *pte = (uintptr_t)two | PTE_P;
    check("present now, without INVLPG", access_page(load, false, AREA), FINE);
    *pte |= PTE_W;
    check("writable now, without INVLPG", access_page(store, false, AREA), FINE);
    /* global pages outlive a CR3 load, if they were cached; either value is allowed then */
    write_cr4(read_cr4() | 0x80);
    *one = 1, *two = 2;
    *pte = (uintptr_t)one | PTE_P | PTE_W | PTE_G;
    invlpg(AREA);
    check("global", *p, 1);
    *pte = (uintptr_t)two | PTE_P | PTE_W | PTE_G;
    invlpg(AREA);
    check("INVLPG of a global page", *p, 2);
    *pte = (uintptr_t)one | PTE_P | PTE_W | PTE_G;
    write_cr4(read_cr4() & ~0x80ul);
    check("PGE off drops global pages", *p, 1);
    /* a change high up in the tables */
    uint64_t *pd = page_new(), *pt = page_new();
    volatile pte_t *pdpt = entry_at(AREA, 1);
    pte_t before = *pdpt;
    pt[0] = (uintptr_t)two | PTE_P | PTE_W;
    pd[0] = (uintptr_t)pt | PTE_P | PTE_W;
    *pdpt = (uintptr_t)pd | PTE_P | PTE_W;
    invlpg(AREA);
    check("another page directory", *p, 2);
    *pdpt = before;
    invlpg(AREA);
    check("and back", *p, 1);
}

static void test_two_roots(void)
{
    uint64_t *root = page_new(), *one = page_new(), *two = page_new();
    for (int i = 0; i < 512; i++) {
        root[i] = ((uint64_t *)page_table)[i];
    }
    uintptr_t first = page_table;
    *one = 1, *two = 2;
    volatile uint64_t *p = (volatile uint64_t *)(AREA + 0x1000);
    map(AREA + 0x1000, (uintptr_t)one, PTE_P | PTE_W);
    root[1] = 0; /* AREA's entry */
    page_table = (uintptr_t)root;
    map(AREA + 0x1000, (uintptr_t)two, PTE_P | PTE_W);
    page_table = first;
    for (int i = 0; i < 10; i++) {
        write_cr3((uintptr_t)root);
        check("second root", *p, 2);
        write_cr3(first);
        check("first root", *p, 1);
    }
    if (!(cpuid(1, 0).ecx & 1 << 17)) {
        skip("PCID", "not offered");
        return;
    }
    write_cr4(read_cr4() | 1 << 17);
    write_cr3(first | 1);
    check("PCID 1", *p, 1);
    write_cr3((uintptr_t)root | 2);
    check("PCID 2", *p, 2);
    for (int i = 0; i < 10; i++) {
        write_cr3(first | 1 | 1ull << 63);
        check("PCID 1, no flush", *p, 1);
        write_cr3((uintptr_t)root | 2 | 1ull << 63);
        check("PCID 2, no flush", *p, 2);
    }
    check("CR3 reads without bit 63", read_cr3(), (uintptr_t)root | 2);
    write_cr3(first);
    struct context c;
    context_init(&c, load_cr3);
    c.gpr[RDI] = first | 1ull << 62;
    context_run(&c);
    check_stop("CR3: reserved bit 62", &c, GP, 0, (uintptr_t)load_cr3);
    write_cr4(read_cr4() & ~(1ul << 17));
}

/*
 * One user page, on which the kernel runs, too: what either finds there must not be the other's.
 * The operands are neighbours on two sides of a page border.
 */
SNIPPET(load_two, "mov (%rdi), %rax; mov 8(%rdi), %rbx");

static void test_same_code(void)
{
    uint8_t *code = page_new(), *page = page_new();
    uintptr_t at = AREA + 0x8000;
    for (int i = 0; load_two + i < load_two_end + 2; i++) {
        code[i] = (uint8_t)load_two[i];
    }
    map(at, (uintptr_t)code, PTE_P | PTE_U);
    map(AREA + 0x1000, (uintptr_t)page, PTE_P | PTE_W);
    map(AREA + 0x2000, (uintptr_t)page, PTE_P | PTE_W);
    for (int i = 0; i < 3; i++) {
        struct context c;
        context_init(&c, (void *)at);
        c.gpr[RDI] = AREA + 0x1ff8;
        context_run(&c);
        check("the kernel on a user page", c.vector, UD);
        context_init_user(&c, (void *)at);
        c.ip = at;
        c.gpr[RDI] = AREA + 0x1ff8;
        context_run(&c);
        check_stop("  the user on the same code", &c, PF, PF_P | PF_U, at);
    }
}

SNIPPET(load_one, "fld1; fstp %st");

/* CR0.TS counts in every address space, also where this code ran before without it. */
static void test_task_switched(void)
{
    enum { TASK_SWITCHED = 8 };
    uintptr_t root = read_cr3();
    if (!(cpuid(1, 0).ecx & 1 << 17)) {
        return;
    }
    write_cr4(read_cr4() | 1 << 17);
    for (int i = 0; i < 6; i++) {
        struct context c;
        write_cr3(root | (i % 2 + 1) | (i >= 2 ? 1ull << 63 : 0));
        write_cr0((read_cr0() & ~8ul) | (i >= 2 ? TASK_SWITCHED : 0));
        context_init_user(&c, load_one);
        context_run(&c);
        check(i < 2 ? "x87 in two address spaces" : "  not with CR0.TS", c.vector, i < 2 ? UD : NM);
    }
    write_cr0(read_cr0() & ~8ul);
    write_cr3(root);
    write_cr4(read_cr4() & ~(1ul << 17));
}

/* What an engine remembers for the operands of one instruction is no right of another one. */
static void test_many_operands(void)
{
    uint8_t *page = page_new();
    for (unsigned user = 0; user < 2; user++) {
        volatile pte_t *entry = map(AREA, (uintptr_t)page, PTE_P | PTE_W | PTE_U);
        invlpg(AREA);
        for (unsigned other = 0; other < 2; other++) { /* all code is seen once */
            access_page(many_loads, other, AREA);
            check("store", access_page(store, other, AREA), FINE);
            check("load", access_page(load, other, AREA), FINE);
        }
        *entry &= ~(pte_t)PTE_W;
        invlpg(AREA);
        access_page(many_loads, true, AREA);
        check("many loads, a store", access_page(store, true, AREA), PF_P | PF_W | PF_U);
        *entry &= ~(pte_t)PTE_U;
        invlpg(AREA);
        access_page(many_loads, false, AREA);
        check("many kernel loads, a user load", access_page(load, true, AREA), PF_P | PF_U);
    }
}

/* LEAVE through a pointer that is not canonical leaves the registers as they were. */
static void test_leave(void)
{
    struct context c, before;
    for (unsigned user = 0; user < 2; user++) {
        if (user) {
            context_init_user(&c, leave_frame);
        } else {
            context_init(&c, leave_frame);
        }
        c.gpr[RBP] = 1ull << 63;
        before = c;
        invlpg(AREA);
        context_run(&c);
        check("LEAVE, not canonical", c.vector, SS);
        check("  RSP", c.gpr[RSP], before.gpr[RSP]);
        check("  RBP", c.gpr[RBP], before.gpr[RBP]);
    }
}

static void test_smep_smap(void)
{
    struct cpuid seven = cpuid(7, 0);
    uint8_t *page = page_new();
    page[0] = 0x0f, page[1] = 0x0b;
    map(AREA, (uintptr_t)page, PTE_P | PTE_W | PTE_U);
    if (seven.ebx & 1 << 7) {
        write_cr4(read_cr4() | 1 << 20);
        check("SMEP", access_page(jump, false, AREA), PF_P | PF_I);
        check("SMEP: user", access_page(jump, true, AREA), FINE);
        write_cr4(read_cr4() & ~(1ul << 20));
        check("SMEP off", access_page(jump, false, AREA), FINE);
    } else {
        skip("SMEP", "not offered");
    }
    if (seven.ebx & 1 << 20) {
        write_cr4(read_cr4() | 1 << 21);
        check("SMAP read", access_page(load, false, AREA), PF_P);
        check("SMAP write", access_page(store, false, AREA), PF_P | PF_W);
        struct context c;
        context_init(&c, load);
        c.gpr[RDI] = AREA;
        c.flags |= FLAG_AC;
        context_run(&c);
        check("SMAP with AC", c.vector, UD);
        write_cr4(read_cr4() & ~(1ul << 21));
    } else {
        skip("SMAP", "not offered");
    }
}

void test_main(void)
{
    test_permissions();
    test_write_protect();
    test_low_code();
    test_accessed_dirty();
    test_reserved();
    test_large();
    test_large_invalidation();
    test_invalidation();
    test_two_roots();
    test_same_code();
    test_task_switched();
    test_many_operands();
    test_leave();
    test_smep_smap();
}
