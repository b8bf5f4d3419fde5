/*
 * What an engine may ask of the machine (struct engine_host): each call finds the owner of a port,
 * address or MSR. Runs on vCPU threads, on the hot path of device accesses. General registers only,
 * for the sake of is_quick_msr().
 */
#include "bus/bus.h"
#include "device/irqchip/irqchip.h"
#include "device/paravirt/kvmclock.h"
#include "machine/vm_internal.h"

/*
 * Around each access to a device, in the deterministic mode: it sees the time of the instruction
 * that makes it, and an alarm that it sets is not overrun.
 */
static void *access_begin(void *owner)
{
    step_time_advance(owner);
    return owner;
}

static void access_end(struct vm **vm)
{
    step_time_arm(*vm);
}

#define ACCESS(vm, owner) __attribute__((cleanup(access_end))) struct vm *vm = access_begin(owner)

static void count(struct vm *vm, unsigned vcpu, enum machine_counter counter)
{
    counter_add(&vm->vcpus[vcpu].accesses[counter], 1);
}

static uint32_t port_read(void *owner, unsigned vcpu, uint16_t port, unsigned size)
{
    count(owner, vcpu, COUNT_PORT_READS);
    ACCESS(vm, owner);
    return bus_port_read(vm->board.bus, port, size);
}

static void port_write(void *owner, unsigned vcpu, uint16_t port, unsigned size, uint32_t value)
{
    count(owner, vcpu, COUNT_PORT_WRITES);
    ACCESS(vm, owner);
    bus_port_write(vm->board.bus, port, size, value);
}

static uint64_t mmio_read(void *owner, unsigned vcpu, gpa_t gpa, unsigned size)
{
    count(owner, vcpu, COUNT_MMIO_READS);
    ACCESS(vm, owner);
    if (irqchip_claims(vm->board.irqchip, vcpu, gpa)) {
        count(vm, vcpu, COUNT_LAPIC_ACCESSES);
        return irqchip_mmio_read(vm->board.irqchip, vcpu, gpa % PAGE_SIZE, size);
    }
    return bus_mmio_read(vm->board.bus, gpa, size);
}

static void mmio_write(void *owner, unsigned vcpu, gpa_t gpa, unsigned size, uint64_t value)
{
    count(owner, vcpu, COUNT_MMIO_WRITES);
    ACCESS(vm, owner);
    if (irqchip_claims(vm->board.irqchip, vcpu, gpa)) {
        count(vm, vcpu, COUNT_LAPIC_ACCESSES);
        irqchip_mmio_write(vm->board.irqchip, vcpu, gpa % PAGE_SIZE, size, value);
        return;
    }
    bus_mmio_write(vm->board.bus, gpa, size, value);
}

static bool msr_read(void *owner, unsigned vcpu, uint32_t index, uint64_t *ret_value)
{
    count(owner, vcpu, COUNT_MSR_READS);
    ACCESS(vm, owner);
    if (irqchip_owns_msr(index)) {
        count(vm, vcpu, COUNT_LAPIC_ACCESSES);
        return irqchip_msr_read(vm->board.irqchip, vcpu, index, ret_value);
    }
    if (kvmclock_owns_msr(index)) {
        return kvmclock_msr_read(vm->board.kvmclock, vcpu, index, ret_value);
    }
    return false;
}

static bool msr_write(void *owner, unsigned vcpu, uint32_t index, uint64_t value)
{
    count(owner, vcpu, COUNT_MSR_WRITES);
    ACCESS(vm, owner);
    if (irqchip_owns_msr(index)) {
        count(vm, vcpu, COUNT_LAPIC_ACCESSES);
        return irqchip_msr_write(vm->board.irqchip, vcpu, index, value);
    }
    if (kvmclock_owns_msr(index)) {
        return kvmclock_msr_write(vm->board.kvmclock, vcpu, index, value);
    }
    return false;
}

/* In the deterministic mode an access to any device may expire alarms of all others. */
static bool is_quick_msr(void *owner, uint32_t index)
{
    struct vm *vm = owner;
    return irqchip_owns_msr(index) && vm->config->time_mode == TIME_HOST;
}

static int interrupt_acknowledge(void *owner, unsigned vcpu)
{
    struct vm *vm = owner;
    return irqchip_acknowledge(vm->board.irqchip, vcpu);
}

static uint64_t cr8_read(void *owner, unsigned vcpu)
{
    count(owner, vcpu, COUNT_CR8_ACCESSES);
    struct vm *vm = owner;
    return irqchip_cr8_read(vm->board.irqchip, vcpu);
}

static void cr8_write(void *owner, unsigned vcpu, uint64_t value)
{
    count(owner, vcpu, COUNT_CR8_ACCESSES);
    struct vm *vm = owner;
    irqchip_cr8_write(vm->board.irqchip, vcpu, value);
}

static void tsc_changed(void *owner, unsigned vcpu, uint64_t tsc_offset)
{
    struct vm *vm = owner;
    vm->vcpus[vcpu].tsc_offset = tsc_offset;
    irqchip_tsc_changed(vm->board.irqchip, vcpu);
}

struct engine_host engine_host_for(struct vm *vm)
{
    return (struct engine_host){
        .port_read = port_read,
        .port_write = port_write,
        .mmio_read = mmio_read,
        .mmio_write = mmio_write,
        .msr_read = msr_read,
        .msr_write = msr_write,
        .is_quick_msr = is_quick_msr,
        .hypercall = vm_hypercall,
        .interrupt_acknowledge = interrupt_acknowledge,
        .cr8_read = cr8_read,
        .cr8_write = cr8_write,
        .tsc_changed = tsc_changed,
        .owner = vm,
    };
}
