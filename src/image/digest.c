/* SHA-256 of texts and files. */
#include "image/digest.h"

#include <errno.h>
#include <nettle/sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/error.h"

enum { CHUNK = 1 << 20 };

_Static_assert(DIGEST_SIZE == SHA256_DIGEST_SIZE, "as nettle has it");

void digest_bytes(const void *bytes, size_t size, struct digest *ret_digest)
{
    struct sha256_ctx context;
    sha256_init(&context);
    sha256_update(&context, size, bytes);
    sha256_digest(&context, DIGEST_SIZE, ret_digest->bytes);
}

/* Zeroes up to where the file has data again. */
static uint64_t skip_hole(int fd, uint64_t offset, uint64_t size, struct sha256_ctx *context)
{
    static const uint8_t zeroes[CHUNK];
    off_t data = lseek(fd, (off_t)offset, SEEK_DATA);
    /* ENXIO: nothing but a hole follows; others: a file system that has no holes */
    uint64_t end = data >= 0 ? (uint64_t)data : errno == ENXIO ? size : offset;
    end = end < size ? end : size;
    while (offset < end) {
        uint64_t piece = end - offset < CHUNK ? end - offset : CHUNK;
        sha256_update(context, piece, zeroes);
        offset += piece;
    }
    return offset;
}

static int add_data(int fd, uint64_t offset, uint64_t size, uint8_t *buffer,
                    struct sha256_ctx *context, uint64_t *ret_read)
{
    uint64_t piece = size - offset < CHUNK ? size - offset : CHUNK;
    ssize_t count;
    do {
        count = pread(fd, buffer, piece, (off_t)offset);
    } while (count < 0 && errno == EINTR);
    if (count <= 0) {
        return count ? fail(-errno, "read the image: %m")
                     : fail(-EIO, "the image is shorter than it was");
    }
    sha256_update(context, (size_t)count, buffer);
    *ret_read = (uint64_t)count;
    return 0;
}

int digest_file(int fd, uint64_t size, struct digest *ret_digest)
{
    struct sha256_ctx context;
    uint8_t *buffer = malloc(CHUNK);
    ASSERT(buffer);
    sha256_init(&context);
    int r = 0;
    uint64_t offset = 0;
    while (!r && offset < size) {
        offset = skip_hole(fd, offset, size, &context);
        uint64_t count = 0;
        if (offset < size) {
            r = add_data(fd, offset, size, buffer, &context, &count);
        }
        offset += count;
    }
    free(buffer);
    sha256_digest(&context, DIGEST_SIZE, ret_digest->bytes);
    return r;
}

void digest_print(const struct digest *digest, char ret_text[DIGEST_TEXT])
{
    for (size_t i = 0; i < DIGEST_SIZE; i++) {
        sprintf(ret_text + 2 * i, "%02x", digest->bytes[i]);
    }
}
