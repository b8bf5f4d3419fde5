/*
 * Standard input and output as a console: terminals (a pty), pipes, files, nothing at all. Each
 * test runs in a child, whose descriptors 0 and 1 are the ones in question.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <pty.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/console/console.h"
#include "base/bytes.h"
#include "base/loop.h"

/* What the device in the child saw; it ends the loop when that is `wanted`. */
struct device {
    struct loop *loop;
    struct console *console;
    char seen[256];
    size_t count, limit; /* takes no more than `limit` bytes */
    const char *wanted;
    bool echo;
    char events[64]; /* q: quit, b: break, r: resized, d: drained */
};

static void note_event(struct device *device, char event)
{
    size_t length = strlen(device->events);
    if (length + 1 < sizeof device->events) {
        device->events[length] = event;
    }
}

static void stop_if_seen(struct device *device)
{
    if (device->wanted && strlen(device->wanted) == device->count &&
        !memcmp(device->seen, device->wanted, device->count)) {
        loop_stop(device->loop);
    }
}

static size_t receive(void *owner, const uint8_t *bytes, size_t count)
{
    struct device *device = owner;
    size_t room = device->limit - device->count;
    count = count < room ? count : room;
    memcpy(device->seen + device->count, bytes, count);
    device->count += count;
    if (device->echo) {
        console_write(device->console, bytes, count);
    }
    stop_if_seen(device);
    return count;
}

static void got_break(void *owner)
{
    note_event(owner, 'b');
}

static void got_size(void *owner, uint16_t columns, uint16_t rows)
{
    struct device *device = owner;
    note_event(device, columns == 100 && rows == 40 ? 'R' : 'r');
}

static void got_room(void *owner)
{
    struct device *device = owner;
    note_event(device, 'd');
    loop_stop(device->loop);
}

static void got_command(void *owner, enum console_command command)
{
    struct device *device = owner;
    note_event(device, command == CONSOLE_QUIT ? 'q' : '?');
    loop_stop(device->loop);
}

static void give_up(void *owner)
{
    loop_stop(owner);
}

static uint64_t in_seconds(unsigned seconds)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return ((uint64_t)now.tv_sec + seconds) * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static void connect_device(struct device *device)
{
    const struct console_stdio_config config = {
        .loop = device->loop, .command = got_command, .owner = device};
    const struct console_receiver receiver = {.receive = receive,
                                              .send_break = got_break,
                                              .resized = got_size,
                                              .drained = got_room,
                                              .owner = device};
    if (console_stdio_open(&config, &device->console)) {
        _exit(90);
    }
    console_connect(device->console, &receiver);
}

/* In the child: run until `wanted` was seen, or a command came, or 5 seconds passed. */
static void run_device(struct device *device)
{
    struct timer *timer = timer_new(device->loop, give_up, device->loop);
    timer_arm(timer, in_seconds(5));
    if (loop_run(device->loop)) {
        _exit(91);
    }
    timer_free(timer);
}

static void start_device(struct device *device, size_t limit)
{
    *device = (struct device){.limit = limit};
    if (loop_new(&device->loop)) {
        _exit(92);
    }
    connect_device(device);
}

static void end_device(struct device *device)
{
    console_free(device->console);
    loop_free(device->loop);
}

/* A child with these as descriptors 0 and 1 (-1: closed) runs `body`; its exit status. */
static pid_t spawn(int input, int output, int (*body)(void))
{
    pid_t child = fork();
    if (child == 0) {
        alarm(20);
        close(0);
        close(1);
        if ((input >= 0 && dup2(input, 0) < 0) || (output >= 0 && dup2(output, 1) < 0)) {
            _exit(93);
        }
        for (int fd = 3; fd < 64; fd++) {
            close(fd);
        }
        exit(body());
    }
    return child;
}

static int status_of(pid_t child)
{
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/* Read until `count` bytes came or nothing comes for 5 seconds. */
static size_t read_all(int fd, char *bytes, size_t count)
{
    size_t done = 0;
    struct pollfd wish = {.fd = fd, .events = POLLIN};
    while (done < count && poll(&wish, 1, 5000) > 0) {
        ssize_t got = read(fd, bytes + done, count - done);
        if (got <= 0) {
            break;
        }
        done += (size_t)got;
    }
    return done;
}

static int echo_hello(void)
{
    struct device device;
    start_device(&device, sizeof device.seen);
    device.wanted = "hello\001x";
    device.echo = true;
    run_device(&device);
    bool seen = device.count == 7;
    end_device(&device);
    return seen ? 0 : 1;
}

/* Bytes pass unchanged, the escape character too; and nobody's O_NONBLOCK is touched. */
static void pipes(void **state)
{
    int in[2], out[2];
    char back[8];
    assert_int_equal(pipe(in), 0);
    assert_int_equal(pipe(out), 0);
    pid_t child = spawn(in[0], out[1], echo_hello);
    assert_int_equal(write(in[1], "hello\001x", 7), 7);
    assert_int_equal(read_all(out[0], back, 7), 7);
    assert_memory_equal(back, "hello\001x", 7);
    assert_int_equal(status_of(child), 0);
    assert_false(fcntl(in[0], F_GETFL) & O_NONBLOCK);
    assert_false(fcntl(out[1], F_GETFL) & O_NONBLOCK);
    close(in[0]), close(in[1]), close(out[0]), close(out[1]);
}

static void file_in_file_out(void **state)
{
    char in[] = "/tmp/stdio_test.in.XXXXXX", out[] = "/tmp/stdio_test.out.XXXXXX", back[16];
    int input = mkstemp(in), output = mkstemp(out);
    assert_int_equal(write(input, "hello\001x", 7), 7);
    assert_int_equal(lseek(input, 0, SEEK_SET), 0);
    assert_int_equal(status_of(spawn(input, output, echo_hello)), 0);
    assert_int_equal(pread(output, back, sizeof back, 0), 7);
    assert_memory_equal(back, "hello\001x", 7);
    close(input), close(output);
    unlink(in), unlink(out);
}

static int write_and_end(void)
{
    struct device device;
    start_device(&device, sizeof device.seen);
    console_write(device.console, (const uint8_t *)"output", 6);
    struct timer *timer = timer_new(device.loop, give_up, device.loop);
    timer_arm(timer, in_seconds(0) + 20000000);
    int error = loop_run(device.loop);
    timer_free(timer);
    end_device(&device);
    return error || device.count;
}

/* Closed, empty, or ended: no error, no endless loop. */
static void no_input(void **state)
{
    int null = open("/dev/null", O_RDWR), ended[2], out[2];
    assert_int_equal(pipe(ended), 0);
    assert_int_equal(pipe(out), 0);
    close(ended[1]);
    const int inputs[] = {-1, null, ended[0]};
    for (size_t i = 0; i < ARRAY_SIZE(inputs); i++) {
        char back[6];
        assert_int_equal(status_of(spawn(inputs[i], out[1], write_and_end)), 0);
        assert_int_equal(read_all(out[0], back, 6), 6);
        assert_int_equal(status_of(spawn(inputs[i], -1, write_and_end)), 0);
        assert_int_equal(status_of(spawn(inputs[i], null, write_and_end)), 0);
    }
    close(out[0]); /* the reader is gone: no signal kills us */
    assert_int_equal(status_of(spawn(null, out[1], write_and_end)), 0);
    close(out[1]), close(ended[0]), close(null);
}

static int take_slowly(void)
{
    struct device device;
    start_device(&device, 3);
    device.wanted = "abc";
    run_device(&device);
    device.limit = 6;
    device.wanted = "abcdef";
    console_ready(device.console);
    run_device(&device);
    bool seen = device.count == 6 && !memcmp(device.seen, "abcdef", 6);
    end_device(&device);
    return !seen;
}

/* Input waits for a device without room, even when its writer has gone. */
static void slow_device(void **state)
{
    int in[2], null = open("/dev/null", O_RDWR);
    assert_int_equal(pipe(in), 0);
    assert_int_equal(write(in[1], "abcdef", 6), 6);
    close(in[1]);
    assert_int_equal(status_of(spawn(in[0], null, take_slowly)), 0);
    close(in[0]), close(null);
}

enum { FLOOD = 3 << 20 };

static int flood(void)
{
    static uint8_t bytes[4096];
    struct device device;
    start_device(&device, 0);
    for (size_t done = 0; done < FLOOD;) {
        size_t room = console_room(device.console);
        if (room == 0) {
            run_device(&device); /* until drained */
            if (!strchr(device.events, 'd')) {
                return 1;
            }
            continue;
        }
        size_t piece = room < sizeof bytes ? room : sizeof bytes;
        for (size_t i = 0; i < piece; i++) {
            bytes[i] = (uint8_t)((done + i) % 251);
        }
        console_write(device.console, bytes, piece);
        done += piece;
    }
    end_device(&device); /* writes what is left */
    return 0;
}

/* A slow reader gets each byte of a device that asks for room. */
static void slow_reader(void **state)
{
    static char bytes[FLOOD];
    int out[2], null = open("/dev/null", O_RDWR);
    assert_int_equal(pipe(out), 0);
    pid_t child = spawn(null, out[1], flood);
    close(out[1]);
    usleep(100000);
    assert_int_equal(read_all(out[0], bytes, FLOOD), FLOOD);
    for (size_t i = 0; i < FLOOD; i++) {
        if ((uint8_t)bytes[i] != i % 251) {
            fail_msg("byte %zu is wrong", i);
        }
    }
    assert_int_equal(status_of(child), 0);
    close(out[0]), close(null);
}

static int flood_without_asking(void)
{
    static uint8_t bytes[65536];
    struct device device;
    start_device(&device, 0);
    uint64_t begin = in_seconds(0);
    for (unsigned i = 0; i < 20; i++) {
        console_write(device.console, bytes, sizeof bytes);
    }
    /* Beyond the 1 MiB that is kept: four writes or so that waited 50 ms each. */
    bool in_time = in_seconds(0) - begin < UINT64_C(1500000000);
    _exit(in_time ? 0 : 1);
}

/* A reader that does not read holds nobody up for long. */
static void stuck_reader(void **state)
{
    int out[2], null = open("/dev/null", O_RDWR);
    assert_int_equal(pipe(out), 0);
    assert_int_equal(status_of(spawn(null, out[1], flood_without_asking)), 0);
    close(out[0]), close(out[1]), close(null);
}

/* A child whose controlling terminal is a new pty; the master in `ret_master`. */
static pid_t spawn_on_terminal(int (*body)(void), int *ret_master)
{
    struct winsize size = {.ws_col = 80, .ws_row = 25};
    pid_t child = forkpty(ret_master, NULL, NULL, &size);
    if (child == 0) {
        alarm(20);
        exit(body());
    }
    assert_true(child > 0);
    return child;
}

static bool is_raw(int master)
{
    struct termios mode;
    assert_int_equal(tcgetattr(master, &mode), 0);
    return !(mode.c_lflag & (ICANON | ECHO | ISIG));
}

/* Wait until the terminal is (not) raw. */
static bool becomes_raw(int master, bool wanted)
{
    for (unsigned i = 0; i < 500; i++) {
        if (is_raw(master) == wanted) {
            return true;
        }
        usleep(10000);
    }
    return false;
}

static int escape_keys(void)
{
    struct device device;
    start_device(&device, 2); /* takes little: the keys must work all the same */
    if (!console_stdio_is_terminal()) {
        return 1;
    }
    run_device(&device);
    bool good = device.count == 2 && !memcmp(device.seen, "a\001", 2) &&
                strchr(device.events, 'b') && strchr(device.events, 'q') &&
                strchr(device.events, 'r');
    end_device(&device);
    return good && !console_stdio_is_terminal() ? 0 : 2;
}

static void terminal_keys(void **state)
{
    char help[512];
    int master;
    pid_t child = spawn_on_terminal(escape_keys, &master);
    assert_true(becomes_raw(master, true));
    assert_int_equal(write(master, "a\001\001\001b\001hlost\001z", 13), 13);
    usleep(50000);
    size_t count = 0;
    struct pollfd wish = {.fd = master, .events = POLLIN};
    while (count < sizeof help - 1 && poll(&wish, 1, 200) > 0) {
        ssize_t got = read(master, help + count, sizeof help - 1 - count);
        if (got <= 0) {
            break;
        }
        count += (size_t)got;
    }
    help[count] = 0;
    assert_non_null(strstr(help, "Ctrl-a x"));
    assert_int_equal(write(master, "\001x", 2), 2);
    assert_int_equal(status_of(child), 0);
    close(master);
}

static int sit_still(void)
{
    struct device device;
    start_device(&device, 10);
    device.wanted = "go";
    run_device(&device);
    exit(strchr(device.events, 'R') ? 3 : 4); /* without freeing anything */
}

static int die(void)
{
    struct device device;
    start_device(&device, 10);
    device.wanted = "go";
    run_device(&device);
    abort();
}

/* Restored on exit(), on abort(), and when killed. A second descriptor keeps the pty alive. */
static void terminal_is_restored(void **state)
{
    static const struct {
        int (*body)(void);
        int signal, status;
    } table[] = {{sit_still, 0, 4},
                 {sit_still, SIGTERM, 1000 + SIGTERM},
                 {sit_still, SIGHUP, 1000 + SIGHUP},
                 {die, 0, 1000 + SIGABRT}};
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        int master;
        pid_t child = spawn_on_terminal(table[i].body, &master);
        int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
        assert_true(slave >= 0);
        assert_true(becomes_raw(master, true));
        usleep(20000);
        if (table[i].signal) {
            kill(child, table[i].signal);
        } else {
            assert_int_equal(write(master, "go", 2), 2);
        }
        assert_int_equal(status_of(child), table[i].status);
        assert_false(is_raw(master));
        close(slave);
        close(master);
    }
}

/* A new size is told when a key comes, or soon. */
static void window_size(void **state)
{
    int master;
    pid_t child = spawn_on_terminal(sit_still, &master);
    assert_true(becomes_raw(master, true));
    struct winsize size = {.ws_col = 100, .ws_row = 40};
    assert_int_equal(ioctl(master, TIOCSWINSZ, &size), 0);
    assert_int_equal(write(master, "g", 1), 1);
    usleep(50000);
    assert_int_equal(write(master, "o", 1), 1);
    assert_int_equal(status_of(child), 3);
    close(master);
}

static void console_in_file(void **state)
{
    struct loop *loop;
    assert_int_equal(loop_new(&loop), 0);
    char path[] = "/tmp/stdio_test.file.XXXXXX", back[16];
    int fd = mkstemp(path);
    struct console *console;
    assert_int_equal(write(fd, "old contents", 12), 12);
    assert_int_equal(console_file_open(path, loop, &console), 0);
    console_free(console); /* never started */
    assert_int_equal(pread(fd, back, sizeof back, 0), 12);
    assert_int_equal(console_file_open(path, loop, &console), 0);
    assert_int_equal(console_start(console), 0);
    console_write(console, (const uint8_t *)"new", 3);
    assert_int_equal(console_room(console), SIZE_MAX);
    console_ready(console);
    console_free(console);
    assert_int_equal(pread(fd, back, sizeof back, 0), 3);
    assert_memory_equal(back, "new", 3);
    close(fd);
    unlink(path);
    assert_int_equal(console_file_open("/nonexistent/file", loop, &console), -ENOENT);
    assert_int_equal(console_file_open("/tmp", loop, &console), -EISDIR);
    assert_int_equal(console_file_open("/dev/full", loop, &console), 0);
    assert_int_equal(console_start(console), 0);
    console_write(console, (const uint8_t *)"lost", 4);
    console_free(console);
    loop_free(loop);
}

enum { SERIAL_BYTES = 2000 };

static int write_bytes(struct loop *loop, struct console *console)
{
    for (unsigned i = 0; i < SERIAL_BYTES; i++) {
        uint8_t byte = (uint8_t)(i % 251);
        console_write(console, &byte, 1);
    }
    struct timer *timer = timer_new(loop, give_up, loop);
    timer_arm(timer, in_seconds(0) + 500000000);
    int error = loop_run(loop);
    timer_free(timer);
    return error;
}

static int write_byte_by_byte(void)
{
    struct device device;
    start_device(&device, 0);
    if (write_bytes(device.loop, device.console)) {
        return 1;
    }
    _exit(0); /* nothing is left to be written at the end */
}

/* Many small writes become few, which come by themselves, in order and whole. */
static void small_writes_are_gathered(void **state)
{
    int pair[2], null = open("/dev/null", O_RDWR);
    uint8_t bytes[SERIAL_BYTES + 1];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
    pid_t child = spawn(null, pair[1], write_byte_by_byte);
    close(pair[1]);
    size_t count = 0;
    unsigned writes = 0;
    for (ssize_t got = 1; got > 0 && count < sizeof bytes; writes++) {
        got = read(pair[0], bytes + count, sizeof bytes - count);
        assert_true(got >= 0);
        count += (size_t)got;
    }
    assert_int_equal(status_of(child), 0);
    assert_int_equal(count, SERIAL_BYTES);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(bytes[i], i % 251);
    }
    assert_in_range(writes, 2, SERIAL_BYTES / 20);
    close(pair[0]), close(null);
}

/* The same for a file that is a pipe, and whose reader is slow. */
static void file_that_is_a_pipe(void **state)
{
    enum { PIPE_ROOM = 65536 };
    char path[] = "/tmp/stdio_test.fifo.XXXXXX";
    static uint8_t bytes[PIPE_ROOM];
    struct loop *loop;
    struct console *console;
    close(mkstemp(path));
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(loop_new(&loop), 0);
    assert_int_equal(console_file_open(path, loop, &console), -ENXIO);
    int reader = open(path, O_RDONLY | O_NONBLOCK);
    assert_int_equal(console_file_open(path, loop, &console), 0);
    console_write(console, bytes, sizeof bytes); /* the pipe is full */
    assert_int_equal(write_bytes(loop, console), 0);
    assert_int_equal(read_all(reader, (char *)bytes, PIPE_ROOM), PIPE_ROOM);
    assert_int_equal(write_bytes(loop, console), 0); /* without another flush but the loop's */
    assert_int_equal(read_all(reader, (char *)bytes, 2 * SERIAL_BYTES), 2 * SERIAL_BYTES);
    assert_int_equal(bytes[SERIAL_BYTES - 1], (SERIAL_BYTES - 1) % 251);
    assert_int_equal(bytes[2 * SERIAL_BYTES - 1], (SERIAL_BYTES - 1) % 251);
    close(reader);
    console_write(console, bytes, 100); /* nobody reads: no signal, no wait */
    console_free(console);
    loop_free(loop);
    unlink(path);
}

static void no_console(void **state)
{
    const struct console_receiver receiver = {0};
    assert_int_equal(console_start(NULL), 0);
    console_write(NULL, (const uint8_t *)"x", 1);
    assert_int_equal(console_room(NULL), SIZE_MAX);
    console_ready(NULL);
    console_connect(NULL, &receiver);
    console_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pipes),
        cmocka_unit_test(file_in_file_out),
        cmocka_unit_test(no_input),
        cmocka_unit_test(slow_device),
        cmocka_unit_test(slow_reader),
        cmocka_unit_test(stuck_reader),
        cmocka_unit_test(terminal_keys),
        cmocka_unit_test(terminal_is_restored),
        cmocka_unit_test(window_size),
        cmocka_unit_test(console_in_file),
        cmocka_unit_test(no_console),
        cmocka_unit_test(small_writes_are_gathered),
        cmocka_unit_test(file_that_is_a_pipe),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
