"""
Runs inside GDB: a stock Linux kernel without debug symbols, from its first instruction until it
switches itself off. Addresses come by the environment, as NAME=hexadecimal in DOPPEL_SYMBOLS.
DOPPEL_CPUS is 1 or 2; DOPPEL_BRIEF ends the machine after the first watchpoint.
"""

import os
import gdb

symbols = dict(pair.split("=") for pair in os.environ["DOPPEL_SYMBOLS"].split())
symbols = {name: int(at, 16) for name, at in symbols.items()}
cpus = int(os.environ["DOPPEL_CPUS"])


def run(command):
    return gdb.execute(command, to_string=True)


def value(expression):
    return int(gdb.parse_and_eval(expression)) & (1 << 64) - 1


def check(name, got, expected):
    if got == expected:
        print("ok " + name)
    else:
        print("FAILED %s: %r instead of %r" % (name, got, expected))


def at_start():
    check("threads", len(gdb.selected_inferior().threads()), cpus)
    check("the kernel is not mapped yet", value("$pc") < 1 << 32, True)
    run("hbreak *%#x" % symbols["start_kernel"])
    run("continue")
    check("start_kernel", value("$pc"), symbols["start_kernel"])
    banner = gdb.selected_inferior().read_memory(symbols["linux_banner"], 14).tobytes()
    check("memory by virtual address", banner, b"Linux version ")
    run("delete")
    before = value("$pc")
    for _ in range(5):
        run("stepi")
    check("steps", 0 < (value("$pc") - before) & (1 << 64) - 1 < 1 << 32, True)


def variable():
    jiffies = "*(unsigned long *)%#x" % symbols["jiffies_64"]
    first = value(jiffies)
    run("watch " + jiffies)
    for i in range(3):
        run("continue")
    check("watched variable", value(jiffies) >= first + 3, True)  # a late tick counts for several
    run("delete")


def processors():
    if cpus == 1:
        return
    run("break *%#x" % symbols["start_secondary"])
    run("continue")
    check("it still runs", gdb.selected_thread() is not None, True)
    check("the other vCPU starts", (gdb.selected_thread().num, value("$pc")),
          (2, symbols["start_secondary"]))
    run("delete")
    run("set scheduler-locking on")
    run("thread 1")
    first = value("$pc")
    run("thread 2")
    run("stepi")
    run("stepi")
    run("thread 1")
    check("a thread that is held", value("$pc"), first)
    run("set scheduler-locking off")


def system_calls():
    run("break *%#x" % symbols["__x64_sys_getpid"])
    for i in range(8):
        run("continue")
        check("system call %d" % i, value("$pc"), symbols["__x64_sys_getpid"])
        check("in the kernel, for a user", (value("$cs") & 3, value("$gs_base") >> 63,
                                            value("$k_gs_base") >> 63), (0, 1, 0))
    run("delete")


run("set pagination off")
run("set confirm off")
run("set remotetimeout 120")  # of a busy host
run("set architecture i386:x86-64")
run("target remote " + os.environ["DOPPEL_SOCKET"])
parts = (at_start, processors, variable, system_calls)  # the other CPU starts within a few ticks
if "DOPPEL_BRIEF" in os.environ:
    parts = (at_start, variable)
for part in parts:
    try:
        part()
    except gdb.error as error:
        print("FAILED %s: %s" % (part.__name__, error))
if "DOPPEL_BRIEF" in os.environ:
    run("kill")
else:
    run("detach")
