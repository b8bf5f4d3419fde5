/*
 * Tests only: a machine of plain memory for the GDB stub. It runs when it is told to and stops when
 * the test says so; what it is asked for is checked.
 */
#pragma once

#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "control/gdb/target.h"

enum { TEST_MEMORY = 0x10000 };

struct test_target {
    struct gdb_target target;
    struct cpu_state states[GDB_CPUS_MAX];
    uint8_t memory[TEST_MEMORY]; /* at 0 */
    bool is_running, has_stop, has_quit;
    unsigned stop_cpu, resumes, resets;
    struct debug_stop stop;
    struct debug_points points;
    enum vm_debug_action actions[GDB_CPUS_MAX];
};

static inline void test_get_state(void *owner, unsigned cpu, struct cpu_state *ret_state)
{
    struct test_target *test = owner;
    ASSERT(!test->is_running && cpu < test->target.cpus);
    memcpy(ret_state, &test->states[cpu], sizeof *ret_state);
}

static inline int test_set_state(void *owner, unsigned cpu, const struct cpu_state *state)
{
    struct test_target *test = owner;
    ASSERT(!test->is_running && cpu < test->target.cpus);
    if (state->cr0 >> 32) {
        return -EINVAL;
    }
    memcpy(&test->states[cpu], state, sizeof *state);
    return 0;
}

static inline size_t test_reach(const struct test_target *test, unsigned cpu, gva_t gva,
                                size_t size)
{
    ASSERT(!test->is_running && cpu < test->target.cpus);
    size_t left = gva < TEST_MEMORY ? TEST_MEMORY - (size_t)gva : 0;
    return size < left ? size : left;
}

static inline size_t test_read(void *owner, unsigned cpu, gva_t gva, void *buffer, size_t size)
{
    struct test_target *test = owner;
    size_t count = test_reach(test, cpu, gva, size);
    memcpy(buffer, count ? test->memory + gva : test->memory, count);
    return count;
}

static inline size_t test_write(void *owner, unsigned cpu, gva_t gva, const void *buffer,
                                size_t size)
{
    struct test_target *test = owner;
    size_t count = test_reach(test, cpu, gva, size);
    memcpy(count ? test->memory + gva : test->memory, buffer, count);
    return count;
}

static inline void test_resume(void *owner, const struct debug_points *points,
                               const enum vm_debug_action *actions)
{
    struct test_target *test = owner;
    bool has_any = false;
    ASSERT(!test->is_running);
    for (unsigned i = 0; i < test->target.cpus; i++) {
        has_any |= actions[i] != VM_DEBUG_HOLD;
        test->actions[i] = actions[i];
    }
    ASSERT(has_any && points->break_count <= DEBUG_BREAKS_MAX &&
           points->watch_count <= DEBUG_WATCHES_MAX);
    for (unsigned i = 1; i < points->break_count; i++) {
        ASSERT(points->breaks[i - 1] < points->breaks[i]);
    }
    for (unsigned i = 0; i < points->watch_count; i++) {
        ASSERT(points->watches[i].first <= points->watches[i].last);
    }
    test->points = *points;
    test->is_running = true;
    test->resumes++;
}

static inline bool test_stop(void *owner, unsigned *ret_cpu, struct debug_stop *ret_stop)
{
    struct test_target *test = owner;
    bool has_stop = test->has_stop;
    test->is_running = test->has_stop = false;
    if (has_stop) {
        *ret_cpu = test->stop_cpu;
        *ret_stop = test->stop;
    }
    return has_stop;
}

static inline int test_reset(void *owner)
{
    struct test_target *test = owner;
    ASSERT(!test->is_running);
    return test->resets++ % 2 ? -EIO : 0;
}

static inline void test_quit(void *owner)
{
    ((struct test_target *)owner)->has_quit = true;
}

/* States as after a reset. `test` is zeroed. */
static inline void test_target_init(struct test_target *test, unsigned cpus, uint64_t xcr0)
{
    test->target = (struct gdb_target){
        .cpus = cpus,
        .xcr0 = xcr0,
        .get_state = test_get_state,
        .set_state = test_set_state,
        .read = test_read,
        .write = test_write,
        .resume = test_resume,
        .stop = test_stop,
        .reset = test_reset,
        .quit = test_quit,
        .owner = test,
    };
    for (unsigned i = 0; i < cpus; i++) {
        cpu_state_reset(&test->states[i], i == 0);
    }
}
