/* What translate may do to be fast, as text: the keys of --engine. */
#include "machine/code_policy.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"

CLEANUP_DEFINE(void, free)

static const char *const optimizations[OPTIMIZATIONS] = {
    [OPTIMIZE_GROUPS] = "groups",       [OPTIMIZE_RECIPES] = "recipes",
    [OPTIMIZE_LOOPS] = "loops",         [OPTIMIZE_STRIDES] = "strides",
    [OPTIMIZE_REGISTERS] = "registers", [OPTIMIZE_ADDRESSES] = "addresses",
    [OPTIMIZE_CHAINS] = "chains",       [OPTIMIZE_LINKS] = "links",
    [OPTIMIZE_RETURNS] = "returns",     [OPTIMIZE_STRINGS] = "strings",
    [OPTIMIZE_VERSIONS] = "versions",
};

static int optimization_unknown(const char *name)
{
    char known[256] = "";
    for (unsigned i = 0; i < OPTIMIZATIONS; i++) {
        size_t end = strlen(known);
        snprintf(known + end, sizeof known - end, "%s%s", i ? ", " : "", optimizations[i]);
    }
    return fail(-EINVAL, "without: '%s' is not one of %s", name, known);
}

static int set_without(struct code_policy *policy, const char *value)
{
    CLEANUP(free) void *copy = strdup(value);
    uint32_t without = 0;
    char *rest = copy;
    for (char *name; (name = strsep(&rest, "+"));) {
        unsigned i = 0;
        while (i < OPTIMIZATIONS && strcmp(name, optimizations[i]) != 0) {
            i++;
        }
        if (i == OPTIMIZATIONS) {
            return optimization_unknown(name);
        }
        without |= 1u << i;
    }
    policy->without = without;
    return 0;
}

static int set_random(struct code_policy *policy, const char *value)
{
    char *end;
    errno = 0;
    unsigned long seed = strtoul(value, &end, 10);
    if (value[0] < '0' || value[0] > '9' || *end || errno || seed > UINT32_MAX) {
        return fail(-EINVAL, "random: '%s' is not a number up to %u", value, UINT32_MAX);
    }
    policy->random = (uint32_t)seed;
    return 0;
}

static int set_hot(struct code_policy *policy, const char *value)
{
    static const char *const names[] = {
        [HOT_SAMPLED] = "sampled", [HOT_ALL] = "all", [HOT_NONE] = "none"};
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        if (!strcmp(value, names[i])) {
            policy->hot = (enum hot_code)i;
            return 0;
        }
    }
    return fail(-EINVAL, "hot: '%s' is not one of sampled, all, none", value);
}

int code_policy_set(struct code_policy *policy, const char *key, const char *value)
{
    static const struct {
        const char *key;
        int (*set)(struct code_policy *policy, const char *value);
    } keys[] = {{"hot", set_hot}, {"without", set_without}, {"random", set_random}};
    for (unsigned i = 0; i < ARRAY_SIZE(keys); i++) {
        if (!strcmp(key, keys[i].key)) {
            return keys[i].set(policy, value ? value : "");
        }
    }
    return fail(-ENOENT, "'%s' is not one of hot, without, random", key);
}

int code_policy_parse(struct code_policy *policy, const char *text)
{
    CLEANUP(free) void *copy = strdup(text);
    char *rest = copy;
    for (char *pair; (pair = strsep(&rest, ","));) {
        char *value = strchr(pair, '=');
        if (value) {
            *value++ = 0;
        }
        int r = code_policy_set(policy, pair, value);
        if (r) {
            return r;
        }
    }
    return 0;
}
