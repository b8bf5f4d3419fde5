/*
 * What a run of the benchmark measured: the rows, each engine's best time for one operation, and
 * their means; saved as JSON, so that tables and pictures need no second run.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

enum { ENGINE_NATIVE, ENGINE_DOPPEL, ENGINE_TCG, ENGINES, ROWS_MAX = 80 };
extern const char *const engine_names[ENGINES];

struct row {
    char group[16], name[24];
    double best[ENGINES]; /* nanoseconds; 0: not measured */
    char check[ENGINES][24];
    bool varies; /* an engine's own results differ */
};

struct results {
    struct row rows[ROWS_MAX];
    size_t row_count;
    double boot_seconds[ENGINES]; /* from the start of the process to init; 0: not measured */
    char model[16];               /* the CPU model of Doppel's guest */
    char conditions[512];         /* machine, kernel, rounds, revision: a sentence */
};

/* The row of that name, made if it is new; NULL if there are too many. */
struct row *results_row(struct results *results, const char *group, const char *name);

/* Slowdown to native; 0: not measured. */
double row_ratio(const struct row *row, unsigned engine);

/* Rows that are shown, but in no mean and without a limit. */
bool row_only_reports(const struct row *row);

/* The geometric mean of a group's ratios, 0 if there is none; with NULL for the group that of all
 * rows but those that only report. */
double results_mean(const struct results *results, const char *group, unsigned engine);

/* Write `size` bytes beside `path`, then take its place; 0 or -1 with errno. */
int write_aside(const char *path, const char *text, size_t size);

int results_save(const struct results *results, const char *path);

/* 0, or -1 after a sentence on standard error. Checks of rows are not saved. */
int results_load(struct results *ret_results, const char *path);
