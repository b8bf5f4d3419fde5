/*
 * The inside of translate: what its files share.
 *
 * A guest basic block and what follows it becomes a *unit* of host code. Units run with
 *
 *     GS base  the vCPU block (struct block), aliased once for each cached address space
 *     RSP      a private stack of {host return address, guest return address} frames, one for
 *              each privilege, so that host CALL and RET predict the guest's
 *     R9       the guest's RSP
 *     R10 R11  scratch; the guest's R9, R10 and R11 live in the block
 *     others   the guest's own registers (hot code may have others of them in the block:
 *              compile_assign.c); vector state stays in the CPU
 *     flags    the guest's arithmetic flags, or saved in the block (enum flags_home)
 *
 * docs/translate.md tells the whole story.
 */
#pragma once

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "engine/interp/interp.h"
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

/* ---- address spaces: what hangs on the guest's current page tables ---- */

struct jump_entry {
    uint64_t gva;
    uint64_t host;
};

/* Functions begin at multiples of 16: higher bits are needed, too. emit_jump_lookup() does the
 * same. */
static inline unsigned jump_index(uint64_t gva)
{
    return ((uint32_t)gva + ((uint32_t)gva >> 10)) & (JUMP_ENTRIES - 1);
}

/*
 * What an empty entry holds: an address that belongs to another one. The higher bits add less than
 * 16 to the index of such a low address.
 */
static inline uint64_t jump_nowhere(unsigned index)
{
    return index ^ 16;
}
_Static_assert(JUMP_ENTRIES >> 10 < 16 && PLAIN_ENTRIES > 2 * 16, "jump_nowhere() goes elsewhere");

/* Which entries of a table hold something: those noted or, if there are more, any below `end`. */
struct filled {
    uint32_t count, end;
    uint32_t noted[FILLED_NOTED];
};

/*
 * Where pages with user code are in an address space: an entry for each number in vm->pages, which
 * is the page's guest-virtual address, plus 1, or 0 if nobody has looked a unit of it up.
 */
static inline uint64_t binding_of(uint64_t gva)
{
    return align_down(gva, PAGE_SIZE) + 1;
}

/* The part of the vCPU block that each address space has of its own. */
struct space_data {
    struct tlb tlb;
    struct jump_entry jumps[JUMP_ENTRIES]; /* of user code */
    uint64_t links[USER_LINKS_MAX];
    uint64_t bindings[PAGES_MAX];
    struct filled links_filled;
};

struct space {
    struct block *alias;     /* the vCPU block as seen through this space's GS base */
    struct space_data *data; /* right behind it */
    uint64_t root;           /* CR3 less PCID and flags; valid if in_use */
    uint64_t last_used;
    struct filled bindings_filled, jumps_filled;
    uint16_t pcid;
    uint16_t mode; /* of the units that its user code was looked up as */
    bool in_use;
};

/* ---- the vCPU block ---- */

enum leave_reason {
    LEAVE_TRANSLATE, /* no unit for state.rip: make one */
    LEAVE_STEP,      /* block->step says what happened */
    LEAVE_AGAIN,     /* look at kicks and modes again */
};

struct block {
    struct vcpu vcpu; /* first: units address its state from GS:0 */

    struct block *self;            /* the first alias: the one that C code uses */
    uint64_t host_rsp;             /* of the C code that entered */
    uint64_t stack;                /* RSP of the private stack in use, while in C */
    uint64_t stacks[PRIVILEGES];   /* of the other privilege */
    uint64_t spill[2];             /* values that a unit keeps across a check */
    uint64_t group_slots[4];       /* host addresses that a unit keeps: compile_group.c */
    uint64_t stride_limit;         /* compile_stride.c */
    uint64_t recipe_kept[2];       /* RECIPE_KEPT */
    uint64_t variables[VARIABLES]; /* immediates that a unit has read at its start */
    uint64_t code_page;            /* binding_of() the MODE_ANYWHERE unit that runs */
    uint64_t x87_page;             /* the same, of the last such unit that ran an x87 instruction */
    uint64_t slot_address;         /* guest-virtual, while a slot changes its page */
    uint64_t stub_kept[3];         /* registers that a stub has in use */
    uint32_t fault_site;           /* from the signal handler to the stub */
    uint32_t indirect_site; /* the last indirect branch: it faults if its target is not canonical */
    uint64_t address;       /* the guest-virtual address of a miss */
    uint16_t saved_flags;   /* LAHF in the high byte, OF in the low */
    uint8_t interrupt_flag; /* RFLAGS.IF while units run */
    uint64_t units_until;   /* deterministic time: of vcpu.instructions; then units are left */
    _Atomic uint32_t poll_now;

    /*
     * Kernel code is mapped alike in all address spaces, so what was looked up for it is kept
     * across switches, as the CPU keeps global pages. Where a guest maps kernel code without the
     * G bit, kernel_is_local says so and a switch forgets it.
     */
    struct jump_entry kernel_jumps[JUMP_ENTRIES];
    /* to MODE_PLAIN units; forgotten with any other */
    struct jump_entry plain_jumps[PRIVILEGES][PLAIN_ENTRIES];
    bool plain_filled; /* one of them may hold something */
    uint64_t kernel_links[KERNEL_LINKS_MAX];

    /* ---- used by C only ---- */
    struct translate_vm *vm;
    uint64_t deadline; /* of vcpu.instructions: then run() is left */
    struct filled kernel_links_filled, kernel_jumps_filled;
    bool kernel_is_local;
    enum leave_reason reason;
    enum step step;
    uint16_t mode;
    uint16_t wanted_mode;  /* LEAVE_TRANSLATE: of the unit to make */
    uint16_t kernel_mode;  /* of the units that kernel code was looked up as */
    bool vectors_live;     /* guest vector state is in the CPU, not in state.xsave */
    _Atomic bool in_units; /* this thread is between enter and leave */
    uint64_t xcr0_host;    /* components to save and restore for this guest */
    uint8_t *stack_base[PRIVILEGES];
    struct space spaces[SPACES_MAX];
    struct space *space;
    uint64_t space_clock;
    uint32_t drops; /* counts changes of mappings: host addresses and places of before are void */
    uint64_t exec_pages[PRIVILEGES][512]; /* filters of guest-virtual pages with known code */
    struct exec_entry {
        uint64_t gva_page, gpa_page;
    } exec_tlb[PRIVILEGES][EXEC_ENTRIES];
    struct engine_host host; /* the machine's, with vector state saved around each call */
    struct decoded *decoded; /* a cache of decoded instructions for the slow path */
    bool decoded_valid;
    _Atomic bool sleeps; /* in block_wait(): only a futex call wakes it */
    uint64_t poll_ns;    /* how long the next block_wait() looks before it sleeps */
    pthread_t thread;
    _Atomic uint64_t seen_at;  /* the host's instruction pointer at the last signal */
    _Atomic uint32_t activity; /* enum engine_counter: what a sample outside of units counts as */
    int memory_fd;
    bool parked;     /* guarded by the world's lock: at a safe point */
    bool was_parked; /* when this vCPU began to stop the world */
    bool in_run;     /* between the start and the end of run() */
    /* heat.c; written by the signal handler, which runs on this thread */
    timer_t sampler;
    bool has_sampler;
    uint64_t samples[SAMPLES]; /* guest-physical pages of code */
    unsigned sample_count;
    uint64_t hot_page; /* KICK_HOT: to be compiled anew */
    alignas(16) uint8_t fx_image[512];
    struct engine_counters counters; /* RETURN_MISSES by units, the others by C */
};

/* The page that units load from as a poll; made inaccessible to stop a loop. */
enum { POLL_OFFSET = (sizeof(struct block) + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1) };
enum { SPACE_OFFSET = POLL_OFFSET + PAGE_SIZE };

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

struct translate_vm {
    struct engine_config config;
    struct cache cache;
    struct stubs stubs;
    pthread_mutex_t lock; /* guards units, sites, pages, cache */
    struct unit *units;
    uint32_t unit_count;
    uint32_t *unit_hash;
    struct site *sites;
    uint32_t site_count;
    uint32_t link_count[PRIVILEGES];
    uint32_t links_ready[PRIVILEGES]; /* slots below hold an address in every vCPU */
    /* Slots given out so far; they are used in turn. */
    uint32_t slot_count[PRIVILEGES][TLB_ACCESSES];
    uint64_t shunned[SHUNNED_ENTRIES]; /* guest-physical addresses of instructions: heat.c */
    _Atomic uint32_t generation;       /* counts units_forget(): older site numbers mean nothing */
    struct page_units *pages;
    uint32_t page_count;
    uint32_t *page_hash;
    uint32_t checked_pages[CHECKED_PAGES_MAX]; /* numbers in `pages` */
    _Atomic uint32_t checked_count;
    bool had_checked_units; /* since units_forget(): stale look-ups may lead to some */
    uint64_t next_review;   /* of the checked pages: cycles of the host */
    struct block *blocks[8];
    unsigned block_count;
    struct engine_counters counters; /* of threads that are no vCPU's; guarded by a lock each */

    /* stop the world: see world.c */
    pthread_mutex_t world_lock;
    pthread_cond_t world_changed;
    pthread_mutex_t stopper; /* held by whoever has stopped the world */
    bool world_stopping;
    struct drop {
        uint64_t first, count;
        bool write_only;
    } drops[64];
    unsigned drop_count;
    bool drop_everything;
};

/*
 * Between two looks at units_until no more instructions than these are executed: a unit's, and one
 * in the shadow of another.
 */
enum { DEADLINE_REACH = UNIT_MAX_INSTRUCTIONS + 2 };

/* Of kernel code: some 10 us, longer than most locks are held by who runs. */
enum { PAUSES_UNTIL_YIELD = 256 };

/* How long a halted vCPU may look for a kick before it sleeps: what sleep and wake-up cost. */
enum { POLL_FIRST_NS = 10000, POLL_MOST_NS = 50000 };

/* Kick bits of this engine. */
enum {
    KICK_WORLD = 1u << 8,     /* come to a safe point */
    KICK_CODE = 1u << 9,      /* units were retired: forget jump caches, links, private stacks */
    KICK_DEADLINE = 1u << 10, /* a near deadline was set: leave units */
    KICK_HOT = 1u << 11,      /* hot_page is to be compiled anew */
};

/* ---- cache.c ---- */
int cache_init(struct cache *cache, uint32_t size);
void cache_fini(struct cache *cache);
/* The first `stubs` bytes are in use by all: units have the rest, in two parts. */
void cache_divide(struct cache *cache, uint32_t stubs);
/* All code of units is forgotten. */
void cache_clear(struct cache *cache);
/*
 * The code of a part goes up to here now. What is complete is not kept mapped for writing, which
 * would count its memory twice; who patches it maps it again.
 */
void cache_advance(struct cache *cache, enum part part, uint32_t end);
/* Are there `size` bytes left in each part? */
bool cache_has_room(const struct cache *cache, uint32_t size);

/* ---- unit.c: call with vm->lock held ---- */
int units_init(struct translate_vm *vm);
void units_fini(struct translate_vm *vm);
/* `second_page` is where the next virtual page is now (NO_PAGE if it is not mapped). */
struct unit *unit_find(struct translate_vm *vm, uint64_t page, uint64_t second_page,
                       uint16_t offset, uint64_t virtual_page, uint16_t mode);
/* Is there no room for one more unit of any size? Then everything is to be forgotten first. */
bool units_are_full(const struct translate_vm *vm);
/*
 * Keep pages marked as code while their bytes are read, from before memory_set_code() on. All is
 * void if the generation has changed between the two.
 */
void pages_begin_compile(struct translate_vm *vm, uint64_t page, uint64_t second_page);
void pages_end_compile(struct translate_vm *vm, uint64_t page, uint64_t second_page);
void unit_add(struct translate_vm *vm, struct unit *unit);
/* Does user code of the page run as MODE_ANYWHERE units at this address? */
bool page_is_away(struct translate_vm *vm, uint64_t page, gva_t virtual_page);
/* The page is being compiled for user code at this address, maybe for the first time. */
void page_settle(struct translate_vm *vm, uint64_t page, gva_t virtual_page);
/* Before a unit that checks itself is added: make room among its versions. */
void unit_limit_versions(struct translate_vm *vm, const struct unit *unit);
/* The youngest unit with the key of `unit` that is older than it, or NULL. */
struct unit *unit_version(struct translate_vm *vm, const struct unit *unit);
/* A version that another one replaces: not found any more; who runs it goes on to its end. */
void unit_retire(struct translate_vm *vm, struct unit *unit);
static inline struct source *unit_source(const struct translate_vm *vm, const struct unit *unit)
{
    return (struct source *)(vm->cache.write + unit->source);
}
/*
 * These bytes have changed: retire what was made from them, and tell all vCPUs. A page where that
 * happens often gets units that check themselves (page_is_checked()), and is not watched then.
 */
void units_retire(struct translate_vm *vm, gpa_t gpa, uint64_t length);
/* Do units of the page check themselves? (Of no page: no.) */
bool page_is_checked(struct translate_vm *vm, uint64_t page);
/* New code has come to a page: its units go on to check themselves. */
void page_hold_checked(struct translate_vm *vm, uint64_t page);
/* These pages have other frames from now on: retire units that read them. */
void units_drop(struct translate_vm *vm, uint64_t first, uint64_t count);
/* Now and then: pages whose code does not change any more are watched again. */
void units_review(struct translate_vm *vm);
/* Retire the units that have a breakpoint among their bytes. */
void units_retire_breaks(struct translate_vm *vm, const struct debug_points *points);
/* Retire one unit, and tell all vCPUs: it is to be made anew. */
void unit_renew(struct translate_vm *vm, struct unit *unit);
/* The page's user code is hot from now on: its units are made anew. */
void page_make_hot(struct translate_vm *vm, uint64_t page);
/* What is known of a page, or NULL. */
struct page_units *page_find(struct translate_vm *vm, uint64_t page);
/* Forget everything: the cache is full. The world is stopped. */
void units_forget(struct translate_vm *vm);
void site_link(struct translate_vm *vm, uint32_t site, struct unit *target);
/*
 * A SITE_LINK leads to this unit as long as it is not retired and its page is where the link says.
 */
void site_remember(struct translate_vm *vm, uint32_t site, struct unit *target);
/* The unit that owns a host address, or NULL. Async-signal-safe. */
struct unit *unit_at(struct translate_vm *vm, uint64_t host);
/* Of a SITE_READ or SITE_WRITE. */
static inline enum tlb_access site_access(const struct site *site)
{
    return site->kind == SITE_WRITE ? TLB_WRITE : TLB_READ;
}
static inline bool is_anywhere(const struct unit *unit)
{
    return unit->mode & MODE_ANYWHERE;
}
static inline uint32_t unit_number(const struct translate_vm *vm, const struct unit *unit)
{
    return (uint32_t)(unit - vm->units);
}

/* ---- stubs.c ---- */
void stubs_make(struct translate_vm *vm);

/* ---- compile.c ---- */
/*
 * Translate at gva, which is at gpa; the next virtual page is at second_page (or NO_PAGE). The
 * unit `checks` itself, or its pages are watched. False if a page is not RAM.
 */
bool compile(struct block *block, gva_t gva, gpa_t gpa, uint64_t second_page, uint16_t mode,
             bool checks);

/* ---- compile_assign.c ---- */
/*
 * The three guest registers that are to live in the block where code uses registers like this: the
 * usual ones, unless others are worth the exchange.
 */
uint16_t registers_choose(const struct register_use *use);
/* Some three, chosen by a number alone: so tests meet all of them. */
uint16_t registers_choose_any(const struct register_use *use, uint32_t number);

/* ---- space.c ---- */
int spaces_init(struct block *block);
/* Fill in what never may be zero: links and invalid entries. */
void spaces_reset(struct block *block);
/* Make the slots ready that the next unit may use: they are touched no earlier. With vm->lock. */
void links_prepare(struct translate_vm *vm);
/* A slot of the block's current privilege and space gets the address of what it leads to. */
void link_fill(struct block *block, uint32_t link, uint64_t host);
/* Enter a place in the jump cache. */
void jump_fill(struct block *block, enum privilege privilege, uint64_t gva, uint64_t host);
void spaces_fini(struct block *block);
/* A page with user code is at this address in the current space. */
void page_bind(struct block *block, uint32_t page_number, gva_t gva);
/* Forget the look-ups of one privilege in the current space. */
void space_forget_lookups(struct block *block, enum privilege privilege);
void spaces_forget_code(struct block *block);
void spaces_drop(struct block *block, uint64_t first, uint64_t count, bool write_only);
/* Empty a private stack: no landing pad of before may be returned to. */
void stack_reset(struct block *block, enum privilege privilege);
void space_activate(struct block *block); /* for the CR3 in state; also after set_state */
extern const struct vcpu_hooks translate_hooks;

enum { DECODED_ENTRIES = 256 };
struct decoded {
    uint64_t key;  /* guest-physical address */
    unsigned form; /* where its form is counted (slow_form_find()) */
    struct insn insn;
};

/* ---- helper.c, helper_memory.c: what stubs call; each returns where to go on ---- */
uint64_t helper_memory(struct block *block, uint32_t site);
uint64_t helper_execute(struct block *block, uint32_t site);
uint64_t helper_link(struct block *block, uint32_t site);
uint64_t helper_poll(struct block *block, uint32_t site);
uint64_t helper_deadline(struct block *block, uint32_t site);
uint64_t helper_fault(struct block *block, uint32_t site);
uint64_t helper_stale(struct block *block, uint32_t site);
uint64_t helper_indirect(struct block *block, uint32_t unused);
uint64_t helper_string(struct block *block, uint32_t site);
uint64_t helper_slot(struct block *block, uint32_t site);
uint64_t helper_fxsave(struct block *block, uint32_t site);
uint64_t helper_fxrstor(struct block *block, uint32_t site);
uint64_t helper_pause(struct block *block, uint32_t site);

/* ---- block.c ---- */
/* Between units and C: bring state together, or take it apart. */
void block_gather(struct block *block);
void block_scatter(struct block *block);
void vectors_save(struct block *block);
void vectors_restore(struct block *block);
/* Renew block->mode from the state. */
void block_renew_mode(struct block *block);

/* ---- wait.c ---- */
/* As engine_ops.kick and engine_ops.wait. */
void block_kick(struct block *block, unsigned kicks, uint8_t sipi_vector);
void block_wait(struct block *block, uint64_t deadline_ns);
/* Can the vCPU, as it stands, answer one of its kicks? */
bool block_has_work(const struct block *block);
/* Give the host CPU to other threads, at a safe point. */
void block_yield(struct block *block);

/* ---- host.c ---- */
/* The machine's calls for this vCPU. */
struct engine_host block_host(struct block *block);

/* ---- lookup.c ---- */
enum step block_translate_fetch(struct block *block, gva_t rip, gpa_t *ret_gpa);
/* Where an instruction at rip would go on, if it can reach the next page; else NO_PAGE. */
uint64_t block_second_page(struct block *block, gva_t rip);
/* Host address of the unit for state.rip, or of the leave stub with the reason set. */
uint64_t block_continue(struct block *block);
/*
 * The same for a unit of some mode: MODE_PLAIN, and MODE_ANYWHERE also where units of that address
 * would run else.
 */
uint64_t block_go_on(struct block *block, uint16_t mode);
/* The mode of the units that run at rip, which is in this page. With vm->lock. */
uint16_t block_variant(struct block *block, uint64_t page, uint64_t rip, uint16_t mode);

/* ---- trace.c ---- */
/* Tell an event, if engine_traces() says that somebody wants it. Any thread; keeps vector state. */
void trace_event(struct translate_vm *vm, struct block *block, enum engine_trace_kind kind,
                 const char *what, const char *detail, uint64_t value);
static inline void block_trace(struct block *block, enum engine_trace_kind kind, const char *what,
                               const char *detail, uint64_t value)
{
    if (engine_traces(&block->vm->config.trace, kind)) {
        trace_event(block->vm, block, kind, what, detail, value);
    }
}
/*
 * Where the host code of each guest instruction begins, noted while a unit is compiled if somebody
 * wants to see units; NULL otherwise.
 */
struct trace_marks *trace_marks_begin(struct translate_vm *vm);
void trace_mark(struct trace_marks *marks, uint32_t host, uint16_t guest, bool is_outline);
void trace_unit_made(struct block *block, const struct unit *unit, const struct trace_marks *marks,
                     const uint8_t *page, uint32_t guest_size, uint32_t instructions);

/* What this thread does outside of units counts as `activity` in samples; returns what it was. */
static inline uint32_t block_set_activity(struct block *block, uint32_t activity)
{
    uint32_t before = atomic_load_explicit(&block->activity, memory_order_relaxed);
    atomic_store_explicit(&block->activity, activity, memory_order_relaxed);
    return before;
}

/* ---- world.c ---- */
void world_init(struct translate_vm *vm);
void world_fini(struct translate_vm *vm);
/*
 * Stop all other vCPUs at safe points (self may be NULL), until world_resume(). `why` is one of
 * COUNT_WORLD_*.
 */
void world_stop(struct translate_vm *vm, struct block *self, enum engine_counter why);
void world_resume(struct translate_vm *vm);
/* A vCPU comes to, or leaves, a safe point. */
void world_park(struct block *block);
void world_unpark(struct block *block);
void world_listen(struct translate_vm *vm);

/* ---- heat.c ---- */
/*
 * Begin to sample this thread, which is the vCPU's. A host that refuses the timer
 * (RLIMIT_SIGPENDING counts them) costs speed only: no code is hot then.
 */
void heat_start(struct block *block);
void heat_stop(struct block *block);
/* The thread was interrupted at this host address. Async-signal-safe; true: raise KICK_HOT. */
bool heat_sample(struct block *block, uint64_t host);
/* KICK_HOT came. */
void heat_answer(struct block *block);
/* Has a slot not paid for the instruction at this place? */
bool slot_is_shunned(const struct translate_vm *vm, gpa_t gpa);

/* ---- signal.c ---- */
enum { KICK_SIGNAL = SIGUSR1 }; /* of kicks and of the sampler's timer */
int signals_init(void);
/* This thread runs units of `block` from now on (NULL: no more). */
void signals_attach(struct block *block);
void signals_kick(struct block *block);
/* The block that this thread runs, or NULL. */
struct block *signals_current(void);

static inline uint64_t cache_address(const struct translate_vm *vm, uint32_t offset)
{
    return (uint64_t)vm->cache.run + offset;
}
static inline enum privilege mode_privilege(uint16_t mode)
{
    return mode & MODE_USER ? PRIVILEGE_USER : PRIVILEGE_KERNEL;
}
/* The tables of the soft TLB for a privilege. */
static inline enum tlb_privilege tlb_privilege(enum privilege privilege)
{
    return privilege == PRIVILEGE_USER ? TLB_USER : TLB_KERNEL;
}
/* Where units of a privilege find their jump cache and links, from the GS base. */
static inline size_t jumps_offset(enum privilege privilege)
{
    return privilege == PRIVILEGE_USER ? SPACE_OFFSET + offsetof(struct space_data, jumps)
                                       : offsetof(struct block, kernel_jumps);
}
static inline size_t links_offset(enum privilege privilege)
{
    return privilege == PRIVILEGE_USER ? SPACE_OFFSET + offsetof(struct space_data, links)
                                       : offsetof(struct block, kernel_links);
}
/* The bit of a page in exec_pages. */
static inline unsigned exec_page_bit(gva_t gva)
{
    return (unsigned)((gva >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 49);
}
/* What stands there for all of a large page: no canonical address. */
static inline gva_t exec_large_page(gva_t gva, uint64_t size)
{
    uint64_t region = tlb_region_size(size);
    return align_down(gva, region) ^ (1ull << 62 | region >> 1);
}
/* The guest-virtual address of a unit that runs, or of a site's target. */
static inline gva_t block_unit_page(const struct block *block, const struct unit *unit)
{
    return is_anywhere(unit) ? block->code_page - 1 : unit->virtual_page;
}
static inline gva_t block_target(const struct block *block, const struct site *site)
{
    const struct unit *unit = &block->vm->units[site->unit];
    return site->target + (is_anywhere(unit) ? block->code_page - 1 : 0);
}
static inline struct jump_entry *block_jumps(struct block *block, enum privilege privilege)
{
    return privilege == PRIVILEGE_USER ? block->space->data->jumps : block->kernel_jumps;
}
