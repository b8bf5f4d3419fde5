/* What the folder of a machine made of an image gets: see image_run.h. */
#include "image_run.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "backend/disk/qcow2.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "boot/boot.h"
#include "control/registry.h"
#include "image/import.h"
#include "image/user_key.h"
#include "image_progress.h"
#include "machine/report.h"

enum { INVENTIONS = 1000 };
static const char base_name[] = "base", disk_name[] = "disk.qcow2";
static const char default_user[] = "debian", default_memory[] = "1G";

CLEANUP_DEFINE(json_t, json_decref)

/* ---- options ---- */

static int need_value(const char *name, const char *value)
{
    return value && *value ? 0 : fail(-EINVAL, "--%s needs a value", name);
}

int image_run_option(struct image_run *run, const char *name, const char *value)
{
    if (!strcmp(name, "no-autologin")) {
        run->has_no_autologin = true;
        return value ? fail(-EINVAL, "--no-autologin takes no value") : 0;
    }
    const char **field = !strcmp(name, "user")         ? &run->user
                         : !strcmp(name, "hostname")   ? &run->hostname
                         : !strcmp(name, "cloud-init") ? &run->cloud_init
                                                       : NULL;
    bool is_key = !strcmp(name, "ssh-key");
    if (!field && !is_key) {
        return -ENOENT;
    }
    int r = need_value(name, value);
    if (r) {
        return r;
    }
    if (is_key && run->key_count == SEED_KEYS_MAX - 1) {
        return fail(-EINVAL, "--ssh-key: at most %d keys", SEED_KEYS_MAX - 1);
    }
    *(is_key ? &run->keys[run->key_count++] : field) = value;
    r = field == &run->user ? seed_check_user(value) : 0;
    return r || field != &run->hostname ? r : seed_check_hostname(value);
}

bool image_run_has_options(const struct image_run *run)
{
    return run->user || run->hostname || run->cloud_init || run->key_count || run->has_no_autologin;
}

/* ---- the image ---- */

/* An image that is not there, and has the name of one that can be built. */
static int build(struct image_run *run)
{
    struct image_plan plan = {.size = IMAGE_SIZE_DEFAULT};
    char why[1024];
    bool is_new;
    snprintf(why, sizeof why, "%s", trail_text());
    trail_clear();
    int r = suite_find(run->image, &plan.suite);
    if (r) {
        return fail(r, "%s", why);
    }
    if (!store_find(&run->store, plan.suite.name, &run->record)) {
        return 0; /* by another of its names */
    }
    trail_clear();
    report("doppel: there is no image '%s' yet: building it takes minutes\n", plan.suite.name);
    return image_build_shown(&run->store, &plan, &run->record, &is_new);
}

int image_run_open(struct image_run *run)
{
    run->store.folder = -1;
    int r = store_open(&run->store);
    if (r) {
        return r;
    }
    if (run->image) {
        r = store_find(&run->store, run->image, &run->record);
        return r == -ENOENT ? build(run) : r;
    }
    CLEANUP(json_decref) json_t *records = NULL;
    r = store_list(&run->store, &records);
    if (!r && !json_array_size(records)) {
        return fail(-ENOENT, "no kernel given (--kernel FILE), and there is no image to make a "
                             "machine of: 'doppel image build debian:12' builds one");
    }
    run->record = r ? NULL : json_incref(json_array_get(records, 0));
    return r;
}

void image_run_close(struct image_run *run)
{
    store_close(&run->store);
    json_decref(run->record);
    run->record = NULL;
}

static const char *text_of(const json_t *record, const char *key)
{
    const char *text = json_string_value(json_object_get(record, key));
    return text ? text : "";
}

/* ---- the seed ---- */

/* The machine's name, as far as it can be a host's. */
static void hostname_of(const char *name, char ret_hostname[SEED_HOST_MAX + 1])
{
    size_t length = 0;
    for (const char *at = name; *at && length < SEED_HOST_MAX; at++) {
        bool is_good = isalnum((unsigned char)*at) || (length && (*at == '-' || *at == '.'));
        if (is_good) {
            ret_hostname[length++] = *at;
        } else if (length && ret_hostname[length - 1] != '-') {
            ret_hostname[length++] = '-';
        }
    }
    while (length && !isalnum((unsigned char)ret_hostname[length - 1])) {
        length--;
    }
    ret_hostname[length] = '\0';
    if (!length) {
        strcpy(ret_hostname, "machine");
    }
}

/* A key as such, or a file with one; free() it. */
static int read_key(const char *given, char **ret_key)
{
    struct boot_file file = {0};
    if (strchr(given, ' ')) {
        *ret_key = strdup(given);
        ASSERT(*ret_key);
        return seed_check_key(given);
    }
    int r = boot_file_read(given, 65536, &file);
    if (r) {
        return r;
    }
    *ret_key = strndup((const char *)file.data, file.size);
    ASSERT(*ret_key);
    (*ret_key)[strcspn(*ret_key, "\r\n")] = '\0';
    boot_file_free(&file);
    r = seed_check_key(*ret_key);
    return r ? fail(r, "--ssh-key %s", given) : 0;
}

static void invent_instance(char ret_instance[33])
{
    uint8_t bytes[16];
    ASSERT(getrandom(bytes, sizeof bytes, 0) == sizeof bytes);
    for (size_t i = 0; i < sizeof bytes; i++) {
        sprintf(ret_instance + 2 * i, "%02x", bytes[i]);
    }
}

static int write_seed(const struct image_run *run, struct seed *seed, int folder)
{
    struct boot_file user_data = {0};
    size_t size;
    int r = run->cloud_init ? boot_file_read(run->cloud_init, SEED_TEXT_MAX, &user_data) : 0;
    if (r) {
        return fail(r, "--cloud-init");
    }
    seed->user_data = (const char *)user_data.data;
    seed->user_data_size = user_data.size;
    uint8_t *volume = seed_write(seed, &size);
    r = file_replace(folder, "seed.iso", volume, size);
    free(volume);
    boot_file_free(&user_data);
    return r;
}

/* Without a key of Doppel's there is still the console. */
static void add_own_key(struct seed *seed, char public[USER_KEY_PUBLIC])
{
    char path[USER_KEY_PATH];
    if (user_key(path, public)) {
        report("doppel: WARNING: no key for ssh: %s\n", trail_text());
        trail_clear();
    } else {
        seed->keys[seed->key_count++] = public;
    }
}

static int make_seed(const struct image_run *run, const char *name, int folder)
{
    char instance[33], hostname[SEED_HOST_MAX + 1], public[USER_KEY_PUBLIC];
    char *keys[SEED_KEYS_MAX] = {0};
    invent_instance(instance);
    hostname_of(name, hostname);
    struct seed seed = {.instance = instance,
                        .hostname = run->hostname ? run->hostname : hostname,
                        .user = run->user ? run->user : default_user,
                        .is_ours = json_object_get(run->record, "recipe") != NULL,
                        .has_autologin = !run->has_no_autologin};
    int r = 0;
    for (size_t i = 0; i < run->key_count && !r; i++) {
        r = read_key(run->keys[i], &keys[i]);
        seed.keys[seed.key_count++] = keys[i];
    }
    if (!r) {
        add_own_key(&seed, public);
        r = write_seed(run, &seed, folder);
        r = r ? r : file_replace(folder, "ssh-user", seed.user, strlen(seed.user));
    }
    for (size_t i = 0; i < run->key_count; i++) {
        free(keys[i]);
    }
    return r;
}

/* ---- the machine ---- */

static bool was_given(const struct vm_config *config, const char *option)
{
    for (size_t i = 0; i < config->setting_count; i++) {
        if (!strcmp(config->settings[i].name, option)) {
            return true;
        }
    }
    return false;
}

/* The image's content never changes: it becomes a file of the machine's folder, too. */
static int make_base(struct image_run *run, int folder)
{
    char name[48];
    store_content_name(run->record, name);
    if (!linkat(run->store.folder, name, folder, base_name, 0)) {
        return 0;
    }
    /* another file system, or one without links */
    CLEANUP_FD int from = openat(run->store.folder, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    CLEANUP_FD int to = openat(folder, base_name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (from < 0 || to < 0) {
        return fail(-errno, "copy the image %s: %m", text_of(run->record, "name"));
    }
    int r = image_copy(from, to);
    return r || !fsync(to) ? r : fail(-errno, "copy the image to the disk: %m");
}

/* What the machine writes goes to a qcow2 image of its own, on top of that. */
static int make_disk(struct image_run *run, int folder)
{
    const struct disk_options options = {.synchronous = true};
    const struct qcow2_create create = {
        .size = (uint64_t)json_integer_value(json_object_get(run->record, "size")),
        .backing = base_name,
        .backing_format = text_of(run->record, "format")};
    struct disk *file;
    char path[64];
    CLEANUP_FD int made = openat(folder, disk_name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (made < 0) {
        return fail(-errno, "make the machine's disk: %m");
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", made);
    int r = make_base(run, folder);
    r = r ? r : disk_file_open(path, &options, &file);
    if (r) {
        return r;
    }
    r = qcow2_create(file, &create);
    r = r ? r : disk_flush(file);
    disk_free(file);
    return r;
}

static int fill(void *owner, int folder, struct vm_config *config)
{
    struct image_run *run = owner;
    char disk[96];
    int r = make_disk(run, folder);
    r = r ? r : make_seed(run, config->name, folder);
    snprintf(disk, sizeof disk, "%s,format=qcow2,backing=%.16s:%s", disk_name,
             text_of(run->record, "format"), base_name);
    r = r ? r : vm_config_set(config, "disk", disk);
    r = r ? r : vm_config_set(config, "disk", "seed.iso,format=raw,readonly");
    if (!r && !was_given(config, "memory")) {
        r = vm_config_set(config, "memory", default_memory);
    }
    if (!r && !was_given(config, "net")) {
        r = vm_config_set(config, "net", "user");
    }
    /* Images of ours read the seed by themselves; cloud-init takes ten seconds more. */
    if (!r && json_object_get(run->record, "recipe") && !run->cloud_init &&
        !was_given(config, "append") && !was_given(config, "kernel")) {
        r = vm_config_set(config, "append", "+cloud-init=disabled");
    }
    return r ? r : vm_config_check(config);
}

static int invent_name(char ret_name[REGISTRY_NAME])
{
    for (unsigned i = 0; i < INVENTIONS; i++) {
        registry_invent(i, ret_name);
        if (!machine_exists(ret_name) && !registry_is_running(ret_name)) {
            return 0;
        }
    }
    return fail(-EEXIST, "no name for the machine is free");
}

int image_run_create(struct image_run *run, const struct machine_plan *plan,
                     struct machine **ret_machine)
{
    struct machine_plan whole = *plan;
    char name[REGISTRY_NAME];
    int r = plan->name ? 0 : invent_name(name);
    if (!r && !plan->name) { /* the seed has it in it */
        whole.name = name;
        r = vm_config_set(whole.config, "name", name);
    }
    whole.image = text_of(run->record, "name");
    whole.fill = fill;
    whole.owner = run;
    return r ? r : machine_create(&whole, ret_machine);
}
