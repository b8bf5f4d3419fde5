/*
 * Tests only: a machine of some vCPUs that translate, with the smallest guest, and with a device at
 * whose ports a vCPU waits.
 */
#pragma once

#include <semaphore.h>
#include <string.h>
#include <unistd.h>

#include "engine/test_engine.h"
#include "engine/translate/internal.h"
#include "engine/translate/test_guest.h"
#include "x86/cpuid.h"

enum { VCPUS = 4, CODE = 0xa000 };

struct fixture {
    struct memory *memory;
    struct cpuid_table *cpuid;
    struct translate_vm *vm;
    pthread_t threads[VCPUS];
    uint64_t rounds[VCPUS]; /* RCX of each vCPU in the end */
    sem_t in_device, leave_device;
};

static inline void wait_in_device(void *owner, unsigned vcpu, uint16_t port, unsigned size,
                                  uint32_t value)
{
    struct fixture *fixture = owner;
    sem_post(&fixture->in_device);
    while (sem_wait(&fixture->leave_device) != 0) {
    }
}

static inline int setup(void **state)
{
    static struct fixture fixture;
    const struct memory_range ram = {0, TEST_GUEST_RAM};
    const struct cpuid_config model = {.model = CPU_MODEL_V2, .cpus = VCPUS, .tsc_hz = 1000000000};
    struct engine_vm *vm;
    fixture = (struct fixture){0};
    sem_init(&fixture.in_device, 0, 0);
    sem_init(&fixture.leave_device, 0, 0);
    if (memory_new(&ram, 1, "world_test", &fixture.memory) ||
        cpuid_table_new(&model, &fixture.cpuid) || test_guest_map(fixture.memory)) {
        return -1;
    }
    struct engine_config config = {.memory = fixture.memory,
                                   .cpuid = fixture.cpuid,
                                   .host = test_host(&fixture),
                                   .cpus = VCPUS,
                                   .cache_size = MIB(4)};
    config.host.port_write = wait_in_device;
    int r = translate_engine.vm_new(&config, &vm);
    fixture.vm = (struct translate_vm *)vm;
    *state = &fixture;
    alarm(60);
    return r;
}

static inline int teardown(void **state)
{
    struct fixture *fixture = *state;
    alarm(0);
    translate_engine.vm_free((struct engine_vm *)fixture->vm);
    cpuid_table_free(fixture->cpuid);
    memory_free(fixture->memory);
    return 0;
}

static inline void put(struct fixture *fixture, gpa_t at, const void *bytes, size_t size)
{
    assert_int_equal(memory_write(fixture->memory, at, bytes, size), 0);
}
