/*
 * The compiler's own state while it makes one unit, and the steps that its files share.
 */
#pragma once

#include "engine/translate/emit.h"

/* Code that is emitted behind the unit's straight path. */
enum outline_kind {
    OUTLINE_MEMORY,  /* a failed soft TLB check: SCRATCH less the tag in the entry at SCRATCH2 */
    OUTLINE_ADDRESS, /* the same for a constant address */
    OUTLINE_SLOT,    /* not the page of the site's slot: SCRATCH less the slot's tag */
    OUTLINE_EXECUTE, /* run the instruction in interp */
    OUTLINE_PAUSE,   /* many PAUSEs: yield */
    OUTLINE_STRING,  /* a string operation that does not stay inside its pages */
    OUTLINE_JUMP,    /* an indirect jump that the look-up did not find */
    OUTLINE_CALL,    /* an indirect call; `constant` is its landing pad's cache offset */
    OUTLINE_RETURN,  /* a return that the private stack does not know */
    OUTLINE_EXIT,    /* a direct exit: chain or link */
    OUTLINE_POLL,    /* an interrupt may be deliverable */
    OUTLINE_TIME,    /* deterministic time: the run loop goes on in single steps */
};

struct outline {
    enum outline_kind kind;
    uint8_t *branch; /* the rel32 that comes here */
    uint32_t site;
    uint64_t constant; /* OUTLINE_ADDRESS: the address; OUTLINE_MEMORY: displacement of the tag */
    enum flags_home flags;
};

/* An indirect call of memory has four; and a loop is made half again. */
enum { OUTLINES_MAX = 8 * UNIT_MAX_INSTRUCTIONS };

/* Memory operands that one check covers: see compile_group.c. */
enum { GROUPS = 4 };
struct group {
    bool is_active;
    bool is_kept;   /* the host address of `first` is in the block's slot */
    bool may_write; /* the check was for writing */
    int base, index;
    unsigned scale;
    int32_t first, end; /* displacements */
};

/* The large arrays. */
struct workspace {
    /* The bytes, read once: from the unit's start as far as it can reach, and the page's end. */
    uint8_t page[PAGE_SIZE + INSN_MAX_LENGTH];
    struct insn insns[UNIT_MAX_INSTRUCTIONS + 1];
    struct outline outlines[OUTLINES_MAX];
};

struct compiler {
    struct emitter e;
    struct translate_vm *vm;
    struct block *block;
    struct unit *unit;
    uint16_t mode;
    uint64_t virtual_page; /* MODE_ANYWHERE: 0, and what is counted from it is relative */

    struct workspace *work; /* what need not be zero at the start */
    struct insn *insns;     /* decoded ahead */
    uint16_t offsets[UNIT_MAX_INSTRUCTIONS + 1];
    unsigned count;
    unsigned current;              /* index of the instruction being emitted */
    enum decode_result end_result; /* why decoding stopped, if not at a branch */

    enum flags_home flags;
    struct recipe recipe; /* of the flags in the CPU (FLAGS_HOST), or of nowhere (FLAGS_RECIPE) */
    bool ended;           /* the straight path does not go on */
    struct group groups[GROUPS];
    unsigned next_group;
    int scratch_group; /* SCRATCH holds this group's host address; -1: none */
    /* Scratch registers that hold displaced ones, as long as nothing was emitted since. */
    struct {
        int8_t gpr[2]; /* in SCRATCH and in SCRATCH2; -1: none */
        uint32_t at;   /* valid if this is where emission goes on */
    } held;
    uint8_t home[GPR_COUNT];   /* host registers of guest registers */
    bool counts;               /* deterministic time: instructions are counted exactly */
    bool counted;              /* the current instruction is in the count already */
    int uncounted;             /* completed since the count was last brought up to date */
    bool checks;               /* the unit compares its source before it runs: compile_source.c */
    struct trace_marks *marks; /* NULL: nobody wants to see the unit */
    struct source source;
    uint8_t variables[VARIABLES]; /* instructions whose immediate is read when they run */
    unsigned variable_count;
    uint32_t stale_exit; /* cache offset: go there when the bytes differ */
    unsigned outline_count;
};

static inline bool compiler_optimizes(const struct compiler *c, enum optimization what)
{
    return optimizes(c->vm, unit_number(c->vm, c->unit), what);
}
/* May one check serve several operands? */
static inline bool has_groups(const struct compiler *c)
{
    return !(c->mode & MODE_PLAIN) && compiler_optimizes(c, OPTIMIZE_GROUPS);
}
static inline const struct insn *compiler_insn(const struct compiler *c)
{
    return &c->insns[c->current];
}
static inline uint64_t compiler_pc(const struct compiler *c)
{
    return c->virtual_page + c->offsets[c->current];
}
static inline uint64_t compiler_next_pc(const struct compiler *c)
{
    return c->virtual_page + c->offsets[c->current + 1];
}
static inline bool is_displaced(const struct compiler *c, int gpr)
{
    return gpr >= 0 && (c->unit->displaced & 1u << gpr);
}
/* The host register of a guest register that is not displaced. */
static inline unsigned home_of(const struct compiler *c, int gpr)
{
    return c->home[gpr];
}

/* ---- compile_kind.c ---- */
/* Does nothing run behind this instruction in straight line? */
bool is_end(const struct insn *insn);
/* Jcc with a 64-bit operand size: not JRCXZ, not LOOP. */
bool is_conditional_jump(const struct insn *insn);
/* Nothing to do at all: hints, and what is a NOP on a CPU without some feature. */
bool is_nothing(const struct insn *insn);
/* Computation on registers and memory, the same at every privilege: safe to run as it is. */
bool is_copied(const struct insn *insn);
/* Does the x87 unit note it as its last instruction (SDM volume 1, 8.1.8)? */
bool moves_x87_pointer(const struct insn *insn);
/* Is there a function that makes it (which may still leave this form to interp)? */
bool is_by_mnemonic(const struct insn *insn);
/* Needs no vector state: also VEX-encoded instructions on general registers (BMI). */
bool is_general(const struct insn *insn);
/* Is nothing emitted for it that calls C and comes back into the unit? */
bool is_transparent(const struct insn *insn);

/* ---- compile.c ---- */
/* Is it copied under this CPU model and mode? */
bool is_copied_here(const struct compiler *c, const struct insn *insn);
/* `reg` = an address that is counted from c->virtual_page. Leaves the flags alone. */
void emit_code_address(struct compiler *c, unsigned reg, uint64_t address);
/* Does the instruction at this address of the unit's page go on in the next page? */
bool crosses_page(const struct compiler *c, uint64_t pc);
/*
 * Bring the count of instructions up to date, `ahead` of the current one and those that follow it
 * in a run: for instructions that may leave the unit. Uses SCRATCH2.
 */
void count_instructions(struct compiler *c, int ahead);
/*
 * Deterministic time, wherever a unit is entered: leave with state.rip = `pc` if the deadline is
 * near. Flags are saved, all instructions before are counted. Uses SCRATCH2.
 */
void compile_deadline_check(struct compiler *c, uint64_t pc);
/* Run the current instruction in interp, inline. */
void compile_execute(struct compiler *c);
/* If kicks are waiting, leave with state.rip = `pc` before it runs. Flags are saved. */
void compile_poll(struct compiler *c, uint64_t pc, size_t word);

/* ---- compile_outline.c ---- */
uint32_t site_new(struct compiler *c, enum site_kind kind);
void outline(struct compiler *c, enum outline_kind kind, uint8_t *branch, uint32_t site,
             uint64_t constant);
/* The unit goes on from another page: SCRATCH is the guest-virtual address of `offset`. */
void emit_enter_page(struct compiler *c, unsigned offset);
/* Behind the straight path: the outlines, and entries and exits with the usual registers. */
void emit_outlines(struct compiler *c);

/* ---- compile_flags.c ---- */
/* What one instruction means for the arithmetic flags. */
struct flag_effects {
    bool reads;  /* needs them in the CPU (also when it leaves some of them unchanged) */
    bool writes; /* afterwards they are in the CPU */
};
struct flag_effects flag_effects(const struct insn *insn);
/* From here on the flags are saved in the block. Uses SCRATCH2. */
void flags_to_block(struct compiler *c);
/* From here on the guest's flags are in the CPU. Uses SCRATCH2. */
void flags_to_host(struct compiler *c);
/* A check comes: the flags in the CPU may be destroyed, a site can tell what they were. */
void flags_for_check(struct compiler *c);
/* The same for a run of instructions that one check serves. */
void flags_for_checks(struct compiler *c, unsigned count);
/* Before every instruction: a recipe that is needed must not lose its registers. */
void flags_before(struct compiler *c, const struct insn *insn);
/*
 * Would a recipe for the flags of the current instruction pay, and does it want the value of the
 * memory operand (what is there afterwards)? Where to keep it.
 */
bool flags_want_operand(const struct compiler *c, const struct insn *insn);
size_t flags_operand_slot(const struct insn *insn);
/* After a copied instruction. */
void flags_after(struct compiler *c, const struct insn *insn, bool operand_is_kept);
/* After every instruction: a recipe ends where its registers change. */
void recipe_after(struct compiler *c, const struct insn *insn);

/* ---- compile_assign.c: which registers are displaced ---- */
/* Decide it for the unit, which is decoded. */
void registers_assign(struct compiler *c);
/* From the usual registers to the unit's; nothing if those are the usual ones. Leaves the flags. */
void registers_enter(struct compiler *c);
/* And back. */
void registers_leave(struct compiler *c);
static inline bool has_own_registers(const struct compiler *c)
{
    return c->unit->displaced != DISPLACED;
}

/* ---- compile_displaced.c: guest registers that the block holds ---- */
/* The scratch register that holds a displaced register just now, or -1. */
int displaced_held(const struct compiler *c, unsigned gpr);
/* Both scratch registers are as they are now: what holds which (-1: none). */
void displaced_hold(struct compiler *c, int in_scratch, int in_scratch2);
/* Give each displaced register of the operands a scratch register; false if there are too few. */
bool displaced_assign(struct compiler *c, uint16_t displaced, bool has_memory,
                      struct rewrite_map *map);
/* The copy of the instruction stands between these two, and nothing else. */
void displaced_load(struct compiler *c, uint16_t registers, const struct rewrite_map *map);
void displaced_store(struct compiler *c, uint16_t written, bool has_memory,
                     const struct rewrite_map *map);

/* ---- compile_memory.c ---- */
/* SCRATCH = address of the memory operand. A constant one is not loaded: *ret_constant is set. */
bool compile_address(struct compiler *c, const struct insn_operand *operand,
                     uint64_t *ret_constant);
/* SCRATCH = host address of the guest-virtual address in SCRATCH. Flags are saved. */
void compile_check(struct compiler *c, unsigned size, bool write);
/* The same, but SCRATCH2 = host address of its page, SCRATCH = offset in the page. */
void compile_check_pair(struct compiler *c, unsigned size, bool write);
/* Where the host finds an operand: at [SCRATCH + offset], or [SCRATCH2 + SCRATCH + offset]. */
struct host_place {
    int32_t offset;
    bool is_pair;
};
/*
 * The memory operand of the current instruction: address, check. A pair of registers only where
 * the caller has no use for SCRATCH2 before the access.
 */
struct host_place compile_operand_check(struct compiler *c, const struct insn_operand *operand,
                                        bool write, bool may_pair);
/* Copy the instruction with registers and memory operand substituted; false if it cannot be. */
bool compile_copy(struct compiler *c);
bool compile_lea(struct compiler *c);
/* LEA without displaced registers: needs no scratch register. */
bool is_direct_lea(const struct compiler *c, const struct insn *insn);
void compile_direct_lea(struct compiler *c);
/* Is there nothing to do for the instruction beside the check of its operand and the copy? */
bool is_plain_copy(const struct insn *insn);
/* The copy of such an instruction, its operand being where `map` says; false if it cannot be. */
bool compile_plain_copy(struct compiler *c, const struct rewrite_map *map);
/* The site of a check that is about to be emitted. */
uint32_t check_site(struct compiler *c, unsigned size, bool write);
/* What branches if SCRATCH, the distance from a page's start, is too large for an access. */
uint8_t *emit_distance_check(struct emitter *e, unsigned size);

/* ---- compile_operand.c: operands that SCRATCH2 stands for in the copy ---- */
/*
 * AH, CH, DH or BH beside a memory operand, or NULL: it cannot stand beside the REX prefix that the
 * host address needs. The guest's own register does not change before the access, which may still
 * fault (site_at()).
 */
const struct insn_operand *find_high_byte(const struct insn *insn);
void load_high_byte(struct compiler *c, const struct insn_operand *high);
void store_high_byte(struct compiler *c, const struct insn_operand *high);
/*
 * The memory operand at [SCRATCH + offset]: before the copy, and after it, when a value that was
 * changed goes back, and what the flags' recipe needs is kept.
 */
void load_operand(struct compiler *c, const struct insn_operand *memory, int32_t offset);
void store_operand(struct compiler *c, const struct insn_operand *memory, int32_t offset);

/* ---- compile_slot.c ---- */
/* The check of SCRATCH by a slot; `opcode` and `reg`: what is done with the page's host address. */
void compile_slot_check(struct compiler *c, unsigned size, bool write, uint8_t opcode,
                        unsigned reg);
/* Behind the straight path: the slot has another page. `flags` say where they are. */
void emit_slot_miss(struct compiler *c, uint32_t site, enum flags_home flags);

/* ---- compile_stride.c ---- */
/*
 * The loop of the unit's first `end` instructions, the last being its branch back: rounds without
 * checks, entered where the flags are those of `recipe`. Where it goes on, so they are again.
 * False if it is not a loop for this: nothing is emitted.
 */
bool compile_stride(struct compiler *c, unsigned end, const struct recipe *recipe);

/* ---- compile_group.c ---- */
/* Like compile_operand_check(), for itself and its neighbours. */
struct host_place compile_group_access(struct compiler *c, const struct insn_operand *operand,
                                       bool writes, bool may_pair);
/* No host address of before may be used again. */
void groups_forget(struct compiler *c);
/*
 * Behind a failed check of a group, with SCRATCH the distance from the start of a page whose entry
 * is at hand: if only the page's border is in the way, go on in the plain unit. Returns where that
 * begins; the code behind is for all else.
 */
uint32_t emit_border_exit(struct compiler *c, uint32_t site, enum flags_home flags);
/* The instruction has been emitted: groups whose registers it writes end. */
void groups_after(struct compiler *c, const struct insn *insn);

/* ---- compile_stack.c: each returns false if the form is left to interp ---- */
bool compile_push(struct compiler *c);
bool compile_pop(struct compiler *c);
bool compile_leave(struct compiler *c);
bool compile_call(struct compiler *c);
bool compile_return(struct compiler *c);
bool compile_pushf(struct compiler *c);
bool compile_popf(struct compiler *c);

/* Go on in interp if SCRATCH is not a canonical address. Flags are saved. */
void compile_canonical_check(struct compiler *c);

/* ---- compile_system.c ---- */
/* System instructions that need no C code, or C code of their own; false: left to interp. */
bool compile_system(struct compiler *c);

/* ---- compile_string.c ---- */
/* REP MOVS and REP STOS with 64-bit addresses. */
bool is_repeated_move(const struct insn *insn);
void compile_repeated_move(struct compiler *c);

/* ---- compile_source.c: units that check themselves ---- */
/* Must such a unit, of `length` bytes by now, end behind this instruction? */
bool source_ends(const struct compiler *c, const struct insn *insn, unsigned length);
/* After decoding: what is compared and what is variable. False if it is not in RAM. */
bool source_init(struct compiler *c);
/* The exit for a unit that is stale, in front of its entries. */
void source_emit_exit(struct compiler *c);
/* Flags are saved. Uses SCRATCH and SCRATCH2. */
void source_emit_check(struct compiler *c);
/* Behind the unit's code: what it was made from. */
void source_emit_record(struct compiler *c);
/* Is the immediate of an instruction of the unit a variable? */
bool is_variable(const struct compiler *c, unsigned index);
/* Make the current instruction if its immediate is a variable; false if it is not. */
bool compile_variable(struct compiler *c);
/* SCRATCH = target of the current direct branch if that is a variable; false if it is not. */
bool compile_variable_target(struct compiler *c);

/* ---- compile_control.c ---- */
/* Keep a rel32 behind `before` bytes of opcode in one piece for those who patch it. */
void align_patch(struct compiler *c, unsigned before);
bool compile_jump(struct compiler *c);
bool compile_condition(struct compiler *c);
/*
 * The jump (4) or call (2) of a SITE_LINK. Flags are saved, the usual registers in place. Uses both
 * scratch registers.
 */
void emit_link(struct compiler *c, unsigned transfer, uint32_t site);
/* A direct exit to `target` if a condition holds. The flags are in the CPU. */
void compile_exit(struct compiler *c, unsigned condition, uint64_t target);
/* A direct exit to `target`: jmp (0xe9) or call (0xe8) at this place. */
void compile_direct(struct compiler *c, uint8_t opcode, uint64_t target);
/*
 * Before a branch that may close a cycle of guest code: if kicks are waiting, leave instead of
 * making it. Uses SCRATCH2.
 */
void compile_branch_poll(struct compiler *c);
/* The same before a direct branch, if it goes backwards. */
void emit_loop_poll(struct compiler *c, uint64_t target);
/* Remember the indirect branch, for the case that its target is not canonical. */
void emit_indirect_note(struct compiler *c, uint32_t site);
/* Load the target of an indirect branch into SCRATCH; false if it is left to interp. */
bool compile_indirect_target(struct compiler *c);
