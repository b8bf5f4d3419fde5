/* Registers and memory for GDB: g, G, p, P, m, M, X. */
#include <string.h>

#include "control/gdb/register.h"
#include "control/gdb/stub_internal.h"

static void get_state(struct gdb_stub *stub, struct cpu_state *ret_state)
{
    stub->target->get_state(stub->target->owner, stub->cpu, ret_state);
}

static enum answer set_state(struct gdb_stub *stub, const struct cpu_state *state)
{
    return stub->target->set_state(stub->target->owner, stub->cpu, state) ? ANSWER_BAD : ANSWER_OK;
}

static void put_register(struct gdb_stub *stub, const struct cpu_state *state, unsigned number)
{
    uint8_t value[GDB_REGISTER_MAX];
    gdb_register_get(stub->target, state, number, value);
    gdb_output_hex(&stub->out, value, gdb_register_size(stub->target, number));
}

enum answer gdb_command_registers_read(struct gdb_stub *stub)
{
    struct cpu_state state;
    get_state(stub, &state);
    for (unsigned i = 0; i < gdb_register_count(stub->target); i++) {
        put_register(stub, &state, i);
    }
    return ANSWER_DONE;
}

/* Take the value of a register and put it into the state. */
static bool take_register(struct gdb_stub *stub, struct gdb_text *text, unsigned number,
                          struct cpu_state *state)
{
    uint8_t value[GDB_REGISTER_MAX];
    return gdb_text_hex(text, value, gdb_register_size(stub->target, number)) &&
           !gdb_register_set(stub->target, stub->cpu, state, number, value);
}

/* All of them, or as many as there are values: GDB sends them in order. */
enum answer gdb_command_registers_write(struct gdb_stub *stub, struct gdb_text *text)
{
    struct cpu_state state;
    get_state(stub, &state);
    for (unsigned i = 0; gdb_text_left(text) && i < gdb_register_count(stub->target); i++) {
        if (!take_register(stub, text, i, &state)) {
            return ANSWER_BAD;
        }
    }
    return set_state(stub, &state);
}

static bool take_number(const struct gdb_stub *stub, struct gdb_text *text, unsigned *ret_number)
{
    uint64_t number;
    if (!gdb_text_number(text, &number) || number >= gdb_register_count(stub->target)) {
        return false;
    }
    *ret_number = (unsigned)number;
    return true;
}

enum answer gdb_command_register_read(struct gdb_stub *stub, struct gdb_text *text)
{
    struct cpu_state state;
    unsigned number;
    if (!take_number(stub, text, &number)) {
        return ANSWER_BAD;
    }
    get_state(stub, &state);
    put_register(stub, &state, number);
    return ANSWER_DONE;
}

enum answer gdb_command_register_write(struct gdb_stub *stub, struct gdb_text *text)
{
    struct cpu_state state;
    unsigned number;
    if (!take_number(stub, text, &number) || !gdb_text_word(text, "=")) {
        return ANSWER_BAD;
    }
    get_state(stub, &state);
    return take_register(stub, text, number, &state) ? set_state(stub, &state) : ANSWER_BAD;
}

/* `address,length` */
static bool take_range(struct gdb_text *text, uint64_t *ret_address, uint64_t *ret_length)
{
    return gdb_text_number(text, ret_address) && gdb_text_word(text, ",") &&
           gdb_text_number(text, ret_length);
}

/* Less than was asked for is fine: what comes behind is asked for again. */
enum answer gdb_command_memory_read(struct gdb_stub *stub, struct gdb_text *text)
{
    uint8_t bytes[GDB_PACKET_MAX / 2];
    uint64_t address, length;
    if (!take_range(text, &address, &length)) {
        return ANSWER_BAD;
    }
    size_t size = length < sizeof bytes ? (size_t)length : sizeof bytes;
    size_t count = stub->target->read(stub->target->owner, stub->cpu, address, bytes, size);
    gdb_output_hex(&stub->out, bytes, count);
    return count || !size ? ANSWER_DONE : ANSWER_FAULT;
}

enum answer gdb_command_memory_write(struct gdb_stub *stub, struct gdb_text *text, bool binary)
{
    uint8_t bytes[GDB_PACKET_MAX];
    uint64_t address, length;
    if (!take_range(text, &address, &length) || !gdb_text_word(text, ":") ||
        length > sizeof bytes) {
        return ANSWER_BAD;
    }
    size_t size = (size_t)length;
    if (!binary) {
        if (!gdb_text_hex(text, bytes, size)) {
            return ANSWER_BAD;
        }
    } else if (gdb_text_left(text) == size) {
        memcpy(bytes, text->at, size);
    } else {
        return ANSWER_BAD;
    }
    size_t count = stub->target->write(stub->target->owner, stub->cpu, address, bytes, size);
    return count == size ? ANSWER_OK : ANSWER_FAULT;
}
