/*
 * A folder of the host for a guest: requests are 9P messages (9P2000.L), which a helper process
 * answers. Only that process can open files, and it can do nothing else: the machine's own process
 * gains no right by a share. Knows no guest.
 *
 * Threads: submit from any thread; done() runs on the share's own thread, never inside submit().
 *          Requests are answered one after the other.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct share;

/* The submitter owns the request until submit, and again from done() on. */
struct share_request {
    struct iovec *out, *in; /* the message; where the answer goes; borrowed until done() */
    unsigned out_count, in_count;
    uint32_t out_length, in_length; /* bytes of all vectors: at most SHARE_MESSAGE_MAX */
    /* `result`: bytes of the answer, or a negative errno: the helper is gone. */
    void (*done)(struct share_request *request, int result);
    struct share_request *next; /* the share's while it owns the request */
};

struct share_ops {
    void (*submit)(struct share *share, struct share_request *request);
    void (*drain)(struct share *share);
    void (*forget)(struct share *share);
    bool (*is_used)(struct share *share);
    void (*free)(struct share *share);
};

/* Embedded first in every share; doubles for tests are others than share_open() makes. */
struct share {
    const struct share_ops *ops;
};

enum { SHARE_MESSAGE_MAX = 512 << 10, SHARE_VECTORS_MAX = 256 };

/*
 * Open the folder and start the helper. -errno with a sentence: the folder is not there, or the
 * host lacks openat2(2). The helper ends when the share is freed, or our process ends.
 */
int share_open(const char *path, bool readonly, struct share **ret_share)
    __attribute__((warn_unused_result));
/* NULL is fine. Waits for what is in flight. */
static inline void share_free(struct share *share)
{
    if (share) {
        share->ops->free(share);
    }
}

static inline void share_submit(struct share *share, struct share_request *request)
{
    share->ops->submit(share, request);
}

/* Wait until nothing is in flight. Without any lock that done() takes. */
static inline void share_drain(struct share *share)
{
    share->ops->drain(share);
}

/* The client is gone: whatever it held is given back before the next request is answered. */
static inline void share_forget(struct share *share)
{
    share->ops->forget(share);
}

/* Does the client hold names (has it mounted)? Exact while nothing is in flight. */
static inline bool share_is_used(struct share *share)
{
    return share->ops->is_used(share);
}
