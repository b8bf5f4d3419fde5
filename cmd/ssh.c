/*
 * doppel ssh [USER@]NAME [COMMAND], doppel cp: OpenSSH's programs, told where the machine's port is
 * forwarded, with the key that Doppel has for this user, and with a file of host keys of the
 * machine's own.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "cmd.h"
#include "control/inventory.h"
#include "control/machine.h"
#include "image/user_key.h"
#include "machine/report.h"

enum {
    SSH_PORT = 22,
    WAIT_SECONDS = 120,
    WAIT_MAX = 86400,
    BANNER_MS = 1000,
    ARGUMENTS_MAX = 1024
};

struct target {
    char name[REGISTRY_NAME], user[MACHINE_USER], address[16], hosts[MACHINE_PATH + 16];
    unsigned port;
};

CLEANUP_DEFINE(struct machine, machine_close)
CLEANUP_DEFINE(json_t, json_decref)

/* ---- where the machine is ---- */

/* [USER@]NAME, up to the character `end`. */
static int take_names(struct target *target, const char *text, size_t length)
{
    const char *at = memchr(text, '@', length);
    size_t user = at ? (size_t)(at - text) : 0, skip = at ? user + 1 : 0;
    if ((at && (!user || *text == '-')) || user >= sizeof target->user ||
        length - skip >= sizeof target->name) {
        return fail(-EINVAL, "'%.*s' is no [USER@]NAME", (int)length, text);
    }
    memcpy(target->user, text, user);
    memcpy(target->name, text + skip, length - skip);
    return 0;
}

/* Which port of the host leads to the guest's. */
static int take_forward(struct target *target, const json_t *machine)
{
    const json_t *forwards = json_object_get(machine, "forwards");
    for (size_t i = 0; i < json_array_size(forwards); i++) {
        const json_t *forward = json_array_get(forwards, i);
        const char *protocol = json_string_value(json_object_get(forward, "protocol"));
        const char *address = json_string_value(json_object_get(forward, "address"));
        json_int_t guest = json_integer_value(json_object_get(forward, "guest_port"));
        if (guest == SSH_PORT && address && protocol && !strcmp(protocol, "tcp")) {
            bool is_any = !strcmp(address, "0.0.0.0");
            snprintf(target->address, sizeof target->address, "%s", is_any ? "127.0.0.1" : address);
            target->port = (unsigned)json_integer_value(json_object_get(forward, "host_port"));
            return 0;
        }
    }
    const char *network = json_string_value(json_object_get(machine, "network"));
    return fail(-ENOENT,
                "no port leads to port 22 of machine '%s' (its network: %s); '-p 2222:22' when it "
                "is made forwards one",
                target->name, network ? network : "unknown");
}

static int find(struct target *target)
{
    CLEANUP(json_decref) json_t *info = NULL;
    CLEANUP(machine_close) struct machine *machine = NULL;
    int r = inventory_one(target->name, &info);
    if (r) {
        return r;
    }
    const char *state = json_string_value(json_object_get(info, "state"));
    if (!state || (strcmp(state, "running") && strcmp(state, "starting"))) {
        return fail(-ENOENT, "machine '%s' is %s, and does not run", target->name,
                    state ? state : "unknown");
    }
    r = take_forward(target, info);
    if (r) {
        return r;
    }
    strcpy(target->hosts, "/dev/null");
    if (machine_exists(target->name) && !machine_look(target->name, &machine)) {
        snprintf(target->hosts, sizeof target->hosts, "%s/known_hosts", machine->path);
        if (!*target->user) {
            machine_ssh_user(machine, target->user);
        }
    }
    trail_clear();
    return *target->user
               ? 0
               : fail(-EINVAL, "who logs in to machine '%s'? USER@%s", target->name, target->name);
}

/* ---- waiting for it ---- */

/* Does an ssh server say who it is? A forwarded port takes connections before the guest does. */
static bool has_banner(const struct target *target)
{
    char banner[4] = "";
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)target->port)};
    CLEANUP_FD int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || inet_pton(AF_INET, target->address, &address.sin_addr) != 1 ||
        connect(fd, (struct sockaddr *)&address, sizeof address)) {
        return false;
    }
    struct pollfd wish = {.fd = fd, .events = POLLIN};
    return poll(&wish, 1, BANNER_MS) == 1 && read(fd, banner, sizeof banner) == sizeof banner &&
           !memcmp(banner, "SSH-", sizeof banner);
}

static int wait_for_server(const struct target *target, unsigned seconds)
{
    const struct timespec moment = {.tv_nsec = 100000000};
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    time_t deadline = now.tv_sec + (time_t)seconds;
    while (!has_banner(target)) {
        if (!registry_is_running(target->name)) {
            return fail(-ENOENT, "machine '%s' has ended", target->name);
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec >= deadline) {
            return fail(-ETIMEDOUT, "no ssh server answers in machine '%s' within %u s",
                        target->name, seconds);
        }
        nanosleep(&moment, NULL);
    }
    return 0;
}

static int take_seconds(const struct arguments *arguments, unsigned *ret_seconds)
{
    const char *text = arguments_value(arguments, "timeout");
    *ret_seconds = WAIT_SECONDS;
    return text ? seconds_parse(text, WAIT_MAX, ret_seconds) : 0;
}

/* ---- OpenSSH ---- */

struct command_line {
    const char *words[ARGUMENTS_MAX];
    size_t count;
};

static void add(struct command_line *line, const char *word)
{
    ASSERT(line->count < ARGUMENTS_MAX - 1);
    line->words[line->count++] = word;
}

static void add_option(struct command_line *line, const char *name, const char *value)
{
    char *text;
    ASSERT(asprintf(&text, "%s=%s", name, value) >= 0);
    add(line, "-o");
    add(line, text); /* until the program is another */
}

/* Options of OpenSSH end at a space, unless they are quoted. */
static void add_path(struct command_line *line, const char *name, const char *path)
{
    char *quoted;
    ASSERT(asprintf(&quoted, "\"%s\"", path) >= 0);
    add_option(line, name, quoted);
    free(quoted);
}

static int begin(struct command_line *line, const struct target *target, const char *program,
                 const char *port_option)
{
    char key[USER_KEY_PATH], public[USER_KEY_PUBLIC], *port;
    int r = user_key(key, public);
    if (r) {
        return r;
    }
    bool has_hosts = strcmp(target->hosts, "/dev/null");
    ASSERT(asprintf(&port, "%u", target->port) >= 0);
    add(line, program);
    add_path(line, "IdentityFile", key);
    add_path(line, "UserKnownHostsFile", target->hosts);
    add_option(line, "StrictHostKeyChecking", has_hosts ? "accept-new" : "no");
    add_option(line, "HostKeyAlias", "doppel"); /* a machine with another name is the same */
    add_option(line, "LogLevel", "ERROR");
    add(line, port_option);
    add(line, port);
    return 0;
}

/* Returns only if it does not work. */
static int become(struct command_line *line)
{
    fflush(NULL);
    execvp(line->words[0], (char *const *)line->words);
    return errno == ENOENT
               ? fail(-ENOENT, "there is no program %s: install openssh-client", line->words[0])
               : fail(-errno, "start %s: %m", line->words[0]);
}

static int prepare(struct target *target, const struct arguments *arguments)
{
    unsigned seconds;
    int r = take_seconds(arguments, &seconds);
    if (!r) {
        r = find(target);
    }
    return r ? r : wait_for_server(target, seconds);
}

static int ssh(const struct arguments *arguments)
{
    struct target target = {0};
    struct command_line line = {0};
    char where[MACHINE_USER + 20];
    int r = take_names(&target, arguments->operands[0], strlen(arguments->operands[0]));
    if (!r) {
        r = prepare(&target, arguments);
    }
    if (!r) {
        r = begin(&line, &target, "ssh", "-p");
    }
    if (r) {
        return r;
    }
    snprintf(where, sizeof where, "%s@%s", target.user, target.address);
    add(&line, where);
    for (unsigned i = 1; i < arguments->count; i++) {
        add(&line, arguments->operands[i]);
    }
    return become(&line);
}

int command_ssh(const struct arguments *arguments)
{
    int r = ssh(arguments);
    report("doppel ssh: %s\n", trail_text());
    return r == -EINVAL ? STATUS_USAGE : STATUS_SSH_FAILED;
}

/* ---- cp ---- */

/* How long the [USER@]NAME before a path in a machine is; 0: a path of the host. */
static size_t machine_part(const char *text)
{
    size_t length = strcspn(text, ":/");
    return text[length] == ':' ? length : 0;
}

/* All paths in machines are in the same one, and there is one. */
static int take_machine(struct target *target, const struct arguments *arguments)
{
    const char *first = NULL;
    for (unsigned i = 0; i < arguments->count; i++) {
        const char *operand = arguments->operands[i];
        size_t length = machine_part(operand);
        if (length && first && (machine_part(first) != length || strncmp(first, operand, length))) {
            return fail(-EINVAL, "one machine at a time");
        }
        first = length ? operand : first;
    }
    bool from = machine_part(arguments->operands[0]);
    bool to = machine_part(arguments->operands[arguments->count - 1]);
    if (from == to) {
        return fail(-EINVAL, "from a machine to the host, or the other way: NAME:PATH is a path in "
                             "machine NAME");
    }
    return take_names(target, first, machine_part(first));
}

static int copy(const struct arguments *arguments)
{
    struct target target = {0};
    struct command_line line = {0};
    int r = take_machine(&target, arguments);
    if (!r) {
        r = prepare(&target, arguments);
    }
    if (!r) {
        r = begin(&line, &target, "scp", "-P");
    }
    if (r) {
        return r;
    }
    if (arguments_has(arguments, "r")) {
        add(&line, "-r");
    }
    add(&line, "--");
    for (unsigned i = 0; i < arguments->count; i++) {
        const char *operand = arguments->operands[i];
        size_t length = machine_part(operand);
        char *text;
        int size = length
                       ? asprintf(&text, "%s@%s%s", target.user, target.address, operand + length)
                       : asprintf(&text, "%s%s", *operand == '/' ? "" : "./", operand);
        ASSERT(size >= 0);
        add(&line, text);
    }
    return become(&line);
}

int command_cp(const struct arguments *arguments)
{
    int r = copy(arguments);
    report("doppel cp: %s\n", trail_text());
    return r == -EINVAL ? STATUS_USAGE : STATUS_FAILED;
}
