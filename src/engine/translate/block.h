/*
 * The vCPU block, which the GS base of units points to: guest state, scratch space of units, what
 * was looked up for kernel code, and, behind it in each of its aliases, what belongs to one of the
 * guest's address spaces.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "base/bytes.h"
#include "engine/translate/unit.h"

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
 * is the page's guest-virtual address, plus 1, or 0 if nobody has looked a unit of it up. Of
 * several addresses it is the first one that code ran at.
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
