/*
 * The terminal's end of control/console_stream.h. What the guest writes passes the filter of
 * control/terminal_filter.h if it goes to a terminal, and is left alone otherwise.
 */
#include "attach.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/console/console.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/loop.h"
#include "control/client.h"
#include "control/console_stream.h"
#include "control/terminal_filter.h"
#include "machine/report.h"

enum { OUT_MAX = 16384, PIECES_AT_ONCE = 64 };

struct attached {
    const char *name;
    struct loop *loop;
    struct control_connection *connection;
    struct console *console;
    struct watch *watch, *signal_watch;
    int fd, signals;
    pid_t child;
    bool filters;
    bool was_told, may_type;
    struct terminal_filter history, live;
    uint8_t frame[CONSOLE_FRAME_HEAD + CONSOLE_FRAME_MAX]; /* that is coming */
    size_t frame_size;
    uint8_t out[OUT_MAX]; /* for the machine */
    size_t out_size;
    struct attachment *result;
};

CLEANUP_DEFINE(struct control_connection, control_disconnect)

static void leave(struct attached *self, enum attach_end end)
{
    self->result->end = end;
    loop_stop(self->loop);
}

/* ---- to the machine ---- */

static void settle(struct attached *self);

static void send_out(struct attached *self)
{
    ssize_t sent = send(self->fd, self->out, self->out_size, MSG_NOSIGNAL);
    if (sent > 0) {
        self->out_size -= (size_t)sent;
        memmove(self->out, self->out + sent, self->out_size);
    }
}

static bool put(struct attached *self, char kind, const void *bytes, size_t size)
{
    if (self->out_size + CONSOLE_FRAME_HEAD + size > OUT_MAX) {
        return false;
    }
    uint8_t *to = self->out + self->out_size;
    to[0] = (uint8_t)kind;
    store_le16(to + 1, (uint16_t)size);
    memcpy(to + CONSOLE_FRAME_HEAD, bytes, size);
    self->out_size += CONSOLE_FRAME_HEAD + size;
    send_out(self);
    settle(self);
    return true;
}

static size_t on_typed(void *owner, const uint8_t *bytes, size_t count)
{
    size_t size = count < CONSOLE_FRAME_MAX ? count : CONSOLE_FRAME_MAX;
    return put(owner, 'i', bytes, size) ? size : 0;
}

static void on_break(void *owner)
{
    put(owner, 'b', "", 0);
}

static void on_resized(void *owner, uint16_t columns, uint16_t rows)
{
    uint8_t size[4];
    store_le16(size, columns);
    store_le16(size + 2, rows);
    put(owner, 's', size, sizeof size);
}

static void on_command(void *owner, enum console_command command)
{
    struct attached *self = owner;
    if (command == CONSOLE_DETACH) {
        leave(self, ATTACH_DETACHED);
    } else if (self->may_type) {
        put(self, 'q', "", 0);
    } else {
        report("doppel: only who may type ends a machine by Ctrl-a x; see 'doppel stop'\n");
    }
}

/* ---- from the machine ---- */

static void show(struct attached *self, const uint8_t *bytes, size_t size, bool is_history)
{
    uint8_t harmless[CONSOLE_FRAME_MAX + FILTER_HELD];
    if (self->filters) {
        self->live.mode = self->may_type ? FILTER_LIVE : FILTER_STRICT;
        size = terminal_filter(is_history ? &self->history : &self->live, bytes, size, harmless);
        bytes = harmless;
    }
    console_write(self->console, bytes, size);
}

static void show_role(struct attached *self, bool may_type)
{
    if (!self->was_told && !may_type) {
        report("doppel: %s: somebody else types at this console; you look on\n", self->name);
    } else if (self->was_told && may_type) {
        report("doppel: %s: you may type now\n", self->name);
    }
    self->was_told = true;
    self->may_type = may_type;
}

static void show_lost(struct attached *self, const uint8_t *bytes, size_t size)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%.*s", (int)size, (const char *)bytes);
    console_flush(self->console);
    report("doppel: %s: %llu bytes were lost\n", self->name, strtoull(digits, NULL, 10));
}

static void take_frame(struct attached *self, uint8_t kind, const uint8_t *bytes, size_t size)
{
    switch (kind) {
    case 'o':
    case 'h':
        show(self, bytes, size, kind == 'h');
        break;
    case 'l':
        show_lost(self, bytes, size);
        break;
    case 'w':
        show_role(self, size == 1 && bytes[0] == '1');
        break;
    case 'e':
        self->result->status = size ? bytes[0] : 0;
        snprintf(self->result->text, sizeof self->result->text, "%.*s", size ? (int)size - 1 : 0,
                 (const char *)bytes + 1);
        terminal_make_printable(self->result->text);
        leave(self, ATTACH_ENDED);
        break;
    }
}

/* Read as much of a frame as there is. Returns whether there may be more. */
static bool receive(struct attached *self)
{
    size_t wanted = CONSOLE_FRAME_HEAD;
    if (self->frame_size >= CONSOLE_FRAME_HEAD) {
        wanted += load_le16(self->frame + 1);
    }
    if (wanted > sizeof self->frame) {
        leave(self, ATTACH_LOST);
        return false;
    }
    ssize_t got = wanted > self->frame_size
                      ? control_read(self->connection, self->frame + self->frame_size,
                                     wanted - self->frame_size)
                      : 0;
    if (got < 0 || (got == 0 && wanted > self->frame_size)) {
        if (got != -EAGAIN) {
            leave(self, ATTACH_LOST);
        }
        return false;
    }
    self->frame_size += (size_t)got;
    bool is_whole = self->frame_size >= CONSOLE_FRAME_HEAD &&
                    self->frame_size == CONSOLE_FRAME_HEAD + (size_t)load_le16(self->frame + 1);
    if (is_whole) {
        self->frame_size = 0;
        take_frame(self, self->frame[0], self->frame + CONSOLE_FRAME_HEAD,
                   load_le16(self->frame + 1));
        return self->frame[0] != 'e';
    }
    return true;
}

/*
 * What was read beyond a frame waits in the connection, where no event tells of it: so all is
 * taken, with turns for others between.
 */
static void take_all(void *owner)
{
    struct attached *self = owner;
    unsigned pieces = 0;
    while (console_room(self->console) > CONSOLE_FRAME_MAX && receive(self)) {
        if (++pieces == PIECES_AT_ONCE) {
            loop_post(self->loop, take_all, self);
            break;
        }
    }
    settle(self);
}

static void on_socket(void *owner, unsigned events)
{
    struct attached *self = owner;
    send_out(self);
    console_ready(self->console); /* there may be room for what was typed */
    take_all(self);
}

static void settle(struct attached *self)
{
    bool has_room = console_room(self->console) > CONSOLE_FRAME_MAX;
    if (self->watch && watch_set(self->watch, (has_room ? LOOP_READABLE : 0) |
                                                  (self->out_size ? LOOP_WRITABLE : 0))) {
        leave(self, ATTACH_LOST);
    }
}

/* The terminal takes more. */
static void on_drained(void *owner)
{
    on_socket(owner, 0);
}

/* ---- signals ---- */

static void on_signal(void *owner, unsigned events)
{
    struct attached *self = owner;
    struct signalfd_siginfo info;
    if (read(self->signals, &info, sizeof info) != sizeof info) {
        return;
    }
    if (info.ssi_signo == SIGCONT) {
        console_stdio_continued();
    } else if (info.ssi_signo == SIGHUP || !self->child) {
        leave(self, ATTACH_DETACHED);
    } else {
        kill(self->child, SIGTERM);
    }
}

static int take_signals(struct attached *self)
{
    sigset_t taken;
    sigemptyset(&taken);
    sigaddset(&taken, SIGCONT);
    sigaddset(&taken, SIGHUP);
    sigaddset(&taken, SIGINT);
    sigaddset(&taken, SIGTERM);
    sigprocmask(SIG_BLOCK, &taken, NULL);
    self->signals = signalfd(-1, &taken, SFD_CLOEXEC | SFD_NONBLOCK);
    if (self->signals < 0) {
        return fail(-errno, "make a descriptor for signals: %m");
    }
    return watch_new(self->loop, self->signals, LOOP_READABLE, on_signal, self,
                     &self->signal_watch);
}

/* ---- life ---- */

/* Modes that a program of the guest has set, and will not set back for us. */
static void tidy_terminal(struct attached *self)
{
    static const char modes[] = "\033[?9l\033[?1000l\033[?1002l\033[?1003l\033[?1004l\033[?1006l"
                                "\033[?2004l\033[?1l\033>\033[?25h\033[0m";
    if (self->filters) {
        console_write(self->console, (const uint8_t *)modes, sizeof modes - 1);
    }
}

/* The machine waits for us, or for a debugger. */
static int let_go(const struct attached *self)
{
    CLEANUP(control_disconnect) struct control_connection *connection = NULL;
    json_t *answer = NULL;
    int r = control_connect(self->name, &connection);
    if (!r) {
        r = control_call(connection, json_pack("{s:s}", "command", "resume"), &answer);
    }
    json_decref(answer);
    if (r == -EPROTO) {
        trail_clear();
        r = 0;
    }
    return r;
}

static int begin(struct attached *self)
{
    json_t *answer = NULL;
    int r = control_connect(self->name, &self->connection);
    if (!r) {
        r = control_call(self->connection, json_pack("{s:s}", "command", "console"), &answer);
    }
    json_decref(answer);
    if (!r && self->child) {
        r = let_go(self);
    }
    if (!r) {
        self->fd = control_descriptor(self->connection);
        r = loop_new(&self->loop);
    }
    if (!r) {
        r = take_signals(self);
    }
    return r;
}

static int run(struct attached *self)
{
    const struct console_stdio_config config = {
        .loop = self->loop, .command = on_command, .owner = self, .can_detach = true};
    const struct console_receiver receiver = {.receive = on_typed,
                                              .send_break = on_break,
                                              .resized = on_resized,
                                              .drained = on_drained,
                                              .owner = self};
    int r = console_stdio_open(&config, &self->console);
    if (!r) {
        r = watch_new(self->loop, self->fd, LOOP_READABLE, on_socket, self, &self->watch);
    }
    if (!r) {
        console_connect(self->console, &receiver);
        if (console_stdio_is_terminal() && isatty(STDERR_FILENO)) {
            report("doppel: %s: Ctrl-a d leaves, Ctrl-a x ends, Ctrl-a h helps\n", self->name);
        }
        on_socket(self, 0); /* what came with the answer */
        r = loop_run(self->loop);
    }
    return r;
}

int attach(const char *name, pid_t child, struct attachment *ret_attachment)
{
    *ret_attachment = (struct attachment){.end = ATTACH_LOST};
    struct attached self = {.name = name,
                            .child = child,
                            .signals = -1,
                            .filters = isatty(STDOUT_FILENO),
                            .result = ret_attachment};
    terminal_filter_init(&self.history, FILTER_STRICT);
    terminal_filter_init(&self.live, FILTER_STRICT);
    int r = begin(&self);
    if (!r) {
        r = run(&self);
    }
    if (self.console) {
        tidy_terminal(&self);
    }
    watch_free(self.watch);
    console_free(self.console);
    watch_free(self.signal_watch);
    if (self.loop) {
        loop_free(self.loop);
    }
    cleanup_close(&self.signals);
    control_disconnect(self.connection);
    return r;
}
