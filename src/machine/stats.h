/*
 * Where guest time goes: every fact that a running machine counts, told one by one. Who shows them
 * (the control socket, --trace stats) decides how.
 *
 * Threads: the loop's thread, or any while vm_run() is not in progress. Nothing is stopped or
 *          locked for it: each number is right, two of them may be of different moments.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct vm;

/* Accesses of guest code to the board, X(NAME, key, what it counts); the topic is "machine". */
#define MACHINE_COUNTERS(X)                                                                        \
    X(PORT_READS, "port_reads", "IN")                                                              \
    X(PORT_WRITES, "port_writes", "OUT")                                                           \
    X(MMIO_READS, "mmio_reads", "loads from devices")                                              \
    X(MMIO_WRITES, "mmio_writes", "stores to devices")                                             \
    X(MSR_READS, "msr_reads", "RDMSR of devices")                                                  \
    X(MSR_WRITES, "msr_writes", "WRMSR of devices")                                                \
    X(CR8_ACCESSES, "cr8", "MOV to and from CR8")                                                  \
    X(LAPIC_ACCESSES, "local_apic", "those among them that are the local APIC's")

enum machine_counter {
#define MACHINE_COUNTER_NAME(name, key, text) COUNT_##name,
    MACHINE_COUNTERS(MACHINE_COUNTER_NAME)
#undef MACHINE_COUNTER_NAME
        MACHINE_COUNTER_COUNT
};

/* Who is told. Topics, keys and names are constant strings; they are part of what programs read. */
enum { STATS_MACHINE = -1 }; /* no vCPU: other threads, or the machine as a whole */
struct vm_stats_sink {
    void (*number)(void *owner, int vcpu, const char *topic, const char *key, uint64_t value);
    /* How often interp executed a form of instructions for units, like "mov r64, cr64". */
    void (*slow)(void *owner, int vcpu, const char *form, uint64_t count);
    void (*region)(void *owner, const char *name, bool is_port, uint64_t base, uint64_t reads,
                   uint64_t writes);
    void *owner;
};

void vm_stats(struct vm *vm, const struct vm_stats_sink *sink);
/* How many vCPUs run without samples, because the host refused their timer. After vm_start(). */
unsigned vm_samplers_refused(struct vm *vm);

/* Where a vCPU was seen last, for people: what it does, and a guest-virtual address. Any thread. */
const char *vm_vcpu_where(struct vm *vm, unsigned vcpu, uint64_t *ret_rip);

/* What a number counts, for people; NULL if there is no such topic and key. */
const char *stats_text(const char *topic, const char *key);
