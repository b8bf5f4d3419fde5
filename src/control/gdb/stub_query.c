/* Queries and settings of GDB: q and Q packets, threads, the monitor commands. */
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "control/gdb/stub_internal.h"

bool gdb_text_thread(const struct gdb_stub *stub, struct gdb_text *text, int *ret_thread)
{
    uint64_t number;
    if (gdb_text_word(text, "-1")) {
        *ret_thread = -1;
        return true;
    }
    if (!gdb_text_number(text, &number) || number > stub->target->cpus) {
        return false;
    }
    *ret_thread = (int)number;
    return true;
}

/* ---- monitor commands ---- */

static void put_line(struct gdb_stub *stub, const char *line)
{
    gdb_output_hex(&stub->out, line, strlen(line));
}

static enum answer monitor_help(struct gdb_stub *stub)
{
    put_line(stub, "help   these lines\n"
                   "reset  the machine to its first instruction; then 'maintenance flush "
                   "register-cache'\n"
                   "quit   end the machine\n");
    return ANSWER_DONE;
}

static enum answer monitor_reset(struct gdb_stub *stub)
{
    if (stub->target->reset(stub->target->owner)) {
        return ANSWER_BAD;
    }
    stub->has_stop = false;
    stub->cpu = stub->step_cpu = stub->stopped_cpu = 0;
    put_line(stub, "the machine stands at its first instruction again\n");
    return ANSWER_DONE;
}

static enum answer monitor_quit(struct gdb_stub *stub)
{
    stub->target->quit(stub->target->owner);
    put_line(stub, "the machine ends\n");
    return ANSWER_DONE;
}

/* qRcmd,command in digits */
static enum answer monitor(struct gdb_stub *stub, struct gdb_text *text)
{
    static const struct {
        const char *name;
        enum answer (*run)(struct gdb_stub *stub);
    } commands[] = {{"help", monitor_help}, {"reset", monitor_reset}, {"quit", monitor_quit}};
    char name[16] = "";
    size_t length = gdb_text_left(text) / 2;
    if (length < sizeof name && gdb_text_hex(text, name, length)) {
        for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
            if (!strcmp(name, commands[i].name)) {
                return commands[i].run(stub);
            }
        }
    }
    put_line(stub, "no such command; 'monitor help' lists them\n");
    return ANSWER_DONE;
}

/* ---- threads ---- */

static enum answer list_threads(struct gdb_stub *stub)
{
    for (unsigned i = 0; i < stub->target->cpus; i++) {
        gdb_output_text(&stub->out, i ? "," : "m");
        gdb_output_number(&stub->out, i + 1);
    }
    return ANSWER_DONE;
}

static enum answer describe_thread(struct gdb_stub *stub, struct gdb_text *text)
{
    static const char *const activities[] = {
        [ACTIVITY_RUNNING] = "running",
        [ACTIVITY_HALTED] = "halted",
        [ACTIVITY_WAIT_SIPI] = "waiting to be started",
        [ACTIVITY_SHUTDOWN] = "shut down",
    };
    struct cpu_state state;
    char line[64];
    int thread;
    if (!gdb_text_thread(stub, text, &thread) || thread < 1) {
        return ANSWER_BAD;
    }
    stub->target->get_state(stub->target->owner, (unsigned)thread - 1, &state);
    snprintf(line, sizeof line, "vCPU %d, %s", thread - 1,
             state.activity < ARRAY_SIZE(activities) ? activities[state.activity] : "lost");
    put_line(stub, line);
    return ANSWER_DONE;
}

static enum answer current_thread(struct gdb_stub *stub)
{
    gdb_output_text(&stub->out, "QC");
    gdb_output_number(&stub->out, stub->stopped_cpu + 1);
    return ANSWER_DONE;
}

/* ---- features ---- */

/* qSupported:feature;feature...: what both sides can. */
static enum answer supported(struct gdb_stub *stub, struct gdb_text *text)
{
    while (text->at < text->end) {
        text->at++; /* ':' or ';' */
        const char *next = memchr(text->at, ';', gdb_text_left(text));
        stub->knows_swbreak |= gdb_text_word(text, "swbreak+");
        stub->knows_hwbreak |= gdb_text_word(text, "hwbreak+");
        text->at = next ? next : text->end;
    }
    gdb_output_text(&stub->out, "PacketSize=");
    gdb_output_number(&stub->out, GDB_PACKET_MAX);
    gdb_output_text(&stub->out, ";QStartNoAckMode+;qXfer:features:read+;vContSupported+;"
                                "swbreak+;hwbreak+");
    return ANSWER_DONE;
}

/* offset,length of the target description: `m` and a part, or `l` and the last one. */
static enum answer read_description(struct gdb_stub *stub, struct gdb_text *text)
{
    uint64_t offset, length;
    size_t size = strlen(stub->description);
    if (!gdb_text_number(text, &offset) || !gdb_text_word(text, ",") ||
        !gdb_text_number(text, &length) || offset > size) {
        return ANSWER_BAD;
    }
    size_t left = size - (size_t)offset;
    size_t count = left < GDB_PACKET_MAX / 4 ? left : GDB_PACKET_MAX / 4; /* escapes take two */
    count = count < length ? count : (size_t)length;
    gdb_output_text(&stub->out, count == left ? "l" : "m");
    gdb_output_binary(&stub->out, stub->description + offset, count);
    return ANSWER_DONE;
}

enum answer gdb_command_query(struct gdb_stub *stub, struct gdb_text *text)
{
    if (gdb_text_word(text, "Supported")) {
        return supported(stub, text);
    }
    if (gdb_text_word(text, "Xfer:features:read:target.xml:")) {
        return read_description(stub, text);
    }
    if (gdb_text_word(text, "Rcmd,")) {
        return monitor(stub, text);
    }
    if (gdb_text_word(text, "fThreadInfo")) {
        return list_threads(stub);
    }
    if (gdb_text_word(text, "sThreadInfo")) {
        gdb_output_text(&stub->out, "l");
        return ANSWER_DONE;
    }
    if (gdb_text_word(text, "ThreadExtraInfo,")) {
        return describe_thread(stub, text);
    }
    if (gdb_text_word(text, "Attached")) { /* so that GDB detaches when it ends */
        gdb_output_text(&stub->out, "1");
        return ANSWER_DONE;
    }
    return gdb_text_word(text, "C") && !gdb_text_left(text) ? current_thread(stub) : ANSWER_EMPTY;
}

enum answer gdb_command_set(struct gdb_stub *stub, struct gdb_text *text)
{
    if (gdb_text_word(text, "StartNoAckMode")) {
        stub->no_ack_next = true;
        return ANSWER_OK;
    }
    return ANSWER_EMPTY;
}
