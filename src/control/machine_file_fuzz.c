/*
 * Fuzzer of a kept machine's file. The input is the file; what is accepted is written, and read
 * again to the same. Seeds: tests/corpus/machine_file.
 *
 * Guards: src/control/machine_file.c
 */
#include "control/machine_file.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void compare(const struct vm_config *config, const struct vm_config *again)
{
    if (config->setting_count != again->setting_count) {
        abort();
    }
    for (size_t i = 0; i < config->setting_count; i++) {
        const struct vm_setting *a = &config->settings[i], *b = &again->settings[i];
        if (strcmp(a->name, b->name) || !a->value != !b->value ||
            (a->value && strcmp(a->value, b->value))) {
            abort();
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct vm_config config, again;
    struct machine_facts facts, facts_again;
    vm_config_init(&config);
    vm_config_init(&again);
    trail_clear();
    if (!machine_file_read((const char *)data, size, &config, &facts)) {
        char *text;
        if (machine_file_write(&config, &facts, &text) ||
            machine_file_read(text, strlen(text), &again, &facts_again) ||
            facts.created != facts_again.created || facts.removes != facts_again.removes ||
            strcmp(facts.image, facts_again.image)) {
            abort();
        }
        compare(&config, &again);
        free(text);
    } else if (!*trail_text()) {
        abort(); /* each refusal says why */
    }
    vm_config_fini(&again);
    vm_config_fini(&config);
    return 0;
}
