/* The session with a GDB: packets to commands, answers to packets. See stub.h. */
#include "control/gdb/stub.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "control/gdb/register.h"
#include "control/gdb/stub_internal.h"

enum { SIGNAL_TRAP = 5 }; /* GDB's own numbers */

struct gdb_stub *gdb_stub_new(const struct gdb_stub_config *config)
{
    struct gdb_stub *stub = calloc(1, sizeof *stub);
    ASSERT(stub);
    stub->config = *config;
    stub->target = &stub->config.target;
    stub->signal = SIGNAL_TRAP;
    stub->description = gdb_register_description(stub->target);
    return stub;
}

void gdb_stub_free(struct gdb_stub *stub)
{
    if (stub) {
        free(stub->description);
        free(stub);
    }
}

bool gdb_stub_is_detached(const struct gdb_stub *stub)
{
    return stub->is_detached;
}

static void send_text(struct gdb_stub *stub, const char *text)
{
    stub->config.send(stub->config.owner, text, strlen(text));
}

/* Send what is in stub->out. */
static void send_packet(struct gdb_stub *stub)
{
    gdb_output_end(&stub->out);
    stub->config.send(stub->config.owner, stub->out.bytes, stub->out.length);
}

static void send_answer(struct gdb_stub *stub, enum answer answer)
{
    static const char *const texts[] = {
        [ANSWER_OK] = "OK",     [ANSWER_EMPTY] = "",   [ANSWER_BAD] = "E16",
        [ANSWER_FAULT] = "E0e", [ANSWER_FULL] = "E1c",
    };
    if (answer == ANSWER_NONE) {
        return;
    }
    if (answer != ANSWER_DONE) {
        gdb_output_begin(&stub->out);
        gdb_output_text(&stub->out, texts[answer]);
    }
    send_packet(stub);
}

/* ---- small commands ---- */

/* H: the thread of further commands. */
static enum answer choose_thread(struct gdb_stub *stub, struct gdb_text *text)
{
    bool is_step = gdb_text_word(text, "c");
    int thread;
    if ((!is_step && !gdb_text_word(text, "g")) || !gdb_text_thread(stub, text, &thread)) {
        return ANSWER_BAD;
    }
    if (is_step) {
        stub->step_cpu = thread > 0 ? (unsigned)thread - 1 : stub->stopped_cpu;
    } else if (thread > 0) {
        stub->cpu = (unsigned)thread - 1;
    }
    return ANSWER_OK;
}

static enum answer is_alive(struct gdb_stub *stub, struct gdb_text *text)
{
    int thread;
    return gdb_text_thread(stub, text, &thread) && thread > 0 ? ANSWER_OK : ANSWER_BAD;
}

static enum answer quit(struct gdb_stub *stub)
{
    stub->target->quit(stub->target->owner);
    stub->is_detached = true;
    return ANSWER_NONE;
}

/* The packets with long names. An unknown one, vMustReplyEmpty and vRun among them, is empty. */
static enum answer verbose(struct gdb_stub *stub, struct gdb_text *text)
{
    if (gdb_text_word(text, "Cont?")) {
        gdb_output_text(&stub->out, "vCont;c;C;s;S");
        return ANSWER_DONE;
    }
    if (gdb_text_word(text, "Cont")) {
        return gdb_command_vcont(stub, text);
    }
    if (gdb_text_word(text, "Kill")) {
        quit(stub);
        return ANSWER_OK;
    }
    return ANSWER_EMPTY;
}

static enum answer command(struct gdb_stub *stub, struct gdb_text *text)
{
    char name = text->at < text->end ? *text->at++ : '\0';
    gdb_output_begin(&stub->out);
    switch (name) {
    case '?':
        return gdb_reply_stop(stub);
    case 'g':
        return gdb_command_registers_read(stub);
    case 'G':
        return gdb_command_registers_write(stub, text);
    case 'p':
        return gdb_command_register_read(stub, text);
    case 'P':
        return gdb_command_register_write(stub, text);
    case 'm':
        return gdb_command_memory_read(stub, text);
    case 'M':
    case 'X':
        return gdb_command_memory_write(stub, text, name == 'X');
    case 'c':
    case 's':
    case 'C':
    case 'S':
        return gdb_command_resume(stub, text, name);
    case 'Z':
    case 'z':
        return gdb_command_point(stub, text, name == 'Z');
    case 'H':
        return choose_thread(stub, text);
    case 'T':
        return is_alive(stub, text);
    case 'D':
        return gdb_command_detach(stub);
    case 'k':
        return quit(stub);
    case 'v':
        return verbose(stub, text);
    case 'q':
        return gdb_command_query(stub, text);
    case 'Q':
        return gdb_command_set(stub, text);
    default:
        return ANSWER_EMPTY;
    }
}

/* ---- events ---- */

static void take_packet(struct gdb_stub *stub)
{
    struct gdb_text text = {stub->in.data, stub->in.data + stub->in.length};
    if (!stub->no_ack) {
        send_text(stub, "+");
    }
    enum answer answer = command(stub, &text);
    send_answer(stub, answer);
    stub->no_ack = stub->no_ack_next;
}

void gdb_stub_take(struct gdb_stub *stub, uint8_t byte)
{
    enum gdb_event event = gdb_input_take(&stub->in, byte);
    if (stub->is_detached) {
        return;
    }
    if (stub->is_running) { /* all-stop: nothing else is said meanwhile */
        if (event == GDB_INTERRUPT) {
            gdb_interrupt(stub);
            send_answer(stub, gdb_reply_stop(stub));
        }
        return;
    }
    switch (event) {
    case GDB_PACKET:
        take_packet(stub);
        break;
    case GDB_BROKEN:
        send_text(stub, stub->no_ack ? "" : "-");
        break;
    case GDB_RESEND:
        stub->config.send(stub->config.owner, stub->out.bytes, stub->no_ack ? 0 : stub->out.length);
        break;
    case GDB_NOTHING:
    case GDB_ACK:
    case GDB_INTERRUPT:
        break;
    }
}

void gdb_stub_stopped(struct gdb_stub *stub)
{
    unsigned cpu;
    struct debug_stop stop;
    if (!stub->is_running || !stub->target->stop(stub->target->owner, &cpu, &stop)) {
        return;
    }
    stub->is_running = false;
    stub->has_stop = true;
    stub->stop = stop;
    stub->cpu = stub->step_cpu = stub->stopped_cpu = cpu;
    send_answer(stub, gdb_reply_stop(stub));
}

void gdb_stub_ended(struct gdb_stub *stub, uint8_t status)
{
    static const char digits[] = "0123456789abcdef";
    char text[] = {'W', digits[status >> 4], digits[status & 0xf], '\0'};
    if (!stub->is_running || stub->is_detached) {
        return; /* nobody waits for news */
    }
    stub->is_running = false;
    stub->is_detached = true;
    gdb_output_begin(&stub->out);
    gdb_output_text(&stub->out, text);
    send_packet(stub);
}
