/* A share with its helper process: messages go there and back, its jail is what it should be. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/share/share.h"
#include "base/bytes.h"
#include "base/error.h"

static char folder[64];

static int set_up(void **state)
{
    snprintf(folder, sizeof folder, "/tmp/share_test.XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state)
{
    return rmdir(folder);
}

struct wait {
    struct share_request request;
    struct iovec out[2], in[2];
    uint8_t message[64], reply[256];
    int result;
};

static void note_done(struct share_request *request, int result)
{
    CONTAINER_OF(request, struct wait, request)->result = result;
}

/* Both in two pieces. */
static void submit(struct share *share, struct wait *wait, const void *message, size_t size)
{
    memcpy(wait->message, message, size);
    wait->out[0] = (struct iovec){wait->message, 3};
    wait->out[1] = (struct iovec){wait->message + 3, size - 3};
    wait->in[0] = (struct iovec){wait->reply, 10};
    wait->in[1] = (struct iovec){wait->reply + 10, sizeof wait->reply - 10};
    wait->result = 12345;
    wait->request = (struct share_request){.out = wait->out,
                                           .in = wait->in,
                                           .out_count = 2,
                                           .in_count = 2,
                                           .out_length = (uint32_t)size,
                                           .in_length = sizeof wait->reply,
                                           .done = note_done};
    share_submit(share, &wait->request);
}

static int call(struct share *share, struct wait *wait, const void *message, size_t size)
{
    submit(share, wait, message, size);
    share_drain(share);
    return wait->result;
}

static const uint8_t version[] = {21, 0, 0,   0,   100, 0xff, 0xff, 0,   0,   1,  0,
                                  8,  0, '9', 'P', '2', '0',  '0',  '0', '.', 'L'};
static const uint8_t attach[] = {23,   0,    0,    0, 104, 1, 0, 1, 0, 0, 0, 0xff,
                                 0xff, 0xff, 0xff, 0, 0,   0, 0, 0, 0, 0, 0};

/* The helper's process, by the folder that it holds; 0 if there is none. */
static pid_t find_helper(void)
{
    DIR *processes = opendir("/proc");
    pid_t found = 0;
    for (struct dirent *entry; !found && (entry = readdir(processes));) {
        char path[300], target[128] = "";
        snprintf(path, sizeof path, "/proc/%s/fd/3", entry->d_name);
        if (atoi(entry->d_name) != getpid() && readlink(path, target, sizeof target - 1) > 0 &&
            !strcmp(target, folder)) {
            found = atoi(entry->d_name);
        }
    }
    closedir(processes);
    return found;
}

static bool is_gone(void)
{
    for (unsigned i = 0; i < 500; i++) {
        if (!find_helper()) {
            return true;
        }
        usleep(10000);
    }
    return false;
}

static void messages_and_answers(void **state)
{
    struct share *share;
    static struct wait waits[20];
    assert_int_equal(share_open(folder, false, &share), 0);
    assert_false(share_is_used(share));
    assert_int_equal(call(share, &waits[0], version, sizeof version), 21);
    assert_int_equal(waits[0].reply[4], 101);
    assert_memory_equal(waits[0].reply + 13, "9P2000.L", 8);
    assert_int_equal(call(share, &waits[0], attach, sizeof attach), 20);
    assert_int_equal(waits[0].reply[4], 105);
    assert_true(share_is_used(share));
    share_forget(share);
    assert_false(share_is_used(share));
    /* The session is over: many at once that all fail, in order. */
    for (size_t i = 0; i < ARRAY_SIZE(waits); i++) {
        submit(share, &waits[i], attach, sizeof attach);
    }
    share_drain(share);
    for (size_t i = 0; i < ARRAY_SIZE(waits); i++) {
        assert_int_equal(waits[i].result, i ? 11 : 20); /* the fid is there after the first */
    }
    share_free(share);
    share_free(NULL);
    assert_true(is_gone());
}

/* A helper that dies is an error for all requests, not for us. */
static void helper_dies(void **state)
{
    struct share *share;
    static struct wait wait;
    assert_int_equal(share_open(folder, false, &share), 0);
    assert_int_equal(call(share, &wait, version, sizeof version), 21);
    assert_int_equal(call(share, &wait, attach, sizeof attach), 20);
    kill(find_helper(), SIGKILL);
    assert_true(call(share, &wait, version, sizeof version) < 0);
    assert_true(call(share, &wait, version, sizeof version) < 0);
    assert_false(share_is_used(share));
    share_forget(share);
    assert_true(call(share, &wait, version, sizeof version) < 0);
    share_free(share);
}

static unsigned long status_value(pid_t process, const char *key, int base)
{
    char path[64], line[256];
    unsigned long value = ~0ul;
    snprintf(path, sizeof path, "/proc/%d/status", process);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file)) {
        if (!strncmp(line, key, strlen(key))) {
            value = strtoul(line + strlen(key), NULL, base);
        }
    }
    if (file) {
        fclose(file);
    }
    return value;
}

static void jail_of_the_helper(void **state)
{
    struct share *share;
    char path[64];
    unsigned descriptors = 0;
    int left_open = open("/", O_RDONLY); /* as a file of the machine might be */
    assert_int_equal(share_open(folder, true, &share), 0);
    pid_t helper = find_helper();
    assert_int_not_equal(helper, 0);
    assert_int_equal(status_value(helper, "NoNewPrivs:", 10), 1);
    assert_int_equal(status_value(helper, "Seccomp:", 10), 2);
    assert_int_equal(status_value(helper, "CapEff:", 16), 0);
    assert_int_equal(status_value(helper, "CapPrm:", 16), 0);
    snprintf(path, sizeof path, "/proc/%d/fd", helper);
    DIR *list = opendir(path);
    for (struct dirent *entry; (entry = readdir(list));) {
        descriptors += *entry->d_name != '.';
    }
    closedir(list);
    assert_int_equal(descriptors, 6); /* standard ones, folder, socket, /proc/self/fd */
    /* What is for the machine does not end it. */
    kill(helper, SIGINT);
    kill(helper, SIGTERM);
    kill(helper, SIGHUP);
    static struct wait wait;
    assert_int_equal(call(share, &wait, version, sizeof version), 21);
    share_free(share);
    close(left_open);
}

static void what_is_no_folder_is_refused(void **state)
{
    struct share *share;
    char path[80];
    snprintf(path, sizeof path, "%s/none", folder);
    assert_int_equal(share_open(path, false, &share), -ENOENT);
    assert_non_null(strstr(trail_text(), "none"));
    close(open(path, O_CREAT | O_WRONLY, 0600));
    assert_int_equal(share_open(path, false, &share), -ENOTDIR);
    unlink(path);
}

int main(void)
{
#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(messages_and_answers),
        TEST(helper_dies),
        TEST(jail_of_the_helper),
        TEST(what_is_no_folder_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
