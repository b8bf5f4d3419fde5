/*
 * The volume `cidata`: what one machine is told that its image cannot know, in the form of
 * cloud-init's NoCloud, and besides in a few lines at its beginning,
 * which images of ours read (docs/images.md).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    SEED_KEYS_MAX = 16,
    SEED_TEXT_MAX = 1 << 20,
    SEED_NAME_MAX = 32,
    SEED_HOST_MAX = 63,
    SEED_KEY_MAX = 1900
};

struct seed {
    const char *instance; /* of this machine alone */
    const char *hostname;
    const char *user;
    bool is_ours;                    /* the image reads the lines: cloud-init adds little */
    bool has_autologin;              /* the user needs no password on the serial console */
    const char *keys[SEED_KEYS_MAX]; /* lines of authorized_keys */
    size_t key_count;
    const char *user_data; /* NULL: made of the above; a file for cloud-init otherwise */
    size_t user_data_size;
};

/* A user's name as useradd takes it; a host's name; a line of authorized_keys: -EINVAL if not. */
int seed_check_user(const char *user) __attribute__((warn_unused_result));
int seed_check_hostname(const char *hostname) __attribute__((warn_unused_result));
int seed_check_key(const char *key) __attribute__((warn_unused_result));

/* Everything was checked. The bytes of the volume; free() them. */
uint8_t *seed_write(const struct seed *seed, size_t *ret_size);
