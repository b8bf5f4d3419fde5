/*
 * The doors for a few bytes. A read loads the entry and copies. A write pins the page with one
 * atomic operation, stores, and unpins it with another, whose result says what else is to be done:
 * dirty bits and translations are looked at after the store, so that whoever takes the one or
 * makes the other at the same moment is told again.
 */
#include "memory/memory_internal.h"

#include <errno.h>

#include "base/bytes.h"

/* A copy in which each aligned 1, 2, 4 or 8 bytes of guest memory are one access. */
static inline void copy_from_guest(void *to, const uint8_t *from, uint64_t length)
{
    uintptr_t misaligned = (uintptr_t)from & (length - 1);
    if (length == 8 && !misaligned) {
        store_le64(to, __atomic_load_n((const uint64_t *)from, __ATOMIC_ACQUIRE));
    } else if (length == 4 && !misaligned) {
        store_le32(to, __atomic_load_n((const uint32_t *)from, __ATOMIC_ACQUIRE));
    } else if (length == 2 && !misaligned) {
        store_le16(to, __atomic_load_n((const uint16_t *)from, __ATOMIC_ACQUIRE));
    } else if (length == 1) {
        *(uint8_t *)to = __atomic_load_n(from, __ATOMIC_ACQUIRE);
    } else {
        bytes_copy(to, from, length);
    }
}

static inline void copy_to_guest(uint8_t *to, const void *from, uint64_t length)
{
    uintptr_t misaligned = (uintptr_t)to & (length - 1);
    if (length == 8 && !misaligned) {
        __atomic_store_n((uint64_t *)to, load_le64(from), __ATOMIC_RELEASE);
    } else if (length == 4 && !misaligned) {
        __atomic_store_n((uint32_t *)to, load_le32(from), __ATOMIC_RELEASE);
    } else if (length == 2 && !misaligned) {
        __atomic_store_n((uint16_t *)to, load_le16(from), __ATOMIC_RELEASE);
    } else if (length == 1) {
        __atomic_store_n(to, *(const uint8_t *)from, __ATOMIC_RELEASE);
    } else {
        bytes_copy(to, from, length);
    }
}

/* A read that overlaps a change of state may see the page as it was or as it becomes. */
static inline int read_page(const struct memory *memory, gpa_t gpa, uint8_t *buffer,
                            uint64_t length)
{
    _Atomic uint64_t *entry = entry_of(memory, gpa >> PAGE_SHIFT);
    if (!entry) {
        return -EFAULT;
    }
    uint64_t state = atomic_load(entry) & ENTRY_STATE;
    if (state == ENTRY_PRIVATE) {
        copy_from_guest(buffer, memory->frames + gpa, length);
        return 0;
    }
    if (state == ENTRY_ZERO) {
        bytes_fill(buffer, 0, length);
        return 0;
    }
    return -EFAULT;
}

/* Hold the page PRIVATE and free of stale mappings until page_unpin(). */
static inline int page_pin(struct memory *memory, uint64_t page, _Atomic uint64_t **ret_entry)
{
    _Atomic uint64_t *entry = entry_of(memory, page);
    if (!entry) {
        return -EFAULT;
    }
    uint64_t value = atomic_load(entry);
    for (;;) {
        if ((value & (ENTRY_STATE | ENTRY_BUSY | ENTRY_STALE)) == ENTRY_PRIVATE) {
            if (entry_exchange(entry, &value, value + ENTRY_PIN)) {
                *ret_entry = entry;
                return 0;
            }
            continue;
        }
        int r = page_approach_private(memory, page, value, true);
        if (r < 0) {
            return r;
        }
        value = atomic_load(entry);
    }
}

static inline void page_unpin(struct memory *memory, _Atomic uint64_t *entry, gpa_t gpa,
                              uint64_t written)
{
    uint64_t value = atomic_fetch_sub(entry, ENTRY_PIN);
    if (written && ~value & ENTRY_DIRTY_ALL) {
        atomic_fetch_or(entry, ENTRY_DIRTY_ALL);
    }
    if (written && value & ENTRY_CODE) {
        listeners_code_written(memory, gpa, written);
    }
}

static inline int write_page(struct memory *memory, gpa_t gpa, const uint8_t *buffer,
                             uint64_t length)
{
    _Atomic uint64_t *entry;
    int r = page_pin(memory, gpa >> PAGE_SHIFT, &entry);
    if (r < 0) {
        return r;
    }
    copy_to_guest(memory->frames + gpa, buffer, length);
    page_unpin(memory, entry, gpa, length);
    return 0;
}

/* How much of `length` bytes at `gpa` lies in its page. */
static inline uint64_t piece_of(gpa_t gpa, uint64_t length)
{
    uint64_t rest = PAGE_SIZE - (gpa & (PAGE_SIZE - 1));
    return length < rest ? length : rest;
}

int memory_read(struct memory *memory, gpa_t gpa, void *buffer, uint64_t length)
{
    uint8_t *to = buffer;
    uint64_t piece = piece_of(gpa, length);
    if (piece < length && !memory_is_ram(memory, gpa, length)) {
        return -EFAULT;
    }
    int r = length == 0 ? 0 : read_page(memory, gpa, to, piece);
    while (r == 0 && piece < length) {
        uint64_t next = piece_of(gpa + piece, length - piece);
        r = read_page(memory, gpa + piece, to + piece, next);
        piece += next;
    }
    return r;
}

int memory_write(struct memory *memory, gpa_t gpa, const void *buffer, uint64_t length)
{
    const uint8_t *from = buffer;
    uint64_t piece = piece_of(gpa, length);
    if (piece < length && !memory_is_ram(memory, gpa, length)) {
        return -EFAULT;
    }
    int r = length == 0 ? 0 : write_page(memory, gpa, from, piece);
    while (r == 0 && piece < length) {
        uint64_t next = piece_of(gpa + piece, length - piece);
        r = write_page(memory, gpa + piece, from + piece, next);
        piece += next;
    }
    return r;
}

int memory_load(struct memory *memory, gpa_t gpa, unsigned size, uint64_t *ret_value)
{
    _Atomic uint64_t *entry = entry_of(memory, gpa >> PAGE_SHIFT);
    if ((size != 4 && size != 8) || gpa & (size - 1)) {
        return -EINVAL;
    }
    uint64_t state = entry ? atomic_load(entry) & ENTRY_STATE : ENTRY_NONE;
    if (state == ENTRY_NONE) {
        return -EFAULT;
    }
    if (state == ENTRY_ZERO) {
        *ret_value = 0;
    } else if (size == 8) {
        *ret_value = __atomic_load_n((uint64_t *)(memory->frames + gpa), __ATOMIC_ACQUIRE);
    } else {
        *ret_value = __atomic_load_n((uint32_t *)(memory->frames + gpa), __ATOMIC_ACQUIRE);
    }
    return 0;
}

int memory_compare_exchange(struct memory *memory, gpa_t gpa, unsigned size, uint64_t expected,
                            uint64_t desired, uint64_t *ret_found)
{
    if ((size != 4 && size != 8) || gpa & (size - 1)) {
        return -EINVAL;
    }
    _Atomic uint64_t *entry;
    int r = page_pin(memory, gpa >> PAGE_SHIFT, &entry);
    if (r < 0) {
        return r;
    }
    uint8_t *at = memory->frames + gpa;
    bool exchanged;
    if (size == 8) {
        exchanged = __atomic_compare_exchange_n((uint64_t *)at, &expected, desired, false,
                                                __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        *ret_found = expected;
    } else {
        uint32_t found = (uint32_t)expected;
        exchanged = __atomic_compare_exchange_n((uint32_t *)at, &found, (uint32_t)desired, false,
                                                __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        *ret_found = found;
    }
    page_unpin(memory, entry, gpa, exchanged ? size : 0);
    return 0;
}
