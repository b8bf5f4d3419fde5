/*
 * Test only: a share whose requests wait until the test, or a drain, answers them with bytes that
 * it was given. One thread.
 */
#pragma once

#include "backend/share/share.h"

struct test_share {
    struct share share;
    struct share_request *first, **last; /* waiting, oldest first */
    unsigned waiting, forgotten;
    uint8_t message[64]; /* how the last one that was answered began */
    uint32_t message_length;
    uint8_t reply[64];     /* how answers begin; zeros follow */
    uint32_t reply_length; /* no more than there is room for is given */
    int error;             /* not 0: the result of all requests */
    bool is_used;
};

struct test_share *test_share_new(void);
/* Answer the oldest waiting request; false if there is none. */
bool test_share_step(struct test_share *test_share);
