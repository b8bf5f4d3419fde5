/*
 * Runs a guest benchmark natively, in Doppel and in QEMU's TCG, interleaved, and prints what each
 * row costs against native, group means, times and memory. Fails if a guest's clock disagrees with
 * the host's by more than 0.1%, a result of a row differs, or Doppel is beyond a limit: --limit-row
 * for each row, --limit-mean for the geometric mean of all (those that only report left out).
 *
 *     bench --rounds N --native COMMAND --doppel COMMAND --tcg COMMAND    (run by sh -c)
 *           [--limit-row X] [--limit-mean X] [--save FILE --model NAME --conditions TEXT]
 * [--verbose]
 *
 * --save keeps the results (results.h) for picture.c; those of a run that failed in FILE.failed.
 * An engine that is given several commands runs them one after the other in each round.
 */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "results.h"

enum { COMMANDS_MAX = 4, LIMIT_SECONDS = 900 };

/* What one engine did over all rounds; the best of times, the most of memory. */
struct engine {
    const char *commands[COMMANDS_MAX];
    unsigned command_count;
    double init_seconds, whole_seconds;
    double clock_error; /* the largest, as a share */
    double clock_span;
    long peak_kib;
    unsigned runs, failures;
};

struct bench {
    struct results results;
    struct engine engines[ENGINES];
    double limit_row, limit_mean; /* 0: none */
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* When a line with the guest's time came. */
struct instant {
    double host, guest;
};

/* One run in progress. */
struct run {
    unsigned engine;
    double start, init;
    struct instant first, last; /* of those before the rows and behind them, what came soonest */
    bool has_rows, done;
};

/* A line can only come late, so the smallest distance between the clocks is the truest. */
static void take_clock(struct instant *soonest, double guest)
{
    struct instant instant = {.host = now(), .guest = guest};
    if (!soonest->host || instant.host - guest < soonest->host - soonest->guest) {
        *soonest = instant;
    }
}

static void take_line(struct bench *bench, struct run *run, char *line)
{
    char group[16], name[24], value[24];
    double number;
    struct results *results = &bench->results;
    if (sscanf(line, "row %15s %23s %lf", group, name, &number) == 3) {
        struct row *row = results_row(&bench->results, group, name);
        run->has_rows = true;
        if (row && (!row->best[run->engine] || number < row->best[run->engine])) {
            row->best[run->engine] = number;
        }
    } else if (sscanf(line, "check %23s %23s", name, value) == 2) {
        for (size_t i = 0; i < results->row_count; i++) {
            char *check = results->rows[i].check[run->engine];
            if (!strcmp(results->rows[i].name, name)) {
                results->rows[i].varies |= *check && strcmp(check, value);
                snprintf(check, 24, "%s", value);
            }
        }
    } else if (sscanf(line, "clock %lf", &number) == 1) {
        take_clock(run->has_rows ? &run->last : &run->first, number / 1e9);
    } else if (strstr(line, "BENCH-INIT")) {
        run->init = now() - run->start;
    } else if (strstr(line, "BENCH-DONE")) {
        run->done = true;
    } else if (!strncmp(line, "error ", 6)) {
        fprintf(stderr, "%s: %s\n", engine_names[run->engine], line);
    }
}

/* The peak of the process's own memory so far. */
static long peak_kib(pid_t pid)
{
    char path[64], line[128];
    long peak = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file)) {
        sscanf(line, "VmHWM: %ld", &peak);
    }
    if (file) {
        fclose(file);
    }
    return peak;
}

/* Returns the seconds of the whole run, or 0 if it did not end well. */
static double finish_run(struct engine *engine, const struct run *run, bool good)
{
    double whole = now() - run->start;
    engine->runs++;
    if (!good || !run->done) {
        engine->failures++;
        return 0;
    }
    if (!engine->init_seconds || run->init < engine->init_seconds) {
        engine->init_seconds = run->init;
    }
    double host = run->last.host - run->first.host, guest = run->last.guest - run->first.guest;
    double error = host > 0 ? fabs(guest / host - 1) : 0; /* a boot has no benchmark to time */
    if (error > engine->clock_error) {
        engine->clock_error = error;
    }
    engine->clock_span = host;
    return whole;
}

static double run_command(struct bench *bench, unsigned index, const char *text, bool verbose)
{
    struct engine *engine = &bench->engines[index];
    struct run run = {.engine = index, .start = now()};
    int ends[2];
    if (pipe(ends)) {
        return 0;
    }
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 1);
        close(ends[0]);
        close(ends[1]);
        char command[4096];
        snprintf(command, sizeof command, "exec %s </dev/null", text);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    char buffer[8192];
    size_t used = 0;
    for (;;) {
        struct pollfd wait = {.fd = ends[0], .events = POLLIN};
        poll(&wait, 1, 20);
        long peak = peak_kib(child);
        engine->peak_kib = peak > engine->peak_kib ? peak : engine->peak_kib;
        if (now() - run.start > LIMIT_SECONDS) {
            kill(child, SIGKILL);
        }
        if (!wait.revents) {
            continue;
        }
        ssize_t got = read(ends[0], buffer + used, sizeof buffer - 1 - used);
        if (got <= 0) {
            break;
        }
        used += (size_t)got;
        buffer[used] = 0;
        char *end;
        while ((end = memchr(buffer, '\n', used))) {
            *end = 0;
            if (verbose) {
                fprintf(stderr, "%s: %s\n", engine_names[index], buffer);
            }
            take_line(bench, &run, buffer);
            used -= (size_t)(end + 1 - buffer);
            memmove(buffer, end + 1, used);
        }
        used = used == sizeof buffer - 1 ? 0 : used;
    }
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    return finish_run(engine, &run, WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void run_engine(struct bench *bench, unsigned index, bool verbose)
{
    struct engine *engine = &bench->engines[index];
    double whole = 0;
    for (unsigned i = 0; i < engine->command_count; i++) {
        double seconds = run_command(bench, index, engine->commands[i], verbose);
        if (!seconds) {
            return;
        }
        whole += seconds;
    }
    if (!engine->whole_seconds || whole < engine->whole_seconds) {
        engine->whole_seconds = whole;
    }
}

static void print_ratio(double value)
{
    if (value) {
        printf(" %9.2fx", value);
    } else {
        printf(" %10s", "-");
    }
}

static void print_rows(const struct results *results)
{
    printf("\n%-9s %-20s %14s %10s %10s\n", "group", "row", "native ns", "doppel", "tcg");
    for (size_t i = 0; i < results->row_count; i++) {
        const struct row *row = &results->rows[i];
        printf("%-9s %-20s %14.2f", row->group, row->name, row->best[0]);
        print_ratio(row_ratio(row, 1));
        print_ratio(row_ratio(row, 2));
        printf("%s\n", row_ratio(row, 1) > row_ratio(row, 2) && row_ratio(row, 2)
                           ? "  slower than tcg"
                           : "");
    }
    printf("\n%-9s %46s %10s   (geometric means)\n", "group", "doppel", "tcg");
    for (size_t i = 0; i < results->row_count; i++) {
        const char *group = results->rows[i].group;
        size_t first = 0;
        while (strcmp(results->rows[first].group, group)) {
            first++;
        }
        if (first < i) {
            continue;
        }
        printf("%-9s %35s", group, "");
        print_ratio(results_mean(results, group, 1));
        print_ratio(results_mean(results, group, 2));
        printf("\n");
    }
    printf("%-9s %35s", "all", "");
    print_ratio(results_mean(results, NULL, 1));
    print_ratio(results_mean(results, NULL, 2));
    printf("   (without code, smp, first, report)\n");
}

static int judge_results(const struct results *results)
{
    int failures = 0;
    for (size_t i = 0; i < results->row_count; i++) {
        const struct row *row = &results->rows[i];
        if (row->varies) {
            printf("FAILED: the result of %s varies from run to run\n", row->name);
            failures++;
        }
        for (unsigned e = 1; e < ENGINES; e++) {
            if (row->check[0][0] && row->check[e][0] && strcmp(row->check[0], row->check[e])) {
                printf("%s: %s computes %s in %s and %s natively\n", e == 1 ? "FAILED" : "note",
                       row->name, row->check[e], engine_names[e], row->check[0]);
                failures += e == 1;
            }
        }
    }
    return failures;
}

static int judge_limits(const struct bench *bench)
{
    const struct results *results = &bench->results;
    int failures = 0;
    for (size_t i = 0; i < results->row_count && bench->limit_row; i++) {
        const struct row *row = &results->rows[i];
        if (!row_only_reports(row) && row_ratio(row, 1) > bench->limit_row) {
            printf("FAILED: %s is %.2fx, above the limit of %.2fx for a row\n", row->name,
                   row_ratio(row, 1), bench->limit_row);
            failures++;
        }
    }
    double mean = results_mean(results, NULL, 1);
    if (bench->limit_mean && mean > bench->limit_mean) {
        printf("FAILED: the mean of all is %.2fx, above the limit of %.2fx\n", mean,
               bench->limit_mean);
        failures++;
    }
    return failures;
}

static int judge(const struct bench *bench)
{
    int failures = 0;
    printf("\n%-8s %12s %12s %12s %14s\n", "engine", "to init s", "whole run s", "peak MiB",
           "clock error");
    for (unsigned e = 0; e < ENGINES; e++) {
        const struct engine *engine = &bench->engines[e];
        if (!engine->command_count) {
            continue;
        }
        printf("%-8s %12.2f %12.2f %12.1f %13.4f%%\n", engine_names[e], engine->init_seconds,
               engine->whole_seconds, (double)engine->peak_kib / 1024, 100 * engine->clock_error);
        if (engine->failures) {
            printf("FAILED: %u of %u runs of %s did not end well\n", engine->failures, engine->runs,
                   engine_names[e]);
            failures += e != 2;
        }
        /* a line may reach us some milliseconds late, so a short run cannot be judged */
        if (e == 1 && engine->clock_error > 0.001 && engine->clock_span > 10) {
            printf("FAILED: the clock of the guest is off by %.3f%% over %.1f s\n",
                   100 * engine->clock_error, engine->clock_span);
            failures++;
        }
    }
    failures += judge_results(&bench->results) + judge_limits(bench);
    return failures ? 1 : 0;
}

/* Those of a run that failed must not be taken for good ones. */
static int save(struct bench *bench, const char *path, bool failed)
{
    char text[4096];
    snprintf(text, sizeof text, "%s%s", path, failed ? ".failed" : "");
    for (unsigned e = 1; e < ENGINES; e++) {
        bench->results.boot_seconds[e] = bench->engines[e].init_seconds;
    }
    if (results_save(&bench->results, text)) {
        fprintf(stderr, "bench: save '%s': %s\n", text, strerror(errno));
        return 1;
    }
    return failed;
}

int main(int argc, char **argv)
{
    static const struct option known[] = {
        {"rounds", required_argument, NULL, 'r'},
        {"native", required_argument, NULL, '0'},
        {"doppel", required_argument, NULL, '1'},
        {"tcg", required_argument, NULL, '2'},
        {"verbose", no_argument, NULL, 'v'},
        {"limit-row", required_argument, NULL, 'l'},
        {"limit-mean", required_argument, NULL, 'm'},
        {"save", required_argument, NULL, 's'},
        {"model", required_argument, NULL, 'M'},
        {"conditions", required_argument, NULL, 'c'},
        {NULL, 0, NULL, 0},
    };
    static struct bench bench;
    int option, rounds = 1;
    bool verbose = false;
    const char *path = NULL;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        if (option == 'r') {
            rounds = atoi(optarg);
        } else if (option == 'v') {
            verbose = true;
        } else if (option == 'l') {
            bench.limit_row = atof(optarg);
        } else if (option == 'm') {
            bench.limit_mean = atof(optarg);
        } else if (option == 's') {
            path = optarg;
        } else if (option == 'M') {
            snprintf(bench.results.model, sizeof bench.results.model, "%s", optarg);
        } else if (option == 'c') {
            snprintf(bench.results.conditions, sizeof bench.results.conditions, "%s", optarg);
        } else if (option >= '0' && option <= '2' &&
                   bench.engines[option - '0'].command_count < COMMANDS_MAX) {
            struct engine *engine = &bench.engines[option - '0'];
            engine->commands[engine->command_count++] = optarg;
        } else {
            return 2;
        }
    }
    for (int round = 0; round < rounds; round++) {
        for (unsigned e = 0; e < ENGINES; e++) {
            if (bench.engines[e].command_count) {
                fprintf(stderr, "round %d of %d: %s\n", round + 1, rounds, engine_names[e]);
                run_engine(&bench, e, verbose);
            }
        }
    }
    if (bench.results.row_count) {
        print_rows(&bench.results);
    }
    int failed = judge(&bench);
    return path ? save(&bench, path, failed) : failed;
}
