/* The folder of images: see store.h. */
#include "image/store.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "image/digest.h"

enum { RECORD_MAX = 4 << 20, TRIES = 100 };
static const char unfinished[] = ".new-";

CLEANUP_DEFINE(json_t, json_decref)

/* ---- the folder ---- */

static const char *text_of(const json_t *record, const char *key)
{
    const char *text = json_string_value(json_object_get(record, key));
    return text ? text : "";
}

static int is_unfinished(const struct dirent *entry)
{
    return !strncmp(entry->d_name, unfinished, strlen(unfinished));
}

static int is_record(const struct dirent *entry)
{
    size_t length = strlen(entry->d_name);
    return length == STORE_ID + 5 && !strcmp(entry->d_name + STORE_ID, ".json");
}

/* Files whose makers are gone: they would hold a lock. */
static void sweep(struct store *store)
{
    struct dirent **entries;
    int count = scandirat(store->folder, ".", &entries, is_unfinished, NULL);
    for (int i = 0; i < count; i++) {
        CLEANUP_FD int fd =
            openat(store->folder, entries[i]->d_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        if (fd >= 0 && !flock(fd, LOCK_EX | LOCK_NB)) {
            unlinkat(store->folder, entries[i]->d_name, 0);
        }
        free(entries[i]);
    }
    if (count >= 0) {
        free(entries);
    }
}

int store_open(struct store *ret_store)
{
    return folder_open(FOLDER_DATA, "images", ret_store->path, &ret_store->folder);
}

void store_close(struct store *store)
{
    cleanup_close(&store->folder);
}

/* Waits for other commands; closing it gives it back. */
static int lock_take(struct store *store, int *ret_lock)
{
    CLEANUP_FD int lock =
        openat(store->folder, "lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (lock < 0 || flock(lock, LOCK_EX)) {
        return fail(-errno, "lock the folder of images: %m");
    }
    *ret_lock = TAKE_FD(lock);
    return 0;
}

int store_check_name(const char *name)
{
    size_t length = strlen(name);
    if (!length || length > STORE_NAME_MAX || !isalnum((unsigned char)*name)) {
        return fail(-EINVAL,
                    "an image's name has 1 to %d characters and begins with a letter or "
                    "digit",
                    STORE_NAME_MAX);
    }
    for (const char *at = name; *at; at++) {
        if (!isalnum((unsigned char)*at) && !strchr("._:-", *at)) {
            return fail(-EINVAL, "an image's name has letters, digits and ._:- only");
        }
    }
    return 0;
}

/* ---- new images ---- */

int store_begin(struct store *store, struct store_file *ret_file)
{
    CLEANUP_FD int lock = -1; /* or another's sweep finds the file before it is locked */
    int r = lock_take(store, &lock);
    if (r) {
        return r;
    }
    sweep(store);
    for (unsigned i = 0; i < TRIES; i++) {
        snprintf(ret_file->name, sizeof ret_file->name, "%s%ld-%u", unfinished, (long)getpid(), i);
        ret_file->fd =
            openat(store->folder, ret_file->name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (ret_file->fd >= 0) {
            /* on a file system without locks nobody sweeps either */
            return flock(ret_file->fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK
                       ? fail(-EBUSY, "lock a new image: %m")
                       : 0;
        }
        if (errno != EEXIST) {
            break;
        }
    }
    return fail(-errno, "make a file in the folder of images, %s: %m", store->path);
}

void store_drop(struct store *store, struct store_file *file)
{
    if (file->fd >= 0) {
        unlinkat(store->folder, file->name, 0);
        close(TAKE_FD(file->fd));
    }
}

void store_content_name(const json_t *record, char ret_name[48])
{
    snprintf(ret_name, 48, "%.*s.%.16s", STORE_ID, text_of(record, "id"),
             text_of(record, "format"));
}

void store_content_path(const struct store *store, const json_t *record, char ret_path[STORE_PATH])
{
    char name[48];
    store_content_name(record, name);
    snprintf(ret_path, STORE_PATH, "%s/%s", store->path, name);
}

static int write_record(struct store *store, const json_t *record)
{
    char name[STORE_ID + 6];
    char *text = json_dumps(record, JSON_INDENT(2));
    ASSERT(text);
    snprintf(name, sizeof name, "%.*s.json", STORE_ID, text_of(record, "id"));
    int r = file_replace(store->folder, name, text, strlen(text));
    free(text);
    return r;
}

static int describe(const struct store_file *file, json_t *record)
{
    struct stat facts;
    struct digest digest;
    char text[DIGEST_TEXT], full[DIGEST_TEXT + 8];
    if (fstat(file->fd, &facts)) {
        return fail(-errno, "look at the new image: %m");
    }
    int r = digest_file(file->fd, (uint64_t)facts.st_size, &digest);
    if (r) {
        return r;
    }
    digest_print(&digest, text);
    snprintf(full, sizeof full, "sha256:%s", text);
    json_object_set_new(record, "file_size", json_integer(facts.st_size));
    json_object_set_new(record, "digest", json_string(full));
    json_object_set_new(record, "id", json_stringn(text, STORE_ID));
    return 0;
}

int store_add(struct store *store, struct store_file *file, json_t *record)
{
    char name[48];
    CLEANUP_FD int lock = -1;
    int r = describe(file, record);
    if (!r && (fchmod(file->fd, 0400) || fsync(file->fd))) {
        r = fail(-errno, "write the image to the disk: %m");
    }
    if (!r) {
        r = lock_take(store, &lock);
    }
    if (r) {
        return r;
    }
    store_content_name(record, name);
    if (renameat2(store->folder, file->name, store->folder, name, RENAME_NOREPLACE)) {
        if (errno != EEXIST) {
            return fail(-errno, "put the image into its folder: %m");
        }
        unlinkat(store->folder, file->name, 0);
    }
    close(TAKE_FD(file->fd));
    return write_record(store, record);
}

/* ---- looking ---- */

/* NULL, if it is not what we write. */
static json_t *read_record(struct store *store, const char *file)
{
    char *text = NULL;
    size_t size;
    struct stat facts;
    char content[48];
    if (file_load(store->folder, file, RECORD_MAX, &text, &size)) {
        return NULL;
    }
    json_t *record = json_loadb(text, size, JSON_REJECT_DUPLICATES, NULL);
    free(text);
    const char *format = text_of(record, "format");
    bool is_good = !strncmp(text_of(record, "id"), file, STORE_ID) &&
                   strlen(text_of(record, "id")) == STORE_ID &&
                   !store_check_name(text_of(record, "name")) &&
                   (!strcmp(format, "raw") || !strcmp(format, "qcow2")) &&
                   json_integer_value(json_object_get(record, "size")) > 0;
    if (is_good) {
        store_content_name(record, content);
        is_good = !fstatat(store->folder, content, &facts, AT_SYMLINK_NOFOLLOW) &&
                  S_ISREG(facts.st_mode) &&
                  facts.st_size == json_integer_value(json_object_get(record, "file_size"));
    }
    if (!is_good) {
        json_decref(record);
        return NULL;
    }
    return record;
}

static int by_age(const void *a, const void *b)
{
    json_int_t first = json_integer_value(json_object_get(*(json_t *const *)a, "created"));
    json_int_t second = json_integer_value(json_object_get(*(json_t *const *)b, "created"));
    return first > second ? -1 : first < second;
}

int store_list(struct store *store, json_t **ret_records)
{
    struct dirent **entries;
    int count = scandirat(store->folder, ".", &entries, is_record, alphasort);
    if (count < 0) {
        return fail(-errno, "look into the folder of images, %s: %m", store->path);
    }
    json_t **records = calloc((size_t)count + 1, sizeof *records);
    ASSERT(records);
    size_t good = 0;
    for (int i = 0; i < count; i++) {
        records[good] = read_record(store, entries[i]->d_name);
        good += records[good] != NULL;
        free(entries[i]);
    }
    free(entries);
    trail_clear(); /* of records that are left out */
    qsort(records, good, sizeof *records, by_age);
    *ret_records = json_array();
    for (size_t i = 0; i < good; i++) {
        json_array_append_new(*ret_records, records[i]);
    }
    free(records);
    return 0;
}

static int fail_unknown(const char *name, const json_t *records)
{
    char known[1024] = "";
    size_t i;
    json_t *record;
    json_array_foreach(records, i, record)
    {
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", text_of(record, "name"));
    }
    return fail(-ENOENT, "there is no image '%.100s' (there are: %s)", name,
                *known ? known : "none");
}

int store_find(struct store *store, const char *name, json_t **ret_record)
{
    CLEANUP(json_decref) json_t *records = NULL;
    size_t i;
    json_t *record;
    int r = store_list(store, &records);
    if (r) {
        return r;
    }
    json_array_foreach(records, i, record)
    {
        if (!strcmp(text_of(record, "name"), name)) {
            *ret_record = json_incref(record);
            return 0;
        }
    }
    json_array_foreach(records, i, record)
    {
        if (strlen(name) >= 4 && !strncmp(text_of(record, "id"), name, strlen(name))) {
            *ret_record = json_incref(record);
            return 0;
        }
    }
    return fail_unknown(name, records);
}

json_t *store_find_key(struct store *store, const char *key)
{
    CLEANUP(json_decref) json_t *records = NULL;
    size_t i;
    json_t *record;
    if (store_list(store, &records)) {
        trail_clear();
        return NULL;
    }
    json_array_foreach(records, i, record)
    {
        if (!strcmp(text_of(record, "key"), key)) {
            return json_incref(record);
        }
    }
    return NULL;
}

int store_use(struct store *store, const json_t *record, unsigned *ret_machines,
              uint64_t *ret_bytes)
{
    char name[48];
    struct stat facts;
    store_content_name(record, name);
    if (fstatat(store->folder, name, &facts, AT_SYMLINK_NOFOLLOW)) {
        return fail(-errno, "look at the image %s: %m", name);
    }
    *ret_machines = (unsigned)facts.st_nlink - 1;
    *ret_bytes = (uint64_t)facts.st_blocks * 512;
    return 0;
}

/* ---- changing ---- */

int store_remove(struct store *store, const json_t *record)
{
    char name[48], file[STORE_ID + 6];
    CLEANUP_FD int lock = -1;
    int r = lock_take(store, &lock);
    if (r) {
        return r;
    }
    snprintf(file, sizeof file, "%.*s.json", STORE_ID, text_of(record, "id"));
    store_content_name(record, name);
    /* the record first: without it the rest is nothing */
    if ((unlinkat(store->folder, file, 0) && errno != ENOENT) || fsync(store->folder) ||
        (unlinkat(store->folder, name, 0) && errno != ENOENT)) {
        return fail(-errno, "remove the image %s: %m", text_of(record, "name"));
    }
    return 0;
}

int store_verify(struct store *store, const json_t *record)
{
    char name[48], text[DIGEST_TEXT];
    struct digest digest;
    struct stat facts;
    store_content_name(record, name);
    CLEANUP_FD int fd = openat(store->folder, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &facts)) {
        return fail(-errno, "open the image %s: %m", name);
    }
    int r = digest_file(fd, (uint64_t)facts.st_size, &digest);
    if (r) {
        return r;
    }
    digest_print(&digest, text);
    const char *wanted = text_of(record, "digest");
    if (strncmp(wanted, "sha256:", 7) || strcmp(wanted + 7, text)) {
        return fail(-EIO, "image '%s' is damaged: its digest is %s instead of %s",
                    text_of(record, "name"), text, wanted);
    }
    return 0;
}
