/*
 * Machines that are made of images: a copy of the image's disk, and a seed with a name, keys and a
 * user.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "control/machine.h"
#include "image/seed.h"
#include "image/store.h"

struct image_run {
    const char *image;                        /* NULL: none was named */
    const char *user, *hostname, *cloud_init; /* NULL: not given */
    const char *keys[SEED_KEYS_MAX];          /* as given: files, or keys */
    size_t key_count;
    bool has_no_autologin;
    /* of image_run_open() */
    struct store store;
    json_t *record;
};

/* One of --cloud-init, --ssh-key, --user, --hostname, --no-autologin? -ENOENT: none of them. */
int image_run_option(struct image_run *run, const char *name, const char *value)
    __attribute__((warn_unused_result));
/* Was one of them given? They are for images only. */
bool image_run_has_options(const struct image_run *run);

/* Find the image, or the newest one if none was named. */
int image_run_open(struct image_run *run) __attribute__((warn_unused_result));
void image_run_close(struct image_run *run);
/* machine_create() of a machine made of the image; `plan` has no image and no fill. */
int image_run_create(struct image_run *run, const struct machine_plan *plan,
                     struct machine **ret_machine) __attribute__((warn_unused_result));
