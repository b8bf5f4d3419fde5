"""idle.py DOPPEL KERNEL INITRD ENGINE CPUS: boots a guest that sleeps, and measures what the monitor
uses meanwhile and how far the guest's clock and the host's drift apart. Fails over 2% of a core, or
over 0.1% of the time (and the hundredth of a second in which /proc/uptime counts)."""

import os
import subprocess
import sys
import time

doppel, kernel, initrd, engine, cpus = sys.argv[1:]
TICKS = os.sysconf("SC_CLK_TCK")


def used(pid):
    """Seconds of CPU time of all threads."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


process = subprocess.Popen(
    [doppel, "run", "--kernel", kernel, "--initrd", initrd, "--engine", engine, "--cpus", cpus,
     "--append", "console=ttyS0 quiet panic=-1", "--no-reboot"],
    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
# What a line needs to get here adds to the difference: the smallest difference counts.
offsets = {b"begin": [], b"end": []}
usage = {}
for line in process.stdout:
    words = line.split()
    if len(words) != 2:
        continue
    if words[0] in offsets:
        offsets[words[0]].append(time.monotonic() - float(words[1]))
    elif words[0] in (b"idle", b"busy"):
        usage[words[0]] = (time.monotonic(), used(process.pid))
assert process.wait() == 0, "the guest did not switch itself off"
seconds, cpu = (b - a for a, b in zip(usage[b"idle"], usage[b"busy"]))
load = 100 * cpu / seconds
drift = abs(min(offsets[b"end"]) - min(offsets[b"begin"]))
print(f"{load:.2f}% of a core, clocks {drift * 1000:.0f} ms apart after {seconds:.1f} s")
assert load <= 2, "too much CPU time while idle"
assert drift <= 0.001 * seconds + 0.01, "the clocks drift apart"
