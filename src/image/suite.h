/*
 * The systems that an image can be built of: Debian's releases, by the names that people use.
 * Read from distro-info's table, which also mmdebstrap uses; without it, a few are known.
 */
#pragma once

enum { SUITE_TEXT = 32 };

struct suite {
    char name[2 * SUITE_TEXT]; /* "debian:12": what images of it are called */
    char codename[SUITE_TEXT]; /* "bookworm": what archives call it */
    char release[SUITE_TEXT];  /* "12"; "" if it has no number, like sid */
};

/*
 * From "debian:12", "debian:bookworm" or "bookworm". -EINVAL, with the known names on the trail, if
 * there is no such suite, or one that is too old for the recipe.
 */
int suite_find(const char *text, struct suite *ret_suite) __attribute__((warn_unused_result));
