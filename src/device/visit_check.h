/*
 * Test only: does a visit function name every field? The lowest bit of every byte is flipped (so
 * that a bool stays one) before the saved state is loaded again; each byte that does not come back,
 * and is not listed as derived (pointers, locks, configuration: what the board's builder sets), was
 * forgotten. Padding is left out.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "persist/visitor.h"

struct visit_span {
    size_t offset, size;
};
#define VISIT_DERIVED(type, member)                                                                \
    {                                                                                              \
        offsetof(type, member), sizeof(((type *)0)->member)                                        \
    }

/*
 * The number of forgotten bytes, each reported on stderr; SIZE_MAX if saving or loading failed.
 * `mask` has a zero for each byte to leave alone.
 */
static inline size_t visit_check_bytes(void *object, const uint8_t *mask, size_t size,
                                       void (*visit)(void *owner, struct visitor *v), void *owner)
{
    static uint8_t before[1 << 16];
    if (size > sizeof before) {
        return SIZE_MAX;
    }
    struct visitor *save = visitor_new_write();
    visit(owner, save);
    size_t length = 0, forgotten = 0;
    const void *stream = visitor_buffer(save, &length);
    memcpy(before, object, size);
    for (size_t i = 0; i < size; i++) {
        ((uint8_t *)object)[i] ^= mask[i] & 1;
    }
    struct visitor *load = visitor_new_read(stream, length);
    visit(owner, load);
    bool failed = visitor_error(save) != 0 || visitor_error(load) != 0 || !visitor_at_end(load);
    for (size_t i = 0; i < size && !failed; i++) {
        if (mask[i] && ((const uint8_t *)object)[i] != before[i]) {
            fprintf(stderr, "byte %zu of %zu is not restored\n", i, size);
            forgotten++;
        }
    }
    struct visitor *compare = visitor_new_compare(stream, length, NULL, NULL);
    visit(owner, compare);
    failed = failed || (forgotten == 0 && visitor_differences(compare) != 0);
    visitor_free(compare);
    visitor_free(load);
    visitor_free(save);
    return failed ? SIZE_MAX : forgotten;
}

/*
 * GCC knows where padding is, but version 12 loses its place behind an array of structs: such
 * members go last. With another compiler the check is skipped and answers 0.
 */
#if defined(__GNUC__) && !defined(__clang__)
#define VISIT_CHECK(type, object, visit, owner, ...)                                               \
    ({                                                                                             \
        static type mask_;                                                                         \
        const struct visit_span derived_[] = {__VA_ARGS__};                                        \
        memset(&mask_, 0xff, sizeof mask_);                                                        \
        __builtin_clear_padding(&mask_);                                                           \
        for (size_t span_ = 0; span_ < ARRAY_SIZE(derived_); span_++) {                            \
            memset((char *)&mask_ + derived_[span_].offset, 0, derived_[span_].size);              \
        }                                                                                          \
        visit_check_bytes(object, (const uint8_t *)&mask_, sizeof mask_, visit, owner);            \
    })
#else
#define VISIT_CHECK(type, object, visit, owner, ...)                                               \
    ((void)(object), (void)(visit), (void)(owner), (size_t)0)
#endif
