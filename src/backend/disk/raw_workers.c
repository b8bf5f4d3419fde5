/* The raw disk on a small pool of threads: for hosts that do not allow io_uring. */
#include "backend/disk/raw_internal.h"

#include "base/error.h"

static struct disk_request *next_request(struct raw_disk *raw)
{
    pthread_mutex_lock(&raw->lock);
    while (!raw->first && !raw->stopping) {
        pthread_cond_wait(&raw->work, &raw->lock);
    }
    struct disk_request *request = raw->first;
    if (request) {
        raw->first = request->next;
        if (!raw->first) {
            raw->last = &raw->first;
        }
    }
    pthread_mutex_unlock(&raw->lock);
    return request;
}

static void *work(void *argument)
{
    struct raw_disk *raw = argument;
    struct disk_request *request;
    raw_thread_started(raw);
    while ((request = next_request(raw))) {
        raw_complete(raw, request, raw_perform(raw, request, 0));
    }
    return NULL;
}

int raw_workers_open(struct raw_disk *raw)
{
    pthread_cond_init(&raw->work, NULL);
    raw->last = &raw->first;
    for (unsigned i = 0; i < RAW_WORKERS; i++) {
        int error = raw_start_thread(raw, work);
        if (error) {
            raw_workers_close(raw);
            return error;
        }
    }
    return 0;
}

void raw_workers_close(struct raw_disk *raw)
{
    pthread_mutex_lock(&raw->lock);
    raw->stopping = true;
    pthread_cond_broadcast(&raw->work);
    pthread_mutex_unlock(&raw->lock);
    for (unsigned i = 0; i < raw->thread_count; i++) {
        pthread_join(raw->threads[i], NULL);
    }
    raw->thread_count = 0;
    pthread_cond_destroy(&raw->work);
}

void raw_workers_submit(struct raw_disk *raw, struct disk_request *request)
{
    request->next = NULL;
    pthread_mutex_lock(&raw->lock);
    *raw->last = request;
    raw->last = &request->next;
    pthread_cond_signal(&raw->work);
    pthread_mutex_unlock(&raw->lock);
}
