"""What the guest of the network tests talks to: DNS on port 53, and on port 5001 TCP commands (a
line each, see exercise.c) and an echo of datagrams. Threads; both families, on all addresses."""
import ipaddress
import socket
import struct
import threading
import zlib

NAMES = {
    b"server.test": {1: ipaddress.ip_address("10.0.2.2").packed,
                     28: ipaddress.ip_address("fec0::2").packed},
}
CHUNK = bytes(range(251)) * 1044  # no power of two: misplaced pieces change the checksum
state = {"finished": 0, "watched": "no"}


def read_line(connection):
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            break
        line += byte
    return line.split()


def send_bytes(connection, left):
    checksum = 0
    while left:
        piece = CHUNK[:left]
        checksum = zlib.crc32(piece, checksum)
        connection.sendall(piece)
        left -= len(piece)
    connection.sendall(b"%08x\n" % checksum)


def take_bytes(connection, left):
    checksum = 0
    while left:
        piece = connection.recv(min(left, 1 << 18))
        if not piece:
            return
        checksum = zlib.crc32(piece, checksum)
        left -= len(piece)
    connection.sendall(b"%08x\n" % checksum)


def take_to_end(connection):
    count = 0
    while piece := connection.recv(1 << 18):
        count += len(piece)
    return count


def serve(connection):
    words = read_line(connection)
    command = words[0] if words else b""
    if command == b"get":
        send_bytes(connection, int(words[1]))
        connection.shutdown(socket.SHUT_WR)
        take_to_end(connection)
    elif command == b"put":
        take_bytes(connection, int(words[1]))
    elif command == b"say":
        connection.sendall(words[1] + b"\n")
    elif command == b"count":
        connection.sendall(b"%d\n" % take_to_end(connection))
    elif command == b"finish":
        connection.shutdown(socket.SHUT_WR)
        state["finished"] = take_to_end(connection)
    elif command == b"finished":
        connection.sendall(b"%d\n" % state["finished"])
    elif command == b"reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif command == b"watch":
        state["watched"] = "no"
        connection.sendall(b"watching\n")
        try:
            connection.recv(1)
            state["watched"] = "end"
        except ConnectionResetError:
            state["watched"] = "reset"
    elif command == b"watched":
        connection.sendall(state["watched"].encode() + b"\n")


def serve_one(connection):
    with connection:
        try:
            serve(connection)
        except OSError as error:
            print("server:", error)


def accept(listener):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve_one, args=(connection,), daemon=True).start()


def echo(datagrams):
    while True:
        data, peer = datagrams.recvfrom(65536)
        datagrams.sendto(data, peer)


def answer(query):
    """RFC 1035: the question again, and at most one address."""
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1:at + 1 + query[at]])
        at += 1 + query[at]
    kind = struct.unpack_from(">H", query, at + 1)[0]
    question = query[12:at + 5]
    addresses = NAMES.get(b".".join(labels).lower())
    if addresses is None:
        return query[:2] + struct.pack(">HHHHH", 0x8183, 1, 0, 0, 0) + question
    data = addresses.get(kind)
    record = struct.pack(">HHHIH", 0xc00c, kind, 1, 60, len(data)) + data if data else b""
    return query[:2] + struct.pack(">HHHHH", 0x8180, 1, 1 if data else 0, 0, 0) + question + record


def answer_names(datagrams):
    while True:
        query, peer = datagrams.recvfrom(1500)
        datagrams.sendto(answer(query), peer)


def start_unix(path):
    """For vsock: what the guest finds at port 5001."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + "_5001")
    listener.listen(128)
    threading.Thread(target=accept, args=(listener,), daemon=True).start()


def start():
    for family, everywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        listener = socket.socket(family, socket.SOCK_STREAM)
        datagrams = socket.socket(family, socket.SOCK_DGRAM)
        names = socket.socket(family, socket.SOCK_DGRAM)
        for one in (listener, datagrams, names):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((everywhere, 5001))
        listener.listen(128)
        datagrams.bind((everywhere, 5001))
        names.bind((everywhere, 53))
        for function, one in ((accept, listener), (echo, datagrams), (answer_names, names)):
            threading.Thread(target=function, args=(one,), daemon=True).start()
