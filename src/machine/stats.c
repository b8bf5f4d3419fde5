/* The facts of stats.h: read from the engine, the memory, the bus and the vCPU threads. */
#include "machine/stats.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "machine/vm_internal.h"
#include "memory/memory.h"
#include "x86/decode.h"

/* ---- names ---- */

static const struct {
    const char *topic, *key, *text;
} engine_names[] = {
#define NAME(name, topic, key, text) [COUNT_##name] = {topic, key, text},
    ENGINE_COUNTERS(NAME)
#undef NAME
};

static const struct {
    const char *key, *text;
} machine_names[] = {
#define NAME(name, key, text) [COUNT_##name] = {key, text},
    MACHINE_COUNTERS(NAME)
#undef NAME
};

/* SDM volume 3, table 6-1. */
static const char *const exception_names[EXCEPTION_VECTORS] = {
    [0] = "de",  [1] = "db",  [2] = "nmi", [3] = "bp",  [4] = "of",  [5] = "br",
    [6] = "ud",  [7] = "nm",  [8] = "df",  [10] = "ts", [11] = "np", [12] = "ss",
    [13] = "gp", [14] = "pf", [16] = "mf", [17] = "ac", [18] = "mc", [19] = "xm",
};

/* Facts that no table above has. */
static const struct {
    const char *topic, *key, *text;
} other_names[] = {
    {"time", "uptime_ns", "nanoseconds since the machine was made"},
    {"time", "cpu_ns", "nanoseconds of CPU time"},
    {"tiers", "translated_estimate", "instructions in units (estimated from samples)"},
    {"memory", "became_private", "pages that got a frame"},
    {"memory", "settled", "waits for mappings of a page's frame before"},
    {"memory", "code_set", "waits for mappings for writing, to mark a page as code"},
    {"memory", "code_cleared", "pages that hold no code any more"},
    {"memory", "discarded", "frames given back to the host"},
};

const char *stats_text(const char *topic, const char *key)
{
    for (size_t i = 0; i < ARRAY_SIZE(engine_names); i++) {
        if (!strcmp(engine_names[i].topic, topic) && !strcmp(engine_names[i].key, key)) {
            return engine_names[i].text;
        }
    }
    for (size_t i = 0; i < ARRAY_SIZE(machine_names); i++) {
        if (!strcmp("machine", topic) && !strcmp(machine_names[i].key, key)) {
            return machine_names[i].text;
        }
    }
    for (size_t i = 0; i < ARRAY_SIZE(other_names); i++) {
        if (!strcmp(other_names[i].topic, topic) && !strcmp(other_names[i].key, key)) {
            return other_names[i].text;
        }
    }
    return NULL;
}

/* ---- forms of slow instructions ---- */

enum { FORM_TEXT = 64 };

static void append(char *text, const char *more)
{
    size_t length = strlen(text);
    snprintf(text + length, FORM_TEXT - length, "%s", more);
}

static void append_operand(char *text, unsigned packed, bool is_first)
{
    static const char *const kinds[] = {
        [SLOW_OPERAND_REGISTER] = "r",  [SLOW_OPERAND_MEMORY] = "m",
        [SLOW_OPERAND_IMMEDIATE] = "i", [SLOW_OPERAND_VECTOR] = "v",
        [SLOW_OPERAND_SEGMENT] = "seg", [SLOW_OPERAND_CONTROL] = "cr",
        [SLOW_OPERAND_DEBUG] = "dr",
    };
    unsigned kind = packed & 7;
    char operand[16];
    if (kind == SLOW_OPERAND_NONE) {
        return;
    }
    if (kind == SLOW_OPERAND_SEGMENT || kind == SLOW_OPERAND_CONTROL ||
        kind == SLOW_OPERAND_DEBUG) {
        snprintf(operand, sizeof operand, "%s", kinds[kind]);
    } else {
        snprintf(operand, sizeof operand, "%s%u", kinds[kind], 8u << (packed >> 3));
    }
    append(text, is_first ? " " : ", ");
    append(text, operand);
}

static void form_text(uint64_t form, char text[FORM_TEXT])
{
    const char *mnemonic = ZydisMnemonicGetString((ZydisMnemonic)(form & 0xffff));
    text[0] = '\0';
    if (form >> SLOW_FORM_OTHER & 1) {
        append(text, "others");
        return;
    }
    append(text, form >> SLOW_FORM_LOCK & 1 ? "lock " : "");
    append(text, form >> SLOW_FORM_REPEAT & 1 ? "rep " : "");
    append(text, mnemonic ? mnemonic : "?");
    for (unsigned i = 0; i < SLOW_FORM_OPERANDS; i++) {
        unsigned packed = (unsigned)(form >> (SLOW_FORM_SHIFT + SLOW_FORM_BITS * i)) & 63;
        append_operand(text, packed, i == 0);
    }
}

/* ---- times ---- */

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now = {0};
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

void stats_begin(struct vm *vm)
{
    vm->made_tsc = engine_host_tsc();
    vm->made_ns = clock_ns(CLOCK_MONOTONIC);
}

/* A number of TSC cycles, by how fast the TSC was since the machine was made. */
static uint64_t cycles_to_ns(const struct vm *vm, uint64_t cycles)
{
    uint64_t tsc = engine_host_tsc() - vm->made_tsc;
    uint64_t ns = clock_ns(CLOCK_MONOTONIC) - vm->made_ns;
    return tsc ? (uint64_t)((unsigned __int128)cycles * ns / tsc) : 0;
}

static uint64_t thread_ns(const struct vm_vcpu *vcpu)
{
    clockid_t clock;
    return vcpu->has_thread && !pthread_getcpuclockid(vcpu->thread, &clock) ? clock_ns(clock) : 0;
}

/* ---- telling ---- */

struct teller {
    struct vm *vm;
    const struct vm_stats_sink *sink;
};

static void tell(const struct teller *t, int vcpu, const char *topic, const char *key,
                 uint64_t value)
{
    t->sink->number(t->sink->owner, vcpu, topic, key, value);
}

static void tell_counters(const struct teller *t, int vcpu, const struct engine_counters *counters)
{
    for (unsigned i = 0; i < ENGINE_COUNTER_COUNT; i++) {
        uint64_t value = counter_read(&counters->values[i]);
        if (i == COUNT_HALTED_CYCLES) {
            uint64_t since = counter_read(&counters->halted_since);
            value += since ? engine_host_tsc() - since : 0;
        }
        if (i == COUNT_HALTED_CYCLES || i == COUNT_TRANSLATION_CYCLES) {
            value = cycles_to_ns(t->vm, value);
        }
        tell(t, vcpu, engine_names[i].topic, engine_names[i].key, value);
    }
}

static void tell_exceptions(const struct teller *t, int vcpu,
                            const struct engine_counters *counters)
{
    for (unsigned i = 0; i < EXCEPTION_VECTORS; i++) {
        if (exception_names[i]) {
            tell(t, vcpu, "exceptions", exception_names[i], counter_read(&counters->exceptions[i]));
        }
    }
}

static void tell_slow_forms(const struct teller *t, int vcpu,
                            const struct engine_counters *counters)
{
    for (unsigned i = 0; i < SLOW_FORMS; i++) {
        uint64_t form = counter_read(&counters->slow_forms[i].form);
        char text[FORM_TEXT];
        if (form) {
            form_text(form, text);
            t->sink->slow(t->sink->owner, vcpu, text, counter_read(&counters->slow_forms[i].count));
        }
    }
}

/*
 * Instructions in units. Under the deterministic clock all instructions are counted, and these are
 * the rest. Otherwise nothing counts them: the share of samples in units, of the thread's CPU time,
 * at one guest instruction for each cycle of the TSC. That is right to within a small factor, and
 * enough to see whether interp matters.
 */
static uint64_t translated_estimate(const struct vm *vm, const struct vm_vcpu *vcpu,
                                    const struct engine_counters *counters)
{
    const uint64_t *values = counters->values;
    if (vm->config->time_mode == TIME_DETERMINISTIC) {
        uint64_t others = counter_read(&values[COUNT_SLOW_INSTRUCTIONS]) +
                          counter_read(&values[COUNT_SINGLE_STEPS]);
        uint64_t all = vm->engine_ops->instructions(vcpu->engine);
        return all > others ? all - others : 0;
    }
    uint64_t samples = 0;
    for (unsigned i = COUNT_SAMPLE_USER; i <= COUNT_SAMPLE_MACHINE; i++) {
        samples += counter_read(&values[i]);
    }
    uint64_t in_units =
        counter_read(&values[COUNT_SAMPLE_USER]) + counter_read(&values[COUNT_SAMPLE_KERNEL]);
    uint64_t mhz = vm->tsc_hz / 1000000;
    return samples ? thread_ns(vcpu) / 1000 * mhz / samples * in_units : 0;
}

static void tell_vcpu(const struct teller *t, const struct vm_vcpu *vcpu)
{
    int index = (int)vcpu->index;
    const struct engine_vcpu *engine = vcpu->engine;
    tell(t, index, "time", "cpu_ns", thread_ns(vcpu));
    for (unsigned i = 0; i < MACHINE_COUNTER_COUNT; i++) {
        tell(t, index, "machine", machine_names[i].key, counter_read(&vcpu->accesses[i]));
    }
    if (engine) {
        const struct engine_counters *counters = t->vm->engine_ops->counters(engine);
        tell(t, index, "tiers", "translated_estimate", translated_estimate(t->vm, vcpu, counters));
        tell_counters(t, index, counters);
        tell_exceptions(t, index, counters);
        tell_slow_forms(t, index, counters);
    }
}

unsigned vm_samplers_refused(struct vm *vm)
{
    unsigned refused = 0;
    for (unsigned i = 0; i < vm->config->cpus; i++) {
        const struct engine_counters *counters = vm->engine_ops->counters(vm->vcpus[i].engine);
        refused += (unsigned)counter_read(&counters->values[COUNT_SAMPLERS_REFUSED]);
    }
    return refused;
}

const char *vm_vcpu_where(struct vm *vm, unsigned vcpu, uint64_t *ret_rip)
{
    const struct engine_vcpu *engine = vm->vcpus[vcpu].engine;
    return engine_names[vm->engine_ops->where(engine, ret_rip)].text;
}

static void tell_region(void *owner, const struct region *region, bool is_port)
{
    const struct teller *t = owner;
    t->sink->region(t->sink->owner, region->name, is_port, region->base, region->reads,
                    region->writes);
}

void vm_stats(struct vm *vm, const struct vm_stats_sink *sink)
{
    struct teller teller = {.vm = vm, .sink = sink};
    struct memory_events events;
    memory_events(vm->memory, &events);
    tell(&teller, STATS_MACHINE, "time", "uptime_ns", clock_ns(CLOCK_MONOTONIC) - vm->made_ns);
    tell(&teller, STATS_MACHINE, "memory", "became_private", events.became_private);
    tell(&teller, STATS_MACHINE, "memory", "settled", events.settled);
    tell(&teller, STATS_MACHINE, "memory", "code_set", events.code_set);
    tell(&teller, STATS_MACHINE, "memory", "code_cleared", events.code_cleared);
    tell(&teller, STATS_MACHINE, "memory", "discarded", events.discarded);
    for (unsigned i = 0; i < vm->config->cpus; i++) {
        tell_vcpu(&teller, &vm->vcpus[i]);
    }
    tell_counters(&teller, STATS_MACHINE, vm->engine_ops->vm_counters(vm->engine));
    bus_visit(vm->board.bus, tell_region, &teller);
}
