/*
 * The instruction differential test: see differential.h.
 *
 *     differential [--engine interp|translate] [--cpu-model v2|v3|host] [--seed N] [--cases N]
 *                  [--only MNEMONIC] [--sample PERCENT] [--report N] [--list] [--sequences N]
 *                  [--unsurveyed PERCENT] [--code POLICY]
 *
 * --code: what translate may do, as in `doppel run --engine translate,POLICY`.
 * --unsurveyed: on a CPU whose own ways nobody has looked into yet (model_specific.c), so many of
 * the forms or sequences may differ; they are shown and counted as skipped.
 * --sequences runs that many sequences of instructions instead of the forms.
 * --cases is the number of cases for each form and operand kind (default 200), --sample runs that
 * share of the forms. Instructions that cannot run this way stand in not-covered.txt with a
 * reason; a form that is offered, not listed there and not run is an error, and so is a name in
 * the list that no instruction has.
 */
#include <cpuid.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "base/error.h"
#include "machine/code_policy.h"
#include "tests/differential/differential.h"

enum { STATES_PER_ENCODING = 10 };

struct run {
    const struct engine_ops *ops;
    enum cpu_model model;
    uint64_t seed;
    unsigned cases, sample, reports;
    const char *only, *list_path;
    bool list;
    unsigned sequences; /* so many of them instead of the forms */
    struct sequence_pool pool;

    struct cpuid_table *cpuid;
    uint64_t components;
    struct native *native;
    struct engine_side *side;
    /* by mnemonic: all forms, only those that load a segment register, only far ones */
    bool excluded[ZYDIS_MNEMONIC_MAX_VALUE + 1];
    bool excluded_segment[ZYDIS_MNEMONIC_MAX_VALUE + 1];
    bool excluded_far[ZYDIS_MNEMONIC_MAX_VALUE + 1];
    uint64_t forms_run, forms_not_offered, forms_excluded, forms_not_generated;
    uint64_t cases_run, cases_open, failures, failed_forms;
    unsigned unsurveyed_percent;
    struct code_policy code;
};

/*
 * not-covered.txt: lines "MNEMONIC reason", "MNEMONIC:segment reason" (its forms that load a
 * segment register) or "MNEMONIC:far reason"; '#' begins a comment.
 */
static int read_exclusions(struct run *run)
{
    FILE *file = fopen(run->list_path, "r");
    if (!file) {
        return fail(-ENOENT, "open '%s'", run->list_path);
    }
    char line[256], name[64], reason[192];
    int r = 0;
    while (fgets(line, sizeof line, file)) {
        if (line[0] == '#' || line[0] == '\n') {
            continue;
        }
        if (sscanf(line, "%63s %191[^\n]", name, reason) != 2) {
            r = fail(-EINVAL, "no reason given: %s", line);
            break;
        }
        char *part = strchr(name, ':');
        if (part) {
            *part++ = 0;
        }
        ZydisMnemonic m = 1;
        while (m <= ZYDIS_MNEMONIC_MAX_VALUE && strcasecmp(ZydisMnemonicGetString(m), name)) {
            m++;
        }
        if (m > ZYDIS_MNEMONIC_MAX_VALUE) {
            r = fail(-EINVAL, "not-covered.txt names '%s', which no instruction has", name);
            break;
        }
        bool *set = !part                      ? run->excluded
                    : !strcmp(part, "segment") ? run->excluded_segment
                                               : run->excluded_far;
        set[m] = true;
    }
    fclose(file);
    return r;
}

static void print_case(const struct run *run, const struct form *form, const struct test_case *test)
{
    ZydisDisassembledInstruction shown = {0};
    ZydisDisassembleIntel(ZYDIS_MACHINE_MODE_LONG_64, test->before.rip, test->bytes, test->length,
                          &shown);
    printf("%s: ", shown.text);
    for (unsigned i = 0; i < test->length; i++) {
        printf("%02x ", test->bytes[i]);
    }
    printf(" rflags %llx mxcsr %x", (unsigned long long)test->before.rflags,
           *(const unsigned *)(test->before.xsave + 24));
    for (unsigned i = 0; i < 16; i++) {
        printf(" %llx", (unsigned long long)test->before.gpr[i]);
    }
    printf("\n");
}

/* Addresses between the canonical ranges of 48 and 57 bits mean other things on some hosts. */
static bool is_wide_address(const struct outcome *native)
{
    return native->vector == EXCEPTION_PF && native->cr2 >> 47 != 0 && native->cr2 >> 47 != 0x1ffff;
}

static unsigned check_batch(struct run *run, const struct form *form, unsigned count)
{
    const struct test_case *cases = native_cases(run->native);
    unsigned failures = 0;
    for (unsigned i = 0; i < count; i++) {
        const struct outcome *native = &native_outcomes(run->native)[i];
        static struct outcome engine;
        struct insn insn;
        memset(&engine, 0, sizeof engine);
        if (is_wide_address(native)) {
            continue;
        }
        run->cases_run++;
        int r = engine_side_run(run->side, &cases[i], &engine);
        decode(DECODE_64, cases[i].bytes, 15, &insn);
        if (!r && is_model_specific(&insn, &cases[i], native, &engine)) {
            run->cases_open++;
            continue;
        }
        bool differs = r || compare(&insn, &cases[i], native, &engine, run->components, false);
        if (!differs) {
            continue;
        }
        if (failures++ == 0 && run->reports) {
            run->reports--;
            print_case(run, form, &cases[i]);
            if (r) {
                printf("    native vector %llu, engine: %s\n", (unsigned long long)native->vector,
                       trail_text());
            } else {
                compare(&insn, &cases[i], native, &engine, run->components, true);
            }
        }
    }
    return failures;
}

static int run_form(struct run *run, const struct form *form)
{
    struct random random = {.state = run->seed ^ form->key};
    struct test_case *cases = native_cases(run->native);
    unsigned done = 0, failures = 0;
    while (done < run->cases) {
        unsigned count = 0;
        while (count + STATES_PER_ENCODING <= BATCH_MAX && done + count < run->cases) {
            struct insn insn;
            struct test_case one;
            if (!generate_bytes(form, &random, &one, &insn)) {
                run->forms_not_generated++;
                printf("no instance found: %s\n", ZydisMnemonicGetString(form->mnemonic));
                return 0;
            }
            for (unsigned i = 0; i < STATES_PER_ENCODING; i++) {
                cases[count] = one;
                generate_state(&insn, run->components, &random, &cases[count]);
                count++;
            }
        }
        unsigned at = 0;
        if (native_run(run->native, count, &at)) {
            struct insn insn;
            decode(DECODE_64, cases[at].bytes, 15, &insn);
            if (insn.info.attributes & (ZYDIS_ATTRIB_HAS_LOCK | ZYDIS_ATTRIB_ACCEPTS_LOCK)) {
                /* Hosts with split_lock_detect=fatal end programs that lock across lines. */
                printf("SKIPPED %s (map %u opcode %02x): the host ends programs that lock across "
                       "cache lines\n",
                       ZydisMnemonicGetString(form->mnemonic), form->map, form->opcode);
                trail_clear();
                return 0;
            }
            printf("the native child died or hung: ");
            print_case(run, form, &cases[at]);
            run->failures++;
            return 0;
        }
        failures += check_batch(run, form, count);
        done += count;
    }
    if (failures) {
        run->failed_forms++;
        run->failures += failures;
        printf("FAIL %s (map %u opcode %02x): %u of %u cases\n",
               ZydisMnemonicGetString(form->mnemonic), form->map, form->opcode, failures, done);
    }
    run->forms_run++;
    return 0;
}

static void print_sequence(const struct test_case *test)
{
    for (unsigned at = 0; at < test->length;) {
        ZydisDisassembledInstruction shown;
        ZydisDisassembleIntel(ZYDIS_MACHINE_MODE_LONG_64, test->before.rip + at, test->bytes + at,
                              15, &shown);
        printf("    %llx %s\n", (unsigned long long)test->before.rip + at, shown.text);
        at += shown.info.length;
    }
    printf("    rflags %llx", (unsigned long long)test->before.rflags);
    for (unsigned i = 0; i < 16; i++) {
        printf(" %llx", (unsigned long long)test->before.gpr[i]);
    }
    printf("\n");
}

/* The last instruction of a sequence as a case: what stopped it, or nothing if it ran through. */
static void last_of_sequence(const struct test_case *test, const struct outcome *outcome,
                             struct test_case *ret_last)
{
    uint64_t at = outcome->after.rip - test->before.rip;
    *ret_last = *test;
    memset(ret_last->bytes, 0x90, sizeof ret_last->bytes);
    if (at < test->length) { /* a fault leaves the registers as they were */
        memcpy(ret_last->bytes, test->bytes + at, test->length - at);
        ret_last->before = outcome->after;
    }
}

static void check_sequence(struct run *run, const struct test_case *test,
                           const struct outcome *native)
{
    static struct outcome engine;
    static struct test_case last;
    struct insn insn;
    memset(&engine, 0, sizeof engine);
    run->cases_run++;
    int r = engine_side_run(run->side, test, &engine);
    /* FOP, FIP and FDP are compared by a guest test, also where x87 instructions came earlier */
    memcpy(engine.after.xsave + 6, native->after.xsave + 6, 18);
    last_of_sequence(test, native, &last);
    decode(DECODE_64, last.bytes, 15, &insn);
    if (!r && (is_model_specific(&insn, &last, native, &engine) ||
               !compare(&insn, &last, native, &engine, run->components, false))) {
        return;
    }
    run->failures++;
    if (run->reports) {
        run->reports--;
        printf("FAIL sequence, native vector %llu at %llx\n", (unsigned long long)native->vector,
               (unsigned long long)native->after.rip);
        print_sequence(test);
        if (r) {
            printf("    engine: %s\n", trail_text());
        } else {
            compare(&insn, &last, native, &engine, run->components, true);
        }
    }
}

/* CPUs on which the whole test was run, and what was left is in model_specific.c. */
static bool is_surveyed(char *ret_name, size_t size)
{
    static const struct {
        const char *vendor;
        unsigned family;
    } surveyed[] = {{"AuthenticAMD", 0x1a}};
    unsigned eax, ebx, ecx, edx, vendor[4] = {0};
    __cpuid(0, eax, vendor[0], vendor[2], vendor[1]);
    __cpuid(1, eax, ebx, ecx, edx);
    unsigned family = (eax >> 8 & 15) + ((eax >> 8 & 15) == 15 ? eax >> 20 & 0xff : 0);
    snprintf(ret_name, size, "%s family %xH", (const char *)vendor, family);
    for (size_t i = 0; i < ARRAY_SIZE(surveyed); i++) {
        if (!strcmp((const char *)vendor, surveyed[i].vendor) && family == surveyed[i].family) {
            return true;
        }
    }
    return false;
}

/* Print the result of `count` forms or sequences; 0 if it is good enough. */
static int conclude(const struct run *run, uint64_t count, uint64_t failed)
{
    char name[32];
    bool is_excused = failed && run->unsurveyed_percent && !is_surveyed(name, sizeof name) &&
                      failed * 100 <= count * run->unsurveyed_percent;
    if (is_excused) {
        printf("SKIPPED %llu of %llu that differ: no survey of %s says which may\n",
               (unsigned long long)failed, (unsigned long long)count, name);
        count -= failed, failed = 0;
    }
    printf("%llu passed, %llu failed\n", (unsigned long long)(count - failed),
           (unsigned long long)failed);
    return failed != 0;
}

static int run_sequences(struct run *run)
{
    struct random random = {.state = run->seed};
    struct test_case *cases = native_cases(run->native);
    for (unsigned done = 0; done < run->sequences; done += BATCH_MAX) {
        unsigned at = 0;
        for (unsigned i = 0; i < BATCH_MAX; i++) {
            if (i % 4) { /* the same with other values */
                cases[i] = cases[i - 1];
            } else {
                sequence_generate(&run->pool, &random, &cases[i]);
            }
            sequence_state(run->components, &random, &cases[i]);
        }
        if (native_run(run->native, BATCH_MAX, &at)) {
            printf("FAIL the native child died or hung\n");
            print_sequence(&cases[at]);
            return 1;
        }
        for (unsigned i = 0; i < BATCH_MAX; i++) {
            if (!is_wide_address(&native_outcomes(run->native)[i])) {
                check_sequence(run, &cases[i], &native_outcomes(run->native)[i]);
            }
        }
    }
    printf("seed %llu: %llu sequences\n", (unsigned long long)run->seed,
           (unsigned long long)run->cases_run);
    return conclude(run, run->cases_run, run->failures);
}

static int run_all(struct run *run)
{
    struct form *forms;
    size_t count = forms_enumerate(&forms);
    struct random sampler = {.state = run->seed};
    bool found[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {false};
    size_t offered = 0;
    for (size_t i = 0; i < count; i++) {
        const struct form *form = &forms[i];
        const char *name = ZydisMnemonicGetString(form->mnemonic);
        found[form->mnemonic] = true;
        bool sampled = random_next(&sampler) % 100 < run->sample;
        if (run->only && strcasecmp(name, run->only)) {
            continue;
        }
        if (run->excluded[form->mnemonic] ||
            (form->loads_segment && run->excluded_segment[form->mnemonic]) ||
            (form->is_far && run->excluded_far[form->mnemonic])) {
            run->forms_excluded++;
        } else if (!cpuid_offers_isa(run->cpuid, form->isa)) {
            run->forms_not_offered++;
        } else if (run->list) {
            printf("%s map %u opcode %02x prefix %02x w%d l%u %s\n", name, form->map, form->opcode,
                   form->prefix, form->rex_w, form->vector_length,
                   form->memory ? "memory" : "register");
        } else if (run->sequences) {
            forms[offered++] = *form;
        } else if (sampled || run->only) {
            run_form(run, form);
        }
    }
    if (run->sequences) {
        sequence_pool_init(forms, offered, &run->pool);
        int failed = run_sequences(run);
        sequence_pool_fini(&run->pool);
        free(forms);
        return failed;
    }
    int r = 0;
    for (unsigned m = 1; m <= ZYDIS_MNEMONIC_MAX_VALUE; m++) {
        if ((run->excluded[m] || run->excluded_segment[m] || run->excluded_far[m]) && !found[m]) {
            printf("not-covered.txt lists %s, of which there is no form\n",
                   ZydisMnemonicGetString((ZydisMnemonic)m));
            r = 1;
        }
    }
    free(forms);
    printf("seed %llu: %llu forms run, %llu not offered by this model, %llu not covered by "
           "choice, %llu cases, %llu of them where CPUs differ\n",
           (unsigned long long)run->seed, (unsigned long long)run->forms_run,
           (unsigned long long)run->forms_not_offered, (unsigned long long)run->forms_excluded,
           (unsigned long long)run->cases_run, (unsigned long long)run->cases_open);
    return conclude(run, run->forms_run, run->failed_forms) || r || run->forms_not_generated;
}

static int parse(int argc, char **argv, struct run *run)
{
    static const struct option known[] = {
        {"engine", required_argument, NULL, 'e'},
        {"cpu-model", required_argument, NULL, 'm'},
        {"seed", required_argument, NULL, 's'},
        {"cases", required_argument, NULL, 'c'},
        {"only", required_argument, NULL, 'o'},
        {"sample", required_argument, NULL, 'p'},
        {"report", required_argument, NULL, 'r'},
        {"list", no_argument, NULL, 'l'},
        {"not-covered", required_argument, NULL, 'n'},
        {"sequences", required_argument, NULL, 'q'},
        {"unsurveyed", required_argument, NULL, 'u'},
        {"code", required_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (option) {
        case 'e':
            run->ops = !strcmp(optarg, "interp") ? &interp_engine : &translate_engine;
            break;
        case 'm':
            if (cpu_model_parse(optarg, &run->model)) {
                return -1;
            }
            break;
        case 's':
            run->seed = strtoull(optarg, NULL, 0);
            break;
        case 'c':
            run->cases = (unsigned)atoi(optarg);
            break;
        case 'o':
            run->only = optarg;
            break;
        case 'q':
            run->sequences = (unsigned)atoi(optarg);
            break;
        case 'u':
            run->unsurveyed_percent = (unsigned)atoi(optarg);
            break;
        case 'h':
            if (code_policy_parse(&run->code, optarg)) {
                fprintf(stderr, "%s\n", trail_text());
                return -1;
            }
            break;
        case 'p':
            run->sample = (unsigned)atoi(optarg);
            break;
        case 'r':
            run->reports = (unsigned)atoi(optarg);
            break;
        case 'l':
            run->list = true;
            break;
        case 'n':
            run->list_path = optarg;
            break;
        default:
            return -1;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct run run = {
        .ops = &interp_engine,
        .model = CPU_MODEL_HOST,
        .seed = (uint64_t)time(NULL),
        .cases = 200,
        .sample = 100,
        .reports = 40,
        .list_path = "tests/differential/not-covered.txt",
    };
    if (parse(argc, argv, &run)) {
        fprintf(stderr, "differential: wrong option\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    const struct cpuid_config config = {.model = run.model, .cpus = 1, .tsc_hz = 1000000000};
    int r = read_exclusions(&run);
    r = r ? r : cpuid_table_new(&config, &run.cpuid);
    if (!r) {
        run.components =
            cpuid_xcr0_allowed(run.cpuid) & (XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512);
        r = native_open(&run.native);
        r = r ? r : engine_side_open(run.ops, run.cpuid, run.components, &run.code, &run.side);
    }
    if (r) {
        fprintf(stderr, "differential: %s\n", trail_text());
        return 1;
    }
    printf("engine %s, seed %llu, state components %llx\n", run.ops->name,
           (unsigned long long)run.seed, (unsigned long long)run.components);
    r = run_all(&run);
    native_close(run.native);
    engine_side_close(run.side);
    cpuid_table_free(run.cpuid);
    return r;
}
