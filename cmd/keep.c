/*
 * doppel start, restart, rename, rm, console: machines that are kept.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "background.h"
#include "base/error.h"
#include "cmd.h"
#include "control/machine.h"
#include "control/registry.h"
#include "machine/report.h"

/* ---- start, restart ---- */

static int start_one(const struct arguments *arguments, const char *name)
{
    struct machine *machine;
    pid_t pid;
    const struct start_options options = {.jail = true};
    int r = machine_open(name, &machine);
    if (!r) {
        r = background_start(machine, &options, &pid);
    }
    if (!r) {
        print_state(arguments, name, "running");
    }
    return r;
}

static int start_and_attach(const char *name)
{
    struct machine *machine;
    pid_t pid;
    const struct start_options options = {.jail = true, .waits = true};
    if (machine_open(name, &machine) || background_start(machine, &options, &pid)) {
        report("doppel start: %s\n", trail_text());
        return STATUS_FAILED;
    }
    return background_attach(name, pid);
}

int command_start(const struct arguments *arguments)
{
    if (!arguments_has(arguments, "console")) {
        return for_each(arguments, start_one);
    }
    if (arguments->count > 1) {
        report("doppel start: --console shows one machine at a time\n");
        return STATUS_USAGE;
    }
    return start_and_attach(arguments->operands[0]);
}

/* It is fine if somebody else stops it, or it ends by itself. */
static int stop_if_running(const char *name, bool force, unsigned seconds)
{
    int r = machine_stop(name, force, seconds);
    if (r && !registry_is_running(name)) {
        trail_clear();
        r = 0;
    }
    return r;
}

static int restart_one(const struct arguments *arguments, const char *name)
{
    unsigned seconds;
    int r = stop_seconds(arguments, &seconds);
    if (!r && !machine_exists(name)) {
        r = registry_is_running(name)
                ? fail(-ENOENT, "machine '%s' is not kept: nothing would start it again", name)
                : 0; /* opening it tells */
    }
    if (!r && registry_is_running(name)) {
        r = stop_if_running(name, arguments_has(arguments, "force"), seconds);
    }
    return r ? r : start_one(arguments, name);
}

int command_restart(const struct arguments *arguments)
{
    unsigned seconds;
    if (stop_seconds(arguments, &seconds)) {
        report("doppel restart: %s\n", trail_text());
        return STATUS_USAGE;
    }
    return for_each(arguments, restart_one);
}

/* ---- rename, rm ---- */

int command_rename(const struct arguments *arguments)
{
    struct machine *machine;
    int r = machine_open(arguments->operands[0], &machine);
    if (!r) {
        r = machine_rename(machine, arguments->operands[1]);
        machine_close(machine);
    }
    if (r) {
        report("doppel rename: %s\n", trail_text());
        return STATUS_FAILED;
    }
    return STATUS_OK;
}

static int remove_one(const struct arguments *arguments, const char *name)
{
    struct machine *machine;
    int r = 0;
    if (arguments_has(arguments, "force") && machine_exists(name) && registry_is_running(name)) {
        r = stop_if_running(name, true, 0);
    }
    if (!r) {
        r = machine_open(name, &machine);
    }
    if (!r) {
        r = machine_remove(machine);
        machine_close(machine);
    }
    if (!r) {
        print_state(arguments, name, "removed");
    }
    return r;
}

int command_rm(const struct arguments *arguments)
{
    return for_each(arguments, remove_one);
}

/* ---- console ---- */

int command_console(const struct arguments *arguments)
{
    return background_attach(arguments->operands[0], 0);
}
