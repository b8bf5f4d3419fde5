/*
 * Where the pieces of a guest go: which ranges of RAM are taken by kernel, initrd and tables, and
 * where a new piece fits. Addresses from hostile files are checked here, in one place.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "boot/boot.h"

/* No CPU has more physical address bits (SDM volume 3, 4.1.4): bigger numbers are nonsense. */
#define PHYSICAL_LIMIT (1ull << 52)

enum { LAYOUT_SPANS_MAX = 80 };

struct layout_span {
    gpa_t base;
    uint64_t size;
};

struct layout {
    struct memory *memory;
    const struct boot_board *board;
    struct layout_span taken[LAYOUT_SPANS_MAX];
    size_t taken_count;
};

/* Nothing is taken yet. */
void layout_init(struct layout *layout, struct memory *memory, const struct boot_board *board);

/* The end of the contiguous RAM around `gpa` as the E820 table tells it; `gpa` if there is none. */
gpa_t layout_ram_end(const struct layout *layout, gpa_t gpa);

/*
 * Take [base, base + size) for `what` ("segment 2"). -EINVAL if it is not all RAM, or if a part
 * of it was taken before. Size 0 takes nothing.
 */
int layout_take(struct layout *layout, gpa_t base, uint64_t size, const char *what)
    __attribute__((warn_unused_result));

/*
 * Find free RAM of `size` bytes in [from, limit): the lowest place at a multiple of `alignment` (a
 * power of two), or the highest at a page boundary. -ENOMEM, without a sentence, if there is none.
 */
int layout_find_low(const struct layout *layout, uint64_t size, uint64_t alignment, gpa_t from,
                    gpa_t limit, gpa_t *ret_base) __attribute__((warn_unused_result));
int layout_find_high(const struct layout *layout, uint64_t size, gpa_t from, gpa_t limit,
                     gpa_t *ret_base) __attribute__((warn_unused_result));

/* Write bytes, or zeros, into RAM. Pages that are known to be zero are not touched by zeros. */
int layout_write(struct layout *layout, gpa_t gpa, const void *data, uint64_t size)
    __attribute__((warn_unused_result));
int layout_zero(struct layout *layout, gpa_t gpa, uint64_t size)
    __attribute__((warn_unused_result));

/*
 * Put `size` bytes into a free place of the scratch range, or only reserve them if `data` is NULL.
 * Load the kernel first: it may use the scratch range as well. -ENOSPC if the range is full.
 */
int layout_scratch(struct layout *layout, const void *data, uint64_t size, uint64_t alignment,
                   gpa_t *ret_gpa) __attribute__((warn_unused_result));
