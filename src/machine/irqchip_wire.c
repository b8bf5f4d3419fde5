/*
 * What the interrupt controllers ask of the machine (struct irqchip_wire): to kick a vCPU, and what
 * its TSC says. Any thread; general registers only, since guests reach their local APIC with their
 * vector state in the CPU (engine_host.is_quick_msr).
 */
#include "device/irqchip/irqchip.h"
#include "machine/vm_internal.h"

uint64_t vm_tsc_now(struct vm *vm, unsigned vcpu)
{
    struct vm_vcpu *v = &vm->vcpus[vcpu];
    uint64_t base = engine_host_tsc();
    if (vm->config->time_mode == TIME_DETERMINISTIC) {
        struct engine_vcpu *engine = v->engine;
        base = engine ? vm->engine_ops->instructions(engine) : 0;
    }
    return base + v->tsc_offset;
}

static void wire_kick(void *owner, unsigned index, enum irqchip_event event, uint8_t vector)
{
    struct vm *vm = owner;
    struct engine_vcpu *engine = vm->vcpus[index].engine;
    if (!engine) {
        return;
    }
    switch (event) {
    case IRQCHIP_INTERRUPT:
        vm->engine_ops->kick(engine, KICK_INTERRUPT, 0);
        break;
    case IRQCHIP_NMI:
        vm->engine_ops->kick(engine, KICK_NMI, 0);
        break;
    case IRQCHIP_INIT:
        /* its thread comes by before it runs on, to reset its local APIC */
        vm->vcpus[index].init_pending = true;
        vm->engine_ops->kick(engine, KICK_INIT | KICK_STOP, 0);
        break;
    case IRQCHIP_SIPI:
        vm->engine_ops->kick(engine, KICK_SIPI, vector);
        break;
    }
}

static uint64_t wire_tsc_now(void *owner, unsigned vcpu)
{
    return vm_tsc_now(owner, vcpu);
}

static uint64_t wire_tsc_to_deadline(void *owner, unsigned vcpu, uint64_t tsc)
{
    struct vm *vm = owner;
    uint64_t now = clock_now(vm->clock);
    uint64_t guest = vm_tsc_now(vm, vcpu);
    if (tsc <= guest) {
        return now;
    }
    unsigned __int128 wait = (unsigned __int128)(tsc - guest) * 1000000000 / vm->tsc_hz;
    return wait > UINT64_MAX - now ? UINT64_MAX : now + (uint64_t)wait;
}

struct irqchip_wire irqchip_wire_for(struct vm *vm)
{
    return (struct irqchip_wire){
        .kick = wire_kick,
        .tsc_now = wire_tsc_now,
        .tsc_to_deadline_ns = wire_tsc_to_deadline,
        .owner = vm,
    };
}
