/*
 * Resource options: `VALUE[,key=value...]`, the one spelling for everything that has a value and
 * properties. A comma inside a value is written twice.
 */
#pragma once

#include <stddef.h>

enum { RESOURCE_KEYS_MAX = 16 };

struct resource_key {
    char *name;
    char *value; /* NULL for a key without "=value" */
};

struct resource {
    char *value;
    struct resource_key keys[RESOURCE_KEYS_MAX];
    size_t key_count;
};

/*
 * Split `text`. `known` lists the allowed keys, ended by NULL; those that may be repeated have a
 * star behind them there. -EINVAL for a key that is not known (the known ones are on the trail), is
 * empty or is given twice, and for too many of them.
 */
int resource_parse(const char *option, const char *text, const char *const *known,
                   struct resource *ret_resource) __attribute__((warn_unused_result));
void resource_fini(struct resource *resource);
