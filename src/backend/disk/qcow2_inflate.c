/*
 * Compressed clusters: raw deflate data with a window of 4 KiB, or one zstd frame. Both decompress
 * into a cluster that is already there, so no image decides how much memory that takes.
 */
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "backend/disk/qcow2_internal.h"
#include "base/error.h"

static int inflate_deflated(const uint8_t *from, size_t length, uint8_t *to, size_t size)
{
    z_stream stream = {.next_in = (uint8_t *)from,
                       .avail_in = (unsigned)length,
                       .next_out = to,
                       .avail_out = (unsigned)size};
    if (inflateInit2(&stream, -12) != Z_OK) {
        return -ENOMEM;
    }
    int result = inflate(&stream, Z_FINISH);
    inflateEnd(&stream);
    /* what follows in the last sector belongs to somebody else, and is not looked at */
    bool is_whole = stream.avail_out == 0 && (result == Z_STREAM_END || result == Z_BUF_ERROR);
    return is_whole ? 0 : -EIO;
}

static int inflate_zstd(const uint8_t *from, size_t length, uint8_t *to, size_t size)
{
    size_t frame = ZSTD_findFrameCompressedSize(from, length);
    if (ZSTD_isError(frame) || frame > length) {
        return -EIO;
    }
    return ZSTD_decompress(to, size, from, frame) == size ? 0 : -EIO;
}

int qcow2_inflate(const struct qcow2 *q, const uint8_t *from, size_t length, uint8_t *ret_cluster)
{
    return q->header.compression ? inflate_zstd(from, length, ret_cluster, q->cluster_size)
                                 : inflate_deflated(from, length, ret_cluster, q->cluster_size);
}
