/*
 * What --trace, --trace-file, --perf-map and --symbols ask for: the engine's events as lines of
 * text, units as entries of a map that `perf` reads, units with their guest and host code side by
 * side.
 *
 * Threads: vm_trace_new() before the jail, it opens files; the calls of the engine on any thread.
 */
#pragma once

#include "engine/engine.h"

struct vm_config;
struct vm_trace;

/* "stats" is no event of an engine: a table of all counters, at the end. */
enum { TRACE_STATS = ENGINE_TRACE_COUNT };

/* "units,flush" to a mask. -EINVAL with the known names on the trail. */
int trace_list_parse(const char *list, uint32_t *ret_kinds) __attribute__((warn_unused_result));

int vm_trace_new(const struct vm_config *config, struct vm_trace **ret_trace)
    __attribute__((warn_unused_result));
void vm_trace_free(struct vm_trace *trace);
/* What the engine is given; it borrows the trace. */
struct engine_trace vm_trace_engine(struct vm_trace *trace);
/* Text to where the trace goes. */
void vm_trace_write(struct vm_trace *trace, const char *text);
