/*
 * What a unit is: what it was made from and for, where its code is, the places in it that come back
 * to C (sites), and what is known of the pages that units are made from. Who makes and finds units
 * is in internal.h.
 */
#pragma once

#include "engine/rewrite.h"
#include "engine/vcpu.h"

/* ---- limits ---- */
enum {
    UNIT_MAX_INSTRUCTIONS = 40,
    /* Behind many conditional branches a unit is a guess, and code that runs once pays for it. */
    UNIT_MAX_CONDITIONS = 4,
    UNIT_MAX_HOST_BYTES = 65536, /* room that compiling one unit may need at most: extent_test */
    UNIT_MAX_SITES = 1024,
    UNIT_MAX_LINKS = 2 * UNIT_MAX_INSTRUCTIONS,
    UNITS_MAX = 1 << 19,
    SITES_MAX = 1 << 22,
    PAGES_MAX = 1 << 17,
    KERNEL_LINKS_MAX = 1 << 17, /* cross-page exits of kernel code: a slot for each vCPU */
    USER_LINKS_MAX = 1 << 18,   /* of user code: a slot for each vCPU and address space */
    FILLED_NOTED = 1 << 12,     /* entries that can be emptied one by one */
    SPACES_MAX = 8,             /* address spaces whose soft TLB is kept */
    JUMP_ENTRIES = 1 << 13,
    PLAIN_ENTRIES = 1 << 9,
    EXEC_ENTRIES = 1 << 6,
    SAMPLES = 32,           /* that tell what is hot */
    SHUNNED_ENTRIES = 4096, /* places where slots do not pay */
    PRIVATE_STACK_SIZE = 64 << 10,
    SOURCE_MAX = 64,         /* bytes that a unit compares before it runs, at most */
    VARIABLES = 10,          /* immediates of such a unit that are read when it runs */
    VERSIONS_MAX = 4,        /* such units of one place, made from different bytes */
    CHECKED_PAGES_MAX = 256, /* pages with such units */
};

/* What else than the bytes a translation depends on. Part of a unit's key. */
enum mode_bits {
    MODE_USER = 1u << 0,   /* CPL 3 */
    MODE_CODE64 = 1u << 1, /* 64-bit mode */
    MODE_FPU = 1u << 2,    /* CR0.EM = CR0.TS = 0: x87 and MMX run */
    MODE_SSE = 1u << 3,    /* and CR4.OSFXSR: SSE runs */
    MODE_AVX = 1u << 4,    /* and CR4.OSXSAVE, XCR0: AVX runs */
    MODE_AVX512 = 1u << 5,
    MODE_TSD = 1u << 6, /* CR4.TSD at CPL 3: RDTSC faults */
    MODE_FSGSBASE = 1u << 7,
    MODE_ANYWHERE = 1u << 13,  /* made for any virtual address (user code): block->code_page */
    MODE_PLAIN = 1u << 14,     /* no groups of operands: for the places where they do not fit */
    MODE_INTERPRET = 1u << 15, /* not translated: other code sizes, single step, breakpoints... */
};

enum privilege { PRIVILEGE_KERNEL, PRIVILEGE_USER, PRIVILEGES };

/* Where the guest's arithmetic flags are at a point of a unit. */
enum flags_home { FLAGS_HOST, FLAGS_SAVED, FLAGS_BOTH, FLAGS_RECIPE };

/* How flags that are nowhere can be made again from registers (compile_flags.c). */
enum recipe_kind {
    RECIPE_NONE,
    RECIPE_COMPARE,
    RECIPE_TEST,
    RECIPE_ADD,
    RECIPE_SUBTRACT,
    RECIPE_ZERO
};
struct recipe {
    uint8_t kind;         /* enum recipe_kind */
    uint8_t width;        /* in bits */
    int8_t first, second; /* guest registers, or RECIPE_KEPT; second -1: the immediate */
    int32_t immediate;
};
/* A register that has another value by now: the value is in block.recipe_kept[0 or 1]. */
enum { RECIPE_KEPT = 16 };

/*
 * Host registers that units have for themselves. Compiled code seldom names those three: it keeps
 * what lives long in registers that calls preserve. (R12 and R13 as base would need a byte more.)
 */
enum { SCRATCH = R10, SCRATCH2 = R11, GUEST_RSP = R9 };
/* The guest registers of their names, which live in the block. */
enum { DISPLACED = 1u << SCRATCH | 1u << SCRATCH2 | 1u << GUEST_RSP };

static inline bool is_same_recipe(const struct recipe *a, const struct recipe *b)
{
    return a->kind == b->kind && a->width == b->width && a->first == b->first &&
           a->second == b->second && a->immediate == b->immediate;
}

/* ---- units and sites ---- */

#define NO_PAGE UINT64_MAX

/*
 * What runs mostly and what is rare lie apart: twice as much of the first fits into a line, a page
 * or whatever the host fetches ahead.
 */
enum part { PART_STRAIGHT, PART_OUTLINES, PARTS };

struct extent {
    uint32_t start, end; /* cache offsets */
};

struct unit {
    uint64_t page;         /* guest-physical page number */
    uint64_t virtual_page; /* guest-virtual address of that page; MODE_ANYWHERE: 0 */
    uint64_t second_page;  /* of an instruction across two pages; NO_PAGE: all in one */
    uint32_t saved_entry;  /* cache offset: enter with flags saved in the block */
    uint32_t host_entry;   /* cache offset: enter with flags in the CPU */
    uint32_t link_entry;   /* from other pages: flags saved, SCRATCH = guest-virtual address */
    /* The same for chains from units with the same registers displaced. */
    uint32_t inner_saved_entry, inner_host_entry;
    uint32_t loop_entry; /* such a one, with flags that loop_recipe makes; 0: none */
    struct recipe loop_recipe;
    struct extent parts[PARTS]; /* of its code */
    uint32_t next_in_hash, next_in_page, next_in_second;
    uint32_t page_number; /* in vm->pages */
    uint32_t incoming;    /* sites chained to this unit */
    uint32_t first_site, site_count;
    uint32_t source;        /* cache offset of struct source, if it checks itself; else 0 */
    uint32_t fault_exit[2]; /* cache offsets: a host fault, with flags in the block or the CPU */
    uint16_t displaced;     /* guest registers that live in the block: compile_assign.c */
    uint16_t offset;        /* of its first byte in the page */
    uint16_t length;        /* of its bytes in that page */
    uint16_t mode;
    bool is_retired;
    bool has_slots; /* it is hot: memory operands look at slots of their own first */
};

/*
 * What a unit that checks itself was made from. Its entries compare the bytes in memory with
 * these, and jump to the exit of its SITE_STALE if they differ.
 */
struct source {
    const uint8_t *first, *second; /* host addresses: of its first byte, of the next page's */
    uint8_t length;
    uint8_t first_length; /* as much of it is in the first page */
    uint8_t bytes[SOURCE_MAX];
    uint8_t mask[SOURCE_MAX]; /* 0: a byte of an immediate that is read when it runs */
};

enum site_kind {
    SITE_READ, /* a soft TLB check; `resume` is its start */
    SITE_WRITE,
    SITE_EXECUTE, /* in interp; `resume` is behind it, or 0: look the next unit up */
    SITE_FAULT,   /* a host instruction that may fault; `resume` is its address */
    SITE_CHAIN,   /* a direct exit inside the page; `patch` is its rel32 */
    SITE_LINK,    /* a direct exit to another page; `link` is its slot */
    SITE_POLL,    /* `resume` is the poll load */
    SITE_PLAIN,   /* a group of operands over the page's border: to the plain unit; `patch` */
    SITE_STALE,   /* the unit's bytes are not what it was made from; `patch` as in SITE_CHAIN */
};

/* A place in a unit that may come back to C. */
struct site {
    alignas(64) uint32_t unit; /* exits touch nothing else that is as cold as their site */
    uint16_t offset;           /* guest offset of the instruction in the page */
    uint8_t kind;              /* enum site_kind */
    uint8_t size;              /* of a memory access, in bytes (255: larger, never filled) */
    uint8_t flags_home;
    int8_t uncounted; /* instructions completed but not in vcpu.instructions (deterministic time) */
    bool is_masked;   /* masked-off elements do not fault: interp decides */
    bool is_ordered;  /* other faults may come before this #PF: interp decides */
    uint8_t alignment; /* less one: the same if the address is not a multiple of it */
    bool is_store;     /* REP STOS, not MOVS */
    bool is_group;     /* the check asks for more than the access: interp meets the fault */
    bool has_slot;     /* SITE_READ, SITE_WRITE: `slot` */
    uint32_t resume;   /* SITE_LINK: the link_entry of target_unit */
    union {
        uint32_t patch;
        uint32_t link;
        uint32_t slot;
        uint32_t undo; /* SITE_EXECUTE: bytes by which RSP is too high (a return) */
    };
    union {
        uint32_t reentry; /* checks, SITE_EXECUTE: go on here, not at `resume`, if it is not 0 */
        uint32_t far;     /* SITE_CHAIN: rel32 to units with other registers displaced, or 0 */
        uint32_t target_page; /* SITE_LINK: number of the page that it leads to, or 0 */
    };
    struct recipe recipe; /* FLAGS_RECIPE */
    uint32_t next_incoming;
    uint32_t target_unit; /* SITE_CHAIN, SITE_PLAIN: linked to, or 0; SITE_LINK: last found */
    uint64_t target;      /* SITE_CHAIN, SITE_PLAIN, SITE_LINK, SITE_POLL: see block_target() */
};

/* Where C goes on at a check or an instruction in interp: with the usual registers. */
static inline uint32_t site_resume(const struct site *site)
{
    return site->reentry ? site->reentry : site->resume;
}

struct cache {
    uint8_t *write; /* the writable alias */
    uint8_t *run;   /* the executable alias */
    uint32_t size;
    struct extent parts[PARTS]; /* room for code of units: from where on it is free, and its end */
    uint32_t first[PARTS];      /* where that begins, behind the stubs */
    int fd;
};

/* Host code that all units share, at the start of the cache (cache offsets). */
struct stubs {
    uint32_t enter; /* void (*)(struct block *, uint64_t host): from C into a unit */
    uint32_t leave; /* back to C */
    /*
     * A miss of the soft TLB: SCRATCH = address, SCRATCH2 = site. This one is called, and returns
     * if the check is to be made again: the second level had the entry. What C decides does not
     * return.
     */
    uint32_t memory[PRIVILEGES][TLB_ACCESSES];
    uint32_t execute; /* SCRATCH2 = site */
    uint32_t link;    /* SCRATCH2 = site: a chain or link that is not resolved */
    uint32_t fill;  /* the same of a link of user code whose slot is empty; SCRATCH = its target */
    uint32_t poll;  /* SCRATCH2 = site */
    uint32_t time;  /* SCRATCH2 = site: the deadline is near */
    uint32_t stale; /* SCRATCH2 = site: the unit was made from other bytes */
    uint32_t fault_host, fault_saved; /* SCRATCH2 = site, set by the signal handler */
    uint32_t indirect[PRIVILEGES];    /* SCRATCH = guest-virtual target: look it up */
    uint32_t indirect_slow;           /* the same, after the look-up failed */
    uint32_t string;                  /* SCRATCH2 = site: REP MOVS/STOS */
    uint32_t pause;                   /* SCRATCH2 = site: many PAUSEs */
    uint32_t slot;            /* SCRATCH = address, SCRATCH2 = site: a slot is to be judged */
    uint32_t fxsave, fxrstor; /* SCRATCH = address, SCRATCH2 = site */
};

/* What instructions do with the general registers, as far as it matters for who is displaced. */
struct register_use {
    uint32_t count[GPR_COUNT]; /* uses; those in chains of computation weigh more */
    uint32_t crossings;        /* ways out and in again, where registers would be exchanged */
    uint16_t fixed;            /* used by the opcode itself */
};

struct page_units {
    uint64_t page;
    uint64_t lines; /* 64-byte lines that bytes of its units are in */
    uint32_t first;
    uint32_t first_across; /* units whose last bytes are at the start of this page */
    uint32_t next_in_hash;
    uint32_t compiling; /* being translated now: stays marked as code */
    /* What stores to it have cost lately; when it was `heated`, in cycles of the host. */
    uint32_t heat;
    uint64_t heated;
    bool is_checked;     /* its units check themselves, and stores to it are not watched */
    uint64_t hold;       /* cycles that it stays so, without new code */
    uint64_t hold_until; /* then it is watched again */
    bool is_hot;         /* units of user code that are made here have slots */
    /*
     * The virtual address at which user code of the page ran first: units for it have constants. At
     * all others, as libraries are in each process, MODE_ANYWHERE units run.
     */
    uint64_t home;
    uint16_t displaced; /* of hot units */
    struct register_use use;
};
