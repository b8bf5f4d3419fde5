"""
Runs inside GDB (gdb -batch -x session.py): what a user does, on the guest `debugged`. The socket is
in DOPPEL_SOCKET, the CPU model in DOPPEL_MODEL. Prints "ok NAME" or "FAILED NAME: why" for each.
"""

import os
import gdb

model = os.environ["DOPPEL_MODEL"]


def run(command):
    return gdb.execute(command, to_string=True)


def value(expression):
    return int(gdb.parse_and_eval(expression)) & (1 << 64) - 1


def address(symbol):
    return value("(unsigned long)&" + symbol)


def word(symbol):
    return value("*(unsigned long *)&" + symbol)


def check(name, got, expected):
    if got == expected:
        print("ok " + name)
    else:
        show = lambda v: hex(v) if isinstance(v, int) else repr(v)
        print("FAILED %s: %s instead of %s" % (name, show(got), show(expected)))


def fails(command):
    try:
        run(command)
    except gdb.error:
        return True
    return False


def behind(symbol):
    """The address of the instruction behind the one at a label."""
    at = address(symbol)
    return at + gdb.selected_inferior().architecture().disassemble(at)[0]["length"]


def go_to(symbol, kind="tbreak"):
    run("%s *%#x" % (kind, address(symbol)))
    run("continue")
    check("stop at " + symbol, value("$pc"), address(symbol))


def at_reset():
    check("stop before the first instruction", word("counter"), 0)
    check("one thread", len(gdb.selected_inferior().threads()), 1)
    run("stepi")
    check("protected mode", value("$cr0") & 1, 1)


def breakpoints():
    run("hbreak *%#x" % address("stage"))
    run("continue")
    check("hardware breakpoint", value("$pc"), address("stage"))
    run("delete")
    run("break *%#x" % address("traced"))
    for i in range(3):
        run("continue")
        check("software breakpoint %d" % i, (value("$pc"), word("counter")), (address("traced"), i))
    run("break *%#x" % address("traced_3"))  # in the middle of what has run before
    run("continue")
    check("breakpoint in translated code", value("$pc"), address("traced_3"))
    check("rax there", value("$rax"), 5)
    run("set $rax = 40")
    run("stepi")
    check("a register that was set", value("$rcx"), 42)
    check("step", value("$pc"), address("traced_4"))
    run("delete")
    run("tbreak *%#x" % address("traced"))
    run("continue")
    run("break *%#x" % address("traced_2"))
    run("stepi")
    check("step onto a breakpoint", value("$pc"), address("traced_2"))
    run("stepi")
    check("step from a breakpoint", value("$pc"), address("traced_3"))
    run("delete")


def watch_stops(command, expected, name):
    run(command)
    stops = []
    for _ in expected:
        run("continue")
        stops.append(value("$pc"))
    check(name, [hex(s) for s in stops], [hex(e) for e in expected])
    run("delete")


def watchpoints():
    go_to("access_all")
    at = address("watched") + 8
    moves = [address("move_in")] * 8
    watch_stops(
        "awatch *(unsigned long *)%#x" % at,
        [address("write_1"), address("read_8"), address("add_4"), address("locked")]
        + [behind("locked")] + moves
        + [address("sse_read"), behind("sse_read"), behind("push_in")],
        "access watchpoint, every kind of access")
    watch_stops("awatch *(unsigned short *)%#x" % (address("crossing") + 4095),
                [address("unwatched")], "watchpoint under an access across pages")
    watch_stops("awatch *(unsigned int *)%#x" % (address("watched") + 512 + 24),
                [address("fx_read"), behind("fx_read")], "watched FXSAVE image")
    go_to("access_all")
    watch_stops("rwatch *(unsigned int *)%#x" % (address("watched") + 4),
                [address("add_4"), behind("sse_read")], "read watchpoint")


def vectors():
    go_to("vectors_loaded")
    check("xmm3", value("$xmm3.v2_int64[1]"), 0x0202020202020202)
    check("xmm15", value("$xmm15.v2_int64[0]"), 0x0303030303030303)
    check("st0", float(gdb.parse_and_eval("$st0")), 1.0)
    check("st1", str(gdb.parse_and_eval("$st1"))[:8], "3.141592")
    check("fctrl", value("$fctrl"), 0x37f)
    check("ftag", value("$ftag"), 0x0fff)
    check("mxcsr", value("$mxcsr") & 0x1f80, 0x1f80)
    run("set $xmm3.v2_int64[0] = 0x1234567887654321")
    run("set $st0 = 77")
    if model == "v2":
        go_to("patched")
    else:
        go_to("wide_loaded")
    check("xmm3 was set", word("vector_out"), 0x1234567887654321)
    check("st0 was set", value("*(unsigned int *)((char *)&vector_out + 32)"), 77)


def wide_vectors():
    if model == "v2":
        check("no ymm registers", str(gdb.parse_and_eval("$ymm7")), "void")
        return
    check("ymm7", value("$ymm7.v4_int64[3]"), 0x4040404040404040)
    run("set $ymm7.v4_int64[2] = 0x5566")
    if str(gdb.parse_and_eval("$zmm21")) != "void":
        go_to("wider_loaded")
        check("ymm7 was set", value("((unsigned long *)&wide_out)[2]"), 0x5566)
        check("zmm21", value("$zmm21.v8_int64[7]"), 0x8080808080808080)
        check("k3", value("$k3"), 0x5a5a)
        run("set $zmm21.v8_int64[5] = 0x7788")
        run("set $k3 = 0x33")
        go_to("patched")
        check("zmm21 was set", value("((unsigned long *)&wide_out)[5]"), 0x7788)
        check("k3 was set", value("*(unsigned int *)&poked"), 0x33)
    else:
        go_to("patched")
        check("ymm7 was set", value("((unsigned long *)&wide_out)[2]"), 0x5566)


def memory():
    quiet = 0x7000000000
    entry = word("quiet_entry")
    check("memory by virtual address", value("*(unsigned long *)%#x" % (quiet + 8)), 0xabcdef)
    run("set *(unsigned long *)%#x = 0x4321" % (quiet + 16))
    check("written", value("((unsigned long *)%#x)[2]" % word("quiet_page")), 0x4321)
    check("accessed and dirty bits", value("*(unsigned long *)%#x" % entry) & 0x60, 0)
    check("unmapped memory", fails("x/x 0x6000000000"), True)
    check("not canonical", fails("x/x 0x8000000000000000"), True)
    check("a device", fails("x/x 0xfee00000"), True)
    run("set *(unsigned char *)%#x = 99" % (address("patched") + 1))  # mov $99, %eax


def masked():
    go_to("masked_wait")
    for i in range(4):
        run("stepi")
    check("no interrupt in single steps", value("$pc"), address("masked_wait") + 4)


def end():
    go_to("finished")
    check("code that was changed", word("seen_rax"), 99)
    check("refused: CR0.PG alone", fails("set $cr0 = 0x80000000"), True)
    check("refused: EFER", fails("set $efer = 0xffffffff"), True)
    check("cr3", value("$cr3") & 0xfff, 0)
    run("set $cr2 = 0x1234")
    check("cr2 was set", value("$cr2"), 0x1234)
    run("set $cr8 = 3")
    check("cr8 was set", value("$cr8"), 3)
    run("set $cr8 = 0")
    run("set $fs_base = 0x10000")
    check("fs_base was set", value("$fs_base"), 0x10000)
    check("a segment register is loaded", fails("set $es = 0x18"), False)
    check("a selector of nothing", fails("set $es = 0x7ff8"), True)
    run("detach")


run("set pagination off")
run("set confirm off")
run("set remotetimeout 120")  # of a busy host
run("target remote " + os.environ["DOPPEL_SOCKET"])
for part in (at_reset, breakpoints, watchpoints, vectors, wide_vectors, memory, masked, end):
    try:
        part()
    except gdb.error as error:
        print("FAILED %s: %s" % (part.__name__, error))
