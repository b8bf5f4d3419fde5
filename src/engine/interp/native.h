/*
 * Inside native execution: the plan of memory accesses of one vector instruction, and the
 * snippets. Private to native*.c.
 */
#pragma once

#include "engine/interp/interp_internal.h"

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
    bool at_rdi;       /* MASKMOVQ, MASKMOVDQU: the host finds the bytes by RDI */
};

/* Which chunks a masked instruction accesses; leaves a plain one alone. (native_mask.c) */
void native_plan_mask(const struct vcpu *vcpu, const struct insn *insn,
                      const ZydisDecodedOperand *memory, struct native_plan *plan);

/* VGATHER, VSCATTER and their kind, element by element. (native_gather.c) */
bool native_is_gather(const struct insn *insn);
enum step native_gather(struct vcpu *vcpu, const struct insn *insn);
