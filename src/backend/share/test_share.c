/* A share for tests. */
#include "backend/share/test_share.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"

static struct test_share *test_share_of(struct share *share)
{
    return CONTAINER_OF(share, struct test_share, share);
}

static void test_share_submit(struct share *share, struct share_request *request)
{
    struct test_share *self = test_share_of(share);
    request->next = NULL;
    *self->last = request;
    self->last = &request->next;
    self->waiting++;
}

/* All bytes of the vectors are looked at, or written: they must be there. */
static void take_message(struct test_share *self, const struct share_request *request)
{
    uint32_t done = 0;
    for (unsigned i = 0; i < request->out_count; i++) {
        const uint8_t *bytes = request->out[i].iov_base;
        for (size_t j = 0; j < request->out[i].iov_len; j++, done++) {
            self->message[done % sizeof self->message] = bytes[j];
        }
    }
    ASSERT(done == request->out_length);
    self->message_length = done;
}

static uint32_t give_reply(const struct test_share *self, const struct share_request *request)
{
    uint32_t length = self->reply_length, done = 0;
    length = length < request->in_length ? length : request->in_length;
    for (unsigned i = 0; i < request->in_count; i++) {
        uint8_t *bytes = request->in[i].iov_base;
        for (size_t j = 0; j < request->in[i].iov_len && done < length; j++, done++) {
            bytes[j] = done < sizeof self->reply ? self->reply[done] : 0;
        }
    }
    ASSERT(done == length);
    return length;
}

bool test_share_step(struct test_share *self)
{
    struct share_request *request = self->first;
    if (!request) {
        return false;
    }
    self->first = request->next;
    if (!self->first) {
        self->last = &self->first;
    }
    self->waiting--;
    take_message(self, request);
    request->done(request, self->error ? self->error : (int)give_reply(self, request));
    return true;
}

static void test_share_drain(struct share *share)
{
    while (test_share_step(test_share_of(share))) {
    }
}

static void test_share_forget(struct share *share)
{
    test_share_of(share)->forgotten++;
    test_share_of(share)->is_used = false;
}

static bool test_share_is_used(struct share *share)
{
    return test_share_of(share)->is_used;
}

static void test_share_free(struct share *share)
{
    ASSERT(!test_share_of(share)->waiting);
    free(test_share_of(share));
}

static const struct share_ops test_share_ops = {
    .submit = test_share_submit,
    .drain = test_share_drain,
    .forget = test_share_forget,
    .is_used = test_share_is_used,
    .free = test_share_free,
};

struct test_share *test_share_new(void)
{
    struct test_share *self = calloc(1, sizeof *self);
    ASSERT(self);
    self->share.ops = &test_share_ops;
    self->last = &self->first;
    return self;
}
