/*
 * For this room's tests: a small board with memory, and loading into it with the sentence of a
 * failure at hand.
 */
#pragma once

// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#undef fail /* ours reports errors of the project */
// clang-format on
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "boot/boot.h"

enum {
    TEST_RAM_LOW_END = 0xa0000,
    TEST_RAM_BASE = 0x100000,
    TEST_RAM_END = 64 << 20,
    TEST_SCRATCH = 0x10000,
    TEST_SCRATCH_SIZE = 0x20000,
    TEST_RSDP = 0xe0000,
};

static const struct e820_entry test_e820[] = {
    {0, TEST_RAM_LOW_END, E820_RAM},
    {TEST_RSDP, TEST_RAM_BASE - TEST_RSDP, E820_RESERVED},
    {TEST_RAM_BASE, TEST_RAM_END - TEST_RAM_BASE, E820_RAM},
};

struct test_board {
    struct memory *memory;
    struct boot_board board;
    struct cpu_state state;
};

static inline void test_board_init(struct test_board *test)
{
    static const struct memory_range ram[] = {{0, TEST_RAM_END}};
    memset(test, 0, sizeof *test);
    assert_int_equal(memory_new(ram, 1, "boot-test", &test->memory), 0);
    test->board = (struct boot_board){
        .e820 = test_e820,
        .e820_count = ARRAY_SIZE(test_e820),
        .rsdp = TEST_RSDP,
        .scratch_base = TEST_SCRATCH,
        .scratch_size = TEST_SCRATCH_SIZE,
    };
}

static inline void test_board_fini(struct test_board *test)
{
    memory_free(test->memory);
}

/* Load a kernel into fresh memory that is thrown away; only the result counts. */
static inline int test_load(const struct boot_request *request)
{
    struct test_board test;
    test_board_init(&test);
    trail_clear();
    int error = boot_load(test.memory, &test.board, request, &test.state);
    test_board_fini(&test);
    return error;
}

static inline int test_load_bytes(const void *bytes, size_t size)
{
    struct boot_request request = {
        .kernel = {.name = "kernel", .data = bytes, .size = size},
        .command_line = "console=ttyS0",
    };
    return test_load(&request);
}

/* Each shorter file must fail cleanly. The copy has no byte to spare, for the sanitizers. */
static inline void test_truncations(const uint8_t *bytes, size_t size)
{
    for (size_t length = 0; length < size; length++) {
        uint8_t *copy = malloc(length ? length : 1);
        assert_non_null(copy);
        memcpy(copy, bytes, length);
        assert_true(test_load_bytes(copy, length) < 0);
        assert_true(trail_text()[0] != 0);
        free(copy);
    }
}

/* A field to overwrite in a good file, and a part of the sentence that must come of it. */
struct test_mutation {
    size_t offset, size;
    uint64_t value;
    const char *sentence;
};

static inline void test_mutations(const uint8_t *bytes, size_t size,
                                  const struct test_mutation *mutations, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint8_t *copy = malloc(size);
        assert_non_null(copy);
        memcpy(copy, bytes, size);
        memcpy(copy + mutations[i].offset, &mutations[i].value, mutations[i].size);
        int error = test_load_bytes(copy, size);
        bool as_expected = error < 0 && strstr(trail_text(), mutations[i].sentence);
        if (!as_expected) {
            print_error("mutation %zu: %d, '%s' lacks '%s'\n", i, error, trail_text(),
                        mutations[i].sentence);
        }
        assert_true(as_expected);
        free(copy);
    }
}

static inline uint64_t test_number(struct test_board *test, gpa_t gpa, unsigned size)
{
    uint64_t value = 0;
    assert_int_equal(memory_read(test->memory, gpa, &value, size), 0);
    return value;
}

static inline void test_assert_bytes(struct test_board *test, gpa_t gpa, const void *bytes,
                                     size_t size)
{
    uint8_t *found = malloc(size);
    assert_non_null(found);
    assert_int_equal(memory_read(test->memory, gpa, found, size), 0);
    assert_memory_equal(found, bytes, size);
    free(found);
}
