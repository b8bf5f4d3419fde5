/* Numbers in columns: see stats_table.h. */
#include "stats_table.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "machine/stats.h"

enum { ROWS_SHOWN = 24 };

static const struct {
    const char *topic, *title;
    bool is_share; /* of the topic's sum, in per cent */
} topics[] = {
    {"timers", "timers that the host refused (ulimit -i)", false},
    {"samples", "CPU time of the vCPUs, by samples", true},
    {"tiers", "instructions, by tier (units: an estimate)", true},
    {"exits", "calls from units into the monitor", false},
    {"tlb", "misses of the soft TLB", false},
    {"slow_instructions", "instructions of units that ran in interp", false},
    {"branches", "branches", false},
    {"translation", "translation", false},
    {"invalidation", "code that changed", false},
    {"flush", "flushes of the soft TLB", false},
    {"world_stops", "times all vCPUs were stopped", false},
    {"exceptions", "exceptions that the guest got", false},
    {"events", "interrupts, halts, kicks", false},
    {"machine", "accesses to the board", false},
    {"memory", "guest memory", false},
    {NULL, NULL, false},
};

struct row {
    const char *name, *text;
    json_int_t count, before;
};

struct table {
    struct row *rows;
    size_t count;
    json_int_t sum;
    double seconds; /* since the answer before; 0: none */
};

static int compare(const void *a, const void *b)
{
    const struct row *first = a, *second = b;
    return first->count > second->count   ? -1
           : first->count < second->count ? 1
                                          : strcmp(first->name, second->name);
}

static void add_row(struct table *table, struct row row)
{
    if (row.count) {
        table->rows = realloc(table->rows, (table->count + 1) * sizeof *table->rows);
        ASSERT(table->rows);
        table->rows[table->count++] = row;
        table->sum += row.count;
    }
}

static void print_table(FILE *file, const char *title, bool is_share, struct table *table)
{
    if (table->count) {
        qsort(table->rows, table->count, sizeof *table->rows, compare);
        fprintf(file, "%s\n", title);
    }
    for (size_t i = 0; i < table->count && i < ROWS_SHOWN; i++) {
        const struct row *row = &table->rows[i];
        fprintf(file, "  %-22s %15lld", row->name, (long long)row->count);
        if (is_share) {
            fprintf(file, " %5.1f%%", 100.0 * (double)row->count / (double)table->sum);
        } else {
            fprintf(file, "       ");
        }
        if (table->seconds > 0) {
            fprintf(file, " %12.0f/s", (double)(row->count - row->before) / table->seconds);
        }
        fprintf(file, "  %s\n", row->text ? row->text : "");
    }
    if (table->count > ROWS_SHOWN) {
        fprintf(file, "  and %zu more\n", table->count - ROWS_SHOWN);
    }
    free(table->rows);
}

static void print_topic(FILE *file, const char *topic, const char *title, bool is_share,
                        const json_t *total, const json_t *total_before, double seconds)
{
    struct table table = {.seconds = seconds};
    json_t *facts = json_object_get(total, topic);
    const json_t *old = json_object_get(total_before, topic);
    const char *key;
    json_t *value;
    json_object_foreach(facts, key, value)
    {
        add_row(&table, (struct row){.name = key,
                                     .text = stats_text(topic, key),
                                     .count = json_integer_value(value),
                                     .before = json_integer_value(json_object_get(old, key))});
    }
    print_table(file, title, is_share, &table);
}

static json_int_t region_uses(const json_t *region)
{
    return json_integer_value(json_object_get(region, "reads")) +
           json_integer_value(json_object_get(region, "writes"));
}

/* The uses of the same region in an older answer. */
static json_int_t region_before(const json_t *regions, const json_t *region)
{
    size_t i;
    json_t *other;
    json_array_foreach(regions, i, other)
    {
        if (json_equal(json_object_get(other, "name"), json_object_get(region, "name")) &&
            json_equal(json_object_get(other, "base"), json_object_get(region, "base"))) {
            return region_uses(other);
        }
    }
    return 0;
}

static void print_regions(FILE *file, const json_t *stats, const json_t *before, double seconds)
{
    struct table table = {.seconds = seconds};
    const json_t *regions = json_object_get(stats, "regions");
    size_t i;
    json_t *region;
    json_array_foreach(regions, i, region)
    {
        add_row(&table,
                (struct row){.name = json_string_value(json_object_get(region, "name")),
                             .text = json_string_value(json_object_get(region, "kind")),
                             .count = region_uses(region),
                             .before = region_before(json_object_get(before, "regions"), region)});
    }
    print_table(file, "accesses to devices", false, &table);
}

static double time_of(const json_t *stats, const char *key)
{
    const json_t *time = json_object_get(json_object_get(stats, "total"), "time");
    return (double)json_integer_value(json_object_get(time, key)) / 1e9;
}

void stats_table_print(FILE *file, const json_t *stats, const json_t *before)
{
    const json_t *total = json_object_get(stats, "total");
    double seconds = before ? time_of(stats, "uptime_ns") - time_of(before, "uptime_ns") : 0;
    const char *name = json_string_value(json_object_get(stats, "name"));
    const char *engine = json_string_value(json_object_get(stats, "engine"));
    fprintf(file, "%s: engine %s, %zu vCPU(s), %.1f s old, %.1f s of CPU time in vCPUs\n",
            name ? name : "?", engine ? engine : "?",
            json_array_size(json_object_get(stats, "vcpus")), time_of(stats, "uptime_ns"),
            time_of(stats, "cpu_ns"));
    for (size_t i = 0; topics[i].topic; i++) {
        print_topic(file, topics[i].topic, topics[i].title, topics[i].is_share, total,
                    json_object_get(before, "total"), seconds);
    }
    print_regions(file, stats, before, seconds);
}
