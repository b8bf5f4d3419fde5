/* The value of --disk; see disk_option.h. */
#include "machine/disk_option.h"

#include <stdlib.h>
#include <string.h>

#include "backend/disk/image.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"
#include "machine/resource.h"

enum { SERIAL_MAX = 20 };

static char *copy_text(const char *text)
{
    char *copy = strdup(text);
    ASSERT(copy);
    return copy;
}

static int set_format(struct disk_config *disk, const char *value)
{
    return disk_format_parse(value ? value : "", &disk->format);
}

static int set_cache(struct disk_config *disk, const char *value)
{
    return disk_cache_parse(value ? value : "", &disk->cache);
}

static int set_device(struct disk_config *disk, const char *value)
{
    disk->is_nvme = value && !strcmp(value, "nvme");
    return disk->is_nvme || (value && !strcmp(value, "virtio"))
               ? 0
               : fail(-EINVAL, "device '%s' is not known (known: virtio, nvme)",
                      value ? value : "");
}

/* Guests show it to people and make paths of it. */
static int set_serial(struct disk_config *disk, const char *value)
{
    size_t length = value ? strlen(value) : 0;
    for (size_t i = 0; i < length; i++) {
        if (value[i] <= ' ' || value[i] > '~' || value[i] == '/') {
            return fail(-EINVAL, "serial: no spaces, slashes or characters beyond ASCII");
        }
    }
    if (length == 0 || length > SERIAL_MAX) {
        return fail(-EINVAL, "serial: 1 to %d characters", SERIAL_MAX);
    }
    disk->serial = copy_text(value);
    return 0;
}

static int set_backing(struct disk_config *disk, const char *value)
{
    if (!value || !*value) {
        return fail(-EINVAL, "backing: no file given");
    }
    if (disk->backing_count == DISK_BACKING_MAX) {
        return fail(-EINVAL, "backing: at most %d files", DISK_BACKING_MAX);
    }
    disk->backing[disk->backing_count++] = copy_text(value);
    return 0;
}

static int set_errors(struct disk_config *disk, const char *value)
{
    disk->stops = value && !strcmp(value, "stop");
    return disk->stops || (value && !strcmp(value, "report"))
               ? 0
               : fail(-EINVAL, "errors: '%s' is not one of report, stop", value ? value : "");
}

static int set_readonly(struct disk_config *disk, const char *value)
{
    disk->readonly = true;
    return value ? fail(-EINVAL, "readonly takes no value") : 0;
}

static const struct {
    const char *name;
    int (*set)(struct disk_config *disk, const char *value);
} keys[] = {
    {"format", set_format}, {"readonly", set_readonly}, {"device", set_device},
    {"cache", set_cache},   {"serial", set_serial},     {"backing", set_backing},
    {"errors", set_errors},
};

static int apply(struct disk_config *disk, const struct resource *resource)
{
    if (!*resource->value) {
        return fail(-EINVAL, "no file given");
    }
    for (size_t i = 0; i < resource->key_count; i++) {
        const struct resource_key *key = &resource->keys[i];
        for (size_t k = 0; k < ARRAY_SIZE(keys); k++) {
            int r = strcmp(keys[k].name, key->name) ? 0 : keys[k].set(disk, key->value);
            if (r) {
                return r;
            }
        }
    }
    if (disk->backing_count && disk->format != DISK_FORMAT_QCOW2) {
        return fail(-EINVAL, "only an image with format=qcow2 has a backing file");
    }
    disk->path = copy_text(resource->value);
    return 0;
}

int disk_config_parse(const char *value, struct disk_config *ret_disk)
{
    static const char *const known[] = {"format", "readonly", "device",   "cache",
                                        "serial", "errors",   "backing*", NULL};
    struct resource resource;
    int r = resource_parse("disk", value, known, &resource);
    if (r) {
        return r;
    }
    struct disk_config disk = {0};
    r = apply(&disk, &resource);
    resource_fini(&resource);
    if (r) {
        disk_config_fini(&disk);
        return fail(r, "--disk");
    }
    *ret_disk = disk;
    return 0;
}

void disk_config_fini(struct disk_config *disk)
{
    for (size_t i = 0; i < disk->backing_count; i++) {
        free(disk->backing[i]);
    }
    free(disk->path);
    free(disk->serial);
    *disk = (struct disk_config){0};
}

int disk_config_open(const struct disk_config *config, bool synchronous, struct disk **ret_disk)
{
    const char *backing[DISK_BACKING_MAX];
    for (size_t i = 0; i < config->backing_count; i++) {
        backing[i] = config->backing[i];
    }
    const struct disk_options options = {.format = config->format,
                                         .cache = config->cache,
                                         .readonly = config->readonly,
                                         .synchronous = synchronous,
                                         .backing = backing,
                                         .backing_count = config->backing_count};
    return disk_open(config->path, &options, ret_disk);
}

/* A path may say its format before it. */
static const char *skip_format(const char *path)
{
    return !strncmp(path, "raw:", 4) ? path + 4 : !strncmp(path, "qcow2:", 6) ? path + 6 : path;
}

char *disk_config_anchor(const char *value, const char *directory)
{
    static const char key[] = ",backing=";
    size_t per_path = 2 * strlen(directory) + 1; /* a comma is written twice (resource.h) */
    char *text = malloc(strlen(value) + per_path * (DISK_BACKING_MAX + 1) + 1), *to = text;
    ASSERT(text);
    for (unsigned paths = 0; *value;) {
        if (value[0] == ',' && value[1] == ',') {
            *to++ = *value++;
            *to++ = *value++;
            continue;
        }
        if (paths == DISK_BACKING_MAX || strncmp(value, key, sizeof key - 1)) {
            *to++ = *value++;
            continue;
        }
        const char *path = skip_format(value + sizeof key - 1);
        memcpy(to, value, (size_t)(path - value));
        to += path - value;
        value = path;
        paths++;
        for (const char *from = directory; *path != '/' && *from; from++) {
            *to++ = *from;
            if (*from == ',') {
                *to++ = ',';
            }
        }
        if (*path != '/') {
            *to++ = '/';
        }
    }
    *to = '\0';
    return text;
}
