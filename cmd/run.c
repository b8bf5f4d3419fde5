/*
 * doppel run: options to a configuration, the machine, the jail around it, and the machine's end to
 * an exit status.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "backend/console/console.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/loop.h"
#include "cmd.h"
#include "control/commands.h"
#include "control/gdb/server.h"
#include "control/jail.h"
#include "control/machine.h"
#include "control/registry.h"
#include "control/server.h"
#include "control/stats.h"
#include "machine/report.h"
#include "machine/stats.h"
#include "machine/trace.h"
#include "machine/vm.h"
#include "stats_table.h"

struct run {
    struct vm_config config;
    struct vm *vm;
    const char *gdb; /* what --gdb says; NULL: no debugger */
    struct gdb_server *gdb_server;
    bool jail;
    bool verbose;
    bool is_named; /* by the user */
    struct registry_claim claim;
    struct control_server *control;
    int signals; /* a signalfd */
};

CLEANUP_DEFINE(struct vm_config, vm_config_fini)

/* Options of the command itself; the rest belongs to the machine. */
static int set_option(struct run *run, const char *name, const char *value)
{
    if (!strcmp(name, "gdb")) {
        run->gdb = value;
        return gdb_server_check(value);
    }
    run->is_named |= !strcmp(name, "name");
    if (strcmp(name, "jail")) {
        return vm_config_set(&run->config, name, value);
    }
    if (value && !strcmp(value, "on")) {
        run->jail = true;
    } else if (value && !strcmp(value, "off")) {
        run->jail = false;
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
static int parse(struct run *run, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-v")) {
            run->verbose = true;
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
    return vm_config_check(&run->config);
}

/* Lines that may be left out: shown on a terminal, or if asked for. */
static bool may_speak(const struct run *run)
{
    return run->verbose || isatty(STDERR_FILENO);
}

/*
 * Ends by signal come through the loop. (The console restores the terminal on all others.) So does
 * the news that we were stopped and go on.
 */
static int take_signals(struct run *run)
{
    sigset_t taken;
    sigemptyset(&taken);
    sigaddset(&taken, SIGINT);
    sigaddset(&taken, SIGTERM);
    sigaddset(&taken, SIGHUP);
    sigaddset(&taken, SIGQUIT);
    sigaddset(&taken, SIGCONT);
    pthread_sigmask(SIG_BLOCK, &taken, NULL);
    run->signals = signalfd(-1, &taken, SFD_CLOEXEC | SFD_NONBLOCK);
    return run->signals < 0 ? fail(-errno, "make a descriptor for signals: %m") : 0;
}

static void on_signal(void *owner, unsigned events)
{
    struct run *run = owner;
    struct signalfd_siginfo info;
    if (read(run->signals, &info, sizeof info) != sizeof info) {
        return;
    }
    if (info.ssi_signo == SIGCONT) {
        console_stdio_continued();
    } else {
        vm_request_end(run->vm, VM_END_QUIT, info.ssi_signo);
    }
}

/* The machine cannot be taken apart. What the guest has flushed is on its disks. */
static void on_stuck(void *owner, const char *message)
{
    const struct run *run = owner;
    console_stdio_leave();
    report("doppel: %s: %s\n", run->config.name, message);
    _exit(STATUS_DIED);
}

/*
 * The machine's name, which nobody else may have. Where the host has no place for the names, a
 * machine without a name of the user's runs all the same.
 */
static int take_name(struct run *run)
{
    if (run->is_named && machine_exists(run->config.name)) {
        return fail(-EEXIST, "there is a machine '%s' that is kept", run->config.name);
    }
    if (run->is_named) {
        return registry_claim(run->config.name, &run->claim);
    }
    if (registry_claim_any(machine_exists, &run->claim)) {
        if (may_speak(run)) {
            report("doppel: no control socket: %s\n", trail_text());
        }
        trail_clear();
        return 0;
    }
    return vm_config_set(&run->config, "name", run->claim.name);
}

static int open_control(struct run *run)
{
    return run->claim.lock < 0 ? 0
                               : control_server_open(vm_loop(run->vm), run->claim.socket,
                                                     control_commands, run->vm, &run->control);
}

static int enter_jail(const struct run *run)
{
    int listeners[2];
    size_t count = 0;
    if (run->control) {
        listeners[count++] = control_server_descriptor(run->control);
    }
    if (run->gdb_server) {
        listeners[count++] = gdb_server_descriptor(run->gdb_server);
    }
    return jail_enter(listeners, count);
}

static int start(struct run *run, struct watch **ret_watch)
{
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* an image that may not grow is an I/O error for the guest */
    session_prepare();
    int r = take_name(run);
    if (!r) {
        r = vm_new(&run->config, &run->vm);
    }
    if (!r) {
        vm_on_stuck(run->vm, on_stuck, run);
        r = open_control(run);
    }
    if (!r) {
        r = take_signals(run); /* no earlier: reading files may take long, and is best just ended */
    }
    if (r) {
        return r;
    }
    r = watch_new(vm_loop(run->vm), run->signals, LOOP_READABLE, on_signal, run, ret_watch);
    if (r) {
        return r;
    }
    if (run->config.no_reboot && !run->gdb) { /* a debugger may start the machine anew */
        vm_never_resets(run->vm);
    }
    if (run->gdb) {
        r = gdb_server_open(run->gdb, &run->gdb_server);
        r = r ? r : gdb_server_attach(run->gdb_server, run->vm);
        if (r) {
            return r;
        }
    }
    bool landlock = false;
    if (run->jail) {
        r = jail_drop_rights(&landlock);
        if (r) {
            return r;
        }
    }
    r = vm_start(run->vm);
    if (!r && run->jail) {
        r = enter_jail(run);
    }
    if (!r && may_speak(run)) {
        report("doppel: %s: engine %s, %u CPU%s, %llu MiB%s%s%s\n", run->config.name,
               vm_engine_name(run->vm), run->config.cpus, run->config.cpus > 1 ? "s" : "",
               (unsigned long long)(run->config.memory_size >> 20),
               run->jail && !landlock ? ", no Landlock on this host" : "",
               vm_samplers_refused(run->vm) ? ", slower: no timers (ulimit -i)" : "",
               console_stdio_is_terminal() ? "; Ctrl-a x ends, Ctrl-a h helps" : "");
        if (run->gdb_server) {
            report("doppel: %s: gdb -ex 'target remote %s'%s\n", run->config.name,
                   gdb_server_name(run->gdb_server),
                   gdb_server_waits(run->gdb_server) ? " starts it" : "");
        }
    }
    return r;
}

static int status_of(const struct run *run, const struct vm_end *end)
{
    const char *text = "";
    int status = STATUS_OK;
    switch (end->kind) {
    case VM_END_POWER_OFF:
        text = "the guest switched itself off";
        break;
    case VM_END_RESET:
        text = "the guest reset itself, which ends it (--no-reboot)";
        break;
    case VM_END_TRIPLE_FAULT:
        text = "the guest ended by a triple fault (--no-reboot)";
        status = STATUS_TRIPLE_FAULT;
        break;
    case VM_END_DEBUG_EXIT:
        text = "the guest ended by its debug-exit port";
        status = (int)((end->value << 1 | 1) & 0xff);
        break;
    case VM_END_QUIT:
        text = end->value ? "ended by a signal" : "ended by you";
        break;
    case VM_END_NONE:
    case VM_END_ERROR:
        report("doppel: %s: %s\n", run->config.name, end->message);
        return STATUS_DIED;
    }
    if (may_speak(run)) {
        report("doppel: %s: %s\n", run->config.name, text);
    }
    return status;
}

/* Die by the signal that ended us, as whoever sent it expects. */
static void die_by(int signal)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    raise(signal);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

/* --trace stats: the table of all counters. */
static void write_stats(struct vm *vm)
{
    char *text = NULL;
    size_t size;
    FILE *file = open_memstream(&text, &size);
    json_t *stats = stats_json(vm);
    if (file && stats) {
        stats_table_print(file, stats, NULL);
        fclose(file);
        vm_write_trace(vm, text);
    }
    json_decref(stats);
    free(text);
}

static int run_machine(struct run *run)
{
    struct watch *watch = NULL;
    int r = start(run, &watch);
    struct vm_end end = {0};
    if (!r) {
        vm_run(run->vm, &end);
    }
    if (run->config.trace & 1u << TRACE_STATS && !r) {
        write_stats(run->vm);
    }
    watch_free(watch);
    control_server_close(run->control);
    if (r) {
        gdb_server_free(run->gdb_server);
        vm_free(run->vm);
        report("doppel: %s\n", trail_text());
        return STATUS_FAILED;
    }
    int status = status_of(run, &end);
    if (run->gdb_server) {
        gdb_server_end(run->gdb_server, (uint8_t)status);
    }
    gdb_server_free(run->gdb_server);
    vm_free(run->vm);
    if (end.kind == VM_END_QUIT && end.value) {
        die_by((int)end.value);
    }
    return status;
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
    struct run run = {.jail = true, .signals = -1, .claim = {.lock = -1}};
    CLEANUP(vm_config_fini) struct vm_config *config = &run.config;
    vm_config_init(config);
    if (parse(&run, argc, argv)) {
        report("doppel run: %s\n", trail_text());
        return STATUS_USAGE;
    }
    if (!run.jail) {
        report("doppel: WARNING: --jail off: a guest that breaks out of the monitor has all the "
               "rights of this user\n");
    }
    int status = run_machine(&run);
    close(run.signals);
    return status;
}
