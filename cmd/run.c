/*
 * doppel run and launch: options to a configuration, and that to a machine that lives as long as
 * this process (monitor.h), or to one that is kept and runs in a process of its own (background.h).
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "background.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "cmd.h"
#include "control/gdb/server.h"
#include "image_run.h"
#include "machine/report.h"
#include "monitor.h"

struct run {
    struct monitor monitor;
    struct image_run image;
    bool has_image;      /* it is made of one */
    bool keeps, removes; /* --keep, --rm */
    bool launches;       /* the command is launch */
};

CLEANUP_DEFINE(struct vm_config, vm_config_fini)

/* Those of the command itself; the machine's are in vm_options(). */
static const struct command_option own_options[] = {
    {"cloud-init", "FILE", "with an image: user-data for its cloud-init"},
    {"ssh-key", "FILE|KEY", "with an image: who may log in; may be repeated"},
    {"user", "NAME", "with an image: the user there (default debian)"},
    {"hostname", "NAME", "with an image: its own name (default that of the machine)"},
    {"no-autologin", NULL, "with an image: the serial console asks who logs in"},
    {"keep", NULL, "keep the machine when it is off ('doppel start' starts it again)"},
    {"rm", NULL, "drop it when it is off"},
    {"gdb", "PORT|PATH[,wait=on]", "let GDB debug the machine"},
    {"jail", "on|off", "lock the process down before the guest runs"},
    {"v", NULL, "speak also where standard error is no terminal"},
    {NULL, NULL, NULL},
};

const struct command_option *run_own_options(void)
{
    return own_options;
}

static int set_jail(struct run *run, const char *value)
{
    if (!value || (strcmp(value, "on") && strcmp(value, "off"))) {
        return fail(-EINVAL, "--jail: on or off");
    }
    run->monitor.jail = !strcmp(value, "on");
    return 0;
}

static int set_option(struct run *run, const char *name, const char *value)
{
    if (!strcmp(name, "gdb")) {
        run->monitor.gdb = value;
        return gdb_server_check(value);
    }
    if (!strcmp(name, "jail")) {
        return set_jail(run, value);
    }
    if (!strcmp(name, "keep") || !strcmp(name, "rm")) {
        *(*name == 'k' ? &run->keeps : &run->removes) = true;
        return value ? fail(-EINVAL, "--%s takes no value", name) : 0;
    }
    int r = image_run_option(&run->image, name, value);
    if (r != -ENOENT) {
        return r;
    }
    run->monitor.is_named |= !strcmp(name, "name");
    return vm_config_set(&run->monitor.config, name, value);
}

static bool takes_value(const char *name)
{
    for (const struct vm_option *option = vm_options(); option->name; option++) {
        if (!strcmp(option->name, name)) {
            return option->argument;
        }
    }
    for (const struct command_option *option = own_options; option->name; option++) {
        if (!strcmp(option->name, name)) {
            return option->argument;
        }
    }
    return false;
}

/* `--name value`, `--name=value`, `--switch`, `-v`. */
static int parse(struct run *run, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-v")) {
            run->monitor.verbose = true;
            continue;
        }
        if (!strcmp(argv[i], "-p")) {
            int r = set_option(run, "publish", argv[++i]);
            if (r) {
                return r;
            }
            continue;
        }
        if (argv[i][0] != '-' && !run->image.image) {
            run->image.image = argv[i];
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
        int r = set_option(run, name, value);
        if (r) {
            return r;
        }
    }
    if (run->keeps && run->removes) {
        return fail(-EINVAL, "--keep and --rm exclude each other");
    }
    const struct vm_config *config = &run->monitor.config;
    run->has_image = run->image.image || (!config->kernel && !config->disk_count);
    if (!run->has_image && image_run_has_options(&run->image)) {
        return fail(-EINVAL, "--cloud-init, --ssh-key, --user, --hostname and --no-autologin are "
                             "for machines of images: doppel run IMAGE");
    }
    return run->has_image ? 0 : vm_config_check(config);
}

/* Only in the background there is a folder to drop, or to keep. */
static int check_kept(const struct run *run)
{
    const struct vm_config *config = &run->monitor.config;
    if (config->time_mode == TIME_DETERMINISTIC) {
        return fail(-EINVAL, "--time instructions is for tests: it is not for machines that are "
                             "kept or run in the background");
    }
    if (run->monitor.gdb && strchr(run->monitor.gdb, '/') && *run->monitor.gdb != '/') {
        return fail(-EINVAL, "--gdb: an absolute path, for a machine with a process of its own");
    }
    return 0;
}

/* Make it and start it. One that does not start is not kept: it has never been of use. */
static int make_and_start(struct run *run, char name[REGISTRY_NAME], pid_t *ret_pid)
{
    const struct machine_plan plan = {
        .name = run->monitor.is_named ? run->monitor.config.name : NULL,
        .config = &run->monitor.config,
        .removes = run->removes,
    };
    const struct start_options options = {
        .gdb = run->monitor.gdb, .jail = run->monitor.jail, .waits = !run->launches};
    struct machine *machine;
    int r = run->has_image ? image_run_open(&run->image) : 0;
    if (!r) {
        r = run->has_image ? image_run_create(&run->image, &plan, &machine)
                           : machine_create(&plan, &machine);
    }
    image_run_close(&run->image);
    if (r) {
        return r;
    }
    snprintf(name, REGISTRY_NAME, "%s", machine->name);
    r = background_start(machine, &options, ret_pid);
    if (r && !machine_open(name, &machine)) {
        char why[1024];
        snprintf(why, sizeof why, "%s", trail_text());
        if (machine_remove(machine)) {
            trail_clear();
        }
        machine_close(machine);
        trail_clear();
        return fail(r, "%s", why);
    }
    return r;
}

void jail_warn(void)
{
    report("doppel: WARNING: --jail off: a guest that breaks out of the monitor has all the "
           "rights of this user\n");
}

static int run_kept(struct run *run)
{
    char name[REGISTRY_NAME];
    pid_t pid;
    if (make_and_start(run, name, &pid)) {
        report("doppel: %s\n", trail_text());
        return STATUS_FAILED;
    }
    if (run->launches) {
        puts(name);
        return STATUS_OK;
    }
    report("doppel: %s\n", name);
    int status = background_attach(name, pid);
    struct machine_names names; /* whoever looks drops what has ended and is not kept */
    if (!machine_list(&names)) {
        machine_names_fini(&names);
    }
    return status;
}

static int run_or_launch(int argc, char **argv, bool launches)
{
    struct run run = {.monitor = {.jail = true, .news = -1},
                      .image = {.store = {.folder = -1}},
                      .launches = launches};
    CLEANUP(vm_config_fini) struct vm_config *config = &run.monitor.config;
    vm_config_init(config);
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is an error with a name */
    int r = parse(&run, argc, argv);
    bool has_folder = launches || run.keeps || run.has_image;
    if (!r && has_folder) {
        r = check_kept(&run);
    }
    if (r) {
        report("doppel %s: %s\n", argv[0], trail_text());
        return STATUS_USAGE;
    }
    if (!run.monitor.jail) {
        jail_warn();
    }
    return has_folder ? run_kept(&run) : monitor_run(&run.monitor);
}

static bool wants_help(int argc, char **argv)
{
    return argc == 2 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"));
}

int command_run(int argc, char **argv)
{
    if (wants_help(argc, argv)) {
        char *help[] = {"help", "run", NULL};
        return command_help(2, help);
    }
    return run_or_launch(argc, argv, false);
}

int command_launch(int argc, char **argv)
{
    if (wants_help(argc, argv)) {
        char *help[] = {"help", "launch", NULL};
        return command_help(2, help);
    }
    return run_or_launch(argc, argv, true);
}
