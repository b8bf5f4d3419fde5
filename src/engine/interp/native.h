/*
 * Inside native execution: the snippets, and the plan of memory accesses of one vector
 * instruction. Private to native*.c.
 */
#pragma once

#include "engine/interp/interp_internal.h"
#include "engine/rewrite.h"

/* Host code that is one instruction of the guest, for other registers. (native_snippet.c) */
struct snippet {
    struct snippet_key {
        uint64_t bytes[2];
    } key; /* the guest's bytes and mode */
    const uint8_t *body;
    struct rewrite_map map;
    uint16_t loads; /* guest registers to load; to store */
    uint16_t stores;
    bool at_rdi; /* MASKMOVQ, MASKMOVDQU: the host finds the bytes by RDI */
};

/* Find or make the snippet; NULL if the instruction cannot be rewritten. Valid until the next. */
const struct snippet *snippet_for(struct native *native, const struct insn *insn);
/* The bounce buffer for a memory operand at this address: it is aligned in the same way. */
enum { SNIPPET_OPERAND_MAX = 192 };
uint8_t *snippet_operand(struct native *native, uint64_t address);
/*
 * Run it on the guest's vector state and flags and a copy of its registers, with the memory
 * operand at `operand`. Returns 0, or the vector of the fault plus 1.
 */
uint64_t snippet_run(struct vcpu *vcpu, const struct snippet *snippet, uint8_t *operand);
/* After a run that counts: its general registers and flags become the guest's. */
void snippet_commit(struct vcpu *vcpu, const struct snippet *snippet);

/* The memory side of an instruction: `count` chunks, of which the active ones are accessed. */
struct native_plan {
    enum segment_register segment;
    uint64_t offset; /* in the segment */
    unsigned chunk;  /* bytes */
    unsigned count;
    uint64_t active; /* bit n: chunk n */
    bool reads;
    bool writes;
    bool faults_whole; /* though only the active chunks are written, all must be writable */
};

/* Which chunks a masked instruction accesses; leaves a plain one alone. (native_mask.c) */
void native_plan_mask(const struct vcpu *vcpu, const struct insn *insn,
                      const struct insn_operand *memory, struct native_plan *plan);

/* VGATHER, VSCATTER and their kind, element by element. (native_gather.c) */
bool native_is_gather(const struct insn *insn);
enum step native_gather(struct vcpu *vcpu, const struct insn *insn);
