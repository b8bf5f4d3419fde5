/* The facts of machine/stats.h as JSON: the answer to the command "stats". */
#pragma once

#include <jansson.h>

struct vm;

/*
 * {"name", "engine", "vcpus": [{TOPIC: {KEY: number}, "slow_instructions": {FORM: number}}],
 *  "total": the sum over vCPUs and other threads, "regions": [{"name", "kind", "base", "reads",
 *  "writes"}]}. A new reference. The loop's thread, or any while the machine does not run.
 */
json_t *stats_json(struct vm *vm);
