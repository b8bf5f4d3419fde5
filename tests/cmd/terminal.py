"""terminal.py DOPPEL KERNEL: runs a guest that never ends on a pseudo-terminal, looks at what is
shown, leaves with Ctrl-a x, and by every signal that ends a process, and checks that the terminal
is as it was before."""

import fcntl
import os
import pty
import resource
import select
import signal
import sys
import termios
import time


def read_until(fd, text, seconds=20):
    seen = b""
    while text not in seen:
        ready, _, _ = select.select([fd], [], [], seconds)
        assert ready, f"no {text!r} in {seen!r}"
        seen += os.read(fd, 4096)
    return seen


def stop_and_continue(slave, child, shell_mode):
    """As a shell does: its own mode while we are stopped; raw mode must come back by itself."""
    os.kill(child, signal.SIGSTOP)
    os.waitpid(child, os.WUNTRACED)
    termios.tcsetattr(slave, termios.TCSANOW, shell_mode)
    os.kill(child, signal.SIGCONT)
    deadline = time.monotonic() + 10
    while termios.tcgetattr(slave)[3] & termios.ICANON:
        assert time.monotonic() < deadline, "not in raw mode after SIGCONT"
        time.sleep(0.01)


def session(engine, leave, farewell):
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for fd in (0, 1, 2):
            os.dup2(slave, fd)
        command = [sys.argv[1], "run", "--engine", engine, "--kernel", sys.argv[2]]
        os.execv(command[0], command)
    seen = read_until(master, b"Ctrl-a x")
    assert not termios.tcgetattr(slave)[3] & termios.ICANON, "not in raw mode"
    os.write(master, b"\x01h")
    seen = read_until(master, b"Ctrl-a")
    stop_and_continue(slave, child, before)
    leave(master, child)
    if farewell:
        read_until(master, farewell)
    _, status = os.waitpid(child, 0)
    after = termios.tcgetattr(slave)
    assert before == after, f"the terminal is not as it was; status {status:#x}"
    os.close(master)
    os.close(slave)
    return status


def by_key(master, child):
    os.write(master, b"\x01x")


asked = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]
crashes = [signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT,
           signal.SIGTRAP, signal.SIGSYS, signal.SIGXCPU, signal.SIGALRM, signal.SIGUSR2]
for engine in ("translate", "interp"):
    assert session(engine, by_key, b"ended by") == 0
    for number in asked + crashes:
        farewell = b"ended by" if number in asked else None
        status = session(engine, lambda _, child: os.kill(child, number), farewell)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == number, (engine, number, status)
