/*
 * Bytes to a descriptor that may be slow. On a shared file description O_NONBLOCK is not ours to
 * set: there we ask poll() first and write no more than what then does not block.
 */
#include "backend/console/outlet.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"

enum {
    SMALL_PIECE = 256, /* what a writable terminal or pipe surely takes */
    GATHER_MAX = 4096, /* more than that goes out at once */
    LAST_PATIENCE_MS = 2000,
};

int own_descriptor(int fd, int access_mode, bool *ret_is_nonblocking)
{
    struct stat status;
    *ret_is_nonblocking = false;
    /* Where the number was closed it may by now be an event descriptor of this program. */
    if (fstat(fd, &status) || !(status.st_mode & S_IFMT)) {
        return -1;
    }
    if (S_ISFIFO(status.st_mode) || isatty(fd)) {
        char path[32];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        int own = open(path, access_mode | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (own >= 0) {
            *ret_is_nonblocking = true;
            return own;
        }
    }
    return fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

void outlet_init(struct outlet *outlet, int fd)
{
    struct stat status;
    *outlet = (struct outlet){.fd = -1};
    pthread_mutex_init(&outlet->lock, NULL);
    outlet->fd = own_descriptor(fd, O_WRONLY, &outlet->is_nonblocking);
    outlet->is_gone = outlet->fd < 0;
    outlet->is_direct = outlet->fd >= 0 && !fstat(outlet->fd, &status) && S_ISREG(status.st_mode);
}

/* The reader is gone, for good: what was meant for it vanishes. */
static void give_up(struct outlet *outlet)
{
    outlet->is_gone = true; /* the descriptor stays: it may be watched */
    outlet->count = 0;
}

static bool is_writable(const struct outlet *outlet, int patience_ms)
{
    struct pollfd wish = {.fd = outlet->fd, .events = POLLOUT};
    return poll(&wish, 1, patience_ms) > 0;
}

/* Write without waiting: how many bytes the descriptor took. */
static size_t write_some(struct outlet *outlet, const uint8_t *bytes, size_t count)
{
    size_t done = 0;
    while (done < count && !outlet->is_gone) {
        size_t piece = count - done;
        if (!outlet->is_nonblocking && !outlet->is_direct) {
            if (!is_writable(outlet, 0)) {
                break;
            }
            piece = piece < SMALL_PIECE ? piece : SMALL_PIECE;
        }
        ssize_t taken = write(outlet->fd, bytes + done, piece);
        if (taken < 0 && errno == EAGAIN) {
            break;
        }
        if (taken < 0 && errno == ENOSPC) {
            return count; /* a full disk takes nothing, now; later it may again */
        }
        if (taken < 0 && errno != EINTR) {
            give_up(outlet);
            break;
        }
        done += taken > 0 ? (size_t)taken : 0;
    }
    return outlet->is_gone ? count : done;
}

static void flush_buffer(struct outlet *outlet)
{
    while (outlet->count) {
        size_t to_end = OUTLET_CAPACITY - outlet->first;
        size_t piece = outlet->count < to_end ? outlet->count : to_end;
        size_t taken = write_some(outlet, outlet->bytes + outlet->first, piece);
        if (outlet->is_gone) {
            return; /* give_up() emptied the buffer */
        }
        outlet->first = (outlet->first + taken) % OUTLET_CAPACITY;
        outlet->count -= taken;
        if (taken < piece) {
            return;
        }
    }
}

/* Put bytes into the buffer: how many fit. */
static size_t buffer(struct outlet *outlet, const uint8_t *bytes, size_t count)
{
    if (!outlet->bytes) {
        outlet->bytes = malloc(OUTLET_CAPACITY);
        ASSERT(outlet->bytes);
    }
    size_t room = OUTLET_CAPACITY - outlet->count;
    count = count < room ? count : room;
    size_t at = (outlet->first + outlet->count) % OUTLET_CAPACITY;
    size_t to_end = OUTLET_CAPACITY - at;
    size_t piece = count < to_end ? count : to_end;
    memcpy(outlet->bytes + at, bytes, piece);
    memcpy(outlet->bytes, bytes + piece, count - piece);
    outlet->count += count;
    return count;
}

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Write out what waits and then these; what the descriptor does not take goes into the buffer. */
static void write_through(struct outlet *outlet, const uint8_t *bytes, size_t count)
{
    uint64_t deadline = 0;
    while (count && !outlet->is_gone) {
        flush_buffer(outlet);
        size_t taken = outlet->count ? 0 : write_some(outlet, bytes, count);
        if (taken < count && !outlet->is_gone) {
            taken += buffer(outlet, bytes + taken, count - taken);
        }
        bytes += taken;
        count -= taken;
        if (count && !outlet->is_gone) {
            /* No room at all. Wait a little for the reader, then let the rest go. */
            uint64_t now = now_ms();
            deadline = deadline ? deadline : now + OUTLET_PATIENCE_MS;
            if (now >= deadline || !is_writable(outlet, (int)(deadline - now))) {
                break;
            }
        }
    }
}

enum outlet_need outlet_write(struct outlet *outlet, const uint8_t *bytes, size_t count)
{
    enum outlet_need need = OUTLET_NOTHING;
    pthread_mutex_lock(&outlet->lock);
    if (outlet->count + count <= GATHER_MAX && !outlet->is_gone) {
        buffer(outlet, bytes, count);
        need = outlet->is_gathering ? OUTLET_NOTHING : OUTLET_SOON;
        outlet->is_gathering = true;
    } else {
        write_through(outlet, bytes, count);
        need = outlet->count ? OUTLET_WRITABLE : OUTLET_NOTHING;
    }
    pthread_mutex_unlock(&outlet->lock);
    return need;
}

size_t outlet_room(struct outlet *outlet)
{
    pthread_mutex_lock(&outlet->lock);
    size_t room = outlet->is_gone || outlet->is_direct ? SIZE_MAX : OUTLET_CAPACITY - outlet->count;
    outlet->is_starved |= room == 0;
    pthread_mutex_unlock(&outlet->lock);
    return room;
}

bool outlet_flush(struct outlet *outlet)
{
    pthread_mutex_lock(&outlet->lock);
    outlet->is_gathering = false;
    flush_buffer(outlet);
    bool waits = outlet->count > 0;
    pthread_mutex_unlock(&outlet->lock);
    return waits;
}

bool outlet_recovered(struct outlet *outlet)
{
    pthread_mutex_lock(&outlet->lock);
    /* Half of the buffer, so that a slow reader does not cause a call for each byte. */
    bool recovered = outlet->is_starved && outlet->count <= OUTLET_CAPACITY / 2;
    if (recovered) {
        outlet->is_starved = false;
    }
    pthread_mutex_unlock(&outlet->lock);
    return recovered;
}

void outlet_fini(struct outlet *outlet)
{
    size_t before;
    do {
        before = outlet->count;
        outlet_flush(outlet);
    } while (outlet->count && (outlet->count < before || is_writable(outlet, LAST_PATIENCE_MS)));
    if (outlet->fd >= 0) {
        close(outlet->fd);
    }
    free(outlet->bytes);
    pthread_mutex_destroy(&outlet->lock);
}
