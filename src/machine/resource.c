/* Splitting of resource options; see resource.h. Every failure names the option and the fix. */
#include "machine/resource.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/error.h"

/* Take one comma-separated part off `*text`; ",," stands for a comma. */
static char *take_part(const char **text)
{
    char *part = malloc(strlen(*text) + 1);
    ASSERT(part);
    size_t used = 0;
    const char *at = *text;
    while (*at && !(at[0] == ',' && at[1] != ',')) {
        if (*at == ',') {
            at++;
        }
        part[used++] = *at++;
    }
    part[used] = '\0';
    *text = at;
    return part;
}

static int unknown_key(const char *option, const char *key, const char *const *known)
{
    char list[256] = "";
    size_t used = 0;
    for (size_t i = 0; known[i] && used < sizeof list; i++) {
        int length = (int)strcspn(known[i], "*");
        used += (size_t)snprintf(list + used, sizeof list - used, "%s%.*s", i ? ", " : "", length,
                                 known[i]);
    }
    if (!known[0]) {
        return fail(-EINVAL, "--%s: unknown key '%s' (there are none)", option, key);
    }
    return fail(-EINVAL, "--%s: unknown key '%s' (known: %s)", option, key, list);
}

/* `name`, with `mark` behind it, is in the list. */
static bool is_known(const char *const *known, const char *name, const char *mark)
{
    size_t length = strlen(name);
    for (size_t i = 0; known[i]; i++) {
        if (!strncmp(known[i], name, length) && !strcmp(known[i] + length, mark)) {
            return true;
        }
    }
    return false;
}

static int check_key(const char *option, const struct resource *resource, const char *name,
                     const char *const *known)
{
    if (!*name) {
        return fail(-EINVAL, "--%s: empty key; a comma inside a value is written twice (,,)",
                    option);
    }
    for (size_t i = 0; i < resource->key_count; i++) {
        if (!strcmp(resource->keys[i].name, name) && !is_known(known, name, "*")) {
            return fail(-EINVAL, "--%s: key '%s' is given twice", option, name);
        }
    }
    if (resource->key_count == RESOURCE_KEYS_MAX) {
        return fail(-EINVAL, "--%s: more than %d keys", option, RESOURCE_KEYS_MAX);
    }
    if (is_known(known, name, "") || is_known(known, name, "*")) {
        return 0;
    }
    return unknown_key(option, name, known);
}

int resource_parse(const char *option, const char *text, const char *const *known,
                   struct resource *ret_resource)
{
    *ret_resource = (struct resource){0};
    struct resource resource = {.value = take_part(&text)};
    int r = 0;
    while (*text == ',' && !r) {
        text++;
        char *part = take_part(&text);
        char *equals = strchr(part, '=');
        if (equals) {
            *equals = '\0';
        }
        r = check_key(option, &resource, part, known);
        if (r) {
            free(part);
            break;
        }
        struct resource_key *key = &resource.keys[resource.key_count++];
        key->name = part;
        key->value = equals ? strdup(equals + 1) : NULL;
        ASSERT(!equals || key->value);
    }
    if (r) {
        resource_fini(&resource);
        return r;
    }
    *ret_resource = resource;
    return 0;
}

void resource_fini(struct resource *resource)
{
    for (size_t i = 0; i < resource->key_count; i++) {
        free(resource->keys[i].name);
        free(resource->keys[i].value);
    }
    free(resource->value);
    *resource = (struct resource){0};
}
