/*
 * The hypercalls of the KVM interface that this machine answers (Linux,
 * Documentation/virt/kvm/x86/hypercalls.rst): to end another vCPU's HLT, by which a waiter for a
 * lock gives its host CPU to the holder. General registers only, on the caller's thread.
 */
#include "machine/vm_internal.h"

enum {
    HYPERCALL_KICK_CPU = 5,
    NO_SUCH_CALL = 1000, /* KVM_ENOSYS */
};

/* Argument 1 is an APIC id, which is the number of the vCPU. */
static void kick_cpu(struct vm *vm, uint64_t index)
{
    struct engine_vcpu *engine = index < vm->config->cpus ? vm->vcpus[index].engine : NULL;
    if (engine) {
        vm->engine_ops->kick(engine, KICK_UNHALT, 0);
    }
}

uint64_t vm_hypercall(void *owner, unsigned vcpu, uint64_t number, const uint64_t argument[4])
{
    if (number != HYPERCALL_KICK_CPU) {
        return -(uint64_t)NO_SUCH_CALL;
    }
    kick_cpu(owner, argument[1]);
    return 0;
}
