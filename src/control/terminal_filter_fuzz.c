/*
 * Fuzzer of what a guest writes to its user's terminal. The input: the mode, then what is written,
 * which comes once whole and once byte by byte: to the same effect. What goes through goes through
 * a second time unchanged, and has nothing of which the filter is to free it. Seeds:
 * tests/corpus/terminal_filter.
 *
 * Guards: src/control/terminal_filter.c
 */
#include "control/terminal_filter.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t run(enum filter_mode mode, const uint8_t *bytes, size_t size, size_t piece,
                  uint8_t *out)
{
    struct terminal_filter filter;
    size_t count = 0;
    terminal_filter_init(&filter, mode);
    for (size_t at = 0; at < size; at += piece) {
        size_t now = size - at < piece ? size - at : piece;
        count += terminal_filter(&filter, bytes + at, now, out + count);
    }
    return count;
}

/* Sequences that no mode lets through, wherever they stand. */
static void expect_harmless(const uint8_t *out, size_t count)
{
    static const char *const harmful[] = {"\033[21t", "\033P", "\033_", "\033^",   "\033X",
                                          "\033]52",  "\033Z", "\005",  "\033[?6n"};
    for (size_t i = 0; i < sizeof harmful / sizeof harmful[0]; i++) {
        if (memmem(out, count, harmful[i], strlen(harmful[i]))) {
            abort();
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1) {
        return 0;
    }
    enum filter_mode mode = data[0] & 1 ? FILTER_STRICT : FILTER_LIVE;
    uint8_t *whole = malloc(size + FILTER_HELD), *pieces = malloc(size + FILTER_HELD);
    size_t count = run(mode, data + 1, size - 1, size, whole);
    if (count > size - 1 || run(mode, data + 1, size - 1, 1, pieces) != count ||
        memcmp(whole, pieces, count) || run(mode, whole, count, 3, pieces) != count ||
        memcmp(whole, pieces, count)) {
        abort();
    }
    expect_harmless(whole, count);
    free(whole);
    free(pieces);
    return 0;
}
