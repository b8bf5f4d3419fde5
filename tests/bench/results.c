/*
 * Results of the benchmark: rows, means, and their file.
 */
#include "results.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *const engine_names[ENGINES] = {"native", "doppel", "tcg"};

struct row *results_row(struct results *results, const char *group, const char *name)
{
    for (size_t i = 0; i < results->row_count; i++) {
        if (!strcmp(results->rows[i].name, name)) {
            return &results->rows[i];
        }
    }
    if (results->row_count == ROWS_MAX) {
        return NULL;
    }
    struct row *row = &results->rows[results->row_count++];
    snprintf(row->group, sizeof row->group, "%s", group);
    snprintf(row->name, sizeof row->name, "%s", name);
    return row;
}

double row_ratio(const struct row *row, unsigned engine)
{
    return row->best[0] && row->best[engine] ? row->best[engine] / row->best[0] : 0;
}

bool row_only_reports(const struct row *row)
{
    static const char *const groups[] = {"report", "smp", "code", "first"};
    for (size_t i = 0; i < sizeof groups / sizeof groups[0]; i++) {
        if (!strcmp(row->group, groups[i])) {
            return true;
        }
    }
    return false;
}

double results_mean(const struct results *results, const char *group, unsigned engine)
{
    double sum = 0;
    unsigned count = 0;
    for (size_t i = 0; i < results->row_count; i++) {
        const struct row *row = &results->rows[i];
        bool wanted = group ? !strcmp(row->group, group) : !row_only_reports(row);
        if (wanted && row_ratio(row, engine)) {
            sum += log(row_ratio(row, engine));
            count++;
        }
    }
    return count ? exp(sum / count) : 0;
}

int write_aside(const char *path, const char *text, size_t size)
{
    char aside[4096];
    if ((size_t)snprintf(aside, sizeof aside, "%s.new", path) >= sizeof aside) {
        errno = ENAMETOOLONG;
        return -1;
    }
    FILE *file = fopen(aside, "w");
    if (!file) {
        return -1;
    }
    bool good = fwrite(text, 1, size, file) == size;
    good &= fclose(file) == 0;
    if (!good || rename(aside, path)) {
        int saved = errno;
        unlink(aside);
        errno = saved;
        return -1;
    }
    return 0;
}

int results_save(const struct results *results, const char *path)
{
    json_t *rows = json_array();
    for (size_t i = 0; i < results->row_count; i++) {
        const struct row *row = &results->rows[i];
        json_array_append_new(rows,
                              json_pack("{ss ss sf sf sf}", "group", row->group, "name", row->name,
                                        "native", row->best[ENGINE_NATIVE], "doppel",
                                        row->best[ENGINE_DOPPEL], "tcg", row->best[ENGINE_TCG]));
    }
    json_t *root =
        json_pack("{ss ss s{sf sf} so}", "model", results->model, "conditions", results->conditions,
                  "boot_seconds", "doppel", results->boot_seconds[ENGINE_DOPPEL], "tcg",
                  results->boot_seconds[ENGINE_TCG], "rows", rows);
    char *text = root ? json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(6)) : NULL;
    json_decref(root);
    if (!text) {
        errno = EILSEQ; /* text that is not UTF-8 */
        return -1;
    }
    int r = write_aside(path, text, strlen(text));
    free(text);
    return r;
}

static int take_row(struct results *results, json_t *value, json_error_t *ret_error)
{
    const char *group, *name;
    double best[ENGINES];
    if (json_unpack_ex(value, ret_error, 0, "{ss ss sF sF sF}", "group", &group, "name", &name,
                       "native", &best[ENGINE_NATIVE], "doppel", &best[ENGINE_DOPPEL], "tcg",
                       &best[ENGINE_TCG])) {
        return -1;
    }
    struct row *row = results_row(results, group, name);
    if (!row || !(best[0] >= 0) || !(best[1] >= 0) || !(best[2] >= 0)) {
        snprintf(ret_error->text, sizeof ret_error->text,
                 row ? "row '%s' has a negative time" : "too many rows at '%s'", name);
        return -1;
    }
    memcpy(row->best, best, sizeof best);
    return 0;
}

int results_load(struct results *ret_results, const char *path)
{
    *ret_results = (struct results){0};
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error), *rows = NULL;
    const char *model, *conditions;
    int r = !root ? -1
                  : json_unpack_ex(root, &error, 0, "{ss ss s{sF sF} so}", "model", &model,
                                   "conditions", &conditions, "boot_seconds", "doppel",
                                   &ret_results->boot_seconds[ENGINE_DOPPEL], "tcg",
                                   &ret_results->boot_seconds[ENGINE_TCG], "rows", &rows);
    if (!r) {
        snprintf(ret_results->model, sizeof ret_results->model, "%s", model);
        snprintf(ret_results->conditions, sizeof ret_results->conditions, "%s", conditions);
    }
    for (size_t i = 0; !r && i < json_array_size(rows); i++) {
        r = take_row(ret_results, json_array_get(rows, i), &error);
    }
    if (r) {
        fprintf(stderr, "results '%s': %s\n", path, error.text);
    }
    json_decref(root);
    return r;
}
