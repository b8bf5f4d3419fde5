/* The layout of a guest in RAM: taken ranges, free places, checked writes. */
#include "boot/layout.h"

#include <inttypes.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"

/* The first span is the used part of the scratch range; it grows. */
enum { SCRATCH_SPAN = 0 };

void layout_init(struct layout *layout, struct memory *memory, const struct boot_board *board)
{
    *layout = (struct layout){
        .memory = memory,
        .board = board,
        .taken = {[SCRATCH_SPAN] = {board->scratch_base, 0}},
        .taken_count = SCRATCH_SPAN + 1,
    };
}

gpa_t layout_ram_end(const struct layout *layout, gpa_t gpa)
{
    gpa_t end = gpa;
    for (size_t i = 0; i < layout->board->e820_count; i++) {
        const struct e820_entry *entry = &layout->board->e820[i];
        if (entry->type == E820_RAM && entry->base <= end && end - entry->base < entry->size) {
            end = entry->base + entry->size;
        }
    }
    return end;
}

/* The taken span, from number `first` on, that overlaps [base, base + size), or NULL. */
static const struct layout_span *find_taken(const struct layout *layout, size_t first, gpa_t base,
                                            uint64_t size)
{
    for (size_t i = first; i < layout->taken_count; i++) {
        const struct layout_span *span = &layout->taken[i];
        if (span->size > 0 && base < span->base + span->size && span->base < base + size) {
            return span;
        }
    }
    return NULL;
}

int layout_take(struct layout *layout, gpa_t base, uint64_t size, const char *what)
{
    if (size == 0) {
        return 0;
    }
    if (!range_fits(base, size, PHYSICAL_LIMIT) || layout_ram_end(layout, base) < base + size) {
        return fail(-EINVAL,
                    "%s needs %" PRIu64 " bytes at address 0x%" PRIx64
                    ", where this machine has no memory (or not enough)",
                    what, size, base);
    }
    const struct layout_span *other = find_taken(layout, 0, base, size);
    if (other) {
        return fail(-EINVAL,
                    "%s at 0x%" PRIx64 " (%" PRIu64 " bytes) overlaps what is at 0x%" PRIx64
                    " already",
                    what, base, size, other->base);
    }
    if (layout->taken_count == LAYOUT_SPANS_MAX) {
        return fail(-EINVAL, "%s is one piece too many to load", what);
    }
    layout->taken[layout->taken_count++] = (struct layout_span){base, size};
    return 0;
}

int layout_find_low(const struct layout *layout, uint64_t size, uint64_t alignment, gpa_t from,
                    gpa_t limit, gpa_t *ret_base)
{
    if (from >= PHYSICAL_LIMIT || alignment >= PHYSICAL_LIMIT) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < layout->board->e820_count; i++) {
        const struct e820_entry *entry = &layout->board->e820[i];
        if (entry->type != E820_RAM) {
            continue;
        }
        gpa_t end = layout_ram_end(layout, entry->base);
        end = end < limit ? end : limit;
        gpa_t base = align_up(entry->base > from ? entry->base : from, alignment);
        while (base < end && size <= end - base) {
            const struct layout_span *taken = find_taken(layout, 0, base, size);
            if (!taken) {
                *ret_base = base;
                return 0;
            }
            base = align_up(taken->base + taken->size, alignment);
        }
    }
    return -ENOMEM;
}

int layout_find_high(const struct layout *layout, uint64_t size, gpa_t from, gpa_t limit,
                     gpa_t *ret_base)
{
    for (size_t i = layout->board->e820_count; i-- > 0;) {
        const struct e820_entry *entry = &layout->board->e820[i];
        if (entry->type != E820_RAM) {
            continue;
        }
        gpa_t start = entry->base > from ? entry->base : from;
        gpa_t end = layout_ram_end(layout, entry->base);
        end = end < limit ? end : limit;
        while (start < end && size <= end - start) {
            gpa_t base = align_down(end - size, PAGE_SIZE);
            if (base < start) {
                break;
            }
            const struct layout_span *taken = find_taken(layout, 0, base, size);
            if (!taken) {
                *ret_base = base;
                return 0;
            }
            end = taken->base;
        }
    }
    return -ENOMEM;
}

int layout_write(struct layout *layout, gpa_t gpa, const void *data, uint64_t size)
{
    if (size == 0) {
        return 0;
    }
    int error = memory_write(layout->memory, gpa, data, size);
    if (error < 0) {
        return fail(error, "cannot write %" PRIu64 " bytes at guest address 0x%" PRIx64, size, gpa);
    }
    return 0;
}

int layout_zero(struct layout *layout, gpa_t gpa, uint64_t size)
{
    static const uint8_t zeros[PAGE_SIZE];
    while (size > 0) {
        uint64_t length = PAGE_SIZE - gpa % PAGE_SIZE;
        length = length < size ? length : size;
        if (memory_page_state(layout->memory, gpa >> PAGE_SHIFT) != PAGE_ZERO) {
            int error = layout_write(layout, gpa, zeros, length);
            if (error < 0) {
                return error;
            }
        }
        gpa += length;
        size -= length;
    }
    return 0;
}

int layout_scratch(struct layout *layout, const void *data, uint64_t size, uint64_t alignment,
                   gpa_t *ret_gpa)
{
    const struct boot_board *board = layout->board;
    ASSERT(range_fits(board->scratch_base, board->scratch_size, GIB(4)));
    struct layout_span *used = &layout->taken[SCRATCH_SPAN];
    gpa_t gpa = align_up(used->base + used->size, alignment);
    gpa_t end = board->scratch_base + board->scratch_size;
    const struct layout_span *other;
    while (size > 0 && (other = find_taken(layout, SCRATCH_SPAN + 1, gpa, size))) {
        gpa = align_up(other->base + other->size, alignment);
    }
    if (gpa > end || size > end - gpa) {
        return fail(-ENOSPC,
                    "the low memory for boot tables and command line (%" PRIu64
                    " bytes) is too small",
                    board->scratch_size);
    }
    used->size = gpa + size - used->base;
    *ret_gpa = gpa;
    return data ? layout_write(layout, gpa, data, size) : 0;
}
