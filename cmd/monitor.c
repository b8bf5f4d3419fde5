/*
 * The process of a virtual machine, as monitor.h says: its name, the machine, the jail around it,
 * and its end as an exit status.
 */
#include "monitor.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "backend/console/console.h"
#include "backend/disk/disk.h"
#include "base/assert.h"
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
#include "image/kernel_read.h"
#include "machine/report.h"
#include "machine/stats.h"
#include "machine/trace.h"
#include "machine/vm.h"
#include "stats_table.h"

enum { PRESS_SECONDS = 5 };

struct run {
    struct monitor *monitor;
    struct vm_config *config;
    struct vm *vm;
    struct gdb_server *gdb_server;
    struct registry_claim claim;
    struct control_target target;
    struct kernel kernel; /* of the first disk, if none was given */
    struct found_kernel found;
    struct control_server *control;
    int signals;          /* a signalfd */
    bool was_asked;       /* to end, by SIGTERM */
    struct timer *button; /* pressed again, then */
};

/* Lines that may be left out: shown on a terminal, or if asked for. */
static bool may_speak(const struct run *run)
{
    return run->monitor->verbose || run->monitor->is_background || isatty(STDERR_FILENO);
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

/* A driver listens to the button before the programs are there that do something about it. */
static void press_again(void *owner)
{
    struct run *run = owner;
    struct timespec now;
    vm_press_power_button(run->vm);
    clock_gettime(CLOCK_MONOTONIC, &now);
    timer_arm(run->button, (uint64_t)(now.tv_sec + PRESS_SECONDS) * 1000000000);
}

/*
 * The first SIGTERM presses the power button, if the guest listens to it. Returns whether it may be
 * expected to work.
 */
static bool ask_to_end(struct run *run)
{
    if (run->was_asked || !vm_power_button_enabled(run->vm)) {
        return false;
    }
    run->was_asked = true;
    if (may_speak(run)) {
        report("doppel: %s: SIGTERM: the guest is asked to switch itself off; once more ends it\n",
               run->config->name);
    }
    if (!run->monitor->gdb) {
        vm_resume(run->vm); /* or it would never hear of it */
    }
    press_again(run);
    return true;
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
    } else if (info.ssi_signo == SIGHUP && run->monitor->is_background) {
        return; /* the terminal that it was started from is not its own */
    } else if (info.ssi_signo != SIGTERM || !ask_to_end(run)) {
        vm_request_end(run->vm, VM_END_QUIT, info.ssi_signo);
    }
}

/* The machine cannot be taken apart. What the guest has flushed is on its disks. */
static void on_stuck(void *owner, const char *message)
{
    const struct run *run = owner;
    console_stdio_leave();
    report("doppel: %s: %s\n", run->config->name, message);
    _exit(STATUS_DIED);
}

/*
 * The machine's name, which nobody else may have. Where the host has no place for the names, a
 * machine without a name of the user's runs all the same.
 */
static int take_name(struct run *run)
{
    if (run->monitor->is_named && !run->monitor->is_background &&
        machine_exists(run->config->name)) {
        return fail(-EEXIST, "there is a machine '%s' that is kept", run->config->name);
    }
    if (run->monitor->is_named) {
        return registry_claim(run->config->name, &run->claim);
    }
    if (registry_claim_any(machine_exists, &run->claim)) {
        if (may_speak(run)) {
            report("doppel: no control socket: %s\n", trail_text());
        }
        trail_clear();
        return 0;
    }
    return vm_config_set(run->config, "name", run->claim.name);
}

static int open_control(struct run *run)
{
    run->target = (struct control_target){
        .vm = run->vm,
        .config = run->config,
        .started = time(NULL),
        .is_kept = run->monitor->is_background,
        .is_debugged = run->monitor->gdb,
    };
    return run->claim.lock < 0 ? 0
                               : control_server_open(vm_loop(run->vm), run->claim.socket,
                                                     control_commands, &run->target, &run->control);
}

/* In a process that only reads it, and has no threads. */
static int open_disk(void *owner, struct disk **ret_disk)
{
    struct disk_config disk = *(const struct disk_config *)owner;
    disk.readonly = true;
    disk.cache = DISK_CACHE_WRITEBACK;
    return disk_config_open(&disk, true, ret_disk);
}

/* Of the first disk that has one. */
static int read_kernel(struct run *run)
{
    struct vm_config *config = run->config;
    char reasons[1024] = "";
    int r = -ENOENT;
    for (size_t i = 0; r && i < config->disk_count; i++) {
        trail_clear();
        r = kernel_read(open_disk, &config->disks[i], &run->kernel);
        size_t length = strlen(reasons);
        snprintf(reasons + length, sizeof reasons - length, "%sdisk '%s': %s", i ? "; " : "",
                 config->disks[i].path, r ? trail_text() : "");
    }
    trail_clear();
    return r ? fail(r, "no kernel is found (--kernel FILE gives one): %s", reasons) : 0;
}

/* --append +TEXT is for what the disk says, --append TEXT for something else. */
static void set_command_line(struct vm_config *config, const char *found)
{
    const char *own = config->command_line;
    char *whole = NULL;
    if (*own && *own != '+') {
        return;
    }
    ASSERT(asprintf(&whole, "%s%s%s", found, *own ? " " : "", *own ? own + 1 : "") >= 0);
    free(config->command_line);
    config->command_line = whole;
}

/* Without --kernel: the one that the system on a disk would start. */
static int find_kernel(struct run *run)
{
    struct vm_config *config = run->config;
    struct kernel *kernel = &run->kernel;
    if (config->kernel) {
        return 0;
    }
    int r = read_kernel(run);
    if (r) {
        return r;
    }
    run->found.kernel = (struct boot_file){
        .name = kernel->name, .data = TAKE(kernel->kernel), .size = kernel->kernel_size};
    run->found.initrd = (struct boot_file){
        .name = kernel->name, .data = TAKE(kernel->initrd), .size = kernel->initrd_size};
    config->found = &run->found;
    set_command_line(config, kernel->command_line);
    if (may_speak(run)) {
        report("doppel: %s: kernel %s of its disk\n", config->name, kernel->version);
    }
    return 0;
}

static int enter_jail(const struct run *run)
{
    int listeners[3];
    size_t count = 0;
    if (run->control) {
        listeners[count++] = control_server_descriptor(run->control);
    }
    if (run->gdb_server) {
        listeners[count++] = gdb_server_descriptor(run->gdb_server);
    }
    if (vm_listener(run->vm) >= 0) {
        listeners[count++] = vm_listener(run->vm);
    }
    int channels[VM_CHANNELS_MAX];
    return jail_enter(listeners, count, channels, vm_channels(run->vm, channels));
}

static int start(struct run *run, struct watch **ret_watch)
{
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* an image that may not grow is an I/O error for the guest */
    session_prepare();
    int r = take_name(run);
    if (!r) {
        r = find_kernel(run);
    }
    if (!r) {
        r = vm_new(run->config, &run->vm);
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
    run->button = timer_new(vm_loop(run->vm), press_again, run);
    r = watch_new(vm_loop(run->vm), run->signals, LOOP_READABLE, on_signal, run, ret_watch);
    if (r) {
        return r;
    }
    if (run->config->no_reboot && !run->monitor->gdb) { /* a debugger may start the machine anew */
        vm_never_resets(run->vm);
    }
    if (run->monitor->waits && !run->monitor->gdb) {
        vm_start_paused(run->vm);
    }
    if (run->monitor->gdb) {
        r = gdb_server_open(run->monitor->gdb, &run->gdb_server);
        r = r ? r : gdb_server_attach(run->gdb_server, run->vm);
        if (r) {
            return r;
        }
    }
    bool landlock = false;
    if (run->monitor->jail) {
        r = jail_drop_rights(&landlock);
        if (r) {
            return r;
        }
    }
    r = vm_start(run->vm);
    if (!r && run->monitor->jail) {
        r = enter_jail(run);
    }
    if (!r && may_speak(run)) {
        report("doppel: %s: engine %s, %u CPU%s, %llu MiB%s%s%s\n", run->config->name,
               vm_engine_name(run->vm), run->config->cpus, run->config->cpus > 1 ? "s" : "",
               (unsigned long long)(run->config->memory_size >> 20),
               run->monitor->jail && !landlock ? ", no Landlock on this host" : "",
               vm_samplers_refused(run->vm) ? ", slower: no timers (ulimit -i)" : "",
               console_stdio_is_terminal() ? "; Ctrl-a x ends, Ctrl-a h helps" : "");
        if (run->gdb_server) {
            report("doppel: %s: gdb -ex 'target remote %s'%s\n", run->config->name,
                   gdb_server_name(run->gdb_server),
                   gdb_server_waits(run->gdb_server) ? " starts it" : "");
        }
    }
    return r;
}

/* The exit status, and a sentence for it. */
static int status_of(const struct vm_end *end, const char **ret_text)
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
        text = end->message;
        status = STATUS_DIED;
        break;
    }
    *ret_text = text;
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

/* To whoever waits for the start. */
static void tell_news(struct run *run, const char *text)
{
    int *news = &run->monitor->news;
    if (*news >= 0) {
        ssize_t ignored = write(*news, text, strlen(text));
        (void)ignored;
        cleanup_close(news);
        *news = -1;
    }
}

static int end_machine(struct run *run, const struct vm_end *end)
{
    const char *text;
    int status = status_of(end, &text);
    if (may_speak(run) || status == STATUS_DIED) {
        report("doppel: %s: %s\n", run->config->name, text);
    }
    control_server_end(run->control, (uint8_t)status, text);
    control_server_close(run->control);
    if (run->gdb_server) {
        gdb_server_end(run->gdb_server, (uint8_t)status);
    }
    return status;
}

static int run_machine(struct run *run)
{
    static const char runs[] = {MONITOR_RUNS, '\0'};
    struct watch *watch = NULL;
    struct vm_end end = {0};
    int r = start(run, &watch), status = STATUS_FAILED;
    if (!r) {
        tell_news(run, runs);
        vm_run(run->vm, &end);
        if (run->config->trace & 1u << TRACE_STATS) {
            write_stats(run->vm);
        }
        status = end_machine(run, &end);
    } else {
        control_server_close(run->control);
        report("doppel: %s\n", trail_text());
        tell_news(run, trail_text());
    }
    watch_free(watch);
    timer_free(run->button);
    gdb_server_free(run->gdb_server);
    vm_free(run->vm);
    if (end.kind == VM_END_QUIT && end.value) {
        die_by((int)end.value);
    }
    return status;
}

int monitor_run(struct monitor *monitor)
{
    struct run run = {
        .monitor = monitor, .config = &monitor->config, .signals = -1, .claim = {.lock = -1}};
    int status = run_machine(&run);
    boot_file_free(&run.found.kernel);
    boot_file_free(&run.found.initrd);
    kernel_fini(&run.kernel);
    cleanup_close(&run.signals);
    cleanup_close(&run.claim.lock);
    return status;
}
