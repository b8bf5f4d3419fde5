/*
 * The KVM clock: guests read time from a page that says how to scale their TSC, without leaving
 * the CPU. MSRs 4B564D00h/4B564D01h, and 11h/12h for old guests (Linux,
 * Documentation/virt/kvm/x86/msr.rst).
 *
 * Threads: MSR calls on the vCPU's own thread; kvmclock_refresh() with all vCPUs stopped.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "device/device.h"
#include "memory/memory.h"

struct kvmclock_config {
    unsigned cpus;
    struct memory *memory; /* borrowed */
    uint64_t tsc_hz;
    struct clock clock;
    /* All vCPUs share one TSC: its value now. Any thread. */
    uint64_t (*tsc_now)(void *owner);
    /* Nanoseconds since 1970-01-01 UTC. Any thread. */
    uint64_t (*wall_now)(void *owner);
    void *owner;
};

int kvmclock_new(const struct kvmclock_config *config, struct device **ret_device)
    __attribute__((warn_unused_result));

bool kvmclock_owns_msr(uint32_t index);
/* False means #GP(0). */
bool kvmclock_msr_read(struct device *device, unsigned vcpu, uint32_t index, uint64_t *ret_value);
bool kvmclock_msr_write(struct device *device, unsigned vcpu, uint32_t index, uint64_t value);

/*
 * Time or TSC went on differently (the machine was resumed or restored): take a new reference
 * and publish it to all vCPUs. `stopped` tells guests that they did not run for a while.
 */
void kvmclock_refresh(struct device *device, bool stopped);
