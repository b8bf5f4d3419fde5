/*
 * The two sides of kernel_read.h, and the pipe between: a struct header, then the sentence of a
 * failure, or the kernel and the initrd.
 */
#include "image/kernel_read.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "control/jail.h"

enum { CPU_SECONDS = 20, WALL_SECONDS = 60, SENTENCE_MAX = 512 };
#define MEMORY_MAX MIB(256)

struct header {
    int32_t error; /* 0, or a negative errno */
    char sentence[SENTENCE_MAX];
    char version[KERNEL_VERSION];
    char command_line[KERNEL_COMMAND];
    uint64_t kernel_size, initrd_size;
};

/* ---- the process that looks ---- */

static int read_disk(void *owner, uint64_t offset, void *to, size_t size)
{
    return disk_read(owner, offset, to, size);
}

static int write_all(void *owner, const void *bytes, size_t size)
{
    const int *fd = owner;
    for (size_t done = 0; done < size;) {
        ssize_t count = write(*fd, (const char *)bytes + done, size - done);
        if (count < 0 && errno != EINTR) {
            return -errno;
        }
        done += count > 0 ? (size_t)count : 0;
    }
    return 0;
}

static int lock_down(void)
{
    bool landlock;
    const struct rlimit time = {CPU_SECONDS, CPU_SECONDS};
    const struct rlimit memory = {MEMORY_MAX, MEMORY_MAX};
    if (setrlimit(RLIMIT_CPU, &time)) {
        return fail(-errno, "limit the time: %m");
    }
#ifndef __SANITIZE_ADDRESS__ /* which wants terabytes */
    if (setrlimit(RLIMIT_DATA, &memory)) {
        return fail(-errno, "limit the memory: %m");
    }
#else
    (void)memory;
#endif
    int r = jail_drop_rights(&landlock);
    return r ? r : jail_enter(NULL, 0, NULL, 0);
}

static int look(struct disk *disk, int output)
{
    struct header header = {0};
    struct kernel_files files = {0};
    int r = lock_down();
    r = r ? r : kernel_find(read_disk, disk, disk->size, &files);
    if (r) {
        return r;
    }
    memcpy(header.version, files.version, sizeof header.version);
    memcpy(header.command_line, files.command_line, sizeof header.command_line);
    header.kernel_size = files.kernel_size;
    header.initrd_size = files.initrd_size;
    if (write_all(&output, &header, sizeof header)) {
        return 0; /* nobody listens */
    }
    r = kernel_file_read(&files, files.kernel, files.kernel_size, write_all, &output);
    if (!r && files.initrd) {
        r = kernel_file_read(&files, files.initrd, files.initrd_size, write_all, &output);
    }
    return r ? 1 : 0; /* too late for a sentence: the pipe ends early */
}

/* What else this process has (locks, logs, a terminal) is nothing for whoever breaks into it. */
static void keep_only(int output)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd <= STDERR_FILENO && null >= 0; fd++) {
        if (fd != output) {
            dup2(null, fd);
        }
    }
    if (output > STDERR_FILENO + 1) {
        close_range(STDERR_FILENO + 1, (unsigned)output - 1, 0);
    }
    close_range(output > STDERR_FILENO ? (unsigned)output + 1 : STDERR_FILENO + 1, ~0u, 0);
}

static void be_helper(int (*open)(void *owner, struct disk **ret_disk), void *owner, int output)
{
    struct disk *disk = NULL;
    keep_only(output);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_DUMPABLE, 0);
    signal(SIGPIPE, SIG_IGN);
    int r = open(owner, &disk);
    r = r ? r : look(disk, output);
    if (r < 0) {
        struct header header = {.error = r};
        snprintf(header.sentence, sizeof header.sentence, "%s", trail_text());
        (void)!write_all(&output, &header, sizeof header);
    }
    _exit(r ? 1 : 0);
}

/* ---- the one that asked ---- */

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int read_all(int fd, void *bytes, size_t size, int64_t deadline)
{
    for (size_t done = 0; done < size;) {
        struct pollfd end = {.fd = fd, .events = POLLIN};
        int64_t left = deadline - now_ms();
        int ready = left > 0 ? poll(&end, 1, (int)left) : 0;
        if (ready < 0 && errno == EINTR) {
            continue;
        }
        if (ready <= 0) {
            return fail(-ETIMEDOUT, "reading its file system takes more than %d s", WALL_SECONDS);
        }
        ssize_t count = read(fd, (char *)bytes + done, size - done);
        if (count == 0) {
            return fail(-EINVAL, "its file system cannot be read to the end");
        }
        if (count < 0 && errno != EINTR) {
            return fail(-errno, "read from the helper: %m");
        }
        done += count > 0 ? (size_t)count : 0;
    }
    return 0;
}

static void make_printable(char *text, size_t size)
{
    text[size - 1] = '\0';
    for (; *text; text++) {
        *text = *text < ' ' || *text > '~' ? '?' : *text;
    }
}

static int read_file(int fd, uint64_t size, int64_t deadline, uint8_t **ret_bytes)
{
    uint8_t *bytes = malloc(size);
    if (!bytes) {
        return fail(-ENOMEM, "no memory for a kernel of %llu bytes", (unsigned long long)size);
    }
    *ret_bytes = bytes;
    return read_all(fd, bytes, size, deadline);
}

static int receive(int fd, struct kernel *kernel)
{
    struct header header;
    int64_t deadline = now_ms() + WALL_SECONDS * 1000;
    int r = read_all(fd, &header, sizeof header, deadline);
    if (r) {
        return r;
    }
    make_printable(header.sentence, sizeof header.sentence);
    make_printable(header.version, sizeof header.version);
    make_printable(header.command_line, sizeof header.command_line);
    if (header.error) {
        return fail(header.error < 0 && header.error > -4096 ? header.error : -EINVAL, "%s",
                    header.sentence);
    }
    if (!header.kernel_size || header.kernel_size > KERNEL_SIZE_MAX ||
        header.initrd_size > INITRD_SIZE_MAX) {
        return fail(-EINVAL, "its kernel has an impossible size");
    }
    memcpy(kernel->version, header.version, sizeof kernel->version);
    memcpy(kernel->command_line, header.command_line, sizeof kernel->command_line);
    snprintf(kernel->name, sizeof kernel->name, "vmlinuz-%s", header.version);
    kernel->kernel_size = header.kernel_size;
    kernel->initrd_size = header.initrd_size;
    r = read_file(fd, header.kernel_size, deadline, &kernel->kernel);
    return !r && header.initrd_size ? read_file(fd, header.initrd_size, deadline, &kernel->initrd)
                                    : r;
}

int kernel_read(int (*open)(void *owner, struct disk **ret_disk), void *owner,
                struct kernel *ret_kernel)
{
    int ends[2];
    *ret_kernel = (struct kernel){0};
    if (pipe2(ends, O_CLOEXEC)) {
        return fail(-errno, "make a pipe: %m");
    }
    pid_t pid = fork();
    if (pid == 0) {
        close(ends[0]);
        be_helper(open, owner, ends[1]);
    }
    close(ends[1]);
    int r = pid < 0 ? fail(-errno, "start a process: %m") : receive(ends[0], ret_kernel);
    close(ends[0]);
    if (pid > 0) {
        kill(pid, SIGKILL);
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
        }
    }
    if (r) {
        kernel_fini(ret_kernel);
    }
    return r;
}

void kernel_fini(struct kernel *kernel)
{
    free(kernel->kernel);
    free(kernel->initrd);
    *kernel = (struct kernel){0};
}
