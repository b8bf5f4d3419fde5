/* Images that others made: a file becomes one of the store, with its format recorded. */
#pragma once

#include "image/store.h"

/*
 * Copy `path`, a raw disk or qcow2 image, into the store, by reference where the file system can
 * do that. Its format is told by its first bytes: what is no qcow2 image and has no magic of
 * another known format is raw. `name` NULL: the file's name without its ending. The record is a new
 * reference.
 */
int image_import(struct store *store, const char *path, const char *name, json_t **ret_record)
    __attribute__((warn_unused_result));

/* Copy a file into an empty one, by reference where the file system can do that; holes stay. */
int image_copy(int from, int to) __attribute__((warn_unused_result));
