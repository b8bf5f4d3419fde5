/*
 * Building an image: Debian packages by mmdebstrap, a file system of them by mke2fs -d, a disk
 * around it with a partition table and a boot loader. Needs no root, no loop devices and no
 * devices: as an ordinary user the packages are installed in a user namespace.
 *
 * Promises: the image is in the store whole or not at all. What programs said is in a log that is
 *           kept, and a failure names the step and the log.
 */
#pragma once

#include "image/store.h"
#include "image/suite.h"

#define IMAGE_SIZE_DEFAULT GIB(4)
#define IMAGE_SIZE_MIN     GIB(1)
#define IMAGE_SIZE_MAX     (GIB(1024) * 4)

/* What a step has done so far. */
struct image_progress {
    unsigned step, steps;
    const char *text; /* "installing packages" */
    uint64_t done, total;
    const char *unit; /* of these: "MB", "packages"; NULL: nothing is counted */
};

struct image_plan {
    struct suite suite;
    const char *mirror;  /* NULL: the host's, if it has this suite, otherwise Debian's */
    const char *include; /* further packages, with commas between; NULL: none */
    uint64_t size;       /* of the disk, bytes */
    bool has_cloud_kernel;
    /* Called from time to time. */
    void (*report)(void *owner, const struct image_progress *progress);
    void *owner;
};

/* Size and words as the user gave them: -EINVAL with a sentence. */
int image_plan_check(const struct image_plan *plan) __attribute__((warn_unused_result));
/*
 * Build an image, unless the store has one of the same packages, options and recipe already:
 * `ret_is_new` tells. The record is a new reference.
 */
int image_build(struct store *store, const struct image_plan *plan, json_t **ret_record,
                bool *ret_is_new) __attribute__((warn_unused_result));
