/* doppel run: options to a configuration, and that to monitor.h. */
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "cmd.h"
#include "control/gdb/server.h"
#include "machine/report.h"
#include "monitor.h"

CLEANUP_DEFINE(struct vm_config, vm_config_fini)

/* Options of the command itself; the rest belongs to the machine. */
static int set_option(struct monitor *monitor, const char *name, const char *value)
{
    if (!strcmp(name, "gdb")) {
        monitor->gdb = value;
        return gdb_server_check(value);
    }
    monitor->is_named |= !strcmp(name, "name");
    if (strcmp(name, "jail")) {
        return vm_config_set(&monitor->config, name, value);
    }
    if (value && !strcmp(value, "on")) {
        monitor->jail = true;
    } else if (value && !strcmp(value, "off")) {
        monitor->jail = false;
    } else {
        return fail(-EINVAL, "--jail: on or off");
    }
    return 0;
}

static bool takes_value(const char *name)
{
    for (const struct vm_option *option = vm_options(); option->name; option++) {
        if (!strcmp(option->name, name)) {
            return option->argument;
        }
    }
    return !strcmp(name, "jail") || !strcmp(name, "gdb");
}

/* `--name value`, `--name=value`, `--switch`, `-v`. */
static int parse(struct monitor *monitor, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-v")) {
            monitor->verbose = true;
            continue;
        }
        if (!strcmp(argv[i], "-p")) {
            int r = set_option(monitor, "publish", argv[++i]);
            if (r) {
                return r;
            }
            continue;
        }
        if (strncmp(argv[i], "--", 2) || !argv[i][2]) {
            return fail(-EINVAL, "'%s' is no option: they begin with --", argv[i]);
        }
        char name[32];
        const char *equals = strchr(argv[i], '=');
        const char *value = equals ? equals + 1 : NULL;
        size_t length = equals ? (size_t)(equals - argv[i]) - 2 : strlen(argv[i]) - 2;
        snprintf(name, sizeof name, "%.*s", (int)(length < sizeof name ? length : sizeof name),
                 argv[i] + 2);
        if (!value && takes_value(name)) {
            value = argv[++i]; /* argv ends with NULL: then the value is missing */
        }
        int r = set_option(monitor, name, value);
        if (r) {
            return r;
        }
    }
    return vm_config_check(&monitor->config);
}

int command_run(int argc, char **argv)
{
    if (argc < 2) {
        help_first_steps();
        return STATUS_USAGE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
        char *help[] = {"help", "run", NULL};
        return command_help(2, help);
    }
    struct monitor monitor = {.jail = true};
    CLEANUP(vm_config_fini) struct vm_config *config = &monitor.config;
    vm_config_init(config);
    if (parse(&monitor, argc, argv)) {
        report("doppel run: %s\n", trail_text());
        return STATUS_USAGE;
    }
    return monitor_run(&monitor);
}
