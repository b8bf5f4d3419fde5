/* What a guest writes and a user's terminal may see of it, in pieces of any size. */
#include "control/terminal_filter.h"

#include <stdbool.h>
#include <string.h>

/* last: cmocka wants the standard headers before it */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/bytes.h"

/* NULL: the same as what is written; otherwise what is left of it. */
static const struct {
    const char *written, *live, *strict;
} rows[] = {
    {"plain\r\n\ttext\b\a", NULL, NULL},
    {"\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", NULL, NULL},
    {"\xc2\xa0", NULL, NULL},
    {"\033[1;31mred\033[0m\033[2J\033[10;5H\033[K", NULL, NULL},
    {"\033[38;2;1;2;3m\033[?25l\033[?25h\033[4 q\0337\0338\033(B\033M", NULL, NULL},
    {"a\005b", "ab", "ab"},
    /* out of UTF-8, where parts of characters are controls; answers in another form */
    {"a\033%@b\xc4\x9b"
     "6n\033%G",
     "ab\xc4\x9b"
     "6n",
     "ab\xc4\x9b"
     "6n"},
    {"a\033 Gb", "ab", "ab"},
    /* questions */
    {"a\033[6nb", NULL, "ab"},
    {"a\033[5nb", NULL, "ab"},
    {"a\033[cb\033[0c", NULL, "ab"},
    {"a\033[?6nb\033[15n", "ab", "ab"},
    {"a\033[>cb\033[=c\033Z", "ab", "ab"},
    {"a\033[21tb\033[18t\033[14t", "ab", "ab"},
    {"a\033[xb\033[1x", "ab", "ab"},
    {"a\033[?1$pb\033[4$p", "ab", "ab"},
    {"a\033[1;1;1;1;5;5*yb\033[1$w\033[>q\033[?u\033[?1;1S\033[?4m\033['|", "ab", "ab"},
    {"a\033P$qm\033\\b", "ab", "ab"},
    {"a\033P+q544e\033\\b", "ab", "ab"},
    {"a\033]4;1;?\ab\033]10;?\033\\c", "abc", "abc"},
    {"a\033]52;c;?\ab\033]52;c;QUJD\a", "ab", "ab"},
    {"a\033_Gi=1\033\\b\033^x\033\\c\033Xy\033\\d", "abcd", "abcd"},
    {"a\033]0;title\ab\033]2;more\033\\c", NULL, "abc"},
    {"a\033]0;ti\001tle\ab", "ab", "ab"},
    /* the mouse: only where somebody may use it */
    {"a\033[?1000hb\033[?1004h", NULL, "ab"},
    {"a\033[?1000lb", NULL, NULL},
    /* 8-bit controls, alone and in UTF-8 */
    {"a\x9b"
     "6nb",
     "a6nb", "a6nb"},
    {"a\xc2\x9b"
     "6nb",
     "a\033[6nb", "ab"},
    {"a\xc2\x9b"
     "21tb\xc2\x9a",
     "ab", "ab"},
    {"a\xc2\x90$qm\xc2\x9c"
     "b",
     "ab", "ab"},
    {"a\xff\xfe\xc0\xaf"
     "b",
     "ab", "ab"},
    /* interrupted, and never ended */
    {"a\033[6\0302nb", "a2nb", "a2nb"},
    {"a\033[6\033[21tb", "ab", "ab"},
    {"a\033]0;x\033[21tb", "ab", "ab"},
    {"a\033P\033[21tb\033\\", "ab", "ab"},
    {"a\033[6", "a", "a"},
    {"a\033]52;c;", "a", "a"},
};

static void check(enum filter_mode mode, const char *written, const char *expected, size_t piece)
{
    struct terminal_filter filter;
    uint8_t out[1024];
    size_t size = strlen(written), count = 0;
    terminal_filter_init(&filter, mode);
    for (size_t at = 0; at < size; at += piece) {
        size_t now = size - at < piece ? size - at : piece;
        count += terminal_filter(&filter, (const uint8_t *)written + at, now, out + count);
    }
    out[count] = '\0';
    assert_string_equal((const char *)out, expected);
}

static void test_rows(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        for (size_t piece = 1; piece < 20; piece++) {
            const char *live = rows[i].live ? rows[i].live : rows[i].written;
            check(FILTER_LIVE, rows[i].written, live, piece);
            const char *strict = rows[i].strict ? rows[i].strict : rows[i].written;
            check(FILTER_STRICT, rows[i].written, strict, piece);
        }
    }
}

/* Longer than anything sensible: it vanishes up to its end, and what follows is seen. */
static void test_long(void **state)
{
    char text[2000];
    memset(text, '1', sizeof text);
    memcpy(text, "a\033]0;", 5);
    strcpy(text + 1500, "\ab");
    check(FILTER_LIVE, text, "ab", 7);
    memset(text, 'x', sizeof text);
    memcpy(text, "a\033P", 3);
    strcpy(text + 1500, "\033\\b");
    check(FILTER_LIVE, text, "ab", 7);
}

static void test_printable(void **state)
{
    char text[] = "a\033[2Jb\nc\x7f\xc2\x9b"
                  "d\xc3\xa4\xc2\xa0\xc2";
    terminal_make_printable(text);
    assert_string_equal(text, "a?[2Jb?c???d\xc3\xa4\xc2\xa0\xc2");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rows), cmocka_unit_test(test_long),
                                       cmocka_unit_test(test_printable)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
