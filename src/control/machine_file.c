/* Writing and reading what machine_file.h describes. */
#include "control/machine_file.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>

#include "base/error.h"

enum { VERSION = 1 };

static json_t *options_json(const struct vm_config *config)
{
    json_t *options = json_array();
    for (size_t i = 0; i < config->setting_count; i++) {
        const struct vm_setting *setting = &config->settings[i];
        json_t *pair = setting->value ? json_pack("[s, s]", setting->name, setting->value)
                                      : json_pack("[s]", setting->name);
        if (json_array_append_new(options, pair)) {
            fail(-EINVAL, "the value of --%s is not UTF-8, and cannot be kept", setting->name);
            json_decref(options);
            return NULL;
        }
    }
    return options;
}

int machine_file_write(const struct vm_config *config, const struct machine_facts *facts,
                       char **ret_text)
{
    json_t *options = options_json(config);
    if (!options) {
        return -EINVAL;
    }
    json_t *root = json_pack("{s:i, s:I, s:b, s:s, s:o}", "version", VERSION, "created",
                             (json_int_t)facts->created, "remove", facts->removes, "image",
                             facts->image, "options", options);
    *ret_text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    return *ret_text ? 0 : fail(-EINVAL, "the image's name is not UTF-8");
}

/* One option: ["name", "value"] or ["switch"]. */
static int read_option(const json_t *pair, struct vm_config *config)
{
    size_t count = json_array_size(pair);
    const char *name = json_string_value(json_array_get(pair, 0));
    const char *value = json_string_value(json_array_get(pair, 1));
    if (!name || count > 2 || (count == 2 && !value)) {
        return fail(-EINVAL, "an option is a name and a value");
    }
    if (!strcmp(name, "name")) {
        return fail(-EINVAL, "the machine's name is that of its folder");
    }
    return vm_config_set(config, name, value);
}

static int read_options(const json_t *options, struct vm_config *config)
{
    if (!json_is_array(options) || json_array_size(options) > VM_SETTINGS_MAX) {
        return fail(-EINVAL, "\"options\" is a list of at most %d", VM_SETTINGS_MAX);
    }
    for (size_t i = 0; i < json_array_size(options); i++) {
        int r = read_option(json_array_get(options, i), config);
        if (r) {
            return r;
        }
    }
    return 0;
}

static int read_facts(const json_t *root, struct machine_facts *facts)
{
    const json_t *version = json_object_get(root, "version");
    const json_t *created = json_object_get(root, "created");
    const json_t *removes = json_object_get(root, "remove");
    const char *image = json_string_value(json_object_get(root, "image"));
    if (!json_is_integer(version) || json_integer_value(version) != VERSION) {
        return fail(-EINVAL, "its version is not %d: another release of doppel made it", VERSION);
    }
    if (!json_is_integer(created) || !json_is_boolean(removes) || !image ||
        strlen(image) >= sizeof facts->image || json_object_size(root) != 5) {
        return fail(-EINVAL,
                    "it has version, created, remove, image and options, and nothing else");
    }
    *facts = (struct machine_facts){.created = json_integer_value(created),
                                    .removes = json_is_true(removes)};
    strcpy(facts->image, image);
    return 0;
}

int machine_file_read(const char *text, size_t size, struct vm_config *config,
                      struct machine_facts *ret_facts)
{
    json_error_t error;
    if (size > MACHINE_FILE_MAX) {
        return fail(-EFBIG, "it is over %d bytes", MACHINE_FILE_MAX);
    }
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    if (!root) {
        return fail(-EINVAL, "no JSON: %s (line %d)", error.text, error.line);
    }
    int r = read_facts(root, ret_facts);
    if (!r) {
        r = read_options(json_object_get(root, "options"), config);
    }
    json_decref(root);
    return r;
}
