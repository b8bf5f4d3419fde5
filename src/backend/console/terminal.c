/*
 * The user's terminal in raw mode. The saved mode is the process's, because the terminal is, and
 * because a signal handler must reach it.
 */
#include "backend/console/terminal.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"

static struct {
    volatile sig_atomic_t is_entered;
    bool was_entered; /* `before` and `raw` are known */
    int fd;           /* our own duplicate: valid until the process ends */
    struct termios before, raw;
} terminal = {.fd = -1};

/* Whose default action ends the process; SIGKILL cannot be handled (docs/doppel.1 says what then).
 */
static const int fatal_signals[] = {
    SIGHUP,  SIGINT,  SIGQUIT, SIGTERM, SIGABRT, SIGSEGV,   SIGBUS,  SIGILL,    SIGFPE, SIGSYS,
    SIGTRAP, SIGALRM, SIGUSR1, SIGUSR2, SIGXCPU, SIGVTALRM, SIGPROF, SIGSTKFLT, SIGIO,  SIGPWR};

/*
 * Reading or setting a terminal that is not ours would stop us. One that has hung up stops nobody
 * (EIO), and reading it tells so. Also for a signal handler.
 */
static bool is_ours(void)
{
    int before = errno;
    pid_t foreground = tcgetpgrp(terminal.fd);
    bool is_ours = foreground == getpgrp() || (foreground < 0 && errno == EIO);
    errno = before;
    return is_ours;
}

bool terminal_is_entered(void)
{
    return terminal.is_entered;
}

void terminal_leave(void)
{
    if (!terminal.is_entered) {
        return;
    }
    terminal.is_entered = 0;
    if (!is_ours()) {
        return; /* the shell has it back, with the mode that it likes */
    }
    /* Should that change this moment, setting the mode would stop us with SIGTTOU. */
    sigset_t stop, before;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTTOU);
    sigprocmask(SIG_BLOCK, &stop, &before);
    tcsetattr(terminal.fd, TCSANOW, &terminal.before);
    sigprocmask(SIG_SETMASK, &before, NULL);
}

/*
 * The process dies of it as it should. Handlers of faults that were installed later call this one
 * for what is not theirs, so SA_RESETHAND would not do.
 */
static void leave_and_die(int number, siginfo_t *info, void *context)
{
    terminal_leave();
    signal(number, SIG_DFL);
    raise(number);
}

static void arrange_leaving(void)
{
    static bool is_arranged;
    if (is_arranged) {
        return;
    }
    is_arranged = true;
    atexit(terminal_leave);
    for (size_t i = 0; i < ARRAY_SIZE(fatal_signals); i++) {
        struct sigaction current;
        struct sigaction action = {.sa_sigaction = leave_and_die,
                                   .sa_flags = SA_SIGINFO | SA_ONSTACK};
        sigfillset(&action.sa_mask);
        if (!sigaction(fatal_signals[i], NULL, &current) && current.sa_handler == SIG_DFL) {
            sigaction(fatal_signals[i], &action, NULL);
        }
    }
}

int terminal_open(int fd)
{
    if (terminal.is_entered) {
        return fail(-EBUSY, "the terminal is in use by another console of this program");
    }
    if (terminal.fd >= 0) {
        close(terminal.fd);
    }
    terminal.was_entered = false;
    terminal.fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (terminal.fd < 0) {
        return fail(-errno, "keep a descriptor of the terminal: %s", strerror(errno));
    }
    arrange_leaving();
    return is_ours() ? terminal_enter() : 0;
}

int terminal_enter(void)
{
    if (!terminal.was_entered) {
        if (tcgetattr(terminal.fd, &terminal.before)) {
            return fail(-errno, "ask the terminal for its mode: %s", strerror(errno));
        }
        terminal.raw = terminal.before;
        cfmakeraw(&terminal.raw);
        terminal.raw.c_oflag = terminal.before.c_oflag;
        terminal.raw.c_cc[VMIN] = 1;
        terminal.raw.c_cc[VTIME] = 0;
        terminal.was_entered = true;
    }
    terminal.is_entered = 1;
    if (tcsetattr(terminal.fd, TCSANOW, &terminal.raw)) {
        int error = errno;
        terminal_leave();
        return fail(-error, "put the terminal into raw mode: %s", strerror(error));
    }
    return 0;
}

bool terminal_follow(void)
{
    if (!is_ours()) {
        terminal.is_entered = 0;
    } else if (!terminal.is_entered && terminal_enter()) {
        trail_clear(); /* it has gone away, or soon will have */
    }
    return terminal.is_entered;
}

void terminal_continued(void)
{
    if (terminal_follow() && terminal_enter()) {
        trail_clear();
    }
}

bool terminal_size(int fd, uint16_t *ret_columns, uint16_t *ret_rows)
{
    struct winsize size;
    if (fd < 0 || ioctl(fd, TIOCGWINSZ, &size)) {
        return false;
    }
    *ret_columns = size.ws_col;
    *ret_rows = size.ws_row;
    return true;
}
