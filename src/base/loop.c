/*
 * The event loop: epoll for descriptors, one timerfd for the earliest of a heap of timers, and one
 * eventfd that wakes the loop for posted calls and for loop_stop(). The lock covers the heap and
 * the queue of posts, and is never held while a callback runs.
 */
#include "base/loop.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"

enum { EVENTS_PER_WAIT = 32 };

static const uint64_t NOT_ARMED = UINT64_MAX;
static const uint64_t NANOSECONDS = 1000000000;

struct post {
    void (*function)(void *owner);
    void *owner;
    struct post *next;
};

struct watch {
    struct loop *loop; /* borrowed */
    int fd;            /* borrowed */
    unsigned events;
    bool is_dead; /* freed by a callback: waits in the graveyard until the round ends */
    void (*ready)(void *owner, unsigned events);
    void *owner;
    struct watch *next_dead;
};

struct timer {
    struct loop *loop; /* borrowed */
    uint64_t deadline; /* NOT_ARMED when not in the heap */
    uint64_t order;    /* equal deadlines expire in the order of arming */
    size_t position;   /* in the heap */
    void (*expired)(void *owner);
    void *owner;
};

struct loop {
    int epoll;
    int wake;    /* eventfd */
    int timerfd; /* CLOCK_MONOTONIC, absolute */
    atomic_bool is_stopped;

    /* Of the loop's thread. */
    bool is_dispatching;
    struct watch *dead_watches;

    pthread_mutex_t lock; /* for all below */
    struct post *first_post;
    struct post **last_post;
    struct timer **heap;
    size_t armed;         /* timers in the heap */
    size_t timers;        /* timers that exist: arming never has to allocate */
    size_t heap_capacity; /* at least `timers` */
    uint64_t orders;
    uint64_t programmed; /* what the timerfd is set to */
};

CLEANUP_DEFINE(struct loop, loop_free)

/* Memory for a node of our own; small, so running out of it is not worth a failure path. */
static void *allocate(size_t size)
{
    void *memory = calloc(1, size);
    ASSERT(memory);
    return memory;
}

static uint64_t monotonic_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NANOSECONDS + (uint64_t)now.tv_nsec;
}

/* --- the heap of timers; call with the lock --- */

static bool is_earlier(const struct timer *a, const struct timer *b)
{
    return a->deadline != b->deadline ? a->deadline < b->deadline : a->order < b->order;
}

static void heap_place(struct loop *loop, size_t position, struct timer *timer)
{
    loop->heap[position] = timer;
    timer->position = position;
}

static void heap_rise(struct loop *loop, struct timer *timer)
{
    size_t position = timer->position;
    while (position > 0) {
        size_t parent = (position - 1) / 2;
        if (!is_earlier(timer, loop->heap[parent])) {
            break;
        }
        heap_place(loop, position, loop->heap[parent]);
        position = parent;
    }
    heap_place(loop, position, timer);
}

static void heap_sink(struct loop *loop, struct timer *timer)
{
    size_t position = timer->position;
    for (;;) {
        size_t child = 2 * position + 1;
        if (child + 1 < loop->armed && is_earlier(loop->heap[child + 1], loop->heap[child])) {
            child++;
        }
        if (child >= loop->armed || !is_earlier(loop->heap[child], timer)) {
            break;
        }
        heap_place(loop, position, loop->heap[child]);
        position = child;
    }
    heap_place(loop, position, timer);
}

static void heap_remove(struct loop *loop, struct timer *timer)
{
    if (timer->deadline == NOT_ARMED) {
        return;
    }
    struct timer *last = loop->heap[--loop->armed];
    if (last != timer) {
        heap_place(loop, timer->position, last);
        heap_rise(loop, last);
        heap_sink(loop, last);
    }
    timer->deadline = NOT_ARMED;
}

/*
 * Set the timerfd to the earliest deadline. A timerfd that fires too early costs one wake-up, so
 * a deadline that moved away is left for that round to correct.
 */
static void program_timer(struct loop *loop)
{
    uint64_t deadline = loop->armed > 0 ? loop->heap[0]->deadline : NOT_ARMED;
    if (deadline >= loop->programmed) {
        return;
    }
    loop->programmed = deadline;
    /* Zero would disarm the timerfd: a deadline of the distant past is the first nanosecond. */
    uint64_t value = deadline > 0 ? deadline : 1;
    struct itimerspec spec = {.it_value = {.tv_sec = (time_t)(value / NANOSECONDS),
                                           .tv_nsec = (long)(value % NANOSECONDS)}};
    int result = timerfd_settime(loop->timerfd, TFD_TIMER_ABSTIME, &spec, NULL);
    ASSERT(result == 0);
}

/* --- life --- */

static int add_own(struct loop *loop, int fd, void *tag)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = tag};
    return epoll_ctl(loop->epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

int loop_new(struct loop **ret_loop)
{
    CLEANUP(loop_free) struct loop *loop = allocate(sizeof *loop);
    pthread_mutex_init(&loop->lock, NULL);
    loop->last_post = &loop->first_post;
    loop->programmed = NOT_ARMED;
    loop->epoll = epoll_create1(EPOLL_CLOEXEC);
    int error = loop->epoll < 0 ? errno : 0;
    loop->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    error = loop->wake < 0 ? errno : error;
    loop->timerfd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    error = loop->timerfd < 0 ? errno : error;
    if (error) {
        return fail(-error, "make the descriptors of an event loop: %s", strerror(error));
    }
    int r = add_own(loop, loop->wake, &loop->wake);
    if (r == 0) {
        r = add_own(loop, loop->timerfd, &loop->timerfd);
    }
    if (r < 0) {
        return fail(r, "watch the descriptors of an event loop");
    }
    *ret_loop = TAKE(loop);
    return 0;
}

static void run_posts(struct loop *loop, bool call)
{
    pthread_mutex_lock(&loop->lock);
    struct post *post = loop->first_post;
    loop->first_post = NULL;
    loop->last_post = &loop->first_post;
    pthread_mutex_unlock(&loop->lock);
    while (post) {
        struct post *next = post->next;
        if (call) {
            post->function(post->owner);
        }
        free(post);
        post = next;
    }
}

void loop_free(struct loop *loop)
{
    if (!loop) {
        return;
    }
    run_posts(loop, false);
    cleanup_close(&loop->epoll);
    cleanup_close(&loop->wake);
    cleanup_close(&loop->timerfd);
    pthread_mutex_destroy(&loop->lock);
    free(loop->heap);
    free(loop);
}

/* --- running --- */

static void wake(struct loop *loop)
{
    uint64_t one = 1;
    /* Fails only when the counter is full, and then the loop is awake already. */
    ssize_t ignored = write(loop->wake, &one, sizeof one);
    (void)ignored;
}

static void drain(int fd)
{
    uint64_t count;
    ssize_t ignored = read(fd, &count, sizeof count);
    (void)ignored;
}

/* Run what has fallen due before this moment; what is armed meanwhile waits for the next round. */
static void run_timers(struct loop *loop)
{
    uint64_t now = monotonic_now();
    pthread_mutex_lock(&loop->lock);
    loop->programmed = NOT_ARMED;
    uint64_t last_order = loop->orders;
    while (loop->armed > 0 && loop->heap[0]->deadline <= now &&
           loop->heap[0]->order <= last_order) {
        struct timer *timer = loop->heap[0];
        heap_remove(loop, timer);
        void (*expired)(void *owner) = timer->expired;
        void *owner = timer->owner;
        pthread_mutex_unlock(&loop->lock);
        expired(owner); /* may free the timer */
        pthread_mutex_lock(&loop->lock);
    }
    program_timer(loop);
    pthread_mutex_unlock(&loop->lock);
}

static void run_watch(struct watch *watch, uint32_t epoll_events)
{
    unsigned events = 0;
    if (epoll_events & EPOLLIN) {
        events |= LOOP_READABLE;
    }
    if (epoll_events & EPOLLOUT) {
        events |= LOOP_WRITABLE;
    }
    if (epoll_events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR)) {
        events |= LOOP_HANGUP;
    }
    events &= watch->events | LOOP_HANGUP;
    if (events && !watch->is_dead) {
        watch->ready(watch->owner, events);
    }
}

static void dispatch(struct loop *loop, const struct epoll_event *events, int count)
{
    loop->is_dispatching = true;
    for (int i = 0; i < count; i++) {
        void *tag = events[i].data.ptr;
        if (tag == &loop->wake) {
            drain(loop->wake);
            run_posts(loop, true);
        } else if (tag == &loop->timerfd) {
            drain(loop->timerfd);
            run_timers(loop);
        } else {
            run_watch(tag, events[i].events);
        }
    }
    loop->is_dispatching = false;
    while (loop->dead_watches) {
        struct watch *watch = loop->dead_watches;
        loop->dead_watches = watch->next_dead;
        free(watch);
    }
}

int loop_run(struct loop *loop)
{
    struct epoll_event events[EVENTS_PER_WAIT];
    while (!atomic_exchange(&loop->is_stopped, false)) {
        int count = epoll_wait(loop->epoll, events, EVENTS_PER_WAIT, -1);
        if (count < 0 && errno != EINTR) {
            return fail(-errno, "wait for events: %m");
        }
        dispatch(loop, events, count);
    }
    return 0;
}

void loop_stop(struct loop *loop)
{
    int saved = errno; /* a signal handler must not change it */
    atomic_store(&loop->is_stopped, true);
    wake(loop);
    errno = saved;
}

void loop_post(struct loop *loop, void (*function)(void *owner), void *owner)
{
    struct post *post = allocate(sizeof *post);
    post->function = function;
    post->owner = owner;
    pthread_mutex_lock(&loop->lock);
    bool was_empty = !loop->first_post;
    *loop->last_post = post;
    loop->last_post = &post->next;
    pthread_mutex_unlock(&loop->lock);
    if (was_empty) {
        wake(loop);
    }
}

/* --- watches --- */

static uint32_t epoll_bits(unsigned events)
{
    return (events & LOOP_READABLE ? EPOLLIN | EPOLLRDHUP : 0u) |
           (events & LOOP_WRITABLE ? EPOLLOUT : 0u);
}

int watch_new(struct loop *loop, int fd, unsigned events,
              void (*ready)(void *owner, unsigned events), void *owner, struct watch **ret_watch)
{
    struct watch *watch = allocate(sizeof *watch);
    watch->loop = loop;
    watch->fd = fd;
    watch->events = events;
    watch->ready = ready;
    watch->owner = owner;
    struct epoll_event event = {.events = epoll_bits(events), .data.ptr = watch};
    if (epoll_ctl(loop->epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
        int error = errno;
        free(watch);
        errno = error;
        return fail(-error,
                    error == EPERM ? "descriptor %d is a regular file: it cannot be watched"
                                   : "watch descriptor %d: %m",
                    fd);
    }
    *ret_watch = watch;
    return 0;
}

int watch_set(struct watch *watch, unsigned events)
{
    struct epoll_event event = {.events = epoll_bits(events), .data.ptr = watch};
    if (epoll_ctl(watch->loop->epoll, EPOLL_CTL_MOD, watch->fd, &event) < 0) {
        return fail(-errno, "change the watch of descriptor %d: %m", watch->fd);
    }
    watch->events = events;
    return 0;
}

void watch_free(struct watch *watch)
{
    if (!watch) {
        return;
    }
    struct loop *loop = watch->loop;
    epoll_ctl(loop->epoll, EPOLL_CTL_DEL, watch->fd, NULL);
    if (!loop->is_dispatching) {
        free(watch);
        return;
    }
    /* The round in progress may hold an event that points here. */
    watch->is_dead = true;
    watch->next_dead = loop->dead_watches;
    loop->dead_watches = watch;
}

/* --- timers --- */

struct timer *timer_new(struct loop *loop, void (*expired)(void *owner), void *owner)
{
    struct timer *timer = allocate(sizeof *timer);
    timer->loop = loop;
    timer->deadline = NOT_ARMED;
    timer->expired = expired;
    timer->owner = owner;
    pthread_mutex_lock(&loop->lock);
    if (loop->timers == loop->heap_capacity) {
        loop->heap_capacity = loop->heap_capacity ? 2 * loop->heap_capacity : 16;
        loop->heap = realloc(loop->heap, loop->heap_capacity * sizeof(struct timer *));
        ASSERT(loop->heap);
    }
    loop->timers++;
    pthread_mutex_unlock(&loop->lock);
    return timer;
}

void timer_free(struct timer *timer)
{
    if (!timer) {
        return;
    }
    struct loop *loop = timer->loop;
    pthread_mutex_lock(&loop->lock);
    heap_remove(loop, timer);
    loop->timers--;
    pthread_mutex_unlock(&loop->lock);
    free(timer);
}

void timer_arm(struct timer *timer, uint64_t deadline_ns)
{
    struct loop *loop = timer->loop;
    pthread_mutex_lock(&loop->lock);
    heap_remove(loop, timer);
    if (deadline_ns != NOT_ARMED) {
        timer->deadline = deadline_ns;
        timer->order = ++loop->orders;
        timer->position = loop->armed++;
        heap_rise(loop, timer);
        program_timer(loop);
    }
    pthread_mutex_unlock(&loop->lock);
}

void timer_disarm(struct timer *timer)
{
    timer_arm(timer, NOT_ARMED);
}
