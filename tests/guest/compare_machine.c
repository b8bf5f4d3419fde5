/*
 * Runs a guest in the whole machine under the deterministic clock, once for each engine named, and
 * compares the machines as they stand at their end: time (which counts the instructions), vCPU,
 * devices, memory and what the serial port wrote. An engine may be named again: it must do the
 * same every time. With --at all are ended at that nanosecond, so that the first difference of two
 * engines can be searched for by halving. Options are those of `doppel run`, as NAME=VALUE.
 *
 *     compare_machine [--at NANOSECONDS] ENGINE ENGINE... kernel=FILE [append=...] ...
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "engine/test_engine.h"
#include "machine/vm_internal.h"
#include "persist/visitor.h"

enum { PASS = 0x10, DIFFERENCES_SHOWN = 20 };

/* What the first machine ended with; the others are compared with it. */
struct first {
    struct visitor *saved;
    char *output;
    size_t output_size;
};

static void on_time(void *owner)
{
    vm_request_end(owner, VM_END_QUIT, 0);
}

static void report_difference(void *owner, const char *section, const char *field)
{
    unsigned *shown = owner;
    if ((*shown)++ < DIFFERENCES_SHOWN) {
        printf("  %s.%s differs\n", section, field);
    }
}

static int compare_state(struct vm *vm, const struct first *first)
{
    size_t size;
    unsigned shown = 0;
    const void *stream = visitor_buffer(first->saved, &size);
    struct visitor *v = visitor_new_compare(stream, size, report_difference, &shown);
    int r = vm_visit(vm, v);
    if (!r && (visitor_differences(v) || !visitor_at_end(v))) {
        r = fail(-EPROTO, "the machines differ");
    }
    visitor_free(v);
    return r;
}

static int compare_output(FILE *output, struct first *first)
{
    char *bytes = NULL;
    size_t size = 0;
    if (getdelim(&bytes, &size, EOF, output) < 0 && ferror(output)) {
        return fail(-EIO, "read the console's file");
    }
    size = (size_t)ftell(output);
    if (!first->output) {
        first->output = bytes;
        first->output_size = size;
        return 0;
    }
    bool same = size == first->output_size && !memcmp(bytes, first->output, size);
    free(bytes);
    return same ? 0 : fail(-EPROTO, "the serial ports wrote different bytes");
}

static bool ended_well(const struct vm_end *end, uint64_t at)
{
    return end->kind == VM_END_POWER_OFF ||
           (end->kind == VM_END_DEBUG_EXIT && end->value == PASS) ||
           (end->kind == VM_END_QUIT && at != UINT64_MAX);
}

static int run_machine(struct vm *vm, uint64_t at, struct first *first)
{
    struct vm_end end;
    void *alarm = clock_alarm_new(vm->clock, on_time, vm);
    clock_alarm_set(vm->clock, alarm, at);
    int r = vm_start(vm);
    if (!r) {
        vm_run(vm, &end);
        printf("%s: end %d after %llu ns, %llu of them halted %s\n", vm_engine_name(vm), end.kind,
               (unsigned long long)vm->stopped_ns, (unsigned long long)vm->skipped_ns, end.message);
        r = ended_well(&end, at) ? 0 : fail(-EPROTO, "the guest failed");
    }
    if (!r) {
        test_spell_out_vectors(vm->vcpus[0].state.xsave);
        if (first->saved) {
            r = compare_state(vm, first);
        } else {
            first->saved = visitor_new_write();
            r = vm_visit(vm, first->saved);
        }
    }
    clock_alarm_free(vm->clock, alarm);
    return r;
}

static int run(struct vm_config *config, const char *engine, uint64_t at, struct first *first)
{
    FILE *output = tmpfile();
    char console[64];
    if (!output) {
        return fail(-errno, "make a file for the console");
    }
    snprintf(console, sizeof console, "file=/proc/self/fd/%d", fileno(output));
    struct vm *vm = NULL;
    int r = vm_config_set(config, "engine", engine);
    r = r ? r : vm_config_set(config, "console", console);
    r = r ? r : vm_config_check(config);
    r = r ? r : vm_new(config, &vm);
    r = r ? r : run_machine(vm, at, first);
    vm_free(vm);
    r = r ? r : compare_output(output, first);
    fclose(output);
    return r;
}

static int usage(void)
{
    fprintf(stderr, "compare_machine: [--at NANOSECONDS] ENGINE ENGINE... NAME=VALUE...\n");
    return 2;
}

int main(int argc, char **argv)
{
    uint64_t at = UINT64_MAX;
    int i = 1, engines = 0;
    if (argc > 2 && !strcmp(argv[1], "--at")) {
        at = strtoull(argv[2], NULL, 0);
        i = 3;
    }
    char **names = argv + i;
    for (; i < argc && argv[i][strcspn(argv[i], ",=")] != '='; i++) {
        engines++;
    }
    if (engines < 2 || i == argc) {
        return usage();
    }
    struct vm_config config;
    vm_config_init(&config);
    int r = vm_config_set(&config, "debug-exit", "0xf4");
    r = r ? r : vm_config_set(&config, "time", "instructions");
    r = r ? r : vm_config_set(&config, "no-reboot", NULL);
    for (; i < argc && !r; i++) {
        char *value = strchr(argv[i], '=');
        if (value) {
            *value++ = 0;
        }
        r = vm_config_set(&config, argv[i], value);
    }
    struct first first = {0};
    for (int n = 0; n < engines && !r; n++) {
        r = run(&config, names[n], at, &first);
    }
    if (r) {
        printf("compare_machine: %s\n", trail_text());
    }
    visitor_free(first.saved);
    free(first.output);
    vm_config_fini(&config);
    return r ? 1 : 0;
}
