/* SHA-256 (FIPS 180-4), by nettle: of texts, and of files that may be large. */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { DIGEST_SIZE = 32, DIGEST_TEXT = 2 * DIGEST_SIZE + 1 };

struct digest {
    uint8_t bytes[DIGEST_SIZE];
};

void digest_bytes(const void *bytes, size_t size, struct digest *ret_digest);
/*
 * All of a file; holes count as the zeroes that they read as. `size` is what it has to have: a
 * file that ends before is -EIO.
 */
int digest_file(int fd, uint64_t size, struct digest *ret_digest)
    __attribute__((warn_unused_result));
void digest_print(const struct digest *digest, char ret_text[DIGEST_TEXT]);
