/*
 * Opening a raw image: what it is, that nobody else writes to it, and past which caches of the
 * host it is used.
 */
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backend/disk/magic.h"
#include "backend/disk/raw_internal.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"

enum { SECTOR = 512, LOCK_ATTEMPTS = 15 };

/* Locks of the open file, not of the process. 0 or a negative errno. */
static int try_record_lock(int fd, short type)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET};
    return fcntl(fd, F_OFD_SETLK, &lock) ? -errno : 0;
}

static int try_whole_lock(int fd, int operation)
{
    return flock(fd, operation | LOCK_NB) ? -errno : 0;
}

/* Not possible here: an old or small kernel, a file system without locks or without its server. */
static bool is_lockless(int error)
{
    return raw_is_unsupported(error) || error == -ENOLCK;
}

/* The first kind of lock that there is. flock(2) of a local file knows nothing of fcntl(2)'s. */
static int try_lock(struct raw_disk *raw)
{
    bool readonly = raw->disk.readonly;
    raw->lock_kind = RAW_LOCK_RECORD;
    int error = try_record_lock(raw->fd, readonly ? F_RDLCK : F_WRLCK);
    if (is_lockless(error)) {
        raw->lock_kind = RAW_LOCK_WHOLE;
        error = try_whole_lock(raw->fd, readonly ? LOCK_SH : LOCK_EX);
    }
    if (error) {
        raw->lock_kind = RAW_LOCK_NONE;
    }
    return error;
}

static void unlock(struct raw_disk *raw)
{
    if (raw->lock_kind == RAW_LOCK_RECORD) {
        try_record_lock(raw->fd, F_UNLCK);
    } else if (raw->lock_kind == RAW_LOCK_WHOLE) {
        try_whole_lock(raw->fd, LOCK_UN);
    }
}

void raw_destroy(struct raw_disk *raw)
{
    if (raw) {
        if (raw->direct_fd >= 0) {
            close(raw->direct_fd);
        }
        if (raw->fd >= 0) {
            /* Not left to close(): the kernel may hold the file for a while after a ring's end. */
            unlock(raw);
            close(raw->fd);
        }
        pthread_cond_destroy(&raw->idle);
        pthread_mutex_destroy(&raw->lock);
        free(raw);
    }
}
CLEANUP_DEFINE(struct raw_disk, raw_destroy)

/* The size in bytes; what is neither file nor block device is refused. */
static int find_size(int fd, const char *path, bool grows, uint64_t *ret_size)
{
    struct stat status;
    if (fstat(fd, &status)) {
        return fail(-errno, "disk '%s': %s", path, strerror(errno));
    }
    if (S_ISREG(status.st_mode)) {
        *ret_size = (uint64_t)status.st_size;
    } else if (!S_ISBLK(status.st_mode)) {
        return fail(-EINVAL, "disk '%s' is neither a file nor a block device", path);
    } else if (ioctl(fd, BLKGETSIZE64, ret_size)) {
        return fail(-errno, "disk '%s': ask the block device for its size: %s", path,
                    strerror(errno));
    }
    *ret_size = align_down(*ret_size, SECTOR);
    if (*ret_size == 0 && !grows) {
        return fail(-EINVAL, "disk '%s' has less than one sector of %d bytes", path, SECTOR);
    }
    return 0;
}

static int check_magic(int fd, const char *path)
{
    uint8_t bytes[DISK_MAGIC_SIZE];
    ssize_t count = pread(fd, bytes, sizeof bytes, 0);
    if (count < 0) {
        return fail(-errno, "disk '%s': read the first sector: %s", path, strerror(errno));
    }
    const char *name = disk_magic(bytes, (size_t)count);
    if (name) {
        bool is_ours = !strcmp(name, "qcow2");
        return fail(-EINVAL,
                    "disk '%s' looks like a %s file%s, or say format=raw if its bytes are the "
                    "disk's contents",
                    path, name,
                    is_ours ? ": say format=qcow2 if it is one"
                            : ", which is not supported: convert it to a raw or qcow2 image");
    }
    return 0;
}

/* One writer, or any number of readers. */
static int lock_file(struct raw_disk *raw, const char *path)
{
    int error = try_lock(raw);
    /* A process that has just ended may still hold its file, for as long as its ring goes away. */
    for (unsigned i = 0; error == -EAGAIN && i < LOCK_ATTEMPTS; i++) {
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
        error = try_lock(raw);
    }
    if (error == -EAGAIN || error == -EACCES) {
        return fail(-EBUSY, "disk '%s' is in use by another virtual machine or program", path);
    }
    raw->disk.unlocked = is_lockless(error);
    if (error && !raw->disk.unlocked) {
        return fail(error, "disk '%s': lock it: %s", path, strerror(-error));
    }
    return 0;
}

/* Opened without waiting (a pipe would), used with waiting. */
static int open_file(const char *path, int flags, int *ret_fd)
{
    CLEANUP_FD int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return fail(-errno, "open disk '%s': %s", path, strerror(errno));
    }
    int now = fcntl(fd, F_GETFL);
    if (now < 0 || fcntl(fd, F_SETFL, now & ~O_NONBLOCK)) {
        return fail(-errno, "disk '%s': %s", path, strerror(errno));
    }
    *ret_fd = TAKE_FD(fd);
    return 0;
}

/*
 * What the host wants of addresses, offsets and lengths past its page cache. Guests use sectors of
 * 512 bytes: where the host wants more, two of their requests could meet in one of its blocks.
 */
static int find_alignment(struct raw_disk *raw, const char *path)
{
    struct statx status;
    raw->alignment = raw->memory_alignment = SECTOR;
    int sector;
    if (!ioctl(raw->fd, BLKSSZGET, &sector)) {
        raw->alignment = raw->memory_alignment = (unsigned)sector;
    }
#ifdef STATX_DIOALIGN
    if (!statx(raw->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) &&
        (status.stx_mask & STATX_DIOALIGN) && status.stx_dio_offset_align) {
        raw->alignment = status.stx_dio_offset_align;
        raw->memory_alignment = status.stx_dio_mem_align;
    }
#else
    (void)status;
#endif
    if (raw->alignment > SECTOR) {
        return fail(-EINVAL,
                    "disk '%s': its file system or device wants blocks of %u bytes past the page "
                    "cache, and disks have sectors of %d: use cache=writeback or writethrough",
                    path, raw->alignment, SECTOR);
    }
    return 0;
}

/* The descriptors that the cache mode asks for. */
static int open_descriptors(struct raw_disk *raw, const char *path)
{
    bool is_through = raw->cache == DISK_CACHE_WRITETHROUGH || raw->cache == DISK_CACHE_DIRECTSYNC;
    bool is_direct = raw->cache == DISK_CACHE_NONE || raw->cache == DISK_CACHE_DIRECTSYNC;
    int flags = (raw->disk.readonly ? O_RDONLY : O_RDWR) | (is_through ? O_DSYNC : 0);
    int error = open_file(path, flags, &raw->fd);
    if (error || !is_direct) {
        return error;
    }
    error = open_file(path, flags | O_DIRECT, &raw->direct_fd);
    if (error == -EINVAL) {
        return fail(error,
                    "disk '%s': its file system cannot go past the page cache: use "
                    "cache=writeback or writethrough",
                    path);
    }
    return error ? error : find_alignment(raw, path);
}

static int start_engine(struct raw_disk *raw, enum raw_engine engine)
{
    raw->engine = RAW_SYNCHRONOUS;
    if (engine == RAW_SYNCHRONOUS) {
        return 0;
    }
    int error = engine == RAW_WORKER_THREADS ? -ENOSYS : raw_ring_open(raw);
    raw->engine = RAW_RING;
    if (error && engine != RAW_RING) {
        trail_clear();
        raw->engine = RAW_WORKER_THREADS;
        error = raw_workers_open(raw);
    }
    return error;
}

int raw_open_file(const char *path, const struct disk_options *options, bool grows,
                  enum raw_engine engine, struct disk **ret_disk)
{
    CLEANUP(raw_destroy) struct raw_disk *raw = calloc(1, sizeof *raw);
    ASSERT(raw);
    raw->fd = raw->direct_fd = -1;
    raw->cache = options->cache;
    raw->grows = grows;
    pthread_mutex_init(&raw->lock, NULL);
    pthread_cond_init(&raw->idle, NULL);
    raw->disk = (struct disk){.ops = &raw_ops, .readonly = options->readonly};
    int error = open_descriptors(raw, path);
    if (!error) {
        error = find_size(raw->fd, path, grows, &raw->disk.size);
    }
    if (!error && !options->unlocked) {
        error = lock_file(raw, path);
    }
    if (!error && options->format == DISK_FORMAT_UNKNOWN) {
        error = check_magic(raw->fd, path);
    }
    if (!error) {
        error = start_engine(raw, options->synchronous ? RAW_SYNCHRONOUS : engine);
    }
    if (error) {
        return error;
    }
    if (grows) {
        raw->disk.size = align_down(INT64_MAX, SECTOR);
    }
    *ret_disk = &TAKE(raw)->disk;
    return 0;
}

int raw_open(const char *path, bool readonly, bool format_given, enum raw_engine engine,
             struct disk **ret_disk)
{
    const struct disk_options options = {
        .format = format_given ? DISK_FORMAT_RAW : DISK_FORMAT_UNKNOWN, .readonly = readonly};
    return raw_open_file(path, &options, false, engine, ret_disk);
}

int disk_raw_open(const char *path, bool readonly, bool format_given, struct disk **ret_disk)
{
    return raw_open(path, readonly, format_given, RAW_AUTO, ret_disk);
}
