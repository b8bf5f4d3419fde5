/*
 * What a vCPU counts while it runs: how often, and for what, guest code left the fast path.
 *
 * Promises: counting costs a few general-register instructions on paths that are slow anyway; the
 *           straight path of translated code counts nothing.
 * Threads:  a vCPU's counters are written by its own thread only (and by its signal handlers), and
 *           read by anybody, without locks: each number is right, two numbers may be of different
 *           moments.
 */
#pragma once

#include <stdalign.h>
#include <stdbool.h>
#include <stdint.h>

struct insn;

/*
 * X(NAME, topic, key, what it counts). Topic and key are what programs read: they never change.
 * "exits" are calls from units into C code, one for each. What is named CYCLES counts those of the
 * TSC; it becomes nanoseconds where it is shown.
 */
#define ENGINE_COUNTERS(X)                                                                         \
    X(EXIT_MEMORY, "exits", "memory", "misses of the soft TLB")                                    \
    X(EXIT_EXECUTE, "exits", "instruction", "instructions that are not translated")                \
    X(EXIT_CHAIN, "exits", "chain", "direct exits inside a page that were not chained")            \
    X(EXIT_LINK, "exits", "link", "direct exits to another page that were not linked")             \
    X(EXIT_STALE, "exits", "stale", "units whose source had changed")                              \
    X(EXIT_INDIRECT, "exits", "indirect", "indirect branches that the jump cache did not know")    \
    X(EXIT_STRING, "exits", "string", "REP MOVS and REP STOS beyond a page")                       \
    X(EXIT_FX_IMAGE, "exits", "fx_image", "FXSAVE and FXRSTOR")                                    \
    X(EXIT_PAUSE, "exits", "pause", "spins that let others have the host's CPU")                   \
    X(EXIT_FAULT, "exits", "fault", "host faults of translated instructions")                      \
    X(EXIT_POLL, "exits", "poll", "kicks noticed at a poll")                                       \
    X(EXIT_DEADLINE, "exits", "deadline", "deadlines of the deterministic clock")                  \
    X(TLB_READ_KERNEL, "tlb", "read_miss_kernel", "reads by kernel code")                          \
    X(TLB_READ_USER, "tlb", "read_miss_user", "reads by user code")                                \
    X(TLB_WRITE_KERNEL, "tlb", "write_miss_kernel", "writes by kernel code")                       \
    X(TLB_WRITE_USER, "tlb", "write_miss_user", "writes by user code")                             \
    X(TLB_SECOND, "tlb", "second_level", "misses that the second level answered, beside these")    \
    X(TLB_MISS_FILLED, "tlb", "filled", "misses answered by an entry")                             \
    X(TLB_MISS_FAULT, "tlb", "fault", "misses that are page faults of the guest")                  \
    X(TLB_MISS_SLOW, "tlb", "slow", "misses on devices and watched pages")                         \
    X(TLB_MISS_CROSS, "tlb", "cross", "misses that cross a page or need interp")                   \
    X(FLUSH_ONE_PAGE, "flush", "page", "one page (INVLPG)")                                        \
    X(FLUSH_LOCAL, "flush", "non_global", "all but global pages (CR3, INVPCID)")                   \
    X(FLUSH_EVERYTHING, "flush", "all", "all (CR0, CR4, EFER)")                                    \
    X(FLUSH_TRANSITION, "flush", "transition", "pages whose frames changed")                       \
    X(SPACE_SWITCHES, "flush", "space_switch", "address-space switches")                           \
    X(SPACE_EVICTIONS, "flush", "space_new", "switches to an address space without a table")       \
    X(RETURN_MISSES, "branches", "return_miss", "returns that the private stack did not predict")  \
    X(STACK_OVERFLOWS, "branches", "stack_overflow", "times the private stack was full")           \
    X(LOOKUPS_FORGOTTEN, "branches", "forgotten", "times look-ups were forgotten (code, modes)")   \
    X(UNITS_MADE, "translation", "units", "units made")                                            \
    X(UNIT_INSTRUCTIONS, "translation", "instructions", "guest instructions in them")              \
    X(UNIT_GUEST_BYTES, "translation", "guest_bytes", "guest bytes in them")                       \
    X(UNIT_HOST_BYTES, "translation", "host_bytes", "host bytes in them")                          \
    X(TRANSLATION_CYCLES, "translation", "ns", "nanoseconds spent making them")                    \
    X(CODE_WRITES, "invalidation", "code_writes", "stores to pages that hold code")                \
    X(RETIRED_BY_STORE, "invalidation", "retired_by_store", "units retired by the guest's stores") \
    X(RETIRED_BY_DEVICE, "invalidation", "retired_by_device", "units retired by devices")          \
    X(RETIRED_OTHERWISE, "invalidation", "retired_otherwise",                                      \
      "units retired for new versions, transitions, breakpoints")                                  \
    X(CHECKED_PAGES, "invalidation", "checked_pages",                                              \
      "pages whose units check themselves from then on")                                           \
    X(RETIRED_BY_ROOM, "invalidation", "retired_by_room", "units dropped with a full cache")       \
    X(WORLD_TRANSITION, "world_stops", "transition", "for a page transition")                      \
    X(WORLD_LOCKED, "world_stops", "locked", "for a locked access across cache lines")             \
    X(WORLD_ROOM, "world_stops", "room", "for a full code cache")                                  \
    X(INTERRUPTS, "events", "interrupts", "interrupts delivered")                                  \
    X(HALTS, "events", "halts", "times the vCPU halted")                                           \
    X(HALTED_CYCLES, "events", "halted_ns", "nanoseconds that it waited")                          \
    X(KICKS_ANSWERED, "events", "kicks", "times the vCPU looked at kicks")                         \
    X(KICK_SIGNALS, "events", "kick_signals", "kicks that needed a signal")                        \
    X(SLOW_INSTRUCTIONS, "tiers", "slow", "instructions of units that ran in interp")              \
    X(SINGLE_STEPS, "tiers", "interpreted", "instructions outside of units, in interp")            \
    X(SAMPLE_USER, "samples", "units_user", "in units of user code")                               \
    X(SAMPLE_KERNEL, "samples", "units_kernel", "in units of kernel code")                         \
    X(SAMPLE_STUBS, "samples", "stubs", "in stubs between units and C")                            \
    X(SAMPLE_HELPERS, "samples", "helpers", "in C code called by units")                           \
    X(SAMPLE_TRANSLATION, "samples", "translation", "making units")                                \
    X(SAMPLE_INTERP, "samples", "interp", "in interp, outside of units")                           \
    X(SAMPLE_MACHINE, "samples", "machine", "in device models")                                    \
    X(SAMPLERS_REFUSED, "timers", "samplers_refused",                                              \
      "vCPUs whose sampling timer the host refused: no samples, no hot code")

enum engine_counter {
#define ENGINE_COUNTER_NAME(name, topic, key, text) COUNT_##name,
    ENGINE_COUNTERS(ENGINE_COUNTER_NAME)
#undef ENGINE_COUNTER_NAME
        ENGINE_COUNTER_COUNT
};

/*
 * A form of instructions that interp executes for units: the mnemonic and the kinds and sizes of
 * its visible operands, packed (slow_form_of()). 0: the entry is free.
 */
struct slow_form {
    uint64_t form;
    uint64_t count;
};
/* The last entry takes what finds no room. */
enum { SLOW_FORMS = 512, EXCEPTION_VECTORS = 32 };

struct engine_counters {
    alignas(64) uint64_t values[ENGINE_COUNTER_COUNT];
    uint64_t exceptions[EXCEPTION_VECTORS]; /* delivered, by vector; software interrupts too */
    uint64_t halted_since;                  /* TSC when the wait in progress began, or 0 */
    struct slow_form slow_forms[SLOW_FORMS];
};

static inline void counter_add(uint64_t *counter, uint64_t amount)
{
    /* One writer: no locked instruction is needed, only that readers see no torn number. */
    __atomic_store_n(counter, *counter + amount, __ATOMIC_RELAXED);
}

static inline uint64_t counter_read(const uint64_t *counter)
{
    return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

/* Kinds of operands in a form, three of six bits from bit 16 on; the mnemonic is below. */
enum slow_operand {
    SLOW_OPERAND_NONE,
    SLOW_OPERAND_REGISTER,
    SLOW_OPERAND_MEMORY,
    SLOW_OPERAND_IMMEDIATE,
    SLOW_OPERAND_VECTOR,
    SLOW_OPERAND_SEGMENT,
    SLOW_OPERAND_CONTROL,
    SLOW_OPERAND_DEBUG,
};
enum {
    SLOW_FORM_OPERANDS = 3,
    SLOW_FORM_SHIFT = 16, /* of the first operand: three bits of kind, three of log2(bytes) */
    SLOW_FORM_BITS = 6,
    SLOW_FORM_LOCK = 40, /* these prefixes have a bit each */
    SLOW_FORM_REPEAT = 41,
    SLOW_FORM_OTHER = 63, /* of the last entry */
};

uint64_t slow_form_of(const struct insn *insn);
/* The entry for a form, made if there is none yet. The vCPU's own thread. */
unsigned slow_form_find(struct engine_counters *counters, uint64_t form);
