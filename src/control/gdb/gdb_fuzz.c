/*
 * A peer that sends anything. The first byte says how many CPUs there are, what the model offers,
 * and whether the rest is bytes as they are or lines that become packets with right checksums. A
 * line that begins with byte 1 stops a CPU, with 2 it ends the machine, with 4 it is sent raw.
 * Guards: src/control/gdb/packet.c src/control/gdb/stub.c src/control/gdb/stub_data.c
 * src/control/gdb/stub_run.c src/control/gdb/stub_query.c src/control/gdb/register.c
 */
#include <stdlib.h>

#include "base/bytes.h"
#include "control/gdb/packet.h"
#include "control/gdb/stub.h"
#include "control/gdb/test_target.h"

struct session {
    struct test_target test;
    struct gdb_stub *stub;
    struct gdb_input answers;
};

/* What the stub sends is packets, acknowledgements and requests to send again. */
static void send_bytes(void *owner, const void *bytes, size_t count)
{
    struct session *session = owner;
    for (size_t i = 0; i < count; i++) {
        enum gdb_event event = gdb_input_take(&session->answers, ((const uint8_t *)bytes)[i]);
        ASSERT(event != GDB_BROKEN && event != GDB_INTERRUPT);
    }
}

static void take(struct session *session, const uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        gdb_stub_take(session->stub, bytes[i]);
    }
}

static void send_packet(struct session *session, const uint8_t *line, size_t count)
{
    static const char digits[] = "0123456789abcdef";
    uint8_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        sum = (uint8_t)(sum + line[i]);
    }
    const uint8_t tail[] = {'#', (uint8_t)digits[sum >> 4], (uint8_t)digits[sum & 0xf]};
    gdb_stub_take(session->stub, '$');
    take(session, line, count);
    take(session, tail, sizeof tail);
}

/* A CPU stops by itself, if the machine runs. */
static void stop(struct session *session, uint8_t how)
{
    struct test_target *test = &session->test;
    unsigned watch = how >> 2 & 3;
    test->has_stop = test->is_running;
    test->stop_cpu = (how >> 5) % test->target.cpus;
    test->stop = (struct debug_stop){.kind = how % 3, .watch = watch ? watch : WATCH_WRITE};
    if (test->points.break_count) {
        test->stop.address = test->points.breaks[how % test->points.break_count];
    }
    gdb_stub_stopped(session->stub);
}

static void do_line(struct session *session, const uint8_t *line, size_t count)
{
    switch (count ? line[0] : 0) {
    case 1:
        stop(session, count > 1 ? line[1] : 0);
        break;
    case 2:
        gdb_stub_ended(session->stub, count > 1 ? line[1] : 0);
        break;
    case 4:
        take(session, line + 1, count - 1);
        break;
    default:
        send_packet(session, line, count);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint64_t offers[] = {3, 7, 0xe7, 3};
    if (!size) {
        return 0;
    }
    uint8_t how = *data++;
    size--;
    struct session *session = calloc(1, sizeof *session);
    ASSERT(session);
    test_target_init(&session->test, 1 + (how & 7), offers[how >> 3 & 3]);
    const struct gdb_stub_config config = {
        .target = session->test.target, .send = send_bytes, .owner = session};
    session->stub = gdb_stub_new(&config);
    if (how & 0x80) {
        take(session, data, size);
        size = 0;
    }
    while (size) {
        const uint8_t *end = memchr(data, '\n', size);
        size_t count = end ? (size_t)(end - data) : size;
        do_line(session, data, count);
        data += count + (end ? 1 : 0);
        size -= count + (end ? 1 : 0);
    }
    gdb_stub_free(session->stub);
    free(session);
    return 0;
}
