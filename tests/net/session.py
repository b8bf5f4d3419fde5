"""tests/net/session.py NAME LIMIT DOPPEL [OPTION...]: run a guest of the network tests beside its
servers, forward a connection and end the network helper when the guest is ready for that, and tell
what became of each part. Status 0 if all was well. In a network namespace of its own."""
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import servers

FORWARDED = 18000
name, limit, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
problems, rest = [], []
vsock = next((word[5:] for word in command if word.startswith("path=")), None)


def connect_vsock():
    """As Firecracker has it: CONNECT and a port of the guest, and OK and one of the host."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    connection.connect(vsock)
    connection.sendall(b"CONNECT 8000\n")
    answer = b""
    while not answer.endswith(b"\n"):
        answer += connection.recv(1)
    if not re.fullmatch(rb"OK \d+\n", answer):
        problems.append(f"vsock: the answer is {answer}")
    return connection


def connect_forwarded():
    return socket.create_connection(("127.0.0.1", FORWARDED), timeout=30)


def check_echo(connect):
    data = os.urandom(300000)
    with connect() as connection:
        threading.Thread(target=lambda: (connection.sendall(data),
                                         connection.shutdown(socket.SHUT_WR))).start()
        back = b""
        while piece := connection.recv(65536):
            back += piece
    if back != data:
        problems.append(f"from outside: {len(back)} bytes came back, of {len(data)}")


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


def check_jail(pid):
    """The process that speaks with the guest and the world: no rights, and a list of calls."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        status = {key: value for key, _, value in (line.partition(":\t") for line in file)}
    for key, wanted in (("NoNewPrivs", "1"), ("Seccomp", "2"), ("CapEff", "0" * 16),
                        ("CapPrm", "0" * 16), ("CapBnd", "0" * 16)):
        if status[key].strip() != wanted:
            problems.append(f"jail of the network process: {key} is {status[key]}")
    files = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    others = [name for name in files if not name.startswith("socket:") and name != "/dev/null"]
    if others:
        problems.append(f"jail of the network process: it holds {others}")


def kill_worker(machine):
    """The process that is the network is the child of the machine's child."""
    workers = [worker for keeper in children(machine.pid) for worker in children(keeper)]
    if len(workers) != 1:
        problems.append(f"{len(workers)} network processes")
    for worker in workers:
        check_jail(worker)
        os.kill(worker, signal.SIGKILL)


def watch(machine):
    good = set()
    for line in machine.stdout:
        line = line.rstrip()
        if line == "listening by vsock":
            threading.Thread(target=check_echo, args=(connect_vsock,)).start()
        elif line == "listening":
            threading.Thread(target=check_echo, args=(connect_forwarded,)).start()
        elif line == "ready for a bounce":
            time.sleep(0.2)
            kill_worker(machine)
        elif match := re.match(r"part ([^:]*): ok ?(.*)", line):
            good.add(match[1])
            if match[2]:
                print(f"   {name}: {match[1]}: {match[2]}")
        elif line.startswith("part "):
            problems.append(line)
        elif line:
            rest.append(line)
    return good


def main():
    servers.start()
    if vsock:
        servers.start_unix(vsock)
    start = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace") as machine:
        killer = threading.Timer(limit, machine.kill)
        killer.start()
        good = watch(machine)
        status = machine.wait()
        killer.cancel()
    if status != 0:
        problems.append(f"status {status}")
    if "end" not in good:
        problems.append("the guest did not come to the end")
    for line in rest if problems else []:
        print("   guest:", line)
    for problem in problems:
        print("FAILED", name + ":", problem)
    if not problems:
        print(f"ok {name}: {len(good)} parts, {time.monotonic() - start:.0f} s")
    return 1 if problems else 0


sys.exit(main())
