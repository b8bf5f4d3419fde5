/* The event loop: posts, watches, timers, and what callbacks may do to them. */
#include "base/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static const uint64_t MILLISECOND = 1000000;

struct fixture {
    struct loop *loop;
    unsigned count;
    unsigned events;
    struct watch *watches[2];
    struct timer *timers[8];
    unsigned expired[8];
    int pair[2];
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    *state = f;
    return f && loop_new(&f->loop) == 0 &&
                   socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, f->pair) == 0
               ? 0
               : -1;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    loop_free(f->loop);
    close(f->pair[0]);
    close(f->pair[1]);
    free(f);
    return 0;
}

static void stop(void *owner)
{
    loop_stop(((struct fixture *)owner)->loop);
}

/* --- posts --- */

static void count_one(void *owner)
{
    ((struct fixture *)owner)->count++;
}

static void check_count_is_two(void *owner)
{
    assert_int_equal(((struct fixture *)owner)->count, 2);
}

static void posts_run_in_order(void **state)
{
    struct fixture *f = *state;
    loop_post(f->loop, count_one, f);
    loop_post(f->loop, count_one, f);
    loop_post(f->loop, check_count_is_two, f);
    loop_post(f->loop, stop, f);
    assert_int_equal(loop_run(f->loop), 0);
    loop_post(f->loop, count_one, f); /* never run: freed with the loop */
    assert_int_equal(f->count, 2);
}

enum { POSTERS = 4, POSTS = 2000 };

static void count_to_the_end(void *owner)
{
    struct fixture *f = owner;
    if (++f->count == POSTERS * POSTS) {
        loop_stop(f->loop);
    }
}

static void *poster(void *argument)
{
    struct fixture *f = argument;
    for (unsigned i = 0; i < POSTS; i++) {
        loop_post(f->loop, count_to_the_end, f);
        timer_arm(f->timers[0], now() + i * MILLISECOND);
        timer_disarm(f->timers[1]);
    }
    return NULL;
}

static void posts_come_from_any_thread(void **state)
{
    struct fixture *f = *state;
    static struct fixture other; /* what the timers count does not matter */
    f->timers[0] = timer_new(f->loop, count_one, &other);
    f->timers[1] = timer_new(f->loop, count_one, &other);
    pthread_t threads[POSTERS];
    for (unsigned i = 0; i < POSTERS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, poster, f), 0);
    }
    assert_int_equal(loop_run(f->loop), 0);
    for (unsigned i = 0; i < POSTERS; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(f->count, POSTERS * POSTS);
    timer_free(f->timers[0]);
    timer_free(f->timers[1]);
}

/* --- stopping --- */

static struct loop *signalled_loop;

static void on_signal(int number)
{
    loop_stop(signalled_loop);
}

static void raise_signal(void *owner)
{
    raise(SIGUSR1);
}

static void a_signal_handler_stops_it(void **state)
{
    struct fixture *f = *state;
    signalled_loop = f->loop;
    signal(SIGUSR1, on_signal);
    loop_post(f->loop, raise_signal, f);
    assert_int_equal(loop_run(f->loop), 0);
    loop_stop(f->loop); /* before it runs: it returns at once */
    assert_int_equal(loop_run(f->loop), 0);
    signal(SIGUSR1, SIG_DFL);
}

/* --- watches --- */

static void note_events(void *owner, unsigned events)
{
    struct fixture *f = owner;
    f->count++;
    f->events |= events;
    loop_stop(f->loop);
}

static void watches_report_what_holds(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(watch_new(f->loop, f->pair[0], LOOP_READABLE, note_events, f, &f->watches[0]),
                     0);
    assert_int_equal(write(f->pair[1], "x", 1), 1);
    assert_int_equal(loop_run(f->loop), 0);
    assert_int_equal(f->events, LOOP_READABLE);
    assert_int_equal(loop_run(f->loop), 0); /* level-triggered */
    assert_int_equal(f->count, 2);

    f->events = 0;
    assert_int_equal(watch_set(f->watches[0], LOOP_WRITABLE), 0);
    assert_int_equal(loop_run(f->loop), 0);
    assert_int_equal(f->events, LOOP_WRITABLE);

    f->count = 0;
    assert_int_equal(watch_set(f->watches[0], 0), 0);
    f->timers[0] = timer_new(f->loop, stop, f);
    timer_arm(f->timers[0], now() + 2 * MILLISECOND);
    assert_int_equal(loop_run(f->loop), 0);
    assert_int_equal(f->count, 0);

    f->events = 0;
    assert_int_equal(watch_set(f->watches[0], LOOP_READABLE), 0);
    shutdown(f->pair[1], SHUT_RDWR);
    assert_int_equal(loop_run(f->loop), 0);
    assert_int_equal(f->events, LOOP_READABLE | LOOP_HANGUP);
    watch_free(f->watches[0]);
    timer_free(f->timers[0]);
}

/* Whichever of the two is called first frees both. */
static void free_both(void *owner, unsigned events)
{
    struct fixture *f = owner;
    f->count++;
    watch_free(f->watches[0]);
    watch_free(f->watches[1]);
    loop_stop(f->loop);
}

static void callbacks_may_free_watches(void **state)
{
    struct fixture *f = *state;
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(
            watch_new(f->loop, f->pair[i], LOOP_WRITABLE, free_both, f, &f->watches[i]), 0);
    }
    assert_int_equal(loop_run(f->loop), 0);
    assert_int_equal(f->count, 1);
}

static void files_cannot_be_watched(void **state)
{
    struct fixture *f = *state;
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    assert_int_equal(watch_new(f->loop, fd, LOOP_READABLE, note_events, f, &f->watches[0]), -EPERM);
    close(fd);
    assert_int_equal(watch_new(f->loop, -1, LOOP_READABLE, note_events, f, &f->watches[0]), -EBADF);
}

/* --- timers --- */

static void note_0(void *owner)
{
    struct fixture *f = owner;
    f->expired[0] = ++f->count;
}

static void note_1(void *owner)
{
    struct fixture *f = owner;
    f->expired[1] = ++f->count;
}

static void note_2(void *owner)
{
    struct fixture *f = owner;
    f->expired[2] = ++f->count;
}

static void timers_expire_in_order(void **state)
{
    struct fixture *f = *state;
    void (*const notes[])(void *) = {note_0, note_1, note_2, stop, count_one};
    for (unsigned i = 0; i < 5; i++) {
        f->timers[i] = timer_new(f->loop, notes[i], f);
    }
    uint64_t start = now();
    timer_arm(f->timers[3], start + 4 * MILLISECOND);
    timer_arm(f->timers[0], start + 2 * MILLISECOND);
    timer_arm(f->timers[1], start + 1 * MILLISECOND);
    timer_arm(f->timers[2], 0); /* long ago */
    timer_arm(f->timers[4], start + 3 * MILLISECOND);
    timer_disarm(f->timers[4]);
    timer_disarm(f->timers[4]);
    timer_arm(f->timers[1], start + 3 * MILLISECOND); /* moved behind the first */
    assert_int_equal(loop_run(f->loop), 0);
    assert_true(now() >= start + 4 * MILLISECOND);
    assert_int_equal(f->expired[2], 1);
    assert_int_equal(f->expired[0], 2);
    assert_int_equal(f->expired[1], 3);
    assert_int_equal(f->count, 3);
    for (unsigned i = 0; i < 5; i++) {
        timer_free(f->timers[i]);
    }
}

static void arm_again(void *owner)
{
    struct fixture *f = owner;
    if (++f->count == 100) {
        timer_free(f->timers[0]); /* from its own function */
        loop_stop(f->loop);
    } else {
        timer_arm(f->timers[0], now());
    }
}

static void timers_may_arm_and_free_themselves(void **state)
{
    struct fixture *f = *state;
    f->timers[0] = timer_new(f->loop, arm_again, f);
    timer_arm(f->timers[0], now());
    assert_int_equal(loop_run(f->loop), 0);
    assert_int_equal(f->count, 100);
}

enum { MANY = 500 };

struct many {
    struct fixture *f;
    struct timer *timer;
    uint64_t deadline;
};

static uint64_t last_deadline;

static void check_order(void *owner)
{
    struct many *many = owner;
    assert_true(many->deadline >= last_deadline);
    assert_true(now() >= many->deadline);
    last_deadline = many->deadline;
    if (++many->f->count == MANY / 2) {
        loop_stop(many->f->loop);
    }
}

static void the_heap_keeps_order(void **state)
{
    static struct many many[MANY];
    struct fixture *f = *state;
    uint64_t start = now() + 3 * MILLISECOND;
    unsigned seed = 5;
    last_deadline = 0;
    for (unsigned i = 0; i < MANY; i++) {
        seed = seed * 1103515245 + 12345;
        many[i].f = f;
        many[i].deadline = start + (seed >> 8) % (3 * MILLISECOND);
        many[i].timer = timer_new(f->loop, check_order, &many[i]);
        timer_arm(many[i].timer, many[i].deadline);
    }
    for (unsigned i = 0; i < MANY; i += 2) {
        timer_disarm(many[i].timer);
    }
    assert_int_equal(loop_run(f->loop), 0);
    assert_int_equal(f->count, MANY / 2);
    for (unsigned i = 0; i < MANY; i++) {
        timer_free(many[i].timer);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(posts_run_in_order),         TEST(posts_come_from_any_thread),
        TEST(a_signal_handler_stops_it),  TEST(watches_report_what_holds),
        TEST(callbacks_may_free_watches), TEST(files_cannot_be_watched),
        TEST(timers_expire_in_order),     TEST(timers_may_arm_and_free_themselves),
        TEST(the_heap_keeps_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
