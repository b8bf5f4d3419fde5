/*
 * Whole images as files: making, converting and resizing them. A file is written aside, made
 * durable, and gets its name at the end: a crash leaves the old file or the new one, whole.
 *
 * Threads: any, one image each.
 */
#pragma once

#include "backend/disk/qcow2.h"

/* "raw" or "qcow2"; -EINVAL with the names that there are. */
int disk_format_parse(const char *text, enum disk_format *ret_format)
    __attribute__((warn_unused_result));
/* "none", "writeback"... */
int disk_cache_parse(const char *text, enum disk_cache *ret_cache)
    __attribute__((warn_unused_result));
const char *disk_format_name(enum disk_format format);
/* The format that a file's first bytes tell: raw if they are no magic, unknown if not ours. */
int disk_format_find(const char *path, enum disk_format *ret_format)
    __attribute__((warn_unused_result));

struct disk_image_new {
    enum disk_format format;
    bool replace;              /* a file that has the name already */
    struct qcow2_create qcow2; /* of a raw image only the size is used */
};
int disk_image_create(const char *path, const struct disk_image_new *image)
    __attribute__((warn_unused_result));

/*
 * An image with the contents of `source`, all of its backing chain included, and with holes where
 * it has zeros. `progress` (NULL: nobody) is told bytes that are done, and of how many.
 */
int disk_image_convert(struct disk *source, const char *path, const struct disk_image_new *image,
                       void (*progress)(void *owner, uint64_t done, uint64_t total), void *owner)
    __attribute__((warn_unused_result));

/* Of an open image that nothing is in flight for. Cutting off needs `shrink`. */
int disk_image_resize(struct disk *disk, enum disk_format format, uint64_t size, bool shrink)
    __attribute__((warn_unused_result));
