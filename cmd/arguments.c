/* Parsing by the table of arguments.h. */
#include "arguments.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/error.h"
#include "cmd.h"
#include "machine/report.h"

static int option_index(const struct command *command, const char *name, size_t length)
{
    for (int i = 0; command->options && command->options[i].name; i++) {
        const char *known = command->options[i].name;
        if (strlen(known) == length && !strncmp(known, name, length)) {
            return i;
        }
    }
    return -1;
}

static int fail_unknown(const struct command *command, const char *option)
{
    char known[256] = "";
    for (const struct command_option *at = command->options; at && at->name; at++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s%s", used ? ", " : "",
                 at->name[1] ? "--" : "-", at->name);
    }
    return fail(-EINVAL, "there is no option %s (known: %s)", option, *known ? known : "none");
}

/* `--name value`, `--name=value`, `--switch`, `-n`: how many arguments it took. */
static int take_option(struct arguments *arguments, char **argv)
{
    bool is_long = argv[0][1] == '-';
    const char *name = argv[0] + (is_long ? 2 : 1);
    const char *equals = is_long ? strchr(name, '=') : NULL;
    size_t length = equals ? (size_t)(equals - name) : strlen(name);
    int i = is_long == (length > 1) ? option_index(arguments->command, name, length) : -1;
    if (i < 0) {
        return fail_unknown(arguments->command, argv[0]);
    }
    const struct command_option *option = &arguments->command->options[i];
    if (!option->argument && equals) {
        return fail(-EINVAL, "--%s takes no value", option->name);
    }
    const char *value = !option->argument ? NULL : equals ? equals + 1 : argv[1];
    if (option->argument && !value) {
        return fail(-EINVAL, "%s needs a value: %s", argv[0], option->argument);
    }
    arguments->given[i] = true;
    arguments->values[i] = value;
    return option->argument && !equals ? 2 : 1;
}

static int parse(struct arguments *arguments, int argc, char **argv)
{
    const struct command *command = arguments->command;
    bool options_end = false;
    for (int i = 1; i < argc;) {
        if (!options_end && !strcmp(argv[i], "--")) {
            options_end = true;
            i++;
        } else if (!options_end && argv[i][0] == '-' && argv[i][1]) {
            int taken = take_option(arguments, argv + i);
            if (taken < 0) {
                return taken;
            }
            i += taken;
        } else {
            arguments->operands[arguments->count++] = argv[i++];
            options_end |= command->options_first;
        }
    }
    if (arguments->count < command->operands_min || arguments->count > command->operands_max) {
        return fail(-EINVAL, "usage: doppel %s %s", command->name, command->operands);
    }
    return 0;
}

int command_call(const struct command *command, int argc, char **argv)
{
    if (command->run_raw) {
        return command->run_raw(argc, argv);
    }
    if (argc == 2 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        help_command(command);
        return STATUS_OK;
    }
    struct arguments arguments = {.command = command};
    arguments.operands = calloc((size_t)argc, sizeof *arguments.operands);
    ASSERT(arguments.operands);
    int status;
    if (parse(&arguments, argc, argv)) {
        report("doppel %s: %s\n", command->name, trail_text());
        status = STATUS_USAGE;
    } else {
        status = command->run(&arguments);
    }
    free(arguments.operands);
    return status;
}

static int find(const struct arguments *arguments, const char *option)
{
    int i = option_index(arguments->command, option, strlen(option));
    ASSERT(i >= 0);
    return i;
}

bool arguments_has(const struct arguments *arguments, const char *option)
{
    return arguments->given[find(arguments, option)];
}

const char *arguments_value(const struct arguments *arguments, const char *option)
{
    return arguments->values[find(arguments, option)];
}
