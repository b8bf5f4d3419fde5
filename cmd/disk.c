/* doppel disk: images of disks. Options and output; the work is in backend/disk. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/disk/image.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "cmd.h"
#include "machine/config.h"
#include "machine/report.h"

/* Exit statuses of `check`, beside the common ones. */
enum { STATUS_LEAKS = 8, STATUS_ERRORS = 10 };

CLEANUP_DEFINE(struct disk, disk_free)

struct request {
    const char *files[2]; /* what is no option, in this order */
    unsigned file_count;
    const char *size;
    struct disk_image_new image;
    enum disk_format format; /* of the image that is there */
    const char *backing[DISK_BACKING_MAX];
    size_t backing_count;
    bool json, repair, shrink;
};

struct option {
    const char *name;
    const char *verbs; /* that know it */
    int (*set)(struct request *request, const char *value);
    bool has_value;
};

static int set_json(struct request *request, const char *value)
{
    request->json = true;
    return 0;
}

static int set_repair(struct request *request, const char *value)
{
    request->repair = true;
    return 0;
}

static int set_shrink(struct request *request, const char *value)
{
    request->shrink = true;
    return 0;
}

static int set_force(struct request *request, const char *value)
{
    request->image.replace = true;
    return 0;
}

static int set_lazy(struct request *request, const char *value)
{
    request->image.qcow2.lazy_refcounts = true;
    return 0;
}

static int set_format(struct request *request, const char *value)
{
    return disk_format_parse(value, &request->format);
}

static int set_to(struct request *request, const char *value)
{
    return disk_format_parse(value, &request->image.format);
}

static int set_backing(struct request *request, const char *value)
{
    if (request->backing_count == DISK_BACKING_MAX) {
        return fail(-EINVAL, "--backing: at most %d files", DISK_BACKING_MAX);
    }
    request->backing[request->backing_count++] = value;
    return 0;
}

static int set_cluster_size(struct request *request, const char *value)
{
    if (!strcmp(value, "512")) { /* the only one that is no whole number of KiB */
        request->image.qcow2.cluster_size = 512;
        return 0;
    }
    return size_parse(value, &request->image.qcow2.cluster_size);
}

static int set_compat(struct request *request, const char *value)
{
    request->image.qcow2.version = (unsigned)strtoul(value, NULL, 10);
    return strcmp(value, "2") && strcmp(value, "3") ? fail(-EINVAL, "--compat: 2 or 3") : 0;
}

static int set_refcount_bits(struct request *request, const char *value)
{
    char *end;
    request->image.qcow2.refcount_bits = (unsigned)strtoul(value, &end, 10);
    return *end || !request->image.qcow2.refcount_bits
               ? fail(-EINVAL, "--refcount-bits: 1, 2, 4, 8, 16, 32 or 64")
               : 0;
}

static const struct option options[] = {
    {"format", "create info check convert resize map", set_format, true},
    {"to", "convert", set_to, true},
    {"backing", "create convert resize map", set_backing, true},
    {"cluster-size", "create convert", set_cluster_size, true},
    {"compat", "create convert", set_compat, true},
    {"refcount-bits", "create convert", set_refcount_bits, true},
    {"lazy-refcounts", "create convert", set_lazy, false},
    {"force", "create convert", set_force, false},
    {"shrink", "resize", set_shrink, false},
    {"repair", "check", set_repair, false},
    {"json", "info check map", set_json, false},
};

/* `--name value` or `--name=value`; returns how many arguments were used up, or -EINVAL. */
static int parse_option(struct request *request, const char *verb, char **argv)
{
    const char *name = argv[0] + 2, *equals = strchr(name, '=');
    size_t length = equals ? (size_t)(equals - name) : strlen(name);
    for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
        const struct option *option = &options[i];
        if (strlen(option->name) != length || strncmp(option->name, name, length) ||
            !strstr(option->verbs, verb)) {
            continue;
        }
        const char *value = equals ? equals + 1 : option->has_value ? argv[1] : NULL;
        if (option->has_value && !value) {
            return fail(-EINVAL, "--%s needs a value", option->name);
        }
        if (!option->has_value && value) {
            return fail(-EINVAL, "--%s takes no value", option->name);
        }
        int error = option->set(request, value);
        return error ? error : option->has_value && !equals ? 2 : 1;
    }
    return fail(-EINVAL, "'doppel disk %s' has no option %s ('doppel help disk' lists them)", verb,
                argv[0]);
}

/* `most`: words that are no options. The last of them is a size if `has_size`. */
static int parse(struct request *request, const char *verb, char **argv, unsigned least,
                 unsigned most, bool has_size)
{
    const char *words[3];
    unsigned count = 0;
    while (*argv) {
        if (!strncmp(*argv, "--", 2)) {
            int used = parse_option(request, verb, argv);
            if (used < 0) {
                return used;
            }
            argv += used;
            continue;
        }
        if (count == most) {
            return fail(-EINVAL, "'%s' is one word too many", *argv);
        }
        words[count++] = *argv++;
    }
    if (count < least) {
        return fail(-EINVAL, "no %s given",
                    count == 0 ? "file"
                    : has_size ? "size"
                               : "second file");
    }
    request->size = has_size && count == most ? words[--count] : NULL;
    for (unsigned i = 0; i < count; i++) {
        request->files[i] = words[i];
    }
    request->file_count = count;
    return 0;
}

/* On a terminal only. */
static void show_progress(void *owner, uint64_t done, uint64_t total)
{
    unsigned *shown = owner;
    unsigned now = total ? (unsigned)(done * 100 / total) : 100;
    if (now != *shown) {
        *shown = now;
        fprintf(stderr, "\r%3u%%%s", now, now == 100 ? "\r    \r" : "");
    }
}
typedef void progress_call(void *owner, uint64_t done, uint64_t total);

static progress_call *progress(void)
{
    return isatty(STDERR_FILENO) ? show_progress : NULL;
}

static int open_image(const struct request *request, const struct disk_options *more,
                      struct disk **ret_disk)
{
    struct disk_options opened = *more;
    opened.format = request->format;
    opened.synchronous = true;
    opened.backing = request->backing;
    opened.backing_count = request->backing_count;
    return disk_open(request->files[0], &opened, ret_disk);
}

/* Reading alone does no harm: what looks like one of our formats is taken for it. */
static int find_format(struct request *request)
{
    if (request->format != DISK_FORMAT_UNKNOWN) {
        return 0;
    }
    return disk_format_find(request->files[0], &request->format);
}

/* The new image's backing file: its size, its format, and its name for the header. */
static int take_backing(struct request *request, char **ret_name)
{
    struct request base = {.files = {request->backing[0]}};
    struct disk *disk;
    if (request->backing_count != 1) {
        return fail(-EINVAL, "--backing: one file, the one below the new image");
    }
    if (!strncmp(base.files[0], "raw:", 4)) {
        base.format = DISK_FORMAT_RAW;
        base.files[0] += 4;
    } else if (!strncmp(base.files[0], "qcow2:", 6)) {
        base.format = DISK_FORMAT_QCOW2;
        base.files[0] += 6;
    }
    int error =
        open_image(&base, &(struct disk_options){.readonly = true, .no_backing = true}, &disk);
    if (error) {
        return fail(error, "the backing file (its format can be given: --backing qcow2:FILE)");
    }
    if (!request->image.qcow2.size) {
        request->image.qcow2.size = disk->size;
    }
    disk_free(disk);
    *ret_name = realpath(base.files[0], NULL);
    request->image.qcow2.backing = *ret_name;
    request->image.qcow2.backing_format =
        disk_format_name(base.format == DISK_FORMAT_UNKNOWN ? DISK_FORMAT_RAW : base.format);
    return *ret_name ? 0 : fail(-errno, "'%s': %s", base.files[0], strerror(errno));
}

static int disk_create(struct request *request, char **argv)
{
    char *name = NULL;
    int error = parse(request, "create", argv, 1, 2, true);
    if (!error && request->size) {
        error = size_parse(request->size, &request->image.qcow2.size);
    }
    if (!error && !request->size && !request->backing_count) {
        error = fail(-EINVAL, "no size given: doppel disk create FILE SIZE, like 10G");
    }
    if (error) {
        return STATUS_USAGE;
    }
    request->image.format =
        request->format == DISK_FORMAT_UNKNOWN ? DISK_FORMAT_QCOW2 : request->format;
    if (request->backing_count && request->image.format != DISK_FORMAT_QCOW2) {
        fail(-EINVAL, "a raw image has no backing file");
        return STATUS_USAGE;
    }
    error = request->backing_count ? take_backing(request, &name) : 0;
    if (!error) {
        error = disk_image_create(request->files[0], &request->image);
    }
    free(name);
    return error ? STATUS_FAILED : STATUS_OK;
}

static json_t *facts_json(const struct request *request, struct disk *disk)
{
    struct stat status = {0};
    struct qcow2_facts facts;
    json_t *object = json_object();
    if (stat(request->files[0], &status)) {
        status.st_size = 0; /* it went just now */
    }
    json_object_set_new(object, "file", json_string(request->files[0]));
    json_object_set_new(object, "format", json_string(disk_format_name(request->format)));
    json_object_set_new(object, "size", json_integer((json_int_t)disk->size));
    json_object_set_new(object, "file_size", json_integer(status.st_size));
    json_object_set_new(object, "used", json_integer((json_int_t)status.st_blocks * 512));
    if (!qcow2_facts(disk, &facts)) {
        return object;
    }
    json_object_set_new(object, "version", json_integer(facts.version));
    json_object_set_new(object, "cluster_size", json_integer((json_int_t)facts.cluster_size));
    json_object_set_new(object, "refcount_bits", json_integer(facts.refcount_bits));
    json_object_set_new(object, "lazy_refcounts", json_boolean(facts.lazy_refcounts));
    json_object_set_new(object, "compression", json_string(facts.compression));
    json_object_set_new(object, "dirty", json_boolean(facts.dirty));
    json_object_set_new(object, "corrupt", json_boolean(facts.corrupt));
    json_object_set_new(object, "snapshots", json_integer(facts.snapshots));
    if (facts.backing) {
        json_object_set_new(object, "backing", json_string(facts.backing));
        json_object_set_new(object, "backing_format",
                            facts.backing_format ? json_string(facts.backing_format) : json_null());
    }
    return object;
}

static void print_json(json_t *value)
{
    json_dumpf(value, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    putchar('\n');
    json_decref(value);
}

/* An object of plain values, one line each. */
static void print_object(json_t *object)
{
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value)
    {
        printf("%-15s ", key);
        if (json_is_string(value)) {
            printf("%s\n", json_string_value(value));
        } else if (json_is_integer(value)) {
            printf("%lld\n", (long long)json_integer_value(value));
        } else {
            printf("%s\n", json_is_true(value) ? "yes" : json_is_null(value) ? "unknown" : "no");
        }
    }
    json_decref(object);
}

static int disk_info(struct request *request, char **argv)
{
    CLEANUP(disk_free) struct disk *disk = NULL;
    if (parse(request, "info", argv, 1, 1, false)) {
        return STATUS_USAGE;
    }
    const struct disk_options look = {.readonly = true, .unlocked = true, .no_backing = true};
    if (find_format(request) || open_image(request, &look, &disk)) {
        return STATUS_FAILED;
    }
    json_t *facts = facts_json(request, disk);
    if (request->json) {
        print_json(facts);
    } else {
        print_object(facts);
    }
    return STATUS_OK;
}

static int disk_check(struct request *request, char **argv)
{
    CLEANUP(disk_free) struct disk *disk = NULL;
    struct qcow2_report report;
    unsigned shown = UINT32_MAX;
    if (parse(request, "check", argv, 1, 1, false)) {
        return STATUS_USAGE;
    }
    const struct disk_options check = {
        .readonly = !request->repair, .repair = true, .no_backing = true};
    if (find_format(request)) {
        return STATUS_FAILED;
    }
    if (request->format != DISK_FORMAT_QCOW2) {
        fail(-EINVAL, "'%s': only qcow2 images can be checked", request->files[0]);
        return STATUS_FAILED;
    }
    if (open_image(request, &check, &disk) ||
        qcow2_check(disk, request->repair, progress(), &shown, &report)) {
        return STATUS_FAILED;
    }
    json_t *object = json_object();
    json_object_set_new(object, "file", json_string(request->files[0]));
    json_object_set_new(object, "errors", json_integer((json_int_t)report.errors));
    json_object_set_new(object, "bad_entries", json_integer((json_int_t)report.bad));
    json_object_set_new(object, "leaks", json_integer((json_int_t)report.leaks));
    json_object_set_new(object, "dirty", json_boolean(report.was_dirty));
    json_object_set_new(object, "corrupt", json_boolean(report.was_corrupt));
    json_object_set_new(object, "allocated", json_integer((json_int_t)report.allocated));
    json_object_set_new(object, "compressed", json_integer((json_int_t)report.compressed));
    json_object_set_new(object, "repaired", json_boolean(report.repaired));
    if (request->json) {
        print_json(object);
    } else {
        print_object(object);
    }
    if (report.repaired) {
        return STATUS_OK;
    }
    return report.errors || report.bad || report.was_corrupt || report.was_dirty ? STATUS_ERRORS
           : report.leaks                                                        ? STATUS_LEAKS
                                                                                 : STATUS_OK;
}

static int disk_convert(struct request *request, char **argv)
{
    CLEANUP(disk_free) struct disk *disk = NULL;
    unsigned shown = UINT32_MAX;
    if (parse(request, "convert", argv, 2, 2, false)) {
        return STATUS_USAGE;
    }
    if (request->image.format == DISK_FORMAT_UNKNOWN) {
        fail(-EINVAL, "no format given for the new image: --to raw or --to qcow2");
        return STATUS_USAGE;
    }
    const struct disk_options read = {.readonly = true};
    return open_image(request, &read, &disk) ||
                   disk_image_convert(disk, request->files[1], &request->image, progress(), &shown)
               ? STATUS_FAILED
               : STATUS_OK;
}

static int disk_resize(struct request *request, char **argv)
{
    CLEANUP(disk_free) struct disk *disk = NULL;
    uint64_t size;
    if (parse(request, "resize", argv, 2, 2, true) || size_parse(request->size, &size)) {
        return STATUS_USAGE;
    }
    const struct disk_options change = {0};
    return open_image(request, &change, &disk) ||
                   disk_image_resize(disk, request->format, size, request->shrink)
               ? STATUS_FAILED
               : STATUS_OK;
}

static const char *kind_name(enum disk_extent_kind kind)
{
    static const char *const names[] = {[DISK_EXTENT_HOLE] = "hole",
                                        [DISK_EXTENT_ZERO] = "zero",
                                        [DISK_EXTENT_DATA] = "data",
                                        [DISK_EXTENT_COMPRESSED] = "compressed"};
    return names[kind];
}

static void tell_extent(const struct disk_extent *extent, uint64_t start, json_t *list)
{
    bool has_place = extent->kind == DISK_EXTENT_DATA;
    if (!list) {
        printf("%-16llu %-16llu %-10s %-5u ", (unsigned long long)start,
               (unsigned long long)extent->length, kind_name(extent->kind), extent->depth);
        printf(has_place ? "%llu\n" : "-\n", (unsigned long long)extent->file_offset);
        return;
    }
    json_t *object = json_object();
    json_object_set_new(object, "start", json_integer((json_int_t)start));
    json_object_set_new(object, "length", json_integer((json_int_t)extent->length));
    json_object_set_new(object, "kind", json_string(kind_name(extent->kind)));
    json_object_set_new(object, "depth", json_integer(extent->depth));
    json_object_set_new(object, "offset",
                        has_place ? json_integer((json_int_t)extent->file_offset) : json_null());
    json_array_append_new(list, object);
}

static int disk_map(struct request *request, char **argv)
{
    CLEANUP(disk_free) struct disk *disk = NULL;
    if (parse(request, "map", argv, 1, 1, false)) {
        return STATUS_USAGE;
    }
    const struct disk_options read = {.readonly = true};
    if (find_format(request) || open_image(request, &read, &disk)) {
        return STATUS_FAILED;
    }
    json_t *list = request->json ? json_array() : NULL;
    struct disk_extent run = {0};
    uint64_t start = 0;
    if (!list) {
        printf("%-16s %-16s %-10s %-5s %s\n", "start", "length", "kind", "depth", "offset");
    }
    for (uint64_t at = 0; at < disk->size;) {
        struct disk_extent next;
        if (disk_extent(disk, at, disk->size - at, &next)) {
            json_decref(list);
            return STATUS_FAILED;
        }
        bool goes_on =
            run.length && next.kind == run.kind && next.depth == run.depth &&
            (next.kind != DISK_EXTENT_DATA || next.file_offset == run.file_offset + run.length);
        if (run.length && !goes_on) {
            tell_extent(&run, start, list);
        }
        start = goes_on ? start : at;
        next.length += goes_on ? run.length : 0;
        next.file_offset = goes_on ? run.file_offset : next.file_offset;
        run = next;
        at = start + run.length;
    }
    tell_extent(&run, start, list);
    if (list) {
        print_json(list);
    }
    return STATUS_OK;
}

int command_disk(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*call)(struct request *request, char **argv);
    } verbs[] = {{"create", disk_create},   {"info", disk_info},     {"check", disk_check},
                 {"convert", disk_convert}, {"resize", disk_resize}, {"map", disk_map}};
    struct request request = {0};
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
        char *help[] = {"help", "disk", NULL};
        int status = command_help(2, help);
        return argc < 2 ? STATUS_USAGE : status;
    }
    for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
        if (!strcmp(verbs[i].name, argv[1])) {
            int status = verbs[i].call(&request, argv + 2);
            if (status != STATUS_OK && *trail_text()) {
                report("doppel disk %s: %s\n", argv[1], trail_text());
            }
            return status;
        }
    }
    report("doppel disk: there is no '%s' (known: create, info, check, convert, resize, map)\n",
           argv[1]);
    return STATUS_USAGE;
}
