/* Opening an image of any format: what it is said to be, or refused if it looks like something
 * else. */
#include "backend/disk/qcow2.h"
#include "backend/disk/raw_internal.h"
#include "base/error.h"

int disk_file_open(const char *path, const struct disk_options *options, struct disk **ret_disk)
{
    struct disk_options as_bytes = *options;
    as_bytes.format = DISK_FORMAT_RAW;
    return raw_open_file(path, &as_bytes, true, RAW_AUTO, ret_disk);
}

int disk_open(const char *path, const struct disk_options *options, struct disk **ret_disk)
{
    struct disk *file;
    if (options->backing_count > DISK_BACKING_MAX) {
        return fail(-EINVAL, "disk '%s': a backing chain has at most %d files", path,
                    DISK_BACKING_MAX);
    }
    if (options->format != DISK_FORMAT_QCOW2) {
        int error = raw_open_file(path, options, false, RAW_AUTO, ret_disk);
        if (!error && options->backing_count) {
            disk_free(*ret_disk);
            return fail(-EINVAL, "disk '%s' is a raw image, which has no backing file", path);
        }
        return error;
    }
    int error = disk_file_open(path, options, &file);
    return error ? error : qcow2_open(file, path, options, ret_disk);
}
