/*
 * The deterministic mode: virtual time is the number of executed instructions, one for each
 * nanosecond, plus what was skipped while the CPU was halted. So a guest without outside input does
 * the same every time. One vCPU; everything here runs on its thread, or while it is parked.
 */
#include "base/test_clock.h"
#include "machine/vm_internal.h"

void step_time_advance(struct vm *vm)
{
    struct engine_vcpu *engine = vm->vcpus[0].engine;
    if (vm->step_clock && engine) {
        test_clock_advance_to(vm->step_clock,
                              vm->engine_ops->instructions(engine) + vm->skipped_ns);
    }
}

void step_time_arm(struct vm *vm)
{
    struct engine_vcpu *engine = vm->vcpus[0].engine;
    if (vm->step_clock && engine) {
        uint64_t next = test_clock_next(vm->step_clock);
        vm->engine_ops->set_deadline(engine, next == UINT64_MAX ? next : next - vm->skipped_ns);
    }
}

/* Let the TSC jump as far as the clock does. */
static void skip(struct vm *vm, struct engine_vcpu *engine, uint64_t ns)
{
    struct cpu_state state;
    vm->engine_ops->get_state(engine, &state);
    state.tsc_offset += ns;
    vm->engine_ops->set_state(engine, &state);
    vm->vcpus[0].tsc_offset += ns;
    vm->skipped_ns += ns;
}

bool step_time_skip(struct vm *vm, struct engine_vcpu *engine)
{
    step_time_advance(vm);
    uint64_t now = clock_now(vm->clock);
    uint64_t next = test_clock_next(vm->step_clock);
    if (next == UINT64_MAX) {
        return false;
    }
    if (next > now) {
        skip(vm, engine, next - now);
    }
    step_time_advance(vm);
    return true;
}

void step_time_restart(struct vm *vm)
{
    struct engine_vcpu *engine = vm->vcpus[0].engine;
    vm->skipped_ns = vm->stopped_ns - vm->engine_ops->instructions(engine);
}
