/*
 * Streams against visit functions that do not fit them. The input is two scripts and a stream: the
 * first script writes a stream, whose sums are right; the second one reads and compares it, and
 * reads the raw rest of the input as well.
 * Guards: src/persist/visitor.c
 */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/error.h"
#include "persist/visitor.h"

enum { DEPTH = 7, BLOB = 40 };

struct object {
    uint8_t u8;
    uint16_t u16;
    uint32_t u32;
    uint64_t u64;
    bool flag;
    uint8_t bytes[BLOB];
};

static void check(const struct object *object)
{
    ASSERT((unsigned)*(const volatile uint8_t *)&object->flag <= 1);
}

/* One byte is one call. */
static void run(const uint8_t *script, size_t length, struct visitor *v, struct object *o)
{
    static const char *const names[] = {"a", "b", "serial"};
    unsigned depth = 0;
    for (size_t i = 0; i < length; i++) {
        unsigned argument = script[i] >> 4;
        switch (script[i] & 15) {
        case 0:
        case 1:
            if (depth < DEPTH) {
                depth++;
                unsigned version = visit_begin(v, names[argument % 3], argument / 3);
                ASSERT(version <= argument / 3);
            }
            break;
        case 2:
        case 3:
            if (depth > 0) {
                depth--;
                visit_end(v);
            }
            break;
        case 4:
            visit_u8(v, "u8", &o->u8);
            break;
        case 5:
            visit_u16(v, "u16", &o->u16);
            break;
        case 6:
            visit_u32(v, "u32", &o->u32);
            break;
        case 7:
            visit_u64(v, "u64", &o->u64);
            break;
        case 8:
            visit_bool(v, "flag", &o->flag);
            break;
        case 9:
            visit_bytes(v, "bytes", o->bytes, argument * 2);
            break;
        case 10:
            visit_u64_max(v, "u64", &o->u64, argument);
            ASSERT(v &&
                   (visitor_error(v) || visitor_mode(v) != VISITOR_READ || o->u64 <= argument));
            break;
        default:
            o->u8 = (uint8_t)argument;
            o->u64 = o->u64 * 31 + argument;
            break;
        }
        check(o);
    }
    while (depth-- > 0) {
        visit_end(v);
    }
}

static void read_and_compare(const uint8_t *script, size_t length, const void *stream, size_t size)
{
    struct object object = {0};
    struct visitor *v = visitor_new_read(stream, size);
    run(script, length, v, &object);
    visitor_free(v);
    v = visitor_new_compare(stream, size, NULL, NULL);
    run(script, length, v, &object);
    visitor_free(v);
    trail_clear();
}

/* What one script wrote, the same script reads, and then it finds no difference. */
static void round_trip(const uint8_t *script, size_t length, const void *stream, size_t size)
{
    struct object object = {0};
    struct visitor *v = visitor_new_compare(stream, size, NULL, NULL);
    run(script, length, v, &object);
    ASSERT(visitor_error(v) == 0 && visitor_differences(v) == 0 && visitor_at_end(v));
    visitor_free(v);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) {
        return 0;
    }
    size_t first = data[0] % 64, second = data[1] % 64;
    data += 2;
    size -= 2;
    if (first + second > size) {
        return 0;
    }
    struct object object = {0};
    struct visitor *writer = visitor_new_write();
    run(data, first, writer, &object);
    size_t written;
    const void *stream = visitor_buffer(writer, &written);
    if (visitor_error(writer) == 0) {
        round_trip(data, first, stream, written);
        read_and_compare(data + first, second, stream, written);
    }
    read_and_compare(data + first, second, data + first + second, size - first - second);
    visitor_free(writer);
    trail_clear();
    return 0;
}
