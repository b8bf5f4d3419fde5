/*
 * What a debugger wants of vCPUs: breakpoints, watchpoints, single steps. Nothing of it is visible
 * to the guest: no byte of its memory changes, and its debug registers stay its own.
 *
 * Purpose: breakpoints are addresses that the engines know: interp asks before each instruction;
 *          translate makes no unit in which one lies behind the start, and none that begins at one,
 *          so that its run loop is met there. Pages with watchpoints never enter the soft TLB, so
 *          every access to them comes by the slow path, which compares addresses.
 * Rules:   - Addresses are linear ones, in every address space.
 *          - A watchpoint stops behind the instruction (or the delivery of an event) that made the
 *            access, and in a repeated string instruction behind the iteration. Page walks and
 *            instruction fetches are no accesses.
 *          - A step is one instruction, one iteration of a repeated one, or the exception that it
 *            raises. No interrupt and no NMI is delivered before it. A halted vCPU waits for an
 *            event and stops at the first instruction of its handler.
 *          - A vCPU that goes on from a breakpoint that was reported executes the instruction
 *            there.
 * Threads: points change, and debug_* of the machine run, only while no vCPU does; the rest
 *          belongs to the vCPU's thread. General registers only.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "memory/memory.h"

struct vcpu;

enum { DEBUG_BREAKS_MAX = 1024, DEBUG_WATCHES_MAX = 64 };

enum watch_kind { WATCH_WRITE = 1, WATCH_READ = 2, WATCH_ACCESS = WATCH_WRITE | WATCH_READ };

struct debug_watch {
    gva_t first, last; /* its bytes */
    enum watch_kind kind;
};

struct debug_points {
    unsigned break_count, watch_count;
    gva_t breaks[DEBUG_BREAKS_MAX]; /* ascending */
    struct debug_watch watches[DEBUG_WATCHES_MAX];
};

enum debug_stop_kind { DEBUG_STOP_BREAK, DEBUG_STOP_WATCH, DEBUG_STOP_STEP };

/* Why a vCPU came back with EXIT_DEBUG. */
struct debug_stop {
    enum debug_stop_kind kind;
    enum watch_kind watch; /* DEBUG_STOP_WATCH: of the point */
    gva_t address;         /* of the breakpoint, or of the first watched byte of the access */
};

/* What one vCPU is to do; the machine fills it in, the engine works on it. */
struct debug {
    const struct debug_points *points; /* borrowed */
    bool is_step;                      /* one instruction, then EXIT_DEBUG */
    bool is_past;                      /* the breakpoint at `past` was reported */
    gva_t past;
    struct debug_stop stop; /* after EXIT_DEBUG */
    /* the engine's own */
    bool is_armed; /* the next instruction is the one to step, or the one that is past */
    bool is_woken; /* a halted vCPU took an event instead of a step */
    bool is_hit;   /* `stop` says which watchpoint */
};

/* Is there a breakpoint at this address? */
bool debug_has_break(const struct debug_points *points, gva_t gva);
/* Is there one in [first, last]? */
bool debug_has_break_within(const struct debug_points *points, gva_t first, gva_t last);
/* Does a byte of this address's page have a watchpoint? */
bool debug_is_watched(const struct debug *debug, gva_t gva);
/* An access that went the slow way. */
void debug_note_access(struct vcpu *vcpu, gva_t gva, unsigned size, bool write);
/* An interrupt or NMI was delivered. */
void debug_note_event(struct vcpu *vcpu);

/* Must repeated string instructions stop after each iteration? */
bool debug_divides(const struct debug *debug);
/* May no event be delivered now? */
bool debug_holds_events(const struct vcpu *vcpu);

/*
 * Between two instructions, first: is what was asked for done? Then `stop` says what, and run()
 * returns EXIT_DEBUG.
 */
bool debug_is_over(struct vcpu *vcpu);

enum debug_verdict {
    DEBUG_RUN,  /* go on */
    DEBUG_STEP, /* execute one instruction, then ask debug_is_over() */
    DEBUG_STOP, /* `stop` says why: return EXIT_DEBUG */
};
/* Then, when no event is to be delivered any more: what about the instruction at RIP? */
enum debug_verdict debug_before(struct vcpu *vcpu);
