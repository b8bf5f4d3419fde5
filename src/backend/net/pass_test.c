/* Messages with descriptors: what arrives is what was sent, and what is hostile stays bounded. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/net/pass.h"

static int pair[2];

static int set_up(void **state)
{
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair);
}

static int tear_down(void **state)
{
    close(pair[0]);
    close(pair[1]);
    return 0;
}

static void words_and_descriptors(void **state)
{
    struct passed passed;
    int pipe_ends[2];
    char byte;
    assert_int_equal(pass_receive(pair[0], &passed), 0);
    assert_int_equal(pipe(pipe_ends), 0);
    assert_int_equal(pass_send(pair[1], PASS_NOTE, "a word", -1), 0);
    assert_int_equal(pass_send(pair[1], PASS_WIRE, "", pipe_ends[1]), 0);
    close(pipe_ends[1]);
    assert_int_equal(pass_receive(pair[0], &passed), 1);
    assert_int_equal(passed.kind, PASS_NOTE);
    assert_string_equal(passed.text, "a word");
    assert_int_equal(passed.fd, -1);
    assert_int_equal(pass_receive(pair[0], &passed), 1);
    assert_int_equal(passed.kind, PASS_WIRE);
    assert_string_equal(passed.text, "");
    assert_int_equal(fcntl(passed.fd, F_GETFD), FD_CLOEXEC);
    assert_int_equal(write(passed.fd, "x", 1), 1);
    assert_int_equal(read(pipe_ends[0], &byte, 1), 1);
    close(passed.fd);
    assert_int_equal(read(pipe_ends[0], &byte, 1), 0); /* it was the last one */
    close(pipe_ends[0]);
}

static void long_words_are_cut(void **state)
{
    struct passed passed;
    char text[2 * PASS_TEXT_MAX];
    memset(text, 'x', sizeof text);
    assert_int_equal(send(pair[1], text, sizeof text, 0), sizeof text);
    assert_int_equal(pass_receive(pair[0], &passed), 1);
    assert_int_equal(strlen(passed.text), PASS_TEXT_MAX - 1);
    text[sizeof text - 1] = '\0';
    assert_int_equal(pass_send(pair[1], PASS_NOTE, text, -1), 0);
    assert_int_equal(pass_receive(pair[0], &passed), 1);
    assert_int_equal(strlen(passed.text), PASS_TEXT_MAX - 1);
}

/* Two descriptors where one is expected: none is kept that nobody would close. */
static void too_many_descriptors(void **state)
{
    struct passed passed;
    char byte = PASS_WIRE, bytes[CMSG_SPACE(2 * sizeof(int))] = {0};
    struct iovec piece = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = bytes, .msg_controllen = sizeof bytes};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(2 * sizeof(int));
    int fds[2] = {pair[0], pair[1]}, before = dup(0);
    close(before);
    memcpy(CMSG_DATA(header), fds, sizeof fds);
    assert_int_equal(sendmsg(pair[1], &message, 0), 1);
    assert_int_equal(pass_receive(pair[0], &passed), 1);
    if (passed.fd >= 0) {
        close(passed.fd);
    }
    int after = dup(0);
    close(after);
    assert_int_equal(after, before);
}

static void end_of_the_other_side(void **state)
{
    struct passed passed;
    assert_int_equal(shutdown(pair[1], SHUT_RDWR), 0);
    assert_int_equal(pass_receive(pair[0], &passed), -ENOTCONN);
    assert_int_equal(pass_send(pair[0], PASS_LOST, "", -1), -EPIPE);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(words_and_descriptors),
        TEST(long_words_are_cut),
        TEST(too_many_descriptors),
        TEST(end_of_the_other_side),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
