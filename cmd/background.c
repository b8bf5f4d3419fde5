/* Starting machines in the background, and looking at them: see background.h. */
#include "background.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "attach.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "cmd.h"
#include "control/terminal_filter.h"
#include "machine/report.h"
#include "monitor.h"

static const char messages_name[] = "doppel.log";
/* More than that of our own messages is of no use to anybody. */
enum { MESSAGES_MAX = 1 << 20, NEWS_MAX = 4096, END_SECONDS = 10, SSH_PORT = 22 };

static int open_log(const struct machine *machine, const char *name)
{
    int fd = openat(machine->folder, name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    return fd >= 0 ? fd : fail(-errno, "open %s of machine '%s': %m", name, machine->name);
}

/* Standard error goes to doppel.log; one that has grown begins anew. */
static int open_messages(const struct machine *machine)
{
    struct stat facts;
    int fd = openat(machine->folder, messages_name,
                    O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) {
        return fail(-errno, "open doppel.log of machine '%s': %m", machine->name);
    }
    if (!fstat(fd, &facts) && facts.st_size > MESSAGES_MAX && ftruncate(fd, 0)) {
        return fail(-errno, "empty doppel.log of machine '%s': %m", machine->name);
    }
    return fd;
}

/* No terminal, no standard input and output, and relative paths count from the machine's folder. */
static int settle(const struct machine *machine, struct monitor *monitor)
{
    int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
    int messages = open_messages(machine);
    if (nothing < 0 || messages < 0) {
        return nothing < 0 ? fail(-errno, "open /dev/null: %m") : messages;
    }
    monitor->config.console_log[0] = open_log(machine, "console.0.log");
    monitor->config.console_log[1] = open_log(machine, "console.1.log");
    if (monitor->config.console_log[0] < 0 || monitor->config.console_log[1] < 0) {
        return -EIO;
    }
    if (fchdir(machine->folder) || dup2(nothing, STDIN_FILENO) < 0 ||
        dup2(nothing, STDOUT_FILENO) < 0 || dup2(messages, STDERR_FILENO) < 0) {
        return fail(-errno, "leave the terminal: %m");
    }
    close(nothing);
    close(messages);
    return 0;
}

/* A port of the loopback interface that nobody uses now; 0: none. */
static unsigned free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    CLEANUP_FD int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool good = fd >= 0 && !bind(fd, (struct sockaddr *)&address, sizeof address) &&
                !getsockname(fd, (struct sockaddr *)&address, &size);
    return good ? ntohs(address.sin_port) : 0;
}

/*
 * For 'doppel ssh': a machine of an image has a network unless its user wants another or none, and
 * a machine behind the user-mode network has a port that leads to its port 22, another at each
 * start.
 */
static int forward_ssh(struct vm_config *config, bool has_image)
{
    char text[64];
    const struct net_config *net = &config->net;
    bool is_wanted = net_config_kind(net) == NET_USER || (has_image && net->kind == NET_UNSAID);
    for (size_t i = 0; i < net->forward_count; i++) {
        is_wanted &= net->forwards[i].is_udp || net->forwards[i].guest_port != SSH_PORT;
    }
    unsigned port = is_wanted ? free_port() : 0;
    if (!port) {
        return 0; /* it runs without; 'doppel ssh' says what is missing */
    }
    snprintf(text, sizeof text, "127.0.0.1:%u:%d", port, SSH_PORT);
    return vm_config_set(config, "publish", text);
}

/* In the new process. The lock stays open for as long as it lives; the folders need not. */
static int be_machine(struct machine *machine, const struct start_options *options, int news)
{
    struct machine_facts facts;
    struct monitor monitor = {.gdb = options->gdb,
                              .jail = options->jail,
                              .waits = options->waits,
                              .is_named = true,
                              .is_background = true,
                              .news = news};
    setsid();
    trail_clear();
    vm_config_init(&monitor.config);
    int r = machine_load(machine, &monitor.config, &facts);
    if (!r) {
        r = settle(machine, &monitor);
    }
    if (!r) {
        r = forward_ssh(&monitor.config, *facts.image);
    }
    if (!r) {
        r = vm_config_check(&monitor.config);
    }
    cleanup_close(&machine->folder);
    cleanup_close(&machine->base);
    if (r) {
        ssize_t ignored = write(news, trail_text(), strlen(trail_text()));
        (void)ignored;
        return STATUS_FAILED;
    }
    return monitor_run(&monitor);
}

/* What the new process says: 0, or its sentence. */
static int hear_news(const char *name, int news)
{
    char text[NEWS_MAX + 1];
    size_t size = 0;
    ssize_t got;
    do {
        got = read(news, text + size, NEWS_MAX - size);
        size += got > 0 ? (size_t)got : 0;
    } while ((got > 0 && size < NEWS_MAX) || (got < 0 && errno == EINTR));
    text[size] = '\0';
    if (size == 1 && *text == MONITOR_RUNS) {
        return 0;
    }
    return size ? fail(-ECANCELED, "%s", text)
                : fail(-ECANCELED, "its process died; 'doppel logs --messages %s' may tell why",
                       name);
}

/* Where what the new process says will begin. */
static off_t messages_end(const struct machine *machine)
{
    struct stat facts;
    return fstatat(machine->folder, messages_name, &facts, AT_SYMLINK_NOFOLLOW) ? 0 : facts.st_size;
}

/* Its warnings are for whoever starts it. `messages` is open for reading, or -1. */
static void show_warnings(int messages, off_t begin)
{
    char text[NEWS_MAX + 1];
    struct stat facts;
    if (messages < 0 || fstat(messages, &facts)) {
        return;
    }
    ssize_t size = pread(messages, text, NEWS_MAX, begin <= facts.st_size ? begin : 0);
    text[size > 0 ? size : 0] = '\0';
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        if (strstr(line, "WARNING")) {
            terminal_make_printable(line);
            report("%s\n", line);
        }
    }
}

int background_start(struct machine *machine, const struct start_options *options, pid_t *ret_pid)
{
    char name[REGISTRY_NAME];
    int news[2];
    snprintf(name, sizeof name, "%s", machine->name);
    off_t begin = messages_end(machine);
    if (pipe2(news, O_CLOEXEC)) {
        machine_close(machine);
        return fail(-errno, "make a pipe: %m");
    }
    fflush(NULL); /* or it would be written twice */
    *ret_pid = fork();
    if (*ret_pid == 0) {
        close(news[0]);
        _exit(be_machine(machine, options, news[1]));
    }
    int r = *ret_pid < 0 ? fail(-errno, "start a process: %m") : 0;
    close(news[1]);
    CLEANUP_FD int folder = TAKE_FD(machine->folder);
    machine_close(machine);
    if (!r) {
        r = hear_news(name, news[0]);
        if (r) {
            waitpid(*ret_pid, NULL, 0);
        }
    }
    close(news[0]);
    CLEANUP_FD int messages = openat(folder, messages_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    show_warnings(messages, begin);
    return r ? fail(r, "machine '%s' does not start", name) : 0;
}

/* Its exit status, when it is our child. */
static int wait_for(pid_t pid, int otherwise)
{
    int status;
    if (pid && waitpid(pid, &status, 0) == pid && WIFEXITED(status)) {
        return WEXITSTATUS(status);
    }
    return otherwise;
}

int background_attach(const char *name, pid_t pid)
{
    struct attachment result;
    if (attach(name, pid, &result)) {
        report("doppel: %s\n", trail_text());
        return STATUS_FAILED;
    }
    switch (result.end) {
    case ATTACH_DETACHED:
        report("doppel: %s runs on; 'doppel console %s' shows it again\n", name, name);
        return STATUS_OK;
    case ATTACH_ENDED:
        report("doppel: %s: %s\n", name, result.text);
        machine_wait_end(name, END_SECONDS);
        return wait_for(pid, result.status);
    case ATTACH_LOST:
        break;
    }
    report("doppel: %s: its process ended without a word\n", name);
    return wait_for(pid, STATUS_DIED);
}
