/*
 * Tests only: an engine with one vCPU and memory of its own, in a machine without devices. A test
 * changes the calls of the machine that it wants answered.
 */
#pragma once

#include <cpuid.h>
#include <string.h>

#include "engine/engine.h"
#include "memory/memory.h"
#include "persist/visitor.h"

struct test_engine {
    const struct engine_ops *ops;
    struct memory *memory;
    struct engine_vm *vm;
    struct engine_vcpu *vcpu;
};

static inline uint32_t test_port_read(void *owner, unsigned vcpu, uint16_t port, unsigned size)
{
    return UINT32_MAX >> (32 - 8 * size);
}

static inline void test_port_write(void *owner, unsigned vcpu, uint16_t port, unsigned size,
                                   uint32_t value)
{
}

static inline uint64_t test_mmio_read(void *owner, unsigned vcpu, gpa_t gpa, unsigned size)
{
    return UINT64_MAX >> (64 - 8 * size);
}

static inline void test_mmio_write(void *owner, unsigned vcpu, gpa_t gpa, unsigned size,
                                   uint64_t value)
{
}

static inline bool test_msr_read(void *owner, unsigned vcpu, uint32_t index, uint64_t *ret_value)
{
    return false;
}

static inline bool test_msr_write(void *owner, unsigned vcpu, uint32_t index, uint64_t value)
{
    return false;
}

static inline uint64_t test_hypercall(void *owner, unsigned vcpu, uint64_t number,
                                      const uint64_t argument[4])
{
    return -(uint64_t)1000; /* KVM_ENOSYS */
}

static inline int test_interrupt_acknowledge(void *owner, unsigned vcpu)
{
    return -1;
}

static inline uint64_t test_cr8_read(void *owner, unsigned vcpu)
{
    return 0;
}

static inline void test_cr8_write(void *owner, unsigned vcpu, uint64_t value)
{
}

static inline void test_tsc_changed(void *owner, unsigned vcpu, uint64_t tsc_offset)
{
}

/* The machine: nobody answers. `owner` is what the calls get that a test puts in their place. */
static inline struct engine_host test_host(void *owner)
{
    return (struct engine_host){
        .port_read = test_port_read,
        .port_write = test_port_write,
        .mmio_read = test_mmio_read,
        .mmio_write = test_mmio_write,
        .msr_read = test_msr_read,
        .msr_write = test_msr_write,
        .hypercall = test_hypercall,
        .interrupt_acknowledge = test_interrupt_acknowledge,
        .cr8_read = test_cr8_read,
        .cr8_write = test_cr8_write,
        .tsc_changed = test_tsc_changed,
        .owner = owner,
    };
}

/* Make the memory and the vCPU; on failure too test_engine_close() frees what there is. */
static inline int test_engine_open(struct test_engine *engine, const struct engine_ops *ops,
                                   const struct memory_range *ranges, unsigned range_count,
                                   struct engine_config config, unsigned index)
{
    *engine = (struct test_engine){.ops = ops};
    int r = memory_new(ranges, range_count, "test", &engine->memory);
    config.memory = engine->memory;
    r = r ? r : ops->vm_new(&config, &engine->vm);
    return r ? r : ops->vcpu_new(engine->vm, index, &engine->vcpu);
}

static inline void test_engine_close(struct test_engine *engine)
{
    if (engine->vcpu) {
        engine->ops->vcpu_free(engine->vcpu);
    }
    if (engine->vm) {
        engine->ops->vm_free(engine->vm);
    }
    memory_free(engine->memory);
    *engine = (struct test_engine){0};
}

/* A vCPU's state by way of the stream that a snapshot would use: what is not saved is lost. */
static inline int test_engine_state_saved(const struct test_engine *engine,
                                          struct cpu_state *ret_state)
{
    struct cpu_state state;
    size_t size;
    engine->ops->get_state(engine->vcpu, &state);
    engine->ops->take_pending(engine->vcpu, &state);
    struct visitor *out = visitor_new_write();
    cpu_state_visit(&state, out);
    const void *stream = visitor_buffer(out, &size);
    struct visitor *in = visitor_new_read(stream, size);
    memset(ret_state, 0xa5, sizeof *ret_state);
    cpu_state_visit(ret_state, in);
    int r = visitor_error(in);
    visitor_free(in);
    visitor_free(out);
    return r;
}

/*
 * XSTATE_BV only says which components need not be looked at: a component in its initial state may
 * be marked or not. Make it marked, with its contents. Bytes 464 to 511 belong to nobody.
 */
static inline void test_spell_out_vectors(uint8_t *xsave)
{
    uint64_t present;
    memcpy(&present, xsave + 512, 8);
    if (!(present & 1)) {
        memset(xsave, 0, 24);
        memset(xsave + 32, 0, 128);
        xsave[0] = 0x7f, xsave[1] = 3; /* FCW */
    }
    if (!(present & 2)) {
        memset(xsave + 160, 0, 256);
    }
    for (unsigned n = 2; n < 8; n++) { /* AVX and AVX-512 are where leaf 0DH says */
        unsigned size, offset, ecx, edx;
        __cpuid_count(0xd, n, size, offset, ecx, edx);
        if (!(present >> n & 1) && offset + size <= XSAVE_AREA_SIZE) {
            memset(xsave + offset, 0, size);
        }
    }
    memset(xsave + 28, 0, 4); /* MXCSR_MASK is the host's */
    memset(xsave + 464, 0, 112);
}
