/* Keeping failed requests; see stop_disk.h. */
#include "backend/disk/stop_disk.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"

struct stop_disk {
    struct disk disk;
    struct disk *lower;
    void (*stopped)(void *owner, const char *text);
    void *owner;
    char *name;
    pthread_mutex_t lock; /* guards the list */
    struct attempt *kept, **last;
};

/* A request of ours for one of the submitter's. */
struct attempt {
    struct disk_request lower;
    struct stop_disk *stop;
    struct disk_request *request;
    struct attempt *next; /* in the list of kept ones */
    int error;
};

static struct stop_disk *stop_of(struct disk *disk)
{
    return CONTAINER_OF(disk, struct stop_disk, disk);
}

static void finish(struct attempt *attempt, int result)
{
    struct disk_request *request = attempt->request;
    free(attempt);
    /* Whether another one follows is not known: it may be kept. */
    request->more = false;
    request->done(request, result);
}

static void tell(const struct stop_disk *stop, const struct disk_request *request, int error)
{
    static const char *const verbs[] = {"reading", "writing", "flushing", "discarding", "zeroing"};
    char text[300], reason[64];
    snprintf(text, sizeof text, "disk '%.150s': %s failed at byte %llu: %s", stop->name,
             verbs[request->operation], (unsigned long long)request->offset,
             strerror_r(-error, reason, sizeof reason));
    stop->stopped(stop->owner, text);
}

static void attempt_done(struct disk_request *lower, int result)
{
    struct attempt *attempt = CONTAINER_OF(lower, struct attempt, lower);
    struct stop_disk *stop = attempt->stop;
    if (result == 0) {
        finish(attempt, 0);
        return;
    }
    /* From the moment on that it is in the list others may take it. */
    const struct disk_request copy = *attempt->request;
    attempt->error = result;
    attempt->next = NULL;
    pthread_mutex_lock(&stop->lock);
    *stop->last = attempt;
    stop->last = &attempt->next;
    pthread_mutex_unlock(&stop->lock);
    tell(stop, &copy, result);
}

static void try(struct attempt *attempt)
{
    const struct disk_request *request = attempt->request;
    attempt->lower = (struct disk_request){
        .operation = request->operation,
        .offset = request->offset,
        .length = request->length,
        .vectors = request->vectors,
        .vector_count = request->vector_count,
        .unmap = request->unmap,
        .done = attempt_done,
    };
    int error = disk_submit(attempt->stop->lower, &attempt->lower);
    ASSERT(!error); /* it has the same size and rights, which were checked */
}

static void stop_disk_submit(struct disk *disk, struct disk_request *request)
{
    struct attempt *attempt = calloc(1, sizeof *attempt);
    ASSERT(attempt);
    attempt->stop = stop_of(disk);
    attempt->request = request;
    try(attempt);
}

static struct attempt *take_kept(struct stop_disk *stop)
{
    pthread_mutex_lock(&stop->lock);
    struct attempt *kept = stop->kept;
    stop->kept = NULL;
    stop->last = &stop->kept;
    pthread_mutex_unlock(&stop->lock);
    return kept;
}

static void stop_disk_retry(struct disk *disk)
{
    struct attempt *attempt = take_kept(stop_of(disk));
    while (attempt) {
        struct attempt *next = attempt->next;
        try(attempt);
        attempt = next;
    }
}

static void stop_disk_cancel(struct disk *disk)
{
    struct stop_disk *stop = stop_of(disk);
    /* What is on its way may come to be kept. */
    disk_drain(stop->lower);
    struct attempt *attempt = take_kept(stop);
    while (attempt) {
        struct attempt *next = attempt->next;
        finish(attempt, attempt->error);
        attempt = next;
    }
}

static void stop_disk_hold(struct disk *disk)
{
    disk_hold(stop_of(disk)->lower);
}

static void stop_disk_release(struct disk *disk)
{
    disk_release(stop_of(disk)->lower);
}

static void stop_disk_drain(struct disk *disk)
{
    disk_drain(stop_of(disk)->lower);
}

static void stop_disk_free(struct disk *disk)
{
    struct stop_disk *stop = stop_of(disk);
    stop_disk_cancel(disk);
    disk_free(stop->lower);
    pthread_mutex_destroy(&stop->lock);
    free(stop->name);
    free(stop);
}

static const struct disk_ops stop_disk_ops = {
    .submit = stop_disk_submit,
    .hold = stop_disk_hold,
    .release = stop_disk_release,
    .retry = stop_disk_retry,
    .cancel = stop_disk_cancel,
    .drain = stop_disk_drain,
    .free = stop_disk_free,
};

struct disk *stop_disk_new(const struct stop_disk_config *config)
{
    struct stop_disk *stop = calloc(1, sizeof *stop);
    ASSERT(stop);
    stop->disk = (struct disk){
        .ops = &stop_disk_ops,
        .size = config->lower->size,
        .readonly = config->lower->readonly,
        .unlocked = config->lower->unlocked,
    };
    stop->lower = config->lower;
    stop->stopped = config->stopped;
    stop->owner = config->owner;
    stop->name = strdup(config->name);
    ASSERT(stop->name);
    stop->last = &stop->kept;
    pthread_mutex_init(&stop->lock, NULL);
    return &stop->disk;
}
