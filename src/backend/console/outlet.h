/*
 * Bytes to a descriptor that may be slow: a bounded buffer, written by whoever finds room. A guest
 * that writes byte by byte costs no system call for each: small writes are gathered for a
 * millisecond.
 *
 * Never waits for long, and never sets O_NONBLOCK on a file description that others share.
 * Threads: any; it has its own lock, which is never held while calling out.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { OUTLET_CAPACITY = 1 << 20, OUTLET_PATIENCE_MS = 50 };
/* How long small writes are gathered: less than anybody sees. */
enum { OUTLET_GATHER_NS = 1000000 };

/* What whoever wrote has to see to. */
enum outlet_need {
    OUTLET_NOTHING,
    OUTLET_SOON,     /* outlet_flush() after OUTLET_GATHER_NS */
    OUTLET_WRITABLE, /* outlet_flush() when the descriptor is writable */
};

struct outlet {
    pthread_mutex_t lock;
    int fd;              /* ours, or -1 */
    bool is_gone;        /* nobody reads any more: bytes vanish */
    bool is_direct;      /* a regular file: always takes everything at once */
    bool is_nonblocking; /* the file description is our own, with O_NONBLOCK */
    bool is_starved;     /* somebody was told that there is no room */
    bool is_gathering;   /* somebody was told to flush soon */
    uint8_t *bytes;      /* a ring of OUTLET_CAPACITY; NULL until needed */
    size_t first, count;
};

/* Where `fd` leads, on a descriptor of our own. A closed `fd` is fine. */
void outlet_init(struct outlet *outlet, int fd);
/* Writes out what is left, as long as the reader gets on (at most 2 seconds without). */
void outlet_fini(struct outlet *outlet);

enum outlet_need outlet_write(struct outlet *outlet, const uint8_t *bytes, size_t count);
/* Bytes that outlet_write() takes without waiting; SIZE_MAX: any number. */
size_t outlet_room(struct outlet *outlet);
/* Write what the descriptor takes. Returns whether bytes still wait. */
bool outlet_flush(struct outlet *outlet);
/* Once after room was 0 and is no longer: true. */
bool outlet_recovered(struct outlet *outlet);

/*
 * A descriptor for the same file as `fd`: with a file description of its own and O_NONBLOCK where
 * possible (terminals and pipes), otherwise a duplicate. -1 if `fd` is not open.
 */
int own_descriptor(int fd, int access_mode, bool *ret_is_nonblocking);
