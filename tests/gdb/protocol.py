"""The remote serial protocol without GDB: what a peer may send, and what it may not."""

import os
import socket
import stat
import struct
import subprocess
import time

PATIENCE = 30


class Peer:
    """One connection. Packets are acknowledged until no_ack()."""

    def __init__(self, address):
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        deadline = time.monotonic() + PATIENCE
        while True:
            self.socket = socket.socket(family)
            self.socket.settimeout(PATIENCE)
            try:
                self.socket.connect(address)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                self.socket.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        self.acks = True

    def send(self, data):
        if isinstance(data, str):
            data = data.encode()
        self.socket.sendall(b"$" + data + b"#%02x" % (sum(data) & 255))

    def byte(self):
        return self.socket.recv(1)

    def receive(self):
        """The next packet; None at the end of the connection."""
        while True:
            start = self.byte()
            if start == b"":
                return None
            if start == b"$":
                break
        data = b""
        while not data.endswith(b"#"):
            data += self.byte()
        data = data[:-1]
        assert int(self.byte() + self.byte(), 16) == sum(data) & 255, data
        if self.acks:
            self.socket.sendall(b"+")
        return data.decode()

    def ask(self, data):
        self.send(data)
        return self.receive()

    def no_ack(self):
        assert self.ask("QStartNoAckMode") == "OK"
        self.acks = False

    def interrupt(self):
        self.socket.sendall(b"\3")
        return self.receive()

    def is_closed(self):
        try:
            return self.byte() == b""
        except ConnectionResetError:
            return True

    def rip(self):
        return struct.unpack("<Q", bytes.fromhex(self.ask("p10")))[0]

    def close(self):
        self.socket.close()


class Machine:
    def __init__(self, doppel, work, guest, engine, *options, gdb=None):
        self.path = os.path.join(work, "gdb.sock")
        self.output = open(os.path.join(work, "machine.out"), "w+b")
        self.process = subprocess.Popen(
            [doppel, "run", "--no-reboot", "--debug-exit", "0xf4", "--engine", engine,
             "--kernel", guest, "--gdb", gdb or self.path + ",wait=on", *options],
            stdin=subprocess.DEVNULL, stdout=self.output, stderr=subprocess.STDOUT)

    def __enter__(self):
        return self

    def peer(self):
        return Peer(self.path)

    def status(self):
        return self.process.wait(PATIENCE)

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.output.close()


def text(symbols):
    return {name: "%x" % at for name, at in symbols.items()}


def test_framing(machine, symbols):
    peer = machine.peer()
    first = peer.ask("?")
    assert first == "T05thread:1;", first
    peer.socket.sendall(b"$?#00")  # a wrong checksum
    assert peer.byte() == b"-"
    peer.socket.sendall(b"$?#xy")
    assert peer.byte() == b"-"
    peer.socket.sendall(b"-")  # once more
    assert peer.receive() == first
    peer.socket.sendall(b"$qSuppo$?#3f")  # a packet that was cut short
    assert peer.receive() == first
    peer.socket.sendall(b"$" + b"m" * 40000 + b"#%02x" % (40000 * ord("m") & 255))
    assert peer.byte() == b"-"
    assert "PacketSize=4000" in peer.ask("qSupported:multiprocess+;swbreak+;hwbreak+;xmlRegisters=i386")
    peer.no_ack()
    for packet in ("vMustReplyEmpty", "vRun;", "vAttach;1", "!", "R00", "qSymbol::", "QThreadEvents:1",
                   "vFile:open:2f,0,0", "qXfer:auxv:read::0,100", "bc", "", "i", "jThreadsInfo", "\0"):
        assert peer.ask(packet) == "", packet
    for packet in ("m", "m1", "mx,1", "M0,1", "M0,2:00", "X0,1:", "Z0,1", "Z0,1,1;X1,20", "Z2,1,0",
                   "Z3,ffffffffffffffff,2", "z0,1234,1", "p999", "P10", "P10=12", "Hx1", "Hg9", "T9",
                   "vCont", "vCont;t", "vCont;c:9", "vCont;C", "cxyz", "C", "qThreadExtraInfo,9",
                   "m11111111111111111,1", "qXfer:features:read:target.xml:fffff,1", "Gzz"):
        assert peer.ask(packet) == "E16", packet
    assert peer.ask("qfThreadInfo") == "m1"
    assert peer.ask("qsThreadInfo") == "l"
    assert peer.ask("qC") == "QC1"
    assert peer.ask("qAttached") == "1"
    assert bytes.fromhex(peer.ask("qThreadExtraInfo,1")) == b"vCPU 0, running"
    assert b"monitor help" in bytes.fromhex(peer.ask("qRcmd,786978"))
    peer.send("k")
    assert peer.is_closed()
    assert machine.status() == 0


def test_data(machine, symbols):
    at = text(symbols)
    peer = machine.peer()
    peer.no_ack()
    poked = at["poked"]
    assert peer.ask("M%s,4:01020304" % poked) == "OK"
    assert peer.ask("m%s,4" % poked) == "01020304"
    assert peer.ask(("X%s,4:" % poked).encode() + b"}\x03}\x04}]\x2b") == "OK"
    assert peer.ask("m%s,4" % poked) == "23247d2b"
    assert peer.ask("X%s,0:" % poked) == "OK"
    # longer than a packet, and beyond the end of memory: what there is
    assert len(peer.ask("m%s,ffffff" % poked)) == 16384
    assert peer.ask("mfee00000,4") == "E0e"
    assert peer.ask("Mfee00000,1:00") == "E0e"
    everything = peer.ask("g")
    assert peer.ask("G" + everything) == "OK"
    assert peer.ask("g") == everything
    assert peer.ask("P0=8877665544332211") == "OK"
    assert peer.ask("p0") == "8877665544332211"
    assert peer.ask("g")[:16] == "8877665544332211"
    # no CPU can have them: reserved flags, CR4, EFER
    for number in (0x11, 63, 65):
        assert peer.ask("P%x=%s" % (number, "ff" * (len(peer.ask("p%x" % number)) // 2))) == "E16"
    description = ""
    while True:
        part = peer.ask("qXfer:features:read:target.xml:%x,3e8" % len(description))
        description += part[1:]
        if part[0] == "l":
            break
    assert description.endswith("</target>\n")
    bits = sum(int(piece.split('"')[0]) for piece in description.split('bitsize="')[1:])
    assert bits == 4 * len(everything)
    for i in range(1024):
        assert peer.ask("Z0,%x,1" % (0x500000 + i * 16)) == "OK"
    assert peer.ask("Z0,1,1") == "E1c"
    assert peer.ask("Z1,500000,1") == "OK"  # the same place as the other kind
    assert peer.ask("z0,500000,1") == "OK"
    assert peer.ask("z0,500000,1") == "E16"
    assert peer.ask("z1,500000,1") == "OK"
    for i in range(64):
        assert peer.ask("Z2,%x,100000" % (0x600000 + i * 16)) == "OK"
    assert peer.ask("Z4,1,1") == "E1c"
    peer.send("D")
    assert peer.receive() == "OK"
    assert peer.is_closed()
    assert machine.status() == 33


def test_running(machine, symbols):
    """Breaks, interrupts, lost peers, a reset, and the end, on one machine."""
    at = text(symbols)
    peer = machine.peer()
    peer.no_ack()
    entry = peer.rip()
    assert peer.ask("qSupported:swbreak+;hwbreak+")
    assert peer.ask("Z0,%s,1" % at["stage"]) == "OK"
    assert peer.ask("c") == "T05swbreak:;thread:1;"
    assert peer.rip() == symbols["stage"]
    peer.close()
    peer = machine.peer()  # it stands where it stood, and the breakpoint is gone
    peer.no_ack()
    assert peer.rip() == symbols["stage"]
    assert peer.ask("Z1,%s,1" % at["traced"]) == "OK"
    assert peer.ask("vCont;c") == "T05thread:1;"  # this peer does not know hwbreak
    assert peer.ask("Z2,%s,8" % at["counter"]) == "OK"
    assert peer.ask("vCont;c:1") == "T05watch:%s;thread:1;" % at["counter"]
    assert peer.ask("vCont;s:1;c") == "T05thread:1;"
    assert peer.ask("S05") == "T05thread:1;"
    assert bytes.fromhex(peer.ask("qRcmd," + b"reset".hex())).startswith(b"the machine stands")
    assert peer.rip() == entry
    assert peer.ask("m%s,8" % at["counter"]) == "00" * 8
    # a loop: interrupted, left running by a peer that is lost, interrupted again
    assert peer.ask("m%x,2" % entry) != "ebfe"
    original = peer.ask("m%x,2" % entry)
    assert peer.ask("M%x,2:ebfe" % entry) == "OK"
    for _ in range(3):
        peer.send("c")
        time.sleep(0.05)
        assert peer.interrupt() == "T02thread:1;"
        assert peer.rip() == entry
    peer.send("c")
    other = socket.socket(socket.AF_UNIX)  # one at a time: this one waits
    other.settimeout(0.2)
    other.connect(machine.path)
    other.sendall(b"$?#3f")
    try:
        assert other.recv(1) and False
    except TimeoutError:
        pass
    peer.close()
    other.settimeout(PATIENCE)
    assert other.recv(1) == b"+"
    other.close()
    peer = machine.peer()
    peer.no_ack()
    assert peer.rip() == entry
    assert peer.ask("M%x,2:%s" % (entry, original)) == "OK"
    assert peer.ask("c%x" % entry) == "W21"
    assert machine.status() == 33


def test_threads(machine, symbols):
    peer = machine.peer()
    peer.no_ack()
    assert peer.ask("qfThreadInfo") == "m1,2"
    assert bytes.fromhex(peer.ask("qThreadExtraInfo,2")) == b"vCPU 1, waiting to be started"
    assert peer.ask("T2") == "OK"
    before = peer.rip()
    peer.send("vCont;s:2")  # it waits for another CPU, which is held
    time.sleep(0.1)
    assert peer.interrupt() == "T02thread:1;"
    assert peer.rip() == before
    assert peer.ask("Z0,%x,1" % symbols["other_cpu"]) == "OK"
    assert peer.ask("c") == "T05thread:2;"
    assert peer.rip() == symbols["other_cpu"]
    assert peer.ask("Hg1") == "OK"
    first = peer.rip()
    for _ in range(20):
        assert peer.ask("vCont;s:2") == "T05thread:2;"
        assert peer.ask("Hg1") == "OK"
        assert peer.rip() == first
    assert peer.ask("vCont;s:1;c") == "T05thread:1;"
    assert peer.ask("vKill;1") == "OK"
    assert machine.status() == 0


def test_tcp(machine, port):
    stranger = Peer(("127.0.0.1", port))
    stranger.socket.sendall(b"POST / HTTP/1.1\r\n\r\n$k#6b")
    assert stranger.is_closed()
    assert machine.process.poll() is None
    peer = Peer(("127.0.0.1", port))
    assert peer.ask("?") == "T05thread:1;"
    peer.send("k")
    assert machine.status() == 0


def test_socket(machine, doppel, guest):
    """Only its owner's, and only one machine's."""
    peer = machine.peer()
    assert stat.S_IMODE(os.stat(machine.path).st_mode) == 0o600
    second = subprocess.run([doppel, "run", "--kernel", guest, "--gdb", machine.path],
                            stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
    assert second.returncode == 1 and b"in use" in second.stderr, second
    peer.send("k")
    assert machine.status() == 0
    assert os.path.exists(machine.path)  # the jail cannot remove it; the next machine does
