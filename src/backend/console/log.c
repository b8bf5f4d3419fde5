/* The two files of log.h. */
#include "backend/console/log.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

void console_log_init(struct console_log *log, const int files[2])
{
    struct stat a, b;
    *log = (struct console_log){.files = {files[0], files[1]}};
    if (files[0] < 0 || fstat(files[0], &a) || fstat(files[1], &b)) {
        log->files[0] = -1;
        return;
    }
    log->current = b.st_mtim.tv_sec > a.st_mtim.tv_sec ||
                   (b.st_mtim.tv_sec == a.st_mtim.tv_sec && b.st_mtim.tv_nsec > a.st_mtim.tv_nsec);
    /* at the same time: the one that is full was written first */
    if (b.st_mtim.tv_sec == a.st_mtim.tv_sec && b.st_mtim.tv_nsec == a.st_mtim.tv_nsec) {
        log->current = a.st_size >= CONSOLE_LOG_HALF;
    }
    log->size = (size_t)(log->current ? b.st_size : a.st_size);
}

static void turn_over(struct console_log *log)
{
    log->current = !log->current;
    log->size = 0;
    if (ftruncate(log->files[log->current], 0)) {
        log->size = CONSOLE_LOG_HALF; /* and once more, with the next bytes */
    }
}

void console_log_write(struct console_log *log, const uint8_t *bytes, size_t count)
{
    while (count && log->files[0] >= 0) {
        if (log->size >= CONSOLE_LOG_HALF) {
            turn_over(log);
            if (log->size) {
                return;
            }
        }
        size_t room = CONSOLE_LOG_HALF - log->size;
        ssize_t written =
            pwrite(log->files[log->current], bytes, count < room ? count : room, (off_t)log->size);
        if (written < 0 && errno == EINTR) {
            continue;
        }
        if (written <= 0) {
            return;
        }
        bytes += written;
        count -= (size_t)written;
        log->size += (size_t)written;
    }
}
