/*
 * What this host offers to a virtual machine: facts for `doppel doctor`, each found by trying it,
 * in a child process where trying has effects.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "control/kvm_probe.h"
#include "x86/cpuid.h"

enum { HOST_TEXT = 256, HOST_FINDINGS = 9 };

/* One thing that is there or not, and what follows from it. */
struct host_finding {
    const char *key; /* "io_uring"; never changes, programs read it */
    bool ok;
    char text[HOST_TEXT];
};

struct host {
    char cpu[64];
    unsigned cpu_count;
    struct host_finding models[CPU_MODEL_COUNT]; /* which CPU models can be offered */
    uint64_t memory_total, memory_available;     /* bytes */
    struct kvm_probe kvm;
    struct host_finding findings[HOST_FINDINGS];
    size_t finding_count;
    struct host_finding engines[2]; /* key: the engine's name */
    const char *engine;             /* what --engine auto picks; NULL: nothing runs here */
    char engine_reason[HOST_TEXT];
};

void host_examine(struct host *ret_host);
