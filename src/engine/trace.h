/*
 * What an engine tells about single events, if somebody wants to see them. An engine asks
 * engine_traces() first, which is one load and a branch that is never taken otherwise, and only on
 * paths that are slow anyway.
 *
 * The calls come on the thread where the event happens, which may hold locks of the engine: they
 * write what they are told and call nothing of the engine or of the memory.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* X(NAME, name for --trace, what it shows) */
#define ENGINE_TRACES(X)                                                                           \
    X(UNITS, "units", "each unit that is made")                                                    \
    X(CODE, "code", "guest and host code of each unit, side by side")                              \
    X(CHAINS, "chains", "direct exits that are chained or linked")                                 \
    X(RETIRE, "retire", "units that stores and devices retire")                                    \
    X(FLUSH, "flush", "flushes of the soft TLB, switches of address spaces")                       \
    X(EXITS, "exits", "calls from units into C code")                                              \
    X(WORLD, "world", "times all vCPUs were stopped")

enum engine_trace_kind {
#define ENGINE_TRACE_NAME(name, key, text) TRACE_##name,
    ENGINE_TRACES(ENGINE_TRACE_NAME)
#undef ENGINE_TRACE_NAME
        ENGINE_TRACE_COUNT
};

struct trace_event {
    enum engine_trace_kind kind;
    int vcpu;           /* -1: not on a vCPU's thread */
    const char *what;   /* a word */
    const char *detail; /* what `value` is; NULL: nothing */
    uint64_t rip;       /* where the guest is, guest-virtual */
    uint64_t value;
};

/* A unit's host code has two parts: what runs mostly, and what is rare. */
enum trace_part { TRACE_STRAIGHT, TRACE_OUTLINES, TRACE_PARTS };

struct trace_host {
    const uint8_t *bytes; /* where the code can be read */
    uint64_t address;     /* where it runs */
    uint32_t size;
};

/* From here on in a unit's host code it belongs to another guest instruction. */
struct trace_mark {
    uint32_t host;  /* offset in its part of the host code */
    uint16_t guest; /* offset in the guest bytes */
    bool is_outline;
};

struct trace_unit {
    unsigned vcpu;
    bool is_user;
    uint64_t rip;         /* guest-virtual */
    uint64_t gpa;         /* guest-physical */
    const uint8_t *guest; /* its bytes */
    uint32_t guest_size, instructions;
    struct trace_host host[TRACE_PARTS];
    const struct trace_mark *marks; /* ascending in each part; before the first one: entries */
    uint32_t mark_count;
    uint64_t system_call; /* IA32_LSTAR: tells where the guest's kernel is */
};

struct engine_trace {
    uint32_t kinds;  /* a bit for each enum engine_trace_kind */
    bool wants_unit; /* also without UNITS and CODE: somebody writes down where units are */
    void (*event)(void *owner, const struct trace_event *event);
    void (*unit)(void *owner, const struct trace_unit *unit);
    /* Once, if wants_unit: the code that all units share. */
    void (*stubs)(void *owner, uint64_t host_address, uint32_t host_size);
    void *owner;
};

static inline bool engine_traces(const struct engine_trace *trace, enum engine_trace_kind kind)
{
    return __builtin_expect(trace->kinds & 1u << kind, 0);
}
