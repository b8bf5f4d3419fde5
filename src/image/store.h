/*
 * The images of this user: $XDG_DATA_HOME/doppel/images. For each of them
 *
 *     ID.json     what it is (see below)
 *     ID.raw      its content, which never changes; machines have links to it of their own
 *
 * where ID are the first 12 digits of the content's SHA-256. The record is a JSON object:
 *
 *     name        what the user calls it; if several have one name, the newest is meant
 *     id, digest  SHA-256 of the content, "sha256:..."
 *     format      "raw" or "qcow2", so that nobody has to guess it
 *     size        of the disk; file_size, of the file
 *     created     seconds since 1970
 *     recipe      for those that we built: version of the recipe (takes seeds by a file `doppel`)
 *     key         for those that we built: digest of the packages and options
 *     suite, kernel_flavour, packages (an object: versions by names): likewise
 *
 * Promises: an image is there whole or not at all. Commands that change the folder wait for each
 *           other; what killed ones left is removed by the next.
 * Threads:  one.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "control/folders.h"

enum { STORE_ID = 12, STORE_PATH = FOLDER_PATH + 64, STORE_NAME_MAX = 64 };

struct store {
    int folder;
    char path[FOLDER_PATH];
};

int store_open(struct store *ret_store) __attribute__((warn_unused_result));
void store_close(struct store *store);

/* A name for an image: letters, digits and ._:- */
int store_check_name(const char *name) __attribute__((warn_unused_result));

/*
 * A file for content that is to come, empty and open for reading and writing; store_add() or
 * store_drop() ends it.
 */
struct store_file {
    int fd;
    char name[48];
};
int store_begin(struct store *store, struct store_file *ret_file)
    __attribute__((warn_unused_result));
void store_drop(struct store *store, struct store_file *file);
/*
 * The content is complete: make it an image. `record` gets id, digest and file_size; its name,
 * format and size are there already. An image of the same content keeps its file.
 */
int store_add(struct store *store, struct store_file *file, json_t *record)
    __attribute__((warn_unused_result));

/* All records, the newest first; new reference. Records that cannot be read are left out. */
int store_list(struct store *store, json_t **ret_records) __attribute__((warn_unused_result));
/* By name, or by the first digits of the ID; new reference. -ENOENT with the names that are. */
int store_find(struct store *store, const char *name, json_t **ret_record)
    __attribute__((warn_unused_result));
/* The newest image with this key, or NULL. */
json_t *store_find_key(struct store *store, const char *key);

/* The path of an image's content. */
void store_content_path(const struct store *store, const json_t *record, char ret_path[STORE_PATH]);
/* Its name in the folder. */
void store_content_name(const json_t *record, char ret_name[48]);
/* How many machines have links to it, and what it takes on the disk. */
int store_use(struct store *store, const json_t *record, unsigned *ret_machines,
              uint64_t *ret_bytes) __attribute__((warn_unused_result));
/* Remove it. Machines that were made of it keep its content. */
int store_remove(struct store *store, const json_t *record) __attribute__((warn_unused_result));
/* Is the content what it was? -EIO if it is not. */
int store_verify(struct store *store, const json_t *record) __attribute__((warn_unused_result));
