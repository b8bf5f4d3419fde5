/*
 * What the helpers share: the place that called, and the ways to go on. All run on the vCPU's own
 * thread, with guest vector state in the CPU (helper.c).
 */
#pragma once

#include "engine/translate/internal.h"

/*
 * Where a helper was called from, taken before anything that may wait: while a vCPU waits, another
 * may forget all units, and then site numbers mean something else.
 */
struct place {
    uint64_t rip;
    gpa_t gpa;
    const struct unit *unit;
    uint64_t inline_address; /* behind the instruction, or 0 */
    uint64_t retry_address;  /* of the soft TLB check */
    uint32_t generation, drops;
    int uncounted;
    struct recipe recipe; /* of the flags, which may be nowhere yet */
    unsigned length;      /* of the instruction, where its site says so (site.size) */
};

/* ---- helper.c ---- */
/* The place of a site. Only to go on there again: its flags may be a recipe. */
struct place place_at(const struct block *block, uint32_t site);
/* Before anything else: make and save flags that are a recipe at the place. */
void place_save_flags(struct block *block, const struct place *place);
/* Both. */
struct place place_of(struct block *block, uint32_t site);
/*
 * May the unit of a place be entered again in the middle? It must be the same, and the host
 * addresses that it may hold (compile_group.c) must still be good.
 */
bool place_is_current(const struct block *block, const struct place *place);
/* Run the instruction in interp and go on behind it, or wherever it led. */
uint64_t place_execute(struct block *block, const struct place *place);
/* Go on at this place again, but by its address: the unit is not the same any more. */
uint64_t place_start_over(struct block *block, const struct place *place);

/* ---- lookup.c ---- */
/* To the run loop, with a reason. */
uint64_t block_leave(struct block *block, enum leave_reason reason);
/* The same to make the unit for state.rip in a mode. */
uint64_t block_leave_to_translate(struct block *block, uint16_t mode);
/* The same for what a step in interp did, from gathered state. */
uint64_t block_leave_step(struct block *block, enum step step);
/* The unit at rip in this mode, or 0 if there is none yet (or its page is not there). */
uint64_t block_find(struct block *block, uint64_t rip, uint16_t mode);
/* The unit that a SITE_LINK leads to, whose slot is filled; or 0. */
uint64_t block_find_link(struct block *block, uint32_t site, uint16_t mode);
/* What was looked up for state.rip is void: go on there in a mode, or leave to translate. */
uint64_t block_look_again(struct block *block, uint16_t mode);
/* After C code has changed the state: go on in units (at inline_address if it is not 0), or leave.
 */
uint64_t block_resume(struct block *block, uint64_t inline_address);

/* ---- x87.c ---- */
/* In an XSAVE image of the host: the guest's x87 instruction and operand instead of our own. */
void x87_pointers_hide(struct block *block, uint8_t *xsave);

/* ---- recipe.c ---- */
/* The flags that a recipe makes of registers and kept values, as LAHF and SETO leave them. */
uint16_t recipe_flags(const uint64_t *gpr, const uint64_t *kept, const struct recipe *recipe);
