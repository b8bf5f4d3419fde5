/* The machine's side of a share: starting the helper, and the thread that talks to it. */
#include "backend/share/share.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/share/helper.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"

struct folder {
    struct share share;
    int socket;
    pthread_t thread;
    pthread_mutex_t lock;   /* guards everything below */
    pthread_cond_t changed; /* there is work, or nothing is in flight, or the thread runs */
    struct share_request *first, **last;
    unsigned in_flight;
    bool started, stopping;
    bool forget;   /* end the client's session before the next request */
    uint32_t fids; /* as the helper said last */
    int error;     /* the helper is gone */
};

/* Move all bytes of the vectors, which are used up by that. 0 or a negative errno. */
static int transfer(int fd, bool is_write, struct iovec *vectors, unsigned count)
{
    while (count) {
        ssize_t moved = is_write ? writev(fd, vectors, (int)count) : readv(fd, vectors, (int)count);
        if (moved == 0 && !is_write) {
            return -EPIPE;
        }
        if (moved < 0 && errno != EINTR) {
            return -errno;
        }
        for (size_t left = moved > 0 ? (size_t)moved : 0; count;) {
            size_t taken = left < vectors->iov_len ? left : vectors->iov_len;
            vectors->iov_base = (uint8_t *)vectors->iov_base + taken;
            vectors->iov_len -= taken;
            left -= taken;
            if (vectors->iov_len) {
                break;
            }
            vectors++;
            count--;
        }
    }
    return 0;
}

/* As much of `from` as `length` bytes are. */
static unsigned shorten(const struct iovec *from, unsigned count, uint64_t length,
                        struct iovec *ret_vectors)
{
    unsigned used = 0;
    for (unsigned i = 0; i < count && length; i++) {
        ret_vectors[used] = from[i];
        if (ret_vectors[used].iov_len > length) {
            ret_vectors[used].iov_len = length;
        }
        length -= ret_vectors[used++].iov_len;
    }
    return used;
}

/* Send a message and take the answer: its size, or a negative errno. */
static int exchange(struct folder *folder, const struct share_request *request)
{
    struct iovec vectors[1 + SHARE_VECTORS_MAX];
    struct share_frame frame = {request->out_length, request->in_length};
    vectors[0] = (struct iovec){&frame, sizeof frame};
    unsigned count =
        1 + shorten(request->out, request->out_count, request->out_length, vectors + 1);
    int r = transfer(folder->socket, true, vectors, count);
    if (!r) {
        vectors[0] = (struct iovec){&frame, sizeof frame};
        r = transfer(folder->socket, false, vectors, 1);
    }
    if (!r && frame.length > request->in_length) {
        r = -EPROTO;
    }
    if (!r) {
        count = shorten(request->in, request->in_count, frame.length, vectors);
        r = transfer(folder->socket, false, vectors, count);
    }
    pthread_mutex_lock(&folder->lock);
    folder->fids = r ? 0 : frame.room;
    pthread_mutex_unlock(&folder->lock);
    return r ? r : (int)frame.length;
}

/* A version message of our own: it ends the session. */
static int end_session(struct folder *folder)
{
    static const uint8_t message[] = {21, 0, 0,   0,   100, 0xff, 0xff, 0,   0,   1,  0,
                                      8,  0, '9', 'P', '2', '0',  '0',  '0', '.', 'L'};
    uint8_t reply[64];
    struct iovec out = {(void *)message, sizeof message}, in = {reply, sizeof reply};
    const struct share_request request = {.out = &out,
                                          .in = &in,
                                          .out_count = 1,
                                          .in_count = 1,
                                          .out_length = sizeof message,
                                          .in_length = sizeof reply};
    int r = exchange(folder, &request);
    return r < 0 ? r : 0;
}

/* The next request; NULL: the share is being freed. `ret_forget`: end the session first. */
static struct share_request *next_request(struct folder *folder, bool *ret_forget)
{
    pthread_mutex_lock(&folder->lock);
    while (!folder->first && !folder->stopping && !folder->forget) {
        pthread_cond_wait(&folder->changed, &folder->lock);
    }
    struct share_request *request = folder->first;
    *ret_forget = folder->forget;
    folder->forget = false;
    if (request) {
        folder->first = request->next;
        if (!folder->first) {
            folder->last = &folder->first;
        }
    }
    pthread_mutex_unlock(&folder->lock);
    return request;
}

static void finish(struct folder *folder, struct share_request *request, int result)
{
    request->done(request, result);
    pthread_mutex_lock(&folder->lock);
    if (--folder->in_flight == 0) {
        pthread_cond_broadcast(&folder->changed);
    }
    pthread_mutex_unlock(&folder->lock);
}

static void note_start(struct folder *folder)
{
    pthread_mutex_lock(&folder->lock);
    folder->started = true;
    pthread_cond_broadcast(&folder->changed);
    pthread_mutex_unlock(&folder->lock);
}

static void *work(void *argument)
{
    struct folder *folder = argument;
    note_start(folder);
    for (;;) {
        bool forget;
        struct share_request *request = next_request(folder, &forget);
        if (forget && !folder->error) {
            folder->error = end_session(folder);
        }
        if (!request && !forget) {
            return NULL;
        }
        if (!request) {
            continue;
        }
        int result = folder->error ? folder->error : exchange(folder, request);
        if (result < 0) {
            folder->error = result; /* what may still come would be the answer to something else */
        }
        finish(folder, request, result);
    }
}

/* In the child of a child, so that nobody has to wait for it. */
static int fork_helper(int root, int socket, bool readonly)
{
    pid_t child = fork();
    if (child == 0) {
        child = fork();
        if (child == 0) {
            share_helper_run(root, socket, readonly);
        }
        _exit(child < 0);
    }
    int status = 0;
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (child < 0 || status) {
        return fail(child < 0 ? -errno : -EAGAIN, "start a process for shared files%s",
                    " (a limit of processes: 'ulimit -u', or the container's)");
    }
    return 0;
}

static int start_helper(int root, bool readonly, int *ret_socket)
{
    int pair[2];
    struct share_hello hello;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
        return fail(-errno, "make a socket: %m");
    }
    int r = fork_helper(root, pair[1], readonly);
    close(pair[1]);
    struct iovec vector = {&hello, sizeof hello};
    if (!r && transfer(pair[0], false, &vector, 1)) {
        r = fail(-EIO, "the process for shared files ended at its start");
    } else if (!r && hello.error) {
        hello.text[sizeof hello.text - 1] = 0;
        r = fail(hello.error, "%s", hello.text);
    }
    if (r) {
        close(pair[0]);
        return r;
    }
    *ret_socket = pair[0];
    return 0;
}

/* No signal is delivered to it; when this returns it runs, and asks the host for nothing new. */
static int start_thread(struct folder *folder)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&folder->thread, NULL, work, folder);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) {
        return fail(-error, "start a thread for shared files: %s", strerror(error));
    }
    pthread_setname_np(folder->thread, "share");
    pthread_mutex_lock(&folder->lock);
    while (!folder->started) {
        pthread_cond_wait(&folder->changed, &folder->lock);
    }
    pthread_mutex_unlock(&folder->lock);
    return 0;
}

static void folder_destroy(struct folder *folder)
{
    close(folder->socket); /* which ends the helper */
    pthread_cond_destroy(&folder->changed);
    pthread_mutex_destroy(&folder->lock);
    free(folder);
}

static struct folder *folder_of(struct share *share)
{
    return CONTAINER_OF(share, struct folder, share);
}

static void folder_submit(struct share *share, struct share_request *request)
{
    struct folder *folder = folder_of(share);
    request->next = NULL;
    pthread_mutex_lock(&folder->lock);
    *folder->last = request;
    folder->last = &request->next;
    folder->in_flight++;
    pthread_cond_broadcast(&folder->changed);
    pthread_mutex_unlock(&folder->lock);
}

static void folder_drain(struct share *share)
{
    struct folder *folder = folder_of(share);
    pthread_mutex_lock(&folder->lock);
    while (folder->in_flight) {
        pthread_cond_wait(&folder->changed, &folder->lock);
    }
    pthread_mutex_unlock(&folder->lock);
}

static void folder_forget(struct share *share)
{
    struct folder *folder = folder_of(share);
    pthread_mutex_lock(&folder->lock);
    folder->forget = true;
    folder->fids = 0;
    pthread_cond_broadcast(&folder->changed);
    pthread_mutex_unlock(&folder->lock);
}

static bool folder_is_used(struct share *share)
{
    struct folder *folder = folder_of(share);
    pthread_mutex_lock(&folder->lock);
    bool is_used = folder->fids && !folder->forget;
    pthread_mutex_unlock(&folder->lock);
    return is_used;
}

static void folder_free(struct share *share)
{
    struct folder *folder = folder_of(share);
    folder_drain(share);
    pthread_mutex_lock(&folder->lock);
    folder->stopping = true;
    pthread_cond_broadcast(&folder->changed);
    pthread_mutex_unlock(&folder->lock);
    pthread_join(folder->thread, NULL);
    folder_destroy(folder);
}

static const struct share_ops folder_ops = {
    .submit = folder_submit,
    .drain = folder_drain,
    .forget = folder_forget,
    .is_used = folder_is_used,
    .free = folder_free,
};

int share_open(const char *path, bool readonly, struct share **ret_share)
{
    CLEANUP_FD int root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0) {
        return fail(-errno, "open shared folder '%s': %s", path, strerror(errno));
    }
    int socket;
    int r = start_helper(root, readonly, &socket);
    if (r) {
        return fail(r, "shared folder '%s'", path);
    }
    struct folder *folder = calloc(1, sizeof *folder);
    ASSERT(folder);
    folder->share.ops = &folder_ops;
    folder->socket = socket;
    folder->last = &folder->first;
    pthread_mutex_init(&folder->lock, NULL);
    pthread_cond_init(&folder->changed, NULL);
    r = start_thread(folder);
    if (r) {
        folder_destroy(folder);
        return r;
    }
    *ret_share = &folder->share;
    return 0;
}
