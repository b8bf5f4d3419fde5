/*
 * doppel image build|add|list|inspect|rm|prune: the images of this user, of which machines are
 * made.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "cmd.h"
#include "image/import.h"
#include "image/store.h"
#include "image_progress.h"
#include "machine/config.h"
#include "machine/report.h"

CLEANUP_DEFINE(json_t, json_decref)
CLEANUP_DEFINE(struct store, store_close)

/* What the words behind a verb are; each verb refuses those that it does not know. */
struct words {
    const char *plain[2];
    size_t plain_count;
    const char *mirror, *include, *size, *flavour, *name;
    bool json, force, verify;
};

static const struct word {
    const char *name;
    size_t value_offset, flag_offset; /* one of the two is not 0 */
    const char *verbs;                /* with spaces around each */
} known_words[] = {
    {"--include", offsetof(struct words, include), 0, " build "},
    {"--size", offsetof(struct words, size), 0, " build "},
    {"--kernel-flavour", offsetof(struct words, flavour), 0, " build "},
    {"--name", offsetof(struct words, name), 0, " add "},
    {"--json", 0, offsetof(struct words, json), " build add list inspect "},
    {"--verify", 0, offsetof(struct words, verify), " inspect "},
    {"--force", 0, offsetof(struct words, force), " rm "},
};

static const struct word *word_find(const char *verb, const char *text, size_t length)
{
    char spaced[32];
    snprintf(spaced, sizeof spaced, " %s ", verb);
    for (size_t i = 0; i < ARRAY_SIZE(known_words); i++) {
        if (strlen(known_words[i].name) == length && !strncmp(known_words[i].name, text, length) &&
            strstr(known_words[i].verbs, spaced)) {
            return &known_words[i];
        }
    }
    return NULL;
}

/* `--word value`, `--word=value`, `--flag`, plain words. */
static int parse(struct words *words, const char *verb, int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        if (argv[i][0] != '-') {
            if (words->plain_count == ARRAY_SIZE(words->plain)) {
                return fail(-EINVAL, "'%s' is one word too many", argv[i]);
            }
            words->plain[words->plain_count++] = argv[i];
            continue;
        }
        const char *equals = strchr(argv[i], '=');
        size_t length = equals ? (size_t)(equals - argv[i]) : strlen(argv[i]);
        const struct word *word = word_find(verb, argv[i], length);
        if (!word) {
            return fail(-EINVAL, "there is no option %s of 'image %s'", argv[i], verb);
        }
        if (word->flag_offset) {
            if (equals) {
                return fail(-EINVAL, "%s takes no value", word->name);
            }
            *(bool *)((char *)words + word->flag_offset) = true;
            continue;
        }
        const char *value = equals ? equals + 1 : ++i < argc ? argv[i] : NULL;
        if (!value || !*value) {
            return fail(-EINVAL, "%s needs a value", word->name);
        }
        *(const char **)((char *)words + word->value_offset) = value;
    }
    return 0;
}

static const char *text_of(const json_t *record, const char *key)
{
    const char *text = json_string_value(json_object_get(record, key));
    return text ? text : "";
}

static void print_json(const json_t *value)
{
    char *text = json_dumps(value, JSON_INDENT(2));
    if (text) {
        puts(text);
    }
    free(text);
}

/* ---- build ---- */

static int plan_fill(struct image_plan *plan, const struct words *words, char *suite_text)
{
    *plan = (struct image_plan){.size = IMAGE_SIZE_DEFAULT, .include = words->include};
    char *at = strchr(suite_text, '@');
    if (at) {
        *at = '\0';
        plan->mirror = at + 1;
    }
    int r = suite_find(suite_text, &plan->suite);
    if (!r && words->size) {
        r = size_parse(words->size, &plan->size);
        plan->size = align_down(plan->size, MIB(1));
    }
    if (!r && words->flavour) {
        plan->has_cloud_kernel = !strcmp(words->flavour, "cloud");
        if (!plan->has_cloud_kernel && strcmp(words->flavour, "generic")) {
            r = fail(-EINVAL, "--kernel-flavour: generic or cloud");
        }
    }
    return r ? r : image_plan_check(plan);
}

static int build(struct store *store, const struct words *words)
{
    CLEANUP(json_decref) json_t *record = NULL;
    char suite_text[512];
    struct image_plan plan;
    bool is_new;
    snprintf(suite_text, sizeof suite_text, "%s", words->plain[0]);
    int r = plan_fill(&plan, words, suite_text);
    if (r) {
        return r;
    }
    r = image_build_shown(store, &plan, &record, &is_new);
    if (!r && words->json) {
        print_json(record);
    } else if (!r) {
        report("doppel: image %s, %s%s\n", text_of(record, "name"), text_of(record, "id"),
               is_new ? " is built" : ": one of the same packages is there already");
    }
    return r;
}

/* ---- the others ---- */

static int add(struct store *store, const struct words *words)
{
    CLEANUP(json_decref) json_t *record = NULL;
    int r = image_import(store, words->plain[0], words->name, &record);
    if (!r && words->json) {
        print_json(record);
    } else if (!r) {
        report("doppel: image %s, %s (%s) is added\n", text_of(record, "name"),
               text_of(record, "id"), text_of(record, "format"));
    }
    return r;
}

static void print_row(struct store *store, const json_t *record)
{
    unsigned machines = 0;
    uint64_t bytes = 0;
    char date[32] = "";
    time_t created = (time_t)json_integer_value(json_object_get(record, "created"));
    struct tm time;
    if (localtime_r(&created, &time)) {
        strftime(date, sizeof date, "%Y-%m-%d %H:%M", &time);
    }
    if (store_use(store, record, &machines, &bytes)) {
        trail_clear();
    }
    printf("%-24s %-12s %-6s %8llu MiB %8llu MiB  %-16s %u\n", text_of(record, "name"),
           text_of(record, "id"), text_of(record, "format"),
           (unsigned long long)json_integer_value(json_object_get(record, "size")) >> 20,
           (unsigned long long)bytes >> 20, date, machines);
}

static int list(struct store *store, const struct words *words)
{
    CLEANUP(json_decref) json_t *records = NULL;
    size_t i;
    json_t *record;
    int r = store_list(store, &records);
    if (r || words->json) {
        if (!r) {
            print_json(records);
        }
        return r;
    }
    if (!json_array_size(records)) {
        report("doppel: there are no images; 'doppel image build debian:12' builds one\n");
        return 0;
    }
    printf("%-24s %-12s %-6s %12s %12s  %-16s %s\n", "NAME", "ID", "FORMAT", "SIZE", "ON DISK",
           "CREATED", "MACHINES");
    json_array_foreach(records, i, record)
    {
        print_row(store, record);
    }
    return 0;
}

static int inspect(struct store *store, const struct words *words)
{
    CLEANUP(json_decref) json_t *record = NULL;
    const char *key;
    json_t *value;
    int r = store_find(store, words->plain[0], &record);
    if (!r && words->verify) {
        r = store_verify(store, record);
    }
    if (r) {
        return r;
    }
    char path[STORE_PATH];
    store_content_path(store, record, path);
    json_object_set_new(record, "path", json_string(path));
    if (words->json) {
        print_json(record);
        return 0;
    }
    json_object_foreach(record, key, value)
    {
        if (json_is_string(value)) {
            printf("%-16s %s\n", key, json_string_value(value));
        } else if (json_is_integer(value)) {
            printf("%-16s %lld\n", key, (long long)json_integer_value(value));
        }
    }
    json_t *packages = json_object_get(record, "packages");
    if (packages) {
        printf("packages (%zu):\n", json_object_size(packages));
    }
    json_object_foreach(packages, key, value)
    {
        printf("  %-32s %s\n", key, json_string_value(value));
    }
    return 0;
}

static int rm(struct store *store, const struct words *words)
{
    CLEANUP(json_decref) json_t *record = NULL;
    unsigned machines = 0;
    uint64_t bytes;
    int r = store_find(store, words->plain[0], &record);
    r = r ? r : store_use(store, record, &machines, &bytes);
    if (r) {
        return r;
    }
    if (machines && !words->force) {
        return fail(-EBUSY,
                    "%u machine%s made of image %s and keep%s its %llu MiB; --force removes it for "
                    "new machines",
                    machines, machines > 1 ? "s are" : " is", text_of(record, "name"),
                    machines > 1 ? "" : "s", (unsigned long long)bytes >> 20);
    }
    return store_remove(store, record);
}

/* Images whose name belongs to a newer one. */
static int prune(struct store *store, const struct words *words)
{
    CLEANUP(json_decref) json_t *records = NULL;
    CLEANUP(json_decref) json_t *names = json_object();
    size_t i;
    json_t *record;
    int r = store_list(store, &records);
    uint64_t freed = 0;
    unsigned count = 0;
    json_array_foreach(records, i, record)
    {
        unsigned machines = 0;
        uint64_t bytes = 0;
        const char *name = text_of(record, "name");
        bool is_newest = !json_object_get(names, name);
        json_object_set_new(names, name, json_true());
        if (r || is_newest) {
            continue;
        }
        r = store_use(store, record, &machines, &bytes);
        r = r ? r : store_remove(store, record);
        freed += !r && !machines ? bytes : 0;
        count += !r;
    }
    if (!r) {
        report("doppel: %u image%s removed, %llu MiB freed\n", count, count == 1 ? "" : "s",
               (unsigned long long)freed >> 20);
    }
    return r;
}

static const struct verb {
    const char *name;
    size_t words;
    int (*call)(struct store *store, const struct words *words);
    const char *usage;
} verbs[] = {
    {"build", 1, build,
     "SUITE[@MIRROR] [--include PACKAGE,...] [--size SIZE] [--kernel-flavour cloud] [--json]"},
    {"add", 1, add, "FILE [--name NAME] [--json]"},
    {"list", 0, list, "[--json]"},
    {"inspect", 1, inspect, "NAME [--verify] [--json]"},
    {"rm", 1, rm, "NAME [--force]"},
    {"prune", 0, prune, ""},
};

static int usage(void)
{
    for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
        report("%s doppel image %s %s\n", i ? "      " : "usage:", verbs[i].name, verbs[i].usage);
    }
    return STATUS_USAGE;
}

int command_image(int argc, char **argv)
{
    const struct verb *verb = NULL;
    for (size_t i = 0; argc > 1 && i < ARRAY_SIZE(verbs); i++) {
        verb = !strcmp(verbs[i].name, argv[1]) ? &verbs[i] : verb;
    }
    if (!verb) {
        return usage();
    }
    struct words words = {0};
    if (parse(&words, verb->name, argc - 2, argv + 2)) {
        report("doppel image %s: %s\n", verb->name, trail_text());
        return STATUS_USAGE;
    }
    if (words.plain_count != verb->words) {
        report("usage: doppel image %s %s\n", verb->name, verb->usage);
        return STATUS_USAGE;
    }
    struct store store_ = {.folder = -1};
    CLEANUP(store_close) struct store *store = &store_;
    int r = store_open(store);
    r = r ? r : verb->call(store, &words);
    if (r) {
        report("doppel image %s: %s\n", verb->name, trail_text());
        return r == -EINVAL ? STATUS_USAGE : STATUS_FAILED;
    }
    return STATUS_OK;
}
