/* A console that writes into a file. A full disk loses output; it never stops the guest. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/console/console.h"
#include "backend/console/outlet.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"

struct file_console {
    struct console console;
    struct outlet outlet;
};

static void file_write(struct console *console, const uint8_t *bytes, size_t count)
{
    /* What a pipe or terminal at this path leaves in the buffer goes out with the next write. */
    outlet_write(&CONTAINER_OF(console, struct file_console, console)->outlet, bytes, count);
}

static void file_free(struct console *console)
{
    struct file_console *file = CONTAINER_OF(console, struct file_console, console);
    outlet_fini(&file->outlet);
    free(file);
}

static const struct console_ops file_ops = {.write = file_write, .free = file_free};

int console_file_open(const char *path, struct console **ret_console)
{
    /* Opened without waiting: a pipe without a reader is an error, not a hang. */
    CLEANUP_FD int fd =
        open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0644);
    if (fd < 0) {
        return fail(-errno, "open console file '%s': %s", path, strerror(errno));
    }
    struct file_console *file = calloc(1, sizeof *file);
    ASSERT(file);
    file->console.ops = &file_ops;
    outlet_init(&file->outlet, fd);
    file->outlet.is_nonblocking = true;
    *ret_console = &file->console;
    return 0;
}
