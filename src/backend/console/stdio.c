/*
 * Standard input and output as a console, or a file that only takes output. Input is read on the
 * loop's thread and kept, bounded, until the device takes it; output goes through an outlet. Other
 * threads wake the loop's thread through an eventfd. On a terminal Ctrl-a is the escape character,
 * and is obeyed even when the device takes no input; it is read while we are in its foreground.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backend/console/console.h"
#include "backend/console/outlet.h"
#include "backend/console/terminal.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/loop.h"

enum {
    ESCAPE = 1, /* Ctrl-a */
    PENDING_MAX = 4096,
    READ_MAX = 1024,
    FILE_ROUNDS = 16, /* pieces of a file in one go, so that others get their turn */
};

/* The terminal is looked at this often: no signal to share with the rest of the process. */
#define LOOK_PERIOD_NS UINT64_C(1000000000)
/* In the background: whoever brings us to the front wants to type. */
#define LOOK_PERIOD_AWAY_NS UINT64_C(100000000)

struct stdio_console {
    struct console console;
    struct loop *loop; /* borrowed */
    void (*command)(void *owner, enum console_command command);
    void *command_owner;
    bool can_detach;

    int input;                    /* ours; -1: ended */
    bool is_terminal;             /* input is a terminal */
    bool is_away;                 /* ... that is not ours now */
    bool is_introduced;           /* the user was told of the keys */
    bool is_file;                 /* input is always readable and cannot be watched */
    bool is_escaped;              /* the escape character was the last one */
    uint8_t pending[PENDING_MAX]; /* read, and not yet taken by the device */
    size_t pending_count;
    struct watch *input_watch; /* NULL while we do not want more */

    const char *path; /* borrowed, of a file, otherwise NULL */
    struct outlet outlet;
    struct watch *output_watch; /* NULL while nothing waits for the descriptor */
    struct timer *output_timer; /* ends the gathering of small writes */

    int wake; /* eventfd */
    struct watch *wake_watch;
    struct timer *look_timer;
    uint16_t columns, rows;
};

static struct stdio_console *stdio_of(struct console *console)
{
    return CONTAINER_OF(console, struct stdio_console, console);
}

static void wake_loop(struct stdio_console *stdio)
{
    const uint64_t one = 1;
    /* It fails only when the counter is full, and then the loop is awake. */
    if (write(stdio->wake, &one, sizeof one) < 0) {
        return;
    }
}

static void end_input(struct stdio_console *stdio)
{
    watch_free(TAKE(stdio->input_watch));
    if (stdio->input >= 0) {
        close(TAKE_FD(stdio->input));
    }
}

/* Let the device take what waits. */
static void deliver(struct stdio_console *stdio)
{
    const struct console_receiver *receiver = &stdio->console.receiver;
    if (stdio->pending_count && receiver->receive) {
        size_t taken = receiver->receive(receiver->owner, stdio->pending, stdio->pending_count);
        ASSERT(taken <= stdio->pending_count);
        stdio->pending_count -= taken;
        memmove(stdio->pending, stdio->pending + taken, stdio->pending_count);
    }
}

static void print_help(const struct stdio_console *stdio)
{
    static const char help[] = "\r\nCtrl-a x  end the virtual machine\r\n"
                               "Ctrl-a b  send a break\r\n"
                               "Ctrl-a h  this help\r\n"
                               "Ctrl-a Ctrl-a  send Ctrl-a\r\n";
    static const char detach[] = "Ctrl-a d  leave the machine running\r\n";
    ssize_t written = write(STDERR_FILENO, help, sizeof help - 1);
    if (stdio->can_detach) {
        written = write(STDERR_FILENO, detach, sizeof detach - 1);
    }
    (void)written; /* there is nobody else to tell */
}

/* The character after the escape character. Returns whether it is meant for the device. */
static bool obey(struct stdio_console *stdio, uint8_t character)
{
    const struct console_receiver *receiver = &stdio->console.receiver;
    switch (character) {
    case 'x':
        if (stdio->command) {
            stdio->command(stdio->command_owner, CONSOLE_QUIT);
        }
        return false;
    case 'd':
        if (stdio->can_detach) {
            deliver(stdio);
            stdio->command(stdio->command_owner, CONSOLE_DETACH);
        }
        return false;
    case 'b':
        deliver(stdio); /* what was typed before the break comes before it */
        if (receiver->send_break) {
            receiver->send_break(receiver->owner);
        }
        return false;
    case 'h':
        print_help(stdio);
        return false;
    default:
        return character == ESCAPE;
    }
}

/* Keep input for the device; what a person types beyond the bound is lost. */
static void keep(struct stdio_console *stdio, const uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        bool is_meant = true;
        if (stdio->is_terminal && stdio->is_escaped) {
            stdio->is_escaped = false;
            is_meant = obey(stdio, bytes[i]);
        } else if (stdio->is_terminal && bytes[i] == ESCAPE) {
            stdio->is_escaped = true;
            is_meant = false;
        }
        if (is_meant && stdio->pending_count < PENDING_MAX) {
            stdio->pending[stdio->pending_count++] = bytes[i];
        }
    }
}

/* Read once. Returns whether there may be more. */
static bool read_input(struct stdio_console *stdio)
{
    uint8_t bytes[READ_MAX];
    if (stdio->is_terminal && !terminal_follow()) {
        stdio->is_away = true;
        return false;
    }
    ssize_t count = read(stdio->input, bytes, sizeof bytes);
    if (count > 0) {
        keep(stdio, bytes, (size_t)count);
        deliver(stdio);
        return true;
    }
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) {
        return false;
    }
    end_input(stdio);
    return false;
}

static void look_at_size(struct stdio_console *stdio)
{
    const struct console_receiver *receiver = &stdio->console.receiver;
    uint16_t columns, rows;
    bool is_known = terminal_size(stdio->outlet.fd, &columns, &rows) ||
                    (stdio->is_terminal && terminal_size(stdio->input, &columns, &rows));
    if (is_known && (columns != stdio->columns || rows != stdio->rows)) {
        stdio->columns = columns;
        stdio->rows = rows;
        if (receiver->resized) {
            receiver->resized(receiver->owner, columns, rows);
        }
    }
}

static void input_ready(void *owner, unsigned events);

/*
 * Bring input to where it should be: watched while more is wanted. A terminal is always read, for
 * its escape keys; anything else waits until the device took what we have. (Not a paused watch:
 * that would still report the hangup, over and over.)
 */
static void settle_input(struct stdio_console *stdio)
{
    if (stdio->input < 0) {
        return;
    }
    bool is_wanted = !stdio->is_file && (stdio->is_terminal || !stdio->pending_count);
    is_wanted &= !stdio->is_away; /* what is typed is meant for others */
    if (!is_wanted) {
        watch_free(TAKE(stdio->input_watch));
    } else if (!stdio->input_watch && watch_new(stdio->loop, stdio->input, LOOP_READABLE,
                                                input_ready, stdio, &stdio->input_watch)) {
        /* Regular files and some devices cannot be watched, and never make one wait. */
        trail_clear();
        stdio->is_file = true;
        wake_loop(stdio);
    }
}

static void input_ready(void *owner, unsigned events)
{
    struct stdio_console *stdio = owner;
    read_input(stdio);
    if (stdio->is_terminal) {
        look_at_size(stdio);
    }
    settle_input(stdio);
}

static void read_file(struct stdio_console *stdio)
{
    for (unsigned i = 0; i < FILE_ROUNDS; i++) {
        if (stdio->input < 0 || stdio->pending_count || !read_input(stdio)) {
            return;
        }
    }
    wake_loop(stdio);
}

static void output_ready(void *owner, unsigned events)
{
    struct stdio_console *stdio = owner;
    const struct console_receiver *receiver = &stdio->console.receiver;
    if (!outlet_flush(&stdio->outlet)) {
        watch_free(TAKE(stdio->output_watch));
    }
    if (outlet_recovered(&stdio->outlet) && receiver->drained) {
        receiver->drained(receiver->owner);
    }
}

static void flush_output(struct stdio_console *stdio)
{
    if (!stdio->output_watch && outlet_flush(&stdio->outlet)) {
        int error = watch_new(stdio->loop, stdio->outlet.fd, LOOP_WRITABLE, output_ready, stdio,
                              &stdio->output_watch);
        if (error) {
            trail_clear(); /* it goes out with later writes */
        }
    }
    if (!stdio->output_watch) {
        output_ready(stdio, 0);
    }
}

static void output_timer_expired(void *owner)
{
    flush_output(owner);
}

/* Another thread wrote more than the outlet's descriptor took, or has room for input. */
static void woken(void *owner, unsigned events)
{
    struct stdio_console *stdio = owner;
    uint64_t count;
    if (read(stdio->wake, &count, sizeof count) < 0) {
        return;
    }
    flush_output(stdio);
    deliver(stdio);
    if (stdio->is_file) {
        read_file(stdio);
    }
    settle_input(stdio);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* The escape keys, for who brings us to the front; otherwise they are shown at the start. */
static void introduce(struct stdio_console *stdio)
{
    static const char keys[] = "doppel: Ctrl-a x ends, Ctrl-a h helps\r\n";
    if (!stdio->is_introduced && isatty(STDERR_FILENO) &&
        write(STDERR_FILENO, keys, sizeof keys - 1) < 0) {
        return; /* there is nobody to tell */
    }
    stdio->is_introduced = true;
}

/* A shell may have taken the terminal, or given it back. */
static void look_at_foreground(struct stdio_console *stdio)
{
    stdio->is_away = stdio->is_terminal && !terminal_follow();
    if (stdio->is_terminal && !stdio->is_away) {
        introduce(stdio);
    }
    settle_input(stdio);
}

static void arm_look_timer(struct stdio_console *stdio)
{
    timer_arm(stdio->look_timer,
              now_ns() + (stdio->is_away ? LOOK_PERIOD_AWAY_NS : LOOK_PERIOD_NS));
}

static void look_timer_expired(void *owner)
{
    struct stdio_console *stdio = owner;
    look_at_foreground(stdio);
    look_at_size(stdio);
    arm_look_timer(stdio);
}

static void stdio_write(struct console *console, const uint8_t *bytes, size_t count)
{
    struct stdio_console *stdio = stdio_of(console);
    switch (outlet_write(&stdio->outlet, bytes, count)) {
    case OUTLET_NOTHING:
        break;
    case OUTLET_SOON:
        timer_arm(stdio->output_timer, now_ns() + OUTLET_GATHER_NS);
        break;
    case OUTLET_WRITABLE:
        wake_loop(stdio);
        break;
    }
}

static void stdio_flush(struct console *console)
{
    struct stdio_console *stdio = stdio_of(console);
    if (outlet_flush(&stdio->outlet)) {
        wake_loop(stdio);
    }
}

static size_t stdio_room(struct console *console)
{
    return outlet_room(&stdio_of(console)->outlet);
}

static void stdio_ready(struct console *console)
{
    wake_loop(stdio_of(console));
}

static void stdio_connected(struct console *console)
{
    struct stdio_console *stdio = stdio_of(console);
    stdio->columns = stdio->rows = 0;
    look_at_size(stdio);
    wake_loop(stdio);
}

/* Not earlier: what is in the file may be all that is known of the run before. */
static int stdio_start(struct console *console)
{
    struct stdio_console *stdio = stdio_of(console);
    struct stat status;
    if (stdio->path && !fstat(stdio->outlet.fd, &status) && S_ISREG(status.st_mode) &&
        ftruncate(stdio->outlet.fd, 0)) {
        return fail(-errno, "empty console file '%s': %s", stdio->path, strerror(errno));
    }
    return 0;
}

static void stdio_free(struct console *console)
{
    struct stdio_console *stdio = stdio_of(console);
    end_input(stdio);
    watch_free(stdio->output_watch);
    watch_free(stdio->wake_watch);
    timer_free(stdio->look_timer);
    timer_free(stdio->output_timer);
    outlet_fini(&stdio->outlet);
    if (stdio->wake >= 0) {
        close(stdio->wake);
    }
    if (stdio->is_terminal) {
        terminal_leave();
    }
    free(stdio);
}

static const struct console_ops stdio_ops = {
    .start = stdio_start,
    .write = stdio_write,
    .flush = stdio_flush,
    .ready = stdio_ready,
    .room = stdio_room,
    .connected = stdio_connected,
    .free = stdio_free,
};

static int open_input(struct stdio_console *stdio)
{
    bool is_nonblocking;
    if (isatty(STDIN_FILENO)) {
        int error = terminal_open(STDIN_FILENO);
        if (error) {
            return error;
        }
        stdio->is_terminal = true;
        stdio->is_away = !terminal_is_entered();
        stdio->is_introduced |= !stdio->is_away;
    }
    stdio->input = own_descriptor(STDIN_FILENO, O_RDONLY, &is_nonblocking);
    return 0;
}

static int arrange_events(struct stdio_console *stdio)
{
    stdio->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (stdio->wake < 0) {
        return fail(-errno, "make an event descriptor: %s", strerror(errno));
    }
    stdio->output_timer = timer_new(stdio->loop, output_timer_expired, stdio);
    int error =
        watch_new(stdio->loop, stdio->wake, LOOP_READABLE, woken, stdio, &stdio->wake_watch);
    uint16_t columns, rows;
    if (!error && (stdio->is_terminal || terminal_size(stdio->outlet.fd, &columns, &rows))) {
        stdio->look_timer = timer_new(stdio->loop, look_timer_expired, stdio);
        arm_look_timer(stdio);
    }
    return error;
}

static struct stdio_console *stdio_new(struct loop *loop, int output)
{
    struct stdio_console *stdio = calloc(1, sizeof *stdio);
    ASSERT(stdio);
    stdio->console.ops = &stdio_ops;
    stdio->loop = loop;
    stdio->input = stdio->wake = -1;
    outlet_init(&stdio->outlet, output);
    /* A reader that goes away is found by EPIPE; it must not end the virtual machine. */
    struct sigaction current;
    if (!sigaction(SIGPIPE, NULL, &current) && current.sa_handler == SIG_DFL) {
        signal(SIGPIPE, SIG_IGN);
    }
    return stdio;
}

int console_stdio_open(const struct console_stdio_config *config, struct console **ret_console)
{
    struct stdio_console *stdio = stdio_new(config->loop, STDOUT_FILENO);
    CLEANUP(console_free) struct console *console = &stdio->console;
    stdio->command = config->command;
    stdio->command_owner = config->owner;
    stdio->can_detach = config->can_detach;
    stdio->is_introduced = config->is_introduced;
    int error = open_input(stdio);
    if (!error) {
        error = arrange_events(stdio);
    }
    if (error) {
        return error;
    }
    *ret_console = TAKE(console);
    return 0;
}

int console_file_open(const char *path, struct loop *loop, struct console **ret_console)
{
    /* Opened without waiting: a pipe without a reader is an error, not a hang. */
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0644);
    if (fd < 0) {
        return fail(-errno, "open console file '%s': %s", path,
                    errno == ENXIO ? "nobody reads from this pipe" : strerror(errno));
    }
    struct stdio_console *stdio = stdio_new(loop, fd);
    CLEANUP(console_free) struct console *console = &stdio->console;
    stdio->path = path;
    stdio->outlet.is_nonblocking = true;
    int error = arrange_events(stdio);
    if (error) {
        return error;
    }
    *ret_console = TAKE(console);
    return 0;
}

bool console_stdio_is_terminal(void)
{
    return terminal_is_entered();
}

void console_stdio_leave(void)
{
    terminal_leave();
}

void console_stdio_continued(void)
{
    terminal_continued();
}
