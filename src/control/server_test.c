/*
 * The control socket and the names of machines: several clients at once, clients that are slow or
 * leave, names that are taken, and what killed processes leave behind.
 */
#include "control/server.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/loop.h"
#include "control/client.h"
#include "control/registry.h"

/* An answer that fills every socket buffer. */
enum { LARGE = 4 << 20 };

static json_t *run_large(void *owner, const json_t *request)
{
    char *text = malloc(LARGE);
    memset(text, 'x', LARGE);
    json_t *string = json_stringn(text, LARGE);
    free(text);
    return string;
}

static json_t *run_number(void *owner, const json_t *request)
{
    return json_incref(json_object_get(request, "number"));
}

/* As of a monitor that its guest has taken over. */
static json_t *run_rude(void *owner, const json_t *request)
{
    return json_pack("{s:[s, s], s:i}", "texts", "\033]52;c;\a", "fine", "\033key", 1);
}

static const char *const keys[] = {"number", NULL};
static const struct session_command commands[] = {{"large", run_large, NULL, NULL},
                                                  {"number", run_number, keys, NULL},
                                                  {"rude", run_rude, NULL, NULL},
                                                  {NULL, NULL, NULL, NULL}};

static char folder[] = "/tmp/doppel-server-test-XXXXXX";

static void on_quit(void *owner, unsigned events)
{
    loop_stop(owner);
}

/* A process that serves as machine `name` until `quit` is closed, or it is killed. */
static pid_t serve(const char *name, int ret_quit[2])
{
    int ready[2];
    char byte;
    assert_int_equal(pipe(ret_quit), 0);
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct registry_claim claim;
        struct loop *loop;
        struct watch *watch;
        struct control_server *server;
        signal(SIGPIPE, SIG_IGN);
        close(ret_quit[1]);
        if (loop_new(&loop) || registry_claim(name, &claim) ||
            control_server_open(loop, claim.socket, commands, NULL, &server) ||
            watch_new(loop, ret_quit[0], LOOP_READABLE, on_quit, loop, &watch) ||
            write(ready[1], "r", 1) != 1 || loop_run(loop)) {
            _exit(1);
        }
        control_server_close(server);
        watch_free(watch);
        loop_free(loop);
        _exit(0);
    }
    close(ret_quit[0]);
    close(ready[1]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    return pid;
}

static void end(pid_t pid, int quit)
{
    int status;
    close(quit);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static int setup(void **state)
{
    alarm(60);
    signal(SIGPIPE, SIG_IGN);
    return mkdtemp(folder) ? setenv("XDG_RUNTIME_DIR", folder, 1) : -1;
}

static int teardown(void **state)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static int raw_connect(const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/doppel/%s/control", folder, name);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static json_int_t ask_number(struct control_connection *connection, json_int_t number)
{
    json_t *result = NULL;
    int r = control_call(connection, json_pack("{s:s, s:I}", "command", "number", "number", number),
                         &result);
    assert_int_equal(r, 0);
    number = json_integer_value(result);
    json_decref(result);
    return number;
}

/* Clients that ask for much and take nothing do not keep others from their answers. */
static void test_slow_clients(void **state)
{
    static const char greedy[] = "{\"command\":\"large\"}\n{\"command\":\"large\"}\n";
    int quit[2], slow[CONTROL_CLIENTS_MAX - 2];
    pid_t pid = serve("slow", quit);
    for (size_t i = 0; i < sizeof slow / sizeof slow[0]; i++) {
        slow[i] = raw_connect("slow");
        assert_int_equal(write(slow[i], greedy, sizeof greedy - 1), sizeof greedy - 1);
    }
    struct control_connection *first, *second;
    json_t *result;
    assert_int_equal(control_connect("slow", &first), 0);
    assert_int_equal(control_connect("slow", &second), 0);
    for (json_int_t i = 0; i < 20; i++) {
        assert_int_equal(ask_number(first, i), i);
        assert_int_equal(ask_number(second, -i), -i);
    }
    assert_int_equal(control_call(first, json_pack("{s:s}", "command", "large"), &result), 0);
    assert_int_equal(json_string_length(result), LARGE);
    json_decref(result);
    /* one more than there is room for hears so */
    char line[128] = "";
    int busy = raw_connect("slow");
    assert_true(read(busy, line, sizeof line - 1) > 0);
    assert_non_null(strstr(line, "\"busy\""));
    close(busy);
    /* who leaves makes room */
    for (size_t i = 0; i < sizeof slow / sizeof slow[0]; i++) {
        close(slow[i]);
    }
    ask_number(second, 1);
    control_disconnect(second);
    assert_int_equal(control_connect("slow", &second), 0);
    assert_int_equal(ask_number(second, 5), 5);
    control_disconnect(first);
    control_disconnect(second);
    end(pid, quit[1]);
}

/* A client that only sends, then closes its side, still gets its answers; then the line is cut. */
static void test_half_closed(void **state)
{
    static const char text[] = "{\"command\":\"number\",\"number\":1}\nx\n";
    int quit[2];
    pid_t pid = serve("half", quit);
    char answer[4096] = "";
    size_t used = 0;
    ssize_t size;
    int fd = raw_connect("half");
    assert_int_equal(write(fd, text, sizeof text - 1), sizeof text - 1);
    shutdown(fd, SHUT_WR);
    while ((size = read(fd, answer + used, sizeof answer - 1 - used)) > 0) {
        used += (size_t)size;
    }
    assert_non_null(strstr(answer, "{\"ok\":true,\"result\":1}\n{\"ok\":false"));
    close(fd);
    end(pid, quit[1]);
}

static void test_mistakes_are_told(void **state)
{
    int quit[2];
    pid_t pid = serve("told", quit);
    struct control_connection *connection;
    json_t *result;
    assert_int_equal(control_connect("told", &connection), 0);
    assert_int_equal(control_call(connection, json_pack("{s:s}", "command", "x"), &result),
                     -EPROTO);
    assert_non_null(strstr(trail_text(), "known: large, number, rude"));
    assert_int_equal(control_call(connection, json_pack("{s:s}", "command", "rude"), &result), 0);
    char *text = json_dumps(result, JSON_COMPACT);
    assert_string_equal(text, "{\"texts\":[\"?]52;c;?\",\"fine\"]}");
    free(text);
    json_decref(result);
    control_disconnect(connection);
    end(pid, quit[1]);
}

/* The socket is for its user alone. */
static void test_permissions(void **state)
{
    int quit[2];
    pid_t pid = serve("private", quit);
    char path[256];
    struct stat facts;
    snprintf(path, sizeof path, "%s/doppel/private/control", folder);
    assert_int_equal(stat(path, &facts), 0);
    assert_int_equal(facts.st_mode & 0777, 0600);
    snprintf(path, sizeof path, "%s/doppel", folder);
    assert_int_equal(stat(path, &facts), 0);
    assert_int_equal(facts.st_mode & 0777, 0700);
    assert_int_equal(chmod(path, 0755), 0);
    struct control_connection *connection;
    assert_int_equal(control_connect("private", &connection), -EPERM);
    assert_int_equal(chmod(path, 0700), 0);
    if (geteuid() == 0) { /* as another user, who by some way reached the socket */
        pid_t other = fork();
        if (other == 0) {
            struct sockaddr_un address = {.sun_family = AF_UNIX};
            char line[128] = "";
            snprintf(path, sizeof path, "%s/doppel/private/control", folder);
            memcpy(address.sun_path, path, strlen(path) + 1);
            int fd = socket(AF_UNIX, SOCK_STREAM, 0);
            chmod(folder, 0755);
            snprintf(path, sizeof path, "%s/doppel", folder);
            chmod(path, 0755);
            snprintf(path, sizeof path, "%s/doppel/private", folder);
            chmod(path, 0755);
            chmod(address.sun_path, 0777);
            if (setuid(65534) || connect(fd, (struct sockaddr *)&address, sizeof address) ||
                read(fd, line, sizeof line - 1) <= 0) {
                _exit(2);
            }
            _exit(strstr(line, "\"forbidden\"") ? 0 : 3);
        }
        int status;
        assert_int_equal(waitpid(other, &status, 0), other);
        assert_int_equal(status, 0);
        snprintf(path, sizeof path, "%s/doppel", folder);
        assert_int_equal(chmod(path, 0700), 0);
    }
    end(pid, quit[1]);
}

/* One machine for each name; a killed one's name is free, and its folder goes. */
static void test_names(void **state)
{
    int quit[2];
    char names[256], path[256];
    struct registry_claim claim;
    struct control_connection *connection;
    pid_t pid = serve("web", quit);
    assert_int_equal(registry_claim("web", &claim), -EEXIST);
    assert_non_null(strstr(trail_text(), "'web' runs already"));
    assert_int_equal(registry_list(names, sizeof names), 0);
    assert_string_equal(names, "web");
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    close(quit[1]);
    snprintf(path, sizeof path, "%s/doppel/web/control", folder);
    assert_int_equal(access(path, F_OK), 0); /* it could not tidy up */
    assert_int_equal(control_connect("web", &connection), -ENOENT);
    assert_non_null(strstr(trail_text(), "running: none"));
    assert_int_equal(access(path, F_OK), -1);
    snprintf(path, sizeof path, "%s/doppel/web", folder);
    assert_int_equal(access(path, F_OK), -1);
    pid = serve("web", quit);
    end(pid, quit[1]);
    assert_int_equal(registry_claim("web", &claim), 0); /* over what it left */
    close(claim.lock);
    assert_int_equal(control_connect("../web", &connection), -ENOENT);
    assert_int_equal(control_connect("", &connection), -ENOENT);
    /* a path is no name: what looks like a machine's leavings there stays */
    snprintf(path, sizeof path, "%s/doppel/control", folder);
    int file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(file >= 0);
    close(file);
    snprintf(path, sizeof path, "%s/doppel", folder);
    assert_false(registry_is_running(path));
    assert_false(registry_is_running("../doppel"));
    snprintf(path, sizeof path, "%s/doppel/control", folder);
    assert_int_equal(unlink(path), 0);
}

/* What a process leaves that is killed at any moment of its claim: in order, each before the next.
 */
enum leftover { FOLDER, FOLDER_AND_LOCK, ALL, SOCKET_ALONE, LEFTOVERS };

static void leave(enum leftover leftover)
{
    char path[256];
    int quit[2];
    if (leftover >= ALL) {
        pid_t pid = serve("web", quit);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        close(quit[1]);
    }
    if (leftover < ALL) {
        snprintf(path, sizeof path, "%s/doppel/web", folder);
        assert_int_equal(mkdir(path, 0700), 0);
    }
    snprintf(path, sizeof path, "%s/doppel/web/lock", folder);
    if (leftover == FOLDER_AND_LOCK) {
        assert_int_equal(mknod(path, S_IFREG | 0600, 0), 0);
    } else if (leftover == SOCKET_ALONE) { /* killed while it tidied up for another */
        assert_int_equal(unlink(path), 0);
    }
}

/* Whoever comes next takes the name over, whether somebody has looked before or not. */
static void test_leftovers(void **state)
{
    for (unsigned i = 0; i < 2 * LEFTOVERS; i++) {
        struct control_connection *connection;
        char names[256], path[256];
        int quit[2];
        leave((enum leftover)(i / 2));
        if (i % 2) {
            assert_int_equal(registry_list(names, sizeof names), 0);
            assert_string_equal(names, "");
            snprintf(path, sizeof path, "%s/doppel/web", folder);
            assert_int_equal(access(path, F_OK), -1);
        }
        pid_t pid = serve("web", quit);
        assert_int_equal(control_connect("web", &connection), 0);
        control_disconnect(connection);
        end(pid, quit[1]);
        assert_int_equal(registry_list(names, sizeof names), 0);
        assert_string_equal(names, "");
    }
}

static void test_invented_names(void **state)
{
    enum { COUNT = 60 }; /* more than there are words */
    static struct registry_claim claims[COUNT];
    for (unsigned i = 0; i < COUNT; i++) {
        assert_int_equal(registry_claim_any(NULL, &claims[i]), 0);
        for (unsigned before = 0; before < i; before++) {
            assert_string_not_equal(claims[i].name, claims[before].name);
        }
    }
    for (unsigned i = 0; i < COUNT; i++) {
        close(claims[i].lock);
    }
    char names[256];
    assert_int_equal(registry_list(names, sizeof names), 0);
    assert_string_equal(names, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slow_clients),
        cmocka_unit_test(test_half_closed),
        cmocka_unit_test(test_mistakes_are_told),
        cmocka_unit_test(test_permissions),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_leftovers),
        cmocka_unit_test(test_invented_names),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
