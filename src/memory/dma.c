/*
 * Direct memory access: borrowing pins pages so that their frames stay where they are, for reads
 * and writes by the host kernel that nobody sees byte by byte. Whatever is borrowed lies in the
 * memory file, where neighbours are neighbours, so one span reaches for any range.
 */
#include "memory/memory_internal.h"

#include <errno.h>

/* Pins that leave room for all the threads that may be in a door at once. */
enum { PIN_LIMIT = 1 << 19, WRITE_PIN_LIMIT = 0xffff };

static uint64_t pins_of(bool write)
{
    return write ? ENTRY_PIN + ENTRY_WRITE_PIN : ENTRY_PIN;
}

static bool is_pinned_out(uint64_t value)
{
    return (value & ENTRY_PINS) / ENTRY_PIN >= PIN_LIMIT ||
           (value & ENTRY_WRITE_PINS) / ENTRY_WRITE_PIN >= WRITE_PIN_LIMIT;
}

static int pin_for_dma(struct memory *memory, uint64_t page, bool write)
{
    _Atomic uint64_t *entry = &memory->entries[page];
    uint64_t refused = ENTRY_BUSY | (write ? ENTRY_STALE : 0);
    uint64_t value = atomic_load(entry);
    for (;;) {
        if ((value & (ENTRY_STATE | refused)) == ENTRY_PRIVATE) {
            if (is_pinned_out(value)) {
                return -EBUSY;
            }
            if (entry_exchange(entry, &value, value + pins_of(write))) {
                return 0;
            }
            continue;
        }
        int r = page_approach_private(memory, page, value, write);
        if (r < 0) {
            return r;
        }
        value = atomic_load(entry);
    }
}

int memory_borrow(struct memory *memory, gpa_t gpa, uint64_t length, bool write,
                  struct memory_span *spans, size_t max)
{
    if (!memory_is_ram(memory, gpa, length)) {
        return -EFAULT;
    }
    if (length == 0) {
        return 0;
    }
    if (max == 0) {
        return -E2BIG;
    }
    uint64_t first = gpa >> PAGE_SHIFT;
    uint64_t last = (gpa + length - 1) >> PAGE_SHIFT;
    for (uint64_t page = first; page <= last; page++) {
        int r = pin_for_dma(memory, page, write);
        if (r < 0) {
            while (page-- > first) {
                atomic_fetch_sub(&memory->entries[page], pins_of(write));
            }
            return r;
        }
    }
    spans[0].host = memory->frames + gpa;
    spans[0].length = length;
    spans[0].gpa = gpa;
    spans[0].is_write = write;
    return 1;
}

static void return_span(struct memory *memory, const struct memory_span *span, bool written)
{
    uint64_t first = span->gpa >> PAGE_SHIFT;
    uint64_t last = (span->gpa + span->length - 1) >> PAGE_SHIFT;
    uint64_t pins = pins_of(span->is_write);
    bool is_code = false;
    for (uint64_t page = first; page <= last; page++) {
        uint64_t value = atomic_fetch_sub(&memory->entries[page], pins);
        if (written && ~value & ENTRY_DIRTY_ALL) {
            atomic_fetch_or(&memory->entries[page], ENTRY_DIRTY_ALL);
        }
        is_code |= (value & ENTRY_CODE) != 0;
    }
    if (written && is_code) {
        listeners_code_written(memory, span->gpa, span->length);
    }
}

void memory_return(struct memory *memory, const struct memory_span *spans, size_t count,
                   bool written)
{
    for (size_t i = 0; i < count; i++) {
        return_span(memory, &spans[i], written && spans[i].is_write);
    }
}
