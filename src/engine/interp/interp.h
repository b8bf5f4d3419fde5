/*
 * interp: one instruction at a time. The oracle of the other engines, and their slow path.
 *
 * Knows: everything architectural. An instruction is decoded once (decode.h) and executed on
 *        struct vcpu; nothing of it is visible before it completes.
 * Integer and system instructions are C, built for general registers only; x87, SSE, AVX and
 * their kind run on the host CPU, one instruction in a snippet with its memory operand in a
 * bounce buffer (native.c), on the vector state in vcpu->state.xsave.
 */
#pragma once

#include "engine/vcpu.h"
#include "x86/decode.h"

/*
 * Give a vCPU what interp needs beside the state: the snippets in which vector instructions run.
 * Once, on the vCPU's own thread (it also takes that thread's SIGFPE). Detach frees it.
 */
int interp_attach(struct vcpu *vcpu) __attribute__((warn_unused_result));
void interp_detach(struct vcpu *vcpu);

/*
 * Execute one decoded instruction that stands at state.rip. Does not deliver exceptions.
 * `vcpu->state.xsave` must hold the vector state for instructions that need it.
 */
enum step interp_execute(struct vcpu *vcpu, const struct insn *insn);

/* Behind interp_execute(): deliver its exception, or the traps that it leaves. */
enum step interp_conclude(struct vcpu *vcpu, enum step step);

/* Does executing this instruction touch x87, SSE, AVX or any other XSAVE-managed state? */
bool interp_uses_vector_state(const struct insn *insn);

/* Fetch, decode, execute one instruction and deliver its exception, if any. */
enum step interp_step(struct vcpu *vcpu);

/*
 * Deliver vcpu->exception through the IDT (with double and triple fault rules, SDM volume 3,
 * table 6-5): STEP_NEXT, STEP_SHUTDOWN or STEP_ERROR.
 */
enum step interp_deliver_exception(struct vcpu *vcpu);
/* Deliver an external interrupt or (vector 2) an NMI. */
enum step interp_deliver_interrupt(struct vcpu *vcpu, uint8_t vector);

/*
 * Look at kicks before an instruction: INIT, SIPI, NMI, interrupts (as IF and shadows allow).
 * Returns STEP_NEXT to run on, STEP_HALT to wait.
 */
enum step interp_poll(struct vcpu *vcpu);
