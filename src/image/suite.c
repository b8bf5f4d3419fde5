/* Names of suites: distro-info's table is lines of "version,name,codename,...". */
#include "image/suite.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"

/* The oldest release whose packages the recipe was made for. */
enum { OLDEST = 12, SUITES_MAX = 32 };

struct suite_table {
    struct suite suites[SUITES_MAX];
    size_t count;
};

static void add(struct suite_table *table, const char *release, const char *codename)
{
    bool is_known = !*release ? !strcmp(codename, "sid") : atoi(release) >= OLDEST;
    if (!is_known || table->count == SUITES_MAX || strlen(release) >= SUITE_TEXT ||
        strlen(codename) >= SUITE_TEXT) {
        return;
    }
    struct suite *suite = &table->suites[table->count++];
    snprintf(suite->name, sizeof suite->name, "debian:%s", *release ? release : codename);
    strcpy(suite->codename, codename);
    strcpy(suite->release, release);
}

static void read_table(struct suite_table *table)
{
    char line[512];
    FILE *file = fopen("/usr/share/distro-info/debian.csv", "re");
    while (file && fgets(line, sizeof line, file)) {
        char *at = line;
        const char *release = strsep(&at, ",");
        strsep(&at, ",");
        const char *codename = strsep(&at, ",");
        if (codename && strcmp(release, "version")) {
            add(table, release, codename);
        }
    }
    if (file) {
        fclose(file);
    }
    if (!table->count) {
        add(table, "12", "bookworm");
        add(table, "13", "trixie");
        add(table, "14", "forky");
        add(table, "", "sid");
    }
}

static int refuse(const char *text, const struct suite_table *table)
{
    char known[1024] = "";
    for (size_t i = 0; i < table->count; i++) {
        size_t length = strlen(known);
        snprintf(known + length, sizeof known - length, "%s%s", i ? ", " : "",
                 table->suites[i].name);
        if (*table->suites[i].release) {
            length = strlen(known);
            snprintf(known + length, sizeof known - length, " (%s)", table->suites[i].codename);
        }
    }
    return fail(-EINVAL, "there is no suite '%s' to build an image of (known: %s)", text, known);
}

int suite_find(const char *text, struct suite *ret_suite)
{
    struct suite_table table = {0};
    read_table(&table);
    const char *word = strncmp(text, "debian:", 7) ? text : text + 7;
    bool has_vendor = word != text;
    for (size_t i = 0; i < table.count; i++) {
        const struct suite *suite = &table.suites[i];
        if (!strcmp(word, suite->codename) ||
            (has_vendor && *suite->release && !strcmp(word, suite->release))) {
            *ret_suite = *suite;
            return 0;
        }
    }
    return refuse(text, &table);
}
