"""console.py DOPPEL ECHO FLOOD: consoles of machines in the background and in the foreground, on
pseudo-terminals: history, several viewers, one of whom types, leaving by key, by a closed terminal and
by a kill, a guest that never stops writing, and what must not reach a terminal. ECHO is a guest that
gives back what is typed, FLOOD one that writes without end."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time

doppel, echo, flood = sys.argv[1:4]


def command(*arguments, status=0, **keywords):
    result = subprocess.run([doppel, *arguments], stdin=subprocess.DEVNULL, capture_output=True,
                            timeout=60, **keywords)
    assert result.returncode == status, (arguments, result)
    return result.stdout.decode() + result.stderr.decode()


class Terminal:
    """A program on a terminal of its own, as a session leader."""

    def __init__(self, *arguments):
        self.master, slave = pty.openpty()
        self.mode = termios.tcgetattr(slave)
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            for fd in (0, 1, 2):
                os.dup2(slave, fd)
            os.close(self.master)
            os.execv(doppel, [doppel, *arguments])
        self.slave = slave
        self.seen = b""

    def expect(self, text, seconds=20):
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], seconds)
            assert ready, f"no {text!r} in {self.seen[-500:]!r}"
            self.seen += os.read(self.master, 65536)
        at = self.seen.index(text) + len(text)
        before, self.seen = self.seen[:at], self.seen[at:]
        return before

    def expect_nothing(self, text, seconds=0.5):
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self.master], [], [], left)[0]:
                self.seen += os.read(self.master, 65536)
        assert text not in self.seen, self.seen

    def type(self, text):
        os.write(self.master, text)

    def wait(self):
        deadline = time.monotonic() + 30
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                assert termios.tcgetattr(self.slave) == self.mode, "the terminal is not as it was"
                return status
            assert time.monotonic() < deadline, "it does not end"
            if select.select([self.master], [], [], 0.05)[0]:
                self.seen += os.read(self.master, 65536)

    def hang_up(self):
        os.close(self.slave)
        os.close(self.master)
        os.waitpid(self.pid, 0)


def expect_state(name, state):
    shown = command("show", name)
    assert f"state         {state}\n" in shown, shown


def viewers():
    """Who comes, sees what was; the first types; who leaves, however, does no harm."""
    assert command("launch", "--name", "echo", "--kernel", echo) == "echo\n"
    first = Terminal("console", "echo")
    first.expect(b"Ctrl-a d leaves")
    first.type(b"hello")
    first.expect(b"hello")
    second = Terminal("console", "echo")
    second.expect(b"you look on")
    second.expect(b"hello")
    second.type(b"unheard")
    first.type(b"more")
    second.expect(b"more")
    second.expect_nothing(b"unheard")
    second.type(b"\x01x")
    second.expect(b"only who may type")
    first.type(b"\x01h")
    first.expect(b"Ctrl-a d  leave")
    first.type(b"\x01d")
    first.expect(b"runs on")
    assert first.wait() == 0
    second.expect(b"you may type now")
    second.type(b"heard")
    second.expect(b"heard")
    third = Terminal("console", "echo")
    third.expect(b"you look on")
    os.kill(second.pid, signal.SIGKILL)
    os.waitpid(second.pid, 0)
    third.expect(b"you may type now")
    third.hang_up()
    expect_state("echo", "running")
    logged = command("logs", "echo")
    assert logged == "hellomoreheard", logged


def harmless():
    """Questions reach a terminal only from a guest that is asked now; other programs get all bytes."""
    piped = subprocess.Popen([doppel, "console", "echo"], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    text = b"A\033[21tB\033[6nC\033]52;c;?\007D"
    piped.stdin.write(text)
    piped.stdin.flush()
    seen = b""
    while text not in seen:
        assert select.select([piped.stdout], [], [], 20)[0], seen
        seen += os.read(piped.stdout.fileno(), 4096)
    assert seen == b"hellomoreheard" + text
    terminal = Terminal("console", "echo")
    terminal.expect(b"you look on")
    terminal.expect(b"ABCD")
    piped.kill()
    piped.wait()
    terminal.expect(b"you may type now")
    terminal.type(b"\033[21t\033[6n.")
    assert terminal.expect(b".").endswith(b"\033[6n.")
    terminal.type(b"\x01x")
    terminal.expect(b"ended by you")
    assert terminal.wait() == 0
    expect_state("echo", "stopped")
    assert "no machine 'echo' runs" in command("console", "echo", status=1)
    # started again, and looked at from the start; the history is that of this start
    terminal = Terminal("start", "--console", "echo")
    terminal.expect(b"Ctrl-a d leaves")
    terminal.type(b"again")
    terminal.expect(b"again")
    command("stop", "--force", "echo")
    terminal.expect(b"ended by you")
    assert terminal.wait() == 0
    command("rm", "echo")


def never_quiet():
    """A guest that writes without end, to somebody who reads, who sleeps, and who leaves."""
    command("launch", "--name", "flood", "--kernel", flood)
    terminal = Terminal("console", "flood")
    terminal.expect(b"xxxxxxxxxxxxxxxxxxxxxxxx")
    os.kill(terminal.pid, signal.SIGSTOP)
    time.sleep(2)
    expect_state("flood", "running")
    os.kill(terminal.pid, signal.SIGCONT)
    terminal.expect(b"xxxxxxxxxxxxxxxxxxxxxxxx")
    terminal.type(b"\x01d")
    assert terminal.wait() == 0
    command("stop", "--force", "flood")
    folder = os.path.join(os.environ["XDG_DATA_HOME"], "doppel/machines/flood")
    sizes = [os.path.getsize(f"{folder}/console.{i}.log") for i in (0, 1)]
    assert 0 < sizes[0] and max(sizes) <= 4 << 20, sizes
    command("rm", "flood")


def kept_run():
    """run --keep: its console, in another process; a closed terminal leaves it running."""
    terminal = Terminal("run", "--keep", "--name", "kept", "--kernel", echo)
    terminal.expect(b"Ctrl-a d leaves")
    terminal.type(b"here")
    terminal.expect(b"here")
    terminal.hang_up()
    expect_state("kept", "running")
    terminal = Terminal("console", "kept")
    terminal.expect(b"here")
    terminal.type(b"\x01d")
    assert terminal.wait() == 0
    command("rm", "--force", "kept")
    assert command("list", "--json") == "[]\n"


def foreground():
    """A machine without a folder: its own terminal types, others look on; it ends with it."""
    owner = Terminal("run", "--name", "fore", "--kernel", echo)
    owner.expect(b"Ctrl-a h helps")
    owner.type(b"one")
    owner.expect(b"one")
    viewer = Terminal("console", "fore")
    viewer.expect(b"you look on")
    viewer.expect(b"one")
    viewer.type(b"two")
    owner.type(b"three\x01d")
    viewer.expect(b"three")
    viewer.expect_nothing(b"two")
    owner.hang_up()
    viewer.expect(b"ended by a signal")
    assert viewer.wait() == 0


for test in (viewers, harmless, never_quiet, kept_run, foreground):
    signal.alarm(120)
    test()
