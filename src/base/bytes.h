/*
 * Bytes and numbers: unaligned little-endian access, alignment, checked ranges, and copies that
 * use general registers only (translated guest code keeps its vector state in the CPU while
 * monitor code runs, see docs/translate.md).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARRAY_SIZE(array)                   (sizeof(array) / sizeof((array)[0]))
#define CONTAINER_OF(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

#define KIB(n) ((uint64_t)(n) << 10)
#define MIB(n) ((uint64_t)(n) << 20)
#define GIB(n) ((uint64_t)(n) << 30)

static inline uint64_t align_down(uint64_t value, uint64_t alignment)
{
    return value & ~(alignment - 1);
}

static inline uint64_t align_up(uint64_t value, uint64_t alignment)
{
    return (value + alignment - 1) & ~(alignment - 1);
}

/* Is [start, start + length) inside [0, limit), without overflow? */
static inline bool range_fits(uint64_t start, uint64_t length, uint64_t limit)
{
    return start <= limit && length <= limit - start;
}

/* Copy with the string unit of the CPU: no vector registers, regions must not overlap. */
static inline void bytes_copy(void *to, const void *from, size_t length)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length) : : "memory");
}

/* Fill with the string unit of the CPU: no vector registers. */
static inline void bytes_fill(void *to, uint8_t value, size_t length)
{
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(length) : "a"(value) : "memory");
}

#define BYTES_DEFINE(type, name)                                                                   \
    static inline type load_##name(const void *from)                                               \
    {                                                                                              \
        type value;                                                                                \
        __builtin_memcpy(&value, from, sizeof value);                                              \
        return value;                                                                              \
    }                                                                                              \
    static inline void store_##name(void *to, type value)                                          \
    {                                                                                              \
        __builtin_memcpy(to, &value, sizeof value);                                                \
    }
/* The only host is x86-64, so native order is little-endian order. */
BYTES_DEFINE(uint16_t, le16)
BYTES_DEFINE(uint32_t, le32)
BYTES_DEFINE(uint64_t, le64)
#undef BYTES_DEFINE
