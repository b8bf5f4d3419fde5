/*
 * The machine's calls as interp makes them on a vCPU of this engine: with vector state put aside,
 * and at a safe point, since a device may take its time (but for registers that are quick).
 */
#include "engine/translate/internal.h"

/* Returns whom to call. */
static const struct engine_host *host_enter(struct block *block)
{
    vectors_save(block);
    block_set_activity(block, COUNT_SAMPLE_MACHINE);
    world_park(block);
    return &block->vm->config.host;
}

static void host_leave(struct block *block)
{
    world_unpark(block);
    block_set_activity(block, COUNT_SAMPLE_HELPERS);
}

static uint32_t host_port_read(void *owner, unsigned vcpu, uint16_t port, unsigned size)
{
    struct block *block = owner;
    const struct engine_host *machine = host_enter(block);
    uint32_t value = machine->port_read(machine->owner, vcpu, port, size);
    host_leave(block);
    return value;
}

static void host_port_write(void *owner, unsigned vcpu, uint16_t port, unsigned size,
                            uint32_t value)
{
    struct block *block = owner;
    const struct engine_host *machine = host_enter(block);
    machine->port_write(machine->owner, vcpu, port, size, value);
    host_leave(block);
}

static uint64_t host_mmio_read(void *owner, unsigned vcpu, gpa_t gpa, unsigned size)
{
    struct block *block = owner;
    const struct engine_host *machine = host_enter(block);
    uint64_t value = machine->mmio_read(machine->owner, vcpu, gpa, size);
    host_leave(block);
    return value;
}

static void host_mmio_write(void *owner, unsigned vcpu, gpa_t gpa, unsigned size, uint64_t value)
{
    struct block *block = owner;
    const struct engine_host *machine = host_enter(block);
    machine->mmio_write(machine->owner, vcpu, gpa, size, value);
    host_leave(block);
}

/* Registers of the local APIC: accessed at each interrupt, timer and wake-up. */
static bool is_quick(const struct block *block, uint32_t index)
{
    const struct engine_host *machine = &block->vm->config.host;
    return machine->is_quick_msr && machine->is_quick_msr(machine->owner, index);
}

static bool host_msr_read(void *owner, unsigned vcpu, uint32_t index, uint64_t *ret_value)
{
    struct block *block = owner;
    if (is_quick(block, index)) {
        return block->vm->config.host.msr_read(block->vm->config.host.owner, vcpu, index,
                                               ret_value);
    }
    const struct engine_host *machine = host_enter(block);
    bool known = machine->msr_read(machine->owner, vcpu, index, ret_value);
    host_leave(block);
    return known;
}

static bool host_msr_write(void *owner, unsigned vcpu, uint32_t index, uint64_t value)
{
    struct block *block = owner;
    if (is_quick(block, index)) {
        return block->vm->config.host.msr_write(block->vm->config.host.owner, vcpu, index, value);
    }
    const struct engine_host *machine = host_enter(block);
    bool known = machine->msr_write(machine->owner, vcpu, index, value);
    host_leave(block);
    return known;
}

static uint64_t host_hypercall(void *owner, unsigned vcpu, uint64_t number,
                               const uint64_t argument[4])
{
    const struct engine_host *machine = &((struct block *)owner)->vm->config.host;
    return machine->hypercall(machine->owner, vcpu, number, argument);
}

static int host_interrupt_acknowledge(void *owner, unsigned vcpu)
{
    struct block *block = owner;
    const struct engine_host *machine = host_enter(block);
    int vector = machine->interrupt_acknowledge(machine->owner, vcpu);
    host_leave(block);
    return vector;
}

static uint64_t host_cr8_read(void *owner, unsigned vcpu)
{
    struct block *block = owner;
    const struct engine_host *machine = host_enter(block);
    uint64_t value = machine->cr8_read(machine->owner, vcpu);
    host_leave(block);
    return value;
}

static void host_cr8_write(void *owner, unsigned vcpu, uint64_t value)
{
    struct block *block = owner;
    const struct engine_host *machine = host_enter(block);
    machine->cr8_write(machine->owner, vcpu, value);
    host_leave(block);
}

static void host_tsc_changed(void *owner, unsigned vcpu, uint64_t tsc_offset)
{
    struct block *block = owner;
    const struct engine_host *machine = host_enter(block);
    machine->tsc_changed(machine->owner, vcpu, tsc_offset);
    host_leave(block);
}

struct engine_host block_host(struct block *block)
{
    return (struct engine_host){
        .port_read = host_port_read,
        .port_write = host_port_write,
        .mmio_read = host_mmio_read,
        .mmio_write = host_mmio_write,
        .msr_read = host_msr_read,
        .msr_write = host_msr_write,
        .hypercall = host_hypercall,
        .interrupt_acknowledge = host_interrupt_acknowledge,
        .cr8_read = host_cr8_read,
        .cr8_write = host_cr8_write,
        .tsc_changed = host_tsc_changed,
        .owner = block,
    };
}
