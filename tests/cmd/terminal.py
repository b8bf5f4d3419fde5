"""terminal.py DOPPEL KERNEL: runs a guest that never ends on a pseudo-terminal, looks at what is
shown, leaves with Ctrl-a x, by every signal that ends a process, and with a vCPU that does not stop,
and checks that the terminal is as it was before. Then as a job of a shell: in the background,
stopped, and in the foreground."""

import ctypes
import fcntl
import os
import pty
import resource
import select
import signal
import sys
import termios
import time
import traceback


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
    wait_for_raw_mode(slave)


def wait_for_raw_mode(slave):
    deadline = time.monotonic() + 10
    while termios.tcgetattr(slave)[3] & termios.ICANON:
        assert time.monotonic() < deadline, "not in raw mode"
        time.sleep(0.01)


def run_on(slave, engine):
    """In a child. A sanitizer's handlers of crashes would stand before the program's own, and their
    reports need what the jail forbids."""
    names = ("segv", "sigbus", "sigfpe", "sigill", "abort", "sigtrap")
    os.environ["ASAN_OPTIONS"] = ":".join(f"handle_{name}=0" for name in names)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for fd in (0, 1, 2):
        os.dup2(slave, fd)
    command = [sys.argv[1], "run", "--engine", engine, "--kernel", sys.argv[2]]
    os.execv(command[0], command)


def session(engine, leave, farewell):
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    child = os.fork()
    if child == 0:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        run_on(slave, engine)
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


def held(_, child):
    """SIGTERM, with a vCPU that does not answer: a debugger has stopped its thread."""
    seize, interrupt, any_task = 0x4206, 0x4207, 0x40000000
    libc = ctypes.CDLL(None, use_errno=True)
    tasks = [int(task) for task in os.listdir(f"/proc/{child}/task")
             if open(f"/proc/{child}/task/{task}/comm").read() == "vcpu0\n"]
    for request in (seize, interrupt):
        assert libc.ptrace(request, tasks[0], None, None) == 0, os.strerror(ctypes.get_errno())
    os.waitpid(tasks[0], any_task)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(tasks[0], any_task)
    assert not os.WIFSTOPPED(status)


class Shell:
    """Job control as an interactive shell does it: a session leader with a terminal, and the program
    as a job in a process group of its own. Runs in a child, for a controlling terminal of its own."""

    def __init__(self, engine):
        os.setsid()
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        signal.alarm(60)
        os.tcsetpgrp(self.slave, os.getpgrp())
        self.mode = termios.tcgetattr(self.slave)
        self.job = os.fork()
        if self.job == 0:
            os.setpgid(0, 0)
            signal.signal(signal.SIGTTOU, signal.SIG_DFL)
            run_on(self.slave, engine)
        while os.getpgid(self.job) != self.job:
            time.sleep(0.001)

    def foreground(self, sends_continue):
        """Without SIGCONT is how bash brings a running job to the front."""
        termios.tcsetattr(self.slave, termios.TCSANOW, self.mode)
        os.tcsetpgrp(self.slave, self.job)
        if sends_continue:
            os.killpg(self.job, signal.SIGCONT)
        wait_for_raw_mode(self.slave)

    def stop(self):
        os.killpg(self.job, signal.SIGSTOP)
        os.waitpid(self.job, os.WUNTRACED)
        os.tcsetpgrp(self.slave, os.getpgrp())
        termios.tcsetattr(self.slave, termios.TCSANOW, self.mode)

    def expect_left_alone(self):
        """The job runs, and neither reads what is typed for the shell nor changes the mode."""
        os.write(self.master, b"\x01x for the shell\n")
        time.sleep(0.5)
        assert os.waitpid(self.job, os.WNOHANG | os.WUNTRACED) == (0, 0), "stopped or ended"
        assert termios.tcgetattr(self.slave) == self.mode, "the mode is not the shell's"
        assert os.read(self.slave, 100) == b"\x01x for the shell\n", "input was taken"


def background(engine, sends_continue):
    shell = Shell(engine)
    read_until(shell.master, b"engine")
    shell.expect_left_alone()
    shell.foreground(sends_continue)
    read_until(shell.master, b"Ctrl-a x")
    shell.stop()
    os.killpg(shell.job, signal.SIGCONT)  # bg
    shell.expect_left_alone()
    shell.foreground(sends_continue)
    os.write(shell.master, b"\x01x")
    read_until(shell.master, b"ended by")
    assert os.waitpid(shell.job, 0)[1] == 0
    assert termios.tcgetattr(shell.slave) == shell.mode, "the terminal is not as it was"


def ended_in_background(engine):
    """Whose end must not touch the mode of the shell that uses the terminal."""
    shell = Shell(engine)
    read_until(shell.master, b"engine")
    shell.foreground(False)
    shell.stop()
    os.killpg(shell.job, signal.SIGCONT)
    shell.mode[3] &= ~(termios.ECHO | termios.ICANON)  # as line editing has it
    termios.tcsetattr(shell.slave, termios.TCSANOW, shell.mode)
    shell.mode = termios.tcgetattr(shell.slave)
    os.kill(shell.job, signal.SIGTERM)
    os.waitpid(shell.job, 0)
    assert termios.tcgetattr(shell.slave) == shell.mode, "the mode is not the shell's"


def in_child(function, *arguments):
    child = os.fork()
    if child == 0:
        try:
            function(*arguments)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0, (function.__name__, arguments)


asked = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]
crashes = [signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT,
           signal.SIGTRAP, signal.SIGSYS, signal.SIGXCPU, signal.SIGALRM, signal.SIGUSR2]
for engine in ("translate", "interp"):
    assert session(engine, by_key, b"ended by") == 0
    for number in asked + crashes:
        farewell = b"ended by" if number in asked else None
        status = session(engine, lambda _, child: os.kill(child, number), farewell)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == number, (engine, number, status)
    for sends_continue in (False, True):
        in_child(background, engine, sends_continue)
    in_child(ended_in_background, engine)
assert session("translate", held, b"vCPU 0 does not stop") == 4 << 8
