"""terminal.py DOPPEL KERNEL: runs a guest that never ends on a pseudo-terminal, looks at what is
shown, leaves with Ctrl-a x, and by a signal, and checks that the terminal is as it was before."""

import fcntl
import os
import pty
import select
import signal
import sys
import termios


def read_until(fd, text, seconds=20):
    seen = b""
    while text not in seen:
        ready, _, _ = select.select([fd], [], [], seconds)
        assert ready, f"no {text!r} in {seen!r}"
        seen += os.read(fd, 4096)
    return seen


def session(leave):
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    child = os.fork()
    if child == 0:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for fd in (0, 1, 2):
            os.dup2(slave, fd)
        os.execv(sys.argv[1], [sys.argv[1], "run", "--kernel", sys.argv[2]])
    seen = read_until(master, b"Ctrl-a x")
    assert not termios.tcgetattr(slave)[3] & termios.ICANON, "not in raw mode"
    os.write(master, b"\x01h")
    seen = read_until(master, b"Ctrl-a")
    leave(master, child)
    read_until(master, b"ended by")
    _, status = os.waitpid(child, 0)
    after = termios.tcgetattr(slave)
    assert before == after, "the terminal is not as it was"
    return status


def by_key(master, child):
    os.write(master, b"\x01x")


def by_signal(master, child):
    os.kill(child, signal.SIGTERM)


assert session(by_key) == 0
status = session(by_signal)
assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM, status
