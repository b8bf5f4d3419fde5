/*
 * String instructions: every form, both directions, faults in the middle with exact registers,
 * overlaps, repeat prefixes with flags. SDM volume 1, 7.3.9, and volume 2, REP.
 */
#include "runtime.h"

SNIPPET(rep_movsb, "rep movsb");
SNIPPET(rep_movsq, "rep movsq");
SNIPPET(rep_stosb, "rep stosb");
SNIPPET(rep_stosq, "rep stosq");
SNIPPET(rep_lodsb, "rep lodsb");
SNIPPET(repe_cmpsb, "repe cmpsb");
SNIPPET(repne_scasb, "repne scasb");
SNIPPET(repe_scasw, "repe scasw");
SNIPPET(movsl_32, ".byte 0x67, 0xf3, 0xa5");
SNIPPET(movsb_fs, "rep; movsb %fs:(%rsi), %es:(%rdi)");
SNIPPET(stosw_one, "stosw");

#define AREA 0x8000000000ul
static uint8_t *pages[4];

static struct context run(const char *code, uintptr_t rsi, uintptr_t rdi, uintptr_t rcx,
                          uintptr_t flags)
{
    struct context c;
    context_init(&c, code);
    c.gpr[RSI] = rsi;
    c.gpr[RDI] = rdi;
    c.gpr[RCX] = rcx;
    c.gpr[RAX] = 0x4142434445464748;
    c.flags |= flags;
    context_run(&c);
    return c;
}

static void registers(const char *name, const struct context *c, uintptr_t rsi, uintptr_t rdi,
                      uintptr_t rcx)
{
    print(name);
    print(": ");
    check("rsi", c->gpr[RSI], rsi);
    check("  rdi", c->gpr[RDI], rdi);
    check("  rcx", c->gpr[RCX], rcx);
}

/* AREA: two pages, a hole, two pages (the last read-only), a hole. */
static void arrange(void)
{
    for (int i = 0; i < 4; i++) {
        if (!pages[i]) {
            pages[i] = page_new();
        }
        for (int j = 0; j < 4096; j++) {
            pages[i][j] = (uint8_t)(i * 64 + j * 7 + (j >> 8));
        }
    }
    map(AREA, (uintptr_t)pages[0], PTE_P | PTE_W | PTE_U);
    map(AREA + 0x1000, (uintptr_t)pages[1], PTE_P | PTE_W | PTE_U);
    map(AREA + 0x3000, (uintptr_t)pages[2], PTE_P | PTE_W | PTE_U);
    map(AREA + 0x4000, (uintptr_t)pages[3], PTE_P | PTE_U);
}

static void test_source_faults(void)
{
    arrange();
    struct context c = run(rep_movsb, AREA + 0x1f00, AREA + 0x100, 0x200, 0);
    check_stop("movsb: source ends", &c, PF, 0, (uintptr_t)rep_movsb);
    registers("movsb: source ends", &c, AREA + 0x2000, AREA + 0x200, 0x100);
    check("  cr2", c.cr2, AREA + 0x2000);
    check("  RF in the frame", c.flags & FLAG_RF, FLAG_RF);
    check("  first byte", pages[0][0x100], (uint8_t)(64 + 0xf00 * 7 + 15));
    check("  last byte", pages[0][0x1ff], (uint8_t)(64 + 0xfff * 7 + 15));
    check("  behind", pages[0][0x200], (uint8_t)(0x200 * 7 + 2));
    /* an element across the end: it must not be moved at all */
    arrange();
    c = run(rep_movsq, AREA + 0x1fe3, AREA + 0x100, 16, 0);
    check_stop("movsq: element across the end", &c, PF, 0, (uintptr_t)rep_movsq);
    registers("movsq: element across the end", &c, AREA + 0x1ffb, AREA + 0x118, 13);
    check("  cr2", c.cr2, AREA + 0x2000);
    check("  not moved", pages[0][0x118], (uint8_t)(0x118 * 7 + 1));
    /* downwards */
    arrange();
    c = run(rep_movsb, AREA + 0x300f, AREA + 0x10f, 0x20, FLAG_DF);
    check_stop("movsb down: source ends", &c, PF, 0, (uintptr_t)rep_movsb);
    registers("movsb down: source ends", &c, AREA + 0x2fff, AREA + 0xff, 0x10);
    check("  flags", c.flags & (FLAG_DF | FLAGS_ARITHMETIC), FLAG_DF);
    c = run(rep_lodsb, AREA + 0x1ff0, 0, 0x100, 0);
    check_stop("lodsb: source ends", &c, PF, 0, (uintptr_t)rep_lodsb);
    registers("lodsb: source ends", &c, AREA + 0x2000, 0, 0xf0);
    check("  al", c.gpr[RAX], 0x4142434445464700 + pages[1][0xfff]);
}

static void test_destination_faults(void)
{
    arrange();
    struct context c = run(rep_movsb, AREA, AREA + 0x1ffd, 8, 0);
    check_stop("movsb: destination ends", &c, PF, PF_W, (uintptr_t)rep_movsb);
    registers("movsb: destination ends", &c, AREA + 3, AREA + 0x2000, 5);
    c = run(rep_stosb, 0, AREA + 0x3f80, 0x1000, 0);
    check_stop("stosb: into read-only", &c, PF, PF_P | PF_W, (uintptr_t)rep_stosb);
    registers("stosb: into read-only", &c, 0, AREA + 0x4000, 0xf80);
    check("  stored", pages[2][0xfff], 0x48);
    check("  not stored", pages[3][0], 3 * 64);
    arrange();
    c = run(rep_stosq, 0, AREA + 0x3ffc, 1, 0);
    check_stop("stosq: across into read-only", &c, PF, PF_P | PF_W, (uintptr_t)rep_stosq);
    registers("stosq: across into read-only", &c, 0, AREA + 0x3ffc, 1);
    check("  cr2", c.cr2, AREA + 0x4000);
    check("  nothing stored", pages[2][0xffc], (uint8_t)(2 * 64 + 0xffc * 7 + 15));
    c = run(rep_movsb, AREA + 0x2800, AREA + 0x2800, 8, 0);
    check_stop("movsb: the source faults first", &c, PF, 0, (uintptr_t)rep_movsb);
    c = run(rep_movsb, AREA + 0x2800, AREA + 0x2800, 0, 0);
    check_stop("movsb: nothing to do", &c, UD, NO_ERROR, (uintptr_t)rep_movsb_end);
    c = run(stosw_one, 0, AREA + 0x1fff, 7, 0);
    check_stop("stosw: across the end", &c, PF, PF_W, (uintptr_t)stosw_one);
    registers("stosw: across the end", &c, 0, AREA + 0x1fff, 7);
}

static void test_compare(void)
{
    arrange();
    for (int i = 0; i < 4096; i++) {
        pages[1][i] = pages[0][i];
    }
    struct context c = run(repe_cmpsb, AREA, AREA + 0x1000, 0x2000, 0);
    check("cmpsb: equal up to where the pages differ", c.vector == PF || c.gpr[RCX] > 0, 1);
    pages[1][0x123] = 0xff;
    pages[0][0x123] = 0x01;
    c = run(repe_cmpsb, AREA, AREA + 0x1000, 0x1000, FLAG_ZF | FLAG_OF);
    check_stop("cmpsb: stops", &c, UD, NO_ERROR, (uintptr_t)repe_cmpsb_end);
    registers("cmpsb: stops", &c, AREA + 0x124, AREA + 0x1124, 0x1000 - 0x124);
    check("  flags", c.flags & FLAGS_ARITHMETIC, FLAG_CF | FLAG_AF); /* 01h - ffh = 02h */
    c = run(repne_scasb, 0, AREA + 0x3f00, 0, FLAG_SF | FLAG_CF);
    check("scasb: no iteration leaves the flags", c.flags & FLAGS_ARITHMETIC, FLAG_SF | FLAG_CF);
    for (int i = 0xf00; i < 4096; i++) {
        pages[1][i] = 0x11;
    }
    c = run(repne_scasb, 0, AREA + 0x1f00, 0x200, FLAG_SF | FLAG_PF);
    check_stop("scasb: runs into the hole", &c, PF, 0, (uintptr_t)repne_scasb);
    registers("scasb: runs into the hole", &c, 0, AREA + 0x2000, 0x100);
    /* SDM volume 2, REP: the flags are those from before the instruction */
    check("  flags", c.flags & FLAGS_ARITHMETIC, FLAG_SF | FLAG_PF);
    pages[1][0xf80] = 0x48;
    c = run(repne_scasb, 0, AREA + 0x1f00, 0x200, 0);
    check_stop("scasb: found", &c, UD, NO_ERROR, (uintptr_t)repne_scasb_end);
    registers("scasb: found", &c, 0, AREA + 0x1f81, 0x200 - 0x81);
    check("  flags", c.flags & FLAGS_ARITHMETIC, FLAG_ZF | FLAG_PF);
    c = run(repe_scasw, 0, AREA + 0x1f00, 0x40, 0);
    check("scasw: differs at once", c.gpr[RCX], 0x3f);
}

static void test_overlap(void)
{
    arrange();
    pages[0][0] = 0xaa;
    struct context c = run(rep_movsb, AREA, AREA + 1, 100, 0);
    check("overlap: smear", pages[0][100], 0xaa);
    arrange();
    c = run(rep_movsb, AREA + 1, AREA, 100, 0);
    check("overlap: shift", pages[0][99], (uint8_t)(100 * 7));
    arrange();
    c = run(rep_movsq, AREA, AREA + 3, 20, 0);
    check("overlap of 3 bytes, quadwords", pages[0][3 + 159], 0x59); /* one by one */
    check("  rcx", c.gpr[RCX], 0);
    /* the same frame at two addresses */
    arrange();
    map(AREA + 0x10000, (uintptr_t)pages[0], PTE_P | PTE_W | PTE_U);
    pages[0][0] = 0xbb;
    c = run(rep_movsb, AREA, AREA + 0x10001, 0x800, 0);
    check("overlap by alias", pages[0][0x800], 0xbb);
    check("  rdi", c.gpr[RDI], AREA + 0x10801);
    pages[0][0x900] = 0xcc;
    c = run(rep_movsb, AREA + 0x900, AREA + 0x108ff, 0x800, FLAG_DF);
    check("overlap downwards by alias", pages[0][0x100], 0xcc);
    check("  not further", pages[0][0xff], 0xbb);
    check("  rdi", c.gpr[RDI], AREA + 0x100ff);
    /* a long copy over many pages */
    uint8_t *from = (uint8_t *)0xa00000, *to = (uint8_t *)0xb00000;
    for (int i = 0; i < 0x8000; i++) {
        from[i] = (uint8_t)(i ^ i >> 8);
    }
    c = run(rep_movsb, (uintptr_t)from + 5, (uintptr_t)to + 3, 0x7000, 0);
    unsigned wrong = 0;
    for (int i = 0; i < 0x7000; i++) {
        wrong += to[i + 3] != from[i + 5];
    }
    check("long copy", wrong, 0);
    c = run(rep_movsq, (uintptr_t)from + 0x7001, (uintptr_t)to + 0x7fff - 7, 0xc00, FLAG_DF);
    check("long copy downwards: rsi", c.gpr[RSI], (uintptr_t)from + 0x7001 - 0x6000);
    for (int i = 0; i < 0x6000; i++) {
        wrong += to[0x7fff - i] != from[0x7008 - i];
    }
    check("long copy downwards", wrong, 0);
}

/* Pages that do not lie together, and a fault behind them: only what was written is dirty. */
static void test_scattered(void)
{
    arrange();
    uint8_t *to = (uint8_t *)0xc00000;
    map(AREA, (uintptr_t)pages[1], PTE_P | PTE_W | PTE_U);
    map(AREA + 0x1000, (uintptr_t)pages[0], PTE_P | PTE_W | PTE_U);
    struct context c = run(rep_movsq, AREA + 4, (uintptr_t)to + 1, 0x3ff, 0);
    unsigned wrong = 0;
    for (int i = 0; i < 0x1ff8; i++) {
        wrong += to[i + 1] != (i < 0xffc ? pages[1][i + 4] : pages[0][i - 0xffc]);
    }
    check("scattered source", wrong, 0);
    map(AREA + 0x20000, (uintptr_t)pages[3], PTE_P | PTE_W | PTE_U);
    volatile pte_t *next = map(AREA + 0x21000, (uintptr_t)pages[2], PTE_P | PTE_W | PTE_U);
    c = run(rep_movsb, AREA + 0x1000, AREA + 0x20000, 0x3000, 0);
    check_stop("scattered: hole in the source", &c, PF, 0, (uintptr_t)rep_movsb);
    check("  rdi", c.gpr[RDI], AREA + 0x21000);
    check("  rcx", c.gpr[RCX], 0x2000);
    check("  the next page is not dirty", *next & PTE_D, 0);
    c = run(rep_movsb, AREA + 0x2000, AREA + 0x21000, 64, 0);
    check_stop("short, source is a hole", &c, PF, 0, (uintptr_t)rep_movsb);
    check("  nor is it now", *next & PTE_D, 0);
}

static void test_sizes(void)
{
    arrange();
    static uint32_t from[4] = {1, 2, 3, 4}, to[4];
    struct context c = run(movsl_32, (uintptr_t)from | 0xffffffff00000000,
                           (uintptr_t)to | 0x1200000000, 0x7700000004, 0);
    check("32-bit addresses: value", to[3], 4);
    check("  rcx is zero-extended", c.gpr[RCX], 0);
    check("  rsi is zero-extended", c.gpr[RSI], (uintptr_t)from + 16);
    write_msr(0xc0000100, AREA);
    c = run(movsb_fs, 0x10, AREA + 0x1000, 1, 0);
    check("FS for the source", pages[1][0], pages[0][0x10]);
    write_msr(0xc0000100, 0);
}

/*
 * Up to the end of a page and beyond, at addresses so low that the page's number is its place in
 * any table: what stands there for "no page" must not be taken for a neighbour.
 */
static void test_low_addresses(void)
{
    uint8_t *low = (uint8_t *)0x300000;
    unsigned wrong = 0;
    for (unsigned page = 0; page < 3; page++) {
        for (unsigned over = 0; over < 3; over++) {
            uint8_t *end = low + 4096 * (page + 1) + 8 * over;
            invlpg((uintptr_t)low + 4096 * page);
            struct context c = run(rep_stosb, 0, (uintptr_t)end - 64, 64, 0);
            wrong += c.vector != UD || c.gpr[RDI] != (uintptr_t)end || end[-1] != 0x48;
            invlpg((uintptr_t)low + 4096 * page);
            end[-1] = (uint8_t)(page + over);
            c = run(rep_movsb, (uintptr_t)end - 64, (uintptr_t)pages[0], 64, 0);
            wrong += c.gpr[RSI] != (uintptr_t)end || pages[0][63] != page + over;
        }
    }
    check("to the end of low pages", wrong, 0);
}

void test_main(void)
{
    test_source_faults();
    test_destination_faults();
    test_compare();
    test_overlap();
    test_scattered();
    test_sizes();
    test_low_addresses();
}
