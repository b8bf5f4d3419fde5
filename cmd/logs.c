/* doppel logs NAME [-f] [--messages]: what a kept machine's guest wrote, or what Doppel said of it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "cmd.h"
#include "control/machine.h"
#include "control/terminal_filter.h"
#include "machine/report.h"

enum { PIECE = 16384, LOOK_NS = 100000000 };

/* A file that grows, and may begin anew. */
struct log {
    const char *name;
    int fd;
    off_t at;
    struct timespec changed;
};

struct logs {
    const struct machine *machine;
    struct log files[2];
    bool filters;
    struct terminal_filter filter;
};

CLEANUP_DEFINE(struct machine, machine_close)

/* A file that is not there yet may come. */
static int look_at(struct logs *logs, struct log *log)
{
    struct stat facts;
    if (log->fd < 0) {
        log->fd = openat(logs->machine->folder, log->name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    }
    if (log->fd < 0) {
        return errno == ENOENT ? 0 : fail(-errno, "open %s: %m", log->name);
    }
    if (fstat(log->fd, &facts)) {
        return fail(-errno, "look at %s: %m", log->name);
    }
    if (facts.st_size < log->at) {
        log->at = 0;
    }
    log->changed = facts.st_mtim;
    return 0;
}

/* Returns false if standard output takes no more. */
static bool print(struct logs *logs, const uint8_t *bytes, size_t size)
{
    uint8_t harmless[PIECE + FILTER_HELD];
    if (logs->filters) {
        size = terminal_filter(&logs->filter, bytes, size, harmless);
        bytes = harmless;
    }
    return fwrite(bytes, 1, size, stdout) == size;
}

static int print_rest(struct logs *logs, struct log *log)
{
    uint8_t bytes[PIECE];
    ssize_t size = 0;
    while (log->fd >= 0 && (size = pread(log->fd, bytes, sizeof bytes, log->at)) > 0) {
        log->at += size;
        if (!print(logs, bytes, (size_t)size)) {
            return fail(-errno, "write to standard output: %m");
        }
    }
    return size < 0 ? fail(-errno, "read %s: %m", log->name) : 0;
}

/* What is new in both, the older first. */
static int print_new(struct logs *logs)
{
    struct log *a = &logs->files[0], *b = &logs->files[1];
    int r = look_at(logs, a);
    if (!r && b->name) {
        r = look_at(logs, b);
    }
    bool is_b_newer =
        b->fd >= 0 &&
        (b->changed.tv_sec > a->changed.tv_sec ||
         (b->changed.tv_sec == a->changed.tv_sec && b->changed.tv_nsec > a->changed.tv_nsec));
    if (!r) {
        r = print_rest(logs, is_b_newer ? a : b);
    }
    if (!r) {
        r = print_rest(logs, is_b_newer ? b : a);
    }
    return r || !fflush(stdout) ? r : fail(-errno, "write to standard output: %m");
}

static int show(struct logs *logs, bool follows)
{
    const struct timespec moment = {.tv_nsec = LOOK_NS};
    bool runs;
    int r;
    do {
        runs = machine_is_busy(logs->machine); /* first: what it writes before it ends is seen */
        r = print_new(logs);
        if (!r && follows && runs) {
            nanosleep(&moment, NULL);
        }
    } while (!r && follows && runs);
    return r;
}

int command_logs(const struct arguments *arguments)
{
    CLEANUP(machine_close) struct machine *machine = NULL;
    bool is_ours = arguments_has(arguments, "messages");
    struct logs logs = {
        .files = {{.name = is_ours ? "doppel.log" : "console.0.log", .fd = -1},
                  {.name = is_ours ? NULL : "console.1.log", .fd = -1}},
        .filters = isatty(STDOUT_FILENO),
    };
    terminal_filter_init(&logs.filter, FILTER_STRICT);
    int r = machine_look(arguments->operands[0], &machine);
    if (!r) {
        logs.machine = machine;
        r = show(&logs, arguments_has(arguments, "f") || arguments_has(arguments, "follow"));
    }
    cleanup_close(&logs.files[0].fd);
    cleanup_close(&logs.files[1].fd);
    if (r) {
        report("doppel logs: %s\n", trail_text());
        return STATUS_FAILED;
    }
    return STATUS_OK;
}
