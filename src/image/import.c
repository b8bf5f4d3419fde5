/* Copying a file of the user's into the store. */
#include "image/import.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backend/disk/magic.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"

enum { SECTOR = 512, QCOW2_SIZE_FIELD = 24, QCOW2_BACKING_FIELD = 8, QCOW2_HEADER = 72 };

/* The file's own name, without folders and ending, with what a name may not have replaced. */
static void name_of(const char *path, char ret_name[STORE_NAME_MAX + 1])
{
    const char *slash = strrchr(path, '/');
    snprintf(ret_name, STORE_NAME_MAX + 1, "%s", slash ? slash + 1 : path);
    char *dot = strrchr(ret_name, '.');
    if (dot && dot != ret_name) {
        *dot = '\0';
    }
    for (char *at = ret_name; *at; at++) {
        if (!isalnum((unsigned char)*at) && !strchr("._:-", *at)) {
            *at = '-';
        }
    }
}

static uint64_t load_be64(const uint8_t *bytes)
{
    return __builtin_bswap64(load_le64(bytes));
}

/* Format and size of the disk, by the beginning of the file. */
static int recognize(int fd, const char *path, uint64_t file_size, const char **ret_format,
                     uint64_t *ret_size)
{
    uint8_t head[DISK_MAGIC_SIZE];
    ssize_t count = pread(fd, head, sizeof head, 0);
    if (count != sizeof head) {
        return count < 0 ? fail(-errno, "read '%s': %m", path)
                         : fail(-EINVAL, "'%s' is too short for a disk image", path);
    }
    const char *magic = disk_magic(head, sizeof head);
    if (!magic) {
        *ret_format = "raw";
        *ret_size = align_down(file_size, SECTOR);
        return 0;
    }
    uint32_t version = __builtin_bswap32(load_le32(head + 4));
    if (strncmp(magic, "qcow", 4) || (version != 2 && version != 3)) {
        return fail(-EINVAL,
                    "'%s' is in the format %s, which cannot be an image (raw and qcow2 can)", path,
                    magic);
    }
    if (load_be64(head + QCOW2_BACKING_FIELD)) {
        return fail(-EINVAL,
                    "'%s' is a qcow2 image with a backing file; make it one file first ('qemu-img "
                    "convert', 'doppel disk convert')",
                    path);
    }
    *ret_format = "qcow2";
    *ret_size = load_be64(head + QCOW2_SIZE_FIELD);
    return *ret_size && *ret_size <= INT64_MAX ? 0 : fail(-EINVAL, "'%s': no size", path);
}

/* By hand, between file systems where the host's kernel does not: it says so before the first byte.
 */
static ssize_t copy_piece(int from, int to, uint64_t offset, uint64_t size)
{
    static char piece[1 << 20];
    ssize_t count = pread(from, piece, size < sizeof piece ? size : sizeof piece, (off_t)offset);
    return count > 0 ? pwrite(to, piece, (size_t)count, (off_t)offset) : count;
}

/* One piece of data; holes stay holes. */
static int copy_data(int from, int to, uint64_t offset, uint64_t end)
{
    while (offset < end) {
        loff_t in = (loff_t)offset, out = (loff_t)offset;
        ssize_t count = copy_file_range(from, &in, to, &out, end - offset, 0);
        if (count < 0 &&
            (errno == EXDEV || errno == EINVAL || errno == EOPNOTSUPP || errno == ENOSYS)) {
            count = copy_piece(from, to, offset, end - offset);
        }
        if (count < 0 && errno == EINTR) {
            continue;
        }
        if (count <= 0) {
            return count ? fail(-errno, "copy the image: %m")
                         : fail(-EIO, "the image became shorter");
        }
        offset += (uint64_t)count;
    }
    return 0;
}

int image_copy(int from, int to)
{
    struct stat facts;
    if (!ioctl(to, FICLONE, from)) {
        return 0;
    }
    if (fstat(from, &facts)) {
        return fail(-errno, "look at the image: %m");
    }
    uint64_t size = (uint64_t)facts.st_size;
    if (ftruncate(to, (off_t)size)) {
        return fail(-errno, "make the image: %m");
    }
    for (uint64_t offset = 0; offset < size;) {
        off_t data = lseek(from, (off_t)offset, SEEK_DATA);
        if (data < 0) {
            return errno == ENXIO ? 0 : fail(-errno, "look for data: %m");
        }
        off_t hole = lseek(from, data, SEEK_HOLE);
        uint64_t end = hole < 0 || (uint64_t)hole > size ? size : (uint64_t)hole;
        int r = copy_data(from, to, (uint64_t)data, end);
        if (r) {
            return r;
        }
        offset = end;
    }
    return 0;
}

int image_import(struct store *store, const char *path, const char *name, json_t **ret_record)
{
    char invented[STORE_NAME_MAX + 1];
    struct stat facts;
    const char *format = NULL;
    uint64_t size = 0;
    if (!name) {
        name_of(path, invented);
        name = invented;
    }
    int r = store_check_name(name);
    if (r) {
        return r;
    }
    CLEANUP_FD int from = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (from < 0 || fstat(from, &facts)) {
        return fail(-errno, "open '%s': %m", path);
    }
    if (!S_ISREG(facts.st_mode)) {
        return fail(-EINVAL, "'%s' is no regular file", path);
    }
    r = recognize(from, path, (uint64_t)facts.st_size, &format, &size);
    struct store_file file = {.fd = -1};
    r = r ? r : store_begin(store, &file);
    r = r ? r : image_copy(from, file.fd);
    if (!r) {
        json_t *record = json_pack("{s:s, s:s, s:I, s:I}", "name", name, "format", format, "size",
                                   (json_int_t)size, "created", (json_int_t)time(NULL));
        ASSERT(record);
        r = store_add(store, &file, record);
        if (r) {
            json_decref(record);
        } else {
            *ret_record = record;
        }
    }
    store_drop(store, &file);
    return r;
}
