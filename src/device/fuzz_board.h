/*
 * Fuzzing only: reads operations out of the fuzzer's bytes, and checks what must hold in every
 * state that a guest can reach: it can be saved, loaded, and is then the same.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/assert.h"
#include "device/device.h"
#include "persist/visitor.h"

struct fuzz_input {
    const uint8_t *data;
    size_t left;
};

/* The next `size` bytes as a number; zeros when the input is used up. */
static inline uint64_t fuzz_take(struct fuzz_input *input, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size && input->left; i++) {
        value |= (uint64_t)*input->data++ << (8 * i);
        input->left--;
    }
    return value;
}

/* Save, load over the same object, compare. */
static inline void fuzz_visit(void (*visit)(void *owner, struct visitor *v), void *owner)
{
    struct visitor *save = visitor_new_write();
    visit(owner, save);
    size_t size;
    const void *stream = visitor_buffer(save, &size);
    struct visitor *load = visitor_new_read(stream, size);
    visit(owner, load);
    ASSERT(visitor_error(load) == 0 && visitor_at_end(load));
    struct visitor *compare = visitor_new_compare(stream, size, NULL, NULL);
    visit(owner, compare);
    ASSERT(visitor_error(compare) == 0 && visitor_differences(compare) == 0);
    visitor_free(compare);
    visitor_free(load);
    visitor_free(save);
}

static inline void fuzz_visit_device(void *device, struct visitor *v)
{
    ((struct device *)device)->ops->visit(device, v);
}
