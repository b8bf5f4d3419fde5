/* A machine under a debugger; see vm_debug.h. */
#include "machine/vm_debug.h"

#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/loop.h"
#include "device/irqchip/irqchip.h"
#include "machine/vm_internal.h"
#include "persist/visitor.h"
#include "x86/walk.h"

void vm_debug_attach(struct vm *vm, const struct vm_debugger *debugger)
{
    vm->debugger = *debugger;
}

unsigned vm_debug_cpus(const struct vm *vm)
{
    return vm->config->cpus;
}

uint64_t vm_debug_xcr0(const struct vm *vm)
{
    return cpuid_xcr0_allowed(vm->cpuid);
}

/* ---- stopping ---- */

/* Unless somebody has paused the machine meanwhile and dealt with it. */
static void tell(void *owner)
{
    struct vm *vm = owner;
    bool is_stopped = false;
    pthread_mutex_lock(&vm->lock);
    for (unsigned i = 0; i < vm->config->cpus; i++) {
        is_stopped |= vm->vcpus[i].is_stopped;
    }
    pthread_mutex_unlock(&vm->lock);
    if (is_stopped && vm->debugger.stopped) {
        vm->debugger.stopped(vm->debugger.owner);
    }
}

void vm_debug_came_back(struct vm_vcpu *vcpu)
{
    struct vm *vm = vcpu->vm;
    pthread_mutex_lock(&vm->lock);
    vcpu->is_stopped = true;
    pthread_mutex_unlock(&vm->lock);
    vcpu_threads_ask_stop(vm);
    loop_post(vm->loop, tell, vm);
}

bool vm_debug_stopped(struct vm *vm, unsigned *ret_vcpu, struct debug_stop *ret_stop)
{
    for (unsigned i = 0; i < vm->config->cpus; i++) {
        struct vm_vcpu *vcpu = &vm->vcpus[i];
        if (vcpu->is_stopped) {
            vcpu->is_stopped = false;
            *ret_vcpu = i;
            *ret_stop = vcpu->debug.stop;
            vcpu->debug.is_past = ret_stop->kind == DEBUG_STOP_BREAK;
            vcpu->debug.past = ret_stop->address;
            return true;
        }
    }
    return false;
}

/* ---- going on ---- */

/*
 * A stop that was not told because another vCPU's was: a breakpoint is met again, the end of a step
 * nobody waits for, but an access is not made twice.
 */
static bool is_to_be_told(const struct vm_vcpu *vcpu, const struct debug_points *points)
{
    const struct debug_stop *stop = &vcpu->debug.stop;
    bool is_watched = false;
    for (unsigned i = 0; i < points->watch_count; i++) {
        const struct debug_watch *watch = &points->watches[i];
        is_watched |= stop->address >= watch->first && stop->address <= watch->last &&
                      stop->watch == watch->kind;
    }
    return vcpu->is_stopped && stop->kind == DEBUG_STOP_WATCH && is_watched;
}

static bool has_new_breaks(const struct debug_points *old, const struct debug_points *new)
{
    for (unsigned i = 0; i < new->break_count; i++) {
        if (!debug_has_break(old, new->breaks[i])) {
            return true;
        }
    }
    return false;
}

void vm_debug_resume(struct vm *vm, const struct debug_points *points,
                     const enum vm_debug_action *actions)
{
    bool is_told = true;
    if (vm->engine_ops->breaks_changed && has_new_breaks(&vm->debug_points, points)) {
        vm->engine_ops->breaks_changed(vm->engine, points);
    }
    memcpy(&vm->debug_points, points, sizeof *points);
    for (unsigned i = 0; i < vm->config->cpus; i++) {
        struct vm_vcpu *vcpu = &vm->vcpus[i];
        vcpu->is_stopped = is_to_be_told(vcpu, points);
        is_told = is_told && !vcpu->is_stopped;
        vcpu->debug.points = &vm->debug_points;
        vcpu->debug.is_step = actions[i] == VM_DEBUG_STEP;
        vcpu->debug.is_armed = vcpu->debug.is_woken = vcpu->debug.is_hit = false;
        vcpu->is_held = actions[i] == VM_DEBUG_HOLD;
    }
    if (is_told) {
        vm_resume(vm);
    } else {
        loop_post(vm->loop, tell, vm);
    }
}

void vm_debug_arm(struct vm_vcpu *vcpu, struct engine_vcpu *engine)
{
    const struct debug *debug = &vcpu->debug;
    bool wants = debug->points && (debug->points->break_count || debug->points->watch_count ||
                                   debug->is_step || debug->is_past);
    vcpu->vm->engine_ops->set_debug(engine, wants ? &vcpu->debug : NULL);
}

/* ---- state and memory ---- */

void vm_debug_get_state(struct vm *vm, unsigned vcpu, struct cpu_state *ret_state)
{
    memcpy(ret_state, &vm->vcpus[vcpu].state, sizeof *ret_state);
    ret_state->cr8 = irqchip_cr8_read(vm->board.irqchip, vcpu);
}

/* What a saved state would be refused for. */
static int check(struct vm *vm, const struct cpu_state *state)
{
    struct cpu_state copy;
    size_t size;
    memcpy(&copy, state, sizeof copy);
    struct visitor *out = visitor_new_write();
    cpu_state_visit(&copy, out);
    const void *stream = visitor_buffer(out, &size);
    struct visitor *in = visitor_new_read(stream, size);
    cpu_state_visit(&copy, in);
    int r = visitor_error(in);
    visitor_free(in);
    visitor_free(out);
    return r ? r : cpu_state_check(state, vm->cpuid);
}

/* PAE paging has the entries that CR3 points to in registers. */
static bool load_pdpte(struct vm *vm, const struct cpu_state *old, struct cpu_state *new)
{
    bool is_pae = (new->cr0 &CR0_PG) && (new->cr4 &CR4_PAE) && !(new->efer &EFER_LMA);
    return !is_pae || new->cr3 == old->cr3 ||
           walk_load_pdpte(vm->memory, new->cr3, cpuid_physical_bits(vm->cpuid), new->pdpte);
}

int vm_debug_set_state(struct vm *vm, unsigned vcpu, const struct cpu_state *state)
{
    struct vm_vcpu *v = &vm->vcpus[vcpu];
    struct cpu_state copy;
    int r = check(vm, state);
    if (r) {
        return r;
    }
    memcpy(&copy, state, sizeof copy);
    if (!load_pdpte(vm, &v->state, &copy)) {
        return fail(-EINVAL, "CR3 points to directories that no CPU could load");
    }
    irqchip_cr8_write(vm->board.irqchip, vcpu, state->cr8);
    copy.cr8 = v->state.cr8; /* the local APIC has it */
    v->debug.is_past = v->debug.is_past && state->rip == v->state.rip;
    memcpy(&v->state, &copy, sizeof copy);
    v->state_changed = true;
    return 0;
}

/* The piece of one page at an address; false if nothing is mapped. */
static bool locate(struct vm *vm, unsigned vcpu, gva_t gva, size_t size, gpa_t *ret_gpa,
                   size_t *ret_size)
{
    const struct walk_mode mode = walk_mode(&vm->vcpus[vcpu].state, cpuid_physical_bits(vm->cpuid),
                                            cpuid_has(vm->cpuid, FEATURE_GIB_PAGES));
    size_t room = PAGE_SIZE - (gva & (PAGE_SIZE - 1));
    *ret_size = size < room ? size : room;
    return walk_look(vm->memory, &mode, gva, ret_gpa);
}

size_t vm_debug_read(struct vm *vm, unsigned vcpu, gva_t gva, void *buffer, size_t size)
{
    size_t done = 0, piece;
    gpa_t gpa;
    while (done < size && locate(vm, vcpu, gva + done, size - done, &gpa, &piece) &&
           !memory_read(vm->memory, gpa, (uint8_t *)buffer + done, piece)) {
        done += piece;
    }
    return done;
}

size_t vm_debug_write(struct vm *vm, unsigned vcpu, gva_t gva, const void *buffer, size_t size)
{
    size_t done = 0, piece;
    gpa_t gpa;
    while (done < size && locate(vm, vcpu, gva + done, size - done, &gpa, &piece) &&
           !memory_write(vm->memory, gpa, (const uint8_t *)buffer + done, piece)) {
        done += piece;
    }
    return done;
}
