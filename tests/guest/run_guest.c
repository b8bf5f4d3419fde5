/*
 * Runs one guest test on the bare engines: a kernel in memory, one vCPU, and of devices only a
 * serial port to write to and the debug-exit port. On two engines the test must end in the same
 * CPU state and memory. With --move the guest is carried to a fresh memory and a fresh engine
 * every so many lines that it prints, which shows what the saved state is missing.
 *
 *     run_guest [--engine interp|translate|both] [--cpu-model v2|v3|host] [--move LINES]
 *               [--seconds LIMIT] [--quiet] TEST
 *
 * Guests that need interrupt controllers or a second CPU run in the whole machine (move_machine and
 * compare_machine).
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include "base/error.h"
#include "boot/boot.h"
#include "engine/test_engine.h"
#include "machine/code_policy.h"
#include "x86/cpuid.h"

enum {
    RAM_SIZE = 32 << 20,
    DEBUG_EXIT = 0xf4,
    SERIAL = 0x3f8,
    PASS = 0x10,
    TSC_HZ = 1000000000,
};

struct options {
    enum cpu_model model;
    unsigned move_lines; /* 0: never */
    unsigned seconds;
    bool quiet;
    struct code_policy code;
};

/* One guest on one engine, for as long as it is not moved. */
struct guest {
    const struct options *options;
    struct test_engine engine;
    struct cpuid_table *cpuid;
    char *output; /* of the serial port */
    size_t output_size;
    FILE *serial;
    unsigned lines, next_move;
    unsigned moves;
    bool exited;
    uint32_t exit_value;
    uint64_t cr8;
};

static const struct test_engine *running; /* for the alarm */
static volatile sig_atomic_t timed_out;

static void on_alarm(int signal)
{
    timed_out = 1;
    if (running) {
        running->ops->kick(running->vcpu, KICK_STOP, 0);
    }
}

static uint32_t port_read(void *owner, unsigned vcpu, uint16_t port, unsigned size)
{
    return port == SERIAL + 5 ? 0x60 : UINT32_MAX >> (32 - 8 * size);
}

static void port_write(void *owner, unsigned vcpu, uint16_t port, unsigned size, uint32_t value)
{
    struct guest *guest = owner;
    if (port == DEBUG_EXIT) {
        guest->exited = true;
        guest->exit_value = value;
    } else if (port == SERIAL) {
        fputc((int)(value & 0xff), guest->serial);
        if ((value & 0xff) == '\n' && ++guest->lines == guest->next_move) {
            guest->engine.ops->kick(guest->engine.vcpu, KICK_STOP, 0);
        }
    }
}

static uint64_t cr8_read(void *owner, unsigned vcpu)
{
    struct guest *guest = owner;
    return guest->cr8;
}

static void cr8_write(void *owner, unsigned vcpu, uint64_t value)
{
    struct guest *guest = owner;
    guest->cr8 = value;
}

/* A fresh memory and a fresh engine; both empty. */
static int guest_open(struct guest *guest, const struct engine_ops *ops)
{
    static const struct memory_range ranges[] = {{0, 0xa0000}, {0x100000, RAM_SIZE - 0x100000}};
    struct engine_config config = {
        .cpuid = guest->cpuid,
        .host = test_host(guest),
        .cpus = 1,
        .time_mode = TIME_DETERMINISTIC,
        .code = guest->options->code,
    };
    config.host.port_read = port_read;
    config.host.port_write = port_write;
    config.host.cr8_read = cr8_read;
    config.host.cr8_write = cr8_write;
    return test_engine_open(&guest->engine, ops, ranges, 2, config, 0);
}

static int guest_load(struct guest *guest, const char *path)
{
    static const struct e820_entry map[] = {
        {0, 0xa0000, E820_RAM},
        {0x100000, RAM_SIZE - 0x100000, E820_RAM},
    };
    const struct boot_board board = {
        .e820 = map, .e820_count = 2, .scratch_base = 0x60000, .scratch_size = 0x30000};
    struct boot_request request = {.command_line = "guest test"};
    int r = boot_file_read(path, RAM_SIZE, &request.kernel);
    if (r) {
        return r;
    }
    struct cpu_state state;
    cpu_state_reset(&state, true);
    r = boot_load(guest->engine.memory, &board, &request, &state);
    boot_file_free(&request.kernel);
    if (!r) {
        guest->engine.ops->set_state(guest->engine.vcpu, &state);
    }
    return r;
}

static int copy_memory(struct memory *from, struct memory *to)
{
    static uint8_t page[PAGE_SIZE];
    for (gpa_t gpa = 0; gpa < RAM_SIZE; gpa += PAGE_SIZE) {
        if (!memory_is_ram(from, gpa, PAGE_SIZE)) {
            continue;
        }
        int r = memory_read(from, gpa, page, PAGE_SIZE);
        r = r ? r : memory_write(to, gpa, page, PAGE_SIZE);
        if (r) {
            return r;
        }
    }
    return 0;
}

/* Carry the guest over to a fresh engine as a snapshot would. */
static int guest_move(struct guest *guest)
{
    struct test_engine old = guest->engine;
    struct cpu_state state;
    int r = test_engine_state_saved(&old, &state);
    r = r ? r : guest_open(guest, old.ops);
    r = r ? r : copy_memory(old.memory, guest->engine.memory);
    if (!r) {
        old.ops->set_state(guest->engine.vcpu, &state);
    }
    test_engine_close(&old);
    guest->moves++;
    return r;
}

static int guest_run(struct guest *guest)
{
    for (;;) {
        if (guest->options->move_lines) {
            guest->next_move = guest->lines + guest->options->move_lines;
        }
        running = &guest->engine;
        enum exit_kind kind = guest->engine.ops->run(guest->engine.vcpu);
        running = NULL;
        if (timed_out) {
            return fail(-ETIME, "still running after %u s", guest->options->seconds);
        }
        int r = 0;
        switch (kind) {
        case EXIT_INTERRUPTED:
            r = guest->options->move_lines ? guest_move(guest) : 0;
            if (r) {
                return r;
            }
            break;
        case EXIT_HALT:
            return guest->exited ? 0 : fail(-EPROTO, "halted without an end");
        case EXIT_TRIPLE_FAULT:
            return fail(-EPROTO, "triple fault");
        case EXIT_DEBUG:
            return fail(-EPROTO, "a debugger that nobody asked for");
        case EXIT_ERROR:
            return fail(-EPROTO, "the engine gave up");
        }
    }
}

static uint64_t memory_hash(struct memory *memory)
{
    static uint8_t page[PAGE_SIZE];
    uint64_t hash = 14695981039346656037ull;
    for (gpa_t gpa = 0; gpa < RAM_SIZE; gpa += PAGE_SIZE) {
        if (memory_is_ram(memory, gpa, PAGE_SIZE) && !memory_read(memory, gpa, page, PAGE_SIZE)) {
            for (unsigned i = 0; i < PAGE_SIZE; i += 8) {
                uint64_t word;
                memcpy(&word, page + i, 8);
                hash = (hash ^ word) * 1099511628211ull;
            }
        }
    }
    return hash;
}

static void dump_state(struct guest *guest)
{
    struct cpu_state state;
    guest->engine.ops->get_state(guest->engine.vcpu, &state);
    fprintf(stderr, "rip %llx rsp %llx rflags %llx cr0 %llx cr2 %llx cr3 %llx cr4 %llx cs %x\n",
            (unsigned long long)state.rip, (unsigned long long)state.gpr[RSP],
            (unsigned long long)state.rflags, (unsigned long long)state.cr0,
            (unsigned long long)state.cr2, (unsigned long long)state.cr3,
            (unsigned long long)state.cr4, state.segment[CS].selector);
}

/* What a run ended with, for the comparison of two. */
struct outcome {
    struct cpu_state state;
    uint64_t hash;
    char *output;
};

/* All that the guest printed, or what failed. */
static void print_lines(const char *output, bool only_failures)
{
    while (*output) {
        int length = (int)strcspn(output, "\n");
        const char *failure = strstr(output, "FAIL");
        if (!only_failures || (failure && failure < output + length)) {
            printf("%.*s\n", length, output);
        }
        output += length + (output[length] != 0);
    }
}

static int run_on(const struct engine_ops *ops, const struct options *options, const char *path,
                  struct outcome *ret_outcome)
{
    struct guest guest = {.options = options};
    const struct cpuid_config config = {.model = options->model, .cpus = 1, .tsc_hz = TSC_HZ};
    guest.serial = open_memstream(&guest.output, &guest.output_size);
    int r = cpuid_table_new(&config, &guest.cpuid);
    r = r ? r : guest_open(&guest, ops);
    r = r ? r : guest_load(&guest, path);
    timed_out = 0;
    alarm(options->seconds);
    r = r ? r : guest_run(&guest);
    alarm(0);
    fclose(guest.serial);
    if (r) {
        printf("%s: %s: %s\n", path, ops->name, trail_text());
        if (guest.engine.vcpu) {
            dump_state(&guest);
        }
    } else if (guest.exit_value != PASS) {
        printf("%s: %s: a check failed\n", path, ops->name);
        r = -EPROTO;
    }
    print_lines(guest.output, options->quiet);
    if (!r) {
        ops->get_state(guest.engine.vcpu, &ret_outcome->state);
        ret_outcome->hash = memory_hash(guest.engine.memory);
        printf("%s: %s passed, %u lines, moved %u times\n", path, ops->name, guest.lines,
               guest.moves);
    }
    ret_outcome->output = guest.output;
    test_engine_close(&guest.engine);
    cpuid_table_free(guest.cpuid);
    return r;
}

static void report_difference(void *owner, const char *section, const char *field)
{
    printf("the engines differ in %s.%s\n", section, field);
}

static int compare(struct outcome *a, struct outcome *b)
{
    int r = 0;
    test_spell_out_vectors(a->state.xsave);
    test_spell_out_vectors(b->state.xsave);
    for (unsigned i = 0; i < XSAVE_AREA_SIZE; i++) {
        if (a->state.xsave[i] != b->state.xsave[i]) {
            printf("XSAVE byte %u: interp %02x, translate %02x\n", i, a->state.xsave[i],
                   b->state.xsave[i]);
        }
    }
    struct visitor *out = visitor_new_write();
    cpu_state_visit(&a->state, out);
    size_t size;
    const void *stream = visitor_buffer(out, &size);
    struct visitor *against = visitor_new_compare(stream, size, report_difference, NULL);
    cpu_state_visit(&b->state, against);
    if (visitor_error(against) || visitor_differences(against)) {
        r = -EPROTO;
    }
    if (a->hash != b->hash) {
        printf("the engines differ in memory\n");
        r = -EPROTO;
    }
    if (strcmp(a->output, b->output)) {
        printf("the engines differ in what the guest printed\n");
        r = -EPROTO;
    }
    visitor_free(against);
    visitor_free(out);
    return r;
}

static int run(const char *engine, const struct options *options, const char *path)
{
    struct outcome *outcomes = calloc(2, sizeof *outcomes);
    int r = -EINVAL;
    if (!strcmp(engine, "interp")) {
        r = run_on(&interp_engine, options, path, &outcomes[0]);
    } else if (!strcmp(engine, "translate")) {
        r = run_on(&translate_engine, options, path, &outcomes[0]);
    } else if (!strcmp(engine, "both")) {
        r = run_on(&interp_engine, options, path, &outcomes[0]);
        int other = run_on(&translate_engine, options, path, &outcomes[1]);
        r = r ? r : other;
        r = r ? r : compare(&outcomes[0], &outcomes[1]);
    } else {
        fprintf(stderr, "unknown engine '%s' (known: interp, translate, both)\n", engine);
    }
    free(outcomes[0].output);
    free(outcomes[1].output);
    free(outcomes);
    return r;
}

int main(int argc, char **argv)
{
    static const struct option known[] = {
        {"engine", required_argument, NULL, 'e'},
        {"cpu-model", required_argument, NULL, 'c'},
        {"move", required_argument, NULL, 'm'},
        {"seconds", required_argument, NULL, 's'},
        {"quiet", no_argument, NULL, 'q'},
        {"code", required_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    struct options options = {.model = CPU_MODEL_V2, .seconds = 60};
    const char *engine = "both";
    int option;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (option) {
        case 'e':
            engine = optarg;
            break;
        case 'c':
            if (cpu_model_parse(optarg, &options.model)) {
                fprintf(stderr, "%s\n", trail_text());
                return 2;
            }
            break;
        case 'm':
            options.move_lines = (unsigned)atoi(optarg);
            break;
        case 's':
            options.seconds = (unsigned)atoi(optarg);
            break;
        case 'q':
            options.quiet = true;
            break;
        case 'h':
            if (code_policy_parse(&options.code, optarg)) {
                fprintf(stderr, "%s\n", trail_text());
                return 2;
            }
            break;
        default:
            return 2;
        }
    }
    if (optind + 1 != argc) {
        fprintf(stderr, "run_guest: one test, please\n");
        return 2;
    }
    signal(SIGALRM, on_alarm);
    return run(engine, &options, argv[optind]) ? 1 : 0;
}
