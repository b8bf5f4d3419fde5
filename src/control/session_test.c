/* The protocol of the control socket: what is answered to what, whatever pieces it comes in. */
#include "control/session.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"

static json_t *run_add(void *owner, const json_t *request)
{
    json_int_t *sum = owner;
    *sum += json_integer_value(json_object_get(request, "number"));
    return json_integer(*sum);
}

static json_t *run_refuse(void *owner, const json_t *request)
{
    fail(-EBUSY, "not \"now\"");
    return NULL;
}

static const char *const add_keys[] = {"number", NULL};
static const struct session_command commands[] = {
    {"add", run_add, add_keys, NULL}, {"refuse", run_refuse, NULL, NULL}, {NULL, NULL, NULL, NULL}};

struct fixture {
    struct session *session;
    json_int_t sum;
};

static int setup(void **state)
{
    static struct fixture fixture;
    fixture.sum = 0;
    fixture.session = session_new(commands, &fixture.sum);
    *state = &fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    session_free(fixture->session);
    return 0;
}

/* Send all of it, `piece` bytes at a time; returns all that was answered. Freed by the caller. */
static char *talk_in_pieces(struct fixture *fixture, const char *text, size_t size, size_t piece)
{
    char *answers = calloc(1, 1 << 16);
    size_t length, at = 0;
    for (;;) {
        const char *output = session_output(fixture->session, &length);
        if (length) {
            size_t part = length < piece ? length : piece;
            strncat(answers, output, part);
            session_sent(fixture->session, part);
            continue;
        }
        size_t room = session_room(fixture->session);
        size_t next = size - at < piece ? size - at : piece;
        next = next < room ? next : room;
        if (!next) {
            return answers;
        }
        session_receive(fixture->session, text + at, next);
        at += next;
    }
}

static void expect(struct fixture *fixture, const char *request, const char *answer)
{
    char *found = talk_in_pieces(fixture, request, strlen(request), 1 << 16);
    assert_string_equal(found, answer);
    free(found);
}

static void test_commands(void **state)
{
    expect(*state, "{\"command\":\"add\",\"number\":3}\n", "{\"ok\":true,\"result\":3}\n");
    expect(*state, "{\"command\":\"add\",\"number\":4,\"id\":\"x\"}\r\n",
           "{\"ok\":true,\"result\":7,\"id\":\"x\"}\n");
    expect(*state, "\n\r\n  {\"id\":9,\"command\":\"refuse\"}  \n",
           "{\"ok\":false,\"error\":{\"code\":\"failed\",\"message\":\"not \\\"now\\\"\"},"
           "\"id\":9}\n");
}

/* Requests in a row are answered one by one, in any size of pieces. */
static void test_pieces(void **state)
{
    static const char text[] = "{\"command\":\"add\",\"number\":1}\n{\"command\":\"add\"}\n"
                               "nonsense\n{\"command\":\"add\",\"number\":1}\n";
    for (size_t piece = 1; piece <= sizeof text; piece++) {
        struct fixture *fixture = *state;
        fixture->sum = 0;
        char *found = talk_in_pieces(fixture, text, sizeof text - 1, piece);
        assert_non_null(strstr(found, "{\"ok\":true,\"result\":1}\n{\"ok\":true,\"result\":1}\n"
                                      "{\"ok\":false,"));
        assert_non_null(strstr(found, "}\n{\"ok\":true,\"result\":2}\n"));
        free(found);
    }
}

static void test_mistakes(void **state)
{
    static const struct {
        const char *request, *code, *says;
    } mistakes[] = {
        {"hello\n", "invalid_json", "column"},
        {"{\"command\":\"add\"\n", "invalid_json", "column"},
        {"{\"command\":\"add\",\"command\":\"add\"}\n", "invalid_json", "duplicate"},
        {"{\"command\":\"\xff\"}\n", "invalid_json", "decode byte"},
        {"{} {}\n", "invalid_json", "end of file"},
        {"[]\n", "invalid_request", "object"},
        {"{}\n", "invalid_request", "command"},
        {"{\"command\":7}\n", "invalid_request", "command"},
        {"{\"command\":\"add\",\"id\":[1]}\n", "invalid_request", "id"},
        {"{\"command\":\"sub\"}\n", "unknown_command", "known: add, refuse"},
        {"{\"command\":\"add\",\"nubmer\":1}\n", "unknown_key", "nubmer"},
    };
    for (size_t i = 0; i < sizeof mistakes / sizeof mistakes[0]; i++) {
        char code[64];
        char *found =
            talk_in_pieces(*state, mistakes[i].request, strlen(mistakes[i].request), 4096);
        snprintf(code, sizeof code, "\"code\":\"%s\"", mistakes[i].code);
        if (!strstr(found, "\"ok\":false") || !strstr(found, code) ||
            !strstr(found, mistakes[i].says)) {
            print_error("to %s: %s", mistakes[i].request, found);
            assert_true(false);
        }
        free(found);
    }
    expect(*state, "{\"command\":\"add\",\"number\":5}\n", "{\"ok\":true,\"result\":5}\n");
}

/* Nesting is bounded by the parser, and a line without end ends the session with a sentence. */
static void test_bounds(void **state)
{
    enum { SIZE = SESSION_LINE_MAX + 10 };
    struct fixture *fixture = *state;
    char *line = malloc(SIZE);
    memset(line, '[', SIZE);
    line[SESSION_LINE_MAX - 1] = '\n';
    char *found = talk_in_pieces(fixture, line, SESSION_LINE_MAX, 5000);
    assert_non_null(strstr(found, "\"invalid_json\""));
    assert_non_null(strstr(found, "depth"));
    free(found);
    assert_false(session_is_over(fixture->session));
    line[SESSION_LINE_MAX - 1] = '[';
    found = talk_in_pieces(fixture, line, SIZE, 5000);
    assert_non_null(strstr(found, "\"too_long\""));
    assert_true(session_is_over(fixture->session));
    assert_int_equal(session_room(fixture->session), 0);
    free(found);
    free(line);
}

/* A client that does not take its answer is not listened to meanwhile. */
static void test_answers_are_taken_first(void **state)
{
    struct fixture *fixture = *state;
    static const char two[] = "{\"command\":\"add\",\"number\":1}\n{\"command\":\"add\"}\n";
    size_t size;
    session_receive(fixture->session, two, sizeof two - 1);
    assert_int_equal(session_room(fixture->session), 0);
    assert_int_equal(fixture->sum, 1);
    session_output(fixture->session, &size);
    session_sent(fixture->session, size - 1);
    assert_int_equal(session_room(fixture->session), 0);
    session_sent(fixture->session, 1);
    session_output(fixture->session, &size);
    assert_true(size > 0); /* the second one's */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_commands, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pieces, setup, teardown),
        cmocka_unit_test_setup_teardown(test_mistakes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bounds, setup, teardown),
        cmocka_unit_test_setup_teardown(test_answers_are_taken_first, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
