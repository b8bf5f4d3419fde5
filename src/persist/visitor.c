/*
 * The field visitor. A section in a stream is
 *
 *     u8 length of name, name, u32 version, u64 length of body, body, u32 crc32 of all before it
 *
 * with little-endian numbers; its body holds fields without names, and sections. A reader checks
 * the sum of a section before it looks at anything inside, and never reads beyond its body.
 */
#include "persist/visitor.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"

enum {
    DEPTH_MAX = 8,
    NAME_MAX_LENGTH = 63,
    VERSION_SIZE = 4,
    LENGTH_SIZE = 8,
    SUM_SIZE = 4,
    PRINTED_BYTES = 64, /* more are given by their sum */
};

/* A stream never grows beyond this: RAM travels on its own way. */
static const uint64_t STREAM_MAX = GIB(1);

struct section {
    const char *name; /* the visit function's */
    unsigned version;
    size_t start; /* of the whole section */
    size_t body;
    size_t end;     /* of the body; reading only */
    bool is_broken; /* COMPARE: it ended too early, which counted as one difference */
};

struct visitor {
    enum visitor_mode mode;
    int error;
    uint8_t *written; /* WRITE: owned */
    size_t capacity;
    const uint8_t *data; /* READ, COMPARE: borrowed */
    size_t size;         /* of the stream, or written so far */
    size_t position;     /* READ, COMPARE */
    FILE *out;           /* PRINT: borrowed */
    void (*report)(void *owner, const char *section, const char *field);
    void *owner;
    size_t differences;
    struct section sections[DEPTH_MAX];
    unsigned depth;
};

/* --- life --- */

static struct visitor *visitor_new(enum visitor_mode mode)
{
    struct visitor *v = calloc(1, sizeof *v);
    ASSERT(v);
    v->mode = mode;
    return v;
}

static struct visitor *visitor_new_from(enum visitor_mode mode, const void *data, size_t size)
{
    struct visitor *v = visitor_new(mode);
    v->data = data ? data : (const uint8_t *)""; /* an empty stream may have no address */
    v->size = size;
    return v;
}

struct visitor *visitor_new_write(void)
{
    return visitor_new(VISITOR_WRITE);
}

struct visitor *visitor_new_read(const void *data, size_t size)
{
    return visitor_new_from(VISITOR_READ, data, size);
}

struct visitor *visitor_new_compare(const void *data, size_t size,
                                    void (*report)(void *owner, const char *section,
                                                   const char *field),
                                    void *owner)
{
    struct visitor *v = visitor_new_from(VISITOR_COMPARE, data, size);
    v->report = report;
    v->owner = owner;
    return v;
}

struct visitor *visitor_new_print(FILE *out)
{
    struct visitor *v = visitor_new(VISITOR_PRINT);
    v->out = out;
    return v;
}

void visitor_free(struct visitor *v)
{
    if (v) {
        free(v->written);
        free(v);
    }
}

enum visitor_mode visitor_mode(const struct visitor *v)
{
    return v->mode;
}

int visitor_error(const struct visitor *v)
{
    return v->error;
}

size_t visitor_differences(const struct visitor *v)
{
    return v->differences;
}

const void *visitor_buffer(const struct visitor *v, size_t *ret_size)
{
    ASSERT(v->mode == VISITOR_WRITE && (v->depth == 0 || v->error));
    *ret_size = v->size;
    return v->written;
}

bool visitor_at_end(const struct visitor *v)
{
    return v->position == v->size;
}

/* --- errors, differences, and where they are --- */

static struct section *inner(struct visitor *v)
{
    return v->depth > 0 ? &v->sections[v->depth - 1] : NULL;
}

/* "outer.inner", for people. */
static void section_path(const struct visitor *v, char *path, size_t size)
{
    size_t used = 0;
    path[0] = '\0';
    for (unsigned i = 0; i < v->depth && used < size; i++) {
        int length =
            snprintf(path + used, size - used, "%s%s", i > 0 ? "." : "", v->sections[i].name);
        used += length > 0 ? (size_t)length : 0;
    }
}

enum { PATH_SIZE = DEPTH_MAX * (NAME_MAX_LENGTH + 1) };

void visitor_fail(struct visitor *v, int error, const char *sentence)
{
    if (v->error) {
        return;
    }
    char path[PATH_SIZE];
    section_path(v, path, sizeof path);
    v->error = fail(error, "state%s%s: %s", path[0] ? " of " : "", path, sentence);
}

static void fail_field(struct visitor *v, const char *field, const char *what)
{
    char sentence[160];
    snprintf(sentence, sizeof sentence, "field '%s' %s", field, what);
    visitor_fail(v, -EINVAL, sentence);
}

static void differ(struct visitor *v, const char *field)
{
    v->differences++;
    if (v->report) {
        char path[PATH_SIZE];
        section_path(v, path, sizeof path);
        v->report(v->owner, path, field);
    }
}

/* --- the stream --- */

static void append(struct visitor *v, const void *bytes, size_t size)
{
    if (v->error) {
        return;
    }
    if (!range_fits(v->size, size, STREAM_MAX)) {
        visitor_fail(v, -EFBIG, "it is larger than 1 GiB");
        return;
    }
    if (size > v->capacity - v->size) {
        size_t capacity = v->capacity ? v->capacity : 4096;
        while (capacity < v->size + size) {
            capacity *= 2;
        }
        uint8_t *written = realloc(v->written, capacity);
        if (!written) {
            visitor_fail(v, -ENOMEM, "no memory for it");
            return;
        }
        v->written = written;
        v->capacity = capacity;
    }
    if (size > 0) {
        memcpy(v->written + v->size, bytes, size);
        v->size += size;
    }
}

/* How far the section that is open, or the stream, reaches. */
static size_t limit(struct visitor *v)
{
    return v->depth > 0 ? inner(v)->end : v->size;
}

/* The next `size` bytes of the stream, or NULL if the section has fewer. */
static const uint8_t *take(struct visitor *v, size_t size)
{
    if (size > limit(v) - v->position) {
        return NULL;
    }
    const uint8_t *bytes = v->data + v->position;
    v->position += size;
    return bytes;
}

/* The same for the bytes of a field; that there are too few is an error, or a difference. */
static const uint8_t *take_field(struct visitor *v, const char *name, size_t size)
{
    struct section *section = inner(v);
    if (v->error || (section && section->is_broken)) {
        return NULL;
    }
    const uint8_t *bytes = take(v, size);
    if (bytes) {
        return bytes;
    }
    if (v->mode == VISITOR_COMPARE && section) {
        section->is_broken = true;
        differ(v, name);
    } else {
        fail_field(v, name, "is missing: the section or the stream is too short");
    }
    return NULL;
}

static uint32_t sum_of(const uint8_t *bytes, size_t size)
{
    return (uint32_t)crc32_z(crc32_z(0, NULL, 0), bytes, size);
}

/* --- sections --- */

static void write_begin(struct visitor *v, struct section *section)
{
    size_t length = strlen(section->name);
    uint8_t header[1 + NAME_MAX_LENGTH + VERSION_SIZE + LENGTH_SIZE];
    header[0] = (uint8_t)length;
    memcpy(header + 1, section->name, length);
    store_le32(header + 1 + length, section->version);
    store_le64(header + 1 + length + VERSION_SIZE, 0); /* known at the end */
    section->start = v->size;
    append(v, header, 1 + length + VERSION_SIZE + LENGTH_SIZE);
    section->body = v->size;
}

static void write_end(struct visitor *v, const struct section *section)
{
    if (v->error) {
        return;
    }
    store_le64(v->written + section->body - LENGTH_SIZE, v->size - section->body);
    uint8_t sum[SUM_SIZE];
    store_le32(sum, sum_of(v->written + section->start, v->size - section->start));
    append(v, sum, sizeof sum);
}

/* Read the head of a section and check all that can be checked before its fields. */
static void read_begin(struct visitor *v, struct section *section)
{
    char sentence[3 * NAME_MAX_LENGTH];
    size_t start = v->position;
    const uint8_t *length = take(v, 1);
    const uint8_t *name = length ? take(v, *length) : NULL;
    const uint8_t *numbers = name ? take(v, VERSION_SIZE + LENGTH_SIZE) : NULL;
    if (!numbers) {
        snprintf(sentence, sizeof sentence, "section '%s' is missing", section->name);
        visitor_fail(v, -EINVAL, sentence);
        return;
    }
    size_t rest = limit(v) - v->position;
    uint64_t body_length = load_le64(numbers + VERSION_SIZE);
    if (rest < SUM_SIZE || body_length > rest - SUM_SIZE) {
        snprintf(sentence, sizeof sentence, "section '%s' is cut off", section->name);
        visitor_fail(v, -EINVAL, sentence);
        return;
    }
    if (*length != strlen(section->name) || memcmp(name, section->name, *length) != 0) {
        snprintf(sentence, sizeof sentence, "another section stands where '%s' should be",
                 section->name);
        visitor_fail(v, -EINVAL, sentence);
        return;
    }
    section->start = start;
    section->body = v->position;
    section->end = v->position + (size_t)body_length;
    if (sum_of(v->data + start, section->end - start) != load_le32(v->data + section->end)) {
        snprintf(sentence, sizeof sentence, "section '%s' is damaged: its checksum is wrong",
                 section->name);
        visitor_fail(v, -EBADMSG, sentence);
        return;
    }
    unsigned found = load_le32(numbers);
    if (found > section->version) {
        snprintf(sentence, sizeof sentence,
                 "section '%s' has version %u, and this program knows version %u at most",
                 section->name, found, section->version);
        visitor_fail(v, -ENOTSUP, sentence);
        return;
    }
    section->version = found;
}

/* Fields that nobody asked for are an error, or a difference. */
static void read_end(struct visitor *v, const struct section *section)
{
    if (v->error) {
        return;
    }
    if (v->position != section->end && v->mode == VISITOR_READ) {
        visitor_fail(v, -EINVAL, "the section is longer than its version explains");
        return;
    }
    if (v->position != section->end && !section->is_broken) {
        differ(v, "(length)");
    }
    v->position = section->end + SUM_SIZE;
}

unsigned visit_begin(struct visitor *v, const char *name, unsigned version)
{
    ASSERT(v->depth < DEPTH_MAX && strlen(name) <= NAME_MAX_LENGTH);
    struct section section = {.name = name, .version = version};
    struct section *outer = inner(v);
    if (outer && outer->is_broken) { /* nothing in here can be compared */
        section.is_broken = true;
        section.end = v->position;
    } else if (v->error == 0 && v->mode == VISITOR_WRITE) {
        write_begin(v, &section);
    } else if (v->error == 0 && v->mode != VISITOR_PRINT) {
        read_begin(v, &section);
    }
    v->sections[v->depth++] = section;
    return section.version;
}

void visit_end(struct visitor *v)
{
    ASSERT(v->depth > 0);
    const struct section *section = inner(v);
    bool has_frame = v->depth < 2 || !v->sections[v->depth - 2].is_broken;
    if (v->mode == VISITOR_WRITE) {
        write_end(v, section);
    } else if (v->mode != VISITOR_PRINT && has_frame) {
        read_end(v, section);
    }
    v->depth--;
}

/* --- fields --- */

static void print_name(struct visitor *v, const char *name)
{
    char path[PATH_SIZE];
    section_path(v, path, sizeof path);
    fprintf(v->out, "%s%s%s = ", path, path[0] ? "." : "", name);
}

/* A number of `size` bytes; in READ mode `*value` changes only if all is well. */
static void visit_number(struct visitor *v, const char *name, uint64_t *value, size_t size,
                         uint64_t max)
{
    uint8_t bytes[8];
    store_le64(bytes, *value);
    if (v->error) {
        return;
    }
    if (v->mode == VISITOR_PRINT) {
        print_name(v, name);
        fprintf(v->out, "0x%" PRIx64 "\n", *value);
        return;
    }
    if (v->mode == VISITOR_WRITE) {
        if (*value > max) { /* better no stream than one that nobody can load */
            fail_field(v, name, "is out of its range");
        }
        append(v, bytes, size);
        return;
    }
    const uint8_t *stream = take_field(v, name, size);
    if (!stream) {
        return;
    }
    uint8_t wide[8] = {0};
    memcpy(wide, stream, size);
    uint64_t found = load_le64(wide);
    if (found > max) {
        fail_field(v, name, "is out of its range");
    } else if (v->mode == VISITOR_READ) {
        *value = found;
    } else if (found != *value) {
        differ(v, name);
    }
}

#define VISIT_DEFINE(type, name)                                                                   \
    void visit_##name##_max(struct visitor *v, const char *field, type *value, type max)           \
    {                                                                                              \
        uint64_t wide = *value;                                                                    \
        visit_number(v, field, &wide, sizeof *value, max);                                         \
        if (v->mode == VISITOR_READ) {                                                             \
            *value = (type)wide;                                                                   \
        }                                                                                          \
    }                                                                                              \
    void visit_##name(struct visitor *v, const char *field, type *value)                           \
    {                                                                                              \
        visit_##name##_max(v, field, value, (type)UINT64_MAX);                                     \
    }
VISIT_DEFINE(uint8_t, u8)
VISIT_DEFINE(uint16_t, u16)
VISIT_DEFINE(uint32_t, u32)
VISIT_DEFINE(uint64_t, u64)
#undef VISIT_DEFINE

void visit_bool(struct visitor *v, const char *name, bool *value)
{
    uint8_t byte; /* memory that is about to be loaded may hold what is no bool */
    memcpy(&byte, value, sizeof byte);
    uint64_t wide = byte;
    visit_number(v, name, &wide, 1, 1);
    if (v->mode == VISITOR_READ) {
        *value = wide != 0;
    }
}

static void print_bytes(struct visitor *v, const char *name, const uint8_t *bytes, size_t size)
{
    print_name(v, name);
    if (size > PRINTED_BYTES) {
        fprintf(v->out, "%zu bytes, crc32 %08" PRIx32 "\n", size, sum_of(bytes, size));
        return;
    }
    for (size_t i = 0; i < size; i++) {
        fprintf(v->out, "%02x", bytes[i]);
    }
    fputc('\n', v->out);
}

void visit_bytes(struct visitor *v, const char *name, void *bytes, size_t size)
{
    if (v->error) {
        return;
    }
    if (v->mode == VISITOR_PRINT) {
        print_bytes(v, name, bytes, size);
        return;
    }
    if (v->mode == VISITOR_WRITE) {
        append(v, bytes, size);
        return;
    }
    const uint8_t *stream = take_field(v, name, size);
    if (!stream || size == 0) {
        return;
    }
    if (v->mode == VISITOR_READ) {
        memcpy(bytes, stream, size);
    } else if (memcmp(bytes, stream, size) != 0) {
        differ(v, name);
    }
}
