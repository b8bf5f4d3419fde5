/* An I/O manager of libext2fs over struct blocks. */
#include "image/blocks.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"

enum { BLOCK_MAX = 65536 };

int blocks_read(const struct blocks *blocks, uint64_t offset, void *to, size_t size)
{
    return range_fits(offset, size, blocks->size)
               ? blocks->read(blocks->owner, blocks->offset + offset, to, size)
               : -EINVAL;
}

static errcode_t channel_close(io_channel channel)
{
    free(channel->name);
    free(channel);
    return 0;
}

static errcode_t channel_set_size(io_channel channel, int size)
{
    channel->block_size = size;
    return size >= 1024 && size <= BLOCK_MAX ? 0 : EXT2_ET_BAD_DEVICE_NAME;
}

/* A negative count is bytes. */
static errcode_t channel_read64(io_channel channel, unsigned long long block, int count, void *to)
{
    uint64_t size =
        count < 0 ? (uint64_t) - (int64_t)count : (uint64_t)count * (uint64_t)channel->block_size;
    uint64_t offset;
    if (__builtin_mul_overflow(block, (uint64_t)channel->block_size, &offset)) {
        return EXT2_ET_SHORT_READ;
    }
    return blocks_read(channel->private_data, offset, to, size) ? EXT2_ET_SHORT_READ : 0;
}

static errcode_t channel_read(io_channel channel, unsigned long block, int count, void *to)
{
    return channel_read64(channel, block, count, to);
}

static errcode_t channel_write64(io_channel channel, unsigned long long block, int count,
                                 const void *from)
{
    return EXT2_ET_RO_FILSYS;
}

static errcode_t channel_write(io_channel channel, unsigned long block, int count, const void *from)
{
    return EXT2_ET_RO_FILSYS;
}

static errcode_t channel_flush(io_channel channel)
{
    return 0;
}

static errcode_t channel_open(const char *name, int flags, io_channel *ret_channel);

static struct struct_io_manager manager = {
    .magic = EXT2_ET_MAGIC_IO_MANAGER,
    .name = "blocks of a disk",
    .open = channel_open,
    .close = channel_close,
    .set_blksize = channel_set_size,
    .read_blk = channel_read,
    .write_blk = channel_write,
    .flush = channel_flush,
    .read_blk64 = channel_read64,
    .write_blk64 = channel_write64,
};

/* The library hands on nothing but a name: the address, as text. */
static errcode_t channel_open(const char *name, int flags, io_channel *ret_channel)
{
    void *blocks = NULL;
    io_channel channel = calloc(1, sizeof *channel);
    ASSERT(channel && sscanf(name, "%p", &blocks) == 1);
    channel->magic = EXT2_ET_MAGIC_IO_CHANNEL;
    channel->manager = &manager;
    channel->name = strdup(name);
    channel->block_size = 1024;
    channel->refcount = 1;
    channel->private_data = blocks;
    *ret_channel = channel;
    return 0;
}

int blocks_open(struct blocks *blocks, ext2_filsys *ret_file_system)
{
    char name[32];
    snprintf(name, sizeof name, "%p", (void *)blocks);
    errcode_t error = ext2fs_open2(name, NULL, EXT2_FLAG_64BITS | EXT2_FLAG_SOFTSUPP_FEATURES, 0, 0,
                                   &manager, ret_file_system);
    return error ? fail(-EINVAL, "its ext4 file system cannot be read: %s", error_message(error))
                 : 0;
}
