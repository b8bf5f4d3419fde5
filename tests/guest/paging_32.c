/*
 * 32-bit paging and PAE: permissions, accessed and dirty bits, 4 MiB and 2 MiB pages, reserved
 * bits, NX with PAE, the PDPTE registers, changes between the modes, paging off again.
 * SDM volume 3, 4.3 and 4.4.
 */
#include "runtime.h"

SNIPPET(load, "mov (%edi), %eax");
SNIPPET(store, "mov %eax, (%edi)");
SNIPPET(jump, "jmp *%edi");
SNIPPET(load_cr3, "mov %edi, %cr3");

#define AREA 0xa0000000u
enum { FINE = 0x1000, CR0_PG = 1 << 31, CR4_PSE = 0x10, CR4_PAE = 0x20, CR4_PGE = 0x80 };

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
        check("cr2", c.cr2, address);
        return c.error;
    }
    return c.vector == UD ? FINE : 0x2000 + c.vector;
}

/* 32-bit tables: identity with 4 MiB pages, the user's window, and one table for AREA. */
static uint32_t *directory, *table;

static void legacy_on(void)
{
    directory = page_new();
    table = page_new();
    write_cr4(read_cr4() | CR4_PSE);
    for (unsigned i = 0; i < 16; i++) {
        directory[i] = i << 22 | PTE_P | PTE_W | PTE_PS;
    }
    for (unsigned i = 0; i < 4; i++) {
        directory[(USER_WINDOW >> 22) + i] = i << 22 | PTE_P | PTE_W | PTE_U | PTE_PS;
    }
    directory[AREA >> 22] = (uintptr_t)table | PTE_P | PTE_W | PTE_U;
    page_table = (uintptr_t)directory;
    write_cr3(page_table);
    write_cr0(read_cr0() | CR0_PG);
}

static void paging_off(void)
{
    write_cr0(read_cr0() & ~CR0_PG);
    page_table = 0;
}

static void test_legacy(void)
{
    uint8_t *page = page_new();
    page[0] = 0x0f, page[1] = 0x0b;
    for (unsigned level = 0; level < 2; level++) {
        for (unsigned bits = 0; bits < 4; bits++) {
            bool w = bits & 1, u = bits & 2;
            uint32_t permission = (w ? PTE_W : 0) | (u ? PTE_U : 0);
            directory[AREA >> 22] = (uintptr_t)table | PTE_P | (level ? PTE_W | PTE_U : permission);
            table[0] = (uintptr_t)page | PTE_P | (level ? permission : PTE_W | PTE_U);
            for (unsigned user = 0; user < 2; user++) {
                uintptr_t mode = user ? PF_U : 0;
                bool denied = user && !u;
                invlpg(AREA);
                check("read", access_page(load, user, AREA), denied ? mode | PF_P : FINE);
                check("write", access_page(store, user, AREA),
                      denied || !w ? mode | PF_P | PF_W : FINE);
                page[0] = 0x0f, page[1] = 0x0b;
                check("fetch", access_page(jump, user, AREA), denied ? mode | PF_P : FINE);
            }
        }
    }
    directory[AREA >> 22] = (uintptr_t)table | PTE_P | PTE_W | PTE_U;
    table[0] = (uintptr_t)page | PTE_P | PTE_W | PTE_U;
    invlpg(AREA);
    access_page(load, true, AREA);
    check("A", table[0] & (PTE_A | PTE_D), PTE_A);
    check("A of the directory", directory[AREA >> 22] & (PTE_A | PTE_D), PTE_A);
    access_page(store, true, AREA);
    check("D", table[0] & PTE_D, PTE_D);
    check("absent", access_page(load, true, AREA + 0x1000), PF_U);
    directory[AREA >> 22] = 0x800000 | PTE_P | PTE_W | PTE_PS;
    invlpg(AREA);
    check("4 MiB page", *(volatile uint32_t *)(AREA + ((uintptr_t)page - 0x800000)),
          *(uint32_t *)page);
    check("  A", directory[AREA >> 22] & (PTE_A | PTE_D), PTE_A);
    check("  user", access_page(load, true, AREA), PF_U | PF_P);
    directory[AREA >> 22] |= 1 << 21;
    invlpg(AREA);
    check("  reserved bit 21", access_page(load, false, AREA), PF_P | PF_RSVD);
    /* without PSE, bit 7 means nothing */
    table[0] = (uintptr_t)page | PTE_P | PTE_W;
    directory[AREA >> 22] = (uintptr_t)table | PTE_P | PTE_W;
    invlpg(AREA);
    write_cr0(read_cr0() & ~0x10000ul);
    table[0] &= ~PTE_W;
    invlpg(AREA);
    check("no WP", access_page(store, false, AREA), FINE);
    write_cr0(read_cr0() | 0x10000);
    check("WP", access_page(store, false, AREA), PF_P | PF_W);
}

static void test_pae(void)
{
    uint64_t *pointers = page_new(), *low = page_new(), *window = page_new(), *area = page_new(),
             *entries = page_new();
    for (unsigned i = 0; i < 32; i++) {
        low[i] = (uint64_t)i << 21 | PTE_P | PTE_W | PTE_PS;
    }
    for (unsigned i = 0; i < 8; i++) {
        window[i] = (uint64_t)i << 21 | PTE_P | PTE_W | PTE_U | PTE_PS;
    }
    pointers[0] = (uintptr_t)low | PTE_P;
    pointers[1] = (uintptr_t)window | PTE_P;
    pointers[2] = (uintptr_t)area | PTE_P;
    area[AREA >> 21 & 511] = (uintptr_t)entries | PTE_P | PTE_W | PTE_U;
    paging_off();
    write_cr4(read_cr4() | CR4_PAE);
    page_table = (uintptr_t)pointers;
    write_cr3(page_table);
    bool nx = cpuid(0x80000001, 0).edx & 1 << 20;
    if (nx) {
        write_msr(0xc0000080, read_msr(0xc0000080) | 0x800);
    }
    write_cr0(read_cr0() | CR0_PG);

    uint8_t *page = page_new();
    page[0] = 0x0f, page[1] = 0x0b;
    for (unsigned bits = 0; bits < 8; bits++) {
        bool w = bits & 1, u = bits & 2, x = !(bits & 4);
        if (!nx && !x) {
            continue;
        }
        entries[0] = (uintptr_t)page | PTE_P | (w ? PTE_W : 0) | (u ? PTE_U : 0) | (x ? 0 : PTE_NX);
        invlpg(AREA);
        for (unsigned user = 0; user < 2; user++) {
            uintptr_t mode = user ? PF_U : 0;
            bool denied = user && !u;
            check("PAE read", access_page(load, user, AREA), denied ? mode | PF_P : FINE);
            check("PAE write", access_page(store, user, AREA),
                  denied || !w ? mode | PF_P | PF_W : FINE);
            page[0] = 0x0f, page[1] = 0x0b;
            check("PAE fetch", access_page(jump, user, AREA),
                  denied || !x ? mode | PF_P | (nx ? PF_I : 0) : FINE);
        }
    }
    entries[0] = (uintptr_t)page | PTE_P | PTE_W;
    invlpg(AREA);
    access_page(store, false, AREA);
    check("PAE A, D", entries[0] & (PTE_A | PTE_D), PTE_A | PTE_D);
    check("PAE: A of the directory", area[AREA >> 21 & 511] & PTE_A, PTE_A);
    check("PAE: no A in a PDPTE", pointers[2], (uintptr_t)area | PTE_P);
    entries[0] |= 1ull << 62;
    invlpg(AREA);
    check("PAE: reserved bit 62", access_page(load, false, AREA), PF_P | PF_RSVD);
    area[AREA >> 21 & 511] = 0x800000 | PTE_P | PTE_W | PTE_U | PTE_PS;
    invlpg(AREA);
    check("PAE: 2 MiB page", *(volatile uint8_t *)(AREA + ((uintptr_t)page - 0x800000)), page[0]);
    /* the PDPTEs are registers: a store counts at the next CR3 load only */
    pointers[2] = 0;
    invlpg(AREA);
    check("PDPTE kept", access_page(load, false, AREA), FINE);
    write_cr3(page_table);
    check("PDPTE gone", access_page(load, false, AREA), 0);
    pointers[2] = (uintptr_t)area | PTE_P | PTE_W; /* W is reserved here */
    struct context c;
    context_init(&c, load_cr3);
    c.gpr[RDI] = page_table;
    context_run(&c);
    check_stop("CR3 load with a reserved PDPTE bit", &c, GP, 0, (uintptr_t)load_cr3);
    pointers[2] = (uintptr_t)area | PTE_P;
    write_cr3(page_table);
    check("PDPTE back", access_page(load, false, AREA), FINE);
    if (nx) {
        write_msr(0xc0000080, read_msr(0xc0000080) & ~0x800ull);
    }
    paging_off();
    write_cr4(read_cr4() & ~(uintptr_t)CR4_PAE);
}

void test_main(void)
{
    check("no paging: A is far, but RAM is flat", access_page(load, false, 0x100000), FINE);
    legacy_on();
    test_legacy();
    test_pae();
    legacy_on();
    check("32-bit paging again", access_page(load, false, AREA), 0);
    paging_off();
    check("and off", access_page(load, false, 0x100000), FINE);
}
