/* The packets of GDB's protocol, and the stub on a machine of plain memory. */
#include "control/gdb/stub.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* last: cmocka wants the standard headers before it */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "control/gdb/packet.h"
#include "control/gdb/register.h"
#include "control/gdb/test_target.h"

struct session {
    struct test_target test;
    struct gdb_stub *stub;
    size_t length;
    char sent[3 * GDB_PACKET_MAX];
};

static void keep(void *owner, const void *bytes, size_t count)
{
    struct session *session = owner;
    assert_true(session->length + count < sizeof session->sent);
    memcpy(session->sent + session->length, bytes, count);
    session->length += count;
    session->sent[session->length] = '\0';
}

static struct session *session_new(unsigned cpus, uint64_t xcr0)
{
    struct session *session = calloc(1, sizeof *session);
    assert_non_null(session);
    test_target_init(&session->test, cpus, xcr0);
    const struct gdb_stub_config config = {
        .target = session->test.target, .send = keep, .owner = session};
    session->stub = gdb_stub_new(&config);
    return session;
}

static void session_free(struct session *session)
{
    gdb_stub_free(session->stub);
    free(session);
}

static void say(struct session *session, const char *text)
{
    session->length = 0;
    session->sent[0] = '\0';
    while (*text) {
        gdb_stub_take(session->stub, (uint8_t)*text++);
    }
}

/* Send a packet; the answer without its frame. */
static const char *ask(struct session *session, const char *packet)
{
    struct gdb_output out;
    gdb_output_begin(&out);
    gdb_output_text(&out, packet);
    gdb_output_end(&out);
    out.bytes[out.length] = '\0';
    say(session, out.bytes);
    if (session->length < 5) {
        return session->sent;
    }
    assert_memory_equal(session->sent, "+$", 2);
    session->sent[session->length - 3] = '\0';
    return session->sent + 2;
}

static void packets_are_checked(void **state)
{
    struct session *session = session_new(1, 3);
    say(session, "$qC#b4");
    assert_string_equal(session->sent, "+$QC1#c5");
    say(session, "-");
    assert_string_equal(session->sent, "$QC1#c5");
    say(session, "$qC#b5");
    assert_string_equal(session->sent, "-");
    say(session, "$qC#zz");
    assert_string_equal(session->sent, "-");
    say(session, "noise+$q$qC#b4");
    assert_string_equal(session->sent, "+$QC1#c5");
    say(session, "$QStartNoAckMode#b0");
    assert_string_equal(session->sent, "+$OK#9a");
    say(session, "$qC#b4");
    assert_string_equal(session->sent, "$QC1#c5");
    say(session, "$qC#b5");
    assert_string_equal(session->sent, "");
    session_free(session);
}

static void long_packets_are_dropped(void **state)
{
    struct gdb_input *input = calloc(1, sizeof *input);
    assert_int_equal(gdb_input_take(input, '$'), GDB_NOTHING);
    for (unsigned i = 0; i < GDB_PACKET_MAX; i++) {
        assert_int_equal(gdb_input_take(input, '0'), GDB_NOTHING);
    }
    assert_int_equal(gdb_input_take(input, '#'), GDB_NOTHING);
    assert_int_equal(gdb_input_take(input, '0'), GDB_NOTHING);
    assert_int_equal(gdb_input_take(input, '0'), GDB_PACKET);
    assert_int_equal(input->length, GDB_PACKET_MAX);
    gdb_input_take(input, '$');
    for (unsigned i = 0; i < GDB_PACKET_MAX + 16; i++) {
        gdb_input_take(input, '0');
    }
    gdb_input_take(input, '#');
    gdb_input_take(input, '0');
    assert_int_equal(gdb_input_take(input, '0'), GDB_BROKEN);
    free(input);
}

static void escapes_go_both_ways(void **state)
{
    static const char special[] = "a#b$c}d*e";
    struct gdb_input *input = calloc(1, sizeof *input);
    struct gdb_output out;
    enum gdb_event event = GDB_NOTHING;
    gdb_output_begin(&out);
    gdb_output_binary(&out, special, sizeof special);
    gdb_output_end(&out);
    for (size_t i = 0; i < out.length; i++) {
        event = gdb_input_take(input, (uint8_t)out.bytes[i]);
    }
    assert_int_equal(event, GDB_PACKET);
    assert_int_equal(input->length, sizeof special);
    assert_memory_equal(input->data, special, sizeof special);
    free(input);
}

static void output_is_bounded(void **state)
{
    struct gdb_output out;
    uint8_t byte = 0x5a;
    gdb_output_begin(&out);
    for (unsigned i = 0; i < GDB_PACKET_MAX; i++) {
        gdb_output_hex(&out, &byte, 1);
    }
    assert_int_equal(gdb_output_room(&out), 0);
    gdb_output_end(&out);
    assert_int_equal(out.length, sizeof out.bytes);
}

/* Each register takes a value of its size and gives it back. */
static void registers_keep_values(void **state)
{
    static const uint64_t models[] = {3, 7, 0xe7};
    struct test_target *test = calloc(1, sizeof *test);
    for (size_t m = 0; m < 3; m++) {
        test_target_init(test, 1, models[m]);
        for (unsigned n = 0; n < gdb_register_count(&test->target); n++) {
            uint8_t value[GDB_REGISTER_MAX] = {0}, got[GDB_REGISTER_MAX];
            size_t size = gdb_register_size(&test->target, n);
            struct cpu_state cpu = test->states[0];
            for (size_t i = 0; i < size; i++) {
                value[i] = (uint8_t)(0x11 * (i + n));
            }
            bool is_narrow = (n >= 18 && n < 24) || (n >= 32 && n < 40); /* selectors, x87 */
            if (is_narrow) {
                memset(value, 0, sizeof value);
                value[0] = 0x28, value[1] = 2;
            }
            assert_int_equal(gdb_register_set(&test->target, 0, &cpu, n, value), 0);
            gdb_register_get(&test->target, &cpu, n, got);
            if (n == 17) {
                value[0] |= FLAG_FIXED;
            } else if (n == 34) { /* nothing but the emptiness of tags can be set */
                continue;
            }
            assert_memory_equal(got, value, size);
        }
        assert_int_equal(gdb_register_size(&test->target, gdb_register_count(&test->target)), 0);
    }
    free(test);
}

static void points_are_ordered_and_bounded(void **state)
{
    struct session *session = session_new(2, 3);
    assert_string_equal(ask(session, "Z0,2000,1"), "OK");
    assert_string_equal(ask(session, "Z1,1000,1"), "OK");
    assert_string_equal(ask(session, "Z1,2000,1"), "OK");
    assert_string_equal(ask(session, "Z0,2000,1"), "OK");
    assert_string_equal(ask(session, "Z0,1,1;X1,00"), "E16");
    assert_string_equal(ask(session, "Z5,1,1"), "");
    assert_string_equal(ask(session, "z0,2000,1"), "OK");
    assert_string_equal(ask(session, "z0,2000,1"), "E16");
    assert_string_equal(ask(session, "Z2,3000,10"), "OK");
    assert_string_equal(ask(session, "Z3,3000,10"), "OK");
    assert_string_equal(ask(session, "z2,3000,10"), "OK");
    assert_string_equal(ask(session, "z4,3000,10"), "E16");
    assert_string_equal(ask(session, "Z2,fffffffffffffff8,9"), "E16");
    assert_string_equal(ask(session, "c"), "+");
    const struct debug_points *points = &session->test.points;
    assert_int_equal(points->break_count, 2);
    assert_int_equal(points->breaks[0], 0x1000);
    assert_int_equal(points->breaks[1], 0x2000);
    assert_int_equal(points->watch_count, 1);
    assert_int_equal(points->watches[0].last, 0x300f);
    assert_int_equal(points->watches[0].kind, WATCH_READ);
    session_free(session);
}

static void stop_by_itself(struct session *session, unsigned cpu, struct debug_stop stop)
{
    session->length = 0;
    session->test.has_stop = true;
    session->test.stop_cpu = cpu;
    session->test.stop = stop;
    gdb_stub_stopped(session->stub);
}

static void actions_reach_their_threads(void **state)
{
    struct session *session = session_new(3, 3);
    const enum vm_debug_action *actions = session->test.actions;
    assert_string_equal(ask(session, "vCont;s:2;C05:3"), "+");
    assert_int_equal(actions[0], VM_DEBUG_HOLD);
    assert_int_equal(actions[1], VM_DEBUG_STEP);
    assert_int_equal(actions[2], VM_DEBUG_CONTINUE);
    stop_by_itself(session, 1, (struct debug_stop){.kind = DEBUG_STOP_STEP});
    assert_non_null(strstr(session->sent, "$T05thread:2;#"));
    session_free(session);
}

static void stops_are_told(void **state)
{
    struct session *session = session_new(2, 3);
    ask(session, "qSupported:swbreak+;hwbreak+");
    assert_string_equal(ask(session, "Z0,1234,1"), "OK");
    ask(session, "c");
    stop_by_itself(session, 1, (struct debug_stop){.kind = DEBUG_STOP_BREAK, .address = 0x1234});
    assert_non_null(strstr(session->sent, "$T05swbreak:;thread:2;#"));
    assert_non_null(strstr(ask(session, "?"), "T05swbreak:;thread:2;"));
    ask(session, "s");
    stop_by_itself(
        session, 0,
        (struct debug_stop){.kind = DEBUG_STOP_WATCH, .watch = WATCH_ACCESS, .address = 0xabc0});
    assert_non_null(strstr(session->sent, "$T05awatch:abc0;thread:1;#"));
    ask(session, "c");
    assert_string_equal(ask(session, "g"), ""); /* not while it runs */
    say(session, "\3");
    assert_non_null(strstr(session->sent, "$T02thread:1;#"));
    ask(session, "c");
    gdb_stub_ended(session->stub, 0x21);
    assert_non_null(strstr(session->sent, "$W21#"));
    session_free(session);
}

static void detaching_lets_go(void **state)
{
    struct session *session = session_new(1, 3);
    ask(session, "Z0,1234,1");
    assert_string_equal(ask(session, "D"), "OK");
    assert_true(gdb_stub_is_detached(session->stub));
    assert_true(session->test.is_running);
    assert_int_equal(session->test.points.break_count, 0);
    say(session, "$k#6b");
    assert_false(session->test.has_quit);
    session_free(session);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packets_are_checked),
        cmocka_unit_test(long_packets_are_dropped),
        cmocka_unit_test(escapes_go_both_ways),
        cmocka_unit_test(output_is_bounded),
        cmocka_unit_test(registers_keep_values),
        cmocka_unit_test(points_are_ordered_and_bounded),
        cmocka_unit_test(actions_reach_their_threads),
        cmocka_unit_test(stops_are_told),
        cmocka_unit_test(detaching_lets_go),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
