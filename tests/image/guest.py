#!/usr/bin/env python3
"""guest.py SECONDS COMMAND... <SCRIPT

Runs COMMAND and talks to the console that is its standard input and output. SCRIPT has lines
"wait REGULAR-EXPRESSION" (bytes that come; what is before and in the match is done with),
"send TEXT" (and a line's end), "type TEXT" (with escapes as in Python), "note NAME" (prints "NAME SECONDS" since the start). Behind it,
the command has to end. Everything that came goes to standard output; the status is the command's,
or 100 if something did not come in SECONDS, or 101 if the command ended before.
"""
import os
import re
import select
import subprocess
import sys
import time

limit = float(sys.argv[1])
start = time.monotonic()
process = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT)
output = process.stdout.fileno()
seen = b""


def more():
    """Bytes, or none at the end."""
    global seen
    left = start + limit - time.monotonic()
    if left <= 0 or not select.select([output], [], [], left)[0]:
        print("\nguest.py: nothing more comes in %d s" % limit, flush=True)
        process.kill()
        process.wait()
        sys.exit(100)
    piece = os.read(output, 65536)
    sys.stdout.buffer.write(piece)
    sys.stdout.flush()
    seen += piece
    return piece


for line in sys.stdin.read().splitlines():
    word, _, rest = line.partition(" ")
    if word == "wait":
        pattern = re.compile(rest.encode())
        while not pattern.search(seen):
            if not more():
                print("\nguest.py: the end, and there was no %s" % rest, flush=True)
                process.wait()
                sys.exit(101)
        seen = seen[pattern.search(seen).end():]
    elif word == "send":
        process.stdin.write(rest.encode() + b"\n")
        process.stdin.flush()
    elif word == "type":
        process.stdin.write(rest.encode().decode("unicode_escape").encode("latin-1"))
        process.stdin.flush()
    elif word == "note":
        print("\n%s %.1f" % (rest, time.monotonic() - start), flush=True)
while more():
    pass
sys.exit(process.wait())
