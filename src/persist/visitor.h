/*
 * The field visitor: how state is written, read, compared and printed.
 *
 * Each device and each vCPU has ONE visit function that names its fields in order. The same
 * function saves, loads, compares and prints, so that the four can never drift apart:
 *
 *     static void serial_visit(struct device *device, struct visitor *v)
 *     {
 *         struct serial *s = serial_of(device);
 *         visit_begin(v, "serial", 1);
 *         visit_u8(v, "ier", &s->ier);
 *         visit_u8_max(v, "fifo_count", &s->fifo_count, sizeof s->fifo);
 *         visit_bytes(v, "fifo", s->fifo, sizeof s->fifo);
 *         visit_end(v);
 *     }
 *
 * Errors are sticky: after the first one nothing more is read or written, so callers check once
 * at the end (visitor_error()). A stream that is read is hostile: sections are framed, sized and
 * checksummed, and ranges are declared in the visit call (the _max forms).
 *
 * Threads: a visitor belongs to one thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum visitor_mode {
    VISITOR_WRITE,   /* object -> stream */
    VISITOR_READ,    /* stream -> object */
    VISITOR_COMPARE, /* stream against object; differences are counted and reported */
    VISITOR_PRINT,   /* object -> "section.name = value" lines for people */
};

struct visitor;

/* Write into a growing buffer that the visitor owns; visitor_buffer() hands it out. */
struct visitor *visitor_new_write(void);
/* Read or compare from `data` (borrowed). */
struct visitor *visitor_new_read(const void *data, size_t size);
/* `report` may be NULL; it gets one call for each differing field. */
struct visitor *visitor_new_compare(const void *data, size_t size,
                                    void (*report)(void *owner, const char *section,
                                                   const char *field),
                                    void *owner);
struct visitor *visitor_new_print(FILE *out);
void visitor_free(struct visitor *v);

enum visitor_mode visitor_mode(const struct visitor *v);
/* 0, or the first negative errno (a sentence is on the trail). */
int visitor_error(const struct visitor *v);
/* Record an error found by a visit function itself, e.g. two fields that contradict. */
void visitor_fail(struct visitor *v, int error, const char *sentence);
/* COMPARE: how many fields differed. */
size_t visitor_differences(const struct visitor *v);
/* WRITE: the bytes so far; valid until the next visit call or visitor_free(). */
const void *visitor_buffer(const struct visitor *v, size_t *ret_size);
/* READ and COMPARE: is the whole stream consumed? */
bool visitor_at_end(const struct visitor *v);

/*
 * A section: name, version, length, fields, checksum. When reading, the name must match and the
 * version must be at most `version`; the version found is returned (when not reading: `version`).
 * Sections nest.
 */
unsigned visit_begin(struct visitor *v, const char *name, unsigned version);
void visit_end(struct visitor *v);

void visit_bool(struct visitor *v, const char *name, bool *value);
void visit_u8(struct visitor *v, const char *name, uint8_t *value);
void visit_u16(struct visitor *v, const char *name, uint16_t *value);
void visit_u32(struct visitor *v, const char *name, uint32_t *value);
void visit_u64(struct visitor *v, const char *name, uint64_t *value);
void visit_bytes(struct visitor *v, const char *name, void *bytes, size_t size);
/* Reading a value above `max` is -EINVAL, and the object keeps its old value. */
void visit_u8_max(struct visitor *v, const char *name, uint8_t *value, uint8_t max);
void visit_u16_max(struct visitor *v, const char *name, uint16_t *value, uint16_t max);
void visit_u32_max(struct visitor *v, const char *name, uint32_t *value, uint32_t max);
void visit_u64_max(struct visitor *v, const char *name, uint64_t *value, uint64_t max);
